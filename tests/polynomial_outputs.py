"""Problems whose outputs are polynomials in L = -log sigma, whatever x is.

The integrals of exponential integrators are exact there, on any levels: a wrong weight shows
without a reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fleetstep.sampling.solvers.step import Level, State, Step

UNEVEN = (5.0, 3.1, 2.6, 1.1, 0.9, 0.3, 0.25)
"""Levels with nothing regular about them."""


class Polynomial:
    """M = c_0 + c_1 L + c_2 L^2 + ..., as D (prediction "data") or as eps ("noise").

    Args:
        coefficients: c_0, c_1, ...
        prediction: what M is.
    """

    def __init__(self, coefficients: Sequence[float], prediction: str) -> None:
        self.coefficients, self.prediction = coefficients, prediction
        self.seen: list[Level] = []

    def value(self, sigma: float) -> float:
        """M at a level."""
        return sum(c * (-math.log(sigma)) ** k for k, c in enumerate(self.coefficients))

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        """The problem's D; the levels asked for are noted in `seen`."""
        assert isinstance(sigma, float)
        self.seen.append(sigma)
        value = torch.full_like(x_BCHW, self.value(sigma))
        return value if self.prediction == "data" else x_BCHW - sigma * value

    def denoise_with_features(self, x_BCHW: Tensor, sigma: Level) -> tuple[Tensor, None]:
        """Not for learned solvers."""
        raise AssertionError("not a learned solver")

    def noise(self, k: int) -> Tensor:
        """Not for stochastic solvers."""
        raise AssertionError("not a stochastic solver")

    def flow(self, x: float, before: float, after: float) -> float:
        """The exact end of dx/dsigma = (x - D) / sigma, by quadrature."""
        points, weights = np.polynomial.legendre.leggauss(60)
        a, b = math.log(before), math.log(after)
        total = 0.0
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            sigma = math.exp(a + (b - a) * point)
            pull = 1 / sigma if self.prediction == "data" else -sigma
            total -= weight * (b - a) * pull * self.value(sigma)
        if self.prediction == "data":
            return after / before * x + after * total
        return x + total


def walked(step: Step, problem: Polynomial, steps: int) -> list[float]:
    """The image, one number, at each level."""
    state = State(0, torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64))
    passed = [state.x_BCHW.item()]
    for _ in range(steps):
        state = step(problem, state)
        passed.append(state.x_BCHW.item())
    return passed
