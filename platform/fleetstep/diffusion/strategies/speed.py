"""SpeeD: fewer noise levels where little is left to learn, more weight where the process changes.

Asymmetric sampling wraps the law (SpeeD, eq. 3); change-aware weights multiply the loss (2.6).
Both are the paper's definitions carried from DDPM's uniform steps to any law, by working in
quantiles of that law: for a uniform law in time they are the paper's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from fleetstep.diffusion.noise_levels import Asymmetric, NoiseLevels
from fleetstep.diffusion.spec import QuantileThreshold, SpeedSpec, magnitude_sigma

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective

# The change is measured on these quantiles of the base law: at the ends its density goes to 0.
_U_MIN, _U_MAX, _U_POINTS = 1e-4, 1 - 1e-4, 1024


def min_max_weight(change: Tensor, low: float, high: float, lam: float) -> Tensor:
    """Weights in [1-lam, lam], linear in the change from `low` to `high` (SpeeD, section 2.6).

    A change that is constant up to rounding has no order to follow: the weight is 1/2, the middle
    of the range.
    """
    if high - low <= 1e-12 * abs(high):
        return torch.full_like(change, 0.5)
    return (1 - lam) + (2 * lam - 1) * ((change - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class ChangeAware:
    """Weight by dPsi/du, Psi = 2 s^2 / (1 + s^2), s = sigma / sd_ref, u a quantile of `law`.

    Psi is the variance of an increment of the process, whose growth per DDPM step is the paper's
    measure of change.

    Args:
        law: the base law, before asymmetric sampling.
        sd_ref: standard deviation of the data.
        lam: weights lie in [1-lam, lam].
        low, high: smallest and largest g on the grid of quantiles.
    """

    law: NoiseLevels
    sd_ref: float
    lam: float
    low: float
    high: float

    @classmethod
    def of(cls, law: NoiseLevels, sd_ref: float, lam: float) -> Self:
        """The weight with `low` and `high` measured on 1024 quantiles in [1e-4, 1 - 1e-4]."""
        u = torch.linspace(_U_MIN, _U_MAX, _U_POINTS, dtype=torch.float64)
        g = change(law, sd_ref, u)
        return cls(law, sd_ref, lam, g.min().item(), g.max().item())

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weights of noise levels > 0, float64 [B]; beyond the grid, the weight at its end."""
        u_B = self.law.cdf(sigma_B).clamp(_U_MIN, _U_MAX)
        return min_max_weight(change(self.law, self.sd_ref, u_B), self.low, self.high, self.lam)


def change(law: NoiseLevels, sd_ref: float, u_B: Tensor) -> Tensor:
    """g(u) = (d Psi / d sigma) (d sigma / du) of a law at its quantiles u_B in (0, 1)."""
    s_B = law.icdf(u_B) / sd_ref
    return 4 * s_B / (1 + s_B**2) ** 2 / sd_ref * law.quantile_density(u_B)


def apply(spec: SpeedSpec, objective: Objective) -> Objective:
    """Wrap the law and add the multiplier, as far as the spec has them on."""
    law = objective.noise_levels
    sd_ref = objective.process.reference_std if spec.sd_ref is None else spec.sd_ref
    multipliers = objective.multipliers
    if spec.weighting:
        multipliers = (*multipliers, ChangeAware.of(law, sd_ref, spec.lam))
    wrapped: NoiseLevels = law
    # k = 1 is the base law itself, to the last bit.
    if spec.sampling and spec.k > 1:
        wrapped = Asymmetric(law, spec.k, _threshold(spec, law, sd_ref))
    return dataclasses.replace(objective, noise_levels=wrapped, multipliers=multipliers)


def _threshold(spec: SpeedSpec, law: NoiseLevels, sd_ref: float) -> float:
    """The threshold as a quantile of the law it is applied to."""
    if isinstance(spec.threshold, QuantileThreshold):
        return spec.threshold.q
    sigma = magnitude_sigma(spec.threshold.r, sd_ref)
    return law.cdf(torch.tensor(sigma, dtype=torch.float64)).item()
