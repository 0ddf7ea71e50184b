"""Horizontal flips, decided by the position in the stream.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fleetstep import rng


def flipped(
    images_BCHW: npt.NDArray[np.uint8], mask_B: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """A copy of the batch [B, C, H, W] whose images chosen by the mask [B] are mirrored."""
    out = images_BCHW.copy()
    out[mask_B] = images_BCHW[mask_B, :, :, ::-1]
    return out


def flip_mask(seed: int, first: int, count: int) -> npt.NDArray[np.bool_]:
    """Which stream positions first .. first+count-1 are mirrored: fair coins, shape [count]."""
    return rng.uniform(seed, "flip", first, count) < 0.5
