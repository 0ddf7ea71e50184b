"""Figures as plain data, drawn by `plots` (PNG) and by `svg` (on the page).

A figure has panels, a panel has series, a series belongs to a run. The run's slot decides colour
and marker everywhere: slot 0 is the baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fleetstep.reporting.axes import Axis


@dataclass(frozen=True)
class Point:
    """A mark with an optional interval and the words that explain it.

    Args:
        hollow: set apart; the figure's caption says what for.
        faint: drawn to be overlooked.
        label: words beside the mark, where there is room for some.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    hollow: bool = False
    faint: bool = False
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one run, or of something else with a name; `line` joins, `marks` shows them, and
    `faint` draws all of it to be overlooked.
    """

    run: str
    slot: int
    points: tuple[Point, ...]
    line: bool = True
    marks: bool = True
    faint: bool = False


@dataclass(frozen=True)
class Rule:
    """A reference line at a value of one axis, with its words."""

    axis: Literal["x", "y"]
    value: float
    text: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        interval: the axis along which the points' intervals lie.
        rows: number of labelled rows of a forest plot, 0 for others; decides the height.
    """

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    rules: tuple[Rule, ...] = ()
    interval: Literal["x", "y"] = "y"
    rows: int = 0


@dataclass(frozen=True)
class Figure:
    """Panels with one title that says what is seen, and one caption that says how to read it."""

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """(run, slot) of everything drawn, for the legend."""
        pairs = {(series.slot, series.run) for panel in self.panels for series in panel.series}
        return tuple((run, slot) for slot, run in sorted(pairs))
