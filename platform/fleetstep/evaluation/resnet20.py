"""ResNet-20 for 32x32 images (He et al. 2016, section 4.2) as a feature extractor.

Legend: B batch, C channels, H W pixels, D features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.network_extractor import normalised
from fleetstep.evaluation.spec import Rn20Spec

UInt8 = npt.NDArray[np.uint8]

SIDE = Rn20Spec.largest_side
WIDTHS = (16, 32, 64)
FEATURES = sum(WIDTHS)
"""Length of a feature vector: the spatial means after each of the three stages, 16 + 32 + 64."""

CLASSES = 10

CHANNEL_MEANS = (0.485, 0.456, 0.406)
CHANNEL_DEVIATIONS = (0.229, 0.224, 0.225)
PREPROCESS = "uint8 RGB; nearest x floor(32/side), zero pad to 32x32; /255, -mean, /sd"


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stride = 1 if width_in == width_out else 2
        self.new_channels = width_out - width_in
        self.conv1 = nn.Conv2d(width_in, width_out, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width_in, H, W) to (B, width_out, H/stride, W/stride)."""
        h_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        h_BCHW = self.bn2(self.conv2(h_BCHW))
        if self.new_channels:
            # Option A: every second pixel, new channels of zeros on both sides of the old ones.
            x_BCHW = x_BCHW[:, :, ::2, ::2]
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, self.new_channels // 2, self.new_channels // 2))
        return F.relu(h_BCHW + x_BCHW)


class ResNet20(nn.Module):
    """Three stages of three blocks, 269,722 parameters with ten classes."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        narrow, middle, wide = WIDTHS
        self.conv1 = nn.Conv2d(3, narrow, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.layer1 = _stage(narrow, narrow)
        self.layer2 = _stage(narrow, middle)
        self.layer3 = _stage(middle, wide)
        self.linear = nn.Linear(wide, classes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Spatial means of the three stages, side by side: (B, 3, 32, 32) to (B, 112)."""
        h1_BCHW = self.layer1(F.relu(self.bn1(self.conv1(x_BCHW))))
        h2_BCHW = self.layer2(h1_BCHW)
        h3_BCHW = self.layer3(h2_BCHW)
        return torch.cat([h.mean((2, 3)) for h in (h1_BCHW, h2_BCHW, h3_BCHW)], 1)

    def classify(self, features_BD: Tensor) -> Tensor:
        """Class logits (B, classes) of `features`, of which they read the last 64 alone."""
        logits: Tensor = self.linear(features_BD[:, -WIDTHS[-1] :])
        return logits

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Class logits: (B, 3, 32, 32) to (B, classes)."""
        return self.classify(self.features(x_BCHW))


def _stage(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        Block(width_in, width_out), Block(width_out, width_out), Block(width_out, width_out)
    )


def to_canvas(images_BCHW: UInt8) -> UInt8:
    """Images on the canvas of the network: uint8 (B, 1 or 3, H, W) to (B, 3, 32, 32).

    One channel is repeated to three; pixels are repeated by the largest whole factor that fits
    (8x8 by 4, 16x16 by 2); the rest is a black border (2 pixels around 28x28). No interpolation,
    so no resize library can change a value.

    Raises:
        ExtractorError: images larger than the canvas.
    """
    height, width = images_BCHW.shape[2:]
    if max(height, width) > SIDE:
        raise ExtractorError(
            f"the fs-rn20 extractor reads images of up to {SIDE}x{SIDE}, got {height}x{width}",
            "score larger images with Inception: extractor={kind: inception, path: ...}",
        )
    factor = SIDE // max(height, width)
    canvas = images_BCHW.repeat(factor, 2).repeat(factor, 3)
    above, left = (SIDE - height * factor) // 2, (SIDE - width * factor) // 2
    below, right = SIDE - height * factor - above, SIDE - width * factor - left
    canvas = np.pad(canvas, ((0, 0), (0, 0), (above, below), (left, right)))
    return canvas if canvas.shape[1] == 3 else canvas.repeat(3, 1)


def normalise(canvas_B3HW: Tensor) -> Tensor:
    """Pixels 0..255 to the network's input, float32 of the same shape."""
    return normalised(canvas_B3HW, CHANNEL_MEANS, CHANNEL_DEVIATIONS)
