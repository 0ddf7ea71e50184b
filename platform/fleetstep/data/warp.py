"""One affine warp of images, resampled through a wavelet's filters so that it neither blurs nor
aliases (Karras et al. 2020, appendix B).

The image is continued by reflection without end, upsampled twice with the sym6 low-pass, read
bilinearly where the inverse transform says, and downsampled with the mirrored filter; the filter's
even shifts are orthonormal, so the identity returns the image.

An image's result does not depend on the others of its batch, to the bit: sizes follow from the
image's alone (a reflected image repeats itself, so one period holds every coordinate, however far
out), and filters are products and sums of slices, not convolutions, whose algorithm follows the
batch.

Legend: B batch, C channels, H W pixels; n sample of the upsampled image, of period P = 4 (H - 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

SYM6: Final = (
    0.015404109327044824, 0.0034907120842221626, -0.11799011114852002, -0.04831174258569806,
    0.49105594192797375, 0.787641141028651, 0.3379294217281658, -0.07263752278637658,
    -0.02106029251237085, 0.04472490177078139, 0.0017677118642540077, -0.00780070832503238,
)  # fmt: skip
"""Low-pass of Daubechies' least asymmetric wavelet with six vanishing moments; sums to sqrt(2)."""

_UP = tuple(math.sqrt(2) * tap for tap in SYM6)
_DOWN = tuple(tap / math.sqrt(2) for tap in SYM6)

# Sample n is centred on pixel (n + _OFFSET) / 2: the filter reaches 5 samples back, and its centre
# of mass is at tap 5.098, not in the middle.
_REACH = 5
_OFFSET = _REACH - sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6)

_SMALLEST_SIDE = 2

# On a CPU, few enough images at a time that their upsampled forms stay in the cache.
_PIECE = 8


def warped(images_BCHW: Tensor, inverse_B23: Tensor) -> Tensor:
    """Each image moved by an affine map of its own: float32 [B, C, H, W], on the images' device.

    Args:
        images_BCHW: float32, sides of two pixels or more.
        inverse_B23: float64 [A b]: the point p (x to the right, y down, in pixels from the image's
            centre) shows what stood at A p + b.

    Raises:
        ValueError: if a side is a single pixel, which has no reflection.
    """
    if min(images_BCHW.shape[2:]) < _SMALLEST_SIDE:
        raise ValueError(
            f"an image is warped from {_SMALLEST_SIDE} x {_SMALLEST_SIDE} pixels on, "
            f"got {tuple(images_BCHW.shape[2:])}"
        )
    piece = _PIECE if images_BCHW.device.type == "cpu" else max(1, len(images_BCHW))
    inverse_B23 = inverse_B23.to(images_BCHW.device)
    parts = zip(torch.split(images_BCHW, piece), torch.split(inverse_B23, piece), strict=True)
    return torch.cat([_warped_piece(*part) for part in parts])


def _warped_piece(images_BCHW: Tensor, inverse_B23: Tensor) -> Tensor:
    height, width = images_BCHW.shape[2:]
    fine = _upsampled(_upsampled(images_BCHW, 3), 2)
    read = F.grid_sample(
        fine,
        _where_to_read(inverse_B23, height, width),
        padding_mode="border",  # never reached; with zeros, some devices take another kernel
        align_corners=True,
    )
    return _downsampled(_downsampled(read, 3), 2)


def _upsampled(x: Tensor, dim: int) -> Tensor:
    """Twice the samples along `dim`: n = 0 ... P + 1, one period and the two that follow."""
    size = x.shape[dim]
    period = 2 * (size - 1)
    ahead = _REACH // 2 + 1
    places = torch.arange(-ahead, period + ahead + 1, device=x.device) % period
    continued = x.index_select(dim, torch.minimum(places, period - places))

    def behind(start: int) -> Iterable[Tensor]:
        """The pixels start, start - 1, ... before each of the period's."""
        return (continued.narrow(dim, ahead + start - i, period + 1) for i in range(6))

    even, odd = _combined(_UP[1::2], behind(ahead - 1)), _combined(_UP[::2], behind(ahead))
    return torch.stack((even, odd), dim + 1).flatten(dim, dim + 1)


def _downsampled(x: Tensor, dim: int) -> Tensor:
    """Half the samples along `dim`, of which the first lies `_REACH` before the image's own."""
    size = x.shape[dim] // 2 - _REACH
    x = x.movedim(dim, -1)
    slices = (x[..., k : k + 2 * size - 1 : 2] for k in range(len(_DOWN)))
    return _combined(_DOWN, slices).movedim(-1, dim)


def _combined(weights: Sequence[float], tensors: Iterable[Tensor]) -> Tensor:
    """sum_k weights[k] tensors[k]; products and sums apart, for a fused multiply-add rounds
    differently in the remainder of a vector loop.
    """
    products = (weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
    total = next(products)
    for product in products:
        total += product
    return total


def _where_to_read(inverse_B23: Tensor, height: int, width: int) -> Tensor:
    """The upsampled image's coordinates for `grid_sample`: float32 [B, 2H + 10, 2W + 10, 2]."""
    x_W, y_H = (
        torch.arange(-_REACH, 2 * size + _REACH, device=inverse_B23.device, dtype=torch.float64)
        + (_OFFSET - (size - 1))
        for size in (width, height)
    )
    a_B11 = inverse_B23[..., None, None]
    axes = []
    for axis, size in enumerate((width, height)):
        linear = a_B11[:, axis, 0] * x_W + a_B11[:, axis, 1] * y_H[:, None]
        n = linear + 2 * a_B11[:, axis, 2] + (size - 1 - _OFFSET)
        period = 4 * (size - 1)
        # The last sample, P + 1, is at +1.
        axes.append(n.remainder(period) * (2 / (period + 1)) - 1)
    return torch.stack(axes, -1).float()
