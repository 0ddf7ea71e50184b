"""What the figures of a comparison show: held-out loss, and distance against network calls.

Their titles say what is seen, their captions how to read it and how far it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from fleetstep.reporting.axes import Axis, at_values, fit, from_zero
from fleetstep.reporting.charts import Figure, Panel, Point, Rule, Series
from fleetstep.reporting.comparison import Comparison, Standing
from fleetstep.reporting.difference_figures import bins_figure, difference_figure
from fleetstep.reporting.records import HELD_OUT_LOSS, Curve, Score
from fleetstep.reporting.speedup_figures import speedup_figure
from fleetstep.reporting.statistics import pareto_front
from fleetstep.reporting.wording import (
    direction_text,
    duration_text,
    images_text,
    metric_text,
    number,
    with_interval,
)

_PANELS = 11
"""At most so many solvers have a panel of their own."""

_DODGE = 0.012
"""Runs of one cell are drawn this share of their NFE apart, so that no interval hides another."""


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """Every figure that the comparison's records allow, in reading order."""
    makers = (loss_figure, speedup_figure, sweep_figure, difference_figure, bins_figure)
    return tuple(figure for maker in makers if (figure := maker(comparison)) is not None)


def loss_figure(comparison: Comparison) -> Figure | None:
    """Held-out loss against images seen and against wall time; None where no run has the curve."""
    curves = [
        (comparison.looks[standing.run.name], standing, curve)
        for standing in comparison.standings
        if (curve := standing.run.curves.get(HELD_OUT_LOSS)) is not None and len(curve)
    ]
    if not curves:
        return None
    values = fit("held-out loss", [value for *_, curve in curves for value in curve.values])
    scale, unit = _images_unit(max(curve.images_seen[-1] for *_, curve in curves))
    seconds, clock = _time_unit(max(curve.wall_s[-1] for *_, curve in curves))
    target = comparison.standings[0].final_loss
    compared = comparison.losses_compared
    rules = (Rule("y", target, "baseline at its end"),) if compared and target is not None else ()
    by_images = Panel(
        "Against images seen",
        from_zero(f"images seen, {unit}", [curve.images_seen[-1] / scale for *_, curve in curves]),
        values,
        (
            *(
                _loss_series(look, run, curve, curve.images_seen, scale)
                for look, run, curve in curves
            ),
            *_reach_series(comparison, "images", scale),
        ),
        rules,
    )
    by_wall = Panel(
        "Against wall time",
        from_zero(
            f"time since the run started, {clock}",
            [curve.wall_s[-1] / seconds for *_, curve in curves],
        ),
        values,
        (
            *(
                _loss_series(look, run, curve, curve.wall_s, seconds)
                for look, run, curve in curves
            ),
            *_reach_series(comparison, "wall_s", seconds),
        ),
        rules,
    )
    caption = (
        "Denoising error of the averaged weights on the same held-out images, noise and noise "
        "levels, under the process's own weight. "
        "It is comparable between strategies; training losses are not. Wall time compares only "
        "runs of one machine. Hollow marks: as good as the baseline at its end."
        if compared
        else "Denoising error of the averaged weights on held-out images, under the process's own "
        "weight. It was "
        "not measured in the same way for all runs: the shape of each curve can be read, their "
        "heights cannot be compared. Wall time compares only runs of one machine."
    )
    return Figure("loss", _loss_title(comparison.standings), caption, (by_images, by_wall))


def _loss_series(
    look: tuple[str, int], standing: Standing, curve: Curve, xs: Sequence[float], scale: float
) -> Series:
    points = tuple(
        Point(
            x / scale,
            value,
            text=f"{standing.run.name}: {number(value)} after {images_text(images)}, "
            f"{duration_text(wall)}",
        )
        for x, value, images, wall in zip(
            xs, curve.values, curve.images_seen, curve.wall_s, strict=True
        )
        if math.isfinite(value)
    )
    return Series(*look, points)


def _reach_series(
    comparison: Comparison, along: Literal["images", "wall_s"], scale: float
) -> Iterable[Series]:
    """A hollow mark where each challenger was as good as its baseline at its end."""
    for standing in comparison.standings:
        quality, partner = standing.time_to_quality, comparison.partners.get(standing.run.name)
        if partner is None or quality is None or quality.run is None:
            continue
        text = (
            f"{standing.run.name} as good as {partner} at its end: after "
            f"{images_text(quality.run.images)}, {duration_text(quality.run.wall_s)}"
        )
        point = Point(getattr(quality.run, along) / scale, quality.target, text=text, hollow=True)
        yield Series(*comparison.looks[standing.run.name], (point,), line=False)


def _loss_title(standings: Sequence[Standing]) -> str:
    """With one challenger its result, else the subject."""
    if len(standings) == 2 and (quality := standings[1].time_to_quality) is not None:
        run, baseline = standings[1].run.name, standings[0].run.name
        if quality.run is None:
            return f"Held-out loss: {run} is never as low as {baseline} at its end"
        sooner, later = images_text(quality.run.images), images_text(quality.baseline.images)
        return f"Held-out loss: {run} after {sooner} is as low as {baseline} after {later}"
    return "Held-out loss over training"


def sweep_figure(comparison: Comparison) -> Figure | None:
    """Distance against network calls: the best of all solvers, then each solver, one vertical axis
    for all.
    """
    sweep = comparison.sweep
    if sweep is None:
        return None
    metric = metric_text(sweep.protocol)
    looks = comparison.looks
    runs = [run.name for run in comparison.runs if run.name in sweep.runs]
    scores = [score for name in runs for score in sweep.of(name)]
    x = at_values("network calls per image (NFE)", [score.nfe for score in scores])
    y = _distance_axis(f"{metric}, {direction_text(sweep.protocol)}", scores)
    fronts = tuple(
        _score_series(name, looks[name], _front(sweep.of(name)), metric) for name in runs
    )
    panels = [Panel("Best of all solvers", x, y, fronts)]
    ways = sorted({(score.solver, score.guidance) for score in scores})
    for way in ways[:_PANELS]:
        series = tuple(
            _score_series(
                name,
                looks[name],
                [s for s in sweep.of(name) if (s.solver, s.guidance) == way],
                metric,
            )
            for name in runs
        )
        title = ", ".join(part for part in way if part)
        panels.append(Panel(title, x, y, tuple(one for one in series if one.points)))
    more = f" {len(ways) - _PANELS} more are in the table." if len(ways) > _PANELS else ""
    caption = (
        f"{metric} of n = {sweep.protocol.n:,} samples with 95 % intervals (jackknife over "
        f"{sweep.protocol.blocks} "
        "blocks; sampling only). The first panel keeps, at each number of network calls, only "
        "cells that no cheaper cell beats; picking the best by looking is slightly optimistic. "
        f"Runs are set a little apart sideways.{more}"
    )
    return Figure("nfe", f"{metric} against network calls", caption, tuple(panels))


def _distance_axis(title: str, scores: Iterable[Score]) -> Axis:
    """Values decide the scale; interval ends stretch it only where a log axis could show them."""
    scores = tuple(scores)
    values = [score.value for score in scores]
    ends = [end for score in scores for end in (score.low, score.high)]
    log = min(values) > 0 and max(values) / min(values) > 5
    return fit(
        title, [*values, *(end for end in ends if not log or end > min(values) / 2)], log=log
    )


def _front(scores: Sequence[Score]) -> list[Score]:
    return [scores[i] for i in pareto_front([(score.nfe, score.shortfall) for score in scores])]


def _score_series(run: str, look: tuple[str, int], scores: Sequence[Score], metric: str) -> Series:
    points = tuple(
        Point(
            score.nfe * (1 + _DODGE * (min(look[1], 6) - 1)),
            score.value,
            score.low,
            score.high,
            f"{run}, {score.cell.title}: {metric} "
            f"{with_interval(score.value, score.low, score.high)}",
        )
        for score in sorted(scores, key=lambda score: score.nfe)
    )
    return Series(*look, points)


def _images_unit(most: float) -> tuple[float, str]:
    return (1e6, "Mimg") if most >= 1e6 else (1e3, "kimg")


def _time_unit(most: float) -> tuple[float, str]:
    if most < 180:
        return 1.0, "s"
    return (60.0, "min") if most < 3 * 3600 else (3600.0, "h")
