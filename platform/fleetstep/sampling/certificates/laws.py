"""Rates of laws: the orders of stochastic solvers in law, and total variation under schedule (13).

Theory (Li et al. 2024) bounds total variation by powers of ln(T) / T. The rates seen on one law
are not the bounds: eq. 10 falls as ln(T) / T where its bound falls as the root of that, and on
data that are no Gaussian eq. 23 improves the constant alone. So a rate is judged by the table of
values at each T that an independent computation gave, and by its slope against ln(T) / T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fleetstep.sampling.certificates.gaussian_law import (
    distance,
    end_law,
    total_variation_between,
)
from fleetstep.sampling.certificates.problems import GAUSSIAN, TWO_MODES, WIDE, Line
from fleetstep.sampling.certificates.push_forward import total_variation
from fleetstep.sampling.certificates.quadrature import end_total_variation
from fleetstep.sampling.certificates.record import (
    Certificate,
    last_slope,
    slope_failures,
    value_failures,
)
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    SIGMA_MAX,
    SIGMA_MIN,
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    AcceleratedScheduleSpec,
    DdpmSolverSpec,
    DpmppSdeSpec,
    PolynomialSpec,
    SolverSpec,
)

LAW_STEPS = (64, 128, 256, 512, 1024)
QUICK_LAW_STEPS = (256, 512)


@dataclass(frozen=True)
class LawCase:
    """A stochastic solver whose error in law, on Gaussian data, has the slope `expected`."""

    solver: SolverSpec
    expected: float
    declared: int | None
    note: str = ""


@dataclass(frozen=True)
class RateCase:
    """A sampler under schedule (13), and its total variation at each T.

    Args:
        solver: with its schedule.
        data: on a line.
        name: of the data.
        table: (T, total variation).
        quick: how many of them the reduced form measures.
        measure: (solver, data, schedule, T) -> total variation.
    """

    solver: SolverSpec
    data: Line
    name: str
    table: tuple[tuple[int, float], ...]
    quick: int
    measure: Callable[[SolverSpec, Line, AcceleratedScheduleSpec, int], float]


def law_cases() -> Iterator[LawCase]:
    """Every stochastic solver."""
    levels = PolynomialSpec()
    for variance in ("fixed_small", "fixed_large"):
        yield LawCase(DdpmSolverSpec(variance=variance, schedule=levels), 1.00, 1)
    for order, expected in ((2, 2.00), (3, 1.98)):
        # Declared for all data, where it is one.
        yield LawCase(DpmppSdeSpec(order=order, schedule=levels), expected, None, _LINEAR)
    yield LawCase(AcceleratedDdpmSpec(equation=10, schedule=levels), 1.00, 1)
    yield LawCase(AcceleratedDdpmSpec(equation=10, noise="printed", schedule=levels), 1.00, 1)
    yield LawCase(AcceleratedDdpmSpec(schedule=levels), 2.00, 2)
    yield LawCase(AcceleratedDdpmSpec(noise="printed", schedule=levels), 1.00, 1)


_LINEAR = "two on Gaussian data only; one is declared, for all data"


def certify_law(case: LawCase, steps: Sequence[int] = LAW_STEPS) -> Certificate:
    """Measure the Wasserstein-2 distance of the end's exact law to N(0, 4) with noise 0.002."""
    errors = tuple(_distance(case.solver, n) for n in steps)
    slope = last_slope(steps, errors)
    return Certificate(
        group="order in law",
        kind=case.solver.kind,
        solver=case.solver.label,
        problem=f"N(0, 4); {case.solver.chosen_schedule.label} on [0.002, 80]",
        sizes=tuple(map(float, steps)),
        errors=errors,
        slope=slope,
        expected=case.expected,
        declared=case.declared,
        failures=slope_failures(slope, case.expected, case.declared),
        note=case.note,
    )


def _distance(solver: SolverSpec, steps: int) -> float:
    ((_, _, variance),) = WIDE
    levels = nodes(solver, steps + 1, SIGMA_MIN, SIGMA_MAX)
    law = end_law(solver, WIDE, levels, variance + SIGMA_MAX**2)
    return distance(law, WIDE, SIGMA_MIN)


def rate_cases() -> Iterator[RateCase]:
    """The accelerated samplers, and what they accelerate."""
    two_modes, gaussian = "0.6 N(−0.7, 0.04) + 0.4 N(0.8, 0.09)", "N(0.5, 0.09)"
    schedule = AcceleratedScheduleSpec(c0=2, c1=6)
    values: tuple[float, ...]
    for equation, values in _DETERMINISTIC.items():
        solver: SolverSpec = AcceleratedDdimSpec(equation=equation, schedule=schedule)
        table = _table(100, values)
        yield RateCase(solver, TWO_MODES, two_modes, table, 3, total_variation)
    schedule = AcceleratedScheduleSpec(c0=2, c1=8)
    for solver, values in (
        (AcceleratedDdpmSpec(equation=10, noise="printed", schedule=schedule), _GAUSSIAN_10),
        (AcceleratedDdpmSpec(noise="printed", schedule=schedule), _GAUSSIAN_23_PRINTED),
        (AcceleratedDdpmSpec(schedule=schedule), _GAUSSIAN_23),
        (DdpmSolverSpec(schedule=schedule), _GAUSSIAN_DDPM),
    ):
        yield RateCase(solver, GAUSSIAN, gaussian, _table(64, values), 4, _on_gaussian)
    schedule = AcceleratedScheduleSpec(c0=1, c1=5)
    for equation, noise, values in _STOCHASTIC:
        solver = AcceleratedDdpmSpec(equation=equation, noise=noise, schedule=schedule)
        yield RateCase(solver, TWO_MODES, two_modes, _table(32, values), 3, _on_modes)


# Total variation at T = 100, 200, 400, ... (eqs. 8 to 30), at 64, 128, ... (Gaussian) and at
# 32, 64, ... (two modes).
_DETERMINISTIC: Final = {
    8: (0.40373, 0.24425, 0.14717, 0.088244, 0.052527, 0.030989),
    15: (0.032751, 0.014052, 0.0053532, 0.0019081, 0.00065049, 0.00021462),
    22: (0.038936, 0.013471, 0.0046063, 0.0015319, 0.00049588, 0.00015691),
    28: (0.025863, 0.015042, 0.0085682, 0.0048026, 0.0026578, 0.0014561),
    30: (0.0037025, 0.0014120, 0.00049701, 0.00016444, 5.1933e-5, 1.5864e-5),
}
_GAUSSIAN_10: Final = (
    *(0.040650, 0.025034, 0.014875, 0.0085770, 0.0048358, 0.0026825),
    *(0.0014702, 0.00079849, 0.00043059),
)
_GAUSSIAN_23_PRINTED: Final = (
    *(0.0041838, 0.0040657, 0.0030141, 0.0019557, 0.0011760, 0.00067585),
    *(0.00037771, 0.00020734, 0.00011246),
)
_GAUSSIAN_23: Final = (
    *(0.013511, 0.0046959, 0.0016006, 0.00052270, 0.00016450, 5.0343e-5),
    *(1.5079e-5, 4.4408e-6, 1.2902e-6),
)
_GAUSSIAN_DDPM: Final = (
    *(0.052608, 0.032940, 0.019917, 0.011627, 0.0066060, 0.0036808),
    *(0.0020225, 0.0011000, 0.00059364),
)
_STOCHASTIC: Final = (
    (10, "printed", (0.10152, 0.048015, 0.025093, 0.013720, 0.0075964)),
    (10, "inside", (0.12589, 0.059451, 0.030914, 0.016776, 0.0092418)),
    (23, "printed", (0.057445, 0.027390, 0.014918, 0.0083357, 0.0046538)),
    (23, "inside", (0.051646, 0.019625, 0.010103, 0.0056932, 0.0032199)),
)


def _table(first: int, values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple((first * 2**i, value) for i, value in enumerate(values))


def certify_rate(case: RateCase, *, quick: bool = False) -> Certificate:
    """Measure total variation at every T, and its slope against ln(T) / T."""
    schedule = case.solver.schedule
    assert isinstance(schedule, AcceleratedScheduleSpec), "as rate_cases makes them"
    table = case.table[: case.quick] if quick else case.table
    sizes = [steps for steps, _ in table]
    measured = tuple(case.measure(case.solver, case.data, schedule, steps) for steps in sizes)
    rates = [steps / math.log(steps) for steps in sizes]
    slope = last_slope(rates, measured)
    known = [value for _, value in table]
    expected = last_slope(rates, known)
    far = value_failures("total variation", "T", sizes, measured, known)
    return Certificate(
        group="total variation",
        kind=case.solver.kind,
        solver=case.solver.label,
        problem=f"{case.name}; {schedule.label}",
        sizes=tuple(map(float, sizes)),
        errors=measured,
        slope=slope,
        expected=expected,
        ratio=max((m / k for m, k in zip(measured, known, strict=True)), key=_distance_from_one),
        failures=(*slope_failures(slope, expected, None), *far),
        note=f"slope against T: {last_slope(sizes, measured):.2f}",
    )


def _distance_from_one(ratio: float) -> float:
    return abs(ratio - 1)


def _on_gaussian(
    solver: SolverSpec, data: Line, schedule: AcceleratedScheduleSpec, steps: int
) -> float:
    levels = sigmas(schedule, steps, SIGMA_MIN, SIGMA_MAX)
    law = end_law(solver, data, levels, 1 + float(levels[0]) ** 2)
    return total_variation_between(law, data, float(levels[-1]))


def _on_modes(
    solver: SolverSpec, data: Line, schedule: AcceleratedScheduleSpec, steps: int
) -> float:
    return end_total_variation(solver, data, sigmas(schedule, steps, SIGMA_MIN, SIGMA_MAX))
