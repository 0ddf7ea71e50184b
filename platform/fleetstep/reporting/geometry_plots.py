"""Figures of trajectory geometry and of the search for a second level (AMED, Figs. 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.figure import Figure as Sheet

from fleetstep.reporting.certificate_plots import DPI, dress, save
from fleetstep.reporting.frame import INK
from fleetstep.reporting.palette import LIGHT

_PANEL_INCHES = (4.3, 3.3)
_MARKS = "os^DXPv"


@dataclass(frozen=True)
class Band:
    """A mean over trajectories with its spread, one value at each level."""

    name: str
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class View:
    """Geometry of one form of the trajectories.

    Args:
        name: of the form.
        errors: relative projection error for each number of components.
        explained: mean cumulative variance for each number of components.
    """

    name: str
    errors: tuple[Band, ...]
    explained: tuple[float, ...]


@dataclass(frozen=True)
class Search:
    """The search for r of one student.

    Args:
        student: its label.
        distances: [step][ratio], to the reference after the step.
        best: the r of the least distance in each step.
        gains: after each step, the distance with r = 1/2 less that with the best r.
    """

    student: str
    distances: Sequence[Sequence[float]]
    best: Sequence[float]
    gains: Sequence[float]


def write_geometry(
    title: str, sigmas: Sequence[float], views: Sequence[View], deviation: Band, path: Path
) -> None:
    """Projection errors of each view, what the components leave unexplained, and deviation.

    Raises:
        OSError: the file cannot be written.
    """
    with mpl.rc_context():
        matplotlib.style.use("default")
        sheet, panels = _sheet(title, len(views) + 2)
        for axes, view in zip(panels, views, strict=False):
            _bands(axes, sigmas, view.errors)
            axes.set_ylim(bottom=0)
            dress(axes, f"Projection error, {view.name}", "σ", "‖x − x̃‖ / ‖x‖")
            axes.legend(frameon=False, fontsize=8)
        _unexplained(panels[-2], views)
        _bands(panels[-1], sigmas, [deviation])
        panels[-1].set_ylim(bottom=0)
        dress(panels[-1], "Distance from the straight line", "σ", "‖·‖ in pixels' units")
        save(sheet, path)


def write_alignment(
    title: str,
    ratios: Sequence[float],
    steps: Sequence[str],
    searches: Sequence[Search],
    path: Path,
) -> None:
    """Of each student the distance to the reference against r, a curve for each step with its best
    r marked; and what the searches gain over r = 1/2.

    Args:
        ratios: the values of r.
        steps: name of each step.
        searches: of each student.

    Raises:
        OSError: the file cannot be written.
    """
    with mpl.rc_context():
        matplotlib.style.use("default")
        sheet, panels = _sheet(title, len(searches) + 2)
        for axes, search in zip(panels, searches, strict=False):
            _search(axes, ratios, search)
        _gains(panels[-2], steps, searches)
        handles, _ = panels[0].get_legend_handles_labels()
        panels[-1].set_axis_off()
        panels[-1].legend(
            handles, steps, loc="upper left", frameon=False, fontsize=9, title="step, in σ"
        )
        save(sheet, path)


def _search(axes: Any, ratios: Sequence[float], search: Search) -> None:
    for place, (distances, best) in enumerate(zip(search.distances, search.best, strict=True)):
        colour = LIGHT[1 + place % (len(LIGHT) - 1)]
        axes.plot(ratios, distances, color=colour, linewidth=1.6, label=str(place))
        axes.plot(
            [best],
            [distances[list(ratios).index(best)]],
            marker=_MARKS[place % len(_MARKS)],
            color=colour,
            markersize=6,
            linestyle="none",
        )
    axes.set_yscale("log")
    dress(axes, f"{search.student}: distance after a step", "r", "root mean ‖x − y‖²")


def _gains(axes: Any, steps: Sequence[str], searches: Sequence[Search]) -> None:
    width = 0.8 / len(searches)
    for place, search in enumerate(searches):
        xs = [i + (place - (len(searches) - 1) / 2) * width for i in range(len(steps))]
        name, colour = search.student, LIGHT[1 + place]
        axes.bar(xs, search.gains, width=0.9 * width, color=colour, label=name)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(steps)), steps, rotation=20, ha="right")
    dress(axes, "Gain of the best r over r = ½", "", "difference of distances")
    axes.legend(frameon=False, fontsize=8)


def _sheet(title: str, panels: int) -> tuple[Sheet, Any]:
    columns = 2
    rows = -(-panels // columns)
    width, height = _PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows + 0.4
    sheet = Sheet(figsize=(width, height), dpi=DPI)
    below = (0, 0, 1, 1 - 0.38 / height)
    sheet.set_layout_engine("constrained", rect=below, w_pad=0.1, h_pad=0.1)
    sheet.text(
        0.15 / width,
        1 - 0.12 / height,
        title,
        ha="left",
        va="top",
        fontsize=12,
        fontweight="bold",
        color=INK,
    )
    return sheet, sheet.subplots(rows, columns, squeeze=False).flatten()


def _bands(axes: Any, sigmas: Sequence[float], bands: Sequence[Band]) -> None:
    for place, band in enumerate(bands):
        colour = LIGHT[1 + place]
        axes.fill_between(sigmas, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(sigmas, band.mean, color=colour, linewidth=1.7, label=band.name)
    axes.set_xscale("log")
    axes.invert_xaxis()


def _unexplained(axes: Any, views: Sequence[View]) -> None:
    width = 0.8 / len(views)
    for place, view in enumerate(views):
        xs = [k + 1 + (place - (len(views) - 1) / 2) * width for k in range(len(view.explained))]
        left_over = [1 - share for share in view.explained]
        axes.bar(xs, left_over, width=0.9 * width, color=LIGHT[1 + place], label=view.name)
    axes.set_yscale("log")
    axes.set_xticks(range(1, 1 + max(len(view.explained) for view in views)))
    dress(axes, "Variance left unexplained", "components", "1 − cumulative variance")
    axes.legend(frameon=False, fontsize=8)
