from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fleetstep.training.ema import EmaTracks
from fleetstep.training.partition import OwnedSlice
from fleetstep.training.spec import EmaSpec, OptimizerSpec, TrainingSpec, ema_beta, learning_rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training_loop.json").read_text())


@pytest.mark.parametrize("batch", [512, 256])
def test_beta_is_edms(batch: int):
    golden = GOLDEN[f"ema_beta_batch{batch}"]
    found = {n: ema_beta(EmaSpec(), 200_000_000, int(n), batch) for n in golden}
    assert found == pytest.approx(golden, rel=1e-12, abs=0)
    assert found["0"] == 0.0


def test_learning_rate_ramp_is_edms():
    spec = TrainingSpec(images=200_000_000, global_batch=512, optimizer=OptimizerSpec(lr=2.0))
    golden = GOLDEN["lr_factor"]
    found = {n: learning_rate(spec, int(n)) / 2.0 for n in golden}
    assert found == pytest.approx(golden, rel=1e-12, abs=0)
    assert learning_rate(spec, 150_000_000) == 2.0
    assert learning_rate(TrainingSpec(images=10, global_batch=1, lr_ramp=0), 0) == 1e-3


def test_spans_may_be_shares_of_the_budget():
    assert ema_beta(EmaSpec(half_life="10%"), 1000, 10**9, 100) == 0.5
    spec = TrainingSpec(images=1000, global_batch=10, lr_ramp="50%")
    assert learning_rate(spec, 250) == pytest.approx(0.5e-3)


def piece(name: str, values: torch.Tensor, start: int = 0) -> OwnedSlice:
    zeros = torch.zeros_like(values)
    return OwnedSlice(name, start, len(values), (len(values),), values, zeros, zeros.clone())


def test_tracks_follow_the_closed_form():
    """avg <- beta avg + (1 - beta) w, one beta a track, beta from images before the batch."""
    specs = {"fast": EmaSpec(half_life=8), "slow": EmaSpec(half_life=64, ramp_ratio=None)}
    weights = torch.tensor([1.0, -2.0])
    ema = EmaTracks(specs, budget=100, global_batch=8, owned=[piece("w", weights)])
    expected = {name: weights.double().clone() for name in specs}
    for step in range(40):
        weights.copy_(torch.tensor([float(step), 10.0 - step]))
        for name, spec in specs.items():
            beta = ema_beta(spec, 100, step * 8, 8)
            expected[name] = beta * expected[name] + (1 - beta) * weights.double()
        ema.update(step * 8)
        if step == 0:
            ((_, first),) = ema.slices("fast")
            assert torch.equal(first, weights)
    for name in specs:
        ((where, average),) = ema.slices(name)
        assert where.name == "w"
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_rank_holds_only_its_partition():
    total = torch.randn(1001)
    halves = [piece("w", total[:501]), piece("w", total[501:], start=501)]
    specs = {"a": EmaSpec(), "b": EmaSpec()}
    sizes = [EmaTracks(specs, budget=10, global_batch=1, owned=[half]).nbytes for half in halves]
    assert sizes == [2 * 4 * 501, 2 * 4 * 500]


def test_tracks_do_not_share_memory_with_the_weights():
    weights = torch.zeros(3)
    ema = EmaTracks({"ema": EmaSpec()}, budget=10, global_batch=1, owned=[piece("w", weights)])
    weights.fill_(7)
    ((_, average),) = ema.slices("ema")
    assert not average.any()
