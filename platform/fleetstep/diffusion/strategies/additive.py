"""FDM's kernel as printed, x_t = mu x0 + sigma eps (FDM, eq. 14 and 15), for eps-prediction.

A denoiser takes x_hat = x0 + level eps. Dividing x_t by mu gives one, of level sigma / mu(sigma):
so the law of levels is mapped through that function, and the coefficients through its inverse.
Levels reach 3e5 at m = 1 and 4e9 at m = 2; the eps-loss, whose weight is 1 / level^2, stays
moderate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fleetstep.diffusion.noise_levels import NoiseLevels
from fleetstep.diffusion.precondition import Coefficients, Preconditioning

if TYPE_CHECKING:
    from fleetstep.diffusion.strategies.fdm import MomentumMean

# Halvings of a bracket of ln sigma, some 50 wide, down to the rounding of float64.
_HALVINGS = 60


@dataclass(frozen=True)
class AdditiveKernel:
    """The one-to-one map between the paper's sigma and the level sigma / mu(sigma) of x_hat."""

    mean: MomentumMean

    def level(self, sigma_B: Tensor) -> Tensor:
        """Level of x_hat = x_t / mu, float64 [B], of the paper's sigma_B > 0."""
        return self._log_level(sigma_B.log()).exp()

    def sigma(self, level_B: Tensor) -> Tensor:
        """The paper's sigma, float64 [B], of levels > 0: inverse of `level`, to 1e-12 relative.

        By bisection in ln sigma: clamp_t puts a kink into the map, at which Newton's method can
        cycle.
        """
        target_B = level_B.log()
        # mu is 1 up to rounding at sigma_min and below, and never above 1: the margins of 1 are
        # ample.
        low_B = target_B.clamp(max=math.log(self.mean.process.sigma_min)) - 1
        high_B = target_B + 1
        for _ in range(_HALVINGS):
            middle_B = (low_B + high_B) / 2
            below_B = self._log_level(middle_B) < target_B
            low_B = torch.where(below_B, middle_B, low_B)
            high_B = torch.where(below_B, high_B, middle_B)
        return ((low_B + high_B) / 2).exp()

    def _log_level(self, log_sigma_B: Tensor) -> Tensor:
        # ln sigma - ln mu, with ln mu = ln(1+b) - b, which never underflows.
        b_B = self.mean.damping(log_sigma_B.exp())
        return log_sigma_B + b_B - b_B.log1p()


@dataclass(frozen=True)
class AdditiveCoefficients:
    """Coefficients as functions of the level: D = x_hat - level F(mu x_hat, c_noise(sigma)).

    Args:
        base: the eps-preconditioning of the process.
        kernel: between its sigma and the level.
    """

    base: Preconditioning
    kernel: AdditiveKernel

    def __call__(self, sigma_B: Tensor) -> Coefficients:
        """Coefficients of levels > 0 of x_hat, shape [B]."""
        own_B = self.kernel.sigma(sigma_B)
        c_skip_B, c_out_B, *_ = self.base(sigma_B)
        return Coefficients(c_skip_B, c_out_B, self.kernel.mean(own_B), self.base(own_B).c_noise)


@dataclass(frozen=True)
class AdditiveLevels:
    """A law of the paper's sigma, as the law of the levels of x_hat."""

    base: NoiseLevels
    kernel: AdditiveKernel

    def icdf(self, u_B: Tensor) -> Tensor:
        """The base's quantile, as a level."""
        return self.kernel.level(self.base.icdf(u_B))

    def cdf(self, sigma_B: Tensor) -> Tensor:
        """The base's share at or below the level's sigma."""
        return self.base.cdf(self.kernel.sigma(sigma_B))
