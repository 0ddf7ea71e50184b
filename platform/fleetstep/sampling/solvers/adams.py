"""Adams-Bashforth methods: the newest slope eps is combined with remembered ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fleetstep.sampling.solvers.linear import EpsOutput, Weights
from fleetstep.sampling.solvers.step import Level

# Weights of equal steps, newest slope first (Liu et al. 2022, PNDM; lower orders are the same
# family).
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class IpndmRule(EpsOutput):
    """iPNDM (Zhang and Chen 2023): one call a step; the order rises by one a step up to `order`.

    The weights are those of equal steps whatever the grid, so the global order is 2 for any
    `order` above one.
    """

    order: int

    @property
    def memory(self) -> int:
        """All but the newest slope."""
        return self.order - 1

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """The width of the step times the weights of equal steps."""
        width = after - levels[0]
        return Weights(None, tuple(width * w for w in ADAMS_BASHFORTH[len(levels)]))


@dataclass(frozen=True)
class VariableRule(EpsOutput):
    """Adams-Bashforth with the weights of the steps as they are, or LMS: the polynomial through
    the newest slopes, integrated exactly.
    """

    order: int

    @property
    def memory(self) -> int:
        """All but the newest slope."""
        return self.order - 1

    def weights(self, after: Level, levels: Sequence[Level], position: int, steps: int) -> Weights:
        """Integrals of the Lagrange basis through `levels`, from levels[0] to `after`."""
        width = after - levels[0]
        # In u = (sigma - levels[0]) / width the step is [0, 1].
        roots = [(level - levels[0]) / width for level in levels]
        moments = [1 / (power + 1) for power in range(len(roots))]
        return Weights(None, tuple(width * w for w in basis_integrals(roots, moments)))


def basis_integrals(roots: Sequence[Level], moments: Sequence[Level]) -> list[Level]:
    """Integrals of the Lagrange basis through `roots`, from those of the powers 0, 1, 2, ...

    With the newest root at zero and the others on the side that the step leaves, all terms of a
    sum have one sign, and nothing cancels.
    """
    return [_basis_integral(roots, j, moments) for j in range(len(roots))]


def _basis_integral(roots: Sequence[Level], j: int, moments: Sequence[Level]) -> Level:
    """Integral of the polynomial that is one at roots[j] and zero at the others."""
    coefficients: list[Level] = [1.0]
    scale: Level = 1.0
    for root in (*roots[:j], *roots[j + 1 :]):
        coefficients = _times_root(coefficients, root)
        scale = scale * (roots[j] - root)
    total = coefficients[0] * moments[0]
    for coefficient, moment in zip(coefficients[1:], moments[1:], strict=True):
        total = total + coefficient * moment
    return total / scale


def _times_root(coefficients: Sequence[Level], root: Level) -> list[Level]:
    """The coefficients, lowest power first, of a polynomial times (u - root)."""
    product: list[Level] = [-root * coefficients[0]]
    for lower, same in pairwise(coefficients):
        product.append(lower - root * same)
    return [*product, coefficients[-1]]
