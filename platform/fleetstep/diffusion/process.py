"""Processes: how data is noised, x_t = s(t) (x0 + sigma(t) eps). All in float64 tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fleetstep.diffusion.spec import EdmSpec, ProcessSpec


class Process(Protocol):
    """Signal scale s(t) and noise level sigma(t) of a diffusion, with their derivatives."""

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
        """Noise level at time t, shape of t."""

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma: inverse of `sigma`."""

    def scale(self, t: Tensor) -> Tensor:
        """Signal scale s at time t."""

    def dscale_dt(self, t: Tensor) -> Tensor:
        """Time derivative of `scale`."""

    def dsigma2_dt(self, t: Tensor) -> Tensor:
        """Time derivative of sigma(t)^2."""


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


def build_process(spec: ProcessSpec) -> Process:
    """The process a config names."""
    match spec:
        case EdmSpec():
            return Edm(spec.sigma_data, spec.sigma_min, spec.sigma_max)
