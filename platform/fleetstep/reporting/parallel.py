"""Parallel coordinates of a search: one upright axis a dimension, one line a trial, the objective
last.

Numeric dimensions have the scale they were drawn on; labels are evenly spread. A conditional
dimension has a rail at its foot for the trials in which it does not exist. Shades go by rank, the
best trials strongest; trials that were stopped early are thin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleetstep.reporting.axes import Axis, fit, linear_ticks, log_ticks
from fleetstep.reporting.markup import Markup, element
from fleetstep.reporting.palette import SHADES
from fleetstep.reporting.search_record import Dimension, SearchRecord, Trial
from fleetstep.reporting.wording import number

_FOOT = 0.14
"""Where the range of a conditional dimension begins; its rail is at 0."""

_SPREAD = 0.03
"""Trials of one label are set apart by up to this share of the axis."""

_HEIGHT = 340.0
_LEAST_STEP, _MOST_STEP, _WIDE = 132.0, 230.0, 900.0
_TOP, _BOTTOM, _LEFT, _RIGHT = 46.0, 18.0, 98.0, 70.0
_TITLE = 18
_TICK = 12
Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Rail:
    """One axis: its title and its ticks, (place from 0 = foot to 1 = top, text)."""

    title: str
    ticks: Ticks


@dataclass(frozen=True)
class Thread:
    """One trial: its place on every axis; shade 0 is the best, the last of `SHADES` the worst."""

    trial: str
    places: tuple[float, ...]
    shade: int
    stopped: bool
    text: str


@dataclass(frozen=True)
class ParallelPlot:
    """All axes, and all trials that have a value, worst first."""

    rails: tuple[Rail, ...]
    threads: tuple[Thread, ...]


def parallel_plot(record: SearchRecord) -> ParallelPlot | None:
    """The plot, or None where fewer than two trials have a value or nothing varies."""
    known = [t for t in record.ranked if math.isfinite(t.value(record.objective))]
    varied = [d for d in record.dimensions if len({t.assignment.get(d.key) for t in known}) > 1]
    if len(known) < 2 or not varied:
        return None
    scale = fit(record.objective.name, [t.value(record.objective) for t in known])
    columns = [_column(dimension, known) for dimension in varied]
    rails = [rail for rail, _ in columns]
    rails.append(Rail(record.objective.name, tuple((scale.place(v), t) for v, t in scale.ticks)))
    threads = tuple(
        Thread(
            trial=trial.id,
            places=(
                *(places[i] for _, places in columns),
                scale.place(trial.value(record.objective)),
            ),
            shade=i * len(SHADES) // len(known),
            stopped=trial.status == "stopped",
            text=f"{trial.id} {trial.title}: {record.objective.name} "
            f"{number(trial.value(record.objective))}"
            + (", stopped early" if trial.status == "stopped" else ""),
        )
        for i, trial in enumerate(known)
    )
    return ParallelPlot(tuple(rails), threads[::-1])


def _column(dimension: Dimension, trials: Sequence[Trial]) -> tuple[Rail, tuple[float, ...]]:
    """A dimension's axis, and where each trial meets it."""
    values = [trial.assignment.get(dimension.key) for trial in trials]
    foot = _FOOT if any(value is None for value in values) else 0.0
    if dimension.kind == "choice":
        texts = dimension.labels
        bare = {text: (i + 0.5) / len(texts) for i, text in enumerate(texts)}
        ticks: Ticks = tuple((place, text) for text, place in bare.items())
        spots = [
            None if v is None else bare[str(v)] + _SPREAD * (2 * i / max(len(trials) - 1, 1) - 1)
            for i, v in enumerate(values)
        ]
    else:
        axis = _axis(dimension)
        ticks = tuple((axis.place(value), text) for value, text in axis.ticks)
        spots = [None if v is None else axis.place(float(v)) for v in values]
    lifted = tuple((foot + (1 - foot) * place, text) for place, text in ticks)
    absent = ((0.0, "not there"),) if foot else ()
    places = tuple(0.0 if spot is None else foot + (1 - foot) * spot for spot in spots)
    return Rail(dimension.title, (*absent, *lifted)), places


def _axis(dimension: Dimension) -> Axis:
    low, high = dimension.low or 0.0, dimension.high or 0.0
    if low == high:
        return Axis("", low - 0.5, high + 0.5, ((low, f"{low:g}"),))
    log = dimension.kind == "log_uniform"
    ticks = log_ticks(low, high) if log else linear_ticks(low, high, about=4)
    return Axis("", low, high, ticks, log=log)


def draw_parallel(plot: ParallelPlot) -> Markup:
    """The plot as an <svg>; shades come from classes q0 (best) to q6."""
    gaps = len(plot.rails) - 1
    step = min(max(_WIDE / gaps, _LEAST_STEP), _MOST_STEP)
    xs = tuple(round(_LEFT + step * i, 1) for i in range(gaps + 1))
    width = xs[-1] + _RIGHT
    return element(
        "svg",
        *(_thread(thread, xs) for thread in plot.threads),
        *(_rail(rail, x) for rail, x in zip(plot.rails, xs, strict=True)),
        viewBox=f"0 0 {width:g} {_HEIGHT:g}",
        width=width,
        height=_HEIGHT,
        class_="chart parallel",
        role="img",
        aria_label="Parallel coordinates: " + ", ".join(rail.title for rail in plot.rails),
    )


def _y(place: float) -> float:
    return round(_HEIGHT - _BOTTOM - place * (_HEIGHT - _BOTTOM - _TOP), 1)


def _thread(thread: Thread, xs: Sequence[float]) -> Markup:
    """A line, with a mark at its objective that tells its words."""
    corners = [(x, _y(place)) for x, place in zip(xs, thread.places, strict=True)]
    x, y = corners[-1]
    classes = f"thread q{thread.shade}" + (" stopped" if thread.stopped else "")
    return element(
        "g",
        element("polyline", points=" ".join(f"{a:g},{b:g}" for a, b in corners)),
        element(
            "g",
            element("title", thread.text),
            element("circle", cx=x, cy=y, r=3),
            class_="mark",
            data_x=x,
            data_y=y,
        ),
        class_=classes,
    )


def _rail(rail: Rail, x: float) -> Markup:
    return element(
        "g",
        element("line", x1=x, x2=x, y1=_y(1), y2=_y(0), class_="axis"),
        element("text", _short(rail.title, _TITLE), x=x, y=18, class_="panel-title middle"),
        *_tick_marks(rail, x),
    )


def _tick_marks(rail: Rail, x: float) -> Iterator[Markup]:
    for place, text in rail.ticks:
        y = _y(place)
        yield element("line", x1=x - 4, x2=x, y1=y, y2=y, class_="axis")
        yield element("text", _short(text, _TICK), x=x - 7, y=y + 4, class_="tick end halo")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
