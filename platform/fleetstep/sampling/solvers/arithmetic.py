"""Coefficients from levels that are host numbers or one per image, by one set of formulas.

With numbers everything is the C library's float64; with tensors it is torch's, and gradients pass.
"""

from __future__ import annotations

import math

import torch

from fleetstep.sampling.solvers.step import Level


def log(value: Level) -> Level:
    """Natural logarithm; of level zero: minus infinity."""
    if isinstance(value, torch.Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf


def exp(value: Level) -> Level:
    """Exponential."""
    return value.exp() if isinstance(value, torch.Tensor) else math.exp(value)


def expm1(value: Level) -> Level:
    """exp(value) - 1 without cancellation."""
    return value.expm1() if isinstance(value, torch.Tensor) else math.expm1(value)


def log1p(value: Level) -> Level:
    """log(1 + value) without cancellation."""
    return value.log1p() if isinstance(value, torch.Tensor) else math.log1p(value)


def atan(value: Level) -> Level:
    """Arc tangent."""
    return value.atan() if isinstance(value, torch.Tensor) else math.atan(value)


def sqrt(value: Level) -> Level:
    """Square root."""
    return value.sqrt() if isinstance(value, torch.Tensor) else math.sqrt(value)


def is_zero(level: Level) -> bool:
    """Whether the level is the host's zero: levels of images are never zero."""
    return not isinstance(level, torch.Tensor) and level == 0
