"""What one measurement found, and whether it is what theory and the solver's declaration say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

SLOPE_TOLERANCE = 0.05
"""Of a measured slope against the expected one."""

DECLARED_TOLERANCE = 0.15
"""Of a measured order against the declared whole number: the slope of Adams-Bashforth 4 is still
3.9 where rounding takes over."""

VALUE_TOLERANCE = 0.01
"""Of a measured error against the known one, relative: the table on two modes was summed on a
coarse grid, 0.7 % off at T = 32; DEIS's reference integrates by rectangles, 0.6 % off at order 4.
"""

Group = Literal["order", "order in law", "total variation", "tolerance"]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One solver on one problem.

    Args:
        group: what was measured: the error of the end point ("order"), of the end's law ("order
            in law"), the total variation to the law of the data at the last level ("total
            variation"), or the error against the tolerance of an adaptive solver ("tolerance").
        kind, solver: of the spec, and its label.
        problem: data; and after a semicolon the levels that were walked.
        sizes: steps (orders), T (total variation) or tolerances.
        errors: one for each size.
        slope: of log error at the last two sizes: against log of the steps, of T / ln T, or of
            the tolerance; positive where the error falls.
        ratio: error over the known one: at the fewest steps (orders), where the constant shows
            that the order hides, or the farthest from 1 (total variation); None where none is
            known.
        pinned: whether the known error is this package's own earlier one.
        expected: the slope that theory and earlier measurements give; None if none is claimed.
        declared: the solver's `global_order`, where it is about what was measured.
        failures: what is not as it should be; empty if all is.
        note: settings that matter, in words.
    """

    group: Group
    kind: str
    solver: str
    problem: str
    sizes: tuple[float, ...]
    errors: tuple[float, ...]
    slope: float
    expected: float | None
    declared: int | None = None
    ratio: float | None = None
    pinned: bool = False
    failures: tuple[str, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the JSON record."""
        return asdict(self) | {"passed": self.passed}


def last_slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """-d log(error) / d log(size) over the last two sizes; NaN if an error is zero."""
    (n0, n1), (e0, e1) = sizes[-2:], errors[-2:]
    if min(e0, e1) <= 0:
        return math.nan
    return -math.log(e1 / e0) / math.log(n1 / n0)


def slope_failures(slope: float, expected: float | None, declared: int | None) -> tuple[str, ...]:
    """What is wrong with a slope, in words."""
    found = []
    # "not <=": NaN fails.
    if expected is not None and not abs(slope - expected) <= SLOPE_TOLERANCE:
        found.append(f"slope {slope:.3f}, expected {expected:.2f} ± {SLOPE_TOLERANCE:g}")
    if declared is not None and not abs(slope - declared) <= DECLARED_TOLERANCE:
        found.append(f"slope {slope:.3f}, declared order {declared} ± {DECLARED_TOLERANCE:g}")
    return tuple(found)


def value_failures(
    name: str, size: str, sizes: Sequence[int], errors: Sequence[float], known: Sequence[float]
) -> tuple[str, ...]:
    """What is wrong with errors whose values are known, in words.

    Args:
        name, size: what an error and a size are called, as in "total variation ... at T = 100".
        sizes, errors, known: one for another.
    """
    return tuple(
        f"{name} {error:.4g} at {size} = {count}, expected {value:.4g} ± {VALUE_TOLERANCE:.0%}"
        for count, error, value in zip(sizes, errors, known, strict=True)
        # "not <=": NaN fails.
        if not abs(error / value - 1) <= VALUE_TOLERANCE
    )
