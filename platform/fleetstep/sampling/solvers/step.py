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
from typing import Protocol, TypeAlias

from torch import Tensor

Level: TypeAlias = "float | Tensor"
"""A noise level: one for the batch, on the host, or one per image: float64 [B, 1, 1, 1]."""

Levels = Sequence[float]
"""Noise levels on the host, strictly descending; the last is zero for a solver that ends there."""


class Problem(Protocol):
    """All that a solver may ask for."""

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """D at (x, sigma), [B, C, H, W]: one network call; labels are bound already."""

    def denoise_with_features(self, x_BCHW: Tensor, sigma: Level) -> tuple[Tensor, Tensor | None]:
        """D, and the network's bottleneck features [B, c, h, w] of the same call.

        The features are None where no network was called (analytical first step).
        """

    def noise(self, k: int) -> Tensor:
        """The trajectory's k-th standard normal noise, of x's shape; the same whenever asked."""


@dataclass(frozen=True)
class State:
    """Where a trajectory is.

    Args:
        i: the interval to cross next, from level i to level i + 1.
        x_BCHW: the image at level i.
        history: outputs of earlier evaluations in the solver's own form (eps or D), newest first.
        levels: the levels of `history`, for solvers whose levels differ between images.
    """

    i: int
    x_BCHW: Tensor
    history: tuple[Tensor, ...] = ()
    levels: tuple[Level, ...] = ()


Step = Callable[[Problem, State], State]
"""Crosses exactly one interval; pure but for the network calls it makes."""


def slope(problem: Problem, x_BCHW: Tensor, sigma: Level) -> Tensor:
    """dx/dsigma = eps at (x, sigma), [B, C, H, W] (Karras et al. 2022, eqs. 1 and 3)."""
    return (x_BCHW - problem.denoise(x_BCHW, sigma)) / matched(sigma, x_BCHW)


def matched(coefficient: Level, x_BCHW: Tensor) -> Level:
    """A coefficient in the dtype of x: one per image would lift a float32 state to float64."""
    return coefficient if isinstance(coefficient, float | int) else coefficient.to(x_BCHW.dtype)


def weighted_sum(weights: Sequence[Level], tensors: Sequence[Tensor]) -> Tensor:
    """sum_j weights[j] tensors[j], added in order.

    Products and sums stay separate operations: a fused multiply-add rounds differently in the
    vector loop and in its remainder, and an image would depend on its place in the batch. The sum
    is fresh, and no gradient reads it: it is added to in place.
    """
    total = matched(weights[0], tensors[0]) * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total += matched(weight, tensor) * tensor
    return total
