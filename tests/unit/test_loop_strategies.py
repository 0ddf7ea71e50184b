"""Strategies in the loop: what changes over a run goes on where it stopped, however it is cut."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from fleetstep.diffusion.loss import DiffusionLoss
from fleetstep.diffusion.spec import (
    AntUwSpec,
    CltsSpec,
    DdpmSpec,
    EdmSpec,
    FdmSpec,
    LogitNormalSpec,
    MinSnrSpec,
    ProcessSpec,
    SpeedSpec,
    StepsThreshold,
    StrategySpec,
    TskDifCurSpec,
    VeSpec,
    VpSpec,
    WarmupSpec,
)
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.snapshot import read_snapshot
from training_job import EDM, Points, run, toy_job

DDPM = DdpmSpec()
SPEED = SpeedSpec(threshold=StepsThreshold(count=700))
CASES: dict[str, tuple[ProcessSpec, list[StrategySpec]]] = {
    "warmup": (EDM, [WarmupSpec(window="80%")]),
    "clts": (DDPM, [CltsSpec(window="80%")]),
    "ant_uw": (DDPM, [AntUwSpec(clusters=4)]),
    "ant_uw on edm": (EDM, [AntUwSpec(clusters=2), WarmupSpec(window="50%")]),
    "tskdif_cur": (DDPM, [TskDifCurSpec(clusters=5, patience=1)]),
    "pairs": (DDPM, [SPEED.model_copy(update={"reflected_pairs": True})]),
    "fdm and speed": (EdmSpec(), [FdmSpec(multiplier=2), SpeedSpec()]),
    "vp, fdm": (VpSpec(), [FdmSpec()]),
    "ve, min_snr": (VeSpec(), [MinSnrSpec()]),
    "v, logit-normal": (DdpmSpec(prediction="v"), [LogitNormalSpec()]),
}


def cut_and_whole(tmp_path: Path, stop_after: int, **job: object) -> tuple[Points, Points]:
    """The points of a run that is stopped and resumed, and of one that is not."""
    _, whole = run(tmp_path / "whole", **job)
    steps: list[str] = []
    first = dataclasses.replace(
        toy_job(tmp_path / "cut", **job),
        on_event=lambda name: steps.append(name) if name == "step" else None,
        should_stop=lambda: len(steps) == stop_after,
    )
    outcome, head = run(tmp_path / "cut", job=first)
    assert outcome.images_seen == 8 * stop_after
    _, tail = run(tmp_path / "cut", resume="must", **job)
    assert not head.keys() & tail.keys()
    return head | tail, whole


@pytest.mark.parametrize("stop_after", [3, 7])
@pytest.mark.parametrize("case", CASES)
def test_resume_in_the_middle_is_exact(tmp_path: Path, case: str, stop_after: int):
    process, strategies = CASES[case]
    cut, whole = cut_and_whole(
        tmp_path, stop_after, process=process, strategies=strategies, label_dropout=0.25
    )
    assert cut == whole
    weights = [
        read_snapshot(tmp_path / name / "snapshots/images-000000096", "ema")[0]
        for name in ("whole", "cut")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("case", ["ant_uw", "tskdif_cur"])
def test_what_is_learned_is_checkpointed_and_moves(tmp_path: Path, case: str):
    process, strategies = CASES[case]
    outcome, _ = run(tmp_path, process=process, strategies=strategies)
    state = outcome.checkpoint.states[0]["adaptive"]
    found = CheckpointStore(tmp_path / "checkpoints").latest()
    assert found is not None
    assert found.states[0]["adaptive"] == state
    adaptive = toy_job(tmp_path, process=process, strategies=strategies).objective.adaptive
    assert adaptive is not None
    assert state != adaptive.start()


@pytest.mark.parametrize("case", ["ant_uw", "ant_uw on edm", "tskdif_cur", "pairs"])
def test_micro_batches_do_not_matter(tmp_path: Path, case: str):
    """Clusters, pairs and curricula are defined on stream positions and whole global batches."""
    process, strategies = CASES[case]

    def points(micro_batch: int) -> Points:
        settings = {"process": process, "strategies": strategies, "micro_batch": micro_batch}
        return run(tmp_path / str(micro_batch), dropout=0.0, **settings)[1]

    whole = points(8)
    assert points(1) == pytest.approx(whole, rel=1e-5)
    assert points(4) == pytest.approx(whole, rel=1e-5)


def test_an_augmented_run_with_dropped_labels_resumes_exactly(tmp_path: Path):
    cut, whole = cut_and_whole(tmp_path, 5, augment=0.5, label_dropout=0.5)
    assert cut == whole


def test_label_dropout_and_augmentation_reach_the_network(tmp_path: Path):
    plain = run(tmp_path / "plain")[1]
    assert run(tmp_path / "labels", label_dropout=0.5)[1] != plain
    assert run(tmp_path / "augment", augment=0.5)[1] != plain


def test_the_loss_of_ddpm_is_a_mean_and_that_of_edm_a_sum(tmp_path: Path):
    x0 = torch.zeros(2, 1, 4, 4)
    sigma, eps = torch.full((2,), 0.5, dtype=torch.float64), torch.ones(2, 1, 4, 4)
    for process, pixels in ((DDPM, 1), (VpSpec(), 16)):
        objective = toy_job(tmp_path, process=process, strategies=()).objective
        denoiser = objective.denoiser(lambda x, c_noise, labels: torch.zeros_like(x))
        loss = DiffusionLoss(objective)(denoiser, x0, None, sigma, eps, 0)
        # Predicting no noise at all where there is unit noise: an eps-loss of one a pixel.
        assert loss.tolist() == pytest.approx([pixels, pixels], rel=1e-6)


def test_strategies_read_from_json_are_the_same(tmp_path: Path):
    """Workers get their strategies as JSON."""
    adapter: TypeAdapter[list[StrategySpec]] = TypeAdapter(list[StrategySpec])
    for process, strategies in CASES.values():
        again = adapter.validate_json(adapter.dump_json(strategies))
        jobs = [toy_job(tmp_path, process=process, strategies=s) for s in (strategies, again)]
        assert jobs[0].objective == jobs[1].objective
