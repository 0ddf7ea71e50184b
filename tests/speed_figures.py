"""SpeeD's reference figures, and what of an objective they are compared with."""

import json
from pathlib import Path

import torch

from fleetstep.diffusion.coupling import StepReflection
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    QuantileThreshold,
    StepsThreshold,
    VeSpec,
    VpSpec,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "speed.json").read_text())
LINEAR, QUADRATIC, COSINE = (
    DdpmSpec(schedule=schedule) for schedule in ("linear", "quadratic", "cosine")
)
SCHEDULES = {"linear": LINEAR, "quadratic": QUADRATIC, "cosine": COSINE}
CONTINUOUS = (VpSpec(), VeSpec(), EdmSpec())
TAU = StepsThreshold(count=700)
QUANTILE = QuantileThreshold(q=0.7)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def objective(process, *strategies):
    return build_objective(process, strategies, budget_images=1_000_000, global_batch=512)


def multiplier(process, *strategies):
    (built,) = objective(process, *strategies).multipliers
    return built


def step_weights(process, spec):
    return multiplier(process, spec)(build_process(process).table)


def pmf(process, spec):
    """Probabilities of the steps, before pairs are tied."""
    cumulative = objective(process, spec).law(0).cdf(build_process(process).table)
    return torch.diff(cumulative, prepend=f64(0))


def with_reflection(p, process, at):
    """The average of a law of steps and its reflection: what pairs of draws have."""
    ddpm = build_process(process)
    mirror = ddpm.index_of(StepReflection(ddpm, at)(ddpm.table))
    return (p + torch.zeros_like(p).index_add(0, mirror, p)) / 2
