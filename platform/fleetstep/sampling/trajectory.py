"""One trajectory: a solver carries a batch down the levels of a schedule, and calls are counted.

Legend: B batch, C channels, H W pixels, N points of a schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.guidance import calls_per_evaluation
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.solvers.build import build_step
from fleetstep.sampling.solvers.step import Denoise, State
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, ScheduleSpec, SolverSpec

# A level may miss the end of the denoiser's range by the rounding of a list that was written down
# or computed elsewhere.
_RANGE_TOLERANCE = 1e-9


class Denoiser(Protocol):
    """What a solver samples from: D(x; sigma), the expected clean image; it counts its calls."""

    @property
    def nfe(self) -> int:
        """Network calls per image made so far."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level the network knows."""

    @property
    def sigma_max(self) -> float:
        """Highest noise level the network knows."""

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None, /) -> Tensor:
        """D_BCHW in the dtype of x; sigma_B is float64, labels_B int64 or None."""


@dataclass(frozen=True)
class Result:
    """The end of a trajectory.

    Args:
        x_BCHW: the images, in the state's dtype.
        nfe: network calls per image, counted by the denoiser.
        sigmas: the levels passed, float64, with the zero at the end if the solver goes there.
        trace: the image at every one of `sigmas`, the first being x_T; None unless asked for.
    """

    x_BCHW: Tensor
    nfe: int
    sigmas: Tensor
    trace: tuple[Tensor, ...] | None = None


def levels_for(
    denoiser: Denoiser, solver: SolverSpec, nfe: int, schedule: ScheduleSpec | None = None
) -> Tensor:
    """The positive levels on which `solver` makes exactly `nfe` calls: float64 [N], descending.

    The calls are the network's, of which a guided denoiser makes two at a time. The range is
    [0.002, 80] cut to what the denoiser knows; `schedule` None is the solver's own default.

    Raises:
        SamplingError: if `nfe` cannot be reached, or the ranges do not overlap.
    """
    low, high = max(SIGMA_MIN, denoiser.sigma_min), min(SIGMA_MAX, denoiser.sigma_max)
    points = solver.points_for(nfe, calls_per_evaluation(denoiser))
    return sigmas(schedule or solver.default_schedule, points, low, high)


def sample(
    denoiser: Denoiser,
    solver: SolverSpec,
    sigmas: Tensor,
    x_T: Tensor,
    labels: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    trace: bool = False,
) -> Result:
    """Carry x_T down the levels with `solver`.

    Gradients are left as the caller has them: wrap in `torch.inference_mode()` to only draw
    images.

    Args:
        denoiser: see `Denoiser`.
        solver: which solver.
        sigmas: positive levels, [N], strictly descending; a solver that ends at zero adds the zero
            itself.
        x_T: images at level sigmas[0], that is sigmas[0] times standard normal noise;
            [B, C, H, W].
        labels: int64 class ids [B], or None.
        dtype: of the state; the network's precision is its own affair.
        trace: keep the image at every level.

    Raises:
        SamplingError: if the levels do not descend, leave the denoiser's range, the labels do not
            match the batch, or the counted calls are not the declared ones.
    """
    levels = [float(level) for level in sigmas]
    _check_levels(levels, denoiser)
    if labels is not None and labels.shape != x_T.shape[:1]:
        raise SamplingError(
            f"one label per image is needed: got shape {tuple(labels.shape)}, {len(x_T)} images",
            "pass int64 class ids of shape [B]",
        )
    declared = solver.nfe_for(len(levels), calls_per_evaluation(denoiser))
    counted_before = denoiser.nfe
    if solver.ends_at_zero:
        levels.append(0.0)

    state = State(0, x_T.to(dtype))
    visited = [state.x_BCHW]
    step, denoise = build_step(solver, levels), _bound(denoiser, labels)
    for _ in range(len(levels) - 1):
        state = step(denoise, state)
        if trace:
            visited.append(state.x_BCHW)

    counted = denoiser.nfe - counted_before
    if counted != declared:
        raise SamplingError(
            f"{solver.label} declares {declared} network calls on {len(sigmas)} points, "
            f"the denoiser counted {counted}",
            "a denoiser adds one to `nfe` in each call, and a solver declares what it calls",
        )
    passed = torch.tensor(levels, dtype=torch.float64)
    return Result(state.x_BCHW, counted, passed, tuple(visited) if trace else None)


def _bound(denoiser: Denoiser, labels: Tensor | None) -> Denoise:
    """The denoiser at one level for the whole batch, with its labels."""

    def denoise(x_BCHW: Tensor, sigma: float) -> Tensor:
        sigma_B = torch.full(x_BCHW.shape[:1], sigma, dtype=torch.float64, device=x_BCHW.device)
        return denoiser(x_BCHW, sigma_B, labels)

    return denoise


def _check_levels(levels: list[float], denoiser: Denoiser) -> None:
    descending = all(before > after for before, after in pairwise(levels))
    if not levels or not descending or not 0 < levels[-1] <= levels[0] < math.inf:
        shown = ", ".join(f"{level:g}" for level in levels)
        raise SamplingError(
            f"levels must be positive, finite and strictly descending, got [{shown}]",
            "take them from `levels_for`; a solver that ends at zero adds the zero itself",
        )
    low = denoiser.sigma_min * (1 - _RANGE_TOLERANCE)
    high = denoiser.sigma_max * (1 + _RANGE_TOLERANCE)
    if levels[-1] < low or levels[0] > high:
        raise SamplingError(
            f"levels from {levels[0]:g} to {levels[-1]:g} leave the range "
            f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}] that the network was trained on",
            "take the levels from `levels_for`, which cuts them to the denoiser's range",
        )
