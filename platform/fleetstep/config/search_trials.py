"""The trials of a search: which there are, what each is, and when it reports."""

from __future__ import annotations

import itertools
from typing import Any

from fleetstep.config.amed import AmedExperiment
from fleetstep.config.checks import cross_checks
from fleetstep.config.files import merged
from fleetstep.config.problems import examined
from fleetstep.config.search import (
    FifoSpec,
    OptunaSearchSpec,
    RandomSearchSpec,
    SearchSpec,
)
from fleetstep.config.search_objectives import evaluated
from fleetstep.config.search_space import Assignment
from fleetstep.config.specs import Experiment
from fleetstep.config.sweep import SweepSpec
from fleetstep.errors import ConfigError
from fleetstep.training.spec import TrainingSpec


def trials_of(spec: SearchSpec) -> list[Assignment] | None:
    """The assignments of all trials in their order; None where results decide what is tried."""
    searcher = spec.searcher
    if isinstance(searcher, OptunaSearchSpec):
        return None
    if isinstance(searcher, RandomSearchSpec):
        return list(itertools.islice(spec.space.draws(searcher.seed), searcher.trials))
    return list(spec.space.grid())


def trial_spec(
    spec: SearchSpec, assignment: Assignment, *, name: str, storage: str
) -> Experiment | SweepSpec | AmedExperiment:
    """What the trial of an assignment is, checked as a file of that kind is.

    Args:
        spec: the search.
        assignment: of its space.
        name, storage: of the trial.

    Raises:
        ConfigError: with every problem; a trial that was known beforehand has none.
    """
    return _checked(spec, spec.tree_of(assignment), name, storage)


def baseline_spec(spec: SearchSpec, *, seed: int, name: str, storage: str) -> Experiment:
    """The baseline of `confirm` from one seed.

    Raises:
        ConfigError: with every problem; or the search confirms nothing.
    """
    if spec.confirm is None:
        raise ConfigError(["confirm: is null, so that there is no baseline"])
    tree = evaluated(merged(spec.trial.tree, spec.confirm.baseline), spec.objectives)
    return _experiment(_checked(spec, _seeded(tree, seed), name, storage))


def seeded_spec(
    spec: SearchSpec, assignment: Assignment, *, seed: int, name: str, storage: str
) -> Experiment:
    """The trial of an assignment from another seed.

    Raises:
        ConfigError: with every problem.
    """
    return _experiment(_checked(spec, _seeded(spec.tree_of(assignment), seed), name, storage))


def rungs(spec: SearchSpec) -> tuple[int, ...]:
    """Images at which the scheduler decides about a trial, ascending, by what it reports at its
    first snapshot at or after each; empty where nothing is decided before the end.
    """
    if isinstance(spec.scheduler, FifoSpec):
        return ()
    tree = spec.tree_of(spec.space.first())
    return spec.scheduler.rungs(TrainingSpec.model_validate(tree["training"]).images)


def _checked(
    spec: SearchSpec, tree: dict[str, Any], name: str, storage: str
) -> Experiment | SweepSpec | AmedExperiment:
    """The tree with all that the search says about its trials."""
    whole = {**tree, "name": name, "storage": storage}
    whole["tracking"] = spec.tracking.model_dump(mode="json")
    address = {"address": spec.cluster.address}
    whole = merged(whole, address if spec.model is SweepSpec else {"cluster": address})
    trial, problems = examined(spec.model, whole, cross_checks(spec.model, data_required=True))
    if trial is None or problems:
        raise ConfigError(problems)
    return trial


def _seeded(tree: dict[str, Any], seed: int) -> dict[str, Any]:
    return merged(tree, {"training": {"seed": seed}})


def _experiment(trial: Experiment | SweepSpec | AmedExperiment) -> Experiment:
    assert isinstance(trial, Experiment), "what is confirmed is trained, by the search's checks"
    return trial
