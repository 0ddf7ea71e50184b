"""What a search optimises: qualities of what was trained, and costs beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PositiveInt

from fleetstep.config.measure import EvaluateSpec
from fleetstep.config.sweep import SweepSpec
from fleetstep.evaluation.spec import HIGHER_IS_BETTER, ExtractorSpec, MetricKind
from fleetstep.sampling.spec import SolverSpec
from fleetstep.spec import Span, Spec

Goal = Literal["min", "max"]
# Names under which a user may ask for it: the loop logs "train/loss".
_TRAINING_LOSS = frozenset({"loss", "train_loss", "training_loss", "train/loss"})


class HeldOutObjective(Spec):
    """The denoising error of the EMA on held-out images, at every snapshot of a training."""

    quality: ClassVar[bool] = True
    kind: Literal["held_out"] = "held_out"

    @property
    def name(self) -> str:
        """As in the tracker."""
        return "held_out/loss"

    @property
    def goal(self) -> Goal:
        """Errors are to be small."""
        return "min"


class RmseObjective(Spec):
    """The error of a predictor's samples on held-out latents, from the report of its training."""

    quality: ClassVar[bool] = True
    kind: Literal["rmse"] = "rmse"

    @property
    def name(self) -> str:
        """In tables and the tracker."""
        return "rmse"

    @property
    def goal(self) -> Goal:
        """Errors are to be small."""
        return "min"


class ScoreObjective(Spec):
    """A score of generated images: of a training's snapshots while it goes on, or of a sweep's
    cell.

    Attributes:
        metric: which.
        solver, nfe, samples, extractor, every: of a training, laid over its `evaluate` section;
            None is what that says. The cell of a sweep says all of it itself, but which of
            several extractors.
    """

    quality: ClassVar[bool] = True
    kind: Literal["score"] = "score"
    metric: MetricKind
    solver: SolverSpec | None = None
    nfe: PositiveInt | None = None
    samples: PositiveInt | None = Field(None, multiple_of=1000)
    extractor: ExtractorSpec | None = None
    every: Span | None = None

    @property
    def name(self) -> str:
        """In tables and the tracker: "score/fd", and what the objective itself says."""
        said = (
            self.extractor and self.extractor.kind,
            self.solver and self.solver.kind,
            self.nfe and f"nfe{self.nfe}",
        )
        return ".".join([f"score/{self.metric}", *(part for part in said if part)])

    @property
    def goal(self) -> Goal:
        """Distances are to be small, agreement large."""
        return "max" if self.metric in HIGHER_IS_BETTER else "min"

    def filled(self, measured: EvaluateSpec | SweepSpec) -> ScoreObjective:
        """With everything said: which of the scores of a trial it is.

        Args:
            measured: the trial's `evaluate` section, or its cell; of whatever is None here it has
                one value.
        """
        said: dict[str, Any] = {
            "solver": self.solver or measured.solvers[0],
            "nfe": self.nfe or measured.nfe[0],
            "samples": measured.samples,
            "extractor": self.extractor or measured.extractors[0],
        }
        if isinstance(measured, EvaluateSpec):
            said["every"] = measured.every
        return self.model_copy(update=said)


class CostObjective(Spec):
    """What a trial costs: network calls per image, images it was trained on, seconds."""

    quality: ClassVar[bool] = False
    kind: Literal["nfe", "images_seen", "wall_s"]

    @property
    def name(self) -> str:
        """In tables and the tracker."""
        return self.kind

    @property
    def goal(self) -> Goal:
        """Costs are to be small."""
        return "min"


def _section(value: Any) -> Any:
    """An objective without settings may be named alone."""
    kind = value.get("kind") if isinstance(value, Mapping) else value
    if kind in _TRAINING_LOSS:
        raise ValueError(
            "the training loss is no objective, because strategies change what it measures; use "
            "held_out, or a score of generated images"
        )
    return {"kind": value} if isinstance(value, str) else value


ObjectiveSpec: TypeAlias = Annotated[
    Annotated[
        HeldOutObjective | RmseObjective | ScoreObjective | CostObjective,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_section),
]
"""What a search can optimise, told apart by `kind`; one without settings may be named alone."""


def evaluated(tree: Mapping[str, Any], objectives: Sequence[ObjectiveSpec]) -> dict[str, Any]:
    """A training's tree with an `evaluate` section that gives every score asked for."""
    scores = [one for one in objectives if isinstance(one, ScoreObjective)]
    if not scores:
        return dict(tree)
    written = tree.get("evaluate") or {}
    if not isinstance(written, Mapping):
        return dict(tree)  # which the trial's own checks refuse
    section = dict(written)
    section["metrics"] = _union([*_listed(section.get("metrics")), *(s.metric for s in scores)])
    for name in ("every", "samples"):
        if said := [value for one in scores if (value := getattr(one, name)) is not None]:
            section[name] = said[0]
    for one, many in (("solver", "solvers"), ("nfe", "nfe"), ("extractor", "extractors")):
        if said := [_plain(value) for s in scores if (value := getattr(s, one)) is not None]:
            section[many] = _union(said)
    return {**tree, "evaluate": section}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Spec) else value


def _union(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]
