"""Optuna's tree-structured Parzen estimators as Ray Tune's searcher (Bergstra et al. 2011).

Ray's own wrapper takes names apart at "/", of which conditional dimensions are made, and its state
is a pickle. This one asks Optuna's study itself, dimension after dimension, so that one below an
option is asked for only where the option was chosen; and a search that goes on tells a new study
what is on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fleetstep.config import Assignment, Choice, Dimension, Integers, LogUniform, Space
from fleetstep.orchestration.search_actor import VALUES
from fleetstep.orchestration.search_records import Goal, Life, TrialRecord, Value
from fleetstep.orchestration.search_schedule import ENDED, TrialJob


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes a search's trials: first those that an earlier start left open, then new ones.

    A trial counts with its last values, also where it was stopped early. One that failed counts as
    the worst; of several objectives, whose volume the worst would make infinite, as failed.

    Args:
        space: of the search.
        goals: its objectives.
        records: of trials that began before.
        trials: how many there are to be in all.
        seed: of the proposals; a search that goes on draws others than it did.
        startup: trials drawn at random before.
    """

    def __init__(
        self,
        space: Space,
        goals: Sequence[Goal],
        records: Iterable[TrialRecord],
        *,
        trials: int,
        seed: int,
        startup: int,
    ) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._goals, self._trials = space, tuple(goals), trials
        known = sorted(records, key=lambda record: record.trial)
        self._open = [record for record in known if record.open]
        self._next = len(known)
        self._study = optuna.create_study(
            directions=["minimize" if goal.mode == "min" else "maximize" for goal in goals],
            sampler=optuna.samplers.TPESampler(seed=seed + len(known), n_startup_trials=startup),
        )
        self._asked: dict[str, optuna.trial.Trial] = {}
        for record in known:
            if not record.open:
                self._study.add_trial(self._past(record))

    @property
    def left(self) -> int:
        """Trials still to be run."""
        return len(self._open) + max(self._trials - self._next, 0)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; FINISHED when there is none."""
        if self._open:
            record = self._open.pop(0)
            self._study.enqueue_trial(dict(record.assignment))
            self._ask(trial_id)
            return TrialJob(record.trial, record.life).config()
        if self._next >= self._trials:
            return Searcher.FINISHED
        job = TrialJob(f"{self._next:04d}", Life(0, self._ask(trial_id)))
        self._next += 1
        return job.config()

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study of a trial that is over."""
        failed = error or result is None or result[ENDED] == "failed"
        values = {} if result is None or failed else _values(result)
        told = self._told(values)
        state = None if told is not None else TrialState.FAIL
        self._study.tell(self._asked.pop(trial_id), told, state=state)

    def save(self, checkpoint_path: str) -> None:
        """Ray asks for it now and then; nothing reads it, for the results on disk say it all."""
        Path(checkpoint_path).write_text("", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""
        raise NotImplementedError("a search goes on from its results")

    def _ask(self, trial_id: str) -> Assignment:
        asked = self._asked[trial_id] = self._study.ask()
        assignment: dict[str, Value] = {}
        for dimension in self._space.dimensions:
            if all(assignment.get(key) == label for key, label in dimension.when):
                assignment[dimension.key] = _suggested(asked, dimension)
        return assignment

    def _told(self, values: Mapping[str, float]) -> list[float] | None:
        found = [values.get(goal.name, math.nan) for goal in self._goals]
        if len(found) > 1 and not all(math.isfinite(value) for value in found):
            return None
        return [goal.sortable(value) for goal, value in zip(self._goals, found, strict=True)]

    def _past(self, record: TrialRecord) -> optuna.trial.FrozenTrial:
        told = self._told({goal.name: record.last(goal) for goal in self._goals})
        active = {d.key: distribution_of(d) for d in self._space.dimensions}
        return optuna.trial.create_trial(
            state=TrialState.FAIL if told is None else TrialState.COMPLETE,
            values=told,
            params=dict(record.assignment),
            distributions={key: active[key] for key in record.assignment},
        )


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna's."""
    kind = dimension.kind
    if isinstance(kind, Choice):
        return CategoricalDistribution(kind.labels)
    if isinstance(kind, Integers):
        return IntDistribution(kind.low, kind.high)
    return FloatDistribution(kind.low, kind.high, log=isinstance(kind, LogUniform))


def _suggested(asked: optuna.trial.Trial, dimension: Dimension) -> Value:
    key, kind = dimension.key, dimension.kind
    if isinstance(kind, Choice):
        return str(asked.suggest_categorical(key, kind.labels))
    if isinstance(kind, Integers):
        return asked.suggest_int(key, kind.low, kind.high)
    return asked.suggest_float(key, kind.low, kind.high, log=isinstance(kind, LogUniform))


def _values(result: Mapping[str, Any]) -> dict[str, float]:
    """Objectives by name in what a trial told Ray, whose nested names Ray joins by "/"."""
    prefix = f"{VALUES}/"
    return {
        key.removeprefix(prefix): float(value)
        for key, value in result.items()
        if key.startswith(prefix)
    }
