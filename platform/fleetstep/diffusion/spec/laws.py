"""Laws of noise levels and schedules in plain Python: what a config's checks compute with."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import NormalDist
from typing import Literal, Protocol

from fleetstep.diffusion.spec.processes import DdpmSpec, EdmSpec, ProcessSpec, VeSpec, VpSpec

_NORMAL = NormalDist()


class Law(Protocol):
    """A law of noise levels sigma > 0."""

    def cdf(self, sigma: float) -> float:
        """Probability of a noise level at or below `sigma`."""

    def tail(self, sigma: float) -> float:
        """Probability of a noise level above `sigma`, without the cancellation of 1 - cdf."""

    def icdf(self, u: float) -> float:
        """The noise level below which a share `u` in (0, 1) lies."""


@dataclass(frozen=True)
class LogNormalLaw:
    """ln sigma ~ N(mean, std^2)."""

    mean: float
    std: float

    def cdf(self, sigma: float) -> float:
        """Probability of a noise level at or below `sigma` > 0."""
        return _NORMAL.cdf((math.log(sigma) - self.mean) / self.std)

    def tail(self, sigma: float) -> float:
        """Probability of a noise level above `sigma` > 0, without the cancellation of 1 - cdf."""
        return _NORMAL.cdf((self.mean - math.log(sigma)) / self.std)

    def icdf(self, u: float) -> float:
        """The noise level below which a share `u` in (0, 1) lies."""
        return math.exp(self.mean + self.std * _NORMAL.inv_cdf(u))


@dataclass(frozen=True)
class UniformTimeLaw:
    """VP's: t uniform on (t_min, 1], sigma^2 = exp(B(t)) - 1."""

    beta_min: float
    beta_d: float
    t_min: float

    def cdf(self, sigma: float) -> float:
        """(t(sigma) - t_min) / (1 - t_min), within [0, 1]."""
        return min(max((self._time(sigma) - self.t_min) / (1 - self.t_min), 0.0), 1.0)

    def tail(self, sigma: float) -> float:
        """(1 - t(sigma)) / (1 - t_min), within [0, 1]."""
        return min(max((1 - self._time(sigma)) / (1 - self.t_min), 0.0), 1.0)

    def icdf(self, u: float) -> float:
        """The noise level at t = t_min + u (1 - t_min)."""
        t = self.t_min + u * (1 - self.t_min)
        return math.sqrt(math.expm1(self.beta_min * t + self.beta_d * t * t / 2))

    def _time(self, sigma: float) -> float:
        b = math.log1p(sigma * sigma)
        # 2 b / (root + beta_min): the usual (root - beta_min) / beta_d cancels for small sigma.
        return 2 * b / (math.sqrt(self.beta_min**2 + 2 * self.beta_d * b) + self.beta_min)


@dataclass(frozen=True)
class LogUniformLaw:
    """VE's: ln sigma uniform between the ends."""

    sigma_min: float
    sigma_max: float

    def cdf(self, sigma: float) -> float:
        """Share of the logarithmic range at or below sigma."""
        share = math.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
        return min(max(share, 0.0), 1.0)

    def tail(self, sigma: float) -> float:
        """Share of the logarithmic range above sigma."""
        share = math.log(self.sigma_max / sigma) / math.log(self.sigma_max / self.sigma_min)
        return min(max(share, 0.0), 1.0)

    def icdf(self, u: float) -> float:
        """sigma_min (sigma_max / sigma_min)^u."""
        return self.sigma_min * math.exp(u * math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True)
class StepsLaw:
    """DDPM's: every step as likely; `sigmas` ascend."""

    sigmas: tuple[float, ...]

    def cdf(self, sigma: float) -> float:
        """Share of the steps at or below sigma."""
        return bisect_right(self.sigmas, sigma) / len(self.sigmas)

    def tail(self, sigma: float) -> float:
        """Share of the steps above sigma."""
        return (len(self.sigmas) - bisect_right(self.sigmas, sigma)) / len(self.sigmas)

    def icdf(self, u: float) -> float:
        """The noise level of step floor(u T)."""
        return self.sigmas[min(int(u * len(self.sigmas)), len(self.sigmas) - 1)]


@cache
def ddpm_betas(
    schedule: Literal["linear", "quadratic", "cosine"], steps: int
) -> tuple[float, ...]:
    """beta_0 .. beta_{T-1} of a named schedule (Ho et al. 2020; Nichol and Dhariwal 2021)."""
    if schedule == "cosine":

        def abar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        return tuple(min(1 - abar((i + 1) / steps) / abar(i / steps), 0.999) for i in range(steps))
    low, high = (1e-4, 0.02) if schedule == "linear" else (math.sqrt(1e-4), math.sqrt(0.02))
    line = (low + (high - low) * (i / (steps - 1)) for i in range(steps))
    return tuple(line) if schedule == "linear" else tuple(value * value for value in line)


@cache
def ddpm_sigmas(
    schedule: Literal["linear", "quadratic", "cosine"], steps: int
) -> tuple[float, ...]:
    """sigma_i = sqrt((1 - abar_i) / abar_i), ascending, without the cancellation of 1 - abar."""
    log_abar = accumulate(math.log1p(-beta) for beta in ddpm_betas(schedule, steps))
    return tuple(math.sqrt(math.expm1(-value)) for value in log_abar)


def base_law(process: ProcessSpec) -> Law:
    """The process's own law of training noise levels."""
    match process:
        case VpSpec():
            scale = process.beta_scale
            return UniformTimeLaw(scale * process.beta_min, scale * process.beta_d, process.t_min)
        case VeSpec():
            return LogUniformLaw(process.sigma_min, process.sigma_max)
        case EdmSpec():
            return LogNormalLaw(process.p_mean, process.p_std)
        case DdpmSpec():
            return StepsLaw(ddpm_sigmas(process.schedule, process.steps))


def level_range(process: ProcessSpec) -> tuple[float, float]:
    """Lowest and highest noise level of the process: what samplers walk, not where EDM trains."""
    if isinstance(process, EdmSpec):
        return process.sigma_min, process.sigma_max
    law = base_law(process)
    return law.icdf(0.0), law.icdf(1.0)
