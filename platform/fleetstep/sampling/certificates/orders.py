"""Convergence orders on the fixed range [0.002, 80]: error against number of steps.

An order is a statement about small steps: where a solver lowers its order in the last steps for
the sake of few calls, that is switched off, and the note says so.

An order alone does not tell a solver from one with fewer terms: iPNDM is of order 2 with the
weights of two, three or four. So the error of the coarsest run, where those differ, is compared
with its known value: that of the solver's reference implementation on the same problem or, where
there is none, the one that this package had when its other tests held (`pinned`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter

from fleetstep.sampling.certificates.problems import plane, plane_start, plane_truth
from fleetstep.sampling.certificates.record import (
    Certificate,
    last_slope,
    slope_failures,
    value_failures,
)
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, PolynomialSpec, SolverSpec
from fleetstep.sampling.trajectory import sample

STEPS = (64, 128, 256, 512, 1024)
QUICK_STEPS = (STEPS[0], *STEPS[-2:])
"""The error that is judged is that of the first, and the slope that of the last doubling."""

_PARSER: TypeAdapter[SolverSpec] = TypeAdapter(SolverSpec)
_ASYMPTOTIC = "without lower_order_final"
_BEFORE_ZERO = "at 0.002, before its last step to zero"
_CONSTANT_STEP = "weights of equal steps, so no more than two"

# After 64 steps; several solvers are these two up to their last step.
_EULER, _HEUN = 1.531411e-2, 1.454838e-3


@dataclass(frozen=True)
class OrderCase:
    """A solver, the slope of its error at 512 to 1024 steps, and its error after 64.

    Args:
        solver: on the levels it is measured on.
        expected: the slope; see `cases`.
        error: after `STEPS[0]` steps.
        pinned: whether `error` is this package's own, for want of a reference.
        note: what is special about the setting.
        multiple: of which the numbers of steps are: a single-step solver's last steps, of lower
            order, depend on the remainder.
    """

    solver: SolverSpec
    expected: float
    error: float
    pinned: bool = False
    note: str = ""
    multiple: int = 1


def case(
    expected: float,
    error: float,
    note: str = "",
    /,
    *,
    pinned: bool = False,
    multiple: int = 1,
    **settings: Any,
) -> OrderCase:
    """A case on the polynomial schedule unless the settings name another."""
    solver = _PARSER.validate_python({"schedule": PolynomialSpec()} | settings)
    return OrderCase(solver, expected, error, pinned, note, multiple)


def cases() -> Iterator[OrderCase]:
    """Every deterministic solver that has an order."""
    yield case(1.00, _EULER, kind="euler")
    yield case(2.01, _HEUN, _BEFORE_ZERO, kind="heun")
    yield case(2.01, _HEUN, kind="heun_ab")
    yield case(2.01, 8.813367e-4, kind="dpm2", r=0.5)
    yield case(2.00, 7.778745e-4, kind="dpm2", r=0.4, pinned=True)
    yield case(2.00, _HEUN, _BEFORE_ZERO, kind="edm_ablation")
    for coordinates, error in (("ve", 1.212134e-2), ("vp", 4.202812e-4)):
        yield case(
            2.00, error, _BEFORE_ZERO, kind="edm_ablation", coordinates=coordinates, pinned=True
        )
    yield case(1.00, _EULER, _BEFORE_ZERO, kind="edm_ablation", method="euler")
    yield case(1.00, _EULER, kind="ipndm", order=1)
    for order, error in ((2, 5.130400e-4), (3, 4.165883e-4), (4, 4.496300e-4)):
        yield case(2.00, error, _CONSTANT_STEP, kind="ipndm", order=order)
    for order, expected, error in (
        (2, 1.99, 2.755275e-3),
        (3, 2.98, 8.161890e-4),
        (4, 3.93, 3.144988e-4),
    ):
        yield case(expected, error, kind="ipndm_v", order=order)
    for order, expected, error in (
        (2, 1.99, 2.414820e-3),
        (3, 2.97, 5.959223e-4),
        (4, 3.90, 1.860660e-4),
    ):
        yield case(expected, error, kind="deis", order=order)
    yield case(2.95, 4.512211e-5, kind="deis", order=3, basis="log_sigma", pinned=True)
    yield case(2.00, 4.496570e-4, _CONSTANT_STEP, kind="plms", pinned=True)
    yield case(2.00, 4.951750e-4, _CONSTANT_STEP, kind="pndm", pinned=True)
    yield from _dpmpp_cases()
    yield from _unipc_cases()
    for equation, expected, error in (
        (8, 1.02, 1.079413e-1),
        (22, 1.98, 1.083136e-2),
        (28, 1.00, _EULER),
        (30, 1.98, 3.710967e-3),
    ):
        yield case(expected, error, kind="accelerated_ddim", equation=equation)
    yield case(1.97, 8.113625e-3, kind="accelerated_ddim", equation=15, pinned=True)


def _dpmpp_cases() -> Iterator[OrderCase]:
    full: dict[str, Any] = {"kind": "dpmpp", "lower_order_final": False}
    second, third = 1.752492e-3, 1.501275e-4
    yield case(2.01, second, _ASYMPTOTIC, order=2, **full)
    yield case(1.99, 2.182857e-4, _ASYMPTOTIC, order=2, prediction="noise", **full)
    yield case(2.00, 2.289984e-3, _ASYMPTOTIC, order=2, variant="taylor", pinned=True, **full)
    yield case(1.95, third, _ASYMPTOTIC, order=3, **full)
    yield case(3.02, 4.03e-4, _ASYMPTOTIC, order=3, d2_factor=2, **full)
    for order, error in ((2, 1.852520e-3), (3, 1.298395e-4)):
        yield case(
            float(order),
            error,
            "steps a multiple of its order",
            multiple=order,
            pinned=True,
            kind="dpmpp_singlestep",
            order=order,
            schedule={"kind": "logsnr"},
        )
    flow = "eta 0: the flow, by dpmpp's formulas"
    yield case(2.00, second, flow, kind="dpmpp_sde", order=2, eta=0.0)
    yield case(1.95, third, flow, kind="dpmpp_sde", order=3, eta=0.0)


def _unipc_cases() -> Iterator[OrderCase]:
    full: dict[str, Any] = {"kind": "unipc", "lower_order_final": False}
    yield case(2.00, 2.424129e-3, _ASYMPTOTIC, order=1, **full)
    yield case(3.00, 5.276016e-4, _ASYMPTOTIC, order=2, variant="bh1", pinned=True, **full)
    yield case(3.00, 2.991191e-4, _ASYMPTOTIC, order=2, **full)
    yield case(4.00, 7.686337e-5, _ASYMPTOTIC, order=3, **full)
    yield case(3.94, 8.491428e-6, _ASYMPTOTIC, order=3, prediction="noise", **full)


def certify_order(case: OrderCase, steps: Sequence[int] = STEPS) -> Certificate:
    """Measure the largest error over four trajectories in the plane for each number of steps.

    Args:
        case: what to measure.
        steps: rising, from `STEPS[0]`, at which the error is known.
    """
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
        ratio=errors[0] / case.error,
        pinned=case.pinned,
        failures=(
            *slope_failures(slope, case.expected, declared),
            *value_failures("error", "N", sizes[:1], errors[:1], [case.error]),
        ),
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
