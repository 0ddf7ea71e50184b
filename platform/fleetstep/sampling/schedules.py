"""Time schedules: the noise levels at which a solver stops, from the highest to the lowest.

Everything is computed on the host in float64, level by level with the C library: a schedule has
tens of levels, and vectorised powers differ in the last bit between CPU types.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import MIN_POINTS, LogSnrSpec, PolynomialSpec


def sigmas(
    schedule: PolynomialSpec | LogSnrSpec, points: int, sigma_min: float, sigma_max: float
) -> Tensor:
    """The levels of `schedule`, strictly descending from sigma_max to sigma_min exactly.

    Returns:
        float64 [points], on the CPU.

    Raises:
        SamplingError: if there are fewer than two points, or the range is not 0 < sigma_min <
            sigma_max.
    """
    if points < MIN_POINTS:
        raise SamplingError(
            f"a schedule has at least {MIN_POINTS} points, got {points}",
            "ask for more network calls",
        )
    if not 0 < sigma_min < sigma_max < math.inf:
        raise SamplingError(
            f"a schedule needs 0 < sigma_min < sigma_max, got {sigma_min=:g}, {sigma_max=:g}",
            "check the noise range that the denoiser declares",
        )
    inside = (
        _level(schedule, i / (points - 1), sigma_min, sigma_max) for i in range(1, points - 1)
    )
    # The ends are pinned: x^(1/rho)^rho misses them by rounding, and a level beyond the range is
    # not a level.
    levels = torch.tensor([sigma_max, *inside, sigma_min], dtype=torch.float64)
    if not bool((levels.diff() < 0).all()):
        raise SamplingError(
            f"{schedule.label} with {points} points on [{sigma_min:g}, {sigma_max:g}] "
            "does not descend: neighbouring levels are equal in float64",
            "use fewer points",
        )
    return levels


def _level(
    schedule: PolynomialSpec | LogSnrSpec, done: float, sigma_min: float, sigma_max: float
) -> float:
    match schedule:
        case PolynomialSpec(rho=rho):  # Karras et al. 2022, eq. 5
            high, low = math.pow(sigma_max, 1 / rho), math.pow(sigma_min, 1 / rho)
            return math.pow(high + done * (low - high), rho)
        case LogSnrSpec():  # lambda = -log sigma is equally spaced
            high, low = math.log(sigma_max), math.log(sigma_min)
            return math.exp(high + done * (low - high))
