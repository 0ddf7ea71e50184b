"""Weights in place of the process's own: P2 and Min-SNR, in x0-space, where SNR = 1/sigma^2.

One weight serves every prediction. With w on ||D - x0||^2, the eps-loss is weighted by w / SNR and
the v-loss by w / (SNR + 1).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from fleetstep.diffusion.spec import MinSnrSpec, P2Spec

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective


@dataclass(frozen=True)
class P2Weight:
    """SNR (k + SNR)^-gamma, which weighs the eps-loss by (k + SNR)^-gamma (Choi et al. 2022, 8).

    Args:
        k: > 0; keeps the weight of clean images finite.
        gamma: >= 0; 0 is the unweighted eps-loss.
    """

    k: float
    gamma: float

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weights of noise levels > 0, float64 [B]; 0 for infinite noise."""
        snr_B = sigma_B**-2
        return snr_B * (self.k + snr_B) ** -self.gamma


@dataclass(frozen=True)
class MinSnrWeight:
    """min(SNR, gamma) (Hang et al. 2023, section 3.4).

    The eps-loss is weighted by min(SNR, gamma) / SNR, 1 in strong noise, and the v-loss by
    min(SNR, gamma) / (SNR + 1).

    Args:
        gamma: > 0.
    """

    gamma: float

    def __call__(self, sigma_B: Tensor) -> Tensor:
        """Weights of noise levels > 0, float64 [B]; 0 for infinite noise."""
        return (sigma_B**-2).clamp(max=self.gamma)


def apply(spec: P2Spec | MinSnrSpec, objective: Objective) -> Objective:
    """Replace the base weight."""
    match spec:
        case P2Spec():
            return dataclasses.replace(objective, base_weight=P2Weight(spec.k, spec.gamma))
        case MinSnrSpec():
            return dataclasses.replace(objective, base_weight=MinSnrWeight(spec.gamma))
