"""Solvers and time schedules as plain facts: a solver's cost is known without importing torch."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from fleetstep.sampling.spec.facts import SolverFacts
from fleetstep.sampling.spec.guidance import GuidanceSpec, ThresholdingSpec
from fleetstep.sampling.spec.learned import (
    PREDICTOR_FACTS,
    PREDICTOR_WEIGHTS,
    AmedSpec,
    AmedStudentSpec,
    PredictorFacts,
    StudentSpec,
    check_predictor,
    read_facts,
)
from fleetstep.sampling.spec.multistep import (
    DeisSpec,
    DpmppSpec,
    IpndmSpec,
    IpndmVSpec,
    PlmsSpec,
    PndmSpec,
    Prediction,
    UnipcSpec,
)
from fleetstep.sampling.spec.schedules import (
    MIN_POINTS,
    SIGMA_MAX,
    SIGMA_MIN,
    AcceleratedScheduleSpec,
    Betas,
    DdpmSubsetSpec,
    DiscreteSpec,
    IddpmSpec,
    LevelsSpec,
    LogSnrSpec,
    PolynomialSpec,
    ScheduleFacts,
    ScheduleSpec,
    TimeUniformSpec,
    VpTimeSpec,
)
from fleetstep.sampling.spec.single_step import (
    Dpm2Spec,
    DpmppSinglestepSpec,
    EdmAblationSpec,
    EulerSpec,
    HeunAbSpec,
    HeunSpec,
    Rk45Spec,
)
from fleetstep.sampling.spec.stochastic import (
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    DdpmSolverSpec,
    DpmppSdeSpec,
)

__all__ = [
    "ALIASES",
    "MIN_POINTS",
    "PREDICTOR_FACTS",
    "PREDICTOR_WEIGHTS",
    "SIGMA_MAX",
    "SIGMA_MIN",
    "AcceleratedDdimSpec",
    "AcceleratedDdpmSpec",
    "AcceleratedScheduleSpec",
    "AmedSpec",
    "AmedStudentSpec",
    "Betas",
    "DdpmSolverSpec",
    "DdpmSubsetSpec",
    "DeisSpec",
    "DiscreteSpec",
    "Dpm2Spec",
    "DpmppSdeSpec",
    "DpmppSinglestepSpec",
    "DpmppSpec",
    "EdmAblationSpec",
    "EulerSpec",
    "GuidanceSpec",
    "HeunAbSpec",
    "HeunSpec",
    "IddpmSpec",
    "IpndmSpec",
    "IpndmVSpec",
    "LevelsSpec",
    "LogSnrSpec",
    "PlmsSpec",
    "PndmSpec",
    "PolynomialSpec",
    "Prediction",
    "PredictorFacts",
    "Rk45Spec",
    "ScheduleFacts",
    "ScheduleSpec",
    "SolverFacts",
    "SolverSpec",
    "StudentSpec",
    "ThresholdingSpec",
    "TimeUniformSpec",
    "UnipcSpec",
    "VpTimeSpec",
    "check_predictor",
    "read_facts",
]

ALIASES: dict[str, dict[str, Any]] = {
    "ddim": {"kind": "euler"},
    "dpmpp_2m": {"kind": "dpmpp", "order": 2},
    "dpmpp_3m": {"kind": "dpmpp", "order": 3},
    "dpm_solver": {"kind": "dpmpp", "order": 3, "prediction": "noise"},
    "lms": {"kind": "ipndm_v"},
}
"""Names of the field for settings of a solver; a config may use them as a `kind`."""


def _unaliased(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in ALIASES:
        return ALIASES[kind] | {name: item for name, item in value.items() if name != "kind"}
    return value


SolverSpec: TypeAlias = Annotated[
    EulerSpec
    | HeunSpec
    | HeunAbSpec
    | Dpm2Spec
    | EdmAblationSpec
    | IpndmSpec
    | IpndmVSpec
    | DeisSpec
    | PlmsSpec
    | PndmSpec
    | DpmppSpec
    | DpmppSinglestepSpec
    | UnipcSpec
    | DdpmSolverSpec
    | DpmppSdeSpec
    | AcceleratedDdimSpec
    | AcceleratedDdpmSpec
    | Rk45Spec
    | AmedSpec,
    Field(discriminator="kind"),
    BeforeValidator(_unaliased),
]
"""Every solver a config can name, told apart by `kind`."""
