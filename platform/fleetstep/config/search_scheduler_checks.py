"""Cross-checks of a search's scheduler: whether it has something to decide, a value at each rung,
and trials that can take over from each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fleetstep.config.problems import Parts, valid_parts
from fleetstep.config.search import (
    AshaSpec,
    FifoSpec,
    PbtSpec,
    RandomSearchSpec,
    TrialSpec,
    trial_tree,
)
from fleetstep.config.search_dimensions import Choice, Dimension
from fleetstep.config.search_objectives import HeldOutObjective, ObjectiveSpec, ScoreObjective
from fleetstep.config.search_space import Space
from fleetstep.config.specs import Experiment
from fleetstep.spec import span_images
from fleetstep.training.spec import TrainingSpec

FEWEST_OF_A_POPULATION = 4
"""Trials of population-based training: with fewer, the best and the worst are one and the same."""

# Settings of a training that a checkpoint of other values can go on with. Not the network, its
# data, process or precision: the weights would not fit, or be of something else. Not the seed,
# global batch or EMA: the rest would be another experiment. Of strategies what has no state.
_CHANGEABLE = re.compile(
    r"training\.(optimizer\.(lr|weight_decay|betas(\.\d)?|eps|clip_grad_norm)|label_dropout)"
    r"|strategies\.\d+\.(?!clusters$|patience$)[a-z_.]+"
)
_CHANGEABLE_TEXT = (
    "training.optimizer.lr, weight_decay, betas, eps and clip_grad_norm, training.label_dropout "
    "and numbers of strategies"
)


def check_scheduler(parts: Parts) -> list[str]:
    """Problems of the scheduler with what its trials are; [] if it can decide about them."""
    scheduler = parts.get("scheduler")
    if isinstance(scheduler, FifoSpec | None) or "trial" not in parts:
        return []
    trial: TrialSpec = parts["trial"]
    if trial.kind != "train":
        return [
            f"scheduler: trials of kind {trial.kind} report once, at their end, so that "
            f"{scheduler.kind} has nothing to decide; use fifo"
        ]
    problems = []
    if "space" in parts:
        problems = [
            f"space.{one.key}: changes {path}, and {scheduler.kind} compares trials after the "
            "same images; set it under trial"
            for path in ("training.images", "training.snapshot_every")
            for one in parts["space"].deciding(trial.tree, path)
        ]
    if isinstance(scheduler, PbtSpec):
        problems += _check_population(scheduler, parts)
    if not problems and {"space", "objectives"} <= parts.keys():
        problems += _check_rungs(scheduler, trial, parts["space"], parts["objectives"])
    return problems


def _check_population(scheduler: PbtSpec, parts: Parts) -> Iterator[str]:
    searcher = parts.get("searcher")
    if searcher is not None and not isinstance(searcher, RandomSearchSpec):
        yield (
            f"searcher: {searcher.kind} decides what is tried, and so does pbt once it has begun; "
            "use random"
        )
    elif searcher is not None and searcher.trials < FEWEST_OF_A_POPULATION:
        yield (
            f"searcher.trials: a population has at least {FEWEST_OF_A_POPULATION} trials, got "
            f"{searcher.trials}"
        )
    if "space" not in parts:
        return
    space: Space = parts["space"]
    for key in scheduler.mutate:
        if key not in space.keys:
            known = ", ".join(space.keys)
            yield f"scheduler.mutate: {key} is no dimension of the space; dimensions: {known}"
    for dimension in space.dimensions:
        if problem := _unchangeable(dimension):
            yield f"space.{dimension.key}: {problem}"


def _unchangeable(dimension: Dimension) -> str | None:
    """Why a trial cannot go on from a checkpoint with another value; None if it can."""
    if dimension.when:
        return "exists under an option only, and pbt carries values from any trial to any other"
    if not _CHANGEABLE.fullmatch(dimension.key):
        return (
            "cannot change in the middle of a training, as pbt does: the checkpoint would not "
            "fit, or what comes after would be another experiment; pbt takes "
            f"{_CHANGEABLE_TEXT}"
        )
    kind = dimension.kind
    if dimension.key.startswith("strategies.") and isinstance(kind, Choice) and not kind.numbers:
        return "pbt changes numbers of strategies only; use a choice of numbers"
    return None


def _check_rungs(
    scheduler: AshaSpec | PbtSpec,
    trial: TrialSpec,
    space: Space,
    objectives: tuple[ObjectiveSpec, ...],
) -> Iterator[str]:
    """A value of the first objective at every rung."""
    tree = trial_tree(trial, space, objectives, space.first())
    training: TrainingSpec | None = valid_parts(Experiment, tree).get("training")
    if training is None:
        return  # said of the trial
    field = "grace" if isinstance(scheduler, AshaSpec) else "every"
    span = getattr(scheduler, field)
    rungs = scheduler.rungs(training.images)
    if not rungs:
        yield (
            f"scheduler.{field}: {span} is {span_images(span, training.images):,} images, and "
            f"must lie in 1 .. {training.images - 1:,}, within the budget of a trial"
        )
        return
    names = {"trial.training.snapshot_every": training.snapshot_every}
    if isinstance(objectives[0], ScoreObjective):
        evaluate = tree.get("evaluate")
        every = evaluate.get("every", "20%") if isinstance(evaluate, Mapping) else "20%"
        names["objectives.0.every"] = every
    elif not isinstance(objectives[0], HeldOutObjective):
        return
    for name, value in names.items():
        every = _images(value, training.images)
        if every and (missed := next((rung for rung in rungs if rung % every), None)):
            yield (
                f"scheduler.{field}: {span} decides at {missed:,} images, where {name} = {value}, "
                f"every {every:,} images, gives no value; "
                f"{_nearest(name, every, rungs, training.global_batch, span)}"
            )


def _images(span: Any, budget: int) -> int:
    """0 for what is no span, which is said elsewhere."""
    try:
        return span_images(TypeAdapter(int | str).validate_python(span), budget)
    except (ValidationError, ValueError):
        return 0


def _nearest(name: str, every: int, rungs: Sequence[int], batch: int, span: int | str) -> str:
    """The nearest interval of which all rungs are multiples."""
    common = math.gcd(*rungs)
    divisors = [n for n in range(1, math.isqrt(common) + 1) if common % n == 0]
    divisors += [common // n for n in divisors]
    fits = [n for n in divisors if n >= batch]
    if not fits:
        return "use a whole number as reduction, and a grace of whole batches"
    nearest = min(fits, key=lambda n: abs(math.log(n / every)))
    return f"use {name}: {span if nearest == rungs[0] else nearest}"
