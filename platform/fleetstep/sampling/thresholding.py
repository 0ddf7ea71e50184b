"""Dynamic thresholding of a denoised image (Saharia et al. 2022, section 2.3).

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from torch import Tensor

from fleetstep.sampling.spec import ThresholdingSpec


def thresholded(denoised_BCHW: Tensor, spec: ThresholdingSpec) -> Tensor:
    """D clipped to [-q, q] and rescaled to the data's range, q per image; dtype and shape kept.

    q is the quantile of |D| over channels and pixels, interpolated linearly, and at least
    `spec.maximum`; so an image within the range stays as it is. An infinite one becomes nan.
    """
    q_B = _quantile(denoised_BCHW.flatten(1).abs(), spec.quantile).clamp(min=spec.maximum)
    q_B111 = q_B.view(-1, *[1] * (denoised_BCHW.dim() - 1))
    clipped_BCHW = denoised_BCHW.clamp(min=-q_B111, max=q_B111)
    return clipped_BCHW / (q_B111 / spec.maximum)


def _quantile(values_BD: Tensor, share: float) -> Tensor:
    """The quantile of each row [B], between the two values whose ranks enclose share (D - 1).

    torch.quantile refuses rows of more than 2^24 values, finds the rank in the values' precision,
    and sorts them all, where the few largest do.
    """
    rank = share * (values_BD.shape[1] - 1)
    below = int(rank)
    largest_BK = values_BD.topk(values_BD.shape[1] - below, dim=1).values
    low_B, high_B = largest_BK[:, -1], largest_BK[:, -2:][:, 0]
    # Zero, or nan for a row with an infinite value: clipping would hide it.
    unsound_B = largest_BK[:, 0] - largest_BK[:, 0]
    return low_B + (rank - below) * (high_B - low_B) + unsound_B
