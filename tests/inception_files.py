"""TorchScript files with the inputs and outputs of `inception-2015-12-05.pt`, at random weights.

The real file cannot be had everywhere. These are small, and give what it gives: a body `layers`
for images of 299x299, and a call that resizes inside and returns features or probabilities.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 2048
CLASSES = 1008


class Layers(nn.Module):
    """Stands for Inception's body: (B, 3, 299, 299) to (B, 2048, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 4)
        self.wide = nn.Conv2d(8, 64, 5, 4)
        self.head = nn.Conv2d(64, FEATURES, 1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h_B64hw = F.relu(self.wide(F.relu(self.stem(x_B3HW))))
        return F.relu(self.head(F.adaptive_avg_pool2d(h_B64hw, 1)))


class Inception(nn.Module):
    """The outer form, by the names of the file's arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(FEATURES, CLASSES)

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        height, width = img.shape[2], img.shape[3]
        # TensorFlow 1: pixel i of the larger image lies at i * width / 299 of the smaller one.
        rows = torch.arange(299) * (height / 299.0)
        columns = torch.arange(299) * (width / 299.0)
        grid_HW2 = torch.stack(
            [
                (2 * columns / (width - 1) - 1).unsqueeze(0).repeat(299, 1),
                (2 * rows / (height - 1) - 1).unsqueeze(1).repeat(1, 299),
            ],
            2,
        )
        resized = F.grid_sample(
            img.to(torch.float32),
            grid_HW2.unsqueeze(0).repeat(img.shape[0], 1, 1, 1),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        features = self.layers((resized - 128) / 128).reshape(-1, 2048)
        if return_features:
            return features
        logits = features @ self.output.weight.t()
        if not no_output_bias:
            logits = logits + self.output.bias
        return torch.softmax(logits, 1)


def write_inception(path: Path, seed: int = 0) -> None:
    """Write such a file; equal seeds give equal weights."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        torch.manual_seed(seed)
        network = Inception().eval()
        # Classes that differ: without it every probability is about 1/1008.
        nn.init.normal_(network.output.weight, std=2.0)
        nn.init.normal_(network.output.bias, std=2.0)
        # DeepSpeed's stage 3 leaves a function of its own there, which TorchScript cannot hold.
        with mock.patch.object(F, "linear", torch._C._nn.linear):
            torch.jit.save(torch.jit.script(network), path)
