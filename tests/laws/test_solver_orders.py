"""How fast a solver's error falls on an exact score, and its value at each step in the references.

Orders on a fixed range [0.002, 80]: the golden rows were measured on the reference
implementations, and those of exact Adams-Bashforth on formulas written apart from the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from deis_reference import COARSE, use_rectangles
from fleetstep.sampling.spec import (
    DeisSpec,
    Dpm2Spec,
    EulerSpec,
    HeunAbSpec,
    IpndmSpec,
    IpndmVSpec,
    SolverSpec,
)
from solver_goldens import assert_golden, exact_denoiser, latents, levels_of, reference, run, truth

LINEAR = {"euler", "heun", "dpm2", "ipndm", "ipndm_v", "deis"}


def spec_of(row: dict[str, Any]) -> SolverSpec:
    """The solver of a row of the diff-sampler runs."""
    order = row["params"].get("max_order", 1)
    match row["solver"]:
        case "euler":
            return EulerSpec()
        case "heun":
            return HeunAbSpec()
        case "dpm2":
            return Dpm2Spec(r=row["params"]["r"])
        case "ipndm":
            return IpndmSpec(order=order)
        case "ipndm_v":
            return IpndmVSpec(order=order)
        case "deis":
            return DeisSpec(order=order)
    raise AssertionError(row)


def is_exact(row: dict[str, Any]) -> bool:
    """Whether the reference computes what it says: its ipndm_v is wrong from order 3 on."""
    return not (row["solver"] == "ipndm_v" and row["params"]["max_order"] > 2)


def rows(of: list[dict[str, Any]]) -> list[Any]:
    """The rows of these solvers, with names."""
    found = [row for row in of if row["solver"] in LINEAR and is_exact(row)]
    return [pytest.param(row, id=f"{spec_of(row).label}-{row['schedule']}") for row in found]


def error(solver: SolverSpec, schedule: str, steps: int) -> float:
    """Largest error over the golden latents."""
    x = run(solver, levels_of(schedule, steps + 1)).x_BCHW
    return (x - truth()).abs().max().item()


@pytest.mark.parametrize("row", rows(reference("convergence")["fixed_range_orders"]["rows"]))
def test_errors_are_those_of_the_reference(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    use_rectangles(monkeypatch, COARSE)  # in DEIS
    for steps, expected in list(zip(row["steps"], row["max_abs_err"], strict=True))[:2]:
        found = error(spec_of(row), row["schedule"], steps)
        # The truth itself is known to about 1e-12.
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("row", reference("ipndm_v_exact")["observed_orders"])
def test_exact_adams_bashforth_has_its_order(row: dict[str, Any]):
    solver = IpndmVSpec(order=row["k"])
    coarse, fine = (error(solver, row["schedule"], steps) for steps in (128, 256))
    assert coarse == pytest.approx(row["err"][1], rel=1e-5)
    assert fine == pytest.approx(row["err"][2], rel=1e-5)
    # The rising start keeps them below k at these steps.
    assert math.log2(coarse / fine) == pytest.approx(row["order"][1], abs=1e-3)


def test_the_fourth_order_is_seen_to_the_end_of_float64():
    # Weights with cancelling terms stop falling here: 3.57 was measured with them.
    coarse, fine = (error(IpndmVSpec(order=4), "polynomial", steps) for steps in (512, 1024))
    assert fine < 8e-9
    assert math.log2(coarse / fine) == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize("row", rows(reference("diff_sampler")["trajectories_nfe5"]))
def test_every_point_of_the_golden_trajectories(
    row: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    use_rectangles(monkeypatch)  # in DEIS
    levels = levels_of(row["schedule"], row["num_steps"])
    trace = run(spec_of(row), levels, trace=True).trace
    assert trace is not None
    for x, expected in zip(trace, row["x"], strict=True):
        assert_golden(x, expected)


def test_ipndm_of_order_one_is_euler():
    for schedule in ("polynomial", "logsnr"):
        levels = levels_of(schedule, 10)
        euler, ipndm, exact = (
            run(solver, levels).x_BCHW
            for solver in (EulerSpec(), IpndmSpec(order=1), IpndmVSpec(order=1))
        )
        assert torch.equal(euler, ipndm)
        torch.testing.assert_close(exact, euler, rtol=1e-14, atol=1e-14)


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
    denoiser = exact_denoiser()

    def eps(x: Tensor, s: float) -> Tensor:
        return (x - denoiser(x, torch.full((len(x),), s, dtype=torch.float64), None)) / s

    def missed(steps: int) -> float:
        levels = levels_of("polynomial", steps + 1).tolist()
        x = levels[0] * latents()
        for s, t in pairwise(levels):
            x = step(x, s, t, eps)
        return (x - truth()).abs().max().item()

    order = math.log2(missed(64) / missed(256)) / 2
    assert (order > 1.9) == second_order
    assert order > 1.9 or order < 1.3
