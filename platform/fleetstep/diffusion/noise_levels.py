"""Laws of training noise levels, by their inverse CDF: one uniform number decides a level.

All functions take and return float64 tensors of shape [B].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fleetstep import rng
from fleetstep.diffusion.process import Vp, build_process
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    ProcessSpec,
    VeSpec,
    VpSpec,
    ddpm_sigmas,
)
from fleetstep.diffusion.tables import Table


class NoiseLevels(Protocol):
    """A law of noise levels."""

    def icdf(self, u_B: Tensor) -> Tensor:
        """The noise level sigma_B > 0 below which a share u_B in (0, 1) of the law lies."""

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """The share of the law at or below sigma_B: inverse of `icdf` if the law is continuous."""


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(mean, std^2) (Karras et al. 2022, table 1, training).

    The normal quantile is `rng.normal_icdf`, the same bits on every machine; the exponential after
    it may differ in the last bit between CPU types.
    """

    mean: float
    std: float

    def icdf(self, u_B: Tensor) -> Tensor:
        """exp(mean + std z(u))."""
        return torch.exp(self.mean + self.std * _normal_icdf(u_B))

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """Phi((ln sigma - mean) / std)."""
        share_B: Tensor = torch.special.ndtr((sigma_B.log() - self.mean) / self.std)
        return share_B


def _normal_icdf(u_B: Tensor) -> Tensor:
    """z(u_B) on the device of u_B, by way of the CPU."""
    return torch.from_numpy(rng.normal_icdf(u_B.cpu().numpy())).to(u_B.device)


@dataclass(frozen=True)
class UniformTime:
    """VP's: t uniform on (t_min, 1] (Song et al. 2021)."""

    process: Vp

    def icdf(self, u_B: Tensor) -> Tensor:
        """sigma(t_min + u (1 - t_min))."""
        return self.process.sigma(self._time(u_B))

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """(t(sigma) - t_min) / (1 - t_min), within [0, 1]."""
        t_min = self.process.t_min
        return ((self.process.t_of_sigma(sigma_B) - t_min) / (1 - t_min)).clamp(0, 1)

    def _time(self, u_B: Tensor) -> Tensor:
        return self.process.t_min + u_B * (1 - self.process.t_min)


@dataclass(frozen=True)
class LogUniform:
    """VE's: ln sigma uniform on [ln sigma_min, ln sigma_max] (Song et al. 2021)."""

    sigma_min: float
    sigma_max: float

    @property
    def _width(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def icdf(self, u_B: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^u."""
        return self.sigma_min * torch.exp(u_B * self._width)

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """Share of the logarithmic range, within [0, 1]."""
        return ((sigma_B / self.sigma_min).log() / self._width).clamp(0, 1)


@dataclass(frozen=True)
class UniformSteps:
    """DDPM's: every one of T steps as likely (Ho et al. 2020).

    Args:
        sigmas: the levels of the steps, ascending.
    """

    sigmas: tuple[float, ...]

    def icdf(self, u_B: Tensor) -> Tensor:
        """The level of step floor(u T)."""
        steps = len(self.sigmas)
        index_B = (u_B * steps).long().clamp(max=steps - 1)
        return self._levels.on(u_B.device)[index_B]

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """Share of the steps at or below sigma."""
        table = self._levels.on(sigma_B.device)
        return torch.searchsorted(table, sigma_B, right=True).double() / len(self.sigmas)

    @cached_property
    def _levels(self) -> Table:
        return Table(self.sigmas)


@dataclass(frozen=True)
class WeightedSteps:
    """DDPM's steps, step i with probability pmf[i].

    Args:
        sigmas: the levels of the steps, ascending.
        pmf: their probabilities, which sum to 1.
    """

    sigmas: tuple[float, ...]
    pmf: tuple[float, ...]

    def icdf(self, u_B: Tensor) -> Tensor:
        """The level of the first step whose cumulative probability exceeds u."""
        index_B = torch.searchsorted(self._cumulative.to(u_B.device), u_B, right=True)
        return self._levels.on(u_B.device)[index_B.clamp(max=len(self.sigmas) - 1)]

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """Probability of the steps at or below sigma."""
        count_B = torch.searchsorted(self._levels.on(sigma_B.device), sigma_B, right=True)
        padded = torch.cat([self._cumulative.new_zeros(1), self._cumulative])
        return padded.to(sigma_B.device)[count_B]

    @cached_property
    def _levels(self) -> Table:
        return Table(self.sigmas)

    @cached_property
    def _cumulative(self) -> Tensor:
        cumulative = torch.tensor(self.pmf, dtype=torch.float64).cumsum(0)
        # Rounding leaves the sum of a thousand shares off 1 by some 1e-16.
        return cumulative / cumulative[-1]


@dataclass(frozen=True)
class Asymmetric:
    """A base law whose levels up to quantile `a` are k times as likely as the rest (SpeeD, eq. 3).

    With Z = 1 + a (k-1), the density is k/Z times the base's below the threshold and 1/Z times
    above it. The map from our quantile u to the base's is linear on both sides of q = k a / Z, so
    one wrapper serves every base law, discrete ones too.

    Args:
        base: the law that is wrapped.
        k: ratio of the two densities, >= 1.
        a: threshold as a quantile of the base law, in (0, 1].
    """

    base: NoiseLevels
    k: float
    a: float

    @property
    def _z(self) -> float:
        return 1 + self.a * (self.k - 1)

    @property
    def _q(self) -> float:
        return self.k * self.a / self._z

    def icdf(self, u_B: Tensor) -> Tensor:
        """The base's level at the quantile that u stands for."""
        # 1 - (1-u) Z, not a + (u-q) Z: the latter can round to 1, whose noise level is infinite.
        v_B = torch.where(u_B < self._q, u_B * (self._z / self.k), 1 - (1 - u_B) * self._z)
        return self.base.icdf(v_B)

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """The base's cumulative probability, stretched below and shrunk above the threshold."""
        v_B = self.base.cdf(sigma_B)
        return torch.where(v_B < self.a, v_B * (self.k / self._z), 1 - (1 - v_B) / self._z)


def build_law(process: ProcessSpec) -> NoiseLevels:
    """The process's own law of training noise levels."""
    match process:
        case VpSpec():
            built = build_process(process)
            assert isinstance(built, Vp)
            return UniformTime(built)
        case VeSpec():
            return LogUniform(process.sigma_min, process.sigma_max)
        case EdmSpec():
            return LogNormal(process.p_mean, process.p_std)
        case DdpmSpec():
            return UniformSteps(ddpm_sigmas(process.schedule, process.steps))
