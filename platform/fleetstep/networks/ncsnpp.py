"""What NCSN++ adds to DDPM++ (Song et al. 2021; Karras et al. 2022, table 7): random Fourier
features of the noise level, and a pyramid of the input in the encoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fleetstep.networks.layers import Conv
from fleetstep.networks.resampling import binomial_filter
from fleetstep.networks.starts import Normal

# Standard deviation of the frequencies, in turns per unit of c_noise.
_FREQUENCY_STD = 16.0


class FourierEmbedding(nn.Module):
    """[sin, cos] of 2 pi f c_noise at fixed frequencies f ~ N(0, 16^2), drawn once from the seed.

    The frequencies are a buffer: no optimiser moves them, snapshots keep them.
    """

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.empty(channels // 2))

    def start_(self, seed: int, name: str) -> None:
        """Draw the frequencies."""
        Normal(_FREQUENCY_STD).fill(self.frequencies, seed, f"network|{name}.frequencies")

    def forward(self, c_noise_B: Tensor) -> Tensor:
        """Embedding of shape [B, channels], float32."""
        angle = c_noise_B.float()[:, None] * (2 * math.pi * self.frequencies.float())
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class PyramidStep(Conv):
    """One level of the pyramid: a convolution, then the binomial filter at every other pixel."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """x at half the resolution."""
        # One pixel more on every side than the filter's own padding would leave: the filter sees
        # the convolution beyond the border, not zeros.
        wide = F.conv2d(x_BCHW, self.weight, self.bias, padding=2)
        return F.conv2d(wide, binomial_filter(wide), stride=2, groups=wide.shape[1])
