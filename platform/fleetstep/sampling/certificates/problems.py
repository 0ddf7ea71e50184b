"""The closed-form problems of the certificates.

Legend: B latents, K components.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from fleetstep.sampling.exact import GaussianMixture
from fleetstep.sampling.spec import SIGMA_MAX

# The flow of `plane` from 80 z down to 0.002, by DOP853 on dx / d log(sigma) = x - D with
# rtol = atol = 1e-13.
_LATENTS = ((0.5, -1.25), (-0.75, 0.3125), (1.5, 0.875), (-0.125, -2.0))
_TRUTH = (
    (0.0859597151915786, -0.7485367794495941),
    (-0.6380225588307596, -0.23772340954481913),
    (0.6053608430306706, 0.5026216103720583),
    (-0.0545189308427533, -0.8272462912512457),
)

GAUSSIAN: Final = ((1.0, 0.5, 0.09),)
"""(weight, mean, variance) of each component: N(0.5, 0.09)."""

WIDE: Final = ((1.0, 0.0, 4.0),)
"""N(0, 4)."""

TWO_MODES: Final = ((0.6, -0.7, 0.04), (0.4, 0.8, 0.09))
"""0.6 N(-0.7, 0.04) + 0.4 N(0.8, 0.09)."""

Line = tuple[tuple[float, float, float], ...]


def plane() -> GaussianMixture:
    """Three Gaussians in two dimensions, as images [2, 1, 1]."""
    return GaussianMixture(
        float64([0.5, 0.3, 0.2]),
        float64([[-0.6, -0.3], [0.5, 0.4], [0.1, -0.7]]),
        float64([[0.04, 0.0225], [0.01, 0.0625], [0.0225, 0.01]]),
    )


def plane_start() -> Tensor:
    """x_T of the four trajectories whose ends are known: float64 [4, 2, 1, 1] at sigma 80."""
    return SIGMA_MAX * float64(_LATENTS)[:, :, None, None]


def plane_truth() -> Tensor:
    """Their exact ends at sigma 0.002, float64 [4, 2, 1, 1]."""
    return float64(_TRUTH)[:, :, None, None]


def on_a_line(components: Line) -> GaussianMixture:
    """A mixture in one dimension, as images [1, 1, 1], at any level: schedule (13) has its own."""
    weights, means, variances = (float64(column) for column in zip(*components, strict=True))
    return GaussianMixture(
        weights, means[:, None], variances[:, None], sigma_min=0.0, sigma_max=math.inf
    )


def log_density(components: Line, sigma: float, x: Tensor) -> Tensor:
    """log p of the data with noise sigma added, at x; float64 of x's shape."""
    terms = [
        math.log(weight)
        - 0.5 * ((x - mean).square() / (variance + sigma**2) + math.log(variance + sigma**2))
        for weight, mean, variance in components
    ]
    return torch.stack(terms).logsumexp(0) - 0.5 * math.log(2 * math.pi)


def distribution(components: Line, sigma: float, x: Tensor) -> Tensor:
    """P(X <= x) of the data with noise sigma added; float64 of x's shape."""
    return torch.stack(
        [
            weight * torch.special.ndtr((x - mean) / math.sqrt(variance + sigma**2))
            for weight, mean, variance in components
        ]
    ).sum(0)


def float64(values: object) -> Tensor:
    """A tensor of these numbers."""
    return torch.tensor(values, dtype=torch.float64)
