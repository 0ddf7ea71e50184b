"""Parallel coordinates of a search as a PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from fleetstep.reporting.frame import INK, QUIET
from fleetstep.reporting.palette import SHADES
from fleetstep.reporting.parallel import ParallelPlot

_INCHES, _HEIGHT, _DPI = 1.75, 4.2, 144
_SHORT = 16


def write_parallel(plot: ParallelPlot, path: Path) -> None:
    """Draw the plot as on the page, in the light colours.

    Raises:
        OSError: the file cannot be written.
    """
    with mpl.rc_context():
        matplotlib.style.use("default")
        mpl.rcParams["text.parse_math"] = False
        FigureCanvasAgg(_drawn(plot)).print_png(str(path), metadata={"Software": None})


def _drawn(plot: ParallelPlot) -> Figure:
    count = len(plot.rails)
    sheet = Figure(figsize=(max(6.0, _INCHES * count), _HEIGHT), dpi=_DPI)
    axes = sheet.add_axes((0.09, 0.05, 0.86, 0.82))
    axes.set_axis_off()
    axes.set_xlim(0, count - 1)
    axes.set_ylim(-0.02, 1.02)
    for thread in plot.threads:
        axes.plot(
            range(count),
            thread.places,
            color=SHADES[thread.shade],
            linewidth=0.8 if thread.stopped else 1.7,
            clip_on=False,
        )
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for i, rail in enumerate(plot.rails):
        axes.plot([i, i], [0, 1], color=QUIET, linewidth=1, clip_on=False)
        title = rail.title if len(rail.title) <= _SHORT else f"{rail.title[: _SHORT - 1]}…"
        axes.text(i, 1.06, title, ha="center", fontsize=10, fontweight="bold", color=INK)
        for place, text in rail.ticks:
            axes.text(
                i - 0.03,
                place,
                text,
                ha="right",
                va="center",
                fontsize=8,
                color=INK,
                path_effects=halo,
            )
    return sheet
