"""What solvers sample from, whoever made it.

Legend: B batch, C channels, H W pixels, c h w bottleneck.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fleetstep.sampling.solvers.step import Level
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN


class Denoiser(Protocol):
    """What a solver samples from: D(x; sigma), the expected clean image; it counts its calls."""

    @property
    def nfe(self) -> int:
        """Network calls per image made so far."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level the network knows."""

    @property
    def sigma_max(self) -> float:
        """Highest noise level the network knows."""

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None, /) -> Tensor:
        """D at float64 levels sigma_B, in the dtype of x."""


@runtime_checkable
class FeatureDenoiser(Denoiser, Protocol):
    """A denoiser whose network declares bottleneck features; learned solvers need one."""

    def with_features(
        self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None, /
    ) -> tuple[Tensor, Tensor]:
        """D, and the features [B, c, h, w] of the same call."""


def shared_range(denoiser: Denoiser) -> tuple[float, float]:
    """The lowest and highest level that sampling and the network share: [0.002, 80], cut."""
    return max(SIGMA_MIN, denoiser.sigma_min), min(SIGMA_MAX, denoiser.sigma_max)


def per_image(sigma: Level, x_BCHW: Tensor) -> Tensor:
    """The level of each image, float64 [B], on x's device."""
    if isinstance(sigma, Tensor):
        return sigma.double().reshape(-1).expand(len(x_BCHW))
    return torch.full(x_BCHW.shape[:1], sigma, dtype=torch.float64, device=x_BCHW.device)
