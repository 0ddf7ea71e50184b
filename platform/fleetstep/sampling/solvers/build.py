"""From a solver's spec to the function that takes its steps."""

from __future__ import annotations

import math

from fleetstep.sampling.amed.solver import amed
from fleetstep.sampling.solvers.accelerated import accelerated_ddim, accelerated_ddpm
from fleetstep.sampling.solvers.ancestral import ddpm
from fleetstep.sampling.solvers.edm import edm_ablation, heun
from fleetstep.sampling.solvers.linear import linear_multistep
from fleetstep.sampling.solvers.midpoint import dpm2
from fleetstep.sampling.solvers.pseudo import plms, pndm
from fleetstep.sampling.solvers.rules import rule_of
from fleetstep.sampling.solvers.sde import dpmpp_sde
from fleetstep.sampling.solvers.singlestep import dpmpp_singlestep
from fleetstep.sampling.solvers.step import Levels, Step
from fleetstep.sampling.solvers.unipc import unipc
from fleetstep.sampling.spec import (
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    AmedSpec,
    DdpmSolverSpec,
    DeisSpec,
    Dpm2Spec,
    DpmppSdeSpec,
    DpmppSinglestepSpec,
    DpmppSpec,
    EdmAblationSpec,
    EulerSpec,
    HeunAbSpec,
    HeunSpec,
    IpndmSpec,
    IpndmVSpec,
    PlmsSpec,
    PndmSpec,
    SolverSpec,
    UnipcSpec,
)
from fleetstep.sampling.spec.single_step import Rk45Spec


def build_step(spec: SolverSpec, levels: Levels, sigma_max: float = math.inf) -> Step:
    """The step function of `spec` on `levels`, its coefficient tables computed.

    Args:
        spec: the solver.
        levels: to walk.
        sigma_max: the highest level that the network knows: churn goes no higher.

    Raises:
        SamplingError: the solver takes no steps of its own (rk45), or its predictor cannot be
            used on these levels.
    """
    match spec:
        case EulerSpec() | IpndmSpec() | IpndmVSpec() | DeisSpec() | DpmppSpec():
            return linear_multistep(levels, rule_of(spec, levels))
        case HeunAbSpec():
            return dpm2(levels, r=1.0)
        case Dpm2Spec():
            return dpm2(levels, r=spec.r)
        case HeunSpec():
            return heun(levels, spec, sigma_max)
        case EdmAblationSpec():
            return edm_ablation(levels, spec)
        case PlmsSpec():
            return plms(levels)
        case PndmSpec():
            return pndm(levels)
        case DpmppSinglestepSpec():
            return dpmpp_singlestep(levels, spec)
        case UnipcSpec():
            return unipc(levels, spec)
        case DpmppSdeSpec():
            return dpmpp_sde(levels, spec)
        case DdpmSolverSpec():
            return ddpm(levels, spec)
        case AcceleratedDdimSpec():
            return accelerated_ddim(levels, spec)
        case AcceleratedDdpmSpec():
            return accelerated_ddpm(levels, spec)
        case AmedSpec():
            return amed(levels, spec)
        case Rk45Spec():
            return spec.refuse_steps()
