"""Classifier-free guidance and dynamic thresholding: what is done to D before a solver sees it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fleetstep.spec import Spec


class GuidanceSpec(Spec):
    """Classifier-free guidance: D = D_u + scale (D_c - D_u) (Ho and Salimans 2022, eq. 6).

    The network must have been trained with label drop-out: D_u is its image for no class.

    Attributes:
        scale: 1 is the plain conditional image, 0 the unconditional one; the paper's w is
            scale - 1.
        channels: which channels are guided. "first_three" leaves the others conditional, as the
            released DiT samples its four latent channels.
    """

    scale: float = Field(ge=0)
    channels: Literal["all", "first_three"] = "all"

    @property
    def calls(self) -> int:
        """Network calls per image in one evaluation of the denoiser: 2, or 1 at scale 1."""
        return 1 if self.scale == 1 else 2


class ThresholdingSpec(Spec):
    """Dynamic thresholding of D, after guidance (Saharia et al. 2022, section 2.3).

    Per image, q is the quantile of |D|, at least `maximum`; D is clipped to [-q, q] and multiplied
    by maximum / q. For pixels in [-1, 1] only: latents have no such range.

    Attributes:
        quantile: share of an image's values that stay unclipped.
        maximum: the largest value that data take.
    """

    quantile: float = Field(0.995, gt=0, le=1)
    maximum: float = Field(1.0, gt=0)
