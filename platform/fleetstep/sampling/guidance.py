"""Classifier-free guidance as a denoiser around a denoiser, so that every solver can be guided.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import GuidanceSpec

if TYPE_CHECKING:
    from fleetstep.sampling.denoiser import Denoiser, FeatureDenoiser

_NO_CLASS = -1
_FIRST_CHANNELS = 3


class Guided(nn.Module):
    """D = D_u + scale (D_c - D_u), both from one batch of 2B (Ho and Salimans 2022, eq. 6).

    Args:
        denoiser: conditional, trained with label drop-out; registered as a submodule if it is a
            module.
        guidance: scale and channels.
    """

    def __init__(self, denoiser: Denoiser, guidance: GuidanceSpec) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.guidance = guidance

    @property
    def nfe(self) -> int:
        """Network calls per image: a call on a doubled batch is two."""
        return self.guidance.calls * self.denoiser.nfe

    @property
    def sigma_min(self) -> float:
        """Lowest noise level the network knows."""
        return self.denoiser.sigma_min

    @property
    def sigma_max(self) -> float:
        """Highest noise level the network knows."""
        return self.denoiser.sigma_max

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        """The guided image [B, C, H, W] in the dtype of x.

        Raises:
            SamplingError: if there are no labels to guide to.
        """
        if self.guidance.calls == 1:
            return self.denoiser(x_BCHW, sigma_B, self._checked(labels_B))
        return self._combined(self.denoiser(*self._doubled(x_BCHW, sigma_B, labels_B)))

    def with_features(
        self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The guided image, and the bottleneck features of the conditional half [B, c, h, w].

        Raises:
            SamplingError: if there are no labels to guide to.
        """
        denoiser = cast("FeatureDenoiser", self.denoiser)
        if self.guidance.calls == 1:
            return denoiser.with_features(x_BCHW, sigma_B, self._checked(labels_B))
        both, features = denoiser.with_features(*self._doubled(x_BCHW, sigma_B, labels_B))
        return self._combined(both), features.chunk(2)[0]

    def _checked(self, labels_B: Tensor | None) -> Tensor:
        if labels_B is None:
            raise SamplingError(
                f"guidance of scale {self.guidance.scale:g} needs class labels, got none",
                "leave guidance out for an unconditional network",
            )
        return labels_B

    def _doubled(
        self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The batch with its labels, and again without them."""
        labels_B = self._checked(labels_B)
        labels_2B = torch.cat((labels_B, torch.full_like(labels_B, _NO_CLASS)))
        return x_BCHW.repeat(2, 1, 1, 1), sigma_B.repeat(2), labels_2B

    def _combined(self, both_2BCHW: Tensor) -> Tensor:
        with_BCHW, without_BCHW = both_2BCHW.chunk(2)
        # Product and sum apart: a fused multiply-add would make an image depend on its place.
        pull_BCHW = self.guidance.scale * (with_BCHW - without_BCHW)
        guided_BCHW = without_BCHW + pull_BCHW
        if self.guidance.channels == "all":
            return guided_BCHW
        parts = (guided_BCHW[:, :_FIRST_CHANNELS], with_BCHW[:, _FIRST_CHANNELS:])
        return torch.cat(parts, dim=1)


def calls_per_evaluation(denoiser: Denoiser) -> int:
    """Network calls per image that one evaluation of `denoiser` makes."""
    return denoiser.guidance.calls if isinstance(denoiser, Guided) else 1
