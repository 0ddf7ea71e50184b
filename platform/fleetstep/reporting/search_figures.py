"""What the figures of a search show: every trial's curve, what mattered, quality against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fleetstep.reporting.axes import Axis, fit, from_zero
from fleetstep.reporting.charts import Figure, Panel, Point, Rule, Series
from fleetstep.reporting.importance import Importance
from fleetstep.reporting.search_record import Objective, SearchRecord, Trial
from fleetstep.reporting.wording import images_text, number

OTHERS, STOPPED = "other trials", "stopped early"
_NAMED = 4
"""At most so many trials have a colour of their own: the best ones."""

_PANELS = 3
_ROW_LABEL = 34


def named_trials(record: SearchRecord) -> Mapping[str, int]:
    """Trial id -> slot of the best trials, which every figure draws in the same colours."""
    best = [t.id for t in record.ranked if t.id in record.best]
    return {trial: slot for slot, trial in enumerate(best[:_NAMED], start=1)}


def learning_figure(record: SearchRecord) -> Figure | None:
    """Every trial's objectives against images seen; None where no trial has a curve."""
    panels = tuple(
        panel
        for objective in record.objectives
        if (panel := _learning_panel(record, objective)) is not None
    )[:_PANELS]
    if not panels:
        return None
    stopped = sum(trial.stopped_at is not None for trial in record.trials)
    caption = (
        f"{len(record.trials)} trials, {stopped} of them stopped early, where the upright lines "
        "are. The best ones have a colour; all others are grey, the stopped ones pale."
        if stopped
        else f"{len(record.trials)} trials. The best ones have a colour."
    )
    return Figure("curves", "Every trial over its training", caption, panels)


def _learning_panel(record: SearchRecord, objective: Objective) -> Panel | None:
    drawn = [t for t in record.trials if any(math.isfinite(v) for _, v in _points(t, objective))]
    # What does not change over training is a cost, and not a curve.
    if not any(len(_points(trial, objective)) > 1 for trial in drawn):
        return None
    most = max(seen for trial in drawn for seen, _ in _points(trial, objective))
    scale, unit = (1e6, "Mimg") if most >= 1e6 else (1e3, "kimg")
    slots = named_trials(record)
    # The named ones last: drawn above the others.
    ordered = sorted(drawn, key=lambda trial: slots.get(trial.id, 0))
    values = [v for trial in drawn for _, v in _points(trial, objective) if math.isfinite(v)]
    rungs = sorted({t.stopped_at for t in record.trials if t.stopped_at is not None})
    return Panel(
        f"{objective.name}, {_direction(objective)}",
        from_zero(f"images seen, {unit}", [most / scale]),
        fit(objective.name, values),
        tuple(_learning_series(trial, objective, slots.get(trial.id), scale) for trial in ordered),
        tuple(Rule("x", rung / scale) for rung in rungs),
    )


def _learning_series(trial: Trial, objective: Objective, slot: int | None, scale: float) -> Series:
    points = tuple(
        Point(
            seen / scale,
            value,
            text=f"{trial.id} {trial.title}: {number(value)} after {images_text(seen)}",
        )
        for seen, value in _points(trial, objective)
        if math.isfinite(value)
    )
    if slot is not None:
        return Series(trial_name(trial), slot, points)
    early = trial.stopped_at is not None
    return Series(STOPPED if early else OTHERS, 0, points, faint=early)


def _points(trial: Trial, objective: Objective) -> Sequence[tuple[int, float]]:
    return trial.curves.get(objective.name, ())


def trial_name(trial: Trial) -> str:
    """A trial in a legend: "0003 lr=0.0031"."""
    return f"{trial.id} {trial.title}".strip()


def _direction(objective: Objective) -> str:
    return "lower is better" if objective.goal == "min" else "higher is better"


def importance_figure(found: Importance) -> Figure | None:
    """Importance of each dimension with its spread; None where there were not enough trials."""
    if not found.enough:
        return None
    rows = found.dimensions
    points = tuple(
        Point(
            one.value,
            -float(i),
            one.low,
            one.high,
            f"{one.key}: {one.value:.2f}, in 90 % of resamples {one.low:.2f} to {one.high:.2f}",
            hollow=one.low <= 0,
        )
        for i, one in enumerate(rows)
    )
    ends = [end for one in rows for end in (one.low, one.high)]
    ticks = tuple((-float(i), _shortened(one.key)) for i, one in enumerate(rows))
    panel = Panel(
        f"On {found.objective.name}",
        fit("loss of R² on unseen trials", ends, log=False, include=0.0),
        Axis("dimension", -len(rows) + 0.3, 0.7, ticks),
        (Series(found.objective.name, 1, points, line=False),),
        (Rule("x", 0.0),),
        interval="x",
        rows=len(rows),
    )
    place = "at their end" if found.images_seen is None else images_text(found.images_seen)
    caption = (
        f"How much worse random forests predict trials they have not seen when one dimension’s "
        f"values are shuffled; {found.trials} trials compared {_after(place)}. Median, and 5 to "
        "95 % of resamples of the trials. Hollow: the spread includes zero. The forests explain "
        f"{max(found.explained, 0):.0%} of the variance of unseen trials"
        + ("." if found.explained > 0 else ": nothing, so importances mean nothing.")
    )
    return Figure("importance", "Which dimensions mattered", caption, (panel,))


def _after(place: str) -> str:
    return place if place == "at their end" else f"after {place}"


def _shortened(key: str) -> str:
    return key if len(key) <= _ROW_LABEL else f"…{key[-_ROW_LABEL + 1 :]}"


def pareto_figure(record: SearchRecord) -> Figure | None:
    """The first objective against the last; None with a single objective or no finished trial."""
    if len(record.objectives) < 2 or not (front := record.front):
        return None
    quality, cost = record.objectives[0], record.objectives[-1]
    kept = {trial.id for trial in front}
    others = [
        trial
        for trial in record.trials
        if trial.status == "finished"
        and trial.id not in kept
        and all(math.isfinite(trial.value(one)) for one in (quality, cost))
    ]
    known = [*front, *others]
    panel = Panel(
        f"{quality.name} against {cost.name}",
        fit(f"{cost.name}, {_direction(cost)}", [t.value(cost) for t in known]),
        fit(f"{quality.name}, {_direction(quality)}", [t.value(quality) for t in known]),
        (
            Series(OTHERS, 0, _places(others, quality, cost), line=False),
            Series("Pareto front", 1, _places(front, quality, cost)),
        ),
    )
    caption = (
        "Finished trials. On the front no other trial is at least as good in both; picking by "
        "looking is slightly optimistic."
    )
    return Figure("pareto", f"{quality.name} against {cost.name}", caption, (panel,))


def _places(trials: Sequence[Trial], quality: Objective, cost: Objective) -> tuple[Point, ...]:
    return tuple(
        Point(
            trial.value(cost),
            trial.value(quality),
            text=f"{trial_name(trial)}: {quality.name} {number(trial.value(quality))}, "
            f"{cost.name} {number(trial.value(cost))}",
        )
        for trial in trials
    )
