"""What every engine promises; a new engine gets its tests by saying how it is made."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fleetstep.training.engine import Engine
from fleetstep.training.partition import QUANTITIES
from fleetstep.training.spec import BatchPlan, OptimizerSpec
from training_job import toy_network

BATCH = 8
STEPS = 5
OPTIMIZER = OptimizerSpec(kind="adamw", lr=1.0, weight_decay=0.1, clip_grad_norm=0.5)


def learning_rate(step: int) -> float:
    """Starts at zero, as EDM's ramp does."""
    return 1e-2 * min(step / 2, 1.0)


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise conditions and labels of a step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 1, 4, 4, generator=generator)
    c_noise = torch.randn(BATCH, generator=generator)
    return x, c_noise, torch.randint(0, 3, (BATCH,), generator=generator)


def loss_of(f: Tensor, x: Tensor) -> Tensor:
    """Some regression target that the network can approach."""
    return (f - 3 * x.flip(-1)).square().sum((1, 2, 3)).mean()


def plain_loop(steps: int) -> tuple[list[float], list[float], nn.Module]:
    """Losses and gradient norms of a loop without any engine, and the trained network."""
    network = toy_network().train()
    adam = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.1)
    losses, norms = [], []
    for step in range(steps):
        x, c_noise, labels = batch(step)
        loss = loss_of(network(x, c_noise, labels), x)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), 0.5)))
        adam.param_groups[0]["lr"] = learning_rate(step)
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
    return losses, norms, network


def engine_loop(
    engine: Engine, plan: BatchPlan, first: int, last: int
) -> tuple[list[float], list[float]]:
    """The same through an engine, steps first .. last-1."""
    losses, norms = [], []
    for step in range(first, last):
        x, c_noise, labels = batch(step)
        total = 0.0
        for m in range(plan.accumulation):
            rows = slice(m * plan.micro_batch, (m + 1) * plan.micro_batch)
            loss = loss_of(engine.network(x[rows], c_noise[rows], labels[rows]), x[rows])
            engine.backward(loss)
            total += float(loss.detach()) / plan.accumulation
        engine.step(learning_rate(step))
        losses.append(total)
        norms.append(engine.grad_norm())
    return losses, norms


def state_of(engine: Engine) -> dict[tuple[str, str], Tensor]:
    """Copies of weights and moments, whole and flat, of an engine that is alone in its group."""
    pieces = sorted(engine.owned(), key=lambda piece: (piece.name, piece.start))
    state: dict[tuple[str, str], list[Tensor]] = {}
    for piece in pieces:
        for quantity in QUANTITIES:
            state.setdefault((quantity, piece.name), []).append(getattr(piece, quantity).clone())
    return {key: torch.cat(values) for key, values in state.items()}


class EngineContract:
    """Inherit it and say how the engine is made."""

    def make(self, network: nn.Module, optimizer: OptimizerSpec, plan: BatchPlan) -> Engine:
        raise NotImplementedError

    def new(self, micro_batch: int = BATCH) -> tuple[Engine, BatchPlan]:
        plan = BatchPlan(1, BATCH, micro_batch, BATCH // micro_batch)
        return self.make(toy_network(), OPTIMIZER, plan), plan

    def test_it_trains_as_a_plain_loop_does(self):
        losses, norms, network = plain_loop(STEPS)
        engine, plan = self.new()
        found, found_norms = engine_loop(engine, plan, 0, STEPS)
        assert found == pytest.approx(losses, rel=1e-6)
        assert found_norms == pytest.approx(norms, rel=1e-5)
        assert losses[-1] < losses[0]
        state = state_of(engine)
        for name, p in network.named_parameters():
            torch.testing.assert_close(
                state["param", name], p.detach().view(-1), rtol=1e-5, atol=1e-7
            )

    def test_accumulation_changes_nothing(self):
        whole, norms = engine_loop(*self.new(), 0, STEPS)
        for micro_batch in (4, 1):
            parts, part_norms = engine_loop(*self.new(micro_batch), 0, STEPS)
            assert parts == pytest.approx(whole, rel=1e-6)
            assert part_norms == pytest.approx(norms, rel=1e-5)

    def test_resume_is_exact(self):
        engine, plan = self.new(4)
        engine_loop(engine, plan, 0, 3)
        state = state_of(engine)
        unbroken = engine_loop(engine, plan, 3, 6)
        resumed, _ = self.new(4)
        resumed.load(lambda quantity, name, start, n: state[quantity, name][start : start + n], 3)
        assert resumed.steps == 3
        again = state_of(resumed)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], state[key]) for key in state)
        assert engine_loop(resumed, plan, 3, 6) == unbroken

    def test_every_element_is_owned_once_from_the_start(self):
        engine, _ = self.new()
        shapes = {name: tuple(p.shape) for name, p in toy_network().named_parameters()}
        covered = {name: torch.zeros(math.prod(shape)) for name, shape in shapes.items()}
        weights = dict(toy_network().named_parameters())
        for piece in engine.owned():
            stop = piece.start + piece.numel
            covered[piece.name][piece.start : stop] += 1
            assert piece.shape == shapes[piece.name]
            assert piece.param.dtype == torch.float32
            assert torch.equal(
                piece.param, weights[piece.name].detach().view(-1)[piece.start : stop]
            )
            assert not piece.exp_avg.any()
            assert not piece.exp_avg_sq.any()
        assert all(bool((count == 1).all()) for count in covered.values())

    def test_owned_slices_are_live_views(self):
        engine, plan = self.new()
        owned = engine.owned()
        before = [piece.param.clone() for piece in owned]
        engine_loop(engine, plan, 0, 2)
        now = engine.owned()
        assert all(torch.equal(a.param, b.param) for a, b in zip(owned, now, strict=True))
        assert all(bool(piece.exp_avg_sq.any()) for piece in owned)
        assert not any(torch.equal(a, b.param) for a, b in zip(before, owned, strict=True))

    def test_an_infinite_gradient_shows_in_the_norm(self):
        engine, _ = self.new()
        x, c_noise, labels = batch(0)
        engine.backward(loss_of(engine.network(x, c_noise, labels), x) * float("inf"))
        engine.step(1e-3)
        assert not math.isfinite(engine.grad_norm())

    def test_buffers_are_named(self):
        engine, _ = self.new()
        assert engine.buffers().keys() == {"frequencies"}
        assert engine.buffers()["frequencies"].dtype == torch.float32
