"""From a solver's spec to the function that takes its steps."""

from __future__ import annotations

from fleetstep.sampling.solvers.adams import ipndm
from fleetstep.sampling.solvers.dpmpp import dpmpp_2m
from fleetstep.sampling.solvers.euler import euler
from fleetstep.sampling.solvers.heun import heun
from fleetstep.sampling.solvers.step import Levels, Step
from fleetstep.sampling.spec import Dpmpp2mSpec, EulerSpec, HeunSpec, IpndmSpec


def build_step(spec: EulerSpec | HeunSpec | IpndmSpec | Dpmpp2mSpec, levels: Levels) -> Step:
    """The step function of `spec` on `levels`, its coefficient tables computed."""
    match spec:
        case EulerSpec():
            return euler(levels)
        case HeunSpec():
            return heun(levels)
        case IpndmSpec(order=order):
            return ipndm(levels, order=order)
        case Dpmpp2mSpec():
            return dpmpp_2m(levels)
