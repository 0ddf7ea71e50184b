"""The speed-up of every arm over the baseline, level by level, as a figure."""

from __future__ import annotations

import math

from fleetstep.reporting.arms import ArmStanding
from fleetstep.reporting.axes import Axis, fit
from fleetstep.reporting.charts import Figure, Panel, Point, Rule, Series
from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.speedup import Speedup
from fleetstep.reporting.wording import curve_text, pairs_text, speedup_text

_DODGE = 1.1
"""Arms are drawn this many percent of training apart, so that no interval hides another."""


def speedup_figure(comparison: Comparison) -> Figure | None:
    """Images of the baseline over images of each arm, against the level; None without levels."""
    panels = tuple(
        panel for key in comparison.arms.curves if (panel := _panel(comparison, key)) is not None
    )
    if not panels:
        return None
    baseline = comparison.arms.standings[0].arm.name
    caption = (
        "How many times fewer images a setting needs to be as good as the mean curve of "
        f"{baseline} is at that share of its training. Geometric mean over pairs of runs of one "
        "training seed, with 95 % Student intervals where there are several pairs. Above 1: "
        f"sooner than {baseline}. Hollow: a bound, because a run never got there."
    )
    return Figure("speedup", _title(comparison), caption, panels)


def _title(comparison: Comparison) -> str:
    first, *others = comparison.arms.standings
    key = comparison.arms.curves[0]
    if len(others) == 1 and (level := others[0].last_known(key)) is not None:
        speed = f"{speedup_text(level.images)} in images at {level.share:.0%}"
        return f"Speed-up of {others[0].arm.name} over {first.arm.name}: {speed}"
    return f"Speed-up over {first.arm.name}"


def _panel(comparison: Comparison, key: str) -> Panel | None:
    series = tuple(
        Series(standing.arm.name, slot, points)
        for slot, standing in enumerate(comparison.arms.standings)
        if (points := _points(standing, slot, key))
    )
    if not series:
        return None
    drawn = [point for one in series for point in one.points]
    ends = [v for p in drawn for v in (p.y, p.low, p.high) if v is not None]
    marks = sorted({round(point.x / 10) * 10 for point in drawn} | {100})
    x = Axis(
        f"share of {comparison.arms.standings[0].arm.name}’s training, %",
        min(marks) - 6.0,
        107.0,
        tuple((float(mark), str(mark)) for mark in marks),
    )
    y = fit("speed-up in images", ends, log=min(ends) > 0, include=1.0)
    return Panel(curve_text(key), x, y, series, (Rule("y", 1.0),))


def _points(standing: ArmStanding, slot: int, key: str) -> tuple[Point, ...]:
    found = (_point(standing.arm.name, slot, level) for level in standing.speedups.get(key, ()))
    return tuple(point for point in found if point is not None)


def _point(arm: str, slot: int, level: Speedup) -> Point | None:
    """The mean, or its bound; None where nothing is known."""
    ratio = level.images
    known = [end for end in (ratio.at_least, ratio.at_most) if 0 < end < math.inf]
    if not known:
        return None
    text = f"{arm} at {level.share:.0%}: {speedup_text(ratio)} in images, {pairs_text(level)}"
    return Point(
        100 * level.share + _DODGE * (min(slot, 6) - 1),
        known[0],
        ratio.low,
        ratio.high,
        text,
        hollow=ratio.value is None,
    )
