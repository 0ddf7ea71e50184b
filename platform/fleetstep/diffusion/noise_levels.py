"""Laws of training noise levels, by their inverse CDF: one uniform number decides a level.

All functions take and return float64 tensors of shape [B].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fleetstep import rng


class NoiseLevels(Protocol):
    """A law of noise levels."""

    def icdf(self, u_B: Tensor) -> Tensor:
        """The noise level sigma_B > 0 below which a share u_B in (0, 1) of the law lies."""

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """The share of the law at or below sigma_B: inverse of `icdf`."""

    def quantile_density(self, u_B: Tensor) -> Tensor:
        """d icdf / du at u_B: one over the probability density at that level."""


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

    def quantile_density(self, u_B: Tensor) -> Tensor:
        """Std sigma / phi(z(u))."""
        z_B = _normal_icdf(u_B)
        inverse_phi_B = math.sqrt(2 * math.pi) * torch.exp(z_B.square() / 2)
        return self.std * torch.exp(self.mean + self.std * z_B) * inverse_phi_B


def _normal_icdf(u_B: Tensor) -> Tensor:
    """z(u_B) on the device of u_B, by way of the CPU."""
    return torch.from_numpy(rng.normal_icdf(u_B.cpu().numpy())).to(u_B.device)


@dataclass(frozen=True)
class Asymmetric:
    """A base law whose levels up to quantile `a` are k times as likely as the rest (SpeeD, eq. 3).

    With Z = 1 + a (k-1), the density is k/Z times the base's below the threshold and 1/Z times
    above it. The map from our quantile u to the base's is linear on both sides of q = k a / Z, so
    one wrapper serves every base law.

    Args:
        base: the law that is wrapped.
        k: ratio of the two densities, >= 1.
        a: threshold as a quantile of the base law, in (0, 1).
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

    def _base_quantile(self, u_B: Tensor) -> Tensor:
        # 1 - (1-u) Z, not a + (u-q) Z: the latter can round to 1, whose noise level is infinite.
        return torch.where(u_B < self._q, u_B * (self._z / self.k), 1 - (1 - u_B) * self._z)

    def icdf(self, u_B: Tensor) -> Tensor:
        """The base's level at the quantile that u stands for."""
        return self.base.icdf(self._base_quantile(u_B))

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """The base's cumulative probability, stretched below and shrunk above the threshold."""
        v_B = self.base.cdf(sigma_B)
        return torch.where(v_B < self.a, v_B * (self.k / self._z), 1 - (1 - v_B) / self._z)

    def quantile_density(self, u_B: Tensor) -> Tensor:
        """The base's, times the slope of the map between quantiles."""
        slope_B = torch.full_like(u_B, self._z / self.k).where(u_B < self._q, self._z)
        return self.base.quantile_density(self._base_quantile(u_B)) * slope_B
