"""How fast a solver's error falls on an exact score, and its value at each step in the references.

Global orders on a fixed range [0.002, 80]: the golden rows were measured on the reference
implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from contracts.exact_denoisers import SCHEDULES, golden, golden_latents, images, mixture
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, EulerSpec, IpndmSpec, SolverSpec
from fleetstep.sampling.trajectory import sample

SPECS: TypeAdapter[SolverSpec] = TypeAdapter(SolverSpec)
TRUTH = images(golden()["truth"]["x_at_sigma_min"])


def name(row: dict) -> str:
    return f"{SPECS.validate_python(row['solver']).label}-{row['schedule']}"


def at_sigma_min(solver: SolverSpec, schedule: str, steps: int) -> Tensor:
    levels = sigmas(SCHEDULES[schedule], steps + 1, SIGMA_MIN, SIGMA_MAX)
    result = sample(mixture(), solver, levels, golden_latents(), trace=True)
    assert result.trace is not None
    return result.trace[steps]


@pytest.mark.parametrize("row", golden()["orders"], ids=name)
def test_errors_are_those_of_the_reference(row: dict):
    solver = SPECS.validate_python(row["solver"])
    for steps, expected in list(zip(row["steps"], row["max_abs_err"], strict=True))[:2]:
        error = (at_sigma_min(solver, row["schedule"], steps) - TRUTH).abs().max().item()
        # The truth itself is known to about 1e-12.
        assert error == pytest.approx(expected, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("row", golden()["trajectories"], ids=name)
def test_every_point_of_the_golden_trajectories(row: dict):
    solver = SPECS.validate_python(row["solver"])
    levels = sigmas(SCHEDULES[row["schedule"]], row["points"], SIGMA_MIN, SIGMA_MAX)
    trace = sample(mixture(), solver, levels, golden_latents(), trace=True).trace
    assert trace is not None
    for x, expected in zip(trace, row["x"], strict=False):
        torch.testing.assert_close(x, images(expected), rtol=1e-9, atol=1e-9)


def test_ipndm_of_order_one_is_euler():
    for schedule in ("polynomial", "logsnr"):
        euler, ipndm = (at_sigma_min(s, schedule, 9) for s in (EulerSpec(), IpndmSpec(order=1)))
        assert torch.equal(euler, ipndm)


# The law is only worth its power: these two Heuns return finite tensors of the right shape and are
# wrong.


def heun_with_wrong_divisor(x: Tensor, s: float, t: float, eps: Callable) -> Tensor:
    guess = x + (t - s) * eps(x, s)
    second = (guess - (guess - t * eps(guess, t))) / s
    return x + (t - s) * (eps(x, s) + second) / 2


def heun_with_slope_at_wrong_level(x: Tensor, s: float, t: float, eps: Callable) -> Tensor:
    guess = x + (t - s) * eps(x, s)
    return x + (t - s) * (eps(x, s) + eps(guess, s)) / 2


def right_heun(x: Tensor, s: float, t: float, eps: Callable) -> Tensor:
    guess = x + (t - s) * eps(x, s)
    return x + (t - s) * (eps(x, s) + eps(guess, t)) / 2


@pytest.mark.parametrize(
    ("step", "second_order"),
    [
        (right_heun, True),
        (heun_with_wrong_divisor, False),
        (heun_with_slope_at_wrong_level, False),
    ],
)
def test_the_order_tells_a_broken_heun_from_a_right_one(step: Callable, second_order: bool):
    denoiser = mixture()

    def eps(x: Tensor, s: float) -> Tensor:
        return (x - denoiser(x, torch.full((len(x),), s, dtype=torch.float64), None)) / s

    def error(steps: int) -> float:
        x = golden_latents()
        levels = sigmas(SCHEDULES["polynomial"], steps + 1, SIGMA_MIN, SIGMA_MAX).tolist()
        for s, t in pairwise(levels):
            x = step(x, s, t, eps)
        return (x - TRUTH).abs().max().item()

    order = math.log2(error(64) / error(256)) / 2
    assert (order > 1.9) == second_order
    assert order > 1.9 or order < 1.3
