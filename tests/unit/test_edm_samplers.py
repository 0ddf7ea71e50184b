"""EDM's samplers: their reference values, what churn does to the law, and where noise is asked."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from contracts.exact_denoisers import PointMass
from fleetstep.sampling.schedules import VpTime
from fleetstep.sampling.spec import EdmAblationSpec, HeunSpec
from fleetstep.sampling.trajectory import sample
from solver_goldens import (
    SIGMA_MAX,
    SIGMA_MIN,
    assert_golden,
    exact_denoiser,
    latents,
    levels_of,
    noise,
    reference,
    run,
    truth,
)

CHURNED = HeunSpec(s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003)


def rows(solver: str) -> list[Any]:
    found = [row for row in reference("others")["runs"] if row["solver"] == solver]
    return [pytest.param(row, id=f"{row['num_steps']}-{i}") for i, row in enumerate(found)]


def to_zero(points: int) -> list[float]:
    return [*levels_of("polynomial", points).tolist(), 0.0]


def f64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Recorded:
    """The golden denoiser, and the levels at which it was called."""

    def __init__(self, high: float = SIGMA_MAX, low: float = SIGMA_MIN) -> None:
        self.inner, self.seen = exact_denoiser(low, high), []
        self.sigma_min, self.sigma_max = low, high

    @property
    def nfe(self) -> int:
        return self.inner.nfe

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.seen.append(float(sigma_B[0]))
        return self.inner(x_BCHW, sigma_B, labels_B)


class Asked:
    """The golden noise, and which of it was asked for."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, k: int) -> Tensor:
        self.seen.append(k)
        return noise(k)


# Heun


@pytest.mark.parametrize("row", rows("edm_heun"))
def test_heun_golden_runs(row: dict):
    result = run(HeunSpec(), to_zero(row["num_steps"]))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]


@pytest.mark.parametrize("row", rows("edm_heun_churn"))
def test_churned_heun_golden_runs(row: dict):
    settings = {name.lower(): value for name, value in row["params"].items()}
    asked = Asked()
    result = run(HeunSpec(**settings), to_zero(row["num_steps"]), noise=asked)
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]
    assert asked.seen == list(range(row["noise_used"]))


def plain_heun(levels: list[float]) -> list[Tensor]:
    """Algorithm 1 as the paper writes it."""
    denoiser = functools.partial(exact_denoiser(), labels_B=None)
    x = levels[0] * latents()
    path = [x]
    for t, t_next in pairwise(levels):
        d = (x - denoiser(x, torch.full((4,), t, dtype=torch.float64))) / t
        ahead = x + (t_next - t) * d
        if t_next > 0:
            d_next = (
                ahead - denoiser(ahead, torch.full((4,), t_next, dtype=torch.float64))
            ) / t_next
            ahead = x + (t_next - t) * (0.5 * (d + d_next))
        x = ahead
        path.append(x)
    return path


@pytest.mark.parametrize("points", [2, 5, 18])
def test_without_churn_it_is_plain_heun_to_the_bit(points: int):
    trace = run(HeunSpec(), levels := to_zero(points), trace=True).trace
    assert trace is not None
    for taken, expected in zip(trace, plain_heun(levels), strict=True):
        assert torch.equal(taken, expected)


def test_noise_is_asked_in_every_step_and_used_only_within_the_limits():
    levels, asked = to_zero(6), Asked()
    idle = run(HeunSpec(s_churn=40.0, s_min=90.0), levels, noise=asked)
    assert asked.seen == list(range(6))
    assert torch.equal(idle.x_BCHW, run(HeunSpec(), levels).x_BCHW)


@pytest.mark.parametrize("known", [80.0, 90.0, 200.0])
def test_churn_lifts_within_its_limits_and_never_above_what_the_network_knows(known: float):
    levels, denoiser = to_zero(9), Recorded(high=known)
    solver = HeunSpec(s_churn=2.0, s_min=0.5)
    sample(denoiser, solver, f64(levels), 80 * latents(), noise=noise)
    expected = []
    for level, after in pairwise(levels):
        lifted = level * (1 + 2.0 / 9) if level >= 0.5 else level
        expected += [min(lifted, known), after]
    assert denoiser.seen == pytest.approx(expected[:-1], rel=1e-14)
    assert max(denoiser.seen) == pytest.approx(min(80 * (1 + 2 / 9), known))


def test_a_step_at_most_doubles_the_variance():
    levels, denoiser = to_zero(3), Recorded()
    solver = HeunSpec(s_churn=1e9, s_max=70.0)
    sample(denoiser, solver, f64(levels), 80 * latents(), noise=noise)
    assert denoiser.seen[2] == pytest.approx(math.sqrt(2) * levels[1], rel=1e-14)


@pytest.mark.parametrize("s_churn", [2.0, 40.0])
def test_churn_keeps_the_law_of_data_at_one_place(s_churn: float):
    # x - mu stays N(0, s^2): image b starts from, or draws, the b-th unit of randomness alone, so
    # the variance is the sum of squares over the batch.
    levels, points = to_zero(8), 8
    units = torch.eye(points + 1, dtype=torch.float64)[:, :, None, None, None]
    result = sample(
        PointMass(torch.zeros(1, 1, 1).double()),
        HeunSpec(s_churn=s_churn, s_min=0.01, s_max=50.0),
        f64(levels),
        levels[0] * units[points],
        noise=lambda k: units[k],
        trace=True,
    )
    assert result.trace is not None
    for x, level in zip(result.trace, levels, strict=True):
        assert x.square().sum().item() == pytest.approx(level**2, rel=1e-12, abs=0)


@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (3, 1)])
def test_churned_images_do_not_depend_on_their_batch(sizes: tuple[int, ...]):
    levels = f64(to_zero(7))

    def drawn(first: int, count: int) -> Tensor:
        rows = slice(first, first + count)
        return sample(
            exact_denoiser(), CHURNED, levels, 80 * latents()[rows], noise=lambda k: noise(k)[rows]
        ).x_BCHW

    parts = [drawn(0, sizes[0]), drawn(sizes[0], sizes[1])]
    assert torch.equal(drawn(0, 4), torch.cat(parts))


# the general form

ABLATIONS = {"edm": "sigma", "iddpm": "sigma", "ve": "ve", "vp": "vp"}


def ablation_of(row: dict) -> tuple[EdmAblationSpec, list[float]]:
    """The solver of a row, and its levels: the first of each step's calls."""
    params = row["params"]
    solver = EdmAblationSpec(
        method=params["solver"],
        alpha=params.get("alpha", 1.0),
        coordinates=ABLATIONS[params["discretization"]],
    )
    calls = row["sigma_calls"]
    return solver, [*(calls if params["solver"] == "euler" else calls[::2]), 0.0]


@pytest.mark.parametrize("row", rows("edm_ablation"))
def test_ablation_golden_runs(row: dict):
    solver, levels = ablation_of(row)
    denoiser = Recorded(levels[0], levels[-2])
    x_T = levels[0] * latents()
    result = sample(denoiser, solver, f64(levels), x_T)
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]
    assert denoiser.seen == pytest.approx(row["sigma_calls"], rel=1e-9)


@pytest.mark.parametrize("coordinates", ["sigma", "ve", "vp"])
def test_at_alpha_one_both_slopes_are_taken_at_the_levels_themselves(coordinates: Any):
    levels, denoiser = to_zero(9), Recorded()
    sample(denoiser, EdmAblationSpec(coordinates=coordinates), f64(levels), 80 * latents())
    assert set(denoiser.seen) == set(levels[:-1])


def test_in_vp_the_last_step_holds_the_slope_from_t_1e_3_to_zero():
    # On [0.002, 80] the fitted beta is negative at t = 0.
    levels, process = to_zero(9), VpTime.spanning(SIGMA_MIN, SIGMA_MAX)
    assert process.beta_min < 0
    trace = run(EdmAblationSpec(coordinates="vp"), levels, trace=True).trace
    assert trace is not None
    x, sigma = trace[-2], SIGMA_MIN
    eps = (x - exact_denoiser()(x, f64([sigma] * 4), None)) / sigma
    b, scale = process.beta_d * 1e-3 + process.beta_min, (1 + sigma**2) ** -0.5
    dy_dt = -b / 2 * scale * x + scale * b * (1 + sigma**2) / (2 * sigma) * eps
    torch.testing.assert_close(trace[-1], scale * x - 1e-3 * dy_dt, rtol=1e-12, atol=1e-12)


def test_in_sigma_it_is_heun():
    levels = to_zero(9)
    general = run(EdmAblationSpec(), levels)
    torch.testing.assert_close(
        general.x_BCHW, run(HeunSpec(), levels).x_BCHW, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("coordinates", ["sigma", "ve", "vp"])
@pytest.mark.parametrize(("method", "alpha"), [("euler", 1.0), ("heun", 1.0), ("heun", 0.5)])
def test_its_order_is_the_declared_one_in_any_coordinates(
    coordinates: Any, method: Any, alpha: float
):
    solver = EdmAblationSpec(method=method, alpha=alpha, coordinates=coordinates)
    errors = []
    for points in (257, 513):
        levels = levels_of("logsnr", points)
        # The last but one image: what the steps between positive levels reach.
        trace = run(solver, levels, trace=True).trace
        assert trace is not None
        errors.append((trace[-2] - truth()).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.global_order, abs=0.1)


def test_alpha_means_nothing_to_eulers_method():
    with pytest.raises(ValidationError, match="alpha is where Heun's second slope is taken"):
        EdmAblationSpec(method="euler", alpha=0.5)
