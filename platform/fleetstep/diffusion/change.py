"""How fast a process changes at a noise level: what SpeeD's change-aware weights are made from.

SpeeD measures change by the variance Psi of a process's increments. The paper takes independent
noises for the two ends of an increment, so that Psi = 2 (1 - abar) up to O(beta); the variance of
DDPM's own Markov step is another quantity, which is not used. The paper's formula for dPsi covers
DDPM's linear schedule; the other measures here carry it to any process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fleetstep.diffusion.noise_levels import LogNormal, LogUniform, UniformTime
from fleetstep.diffusion.process import Ddpm, Schedule
from fleetstep.diffusion.spec import DdpmSpec, ddpm_betas
from fleetstep.diffusion.strategies.fdm import MomentumMean

Change = Callable[[Tensor], Tensor]
"""sigma_B -> g_B, float64."""

SmoothLaw = LogNormal | LogUniform | UniformTime
"""The laws of noise levels of the continuous processes."""

# Quantiles between which change is measured: at the ends of a law its density goes to 0.
U_MIN, U_MAX = 1e-4, 1 - 1e-4


def closed_form_change(process: DdpmSpec) -> Tensor:
    """The paper's dPsi per step, float64 [T]: 2 beta(t) exp(-(b0 + dbeta t / 2T) t), t = i + 1.

    SpeeD, theorem 1 and its remark, for the linear schedule. b0 = beta_1 - dbeta / T takes betas
    to be dbeta / T apart, where those of a linear schedule are dbeta / (T-1) apart.
    """
    betas, steps = ddpm_betas(process.schedule, process.steps), process.steps
    spread = betas[-1] - betas[0]
    offset = betas[0] - spread / steps
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return 2 * (offset + spread * t / steps) * torch.exp(-(offset + spread * t / (2 * steps)) * t)


def step_change(process: Ddpm, sd_ref: float) -> Tensor:
    """DPsi per step, float64 [T], Psi = 2 s^2 / (1 + s^2), s = sigma / sd_ref; 2 (1 - abar) at 1.

    Central differences, one-sided at the ends, of any schedule.
    """
    square = (process.table / sd_ref).square()
    (slope,) = torch.gradient(2 * square / (1 + square))
    return slope


@dataclass(frozen=True)
class QuantileChange:
    """DPsi/du, Psi = 2 s^2 / (1 + s^2), s = sigma / sd_ref, u a quantile of `law`.

    No unit of time enters, and for a uniform law in time it is the paper's measure up to a factor.

    Args:
        law: the process's own law of noise levels.
        sd_ref: standard deviation of the data.
        low, high: levels of quantiles 1e-4 and 1 - 1e-4; beyond them g is that of the end.
    """

    law: SmoothLaw
    sd_ref: float
    low: float
    high: float

    @classmethod
    def of(cls, law: SmoothLaw, sd_ref: float) -> Self:
        """The measure between the outer quantiles of `law`."""
        low, high = law.icdf(torch.tensor([U_MIN, U_MAX], dtype=torch.float64)).tolist()
        return cls(law, sd_ref, low, high)

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """G of noise levels > 0, float64 [B]."""
        level_B = sigma_B.clamp(self.low, self.high)
        s_B = level_B / self.sd_ref
        slope_B = 4 * s_B / (1 + s_B.square()).square() / self.sd_ref
        return slope_B * inverse_density(self.law, level_B)


def inverse_density(law: SmoothLaw, sigma_B: Tensor) -> Tensor:
    """d sigma / du of a law at sigma_B > 0, float64 [B]: one over its probability density.

    As a function of the level, not of the quantile, whose normal inverse is computed on the CPU:
    a training step on an accelerator would wait for it.
    """
    match law:
        case LogNormal():
            z_B = (sigma_B.log() - law.mean) / law.std
            return law.std * sigma_B * math.sqrt(2 * math.pi) * torch.exp(z_B.square() / 2)
        case LogUniform():
            return math.log(law.sigma_max / law.sigma_min) * sigma_B
        case UniformTime():
            process = law.process
            slope_B = process.dsigma2_dt(process.t_of_sigma(sigma_B)) / (2 * sigma_B)
            return (1 - process.t_min) * slope_B


@dataclass(frozen=True)
class MomentumSchedule:
    """FDM in SpeeD's terms: sigma(t) = t, s = mu(m B(t'(sigma)))."""

    mean: MomentumMean

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """The noise level itself."""
        return sigma

    def scale(self, t: Tensor) -> Tensor:
        """Mu."""
        return self.mean(t)

    def dscale_dt(self, t: Tensor) -> Tensor:
        """Slope of mu, by differentiation: whatever map of time the mean has is in it."""
        with torch.enable_grad():
            level = t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.mean(level).sum(), level)
        return slope

    def dsigma2_dt(self, t: Tensor) -> Tensor:
        """Twice t."""
        return 2 * t


@dataclass(frozen=True)
class SigmaDot:
    """The paper's Sigma-dot = 2 d(s^2 sigma^2)/dt = 4 s s' sigma^2 + 2 s^2 d(sigma^2)/dt.

    SpeeD, section 2.3, for dt -> 0. It depends on the unit of time: in steps for DDPM, in [0, 1]
    for VP, in sigma^2 for VE and in sigma for EDM and FDM. (Table 1 lists d(sigma^2)/dt under
    sigma-dot for VE and EDM, and the text calls EDM's 4 t quadratic.)
    """

    schedule: Schedule

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Sigma-dot at noise levels > 0, float64 [B]."""
        t_B = self.schedule.t_of_sigma(sigma_B)
        s_B, variance_B = self.schedule.scale(t_B), sigma_B.square()
        shrink_B = 4 * s_B * self.schedule.dscale_dt(t_B) * variance_B
        return shrink_B + 2 * s_B.square() * self.schedule.dsigma2_dt(t_B)
