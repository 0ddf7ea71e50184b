"""Euler's method, the same as DDIM in any parametrisation (Song et al. 2021, eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetstep.sampling.solvers.linear import EpsOutput, Weights
from fleetstep.sampling.solvers.step import Level


@dataclass(frozen=True)
class EulerRule(EpsOutput):
    """First order, one call a step: x' = x + (s' - s) eps(x, s)."""

    memory: int = 0

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """The width of the step."""
        return Weights(None, (after - levels[0],))
