"""The same seeds through several cells: one row a cell, one column a seed.

Pixels are enlarged by whole factors: what is seen is what the model made.

Shapes: N images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fleetstep.reporting.grids import shortened, tile

UInt8 = NDArray[np.uint8]

_PAPER, _INK, _QUIET = (255, 255, 255), (31, 35, 40), (89, 99, 110)
_FONT, _LABEL_FONT = 13, 15
_GAP = 8
_LABEL = 170
_IMAGE = 56
"""Least size of an image in pixels after enlarging."""


@dataclass(frozen=True, eq=False)
class SeedGrid:
    """Cells of one network and number of calls.

    Args:
        network: its name.
        calls: "9" or "adaptive".
        rows: (solver, images_NCHW uint8), the same seeds in the same order.
    """

    network: str
    calls: str
    rows: tuple[tuple[str, UInt8], ...]


def draw_seeds(grid: SeedGrid) -> Image.Image:
    """The grid with the solver's name before each row and the seed above each column.

    Raises:
        ValueError: no rows, or rows of different numbers or shapes of images.
    """
    shapes = {images_NCHW.shape for _, images_NCHW in grid.rows}
    if len(shapes) != 1:
        raise ValueError(
            f"rows of a grid must show the same seeds at one size, but got {sorted(shapes)}"
        )
    ((count, _, height, width),) = shapes
    scale = enlargement(width)
    step_x, step_y = width * scale + scale, height * scale + _GAP
    sheet = Image.new(
        "RGB", (_LABEL + count * step_x, _FONT + _GAP + len(grid.rows) * step_y), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    font, label = (ImageFont.load_default(size=size) for size in (_FONT, _LABEL_FONT))
    for column in range(count):
        x = _LABEL + column * step_x + width * scale / 2
        pen.text((x, _FONT / 2), f"seed {column}", _QUIET, font, anchor="mm")
    for row, (solver, images_NCHW) in enumerate(grid.rows):
        top = _FONT + _GAP + row * step_y
        name = shortened(solver, label, _LABEL - _GAP)
        pen.text((0, top + height * scale / 2), name, _INK, label, anchor="lm")
        sheet.paste(tile(images_NCHW, columns=count, scale=scale).convert("RGB"), (_LABEL, top))
    return sheet


def enlargement(width: int) -> int:
    """The whole factor by which images of that many pixels are shown."""
    return max(1, -(-_IMAGE // width))


def spread(values: Sequence[str], most: int) -> list[str]:
    """At most that many of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]
