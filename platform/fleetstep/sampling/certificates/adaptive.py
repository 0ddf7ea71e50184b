"""The adaptive solver: its error falls with the tolerance, and its calls are as many as it makes.

Dormand and Prince's pair reuses its last slope, so the first step's size costs two calls and every
attempt, accepted or not, six.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Literal

import torch

from fleetstep.sampling.certificates.problems import plane, plane_start, plane_truth
from fleetstep.sampling.certificates.record import Certificate, last_slope
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, Rk45Spec
from fleetstep.sampling.trajectory import sample

TOLERANCES: Final = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_FIRST, _ATTEMPT = 2, 6

Variable = Literal["log_sigma", "sigma", "vp_time"]
VARIABLES: Final[tuple[Variable, ...]] = ("log_sigma", "sigma", "vp_time")


def certify_tolerance(variable: Variable) -> Certificate:
    """Measure the largest error over four trajectories in the plane at each tolerance."""
    runs = [_run(variable, tolerance) for tolerance in TOLERANCES]
    errors, calls = tuple(error for error, _ in runs), [nfe for _, nfe in runs]
    solver = Rk45Spec(variable=variable)
    return Certificate(
        group="tolerance",
        kind=solver.kind,
        solver=f"rk45(variable={variable})",
        problem="2-D mixture; rtol = atol, on [0.002, 80]",
        sizes=TOLERANCES,
        errors=errors,
        slope=-last_slope((TOLERANCES[0], TOLERANCES[-1]), (errors[0], errors[-1])),
        expected=None,
        failures=tuple(_failures(errors, calls)),
        note=f"calls {calls[0]} to {calls[-1]}, each 2 + 6 attempts",
    )


def _failures(errors: tuple[float, ...], calls: list[int]) -> Iterator[str]:
    for (loose, tight), (before, after) in zip(
        pairwise(TOLERANCES), pairwise(errors), strict=True
    ):
        if not (after < before and math.isfinite(after)):
            yield f"error {after:.2e} at {tight:g}, and {before:.2e} at {loose:g}"
    for tolerance, nfe in zip(TOLERANCES, calls, strict=True):
        if nfe <= _FIRST or (nfe - _FIRST) % _ATTEMPT:
            yield f"{nfe} calls at {tolerance:g} are not 2 + 6 attempts"


def _run(variable: Variable, tolerance: float) -> tuple[float, int]:
    solver = Rk45Spec(rtol=tolerance, atol=tolerance, variable=variable)
    levels = torch.tensor([SIGMA_MAX, SIGMA_MIN], dtype=torch.float64)
    result = sample(plane(), solver, levels, plane_start())
    return float((result.x_BCHW - plane_truth()).abs().max()), result.nfe
