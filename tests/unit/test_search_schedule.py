from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from fleetstep import rng
from fleetstep.config import Space
from fleetstep.orchestration.search_explore import explored
from fleetstep.orchestration.search_records import Goal, Life, Origin, Report, TrialRecord
from fleetstep.orchestration.search_run import slot_bytes
from fleetstep.orchestration.search_schedule import (
    Halving,
    Population,
    Rungs,
    TrialJob,
    first_comparison,
)

LOSS = Goal("held_out/loss")
RUNGS = (100, 300, 900)


@dataclass(eq=False)
class FakeTrial:
    """What a scheduler sees of Ray's trial."""

    trial_id: str
    status: str = "RUNNING"
    config: dict[str, Any] = field(default_factory=dict)

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"


def losses(trials: int, points: int, seed: int) -> Any:
    return rng.uniform(seed, "losses", 0, trials, (points,))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("mode", "reduction"), [("min", 3.0), ("max", 2.0), ("min", 4.0)])
def test_rungs_decide_as_rays_own_halving_does(seed: int, mode: str, reduction: float):
    milestones = [math.ceil(100 * reduction**i) for i in range(3)]
    theirs = AsyncHyperBandScheduler(
        time_attr="images_seen",
        metric="objective",
        mode=mode,
        grace_period=100,
        max_t=milestones[-1] * 10,
        reduction_factor=reduction,
    )
    # Its ladder has rungs beyond ours, which nothing here reaches.
    ours = Rungs(milestones, reduction)
    trials = [FakeTrial(f"{index:04d}") for index in range(12)]
    values = losses(12, 3, seed)
    live = list(trials)
    for trial in trials:
        theirs.on_trial_add(None, trial)
    order = rng.permutation(seed, "order", 0, 36)
    reached = dict.fromkeys((t.trial_id for t in trials), 0)
    decisions = 0
    for place in order:
        trial = trials[place % 12]
        step = reached[trial.trial_id]
        if trial not in live or step >= 3:
            continue
        reached[trial.trial_id] += 1
        value = float(values[place % 12][step])
        result = {"images_seen": milestones[step], "objective": value}
        stop = theirs.on_trial_result(None, trial, result) == "STOP"
        loss = value if mode == "min" else -value
        assert ours.stops(trial.trial_id, milestones[step], loss) == stop
        decisions += stop
        if stop:
            live.remove(trial)
    assert decisions > 2, "nothing was stopped, so nothing was compared"


def test_a_rung_decides_of_each_trial_once_and_takes_the_first_point_at_or_after_it():
    rungs = Rungs(RUNGS, 2)
    assert not rungs.stops("a", 120, 0.5)
    assert rungs.stops("b", 110, 0.9)
    assert not rungs.stops("b", 110, 0.9)
    assert not rungs.stops("c", 99, 9.0)
    assert not rungs.stops("c", 100, 0.1)
    assert not rungs.stops("a", 299, 9.0)


def test_told_what_was_heard_before_rungs_decide_as_if_they_had_never_stopped():
    values = losses(8, 3, seed=3)
    records = [
        TrialRecord(
            f"{index:04d}",
            (Life(0, {}),),
            tuple(Report(RUNGS[step], {LOSS.name: float(values[index][step])}) for step in (0, 1)),
        )
        for index in range(4)
    ]
    whole, again = Rungs(RUNGS, 2), Rungs(RUNGS, 2)
    for record in records:
        for report in record.reports:
            whole.stops(record.trial, report.images_seen, report.values[LOSS.name])
    again.tell(records, LOSS)
    for index in range(4, 8):
        loss = float(values[index][0])
        assert again.stops(f"{index:04d}", 100, loss) == whole.stops(f"{index:04d}", 100, loss)
    # What a restarted trial repeats is no second result.
    assert not again.stops("0000", 100, 99.0)


def result(images_seen: int, loss: float, ended: str = "") -> dict[str, Any]:
    return {"images_seen": images_seen, "objective": loss, "ended": ended}


def test_halving_passes_over_what_a_trial_repeats_when_it_is_asked_to_stop():
    halving = Halving(Rungs(RUNGS, 2), LOSS)
    a, b = (
        FakeTrial(name, config=TrialJob(name, Life(0, {})).config()) for name in ("0000", "0001")
    )
    assert halving.on_trial_result(None, a, result(100, 0.5)) == "CONTINUE"
    assert halving.on_trial_result(None, b, result(100, 0.9, "stopped")) == "CONTINUE"
    assert halving.on_trial_result(None, b, result(100, 0.9)) == "STOP"


def test_a_job_is_what_its_configuration_says():
    job = TrialJob("0003", Life(2, {"a.b": 0.5, "s": "fdm", "n": 3}, Origin("0001", 1, 640)), 640)
    assert TrialJob.of(job.config()) == job


SPACE = Space.parse(
    {
        "training": {
            "optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}},
            "label_dropout": {"choice": [0.0, 0.1, 0.2]},
            "log_every": {"integers": [1, 4]},
        },
    }
)
LR, DROP, EVERY = (dimension.key for dimension in SPACE.dimensions)


def moved(donor: dict[str, Any], resample: float, count: int, **changes: Any) -> list[Any]:
    arguments = {"seed": 0, "trial": "0000"} | changes
    return [
        explored(SPACE, donor, (LR, DROP, EVERY), resample=resample, life=life, **arguments)
        for life in range(1, count + 1)
    ]


def test_a_setting_that_is_taken_over_moves_one_place_or_by_a_fifth():
    donor = {LR: 1e-3, DROP: "0.1", EVERY: 2}
    found = moved(donor, 0.0, 200)
    assert {round(one[LR], 9) for one in found} == {8e-4, 1.2e-3}
    assert {one[DROP] for one in found} == {"0.0", "0.2"}
    assert {one[EVERY] for one in found} == {1, 3}
    up = sum(one[LR] > 1e-3 for one in found)
    assert 70 < up < 130
    # The dimensions are moved on their own.
    assert len({(one[LR] > 1e-3, one[DROP], one[EVERY]) for one in found}) == 8


def test_at_its_bounds_a_setting_stays_inside():
    for edge in ({LR: 1e-2, DROP: "0.2", EVERY: 4}, {LR: 1e-4, DROP: "0.0", EVERY: 1}):
        for one in moved(edge, 0.0, 50):
            assert 1e-4 <= one[LR] <= 1e-2
            assert one[DROP] == "0.1"
            assert one[EVERY] in (2, 3)


def test_drawn_anew_a_setting_may_be_anything_and_only_what_mutates_changes():
    donor = {LR: 1e-3, DROP: "0.1", EVERY: 2}
    found = moved(donor, 1.0, 100)
    assert {one[DROP] for one in found} == {"0.0", "0.1", "0.2"}
    assert min(one[LR] for one in found) < 3e-4
    assert max(one[LR] for one in found) > 3e-3
    one = explored(SPACE, donor, (LR,), resample=1.0, seed=0, trial="0000", life=1)
    assert (one[DROP], one[EVERY]) == (donor[DROP], donor[EVERY])
    assert moved(donor, 0.5, 20) == moved(donor, 0.5, 20)
    assert moved(donor, 0.5, 20) != moved(donor, 0.5, 20, trial="0001")


@dataclass
class FakeController:
    """Ray's controller with trials that are all paused where they reported."""

    trials: Sequence[FakeTrial]
    search_alg: Any = None

    def get_trials(self) -> Sequence[FakeTrial]:
        return self.trials

    def get_live_trials(self) -> Sequence[FakeTrial]:
        return [trial for trial in self.trials if not trial.is_finished()]


class FakePopulation(Population):
    """Ray's population with its exploits noted instead of done to actors."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.exploits: list[TrialJob] = []

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        from ray.tune.schedulers.pbt import _PBTTrialState

        trial.experiment_tag = trial.trial_id
        self._trial_state[trial] = _PBTTrialState(trial)

    def _checkpoint_or_exploit(
        self, trial: Any, controller: Any, upper: Sequence[Any], lower: Sequence[Any]
    ) -> None:
        if trial in lower:
            config, _ = self._get_new_config(trial, upper[0])
            self.exploits.append(TrialJob.of(config))
            trial.config = config
            self._trial_state[trial].last_train_time = self._trial_state[upper[0]].last_train_time


def population(first: int = 640) -> tuple[FakePopulation, FakeController]:
    scheduler = FakePopulation(
        every=640,
        first=first,
        goal=LOSS,
        quantile=0.25,
        explore=lambda trial, life, donor: dict(donor) | {"lr": donor["lr"] * 1.2},
    )
    trials = [
        FakeTrial(f"t{i}", config=TrialJob(f"{i:04d}", Life(0, {"lr": float(i + 1)})).config())
        for i in range(4)
    ]
    controller = FakeController(trials)
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    return scheduler, controller


def test_at_a_comparison_the_worst_takes_over_the_best_where_all_of_them_are():
    scheduler, controller = population()
    for trial, loss in zip(controller.trials, (0.4, 0.1, 0.9, 0.5), strict=True):
        assert not scheduler.exploits
        assert scheduler.on_trial_result(controller, trial, result(640, loss)) == "PAUSE"
        trial.status = "PAUSED"
    (job,) = scheduler.exploits
    assert job == TrialJob("0002", Life(1, {"lr": 2.4}, Origin("0001", 0, 640)), 640)


def test_a_trial_that_ends_is_waited_for_no_longer_and_nothing_is_copied_from_it():
    scheduler, controller = population()
    *others, last = controller.trials
    for trial, loss in zip(others, (0.4, 0.1, 0.9), strict=True):
        scheduler.on_trial_result(controller, trial, result(640, loss))
        trial.status = "PAUSED"
    assert not scheduler.exploits
    # Of an earlier comparison it has the best score of all.
    scheduler._trial_state[last].last_score = -0.01
    # Its process failed: without it the comparison would never be held.
    scheduler.on_trial_complete(controller, last, result(640, 1e300, "failed"))
    (job,) = scheduler.exploits
    assert (job.trial, job.life.origin) == ("0002", Origin("0001", 0, 640))


def record(trial: str, *points: int, origin: int | None = None, **changes: Any) -> TrialRecord:
    lives = [Life(0, {})]
    if origin is not None:
        lives.append(Life(1, {}, Origin("0009", 0, origin)))
    reports = tuple(Report(point, {LOSS.name: 0.5}) for point in points)
    return TrialRecord(trial, tuple(lives), reports, **changes)


def test_a_population_that_goes_on_holds_the_comparison_that_nothing_says_was_held():
    assert first_comparison([], 640) == 640
    assert first_comparison([record("0", 320), record("1", 320, 640)], 640) == 640
    # All had reported, and nobody knows whether they were compared.
    assert first_comparison([record("0", 640), record("1", 640)], 640) == 640
    assert first_comparison([record("0", 640, 960), record("1", 640, 1280)], 640) == 1280
    # A life that began there is past it; the others are not.
    assert first_comparison([record("0", 640, origin=640), record("1", 640)], 640) == 640
    assert first_comparison([record("0", 640, origin=640), record("1", 960)], 640) == 1280
    assert first_comparison([record("0", 320, ending="failed"), record("1", 960)], 640) == 1280


@pytest.mark.parametrize(
    ("memories", "slots"), [([10e9], 1), ([10e9], 3), ([10e9, 4e9], 3), ([7e9, 7e9, 1e9], 5)]
)
def test_so_many_processes_fit_and_one_more_of_a_slightly_larger_size_does_not(
    memories: list[float], slots: int
):
    size = slot_bytes(memories, slots)
    assert sum(memory // size for memory in memories) >= slots
    assert sum(memory // (size * 1.01) for memory in memories) < slots
