"""Our solvers against diffusers' live schedulers, where both take the same step.

The schedulers get the process's levels in float64; those that keep their own levels in float32
are held to 1e-5, the others to 1e-9.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fleetstep.diffusion.spec import ddpm_sigmas
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    DdpmSolverSpec,
    DdpmSubsetSpec,
    DeisSpec,
    Dpm2Spec,
    DpmppSdeSpec,
    DpmppSpec,
    EulerSpec,
    HeunSpec,
    IpndmVSpec,
    PlmsSpec,
    PndmSpec,
    PolynomialSpec,
    SolverSpec,
    UnipcSpec,
)
from fleetstep.sampling.trajectory import sample
from solver_goldens import exact_denoiser, latents, run, run_vp

diffusers = pytest.importorskip("diffusers")

# It hands tensors to numpy in the old ways.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

LEVELS = torch.tensor(ddpm_sigmas("linear", 1000), dtype=torch.float64)
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
FLOAT32 = 1e-5


def scheduler_of(name: str, steps: int, **settings: Any) -> Any:
    """A scheduler on the process with T = 1000 and linear betas, its levels in float64."""
    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, **BETAS, **settings)
    abar = 1 / (1 + LEVELS.square())
    scheduler.alphas_cumprod = abar
    if hasattr(scheduler, "final_alpha_cumprod"):
        one = settings.get("set_alpha_to_one", True)
        scheduler.final_alpha_cumprod = torch.ones_like(abar[0]) if one else abar[0]
    scheduler.set_timesteps(steps)
    return scheduler


def theirs_vp(scheduler: Any, **of_step: Any) -> Tensor:
    """The golden problem walked by a scheduler of VP images, from z; the network predicts eps."""
    denoiser, y = exact_denoiser(1e-3, 1e3), latents()
    for k, t in enumerate(scheduler.timesteps):
        sigma = LEVELS[int(t)]
        x = y * (1 + sigma**2).sqrt()
        eps = (x - denoiser(x, sigma.expand(len(x)), None)) / sigma
        settings = {
            name: value(k) if callable(value) else value for name, value in of_step.items()
        }
        y = scheduler.step(eps, t, y, **settings).prev_sample
    return y


def theirs_ve(scheduler: Any, called: Tensor) -> Tensor:
    """The same for schedulers of unscaled images, which call the network at levels `called`."""
    denoiser, x = exact_denoiser(1e-5, 1e3), called[0].double() * latents()
    for t, sigma in zip(scheduler.timesteps, called.double(), strict=True):
        scheduler.scale_model_input(x, t)  # it wants to be told, whatever we do with the answer
        eps = (x - denoiser(x, sigma.expand(len(x)), None)) / sigma
        x = scheduler.step(eps, t, x).prev_sample
    return x


def subset(steps: int, **settings: Any) -> Tensor:
    """Levels of our schedule of the same name, and the zero that may follow."""
    schedule = DdpmSubsetSpec(**settings)
    levels = sigmas(schedule, steps, 0.0, 0.0)
    return torch.cat((levels, levels.new_zeros(1))) if schedule.ends_at_zero else levels


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_to_alpha_one_is_euler_to_zero(spacing: str, steps: int):
    scheduler = scheduler_of(
        "DDIMScheduler", steps, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=True
    )
    ours = run_vp(EulerSpec(), subset(steps, spacing=spacing))
    assert_same(ours, theirs_vp(scheduler))


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_ddim_on_linspace_steps_past_its_own_timesteps(steps: int):
    # It always steps from t to t - T/S, and takes what it reached for the image at the next t.
    scheduler = scheduler_of(
        "DDIMScheduler", steps, timestep_spacing="linspace", clip_sample=False
    )
    denoiser, y = exact_denoiser(1e-3, 1e3), latents()
    *before_last, last = scheduler.timesteps.tolist()
    for t in before_last:
        levels = LEVELS[[t, t - 1000 // steps]]
        x = sample(denoiser, EulerSpec(), levels, y * (1 + levels[0] ** 2).sqrt()).x_BCHW
        y = x / (1 + levels[1] ** 2).sqrt()
    x = y * (1 + LEVELS[last] ** 2).sqrt()
    y = denoiser(x, LEVELS[last].expand(len(x)), None)
    assert_same(y, theirs_vp(scheduler))


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_ddim_to_the_first_level_is_euler_to_it(steps: int):
    scheduler = scheduler_of(
        "DDIMScheduler",
        steps,
        timestep_spacing="leading",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    ours = run_vp(EulerSpec(), subset(steps + 1, spacing="leading", offset=1, end="first"))
    assert_same(ours, theirs_vp(scheduler))


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_with_the_same_noises(variance: str, steps: int):
    scheduler = scheduler_of(
        "DDPMScheduler",
        steps,
        timestep_spacing="leading",
        clip_sample=False,
        variance_type=variance,
    )
    scheduler.one = scheduler.one.double()
    theirs = theirs_vp(scheduler, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    noises = [
        torch.randn(latents().shape, generator=generator, dtype=torch.float64)
        for _ in range(steps - 1)
    ]
    ours = run_vp(DdpmSolverSpec(variance=variance), subset(steps), noise=noises.__getitem__)
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_pndm_without_its_start_is_plms(steps: int):
    scheduler = scheduler_of("PNDMScheduler", steps, skip_prk_steps=True, set_alpha_to_one=True)
    assert_same(run_vp(PlmsSpec(), subset(steps)), theirs_vp(scheduler))


@pytest.mark.parametrize("steps", [10, 20])
def test_pndm(steps: int):
    scheduler = scheduler_of("PNDMScheduler", steps, skip_prk_steps=False, set_alpha_to_one=True)
    solver = PndmSpec(schedule=DdpmSubsetSpec())
    levels = nodes(solver, solver.points_for(steps + 9), 0.0, 0.0)
    ours = run_vp(solver, torch.cat((levels, levels.new_zeros(1))))
    assert_same(ours, theirs_vp(scheduler))


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_sigma(order: int, steps: int):
    scheduler = scheduler_of("DEISMultistepScheduler", steps, solver_order=order)
    # It lowers the last orders below fifteen steps only.
    solver = DeisSpec(order=order, basis="log_sigma", lower_order_final=steps < 15)
    levels = subset(steps + 1, spacing="linspace", end="none")
    assert_same(run_vp(solver, levels), theirs_vp(scheduler), FLOAT32)


def linspace(steps: int, final: str) -> Tensor:
    levels = subset(steps + 1, spacing="linspace", end="none")
    if final == "zero":
        levels[-1] = 0
    return levels


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["dpmsolver", "taylor"])
def test_dpm_solver_multistep(variant: str, order: int, steps: int, final: str):
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler",
        steps,
        solver_order=order,
        solver_type={"dpmsolver": "midpoint", "taylor": "heun"}[variant],
        final_sigmas_type=final,
    )
    solver = DpmppSpec(order=order, variant=variant, lower_order_final=steps < 15)
    assert_same(run_vp(solver, linspace(steps, final)), theirs_vp(scheduler), FLOAT32)


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("variant", ["dpmsolver", "taylor"])
def test_dpm_solver_sde_with_the_same_noises(variant: str, steps: int):
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler",
        steps,
        algorithm_type="sde-dpmsolver++",
        solver_type={"dpmsolver": "midpoint", "taylor": "heun"}[variant],
    )
    noises = torch.randn(
        steps, *latents().shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    theirs = theirs_vp(scheduler, variance_noise=noises.__getitem__)
    solver = DpmppSdeSpec(order=2, eta=1.0, variant=variant)
    ours = run_vp(solver, linspace(steps, "zero"), noise=noises.__getitem__)
    assert_same(ours, theirs, FLOAT32)


@pytest.mark.parametrize(
    ("prediction", "variant", "final"),
    [
        ("data", "bh1", "sigma_min"),
        ("data", "bh2", "sigma_min"),
        ("data", "bh2", "zero"),  # its other forms make 0 times infinity of a step to zero
        ("noise", "bh1", "sigma_min"),
        ("noise", "bh2", "sigma_min"),
    ],
)
@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order: int, steps: int, prediction: str, variant: str, final: str):
    scheduler = scheduler_of(
        "UniPCMultistepScheduler",
        steps,
        solver_order=order,
        solver_type=variant,
        predict_x0=prediction == "data",
        final_sigmas_type=final,
    )
    levels = linspace(steps, final)
    assert_same(scheduler.sigmas, levels, 1e-6)
    scheduler.sigmas = levels  # in float64, its arithmetic is too
    solver = UnipcSpec(order=order, variant=variant, prediction=prediction)
    assert_same(run_vp(solver, levels), theirs_vp(scheduler))


SOLVERS: dict[str, tuple[SolverSpec, dict[str, Any]]] = {
    "EulerDiscreteScheduler": (EulerSpec(), {}),
    "HeunDiscreteScheduler": (HeunSpec(), {}),
    "LMSDiscreteScheduler": (IpndmVSpec(order=4), {}),
    "KDPM2DiscreteScheduler": (Dpm2Spec(r=0.5), {}),
}


def calls_of(scheduler: Any) -> Tensor:
    """The levels at which it calls the network."""
    if isinstance(scheduler, diffusers.KDPM2DiscreteScheduler):
        calls = len(scheduler.timesteps)
        stages = torch.arange(calls) % 2 == 1
        return torch.where(stages, scheduler.sigmas_interpol[:calls], scheduler.sigmas[:calls])
    return scheduler.sigmas[:-1]


@pytest.mark.parametrize("karras", [False, True], ids=["linspace", "karras"])
@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("name", SOLVERS)
def test_schedulers_of_unscaled_images(name: str, steps: int, karras: bool):
    solver, settings = SOLVERS[name]
    scheduler = scheduler_of(name, steps, use_karras_sigmas=karras, **settings)
    theirs = theirs_ve(scheduler, calls_of(scheduler))
    if karras:
        levels = sigmas(PolynomialSpec(), steps, float(LEVELS[0]), float(LEVELS[-1]))
    else:
        levels = torch.unique(scheduler.sigmas[scheduler.sigmas > 0]).flip(0).double()
    ours = run(solver, torch.cat((levels, levels.new_zeros(1)))).x_BCHW
    assert_same(ours, theirs, FLOAT32)
