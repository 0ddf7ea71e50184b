"""One trajectory: a solver carries a batch down the levels of a schedule, and calls are counted.

Legend: B batch, C channels, H W pixels, N points of a schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.denoiser import Denoiser, shared_range
from fleetstep.sampling.guidance import calls_per_evaluation
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.non_finite import not_finite, raise_where
from fleetstep.sampling.solvers.build import build_step
from fleetstep.sampling.solvers.rk45 import integrate
from fleetstep.sampling.solvers.step import Problem, State, Step
from fleetstep.sampling.spec import Rk45Spec, SolverSpec
from fleetstep.sampling.walk import FirstCall, Noise, Walk

# A level may miss the end of the denoiser's range by the rounding of a list that was written down
# or computed elsewhere.
_RANGE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Result:
    """The end of a trajectory.

    Args:
        x_BCHW: the images, in the state's dtype.
        nfe: network calls per image, counted by the denoiser; a first call that was given counts.
        sigmas: the levels passed, float64, with the zero at the end if the solver goes there.
        trace: the image at every one of `sigmas`, the first being x_T; None unless asked for.
    """

    x_BCHW: Tensor
    nfe: int
    sigmas: Tensor
    trace: tuple[Tensor, ...] | None = None


def levels_for(denoiser: Denoiser, solver: SolverSpec, nfe: int | None) -> Tensor:
    """The levels on which `solver` makes exactly `nfe` calls: float64, descending.

    The calls are the network's, of which a guided denoiser makes two at a time. The range is
    [0.002, 80] cut to what the denoiser knows, unless the schedule has levels of its own. A zero
    follows the positive levels where solver or schedule ends there.

    Args:
        denoiser: what will be sampled.
        solver: with its schedule.
        nfe: network calls per image; None for a solver that chooses them itself, which gets the
            two ends of the range.

    Raises:
        SamplingError: if `nfe` cannot be reached, or the ranges do not overlap.
    """
    low, high = shared_range(denoiser)
    if nfe is None:
        if not solver.adaptive:
            raise SamplingError(
                f"{solver.label} needs a number of network calls, got none",
                "give nfe; only rk45 chooses its own",
            )
        return torch.tensor([high, low], dtype=torch.float64)
    points = solver.points_for(nfe, calls_per_evaluation(denoiser))
    levels = nodes(solver, points, low, high)
    return torch.cat((levels, levels.new_zeros(1))) if solver.ends_at_zero else levels


def sample(
    denoiser: Denoiser,
    solver: SolverSpec,
    sigmas: Tensor,
    x_T: Tensor,
    labels: Tensor | None = None,
    *,
    noise: Noise | None = None,
    first_call: FirstCall | None = None,
    dtype: torch.dtype = torch.float64,
    trace: bool = False,
) -> Result:
    """Carry x_T down the levels with `solver`.

    Gradients are left as the caller has them: wrap in `torch.inference_mode()` to only draw
    images.

    Args:
        denoiser: see `Denoiser`.
        solver: which solver.
        sigmas: strictly descending levels, positive but for the last, which may be zero; a solver
            that ends at zero adds it if it is missing.
        x_T: images at level sigmas[0], that is sigmas[0] times standard normal noise;
            [B, C, H, W].
        labels: int64 class ids [B], or None.
        noise: what a stochastic solver draws; others ignore it.
        first_call: the first evaluation, if it was made already; for deterministic solvers.
        dtype: of the state; the network's precision is its own affair.
        trace: keep the image at every level.

    Raises:
        SamplingError: if the levels do not descend, leave the denoiser's range, the labels do not
            match the batch, a stochastic solver has no noise, a first call is of another level or
            for a stochastic solver, or the counted calls are not the declared ones.
        NonFiniteError: if the image is not finite; it names the step and the level of the first
            network output that was not.
    """
    levels = [float(level) for level in sigmas]
    if solver.goes_to_zero and levels and levels[-1] != 0:
        levels.append(0.0)
    _check_levels(levels, denoiser)
    x_T = x_T.to(dtype)
    _check_inputs(solver, levels, x_T, labels, noise, first_call)
    positive, to_zero = sum(level > 0 for level in levels), levels[-1] == 0
    walk = Walk(
        denoiser,
        labels,
        _matching(noise, x_T),
        starts_analytically=solver.starts_analytically,
        thresholding=solver.chosen_thresholding,
        first_call=first_call,
    )
    counted_before = denoiser.nfe
    if isinstance(solver, Rk45Spec):
        return _adaptive(walk, solver, levels, x_T, trace)

    # Before the walk: it refuses too few levels.
    declared = solver.nfe_for(positive, calls_per_evaluation(denoiser), to_zero=to_zero)
    step = build_step(solver, levels, denoiser.sigma_max)
    visited, state = _walked(step, walk, State(0, x_T), len(levels) - 1, keep=trace)
    x_BCHW = state.x_BCHW
    if solver.denoise_to_zero:
        x_BCHW = walk.denoise(x_BCHW, levels[-1])
        levels.append(0.0)
        visited.append(x_BCHW)
    counted = denoiser.nfe - counted_before + walk.calls_given
    if not bool(torch.isfinite(x_BCHW).all()):
        steps = levels[:-1] if solver.denoise_to_zero else levels
        raise_where(step, walk.again(), State(0, x_T), steps, x_BCHW)
    if counted != declared:
        raise SamplingError(
            f"{solver.label} declares {declared} network calls on {positive} points, "
            f"the denoiser counted {counted}",
            "a denoiser adds one to `nfe` in each call, and a solver declares what it calls",
        )
    passed = torch.tensor(levels, dtype=torch.float64)
    return Result(x_BCHW, counted, passed, tuple(visited) if trace else None)


def first_call_of(
    denoiser: Denoiser,
    solver: SolverSpec,
    sigma: float,
    x_T: Tensor,
    labels: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> FirstCall:
    """The evaluation that every deterministic solver makes first, for `sample` to reuse.

    The features of the call are kept for a learned `solver`, which alone reads them; D is before
    thresholding, so solvers that threshold and solvers that do not share it.
    """
    walk = Walk(denoiser, labels)
    x_T = x_T.to(dtype)
    if solver.learned:
        denoised_BCHW, features = walk.denoise_with_features(x_T, sigma)
        return FirstCall(sigma, denoised_BCHW, features)
    return FirstCall(sigma, walk.denoise(x_T, sigma))


def _matching(noise: Noise | None, x_BCHW: Tensor) -> Noise | None:
    """Noise of the state's shape and in its dtype: a wider one would lift the state to its own.

    Raises (when it is asked for):
        SamplingError: the shape is another; broadcast, it would be the same for several images.
    """
    if noise is None:
        return None

    def drawn(k: int) -> Tensor:
        noise_BCHW = noise(k)
        if noise_BCHW.shape != x_BCHW.shape:
            raise SamplingError(
                f"noise {k} has shape {tuple(noise_BCHW.shape)}, the images have "
                f"{tuple(x_BCHW.shape)}",
                "give standard normal noise of the images' shape for every k",
            )
        return noise_BCHW.to(x_BCHW)

    return drawn


def _walked(
    step: Step, problem: Problem, state: State, steps: int, *, keep: bool
) -> tuple[list[Tensor], State]:
    """The images passed (only the first unless `keep`), and the last state."""
    visited = [state.x_BCHW]
    for _ in range(steps):
        state = step(problem, state)
        if keep:
            visited.append(state.x_BCHW)
    return visited, state


def _adaptive(
    walk: Walk, solver: Rk45Spec, levels: list[float], x_T: Tensor, trace: bool
) -> Result:
    before = walk.denoiser.nfe
    visited = integrate(walk, solver, levels, x_T)
    if solver.denoise_to_zero:
        visited.append(walk.denoise(visited[-1], levels[-1]))
        levels.append(0.0)
    counted = walk.denoiser.nfe - before
    if not bool(torch.isfinite(visited[-1]).all()):
        raise NonFiniteError(
            f"{solver.label} reached an image that is not finite between {levels[0]:g} and "
            f"{levels[-1]:g}",
            "suspect weights or precision: look at the run's losses, or use a float32 network",
            int(not_finite(visited[-1]).nonzero()[0, 0]),
        )
    passed = torch.tensor(levels, dtype=torch.float64)
    return Result(visited[-1], counted, passed, tuple(visited) if trace else None)


def _check_levels(levels: list[float], denoiser: Denoiser) -> None:
    positive = levels[:-1] if levels and levels[-1] == 0 else levels
    descending = all(before > after for before, after in pairwise(levels))
    if not positive or not descending or not 0 < positive[-1] <= positive[0] < math.inf:
        shown = ", ".join(f"{level:g}" for level in levels)
        raise SamplingError(
            "levels must be positive (the last may be zero), finite and strictly descending, got "
            f"[{shown}]",
            "take them from `levels_for`; a solver that ends at zero adds the zero itself",
        )
    low = denoiser.sigma_min * (1 - _RANGE_TOLERANCE)
    high = denoiser.sigma_max * (1 + _RANGE_TOLERANCE)
    if positive[-1] < low or positive[0] > high:
        raise SamplingError(
            f"levels from {positive[0]:g} to {positive[-1]:g} leave the range "
            f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}] that the network was trained on",
            "use a schedule that spans a network's range, such as polynomial or logsnr; "
            "ddpm_subset, accelerated and levels have levels of their own",
        )


def _check_inputs(
    solver: SolverSpec,
    levels: list[float],
    x_T: Tensor,
    labels: Tensor | None,
    noise: Noise | None,
    first_call: FirstCall | None,
) -> None:
    if labels is not None and labels.shape != x_T.shape[:1]:
        raise SamplingError(
            f"one label per image is needed: got shape {tuple(labels.shape)}, {len(x_T)} images",
            "pass int64 class ids of shape [B]",
        )
    if solver.stochastic and noise is None:
        raise SamplingError(
            f"{solver.label} draws noise, and was given none",
            "pass noise=, a function from k to standard normal noise of the images' shape",
        )
    if solver.denoise_to_zero and levels[-1] == 0:
        raise SamplingError(
            "denoise_to_zero: the levels already end at zero", "use denoise_to_zero: false"
        )
    if first_call is None:
        return
    if solver.stochastic or solver.adaptive:
        raise SamplingError(
            f"{solver.label} does not start with D(x_T): a first call cannot be shared with it",
            "leave first_call out",
        )
    given = first_call.denoised_BCHW
    if (given.dtype, given.device) != (x_T.dtype, x_T.device):
        raise SamplingError(
            f"the first call given is {given.dtype} on {given.device}, the state {x_T.dtype} on "
            f"{x_T.device}",
            "give the call of this state, see first_call_of",
        )
    if first_call.sigma != levels[0] or given.shape != x_T.shape:
        raise SamplingError(
            f"the first call given is at sigma = {first_call.sigma:g} for "
            f"{tuple(given.shape)}, not at {levels[0]:g} for "
            f"{tuple(x_T.shape)}",
            "give the call of this batch and these levels, see first_call_of",
        )
