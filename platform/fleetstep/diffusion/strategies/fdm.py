"""FDM: fast diffusion with momentum, as its authors released it.

Two things change: the network's input scale, c_in = mu(m B(t'(sigma))), and a warm-up of the loss
weight. Noise levels, c_skip, c_out, c_noise and samplers stay. mu(B) = exp(-B) (1+B) is critical
damping in the clock B: it solves x'' + 2 x' + x = 0 in B. The paper's eq. 12, in time, it leaves a
residual of -beta' B exp(-B), so holds for a constant beta only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fleetstep.diffusion.precondition import Coefficients, Preconditioning
from fleetstep.diffusion.process import Process
from fleetstep.diffusion.spec import FdmSpec
from fleetstep.diffusion.strategies import warmup
from fleetstep.diffusion.strategies.additive import (
    AdditiveCoefficients,
    AdditiveKernel,
    AdditiveLevels,
)
from fleetstep.diffusion.strategies.context import Context

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective


def damped_mean(b: Tensor) -> Tensor:
    """mu(B) = exp(-B) (1+B), the mean of a critically damped momentum diffusion (FDM, table 1)."""
    return torch.exp(-b) * (1 + b)


@dataclass(frozen=True)
class MomentumMean:
    """mu(m B(t'(sigma))), the mean of FDM as a function of the noise level.

    Args:
        process: whose own range or time t' is measured by.
        multiplier, beta_min, beta_d: m, and B(t') = beta_min t' + beta_d t'^2 / 2.
        process_time: t' is the process's time t(sigma), in place of linear in sigma over the
            process's range (FDM, eq. 16).
        clamp_t: keep t' within [0, 1].
    """

    process: Process
    multiplier: float
    beta_min: float
    beta_d: float
    process_time: bool
    clamp_t: bool

    def damping(self, sigma_B: Tensor) -> Tensor:
        """M B(t'(sigma)) of noise levels > 0, float64 [B]."""
        t_B = self._time(sigma_B)
        if self.clamp_t:
            t_B = t_B.clamp(0, 1)
        return self.multiplier * (self.beta_min * t_B + self.beta_d * t_B.square() / 2)

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Mu of noise levels > 0, float64 [B]."""
        return damped_mean(self.damping(sigma_B))

    def _time(self, sigma_B: Tensor) -> Tensor:
        if self.process_time:
            return self.process.t_of_sigma(sigma_B)
        low, high = self.process.sigma_min, self.process.sigma_max
        return (sigma_B - low) / (high - low)


@dataclass(frozen=True)
class MomentumInputScaling:
    """A preconditioning whose c_in is replaced by mu: x_t = mu (x0 + sigma eps) (FDM, eq. 5).

    Not normalised on purpose: the input's standard deviation reaches 12.9 (EDM, m = 2). Never
    divide by c_in, which falls to 4e-8 at sigma_max.

    Args:
        base: supplies c_skip, c_out and c_noise.
        mean: mu as a function of the noise level.
    """

    base: Preconditioning
    mean: MomentumMean

    def __call__(self, sigma_B: Tensor) -> Coefficients:
        """Coefficients of noise levels > 0, shape [B]."""
        return self.base(sigma_B)._replace(c_in=self.mean(sigma_B))


def apply(spec: FdmSpec, objective: Objective, context: Context) -> Objective:
    """Replace c_in (or, with the additive kernel, the levels too), and add the warm-up unless it
    is None.
    """
    mean = MomentumMean(
        objective.process,
        spec.multiplier,
        spec.beta_min,
        spec.beta_d,
        spec.time_map == "process_time",
        spec.clamp_t,
    )
    if spec.kernel == "additive":
        kernel = AdditiveKernel(mean)
        changed = dataclasses.replace(
            objective,
            coefficients=AdditiveCoefficients(objective.coefficients, kernel),
            noise_levels=AdditiveLevels(objective.noise_levels, kernel),
        )
    else:
        scaled = MomentumInputScaling(objective.coefficients, mean)
        changed = dataclasses.replace(objective, coefficients=scaled)
    return changed if spec.warmup is None else warmup.apply(spec.warmup, changed, context)
