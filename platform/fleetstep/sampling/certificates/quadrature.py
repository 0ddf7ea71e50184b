"""The law at the end of a stochastic sampler on a mixture in one dimension, by quadrature.

A step of a sampler that has no memory is x' = m(x + a n_0) + c n_1 or m(x) + c n_0: a convolution
with N(0, a^2), the map m, a convolution with N(0, c^2). a and c are of the solver alone, so they
are read off its step on a point mass, where m is affine; m itself is its step without noise on the
mixture. Densities are carried on grids by the trapezoidal rule, which converges exponentially here
once the grid resolves the kernels.

Legend: G points of a grid, H points of the next.
"""

from __future__ import annotations

import math
from itertools import chain, repeat
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fleetstep.sampling.certificates.problems import Line, log_density, on_a_line
from fleetstep.sampling.denoiser import Denoiser
from fleetstep.sampling.exact import PointMass
from fleetstep.sampling.solvers.build import build_step
from fleetstep.sampling.solvers.step import State, Step
from fleetstep.sampling.spec import SolverSpec
from fleetstep.sampling.walk import Walk

_REACH: Final = 8.0
"""Standard deviations of the outermost components that a grid holds."""

_SPACING: Final = 0.5
"""Of a grid, in standard deviations of the kernel that reads it; halved, it changes no total
variation here by 2e-5 of itself."""

_FINER: Final = 16
"""How much finer the last grid is: where two densities cross, the rule is only of order two."""

_ROWS: Final = 256


class _Density(NamedTuple):
    x_G: Tensor
    values_G: Tensor


def end_total_variation(solver: SolverSpec, data: Line, levels: Tensor) -> float:
    """Total variation of the end's law to the data's at the last level.

    Args:
        solver: stochastic, and without a memory.
        data: the mixture.
        levels: positive, descending; x_T is N(0, 1 + sigma_T^2).
    """
    steps = [float(level) for level in levels]
    step = build_step(solver, steps)
    kernels = [_kernels(step, i) for i in range(len(steps) - 1)]
    density = _start(steps[0], _first(kernels[0]))
    mixture = on_a_line(data)
    with torch.inference_mode():
        for i, (before, after) in enumerate(kernels):
            if before > 0:
                x_H = _grid(data, math.hypot(steps[i], before), after)
                density = _spread(density, density.x_G, before, x_H)
            moved_G = _stepped(step, mixture, i, density.x_G, (0.0, 0.0))
            x_H = _grid(
                data,
                steps[i + 1],
                _first(kernels[i + 1]) if i + 1 < len(kernels) else after / _FINER,
            )
            density = _spread(density, moved_G, after, x_H)
    target_G = log_density(data, steps[-1], density.x_G).exp()
    return 0.5 * float(torch.trapezoid((density.values_G - target_G).abs(), density.x_G))


def _kernels(step: Step, i: int) -> tuple[float, float]:
    """(a, c) of the i-th step; a is 0 for a step that draws one noise, after the map."""
    point = PointMass(torch.zeros(1, 1, 1, dtype=torch.float64))
    at = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def end(*noises: float) -> tuple[float, float]:
        zero, one = _stepped(step, point, i, at, noises).tolist()
        return zero, one

    zero, one = end(0.0, 0.0)
    last = abs(end(0.0, 1.0)[0] - zero)
    if last == 0:  # the second noise is never asked for
        return 0.0, abs(end(1.0, 1.0)[0] - zero)
    return abs((end(1.0, 0.0)[0] - zero) / (one - zero)), last


def _stepped(
    step: Step, denoiser: Denoiser, i: int, x_G: Tensor, noises: tuple[float, ...]
) -> Tensor:
    """Where the i-th step takes these points, by the noises given in turn; the last repeats."""
    drawn = chain(noises, repeat(noises[-1]))
    walk = Walk(
        denoiser, None, lambda k: torch.full((1, 1, 1, 1), next(drawn), dtype=torch.float64)
    )
    return step(walk, State(i, x_G[:, None, None, None])).x_BCHW.flatten()


def _start(sigma: float, width: float) -> _Density:
    """N(0, 1 + sigma^2)."""
    unit = ((1.0, 0.0, 1.0),)
    x_G = _grid(unit, sigma, width)
    return _Density(x_G, log_density(unit, sigma, x_G).exp())


def _first(kernels: tuple[float, float]) -> float:
    """Standard deviation of the first kernel that a step's density meets."""
    before, after = kernels
    return before or after


def _grid(data: Line, sigma: float, width: float) -> Tensor:
    """Over the data with noise sigma added, for a kernel of this width."""
    low = min(mean - _REACH * math.sqrt(variance + sigma**2) for _, mean, variance in data)
    high = max(mean + _REACH * math.sqrt(variance + sigma**2) for _, mean, variance in data)
    points = math.ceil((high - low) / (_SPACING * width)) + 1
    return torch.linspace(low, high, points, dtype=torch.float64)


def _spread(density: _Density, moved_G: Tensor, width: float, x_H: Tensor) -> _Density:
    """The density on x_H of what stands at moved_G, each with N(0, width^2) added."""
    spacing = float(density.x_G[1] - density.x_G[0])
    mass_G = density.values_G * (spacing / (width * math.sqrt(2 * math.pi)))
    rows = [
        torch.exp(-0.5 * ((part_H[:, None] - moved_G) / width).square()) @ mass_G
        for part_H in torch.split(x_H, _ROWS)
    ]
    return _Density(x_H, torch.cat(rows))
