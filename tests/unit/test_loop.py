from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fleetstep import rng
from fleetstep.data.batch import Batch
from fleetstep.errors import NonFiniteError
from fleetstep.training.checkpoint_format import Checkpoint
from fleetstep.training.loop import Callbacks, Job, train
from fleetstep.training.snapshot import read_snapshot
from fleetstep.training.spec import learning_rate
from training_job import SHAPE, Points, ToyStream, run, toy_job, toy_network


def test_it_is_edms_training_loop(tmp_path: Path):
    """Against a loop written out: draws by stream position, warm-up clamp, Adam, ramp."""
    _, points = run(tmp_path, micro_batch=None, dropout=0.0)
    network = toy_network()
    adam = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    average = {name: p.detach().double() for name, p in network.named_parameters()}
    expected: Points = {}
    for step in range(12):
        batch = ToyStream().batch(step * 8, 8)
        x0 = torch.from_numpy(batch.images) / 127.5 - 1
        u = rng.uniform(0, "noise-level", step * 8, 8)
        z = torch.special.ndtri(torch.from_numpy(u))
        sigma = torch.exp(-1.2 + 1.2 * z)[:, None, None, None]
        eps = torch.from_numpy(rng.draw(0, "noise", step * 8, 8, SHAPE))
        scale = (sigma**2 + 0.25).sqrt()
        x = x0 + sigma * eps
        f = network(
            (x / scale).float(),
            (sigma.log() / 4).flatten().float(),
            torch.from_numpy(batch.labels),
        )
        d = 0.25 / scale**2 * x + sigma * 0.5 / scale * f
        weight = (scale / (sigma * 0.5)) ** 2
        if step < 6:  # window: half of 96 images, 8 a step
            weight = weight.clamp(max=5 * 100 ** (step / 6))
        loss = (weight * (d - x0) ** 2).sum((1, 2, 3)).mean()
        loss.backward()
        adam.param_groups[0]["lr"] = 1e-2 * min(step * 8 / 16, 1)
        adam.step()
        adam.zero_grad()
        expected[(step + 1) * 8] = float(loss.detach())
        beta = 0.5 ** (8 / max(min(64, 0.05 * step * 8), 1e-8))
        for name, p in network.named_parameters():
            average[name] = beta * average[name] + (1 - beta) * p.detach().double()
    assert points == pytest.approx(expected, rel=1e-5)
    weights, _ = read_snapshot(tmp_path / "snapshots/images-000000096", "ema")
    for name, value in average.items():
        torch.testing.assert_close(weights[name].double(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("log_every", [1, 5])
@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_stop_and_resume_is_exact(tmp_path: Path, stop_after: int, log_every: int):
    """Also where a logged mean spans the interruption; dropout is on."""
    outcome, whole = run(tmp_path / "whole", log_every=log_every)
    assert (outcome.status, outcome.images_seen) == ("finished", 96)
    job = toy_job(tmp_path / "cut", log_every=log_every)
    steps: list[str] = []
    job = replace(
        job,
        on_event=lambda name: steps.append(name) if name == "step" else None,
        should_stop=lambda: len(steps) == stop_after,
    )
    outcome, head = run(tmp_path / "cut", job=job)
    assert (outcome.status, outcome.images_seen) == ("stopped", stop_after * 8)
    assert outcome.checkpoint.images_seen == stop_after * 8
    outcome, tail = run(tmp_path / "cut", resume="must", log_every=log_every)
    assert outcome.status == "finished"
    assert head | tail == whole
    assert not head.keys() & tail.keys()
    for track in ("ema", "slow"):
        a, _ = read_snapshot(tmp_path / "whole/snapshots/images-000000096", track)
        b, _ = read_snapshot(tmp_path / "cut/snapshots/images-000000096", track)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_micro_batches_change_nothing_but_dropout(tmp_path: Path):
    def points(micro_batch: int) -> Points:
        return run(tmp_path / str(micro_batch), micro_batch=micro_batch, dropout=0.0)[1]

    assert points(8) == pytest.approx(points(2), rel=1e-5)


class Watched:
    """Records what the callbacks are told."""

    def __init__(self, root: Path, **changes: object) -> None:
        self.logged: dict[int, Mapping[str, float]] = {}
        self.reported: list[int] = []
        self.snapshots: list[int] = []
        self.steps = 0
        callbacks = Callbacks(log=self.log, report=self.report, snapshot=self.snapshot)
        self.job: Job = replace(
            toy_job(root, **changes), callbacks=callbacks, on_event=self.on_event
        )

    def log(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        self.logged[images_seen] = metrics

    def report(self, checkpoint: Checkpoint) -> None:
        self.reported.append(checkpoint.images_seen)

    def snapshot(self, path: Path, images_seen: int) -> None:
        assert path.name == f"images-{images_seen:09d}"
        self.snapshots.append(images_seen)

    def on_event(self, name: str) -> None:
        self.steps += name == "step"


def test_what_is_told_when(tmp_path: Path):
    watched = Watched(tmp_path, images=90, checkpoint_every=30, snapshot_every="50%", log_every=4)
    outcome = train(watched.job)
    assert outcome.images_seen == 96  # 12 whole batches
    assert watched.reported == [0, 32, 48, 64, 96]
    assert watched.snapshots == [0, 48, 96]
    assert list(watched.logged) == [32, 64, 96]
    metrics = watched.logged[64]
    assert metrics["train/lr"] == learning_rate(watched.job.training, 56)
    assert metrics["train/kimg"] == 0.064
    assert metrics["train/grad_norm"] > 0
    assert metrics["train/images_per_s"] > 0
    assert 0 <= metrics["train/data_wait_share"] <= 1
    assert metrics["train/eta_s"] == pytest.approx(32 / metrics["train/images_per_s"])
    assert watched.logged[96]["train/eta_s"] == 0


def test_a_finished_run_returns_at_once(tmp_path: Path):
    first = Watched(tmp_path)
    train(first.job)
    again = Watched(tmp_path)
    outcome = train(again.job, again.job.store.latest())
    assert outcome.status == "finished"
    assert (again.steps, again.reported, again.snapshots, again.logged) == (0, [], [], {})


def test_a_snapshot_that_was_not_reported_is_reported_on_resume(tmp_path: Path):
    train(Watched(tmp_path).job)
    (tmp_path / "snapshots/images-000000096/reported").unlink()
    again = Watched(tmp_path)
    train(again.job, again.job.store.latest())
    assert (again.steps, again.snapshots) == (0, [96])


def test_a_larger_budget_goes_on(tmp_path: Path):
    train(Watched(tmp_path).job)
    longer = Watched(tmp_path, images=128)
    assert train(longer.job, longer.job.store.latest()).images_seen == 128
    assert longer.steps == 4


class BrokenStream(ToyStream):
    """Fails, in the background thread, at one position."""

    def batch(self, first: int, count: int) -> Batch:
        if first == 40:
            raise OSError("the shard is gone")
        return super().batch(first, count)


def test_an_error_of_the_stream_ends_the_run(tmp_path: Path):
    watched = Watched(tmp_path)
    with pytest.raises(OSError, match="the shard is gone"):
        train(replace(watched.job, stream=BrokenStream()))
    assert watched.steps == 5


def test_a_loss_that_is_not_finite_stops_before_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    watched = Watched(tmp_path)
    job = watched.job

    class Poisoned(type(job.engine)):  # type: ignore[misc]
        def network(self, x_BCHW, c_noise_B, labels_B):
            f = super().network(x_BCHW, c_noise_B, labels_B)
            # The third micro-batch of step 5.
            return f * math.nan if self.steps == 5 and next(calls) == 2 else f

    calls = iter(range(4))
    job.engine.__class__ = Poisoned
    with pytest.raises(NonFiniteError, match=r"loss is nan at step 5, .* positions 44-45"):
        train(job)
    found = job.store.latest()
    assert found is not None
    assert found.images_seen == 32
    assert all(bool(np.isfinite(m["train/loss"])) for m in watched.logged.values())


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path):
    job = toy_job(tmp_path)

    class Overflowing(type(job.engine)):  # type: ignore[misc]
        def backward(self, loss):
            # The loss itself stays finite.
            super().backward(loss)
            if self.steps == 3:
                next(iter(self._params)).grad.fill_(math.inf)

    job.engine.__class__ = Overflowing
    with pytest.raises(NonFiniteError, match=r"gradient norm is (inf|nan) at step 3"):
        train(job)
    found = job.store.latest()
    assert found is not None
    assert found.images_seen == 16
