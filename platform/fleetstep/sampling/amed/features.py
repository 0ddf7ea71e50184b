"""What the predictor sees of an image: 64 numbers from a call that was paid for already.

Legend: B batch, c channels, h w pixels of the bottleneck.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

SIDE = 8
FEATURES = SIDE * SIDE


def pooled(features: Tensor) -> Tensor:
    """The mean over channels, resized to 8x8, detached: [B, c, h, w] to [B, 64].

    EDM's networks have an 8x8 block (Zhou et al. 2024, section 3.4), which stays as it is. Others
    are averaged down where larger, and interpolated where smaller.
    """
    mean_B1hw = features.detach().mean(dim=1, keepdim=True)
    height, width = mean_B1hw.shape[2:]
    if (height, width) != (SIDE, SIDE):
        if min(height, width) >= SIDE:
            mean_B1hw = F.adaptive_avg_pool2d(mean_B1hw, SIDE)
        else:
            mean_B1hw = F.interpolate(mean_B1hw, (SIDE, SIDE), mode="bilinear")
    return mean_B1hw.flatten(1)
