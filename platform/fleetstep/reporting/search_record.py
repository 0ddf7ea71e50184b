"""A search as its record tells it: dimensions, trials with curves, and what confirmed the best.

The record is the JSON file that a search keeps with its run in the tracker; nothing else is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fleetstep.errors import ComparisonError
from fleetstep.reporting.statistics import Mean, mean_of, pareto_front

Value = str | int | float | bool
Points = tuple[tuple[int, float], ...]
DimensionKind = Literal["choice", "uniform", "log_uniform", "integers"]


@dataclass(frozen=True)
class Objective:
    """What the search optimises: its name, and which way is better."""

    name: str
    goal: Literal["min", "max"] = "min"

    def loss(self, value: float) -> float:
        """Less is better; infinite where the value is not finite."""
        if not math.isfinite(value):
            return math.inf
        return value if self.goal == "min" else -value


@dataclass(frozen=True)
class Dimension:
    """One thing that the search varies.

    Args:
        key: its path in the configuration; below an option `path/label/subpath`.
        low, high: ends of a numeric range.
        labels: the options of a choice.
        when: (key, label) of the options that it exists under; none = always.
    """

    key: str
    kind: DimensionKind
    low: float | None = None
    high: float | None = None
    labels: tuple[str, ...] = ()
    when: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """The last part of its path."""
        return self.key.rpartition("/")[2].rpartition(".")[2]


@dataclass(frozen=True)
class Trial:
    """One trial.

    Args:
        assignment: dimension key -> chosen label or number; only dimensions that exist in it.
        status: finished, stopped (early), failed, lost, running or pending.
        stopped_at: images seen where it was stopped early.
        values: objective -> last value; NaN where it is missing.
        curves: objective -> (images seen, value) in order.
        error: why it failed.
    """

    id: str
    title: str
    assignment: Mapping[str, Value]
    status: str
    stopped_at: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Points] = field(default_factory=dict)
    run_id: str = ""
    error: str = ""

    def value(self, objective: Objective) -> float:
        """The last value of an objective, NaN without one."""
        return self.values.get(objective.name, math.nan)

    def value_at(self, objective: Objective, images: int) -> float:
        """The last value at or before so many images; NaN of a trial that did not come so far."""
        points = self.curves.get(objective.name, ())
        if not points or points[-1][0] < images:
            return math.nan
        return [value for seen, value in points if seen <= images][-1] if points else math.nan


@dataclass(frozen=True)
class Confirmation:
    """The winner and the baseline trained again with several seeds, nothing stopped early.

    Args:
        objective: what both were measured by.
        trial: id of the winner.
        baseline: what it is held against, in words.
        pairs: (seed, winner's value, baseline's value).
    """

    objective: Objective
    trial: str
    baseline: str
    pairs: tuple[tuple[int, float, float], ...]

    @property
    def ratio(self) -> Mean | None:
        """Geometric mean of winner over baseline with its interval; None unless all are > 0."""
        if not self.pairs or any(min(a, b) <= 0 for _, a, b in self.pairs):
            return None
        logs = mean_of([math.log(winner / baseline) for _, winner, baseline in self.pairs])
        low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
        return Mean(math.exp(logs.value), low, high, logs.n)

    @property
    def difference(self) -> Mean | None:
        """Mean of winner minus baseline with its interval; None without pairs."""
        differences = [winner - baseline for _, winner, baseline in self.pairs]
        return mean_of(differences) if differences else None


@dataclass(frozen=True)
class SearchRecord:
    """A search. `best` are ids: one trial, or the Pareto front of several objectives."""

    name: str
    objectives: tuple[Objective, ...]
    dimensions: tuple[Dimension, ...]
    trials: tuple[Trial, ...]
    best: tuple[str, ...] = ()
    confirm: Confirmation | None = None

    @property
    def objective(self) -> Objective:
        """The first one, which decides the order of trials."""
        return self.objectives[0]

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Best first. What used its whole budget stands before what was stopped early: values at
        different places of training are not ranked against each other; then the further one.
        """
        return tuple(
            sorted(
                self.trials,
                key=lambda t: (
                    not math.isfinite(t.value(self.objective)),
                    t.status != "finished",
                    -_reached(t) if t.status != "finished" else 0,
                    self.objective.loss(t.value(self.objective)),
                    t.id,
                ),
            )
        )

    @property
    def front(self) -> tuple[Trial, ...]:
        """The finished trials that no other beats in the first two objectives, by the second."""
        quality, cost = self.objectives[0], self.objectives[-1]
        known = [
            trial
            for trial in self.trials
            if trial.status == "finished"
            and all(math.isfinite(trial.value(one)) for one in (quality, cost))
        ]
        points = [(cost.loss(t.value(cost)), quality.loss(t.value(quality))) for t in known]
        return tuple(known[i] for i in pareto_front(points))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> SearchRecord:
        """From the JSON of a search; fields which a report does not read are ignored.

        Raises:
            ComparisonError: a field is missing, has the wrong type, or names an objective,
                dimension or trial that the record does not have.
        """
        try:
            objectives = tuple(Objective(str(o["name"]), o["goal"]) for o in record["objectives"])
            confirm = record.get("confirm")
            found = cls(
                name=str(record["name"]),
                objectives=objectives,
                dimensions=tuple(_dimension(entry) for entry in record["dimensions"]),
                trials=tuple(_trial(entry) for entry in record["trials"]),
                best=tuple(str(one) for one in record.get("best", ())),
                confirm=None if confirm is None else _confirmation(confirm, objectives),
            )
        except KeyError as error:
            raise _damaged(f"it must hold {error.args[0]!r}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise _damaged(str(error)) from error
        _check(found)
        return found


def _reached(trial: Trial) -> int:
    return max((points[-1][0] for points in trial.curves.values() if points), default=0)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _dimension(entry: Mapping[str, Any]) -> Dimension:
    low, high = (entry.get(end) for end in ("low", "high"))
    return Dimension(
        key=str(entry["key"]),
        kind=entry["kind"],
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        labels=tuple(str(label) for label in entry.get("labels") or ()),
        when=tuple((str(key), str(label)) for key, label in entry.get("when") or ()),
    )


def _trial(entry: Mapping[str, Any]) -> Trial:
    stopped = entry.get("stopped_at")
    return Trial(
        id=str(entry["id"]),
        title=str(entry["title"]),
        assignment=dict(entry["assignment"]),
        status=str(entry["status"]),
        stopped_at=None if stopped is None else int(stopped),
        values={str(name): _number(value) for name, value in entry["values"].items()},
        curves={
            str(name): tuple((int(images), _number(value)) for images, value in points)
            for name, points in entry["curve"].items()
        },
        run_id=str(entry.get("run_id") or ""),
        error=str(entry.get("error") or ""),
    )


def _confirmation(entry: Mapping[str, Any], objectives: Sequence[Objective]) -> Confirmation:
    known = {objective.name: objective for objective in objectives}
    name, pairs = str(entry["objective"]), entry["pairs"]
    if name not in known:
        raise ValueError(f"what was confirmed is {name}, no objective of it")
    return Confirmation(
        objective=known[name],
        trial=str(entry["trial"]),
        baseline=str(entry["baseline"]),
        pairs=tuple(
            (int(pair["seed"]), _number(pair["winner"]), _number(pair["baseline"]))
            for pair in pairs
        ),
    )


def _check(record: SearchRecord) -> None:
    if not record.objectives:
        raise _damaged("`objectives` must name at least one objective, but is empty")
    for objective in record.objectives:
        if objective.goal not in ("min", "max"):
            raise _damaged(
                f"the goal of {objective.name} must be min or max, not {objective.goal}"
            )
    keys = {dimension.key for dimension in record.dimensions}
    ids = {trial.id for trial in record.trials}
    for dimension in record.dimensions:
        bounded = dimension.low is not None and dimension.high is not None
        if not (dimension.labels if dimension.kind == "choice" else bounded):
            raise _damaged(f"dimension {dimension.key} has neither labels nor bounds")
    for trial in record.trials:
        if unknown := sorted(set(trial.assignment) - keys):
            raise _damaged(f"trial {trial.id} is assigned {', '.join(unknown)}, no dimension")
        for dimension in record.dimensions:
            value = trial.assignment.get(dimension.key)
            if dimension.kind == "choice" and value is not None:
                if str(value) not in dimension.labels:
                    raise _damaged(f"trial {trial.id} has {dimension.key} {value}, no label of it")
            elif isinstance(value, str):
                raise _damaged(f"trial {trial.id} has {dimension.key} {value!r}, no number")
    if lost := sorted(set(record.best) - ids):
        raise _damaged(f"`best` names {', '.join(lost)}, which is no trial of it")


def _damaged(what: str) -> ComparisonError:
    return ComparisonError(
        f"the record of a search cannot be read: {what}",
        "it was edited, or written by another version of fleetstep: run the search again with "
        "--resume, which writes it anew",
    )
