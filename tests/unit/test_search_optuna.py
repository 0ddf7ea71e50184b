from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from fleetstep.config import Space
from fleetstep.orchestration.search_optuna import OptunaSearcher
from fleetstep.orchestration.search_records import WORST, Goal, Life, Report, TrialRecord
from fleetstep.orchestration.search_schedule import TrialJob

LOSS, COST = Goal("held_out/loss"), Goal("wall_s")
SPACE = Space.parse(
    {
        "training": {"optimizer": {"lr": {"log_uniform": [1e-5, 1e-1]}}},
        "strategies": {
            "choice": {
                "plain": [],
                "fdm": [{"kind": "fdm", "multiplier": {"uniform": [1.0, 3.0]}}],
            }
        },
    }
)
LR, STRATEGIES, MULTIPLIER = (dimension.key for dimension in SPACE.dimensions)


def searcher(*records: TrialRecord, goals: Any = (LOSS,), trials: int = 30) -> OptunaSearcher:
    return OptunaSearcher(SPACE, goals, records, trials=trials, seed=0, startup=8)


def told(values: Mapping[str, float], ended: str = "finished") -> dict[str, Any]:
    return {"ended": ended} | {f"values/{name}": value for name, value in values.items()}


def loss_of(assignment: Mapping[str, Any]) -> float:
    return abs(math.log10(assignment[LR]) + 2) + (assignment[STRATEGIES] == "plain")


def test_proposals_are_of_the_space_and_come_near_the_best_of_it():
    proposes = searcher(trials=60)
    found = []
    for index in range(60):
        job = TrialJob.of(proposes.suggest(f"ray-{index}"))
        assert job.trial == f"{index:04d}"
        assignment = job.life.assignment
        SPACE.apply({}, assignment)  # refuses what is none of the space
        assert (MULTIPLIER in assignment) == (assignment[STRATEGIES] == "fdm")
        found.append(loss_of(assignment))
        proposes.on_trial_complete(f"ray-{index}", told({LOSS.name: found[-1]}))
    assert proposes.suggest("ray-60") == "FINISHED"
    assert proposes.left == 0
    # Of uniform draws the mean is 1.25 + 0.5.
    assert sum(found[-30:]) / 30 < 0.6 * 1.75


def test_the_same_seed_and_results_propose_the_same():
    def run() -> list[Any]:
        proposes, jobs = searcher(), []
        for index in range(12):
            jobs.append(TrialJob.of(proposes.suggest(str(index))))
            value = loss_of(jobs[-1].life.assignment)
            proposes.on_trial_complete(str(index), told({LOSS.name: value}))
        return jobs

    assert run() == run()


def test_a_search_that_goes_on_gives_out_what_was_open_first_and_learns_from_the_rest():
    done = [
        TrialRecord(
            f"{index:04d}",
            (Life(0, {LR: 10 ** (-5 + index / 5), STRATEGIES: "plain"}),),
            (Report(64, {LOSS.name: abs(-3 + index / 5)}),),
            "finished",
        )
        for index in range(20)
    ]
    left = TrialRecord("0020", (Life(0, {LR: 0.012, STRATEGIES: "fdm", MULTIPLIER: 1.5}),))
    proposes = searcher(*done, left, trials=31)
    assert proposes.left == 11
    first = TrialJob.of(proposes.suggest("a"))
    assert (first.trial, first.life) == ("0020", left.life)
    proposes.on_trial_complete("a", told({LOSS.name: 9.0}))
    near = []
    for index in range(10):
        job = TrialJob.of(proposes.suggest(str(index)))
        assert job.trial == f"{21 + index:04d}"
        near.append(abs(math.log10(job.life.assignment[LR]) + 2))
        proposes.on_trial_complete(str(index), told({LOSS.name: near[-1]}))
    assert sum(near) / len(near) < 0.8, "uniform draws would be 1.25 away on average"


@pytest.mark.parametrize("goals", [(LOSS,), (LOSS, COST)])
def test_failures_and_missing_values_are_the_worst_and_no_crash(goals: tuple[Goal, ...]):
    proposes = searcher(goals=goals)
    for index in range(30):
        assignment = TrialJob.of(proposes.suggest(str(index))).life.assignment
        result = told({LOSS.name: loss_of(assignment), COST.name: 1.0 + index % 3})
        match index % 5:
            case 1:
                proposes.on_trial_complete(str(index), error=True)
            case 2:
                proposes.on_trial_complete(str(index), told({}, "failed"))
            case 3:
                proposes.on_trial_complete(str(index), result | {f"values/{LOSS.name}": math.nan})
            case _:
                proposes.on_trial_complete(str(index), result)
    assert proposes.left == 0
    # Ray's word for a process that died has no values; a missing one is the worst of one
    # objective, and of several, whose volume it would make infinite, no value at all.
    told_of = [trial.values for trial in proposes._study.trials]
    for index, values in enumerate(told_of):
        if index % 5 in (1, 2, 3):
            assert values == ([WORST] if len(goals) == 1 else None)
        else:
            assert values is not None
            assert len(values) == len(goals)
