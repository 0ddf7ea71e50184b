"""Convergence orders on the fixed range [0.002, 80]: error against number of steps.

An order is a statement about small steps: where a solver lowers its order in the last steps for
the sake of few calls, that is switched off, and the note says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter

from fleetstep.sampling.certificates.problems import plane, plane_start, plane_truth
from fleetstep.sampling.certificates.record import Certificate, last_slope, slope_failures
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, PolynomialSpec, SolverSpec
from fleetstep.sampling.trajectory import sample

STEPS = (64, 128, 256, 512, 1024)
QUICK_STEPS = STEPS[-2:]
"""The slope that is judged is that of the last doubling."""

_PARSER: TypeAdapter[SolverSpec] = TypeAdapter(SolverSpec)
_ASYMPTOTIC = "without lower_order_final"
_BEFORE_ZERO = "at 0.002, before its last step to zero"
_CONSTANT_STEP = "weights of equal steps, so no more than two"


@dataclass(frozen=True)
class OrderCase:
    """A solver, and the slope of its error at 512 to 1024 steps.

    Args:
        solver: on the levels it is measured on.
        expected: the slope; see `cases`.
        note: what is special about the setting.
        multiple: of which the numbers of steps are: a single-step solver's last steps, of lower
            order, depend on the remainder.
    """

    solver: SolverSpec
    expected: float
    note: str = ""
    multiple: int = 1


def case(expected: float, note: str = "", /, *, multiple: int = 1, **settings: Any) -> OrderCase:
    """A case on the polynomial schedule unless the settings name another."""
    solver = _PARSER.validate_python({"schedule": PolynomialSpec()} | settings)
    return OrderCase(solver, expected, note, multiple)


def cases() -> Iterator[OrderCase]:
    """Every deterministic solver that has an order."""
    yield case(1.00, kind="euler")
    yield case(2.01, _BEFORE_ZERO, kind="heun")
    yield case(2.01, kind="heun_ab")
    yield case(2.01, kind="dpm2", r=0.5)
    yield case(2.00, kind="dpm2", r=0.4)
    for coordinates in ("sigma", "ve", "vp"):
        yield case(2.00, _BEFORE_ZERO, kind="edm_ablation", coordinates=coordinates)
    yield case(1.00, _BEFORE_ZERO, kind="edm_ablation", method="euler")
    yield case(1.00, kind="ipndm", order=1)
    for order in (2, 3, 4):
        yield case(2.00, _CONSTANT_STEP, kind="ipndm", order=order)
    for order, expected in ((2, 1.99), (3, 2.98), (4, 3.93)):
        yield case(expected, kind="ipndm_v", order=order)
    for order, expected in ((2, 1.99), (3, 2.97), (4, 3.90)):
        yield case(expected, kind="deis", order=order)
    yield case(2.95, kind="deis", order=3, basis="log_sigma")
    yield case(2.00, _CONSTANT_STEP, kind="plms")
    yield case(2.00, _CONSTANT_STEP, kind="pndm")
    yield from _exponential_cases()
    for equation, expected in ((8, 1.02), (15, 1.97), (22, 1.98), (28, 1.00), (30, 1.98)):
        yield case(expected, kind="accelerated_ddim", equation=equation)


def _exponential_cases() -> Iterator[OrderCase]:
    full: dict[str, Any] = {"lower_order_final": False}
    for prediction, expected in (("data", 2.01), ("noise", 1.99)):
        yield case(expected, _ASYMPTOTIC, kind="dpmpp", order=2, prediction=prediction, **full)
    yield case(2.00, _ASYMPTOTIC, kind="dpmpp", order=2, variant="taylor", **full)
    for factor, expected in ((1, 1.95), (2, 3.02)):
        yield case(expected, _ASYMPTOTIC, kind="dpmpp", order=3, d2_factor=factor, **full)
    for order in (2, 3):
        yield case(
            float(order),
            "steps a multiple of its order",
            multiple=order,
            kind="dpmpp_singlestep",
            order=order,
            schedule={"kind": "logsnr"},
        )
    yield case(2.00, "eta 0: the flow", kind="dpmpp_sde", order=2, eta=0.0)
    yield case(1.95, "eta 0: the flow", kind="dpmpp_sde", order=3, eta=0.0)
    for order, variant, prediction, expected in (
        (1, "bh2", "data", 2.00),
        (2, "bh1", "data", 3.00),
        (2, "bh2", "data", 3.00),
        (3, "bh2", "data", 4.00),
        (3, "bh2", "noise", 3.94),
    ):
        yield case(
            expected,
            _ASYMPTOTIC,
            kind="unipc",
            order=order,
            variant=variant,
            prediction=prediction,
            **full,
        )


def certify_order(case: OrderCase, steps: Sequence[int] = STEPS) -> Certificate:
    """Measure the largest error over four trajectories in the plane for each number of steps."""
    sizes = tuple(n - n % case.multiple for n in steps)
    errors = tuple(end_error(case.solver, n) for n in sizes)
    slope, declared = last_slope(sizes, errors), case.solver.global_order
    return Certificate(
        group="order",
        kind=case.solver.kind,
        solver=case.solver.label,
        problem=f"2-D mixture; {case.solver.chosen_schedule.label} on [0.002, 80]",
        sizes=tuple(map(float, sizes)),
        errors=errors,
        slope=slope,
        expected=case.expected,
        declared=declared,
        failures=slope_failures(slope, case.expected, declared),
        note=case.note,
    )


def end_error(solver: SolverSpec, steps: int) -> float:
    """Largest error of an end at sigma 0.002 over the four trajectories, after `steps` steps."""
    levels = nodes(solver, steps + 1, SIGMA_MIN, SIGMA_MAX)
    with torch.inference_mode():
        result = sample(plane(), solver, levels, plane_start(), trace=True)
    assert result.trace is not None, "asked for"
    # A solver that goes on to zero passes 0.002 on its way.
    return float((result.trace[len(levels) - 1] - plane_truth()).abs().max())
