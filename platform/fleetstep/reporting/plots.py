"""The figures of a comparison as PNG files.

Drawn on Agg canvases of their own, under matplotlib's defaults: neither the user's style file nor
pyplot's global state is read or changed.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Sheet
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from fleetstep.reporting.axes import Axis
from fleetstep.reporting.charts import Figure, Panel, Point, Series
from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.figures import figures
from fleetstep.reporting.frame import INK, QUIET, frame
from fleetstep.reporting.palette import LIGHT, MARKERS, colour_of, marker_of

_MARKS = dict(zip(MARKERS, ("o", "s", "^", "D", "X", "P", "v"), strict=True))
_PANEL_INCHES = (4.9, 3.4)
_ALONE_INCHES = 6.4
_ROW_INCHES = 0.22
_DPI = 144
_FAINT = 0.35
_LABEL_SHARE = 0.22
"""Left of this share of the axis a mark's words stand on its right."""

_NAME = 40
"""Characters of a run's name in a legend."""

_TITLE = 60
"""Characters above a panel, which may be a run's name too."""


def write_plots(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write every figure that the records allow as `<key>.png` into an existing folder.

    Returns:
        the files written: loss.png, nfe.png, differences.png, bins.png, as far as there is data.

    Raises:
        OSError: a file cannot be written.
    """
    paths = []
    for figure in figures(comparison):
        path = folder / f"{figure.key}.png"
        write_plot(figure, path)
        paths.append(path)
    return tuple(paths)


def write_plot(figure: Figure, path: Path) -> None:
    """Draw one figure, at most three panels in a row, under its title and above its legend."""
    with mpl.rc_context():
        matplotlib.style.use("default")
        # Names are shown as they are: two "$" in one would start mathematics.
        mpl.rcParams["text.parse_math"] = False
        sheet = _draw(figure)
        # No software version in the file: the same records give the same bytes.
        FigureCanvasAgg(sheet).print_png(str(path), metadata={"Software": None})


def _draw(figure: Figure) -> Sheet:
    columns = _columns(len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    width = _PANEL_INCHES[0] * columns if columns > 1 else _ALONE_INCHES
    height = max(_height(panel) for panel in figure.panels) * rows
    lines = textwrap.wrap(figure.title, int(width * 8.4))
    longest = max(min(len(run), _NAME) for run, _ in figure.runs)
    entries = max(1, int(width / (0.7 + 0.082 * longest)))
    head = 0.2 + 0.26 * len(lines)
    foot = 0.18 + 0.24 * -(-len(figure.runs) // entries)
    sheet = Sheet(figsize=(width, height + head + foot), dpi=_DPI)
    total = height + head + foot
    below = (0, foot / total, 1, height / total)
    sheet.set_layout_engine("constrained", rect=below, w_pad=0.08, h_pad=0.08)
    sheet.text(
        0.12 / width,
        1 - 0.12 / total,
        "\n".join(lines),
        ha="left",
        va="top",
        fontsize=13,
        fontweight="bold",
        color=INK,
    )
    grid = sheet.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(figure.panels):
            _draw_panel(axes, figure.panels[place])
        else:
            axes.set_axis_off()
    handles = [_legend_handle(run, slot) for run, slot in figure.runs]
    sheet.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.04 / width, 0.02 / total),
        ncols=min(len(handles), entries),
        frameon=False,
        fontsize=10,
    )
    return sheet


def _columns(panels: int) -> int:
    """One or two panels in one row, four in two rows of two, else rows of three."""
    return panels if panels < 4 else 2 if panels == 4 else 3


def _height(panel: Panel) -> float:
    return (
        max(_PANEL_INCHES[1], 1.1 + _ROW_INCHES * panel.rows) if panel.rows else _PANEL_INCHES[1]
    )


def _draw_panel(axes: Any, panel: Panel) -> None:
    axes.set_title(_short(panel.title, _TITLE), loc="left", fontsize=11, color=INK, pad=8)
    _draw_axis(axes, axes.xaxis, panel.x, axes.set_xlim, axes.set_xscale)
    _draw_axis(axes, axes.yaxis, panel.y, axes.set_ylim, axes.set_yscale)
    axes.set_xlabel(panel.x.title, fontsize=10, color=QUIET)
    axes.set_ylabel(panel.y.title, fontsize=10, color=QUIET)
    frame(axes, grid="x" if panel.rows else "y")
    for rule in panel.rules:
        draw = axes.axhline if rule.axis == "y" else axes.axvline
        draw(rule.value, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        if rule.text:
            level = rule.axis == "y"
            axes.annotate(
                rule.text,
                (0, rule.value) if level else (rule.value, 1),
                xycoords=("axes fraction", "data") if level else ("data", "axes fraction"),
                xytext=(5, -4),
                textcoords="offset points",
                ha="left",
                va="top",
                fontsize=8.5,
                color=QUIET,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                zorder=5,
            )
    for series in panel.series:
        _draw_series(axes, panel, series)


def _draw_axis(axes: Any, axis: Any, spec: Axis, limits: Any, scale: Any) -> None:
    if spec.linear_to:
        scale("asinh", linear_width=spec.linear_to)
    else:
        scale("log" if spec.log else "linear")
    limits(spec.low, spec.high)
    axis.set_major_locator(FixedLocator([place for place, _ in spec.ticks]))
    axis.set_major_formatter(FixedFormatter([text for _, text in spec.ticks]))
    axis.set_minor_locator(NullLocator())
    axes.tick_params(axis=axis.axis_name, labelsize=9, colors=QUIET, length=3, labelcolor=INK)


def _draw_series(axes: Any, panel: Panel, series: Series) -> None:
    colour, marker = _look(series.slot)
    xs, ys = [p.x for p in series.points], [p.y for p in series.points]
    if series.line:
        width, alpha = (1.0, _FAINT) if series.faint else (1.8, None)
        axes.plot(xs, ys, color=colour, linewidth=width, alpha=alpha, zorder=3)
    for point in series.points if series.marks else ():
        if point.low is not None and point.high is not None:
            along_x = panel.interval == "x"
            axis = panel.x if along_x else panel.y
            low, high = max(point.low, axis.low), min(point.high, axis.high)
            where = ([low, high], [point.y] * 2) if along_x else ([point.x] * 2, [low, high])
            axes.plot(*where, color=colour, linewidth=1.4, solid_capstyle="butt", zorder=3)
        axes.plot(
            [point.x],
            [point.y],
            marker=marker,
            markersize=5,
            markerfacecolor="white" if point.hollow else colour,
            markeredgecolor=colour,
            linestyle="none",
            alpha=_FAINT if point.faint else None,
            zorder=3.5 if point.faint else 4,
        )
        if point.label:
            _label(axes, panel, point)


def _label(axes: Any, panel: Panel, point: Point) -> None:
    """Words below and left of a mark, at the axes' left end below it."""
    left = panel.x.place(point.x) > _LABEL_SHARE
    axes.annotate(
        point.label,
        (point.x, point.y),
        xytext=(-6, -12) if left else (-4, -19),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=8.5,
        color=INK,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=5,
    )


def _legend_handle(run: str, slot: int) -> Line2D:
    colour, marker = _look(slot)
    # A leading "_" would hide the entry.
    text = f" {_short(run, _NAME)}"
    return Line2D([], [], color=colour, marker=marker, markersize=6, linewidth=1.8, label=text)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _look(slot: int) -> tuple[str, str]:
    return LIGHT[colour_of(slot)], _MARKS[marker_of(slot)]
