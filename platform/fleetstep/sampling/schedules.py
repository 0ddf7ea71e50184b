"""Time schedules: the noise levels at which a solver stops, from the highest to the lowest.

Everything is computed on the host in float64, level by level with the C library: a schedule has
tens of levels, and vectorised powers differ in the last bit between CPU types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.discrete_schedules import (
    FractionalSteps,
    accelerated_levels,
    ddpm_subset,
    iddpm,
)
from fleetstep.sampling.spec import (
    MIN_POINTS,
    AcceleratedScheduleSpec,
    DdpmSubsetSpec,
    DiscreteSpec,
    IddpmSpec,
    LevelsSpec,
    LogSnrSpec,
    PolynomialSpec,
    ScheduleFacts,
    TimeUniformSpec,
    VpTimeSpec,
)

_LEAST_TIME = 1e-3
"""eps_s of Karras et al. 2022, Table 1: the time of the VP process at which sampling ends."""


def sigmas(schedule: ScheduleFacts, points: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The positive levels of `schedule`, strictly descending; a final zero is not among them.

    A schedule that spans the range starts at sigma_max and ends at sigma_min exactly. "discrete"
    spans what the range shares with its process, and "iddpm" takes the levels of its process that
    lie in the range. The others have levels of their own, whatever the range.

    Returns:
        float64 [points], on the CPU.

    Raises:
        SamplingError: if there are fewer than two points or more than the schedule has, the range
            is not 0 < sigma_min < sigma_max, or the levels do not descend strictly.
    """
    if points < MIN_POINTS:
        raise SamplingError(
            f"a schedule has at least {MIN_POINTS} points, got {points}",
            "ask for more network calls",
        )
    if not schedule.own_range and not 0 < sigma_min < sigma_max < math.inf:
        raise SamplingError(
            f"a schedule needs 0 < sigma_min < sigma_max, got {sigma_min=:g}, {sigma_max=:g}",
            "check the noise range that the denoiser declares",
        )
    levels = _levels(schedule, points, sigma_min, sigma_max)
    _check_descent(schedule, levels)
    return torch.tensor(levels, dtype=torch.float64)


@dataclass(frozen=True)
class VpTime:
    """Time of a VP process with linear beta: log(1 + sigma^2) = beta_d t^2 / 2 + beta_min t.

    Args:
        beta_d: beta_max - beta_min.
        beta_min: beta at t = 0; slightly negative where the process is fitted to a range.
    """

    beta_d: float
    beta_min: float

    @classmethod
    def spanning(cls, sigma_min: float, sigma_max: float) -> Self:
        """The process with sigma(1e-3) = sigma_min and sigma(1) = sigma_max (Karras et al. 2022,
        Table 1, "VP").

        Raises:
            SamplingError: if that process falls somewhere between: sigma_min is far too high.
        """
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        beta_d = 2 * (low / _LEAST_TIME - high) / (_LEAST_TIME - 1)
        beta_min = high - beta_d / 2
        if min(beta_d * _LEAST_TIME, beta_d) + beta_min <= 0:
            raise SamplingError(
                f"no VP process rises from {sigma_min:g} at t = {_LEAST_TIME:g} to {sigma_max:g} "
                "at t = 1",
                "leave VP time, or end at a lower level: the schedule polynomial or logsnr, deis "
                "with basis: log_sigma, edm_ablation with coordinates: sigma",
            )
        return cls(beta_d, beta_min)

    def sigma(self, time: float) -> float:
        """Noise level at a time."""
        return math.sqrt(math.expm1((self.beta_d * time / 2 + self.beta_min) * time))

    def time(self, sigma: float) -> float:
        """Time of a noise level, by the root formula without cancellation."""
        log = math.log1p(sigma**2)
        root = math.sqrt(self.beta_min**2 + 2 * self.beta_d * log)
        if self.beta_min > 0:
            return 2 * log / (root + self.beta_min)
        return (root - self.beta_min) / self.beta_d


def _levels(
    schedule: ScheduleFacts, points: int, sigma_min: float, sigma_max: float
) -> list[float]:
    match schedule:
        case PolynomialSpec(rho=rho):
            return _polynomial(points, sigma_min, sigma_max, rho)
        case LogSnrSpec():  # lambda = -log sigma is equally spaced
            return _equally_spaced(points, sigma_min, sigma_max, math.log, math.exp)
        case TimeUniformSpec(rho=rho):
            vp = VpTime.spanning(sigma_min, sigma_max)
            return _in_time(points, sigma_min, sigma_max, vp, rho)
        case VpTimeSpec():
            vp = VpTime(schedule.beta_max - schedule.beta_min, schedule.beta_min)
            rho = 2.0 if schedule.spacing == "quadratic" else 1.0
            return _in_time(points, sigma_min, sigma_max, vp, rho)
        case DiscreteSpec(rho=rho):
            steps = FractionalSteps.of(schedule.betas, schedule.steps)
            return _in_time(points, *steps.shared_range(sigma_min, sigma_max), steps, rho)
        case IddpmSpec():
            return iddpm(schedule, points, sigma_min, sigma_max)
        case DdpmSubsetSpec():
            return ddpm_subset(schedule, points)
        case AcceleratedScheduleSpec():
            return accelerated_levels(schedule, points)
        case LevelsSpec():
            return _written_down(schedule, points)
        case _:
            raise AssertionError(f"a schedule without levels: {schedule!r}")


def _equally_spaced(
    points: int,
    sigma_min: float,
    sigma_max: float,
    forward: Callable[[float], float],
    back: Callable[[float], float],
) -> list[float]:
    """Levels whose `forward` is equally spaced, `back` undoing it."""
    first, last = forward(sigma_max), forward(sigma_min)
    done = (i / (points - 1) for i in range(1, points - 1))
    # The ends are pinned: back(forward) misses them by rounding, and a level beyond the range is
    # not a level.
    return [sigma_max, *(back(first + part * (last - first)) for part in done), sigma_min]


def _polynomial(points: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Equally spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5).

    Written for (sigma / sigma_max)^(1/rho) - 1, which keeps its digits at large rho, where all
    roots are nearly one, and does not overflow at small.
    """

    def forward(sigma: float) -> float:
        return math.expm1(math.log(sigma / sigma_max) / rho)

    def back(value: float) -> float:
        return sigma_max * math.exp(rho * math.log1p(value))

    return _equally_spaced(points, sigma_min, sigma_max, forward, back)


def _in_time(
    points: int, sigma_min: float, sigma_max: float, process: VpTime | FractionalSteps, rho: float
) -> list[float]:
    """Equally spaced in t^(1/rho) of a process."""
    return _equally_spaced(
        points,
        sigma_min,
        sigma_max,
        lambda sigma: math.pow(process.time(sigma), 1 / rho),
        lambda value: process.sigma(math.pow(value, rho)),
    )


def _written_down(schedule: LevelsSpec, points: int) -> list[float]:
    if points != schedule.fixed_points:
        raise SamplingError(
            f"the levels written down have {schedule.fixed_points} positive ones, not {points}",
            f"ask for the network calls of {schedule.fixed_points} points",
        )
    return list(schedule.sigmas[:points])


def _check_descent(schedule: ScheduleFacts, levels: list[float]) -> None:
    for before, after in pairwise(levels):
        if not math.inf > before > after > 0:
            raise SamplingError(
                f"{schedule.label} with {len(levels)} points does not descend between finite, "
                f"positive levels: {after:.17g} follows {before:.17g}",
                "use fewer points, or another schedule for this range",
            )
