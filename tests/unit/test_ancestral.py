"""DDPM's ancestral sampler: its reference values in three libraries, and the law it draws from."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.exact_denoisers import Mixture, PointMass
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    AcceleratedDdpmSpec,
    AcceleratedScheduleSpec,
    DdpmSolverSpec,
    SolverSpec,
)
from fleetstep.sampling.trajectory import sample
from solver_goldens import (
    assert_golden,
    exact_denoiser,
    latents,
    levels_of,
    noise,
    reference,
    run,
    run_vp,
)

SMALL, LARGE = DdpmSolverSpec(), DdpmSolverSpec(variance="fixed_large")


class Asked:
    """The golden noise, and which of it was asked for."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, k: int) -> Tensor:
        self.seen.append(k)
        return noise(k)


def rows(section: str, key: str, names: set[str], number: str) -> list[Any]:
    found = [
        row for row in reference(section)[key] if names & {row.get("solver"), row.get("sampler")}
    ]
    assert found
    return [pytest.param(row, id=f"{row[number]}-{i}") for i, row in enumerate(found)]


def ddpm_levels(timesteps: list[int]) -> list[float]:
    """sigma of the steps of DDPM's linear process, and zero: after step 0 alpha is one."""
    beta_T = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    log_abar_T = torch.log1p(-beta_T).cumsum(0)
    return [*torch.expm1(-log_abar_T[timesteps]).sqrt().tolist(), 0.0]


# reference values


@pytest.mark.parametrize("row", rows("diffusers", "runs", {"ddpm_ancestral"}, "S"))
def test_diffusers_golden_runs(row: dict):
    asked = Asked()
    solver = DdpmSolverSpec(variance=row["params"]["variance_type"])
    # The file counts time from T = 1000 betas; the last step, to alpha = 1, draws nothing.
    y = run_vp(solver, ddpm_levels(row["timesteps"]), noise=asked)
    assert_golden(y, row["x_vp"])
    assert asked.seen == list(range(row["noise_used"]))


@pytest.mark.parametrize("row", rows("others", "runs", {"kd_sample_euler_ancestral"}, "n"))
def test_k_diffusion_golden_runs(row: dict):
    asked = Asked()
    levels = [*levels_of("polynomial", row["n"]).tolist(), 0.0]
    result = run(SMALL, levels, noise=asked)
    assert_golden(result.x_BCHW, row["x"])
    assert (result.nfe, len(asked.seen)) == (row["nfe"], row["noise_used"])


@pytest.mark.parametrize(
    "row", rows("accelerated", "sto", {"ancestral_btilde", "ancestral_beta"}, "steps")
)
def test_golden_runs_to_sigma_min(row: dict):
    solver = SMALL if row["sampler"] == "ancestral_btilde" else LARGE
    result = run(solver, levels_of(row["schedule"], row["steps"] + 1), noise=noise)
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]


# laws


def law(
    solver: SolverSpec, levels: Tensor, denoiser: Any, draws: int, std_T: float
) -> tuple[float, float]:
    """Exact mean and variance of one pixel at the end, for a denoiser that is affine in x.

    The last image has no randomness; image b has the b-th unit of it alone: of the noises, then of
    x_T.
    """
    units = torch.eye(draws + 2, draws + 1, dtype=torch.float64)[:, :, None, None, None]
    x_T = std_T * units[:, draws]
    x = sample(denoiser, solver, levels, x_T, noise=lambda k: units[:, k]).x_BCHW.flatten()
    return x[-1].item(), (x[:-1] - x[-1]).square().sum().item()


def test_the_posteriors_variance_keeps_the_law_of_data_at_one_place():
    # q(x' | x, x0) is exact there: x - mu is N(0, s^2) at every level.
    levels = levels_of("polynomial", 6)
    denoiser = PointMass(torch.full((1, 1, 1), 0.3, dtype=torch.float64))
    mean, variance = law(SMALL, levels, denoiser, 5, 80.0)
    # The mean started at zero: of mu, the share (s'/s)^2 is still missing.
    assert mean == pytest.approx(0.3 * (1 - (0.002 / 80) ** 2), rel=1e-12)
    assert variance == pytest.approx(0.002**2, rel=1e-9, abs=0)


def gaussian(mean: float, variance: float, levels: Tensor) -> Mixture:
    """D of N(mean, variance), on the range of `levels`."""
    one = torch.ones(1, dtype=torch.float64)
    denoiser = Mixture(one, mean * one[None], variance * one[None])
    denoiser.sigma_min, denoiser.sigma_max = float(levels[-1]), float(levels[0])
    return denoiser


STOCHASTIC: dict[str, tuple[SolverSpec, Callable[[int], int]]] = {
    "ancestral_btilde": (SMALL, lambda T: T - 1),
    "eq10_printed": (AcceleratedDdpmSpec(equation=10, noise="printed"), lambda T: T - 1),
    "eq10_inside": (AcceleratedDdpmSpec(equation=10), lambda T: T - 1),
    "eq23_printed": (AcceleratedDdpmSpec(noise="printed"), lambda T: 2 * (T - 1)),
    "eq23_inside": (AcceleratedDdpmSpec(), lambda T: 2 * (T - 1)),
}


@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize(("c1", "mean", "variance"), [(8, 0.5, 0.09), (6, 0.0, 4.0)])
@pytest.mark.parametrize("points", [64, 256])
def test_the_law_on_gaussian_data(
    sampler: str, c1: float, mean: float, variance: float, points: int
):
    (row,) = [
        row
        for row in reference("convergence")["stochastic_gaussian_schedule13"]
        if (row["sampler"], row["c1"], row["target"])
        == (sampler, c1, {"mean": mean, "var": variance})
    ]
    solver, draws = STOCHASTIC[sampler]
    levels = sigmas(AcceleratedScheduleSpec(c1=c1), points, 0.002, 80.0)
    std_T = math.sqrt(1 + float(levels[0]) ** 2)  # Y_T is standard normal
    denoiser = gaussian(mean, variance, levels)
    x_mean, x_variance = law(solver, levels, denoiser, draws(points), std_T)
    abar = 1 / (1 + float(levels[-1]) ** 2)
    drawn = NormalDist(math.sqrt(abar) * x_mean, math.sqrt(abar * x_variance))
    true = NormalDist(math.sqrt(abar) * mean, math.sqrt(abar * variance + 1 - abar))

    i = row["T"].index(points)
    assert drawn.mean == pytest.approx(row["law"][i]["p1_mean"], abs=1e-9)
    assert drawn.variance == pytest.approx(row["law"][i]["p1_var"], rel=1e-9)
    assert 1 - drawn.overlap(true) == pytest.approx(row["TV"][i], rel=1e-6)


# randomness


@pytest.mark.parametrize(
    "solver", [SMALL, LARGE, AcceleratedDdpmSpec(), STOCHASTIC["eq10_inside"][0]]
)
@pytest.mark.parametrize("first", [1, 2, 3])
def test_images_do_not_depend_on_their_batch(solver: SolverSpec, first: int):
    levels = levels_of("polynomial", 8)

    def drawn(rows: slice) -> Tensor:
        x_T = 80 * latents()[rows]
        return sample(exact_denoiser(), solver, levels, x_T, noise=lambda k: noise(k)[rows]).x_BCHW

    parts = torch.cat((drawn(slice(0, first)), drawn(slice(first, 4))))
    assert torch.equal(drawn(slice(0, 4)), parts)


@pytest.mark.parametrize("solver", [SMALL, LARGE])
def test_a_step_to_zero_is_the_denoised_image(solver: DdpmSolverSpec):
    denoiser, levels = exact_denoiser(), [*levels_of("polynomial", 3).tolist(), 0.0]
    trace = run(solver, levels, noise=noise, trace=True).trace
    assert trace is not None
    denoised = denoiser(trace[-2], torch.full((4,), levels[-2], dtype=torch.float64), None)
    torch.testing.assert_close(trace[-1], denoised, rtol=0, atol=1e-14)
