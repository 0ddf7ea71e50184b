"""FDM: fast diffusion with momentum, as its authors released it.

Two things change: the network's input scale, c_in = mu(m B(t'(sigma))), and a warm-up of the loss
weight. Noise levels, c_skip, c_out, c_noise and samplers stay. mu(B) = exp(-B) (1+B) is critical
damping in the clock B (it solves x'' + 2x' + x = 0 in B; the paper's eq. 12, in time, holds only
for a constant beta).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fleetstep.diffusion.precondition import Coefficients, Preconditioning
from fleetstep.diffusion.spec import FdmSpec
from fleetstep.diffusion.strategies import warmup

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective


def damped_mean(b: Tensor) -> Tensor:
    """mu(B) = exp(-B) (1+B), the mean of a critically damped momentum diffusion (FDM, table 1)."""
    return torch.exp(-b) * (1 + b)


@dataclass(frozen=True)
class MomentumInputScaling:
    """A preconditioning whose c_in is replaced by mu(m B(t')), t' linear in sigma (FDM, eq. 16).

    Not normalised on purpose: the input's standard deviation reaches 12.9 (m=2), and never divide
    by c_in, which falls to 4e-8 at sigma_max.

    Args:
        base: supplies c_skip, c_out and c_noise.
        multiplier, beta_min, beta_d: m, and B(t') = beta_min t' + beta_d t'^2 / 2.
        sigma_min, sigma_max: where t' is 0 and 1: the process's own range.
        clamp_t: keep t' within [0, 1].
    """

    base: Preconditioning
    multiplier: float
    beta_min: float
    beta_d: float
    sigma_min: float
    sigma_max: float
    clamp_t: bool

    def __call__(self, sigma_B: Tensor) -> Coefficients:
        """Coefficients of noise levels > 0, shape [B]."""
        t_B = (sigma_B - self.sigma_min) / (self.sigma_max - self.sigma_min)
        if self.clamp_t:
            t_B = t_B.clamp(0, 1)
        b_B = self.beta_min * t_B + self.beta_d * t_B**2 / 2
        return self.base(sigma_B)._replace(c_in=damped_mean(self.multiplier * b_B))


def apply(
    spec: FdmSpec, objective: Objective, *, budget_images: int, global_batch: int
) -> Objective:
    """Replace c_in, and add the warm-up unless it is None."""
    scaled = dataclasses.replace(
        objective,
        coefficients=MomentumInputScaling(
            objective.coefficients,
            spec.multiplier,
            spec.beta_min,
            spec.beta_d,
            objective.process.sigma_min,
            objective.process.sigma_max,
            spec.clamp_t,
        ),
    )
    if spec.warmup is None:
        return scaled
    return warmup.apply(
        spec.warmup, scaled, budget_images=budget_images, global_batch=global_batch
    )
