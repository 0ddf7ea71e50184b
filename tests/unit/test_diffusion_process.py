"""Processes against reference figures, and as functions of time: inverses and derivatives."""

import json
import math
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import DdpmSpec, EdmSpec, VeSpec, VpSpec, ddpm_betas, ddpm_sigmas
from fleetstep.sampling.spec import HeunSpec
from fleetstep.sampling.trajectory import levels_for

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "processes.json").read_text())
SCHEDULES = ("linear", "quadratic", "cosine")


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def near(value, rel=1e-9):
    return pytest.approx(value, rel=rel, abs=0)


def logs(low, high, count=401):
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)


# Each process with times over its whole range; DDPM's between its steps, where it is smooth.
PROCESSES = {
    "vp": (VpSpec(), logs(1e-5, 1)),
    "vp 3x": (VpSpec(beta_scale=3), logs(1e-5, 1)),
    "ve": (VeSpec(), logs(0.02**2, 100**2)),
    "edm": (EdmSpec(), logs(0.002, 80)),
    **{
        schedule: (
            DdpmSpec(schedule=schedule),
            torch.arange(0, 999, 3, dtype=torch.float64)
            + torch.linspace(0.02, 0.98, 333).double(),
        )
        for schedule in SCHEDULES
    },
}
every_process = pytest.mark.parametrize(("spec", "t"), PROCESSES.values(), ids=PROCESSES)


def test_vp_levels_and_scales_at_times():
    process = build_process(VpSpec())
    for t, row in GOLDEN["vp_sigma_of_t"].items():
        time = f64(float(t))
        assert process.sigma(time).item() == near(row["sigma"])
        assert process.scale(time).item() == near(row["s"])
        assert -2 * process.scale(time).log().item() == pytest.approx(
            row["B"], rel=1e-9, abs=1e-15
        )
    assert process.sigma_min == near(GOLDEN["vp_sigma_range"]["sigma_min"])
    assert process.sigma_max == near(GOLDEN["vp_sigma_range"]["sigma_max"])


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_beta_scale_reaches_levels_times_and_noise_condition(scale):
    """FDM, table 6: VP 2x and 3x."""
    row = GOLDEN["vp_step_size_ablation"][f"{scale}x"]
    spec = VpSpec(beta_scale=scale)
    process = build_process(spec)
    assert (process.beta_d, process.beta_min) == (near(row["beta_d"]), near(row["beta_min"]))
    assert process.sigma_max == near(row["sigma_max"])
    assert process.sigma(f64(0.5)).item() == near(row["sigma_t_half"])
    assert process.t_of_sigma(f64(2)).item() == near(row["t_of_sigma_2"])
    built = build_objective(spec, [], budget_images=1, global_batch=1)
    assert built.coefficients(f64(2)).c_noise.item() == near(999 * row["t_of_sigma_2"])
    assert built.noise_levels.icdf(f64(0.5)).item() == near(
        process.sigma(f64(0.5 + 0.5e-5)).item()
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_schedules(schedule):
    betas, sigmas = ddpm_betas(schedule, 1000), ddpm_sigmas(schedule, 1000)
    abar = list(accumulate((1 - beta for beta in betas), lambda a, b: a * b))
    process = build_process(DdpmSpec(schedule=schedule))
    for index, row in GOLDEN["ddpm_schedules_T1000"][schedule].items():
        i = int(index)
        assert betas[i] == near(row["beta"])
        assert abar[i] == near(row["alpha_bar"])
        assert sigmas[i] == near(row["sigma"])
        assert sigmas[i] ** -2 == near(row["snr"])
        assert process.sigma(f64(i)).item() == sigmas[i]
        assert process.scale(f64(i)).item() ** 2 == near(row["alpha_bar"])


def test_heun_s_grid_is_cut_to_the_process_s_range():
    for name, expected in GOLDEN["heun_sigma_grid"].items():
        for spec in (VeSpec(),) if "VE" in name else (EdmSpec(), VpSpec()):
            built = build_objective(spec, [], budget_images=1, global_batch=1)
            got = levels_for(built.denoiser(torch.nn.Identity()), HeunSpec(), 35).tolist()
            assert got == [*(near(sigma) for sigma in expected[:-1]), 0]


@every_process
def test_the_time_of_a_level_inverts_its_level(spec, t):
    """To 1e-12 of the time over the whole range; at a time of 1e-5, too.

    In float32, 1 + sigma^2 = 1 + 1e-6 keeps one digit of sigma^2, and the time is 2 % off: hence
    float64, log1p and expm1.
    """
    process = build_process(spec)
    sigma = process.sigma(t)
    assert sigma.dtype == torch.float64
    assert torch.allclose(process.t_of_sigma(sigma), t, rtol=1e-12, atol=0)
    assert (sigma.diff() > 0).all()


def test_float32_without_log1p_would_miss_the_first_times():
    sigma = torch.tensor(build_process(VpSpec()).sigma_min, dtype=torch.float32)
    b = (1 + sigma**2).log()
    naive = ((0.1**2 + 2 * 19.9 * b).sqrt() - 0.1) / 19.9
    assert abs(naive.item() / 1e-5 - 1) > 0.01


@every_process
def test_derivatives_are_those_of_the_functions(spec, t):
    process = build_process(spec)
    t = t.clone().requires_grad_()
    for function, derivative in (
        (lambda t: process.sigma(t).square(), process.dsigma2_dt),
        (process.scale, process.dscale_dt),
    ):
        value = function(t)
        slope = torch.zeros_like(t)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), t)
        assert torch.allclose(derivative(t), slope, rtol=1e-9, atol=0)


@every_process
def test_derivatives_are_central_differences(spec, t):
    process = build_process(spec)
    h = 1e-4 * t.clamp(max=1)
    squares = process.sigma(t + h).square() - process.sigma(t - h).square()
    assert torch.allclose(process.dsigma2_dt(t), squares / (2 * h), rtol=1e-5, atol=0)
    scales = process.scale(t + h) - process.scale(t - h)
    assert torch.allclose(process.dscale_dt(t), scales / (2 * h), rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("name", ["vp", *SCHEDULES])
def test_variance_is_preserved(name):
    """s^2 (1 + sigma^2) = 1."""
    spec, t = PROCESSES[name]
    process = build_process(spec)
    total = process.scale(t).square() * (1 + process.sigma(t).square())
    assert torch.allclose(total, torch.ones_like(t), rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_are_whole_numbers_and_the_nearest_is_found(schedule):
    process = build_process(DdpmSpec(schedule=schedule))
    steps = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(process.t_of_sigma(process.table), steps)
    assert torch.equal(process.index_of(process.table), steps.long())
    middle = process.sigma(steps[:-1] + 0.5)
    assert torch.equal(process.index_of(middle * (1 - 1e-9)), steps[:-1].long())
    assert torch.equal(process.index_of(middle * (1 + 1e-9)), steps[1:].long())
    assert process.index_of(f64(1e-9, 1e9)).tolist() == [0, 999]


def test_levels_extend_beyond_the_first_and_last_step():
    process = build_process(DdpmSpec())
    t = f64(-3, -1, -0.5, 999.5, 1000, 1003)
    assert (process.sigma(t).diff() > 0).all()
    assert torch.allclose(process.t_of_sigma(process.sigma(t)), t, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_schedules_of_any_length_rise(schedule, steps):
    betas, sigmas = ddpm_betas(schedule, steps), ddpm_sigmas(schedule, steps)
    assert len(betas) == len(sigmas) == steps
    assert all(0 < beta < 1 for beta in betas)
    assert all(low < high for low, high in pairwise(sigmas))


def test_a_beta_whose_levels_overflow_is_refused():
    with pytest.raises(ValidationError, match=r"above 1e\+15: use a smaller beta_scale"):
        VpSpec(beta_scale=7)
    assert build_process(VpSpec(beta_scale=6)).sigma_max == near(math.exp(30.15))
