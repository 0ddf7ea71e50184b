"""How images are measured and by whom: what sweeps and evaluation while training share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fleetstep.config.paths import PathText
from fleetstep.evaluation.spec import ExtractorSpec, MetricKind, Rn20Spec, unavailable
from fleetstep.sampling.spec import DpmppSpec, GuidanceSpec, SolverSpec
from fleetstep.spec import Span, Spec


class PoolSpec(Spec):
    """The actors that do a sweep's units.

    Attributes:
        min: actors kept while there is nothing to do; 0 lets every machine go.
        max: most actors; fewer run where fewer fit, and more come as machines are added.
        idle_s: seconds after which an actor without work ends.
        cpus_per_actor: Ray's CPUs of each; a share of one packs several on it, 0 never waits for
            a free one. An actor computes on one thread in any case: results must not depend on it.
        gpus_per_actor: Ray's GPUs of each; 0 computes on the CPU.
        price_per_hour: of one actor, in your currency, for the estimate of the cost.
    """

    min: int = Field(0, ge=0)
    max: PositiveInt = 2
    idle_s: PositiveFloat = 60.0
    cpus_per_actor: NonNegativeFloat = 0.5
    gpus_per_actor: NonNegativeFloat = 0.0
    price_per_hour: PositiveFloat | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: must not exceed max, got {self.min} and {self.max}")
        return self


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, (str, Mapping)) else value


OneOrMore = BeforeValidator(_one_or_more)


class MeasureSpec(Spec):
    """How images are measured: shared by sweeps and by evaluation while training.

    Attributes:
        extractors: the features in which distances are measured; one pass of images feeds all.
        metrics: what is computed of each; those that no extractor can give are refused.
        reference_split: split of the runs' dataset whose images are the reference.
        reference: file of statistics in place of it: `.npz` of EDM, ADM or clean-fid; then of one
            extractor alone.
    """

    extractors: Annotated[tuple[ExtractorSpec, ...], OneOrMore, Field(min_length=1)] = (
        Rn20Spec(),
    )
    metrics: Annotated[tuple[MetricKind, ...], OneOrMore, Field(min_length=1)] = (
        "fd",
        "fd_z",
        "kid",
        "precision",
        "recall",
    )
    reference_split: str = "train"
    reference: PathText | None = None

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        features = [spec.model_dump(exclude={"path", "texts"}) for spec in self.extractors]
        for index, one in enumerate(features):
            if one in features[:index]:
                raise ValueError(
                    f"extractors: {one['kind']} is listed twice; other paths or texts make no "
                    "other features: leave one"
                )
        for kind in self.metrics:
            reasons = [unavailable(kind, extractor) for extractor in self.extractors]
            if None not in reasons:
                raise ValueError(f"metrics: {kind} {reasons[0]}")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics: each once, got {', '.join(self.metrics)}")
        if self.reference is not None and len(self.extractors) > 1:
            raise ValueError(
                "reference: a file of statistics is of one extractor, "
                f"got {len(self.extractors)} extractors; leave one"
            )
        return self

    def metrics_of(self, extractor: ExtractorSpec) -> tuple[MetricKind, ...]:
        """Those that the features of `extractor` can give."""
        return tuple(kind for kind in self.metrics if unavailable(kind, extractor) is None)


class EvaluateSpec(MeasureSpec):
    """Scores of a run's snapshots while it trains: it hands them over and does not wait.

    Attributes:
        every: images between scored snapshots: the first snapshot at or after each multiple.
        solvers, nfe: how images are drawn; a pair that cannot be reached is refused.
        guidance: classifier-free guidance; its calls count.
        ema: the EMA tracks that are sampled.
        samples: images per score, a multiple of 1,000.
        labels: how class labels follow from the seed.
        batch: fixed batch size inside a unit of 100 images.
        pool: the actors. By default they ask for no CPU of their own: they take the time that
            training leaves, at a low priority, instead of waiting for a free CPU.
    """

    every: Span = "20%"
    solvers: tuple[SolverSpec, ...] = Field((DpmppSpec(),), min_length=1)
    nfe: tuple[PositiveInt, ...] = Field((16,), min_length=1)
    guidance: GuidanceSpec | None = None
    ema: Annotated[tuple[str, ...], OneOrMore, Field(min_length=1)] = ("ema",)
    samples: PositiveInt = Field(1000, multiple_of=1000)
    labels: Literal["random", "balanced"] = "random"
    batch: int = Field(100, ge=2)
    pool: PoolSpec = PoolSpec(max=1, idle_s=30.0, cpus_per_actor=0.0)
