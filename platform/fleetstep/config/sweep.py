"""The sweep: a grid of what is sampled, and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from fleetstep.config.measure import MeasureSpec, OneOrMore, PoolSpec
from fleetstep.config.paths import PathText
from fleetstep.config.specs import PublishedSpec, TrackingSpec
from fleetstep.evaluation.spec import PROTOCOLS, InceptionSpec, ProtocolName, Quantisation
from fleetstep.sampling.spec import (
    DpmppSpec,
    EulerSpec,
    GuidanceSpec,
    HeunSpec,
    IpndmSpec,
    ScheduleSpec,
    SolverSpec,
)
from fleetstep.spec import Spec


class ScreenSpec(Spec):
    """Which cells are worth scoring: those whose features, on a few shared latents, lie no
    farther from a teacher's than a cell's of no more network calls.

    Only deterministic solvers are judged; cells are compared within one network and guidance.

    Attributes:
        latents: shared latents, the first ids of every cell; their work is not lost.
        confidence: one-sided, of the paired comparison that drops a cell.
        teacher, teacher_nfe: what stands for the exact solution; guidance doubles its calls.
    """

    latents: int = Field(64, ge=8, le=100)
    confidence: float = Field(0.99, gt=0.5, lt=1)
    teacher: SolverSpec = HeunSpec()
    teacher_nfe: PositiveInt = 79

    @model_validator(mode="after")
    def _deterministic(self) -> Self:
        if self.teacher.stochastic or self.teacher.adaptive or self.teacher.learned:
            raise ValueError(
                f"teacher: must be deterministic with a number of calls of its own choosing, "
                f"got {self.teacher.kind}; use heun"
            )
        return self


class SweepSpec(MeasureSpec):
    """A grid of snapshots x EMA tracks x solvers x schedules x guidance x NFE x seed blocks,
    scored by a pool of actors.

    Attributes:
        name: the sweep's name.
        protocol: conventions of a publication; it fixes settings, and a file that contradicts it
            is refused. Where no extractor is named it is the Inception network that clean-fid
            caches.
        runs: run folders (their last snapshot is taken), snapshot folders, or `exact:FOLDER` for
            the exact denoiser of a packed dataset.
        snapshots: which snapshots of a run folder: the last one, or all.
        storage: folder for results, shared by all actors.
        solvers, nfe: the grid; a pair that cannot be reached is skipped with its reason. A solver
            whose calls cannot be chosen (a predictor, a list of levels, rk45) is one cell whatever
            `nfe` says.
        schedules: in place of the solvers' own, where null stands for a solver's own.
        guidance: classifier-free guidance; null is none. Its calls count.
        dtype: of the solvers' state; the network's precision is its own affair.
        ema: the EMA tracks that are sampled.
        samples: images per cell and seed block, a multiple of 1,000.
        seed_blocks: how often: block b has the ids b samples ... (b + 1) samples - 1. Each is a
            score of its own, and with three or more the lowest stands beside them, by its name.
        namespace: of the latents; sweeps of one namespace are compared pair by pair.
        labels: how class labels follow from the seed.
        quantisation: from the sampler's numbers to pixels.
        pictures: first images of every cell that are kept for grids; 0 keeps none.
        pool: the actors.
        screen: drop cells that a few latents show to be worse; null scores all.
        batch: fixed batch size inside a unit of 100 images.
        address: Ray address of a running cluster; None starts a local one.
        published: the published numbers that this sweep stands for.
    """

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    protocol: ProtocolName | None = None
    runs: Annotated[tuple[PathText, ...], OneOrMore, Field(min_length=1)]
    snapshots: Literal["last", "all"] = "last"
    storage: PathText = "runs"
    solvers: tuple[SolverSpec, ...] = Field(
        (EulerSpec(), HeunSpec(), IpndmSpec(), DpmppSpec()), min_length=1
    )
    nfe: tuple[PositiveInt, ...] = Field((5, 9, 17, 35), min_length=1)
    schedules: tuple[ScheduleSpec | None, ...] = Field((None,), min_length=1)
    guidance: tuple[GuidanceSpec | None, ...] = Field((None,), min_length=1)
    dtype: Literal["float64", "float32"] = "float64"
    ema: Annotated[tuple[str, ...], OneOrMore, Field(min_length=1)] = ("ema",)
    samples: PositiveInt = Field(1000, multiple_of=1000)
    seed_blocks: PositiveInt = 1
    namespace: int = Field(0, ge=0)
    labels: Literal["random", "balanced"] = "random"
    quantisation: Quantisation = "round"
    pictures: int = Field(16, ge=0, le=64)
    pool: PoolSpec = PoolSpec()
    screen: ScreenSpec | None = None
    batch: int = Field(100, ge=2)
    address: str | None = None
    tracking: TrackingSpec = TrackingSpec()
    published: tuple[PublishedSpec, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _filled_by_protocol(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("protocol") not in PROTOCOLS:
            return values
        fixed = dict(PROTOCOLS[values["protocol"]])
        extractor = {"kind": "inception", "resize": fixed.pop("resize")}
        return {"extractors": [extractor], **fixed, **values}

    @model_validator(mode="after")
    def _as_the_protocol_says(self) -> Self:
        if self.protocol is None:
            return self
        fixed = PROTOCOLS[self.protocol]
        for extractor in self.extractors:
            if not isinstance(extractor, InceptionSpec) or extractor.resize != fixed["resize"]:
                raise ValueError(
                    f"protocol: {self.protocol} measures features of inception with resize "
                    f"{fixed['resize']}; use extractors: [{{kind: inception, "
                    f"resize: {fixed['resize']}, path: ...}}]"
                )
        for key in fixed.keys() - {"resize"}:
            if getattr(self, key) != fixed[key]:
                raise ValueError(
                    f"{key}: protocol {self.protocol} fixes {fixed[key]}, got "
                    f"{getattr(self, key)}; leave one of the two out"
                )
        return self
