"""From a linear multistep solver's spec to its rule, which AMED's plugin shares.

Legend: s levels.
"""

from __future__ import annotations

from fleetstep.sampling.solvers.adams import IpndmRule, VariableRule
from fleetstep.sampling.solvers.deis import deis_rule
from fleetstep.sampling.solvers.dpmpp import DpmppRule
from fleetstep.sampling.solvers.euler import EulerRule
from fleetstep.sampling.solvers.linear import Rule
from fleetstep.sampling.solvers.step import Levels
from fleetstep.sampling.spec import DeisSpec, DpmppSpec, EulerSpec, IpndmSpec, IpndmVSpec


def rule_of(
    spec: EulerSpec | IpndmSpec | IpndmVSpec | DeisSpec | DpmppSpec, levels: Levels
) -> Rule:
    """The rule of a linear multistep solver; `levels` gives DEIS the range of its time."""
    match spec:
        case EulerSpec():
            return EulerRule()
        case IpndmSpec(order=order):
            return IpndmRule(order)
        case IpndmVSpec(order=order):
            return VariableRule(order)
        case DeisSpec():
            return deis_rule(spec, levels)
        case DpmppSpec():
            return DpmppRule(spec)
