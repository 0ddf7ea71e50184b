from __future__ import annotations

import pytest
from pydantic import ValidationError

from fleetstep.training.spec import (
    BatchPlan,
    Saves,
    TrainingSpec,
    batch_arithmetic,
    check_training,
    effective_stage,
    total_steps,
)


def spec(**changes: object) -> TrainingSpec:
    return TrainingSpec.model_validate({"images": 1000, "global_batch": 64} | changes)


def test_batches_are_cut_without_remainder():
    assert batch_arithmetic(64, 2, 8) == BatchPlan(2, 32, 8, 4)
    assert batch_arithmetic(64, 4, None) == BatchPlan(4, 16, 16, 1)
    for workers in (1, 2, 4):
        for micro in (None, 1, 8):
            plan = batch_arithmetic(64, workers, micro)
            assert isinstance(plan, BatchPlan)
            assert plan.workers * plan.accumulation * plan.micro_batch == plan.global_batch == 64


@pytest.mark.parametrize(
    ("global_batch", "workers", "micro", "says"),
    [
        (
            500,
            4,
            32,
            "500 is not a multiple of 4 workers x micro_batch 32 = 128; nearest that works: 512",
        ),
        (11, 4, None, "11 is not a multiple of 4 workers = 4; nearest that works: 12"),
        (9, 4, None, "nearest that works: 8"),
        (2, 4, None, "nearest that works: 4"),
        (24, 2, 8, "nearest that works: 16 (or micro_batch 6)"),
    ],
)
def test_impossible_batches_name_the_nearest(
    global_batch: int, workers: int, micro: int | None, says: str
):
    problem = batch_arithmetic(global_batch, workers, micro)
    assert isinstance(problem, str)
    assert says in problem


def test_steps_cover_the_budget():
    assert [total_steps(n, 64) for n in (1, 64, 65, 1000)] == [1, 1, 2, 16]


def test_the_stage_is_chosen_for_speed():
    assert effective_stage(spec(), 1) == 0
    assert effective_stage(spec(), 2) == 1
    assert effective_stage(spec(precision="bf16"), 1) == 1
    assert effective_stage(spec(zero_stage=3), 1) == 3


def test_problems_are_all_reported():
    bad = spec(zero_stage=0, precision="bf16", checkpoint_every=0, snapshot_every="0%")
    problems = check_training(bad, workers=3)
    assert [problem.split(":")[0] for problem in problems] == [
        "training.global_batch",
        "training.zero_stage",
        "training.checkpoint_every",
        "training.snapshot_every",
    ]
    assert check_training(spec(), workers=2) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": {}},
        {"ema": {"a/b": {}}},
        {"optimizer": {"lr": 0}},
        {"optimizer": {"betas": [0.9, 1.0]}},
        {"zero_stage": 4},
        {"log_every": 0},
        {"keep_checkpoints": 0},
        {"lr_rampp": 1},
    ],
)
def test_impossible_values_are_refused(changes: dict[str, object]):
    with pytest.raises(ValidationError):
        spec(**changes)


def test_saves_are_counted_as_the_loop_makes_them():
    # 16 steps of 64: spans that are no multiple of the batch, and an end that is of neither.
    saves = Saves.of(spec(checkpoint_every=300, snapshot_every="50%"))
    assert [n for n in saves.points() if saves.snapshot(n)] == [0, 512, 1000 // 64 * 64 + 64]
    assert [n for n in saves.points() if saves.checkpoint(n)] == [0, 320, 512, 640, 960, 1024]
