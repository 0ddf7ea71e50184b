"""What solvers share: the state between two levels, and the function that crosses one interval.

A solver is a function from the levels of a schedule to a `Step`. It computes its coefficients
there, once, on the host in float64; the `Step` it returns only multiplies and adds tensors, and
keeps nothing: all that travels is the `State`.

Legend: B batch, C channels, H W pixels; x noisy image, D denoised image,
eps = (x - D) / sigma = dx/dsigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Levels = Sequence[float]
"""Noise levels on the host, strictly descending; the last is zero for a solver that ends there."""

Denoise = Callable[[Tensor, float], Tensor]
"""(x_BCHW, sigma) -> D_BCHW: one network call at one level, labels already bound."""


@dataclass(frozen=True)
class State:
    """Where a trajectory is.

    Args:
        i: the interval to cross next, from level i to level i + 1.
        x_BCHW: the image at level i.
        history: outputs of earlier evaluations in the solver's own form (eps or D), newest first.
    """

    i: int
    x_BCHW: Tensor
    history: tuple[Tensor, ...] = ()


Step = Callable[[Denoise, State], State]
"""Crosses exactly one interval; pure but for the network calls it makes."""


def slope(denoise: Denoise, x_BCHW: Tensor, sigma: float) -> Tensor:
    """dx/dsigma = eps at (x, sigma), [B, C, H, W] (Karras et al. 2022, eqs. 1 and 3)."""
    return (x_BCHW - denoise(x_BCHW, sigma)) / sigma


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """sum_j weights[j] tensors[j], added in order.

    Products and sums stay separate operations: a fused multiply-add rounds differently in the
    vector loop and in its remainder, and an image would depend on its place in the batch.
    """
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total + weight * tensor
    return total
