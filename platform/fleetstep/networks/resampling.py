"""Halving and doubling of images: plain averages, or the binomial filter of NCSN++."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def binomial_filter(x_BCHW: Tensor) -> Tensor:
    """[1, 3, 3, 1] / 8 along both axes, one copy a channel of x: [C, 1, 4, 4], sum 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x_BCHW.device, dtype=x_BCHW.dtype) / 8
    return torch.outer(taps, taps).expand(x_BCHW.shape[1], 1, 4, 4)


def _average_down(x_BCHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_BCHW, 2)


def _average_up(x_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=2, mode="nearest")


def _binomial_down(x_BCHW: Tensor) -> Tensor:
    return F.conv2d(x_BCHW, binomial_filter(x_BCHW), stride=2, padding=1, groups=x_BCHW.shape[1])


def _binomial_up(x_BCHW: Tensor) -> Tensor:
    # A quarter of the taps meets a pixel: the gain of 4 keeps the mean.
    return F.conv_transpose2d(
        x_BCHW, 4 * binomial_filter(x_BCHW), stride=2, padding=1, groups=x_BCHW.shape[1]
    )


@dataclass(frozen=True)
class Resampling:
    """How a network halves and doubles its images; pixels beyond the border count as zero."""

    down: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]


AVERAGE = Resampling(_average_down, _average_up)
BINOMIAL = Resampling(_binomial_down, _binomial_up)
