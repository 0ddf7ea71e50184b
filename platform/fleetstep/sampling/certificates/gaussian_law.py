"""The law at the end of a stochastic sampler on Gaussian data, exactly.

There every step is affine in the image and in the noise, so the end is Gaussian too:
x = a x_T + b + sum_k c_k n_k. One trajectory and one backward pass through the solver's own steps
give a and every c_k; its value at x_T = 0 without noise is b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fleetstep.sampling.certificates.problems import Line, log_density, on_a_line
from fleetstep.sampling.spec import SolverSpec
from fleetstep.sampling.trajectory import sample

_REACH, _GRID = 9.0, 20001


@dataclass(frozen=True)
class GaussianLaw:
    """N(mean, variance)."""

    mean: float
    variance: float


def end_law(solver: SolverSpec, data: Line, levels: Tensor, start_variance: float) -> GaussianLaw:
    """Of x at the last level, where x_T is N(0, start_variance).

    Args:
        solver: stochastic or not; with a memory or not.
        data: one Gaussian.
        levels: as `sample` takes them.
        start_variance: sigma_T^2 as solvers start, or 1 + sigma_T^2 as the data are there.
    """
    x_T = torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    drawn: dict[int, Tensor] = {}

    def noise(k: int) -> Tensor:
        return drawn.setdefault(k, torch.zeros_like(x_T, requires_grad=True))

    end = sample(on_a_line(data), solver, levels, x_T, noise=noise).x_BCHW
    reached = torch.autograd.grad(end.sum(), [x_T, *drawn.values()])
    start, *noises = (float(slope) for slope in reached)
    variance = start_variance * start**2 + math.fsum(slope**2 for slope in noises)
    return GaussianLaw(float(end.detach()), variance)


def total_variation_between(law: GaussianLaw, data: Line, sigma: float) -> float:
    """Of a Gaussian law to that of Gaussian data with noise sigma added; by quadrature."""
    ((_, mean, variance),) = data
    width = math.sqrt(max(law.variance, variance + sigma**2))
    x_G = mean + _REACH * width * torch.linspace(-1, 1, _GRID, dtype=torch.float64)
    log_data_G = log_density(data, sigma, x_G)
    log_law_G = log_density(((1.0, law.mean, law.variance),), 0.0, x_G)
    # The difference as it is, not that of two nearly equal densities.
    difference_G = log_data_G.exp() * torch.expm1(log_law_G - log_data_G)
    return 0.5 * float(torch.trapezoid(difference_G.abs(), x_G))


def distance(law: GaussianLaw, data: Line, sigma: float) -> float:
    """Wasserstein-2, in the image's units, to the data with noise sigma added."""
    ((_, mean, variance),) = data
    spread = math.sqrt(law.variance) - math.sqrt(variance + sigma**2)
    return math.hypot(law.mean - mean, spread)
