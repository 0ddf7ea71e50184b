"""The check against memorisation: generated images beside the real ones that are nearest to them.

Distances are Euclidean in the features of the scores. A model that copies makes images far nearer
to a real one than real images are to each other.

Shapes: n generated images, m real ones, K neighbours, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fleetstep.reporting.axes import from_zero
from fleetstep.reporting.charts import Figure, Panel, Point, Rule, Series
from fleetstep.reporting.grids import tile
from fleetstep.reporting.seed_grids import enlargement
from fleetstep.reporting.wording import number

UInt8 = NDArray[np.uint8]
Float64 = NDArray[np.float64]

CLOSE = 0.01
"""Share of the real images that are closest to another: what is closer still is suspicious."""

_CLOSEST = f"{100 * CLOSE:.0f} %"
_GROUPS = 4
_BARS = 32
_PAPER, _INK, _QUIET, _BLUE = (255, 255, 255), (31, 35, 40), (89, 99, 110), (0, 114, 178)
_FONT, _FRAME, _GAP = 12, 3, 6


@dataclass(frozen=True, eq=False)
class NeighbourCheck:
    """What is nearest to the images of one cell.

    Args:
        cell: its name.
        images_nCHW: some generated images, uint8; may be none.
        neighbours_nKCHW: the K nearest real images of each, nearest first, uint8.
        distance_nK: how far they are, in the units of the features.
        generated_n: distance of every generated image to its nearest real one.
        real_m: distance of real images to the nearest that differs.
        features: the feature space, for people.
    """

    cell: str
    images_nCHW: UInt8
    neighbours_nKCHW: UInt8
    distance_nK: Float64
    generated_n: Float64
    real_m: Float64
    features: str

    @property
    def threshold(self) -> float:
        """What 1 % of the real images' distances lie below.

        Exact twins among them say nothing of how close different images are, and with enough of
        them the threshold would be 0, below which no copy lies.
        """
        return float(np.quantile(self.real_m[self.real_m > 0], CLOSE))

    @property
    def close(self) -> int:
        """How many generated images are nearer to a real one than that."""
        return int((self.generated_n < self.threshold).sum())


def memory_text(check: NeighbourCheck) -> str:
    """What the distances say, in sentences."""
    count = len(check.generated_n)
    share = check.close / count
    expected = max(count * CLOSE, 1.0)
    # Three standard deviations of a count: chance alone seldom makes so many.
    suspicious = check.close > expected + 3 * expected**0.5
    verdict = (
        "That is far more than new images of the same kind would be: look for copies."
        if suspicious
        else "That is what new images of the same kind would be: no sign of copying."
    )
    return (
        f"{check.close:,} of {count:,} images of {check.cell} ({100 * share:.1f} %) are nearer to "
        f"a real image than {_CLOSEST} of the real images are to each other (distance below "
        f"{number(check.threshold)}). {verdict}"
    )


def distances_figure(check: NeighbourCheck) -> Figure:
    """Two histograms: generated to nearest real, and real to nearest other real."""
    top = float(max(np.quantile(check.real_m, 0.995), np.quantile(check.generated_n, 0.995)))
    edges = np.linspace(0, top or 1.0, _BARS + 1)
    series = tuple(
        _outline(name, slot, distances, edges)
        for name, slot, distances in (
            ("real to nearest other real", 0, check.real_m),
            ("generated to nearest real", 1, check.generated_n),
        )
    )
    x = from_zero(f"distance to the nearest real image, {check.features} features", edges)
    y = from_zero("images, %", [point.y for one in series for point in one.points])
    rule = Rule("x", check.threshold, f"closest {_CLOSEST} of real")
    caption = (
        "Each image's distance to its nearest real image; of a real image, to the nearest other. "
        "Copies would make a hump left of the dashed line."
    )
    panel = Panel(check.cell, x, y, series, (rule,))
    return Figure("distances", "Distance to the nearest real image", caption, (panel,))


def _outline(name: str, slot: int, distances: Float64, edges: Float64) -> Series:
    """A histogram's outline in percent of its images."""
    counts, _ = np.histogram(distances, edges)
    heights = 100 * counts / len(distances)
    corners = [
        Point(float(x), float(height))
        for left, right, height in zip(edges, edges[1:], heights, strict=False)
        for x in (left, right)
    ]
    return Series(name, slot, tuple(corners), marks=False)


def draw_neighbours(check: NeighbourCheck) -> Image.Image:
    """Each generated image, framed, before its neighbours, with their distances below.

    Raises:
        ValueError: there are no images.
    """
    if not len(check.images_nCHW):
        raise ValueError("a picture of neighbours needs at least one generated image")
    height, width = check.images_nCHW.shape[2:]
    scale = enlargement(width)
    step_x = width * scale + 2 * _FRAME
    step_y = height * scale + 2 * _FRAME + _FONT + _GAP
    per_group = 1 + check.neighbours_nKCHW.shape[1]
    group_x = per_group * step_x + 2 * _GAP
    rows = -(-len(check.images_nCHW) // _GROUPS)
    columns = min(_GROUPS, len(check.images_nCHW))
    sheet = Image.new("RGB", (columns * group_x, rows * step_y), _PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT)
    for place, image_CHW in enumerate(check.images_nCHW):
        row, column = divmod(place, _GROUPS)
        left, top = column * group_x, row * step_y
        box = (left, top, left + step_x - 1, top + height * scale + 2 * _FRAME - 1)
        pen.rectangle(box, fill=_BLUE)
        below = top + height * scale + 2 * _FRAME + _FONT / 2
        pen.text((left + step_x / 2, below), f"seed {place}", _INK, font, anchor="mm")
        shown = [image_CHW, *check.neighbours_nKCHW[place]]
        for k, picture_CHW in enumerate(shown):
            picture = tile(picture_CHW[None], columns=1, scale=scale).convert("RGB")
            sheet.paste(picture, (left + k * step_x + _FRAME, top + _FRAME))
            if k:
                words = number(float(check.distance_nK[place, k - 1]))
                x = left + (k + 0.5) * step_x
                pen.text((x, below), words, _QUIET, font, anchor="mm")
    return sheet
