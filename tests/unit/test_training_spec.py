from __future__ import annotations

import pytest
from pydantic import ValidationError

from fleetstep.training.spec import (
    BatchPlan,
    EmaSpec,
    Saves,
    TrainingSpec,
    batch_arithmetic,
    check_training,
    effective_stage,
    ema_beta,
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
        {"label_dropout": -0.1},
        {"label_dropout": 1.1},
        {"compile": "nvfuser"},
    ],
)
def test_impossible_values_are_refused(changes: dict[str, object]):
    with pytest.raises(ValidationError):
        spec(**changes)


@pytest.mark.parametrize("checkpoint", [1, 63, 64, 100, 300, "30%", 2000])
@pytest.mark.parametrize("snapshot", [50, 65, "50%"])
def test_saves_are_counted_as_the_loop_makes_them(checkpoint: int | str, snapshot: int | str):
    # 16 steps of 64: spans that are no multiple of the batch, and an end that is of neither.
    saves = Saves.of(spec(checkpoint_every=checkpoint, snapshot_every=snapshot))
    points = range(0, 1025, 64)
    assert saves.snapshots() == {n for n in points if saves.snapshot(n)}
    assert saves.checkpoints() == {n for n in points if saves.checkpoint(n)}


def test_saves_are_at_the_first_step_that_reaches_a_multiple():
    saves = Saves.of(spec(checkpoint_every=300, snapshot_every="50%"))
    assert sorted(saves.snapshots()) == [0, 512, 1024]
    assert sorted(saves.checkpoints()) == [0, 320, 512, 640, 960, 1024]


def test_a_constant_decay_is_a_half_life_without_a_ramp():
    # DiT's 0.9999 a step of 256 images: ln 2 / -ln 0.9999 * 256 = 1774368.06.
    track = EmaSpec(half_life=1_774_368, ramp_ratio=None)
    for images_seen in (0, 256, 25_600_000):
        assert ema_beta(track, 25_600_000, images_seen, 256) == pytest.approx(0.9999, rel=1e-9)


def test_how_a_network_is_computed_is_off_by_default():
    plain = spec()
    assert (plain.label_dropout, plain.activation_checkpointing, plain.compile) == (
        0,
        False,
        "off",
    )
