"""What our solvers' own arithmetic costs beside diffusers' schedulers: a trajectory with a network
that costs nothing.

Ours is everything that `sample` does, coefficients and checks included; theirs is the calls of
`step` alone, their levels and coefficients set up beforehand. Each gets the network's output in
the form it asks for: D for ours, eps for theirs. Both carry a float32 state.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from pairs import PAIRS, Ratio, cpu_seconds
from torch import Tensor

from fleetstep.sampling.spec import (
    DdpmSolverSpec,
    DeisSpec,
    Dpm2Spec,
    DpmppSdeSpec,
    DpmppSpec,
    EulerSpec,
    HeunSpec,
    IpndmVSpec,
    PlmsSpec,
    SolverSpec,
    UnipcSpec,
)
from fleetstep.sampling.trajectory import sample

STEPS = 20
_SHAPES = ((16, 3, 32, 32), (16, 3, 64, 64))
_TIMES = 5  # how often a trajectory, some milliseconds, is repeated

CASES: tuple[tuple[SolverSpec, str, dict[str, Any]], ...] = (
    (EulerSpec(), "DDIMScheduler", {"clip_sample": False}),
    (EulerSpec(), "EulerDiscreteScheduler", {}),
    (HeunSpec(), "HeunDiscreteScheduler", {}),
    (Dpm2Spec(), "KDPM2DiscreteScheduler", {}),
    (IpndmVSpec(), "LMSDiscreteScheduler", {}),
    (PlmsSpec(), "PNDMScheduler", {"skip_prk_steps": True}),
    (DeisSpec(order=3, basis="log_sigma"), "DEISMultistepScheduler", {"solver_order": 3}),
    (DpmppSpec(order=2), "DPMSolverMultistepScheduler", {"solver_order": 2}),
    (DpmppSpec(order=3), "DPMSolverMultistepScheduler", {"solver_order": 3}),
    (UnipcSpec(order=3), "UniPCMultistepScheduler", {"solver_order": 3}),
    (DdpmSolverSpec(), "DDPMScheduler", {"clip_sample": False}),
    (
        DpmppSdeSpec(order=2),
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    ),
)


class _Free:
    """A network whose output is at hand."""

    def __init__(self, output_BCHW: Tensor) -> None:
        self.output_BCHW, self.nfe, self.sigma_min, self.sigma_max = output_BCHW, 0, 1e-3, 1e3

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        return self.output_BCHW


def solvers() -> list[Ratio]:
    """Every solver over the scheduler that takes the same steps, at both sizes."""
    _keep_pages()
    return [_ratio(*case, shape) for case in CASES for shape in _SHAPES]


def _keep_pages() -> None:
    """Freed memory stays with the process: else the layout of the heap decides which side gives
    its images back after every operation and pays for new pages, up to ten times its arithmetic.
    """
    trim_threshold, mmap_threshold = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 1 << 25)


def _ratio(
    solver: SolverSpec, name: str, settings: dict[str, Any], shape: tuple[int, ...]
) -> Ratio:
    ours, theirs = _ours(solver, shape), _theirs(name, settings, shape)
    pairs = []
    for k in range(PAIRS + 1):
        seconds = [_steps_alone(*way) for way in (theirs, ours)]
        if k > 0:  # the first warms up
            pairs.append((seconds[0], seconds[1]))
    size = "x".join(map(str, shape))
    return Ratio(f"{STEPS} steps of {solver.label}, {size}", name, "ours", tuple(pairs))


def _steps_alone(prepared: Callable[[], Any], run: Callable[[Any], None]) -> float:
    ready = [prepared() for _ in range(_TIMES)]
    return cpu_seconds(lambda: [run(one) for one in ready])


def _ours(
    solver: SolverSpec, shape: tuple[int, ...]
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    output_BCHW, x_T, noise_BCHW = (
        torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(3)
    )
    levels = torch.cat((torch.logspace(2, -2, STEPS, dtype=torch.float64), torch.zeros(1)))

    @torch.inference_mode()
    def run(denoiser: _Free) -> None:
        sample(denoiser, solver, levels, x_T, noise=lambda k: noise_BCHW, dtype=torch.float32)

    return lambda: _Free(output_BCHW), run


def _theirs(
    name: str, settings: dict[str, Any], shape: tuple[int, ...]
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    import diffusers

    output_BCHW, x_T, noise_BCHW = (
        torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(3)
    )
    drawn = {"variance_noise": noise_BCHW} if "algorithm_type" in settings else {}

    def prepared() -> Any:
        scheduler = getattr(diffusers, name)(**settings)
        scheduler.set_timesteps(STEPS)
        scheduler.is_scale_input_called = True  # else some of them complain, at a cost
        return scheduler

    @torch.inference_mode()
    def run(scheduler: Any) -> None:
        x_BCHW = x_T
        for t in scheduler.timesteps:
            x_BCHW = scheduler.step(output_BCHW, t, x_BCHW, return_dict=False, **drawn)[0]

    return prepared, run
