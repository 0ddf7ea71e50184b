"""Processes: how data is noised, x_t = s(t) (x0 + sigma(t) eps). All in float64 tensors.

Near t = 0, exp(B) - 1 and log(1 + sigma^2) lose percents in float32: 1 + 1e-6 keeps one digit of
the 1e-6. They are computed in float64 with expm1 and log1p, and cast last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    ProcessSpec,
    VeSpec,
    VpSpec,
    ddpm_sigmas,
)
from fleetstep.diffusion.tables import Table


class Schedule(Protocol):
    """Signal scale s(t) and noise level sigma(t) of a diffusion, as processes have them."""

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma."""

    def scale(self, t: Tensor) -> Tensor:
        """Signal scale s at time t."""

    def dscale_dt(self, t: Tensor) -> Tensor:
        """Time derivative of `scale`."""

    def dsigma2_dt(self, t: Tensor) -> Tensor:
        """Time derivative of sigma(t)^2."""


class Process(Schedule, Protocol):
    """A schedule with its range of levels, and from times back to levels."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level of the process, > 0."""

    @property
    def sigma_max(self) -> float:
        """Highest noise level of the process."""

    @property
    def reference_std(self) -> float:
        """Standard deviation of the data that the process assumes."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at time t, shape of t: inverse of `t_of_sigma`."""


@dataclass(frozen=True)
class Vp:
    """sigma^2 = exp(B) - 1, s = exp(-B/2), B(t) = beta_min t + beta_d t^2 / 2, t in [t_min, 1].

    Karras et al. 2022, table 1, after Song et al. 2021.
    """

    beta_min: float
    beta_d: float
    t_min: float

    @property
    def sigma_min(self) -> float:
        """The level at t_min: 1.0005e-3 for the usual constants."""
        return self._level(self.t_min)

    @property
    def sigma_max(self) -> float:
        """The level at t = 1: 152.17 for the usual constants."""
        return self._level(1.0)

    @property
    def reference_std(self) -> float:
        """One."""
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(exp(B(t)) - 1)."""
        return torch.expm1(self._integral(t)).sqrt()

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """(sqrt(beta_min^2 + 2 beta_d ln(1 + sigma^2)) - beta_min) / beta_d, without its
        cancellation.
        """
        b = torch.log1p(sigma.square())
        return 2 * b / (torch.sqrt(self.beta_min**2 + 2 * self.beta_d * b) + self.beta_min)

    def scale(self, t: Tensor) -> Tensor:
        """exp(-B(t)/2)."""
        return torch.exp(-self._integral(t) / 2)

    def dscale_dt(self, t: Tensor) -> Tensor:
        """-beta(t) s(t) / 2."""
        return -self._beta(t) * self.scale(t) / 2

    def dsigma2_dt(self, t: Tensor) -> Tensor:
        """beta(t) exp(B(t))."""
        return self._beta(t) * torch.exp(self._integral(t))

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + self.beta_d * t

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + self.beta_d * t.square() / 2

    def _level(self, t: float) -> float:
        return math.sqrt(math.expm1(self.beta_min * t + self.beta_d * t * t / 2))


@dataclass(frozen=True)
class Ve:
    """sigma(t) = sqrt(t), s = 1, so that t = sigma^2 (Karras et al. 2022, table 1)."""

    sigma_min: float
    sigma_max: float

    @property
    def reference_std(self) -> float:
        """One."""
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(t)."""
        return t.sqrt()

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """sigma^2."""
        return sigma.square()

    def scale(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def dscale_dt(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)

    def dsigma2_dt(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class Edm:
    """sigma(t) = t, s(t) = 1 (Karras et al. 2022, table 1)."""

    sigma_data: float
    sigma_min: float
    sigma_max: float

    @property
    def reference_std(self) -> float:
        """sigma_data."""
        return self.sigma_data

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """The noise level itself."""
        return sigma

    def scale(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def dscale_dt(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)

    def dsigma2_dt(self, t: Tensor) -> Tensor:
        """Twice t."""
        return 2 * t


@dataclass(frozen=True)
class Ddpm:
    """T steps of noise levels sigma_i; t is the step index, and ln sigma is linear between steps.

    So a solver may stop between steps, and the derivatives are those of the interpolation (at a
    step, of the interval above it). Index i here is t = i + 1 of the papers.

    Args:
        sigmas: the levels of steps 0 .. T-1, ascending.
    """

    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        """T."""
        return len(self.sigmas)

    @property
    def sigma_min(self) -> float:
        """The level of step 0."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """The level of step T-1."""
        return self.sigmas[-1]

    @property
    def reference_std(self) -> float:
        """One."""
        return 1.0

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level at a step or between two, exact at whole steps; the first and last interval
        extend beyond the ends.
        """
        low = self._interval(t)
        logs = self._logs.on(t.device)
        level = torch.exp(logs[low] + (t - low) * (logs[low + 1] - logs[low]))
        index = t.round().clamp(0, self.steps - 1)
        return torch.where(t == index, self._levels.on(t.device)[index.long()], level)

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """The step, fractional between two; the first and last interval extend beyond the ends."""
        logs, level = self._logs.on(sigma.device), sigma.log()
        low = (torch.searchsorted(logs, level, right=True) - 1).clamp(0, self.steps - 2)
        t = low + (level - logs[low]) / (logs[low + 1] - logs[low])
        index = t.round().clamp(0, self.steps - 1)
        # A level of the table is its step exactly: networks were trained on whole numbers.
        return torch.where(self._levels.on(sigma.device)[index.long()] == sigma, index, t)

    def index_of(self, sigma: Tensor) -> Tensor:
        """The nearest step in ln sigma, int64."""
        return self.t_of_sigma(sigma).round().clamp(0, self.steps - 1).long()

    def scale(self, t: Tensor) -> Tensor:
        """sqrt(abar) = 1 / sqrt(1 + sigma^2)."""
        return 1 / torch.hypot(torch.ones_like(t), self.sigma(t))

    def dscale_dt(self, t: Tensor) -> Tensor:
        """-s^3 d(sigma^2)/dt / 2."""
        return -(self.scale(t) ** 3) * self.dsigma2_dt(t) / 2

    def dsigma2_dt(self, t: Tensor) -> Tensor:
        """2 sigma^2 d(ln sigma)/dt."""
        low, logs = self._interval(t), self._logs.on(t.device)
        return 2 * self.sigma(t).square() * (logs[low + 1] - logs[low])

    def _interval(self, t: Tensor) -> Tensor:
        return t.floor().long().clamp(0, self.steps - 2)

    @property
    def table(self) -> Tensor:
        """The levels as a float64 tensor [T], on the CPU."""
        return self._levels.on(torch.device("cpu"))

    @cached_property
    def _levels(self) -> Table:
        return Table(self.sigmas)

    @cached_property
    def _logs(self) -> Table:
        return Table.of(self.table.log())


def build_process(spec: ProcessSpec) -> Process:
    """The process a config names."""
    match spec:
        case VpSpec():
            scale = spec.beta_scale
            return Vp(scale * spec.beta_min, scale * spec.beta_d, spec.t_min)
        case VeSpec():
            return Ve(spec.sigma_min, spec.sigma_max)
        case EdmSpec():
            return Edm(spec.sigma_data, spec.sigma_min, spec.sigma_max)
        case DdpmSpec():
            return Ddpm(ddpm_sigmas(spec.schedule, spec.steps))
