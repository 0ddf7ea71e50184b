"""A search: a trial with some values left open, who proposes them, what stops the weak ones, and
what counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)

from fleetstep.config.amed import AmedExperiment
from fleetstep.config.paths import PathText
from fleetstep.config.search_objectives import ObjectiveSpec, evaluated
from fleetstep.config.search_space import Assignment, Space
from fleetstep.config.specs import Experiment, TrackingSpec
from fleetstep.config.sweep import SweepSpec
from fleetstep.spec import Span, Spec, span_images

TrialKind = Literal["train", "sweep", "amed"]
MODELS: Final[Mapping[TrialKind, type[Experiment] | type[SweepSpec] | type[AmedExperiment]]] = {
    "train": Experiment,
    "sweep": SweepSpec,
    "amed": AmedExperiment,
}
"""What a trial of each kind is."""


class TrialSpec(Spec):
    """What every trial begins with, before values of the space are laid over it.

    In a file it is `{kind, base, ...}`: `base` is read with the file, the rest is the kind's own
    vocabulary.

    Attributes:
        kind: of which the trials are: train an experiment, sweep one cell of a sweep, amed a
            predictor.
        tree: the trial's configuration as written; the space may say what is missing in it.
    """

    kind: TrialKind
    tree: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _folded(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        tree = {name: child for name, child in value.items() if name != "kind"}
        return {**{name: value[name] for name in ("kind",) if name in value}, "tree": tree}

    @model_serializer
    def _unfolded(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.tree}


class RandomSearchSpec(Spec):
    """Every trial is drawn on its own; a draw that came before is passed over.

    Attributes:
        trials: how many.
        seed: of the draws: the first trials are the same however many follow.
    """

    kind: Literal["random"] = "random"
    trials: PositiveInt
    seed: int = Field(0, ge=0)


class GridSearchSpec(Spec):
    """Every point of a space that has no continuous dimension, the last dimension fastest."""

    kind: Literal["grid"] = "grid"


class OptunaSearchSpec(Spec):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), of Optuna: trials are proposed by
    the results of those before; of several objectives at once where there are several.

    Attributes:
        trials: how many.
        seed: of the proposals; they also depend on the order in which results come in.
        startup: trials drawn at random before.
    """

    kind: Literal["optuna"] = "optuna"
    trials: PositiveInt
    seed: int = Field(0, ge=0)
    startup: PositiveInt = 10


SearcherSpec: TypeAlias = Annotated[
    RandomSearchSpec | GridSearchSpec | OptunaSearchSpec, Field(discriminator="kind")
]


class FifoSpec(Spec):
    """Every trial runs to its end."""

    kind: Literal["fifo"] = "fifo"

    def rungs(self, budget: int) -> tuple[int, ...]:
        """Nothing is decided on the way."""
        return ()


class AshaSpec(Spec):
    """Asynchronous successive halving (Li et al. 2020): at each rung, a trial goes on if it is
    among the best 1 / reduction of those that have reached it.

    Attributes:
        grace: images, or a share of the budget, before the first rung.
        reduction: rungs lie at grace * reduction^i images.
    """

    kind: Literal["asha"] = "asha"
    grace: Span = "10%"
    reduction: float = Field(3.0, gt=1)

    def rungs(self, budget: int) -> tuple[int, ...]:
        """Images at which a trial of `budget` images may be stopped."""
        grace = span_images(self.grace, budget)
        if not 0 < grace < budget:
            return ()
        # One more than there can be: logarithms of exact powers are not exact.
        most = int(math.log(budget / grace, self.reduction)) + 2
        found = (math.ceil(grace * self.reduction**i) for i in range(most))
        return tuple(dict.fromkeys(rung for rung in found if rung < budget))


class PbtSpec(Spec):
    """Population-based training (Jaderberg et al. 2017): now and then the worst trials take over
    weights, optimiser and settings of the best, and change the settings.

    Attributes:
        every: images between, or a share of the budget.
        quantile: share of the trials that counts as the best, and as the worst.
        resample: probability that a changed setting is drawn anew, and not moved a little.
        mutate: keys of the dimensions that are changed; others are the donor's.
    """

    kind: Literal["pbt"] = "pbt"
    every: Span = "20%"
    quantile: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)
    mutate: tuple[str, ...] = Field(min_length=1)

    def rungs(self, budget: int) -> tuple[int, ...]:
        """Images at which a trial of `budget` images may be overtaken."""
        every = span_images(self.every, budget)
        return tuple(range(every, budget, every)) if every else ()


SchedulerSpec: TypeAlias = Annotated[FifoSpec | AshaSpec | PbtSpec, Field(discriminator="kind")]


class ConfirmSpec(Spec):
    """The best trial against a baseline, each trained again from several seeds to its end.

    Attributes:
        seeds: at least two, each once.
        baseline: laid over the trial in place of the space's values.
    """

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=2)
    baseline: dict[str, Any]

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"each seed once, got {', '.join(map(str, seeds))}")
        return seeds


class SearchClusterSpec(Spec):
    """Where the trials run; what each gets is the trial's own affair.

    Attributes:
        address: Ray address of a running cluster; None starts a local one.
    """

    address: str | None = None


def _at_least_one(objectives: Any) -> Any:
    # Before they are read: pydantic would also miss one where all are mistaken.
    if objectives in ([], ()):
        raise ValueError("name at least one, e.g. held_out")
    return objectives


class SearchSpec(Spec):
    """A search over settings of a trial.

    Attributes:
        name: the search's name; its trials are called after it.
        trial: what every trial begins with.
        space: laid over the trial; any value in it may be a dimension.
        searcher: proposes the values.
        scheduler: ends weak trials early, or lets them take over the strong; by the first
            objective.
        objectives: what counts, the first above all.
        concurrent: trials at a time; None is as many as fit.
        confirm: what the winner is held against; None is nothing.
        storage: folder of all runs; every worker must reach it.
        tracking: the tracker, of the trials as well.
        cluster: where they run.
    """

    owned: ClassVar[tuple[str, ...]] = ("name", "storage", "tracking", "published")
    """Fields of a trial that the search decides."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    trial: TrialSpec
    space: Space
    searcher: SearcherSpec
    scheduler: SchedulerSpec = FifoSpec()
    objectives: Annotated[tuple[ObjectiveSpec, ...], BeforeValidator(_at_least_one)]
    concurrent: PositiveInt | None = None
    confirm: ConfirmSpec | None = None
    storage: PathText = "runs"
    tracking: TrackingSpec = TrackingSpec()
    cluster: SearchClusterSpec = SearchClusterSpec()

    @property
    def model(self) -> type[Experiment] | type[SweepSpec] | type[AmedExperiment]:
        """What a trial is."""
        return MODELS[self.trial.kind]

    def tree_of(self, assignment: Assignment) -> dict[str, Any]:
        """The tree of a trial, with what its objectives need; not yet named, nor checked.

        Raises:
            ConfigError: the assignment is none of the space.
        """
        return trial_tree(self.trial, self.space, self.objectives, assignment)


def trial_tree(
    trial: TrialSpec,
    space: Space,
    objectives: tuple[ObjectiveSpec, ...],
    assignment: Assignment,
) -> dict[str, Any]:
    """See `SearchSpec.tree_of`; for parts of a search that is not valid as a whole."""
    tree = space.apply(trial.tree, assignment)
    return evaluated(tree, objectives) if trial.kind == "train" else tree
