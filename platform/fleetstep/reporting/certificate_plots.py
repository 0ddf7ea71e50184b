"""Log-log plots of the certificates: error against steps, total variation against T.

Drawn on Agg canvases of their own, as the other plots are: nobody's style file is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Sheet
from PIL import Image

from fleetstep.reporting.frame import INK, QUIET, frame

DPI = 110
_PANEL_INCHES = (4.6, 4.0)
_LEGEND_ROW_INCHES = 0.145
_MARKS = "osD^vPX"
_COLOURS = 20
_PALETTE = 128


@dataclass(frozen=True)
class LogLine:
    """One curve: its name in the legend, and its points, all positive."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True)
class LogPanel:
    """One pair of logarithmic axes.

    Args:
        guides: exponents of the grey reference lines y ~ x^-p.
    """

    title: str
    x_title: str
    y_title: str
    lines: tuple[LogLine, ...]
    guides: tuple[int, ...] = ()


def write_log_plot(title: str, panels: Sequence[LogPanel], path: Path) -> None:
    """Draw the panels in a row, each above its own legend, as a PNG.

    Raises:
        OSError: the file cannot be written.
    """
    with mpl.rc_context():
        matplotlib.style.use("default")
        rows = max(len(panel.lines) for panel in panels)
        foot = 0.5 + _LEGEND_ROW_INCHES * rows
        width, height = _PANEL_INCHES[0] * len(panels), _PANEL_INCHES[1] + foot
        sheet = Sheet(figsize=(width, height), dpi=DPI)
        sheet.text(
            0.15 / width,
            1 - 0.12 / height,
            title,
            ha="left",
            va="top",
            fontsize=13,
            fontweight="bold",
            color=INK,
        )
        for place, panel in enumerate(panels):
            left = (place * _PANEL_INCHES[0] + 0.72) / width
            bottom = (foot + 0.5) / height
            span = (_PANEL_INCHES[0] - 0.9) / width
            axes = sheet.add_axes((left, bottom, span, (_PANEL_INCHES[1] - 1.2) / height))
            _draw(axes, panel)
            axes.legend(
                loc="upper left",
                bbox_to_anchor=(-0.12, -0.19),
                frameon=False,
                fontsize=7.5,
                labelspacing=0.25,
                handlelength=2.4,
                borderpad=0,
            )
        save(sheet, path)


def save(sheet: Sheet, path: Path) -> None:
    """Write the sheet as a PNG of at most 128 colours, a third of the size of one of all."""
    canvas = FigureCanvasAgg(sheet)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
    picture.quantize(_PALETTE, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def dress(axes: Any, title: str, x_title: str, y_title: str) -> None:
    """Titles, grid and spines, as in every plot of this package."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(x_title, fontsize=9.5, color=QUIET)
    axes.set_ylabel(y_title, fontsize=9.5, color=QUIET)
    frame(axes, grid="both")
    axes.tick_params(labelsize=8.5, colors=QUIET, labelcolor=INK)


def _draw(axes: Any, panel: LogPanel) -> None:
    colours = mpl.colormaps["tab20"]
    for place, line in enumerate(panel.lines):
        axes.plot(
            line.xs,
            line.ys,
            color=colours((2 * place + place // (_COLOURS // 2)) % _COLOURS),
            marker=_MARKS[place % len(_MARKS)],
            markersize=4,
            linewidth=1.3,
            linestyle=("-", "--", ":")[place // 7 % 3],
            label=line.name,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    dress(axes, panel.title, panel.x_title, panel.y_title)
    axes.minorticks_off()
    ticks = sorted({x for line in panel.lines for x in line.xs})
    kept = [x for i, x in enumerate(ticks) if i == 0 or x / ticks[i - 1] > 1.5]
    kept = kept[:: 1 + len(kept) // 9]
    axes.set_xticks(kept, [f"{x:g}" for x in kept])
    _guides(axes, panel)


def _guides(axes: Any, panel: LogPanel) -> None:
    low, high = axes.get_ylim()
    xs = [x for line in panel.lines for x in line.xs]
    first, last = min(xs), max(xs)
    top = max(line.ys[0] for line in panel.lines) * 1.6
    for order in panel.guides:
        axes.plot(
            [first, last],
            [top, top * (first / last) ** order],
            color="#8b949e",
            linewidth=1,
            linestyle=(0, (1, 2)),
            zorder=1,
            label=f"slope −{order} in {panel.x_title.split()[0]}",
        )
    axes.set_ylim(low, max(high, top * 1.3))
