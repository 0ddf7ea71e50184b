"""Laws of noise levels in place of the process's own: log-normal, logit-normal, and uniform."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from fleetstep.diffusion.noise_levels import LogNormal, NoiseLevels, WeightedSteps
from fleetstep.diffusion.spec import (
    DdpmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    UniformSpec,
    ddpm_sigmas,
)
from fleetstep.diffusion.strategies.context import Context

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective


@dataclass(frozen=True)
class Truncated:
    """A continuous law given that its levels lie in [sigma_min, sigma_max].

    Cut and renormalised rather than clamped: clamping would pile the mass outside (1.2 % of EDM's
    law on VE) onto the two ends.

    Args:
        base: has mass in the range.
        sigma_min, sigma_max: the range.
    """

    base: NoiseLevels
    sigma_min: float
    sigma_max: float

    def icdf(self, u_B: Tensor) -> Tensor:
        """The base's level at u's share of the way between the quantiles of the two ends."""
        low, high = self._quantiles
        # Rounding may leave the range by a last digit.
        return self.base.icdf(low + u_B * (high - low)).clamp(self.sigma_min, self.sigma_max)

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """Share of the mass in the range that is at or below sigma."""
        low, high = self._quantiles
        return ((self.base.cdf(sigma_B) - low) / (high - low)).clamp(0, 1)

    @cached_property
    def _quantiles(self) -> tuple[float, float]:
        ends = torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64)
        low, high = self.base.cdf(ends).tolist()
        return low, high


@dataclass(frozen=True)
class LogitNormal:
    """Quantiles v = sigmoid(mean + std z) of a base law (Esser et al. 2024, section 3.1).

    The quantile of a law that is uniform in time is the time, and the step that of DDPM's is
    floor(v T). ln(v / (1 - v)) is normal: the odds v / (1 - v) are log-normal.

    Args:
        base: uniform in time.
        mean, std: of the normal number.
    """

    base: NoiseLevels
    mean: float
    std: float

    def icdf(self, u_B: Tensor) -> Tensor:
        """The base's level at v = 1 / (1 + 1 / odds)."""
        return self.base.icdf(1 / (1 + 1 / self._odds.icdf(u_B)))

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """Phi((logit v - mean) / std), v the base's cumulative probability."""
        v_B = self.base.cdf(sigma_B)
        return self._odds.cdf(v_B / (1 - v_B))

    @property
    def _odds(self) -> LogNormal:
        return LogNormal(self.mean, self.std)


def log_normal_pmf(sigmas: tuple[float, ...], mean: float, std: float) -> Tensor:
    """Probabilities of steps under ln sigma ~ N(mean, std^2), float64 [T].

    The mass between two neighbouring levels goes to each of them by half, the mass beyond the ends
    to the first and the last step.

    Args:
        sigmas: the levels of the steps, ascending.
        mean, std: of ln sigma.
    """
    z = (torch.tensor(sigmas, dtype=torch.float64).log() - mean) / std
    low, high = pad(z, (1, 0), value=-torch.inf), pad(z, (0, 1), value=torch.inf)
    # Differences are taken in the tail that the interval lies in, where they do not cancel.
    mass = torch.where(low > 0, _phi(-low) - _phi(-high), _phi(high) - _phi(low))
    below, above = mass[:-1] / 2, mass[1:] / 2
    below[0], above[-1] = mass[0], mass[-1]
    return below + above


def _phi(z: Tensor) -> Tensor:
    """The normal CDF, exact in the lower tail, where torch.special.ndtr is 0 from -9 on."""
    share: Tensor = torch.special.erfc(-z / math.sqrt(2)) / 2
    return share


def _log_normal(spec: LogNormalSpec, objective: Objective, context: Context) -> NoiseLevels:
    """The law on the process's own levels: its network never sees one beyond them."""
    process = context.process
    if isinstance(process, DdpmSpec):
        sigmas = ddpm_sigmas(process.schedule, process.steps)
        return WeightedSteps(sigmas, tuple(log_normal_pmf(sigmas, spec.mean, spec.std).tolist()))
    ends = objective.process.sigma_min, objective.process.sigma_max
    return Truncated(LogNormal(spec.mean, spec.std), *ends)


def apply(
    spec: UniformSpec | LogNormalSpec | LogitNormalSpec, objective: Objective, context: Context
) -> Objective:
    """Replace the law; `uniform` is the process's own."""
    own = objective.base_noise_levels
    law: NoiseLevels
    match spec:
        case UniformSpec():
            law = own
        case LogNormalSpec():
            law = _log_normal(spec, objective, context)
        case LogitNormalSpec():
            law = LogitNormal(own, spec.mean, spec.std)
    return dataclasses.replace(objective, noise_levels=law)
