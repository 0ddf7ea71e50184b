"""The experiment and the sweep: closed trees composed of the packages' specs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fleetstep.config.measure import EvaluateSpec
from fleetstep.config.paths import PathText, expanded
from fleetstep.data.spec import DataSpec
from fleetstep.diffusion.spec import EdmSpec, ProcessSpec, StrategySpec
from fleetstep.networks.spec import DdpmppSpec, NetworkSpec
from fleetstep.sampling.spec import DpmppSpec, GuidanceSpec, SolverSpec
from fleetstep.spec import Spec, span_images
from fleetstep.training.spec import TrainingSpec


def _data_expanded(data: DataSpec) -> DataSpec:
    return data.model_copy(update={"path": expanded(data.path)})


class ClusterSpec(Spec):
    """Where a job runs and what each of its workers gets.

    Attributes:
        address: Ray address of a running cluster; None starts a local one.
        workers: data-parallel training workers.
        cpus_per_worker: CPUs, and compute threads, of each worker.
        gpus_per_worker: GPUs of each worker; 0 trains on the CPU with gloo.
        max_restarts: how often a job goes on from its last checkpoint after a worker or node was
            lost.
    """

    address: str | None = None
    workers: PositiveInt = 1
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    max_restarts: int = Field(3, ge=0)


class TrackingSpec(Spec):
    """The experiment tracker.

    Attributes:
        uri: MLflow tracking URI; None is an SQLite file beside the runs. May hold `${env:NAME}`,
            resolved when used.
        experiment: the MLflow experiment that holds the runs.
    """

    uri: str | None = None
    experiment: str = Field("fleetstep", min_length=1)


class GridSpec(Spec):
    """The sample grid drawn at every snapshot, at seeds 0, 1, 2, ...

    Attributes:
        samples: number of images; 0 draws none.
        solver, nfe: how they are drawn; guidance makes two of the network calls at a time.
        guidance: classifier-free guidance, for a network trained with label drop-out.
    """

    samples: int = Field(64, ge=0)
    solver: SolverSpec = DpmppSpec()
    nfe: PositiveInt = 16
    guidance: GuidanceSpec | None = None


class PublishedSpec(Spec):
    """A published number that a file stands for; it decides nothing.

    Attributes:
        paper: "FDM", "SpeeD" or another.
        where: the table or figure, and the row if its name is not the method's.
        metric: "FID" or another.
        value: the number; None if the paper gives none, and then `note` says what it compares.
        images, iterations: how far training had gone, as the paper counts it.
        nfe: network calls per image.
        samples: images that were scored.
        note: what a reader should know before trusting it.
    """

    paper: Annotated[str, Field(min_length=1)]
    where: Annotated[str, Field(min_length=1)]
    metric: Annotated[str, Field(min_length=1)] = "FID"
    value: FiniteFloat | None
    images: PositiveInt | None = None
    iterations: PositiveInt | None = None
    nfe: PositiveInt | None = None
    samples: PositiveInt | None = None
    note: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.value is None and not self.note:
            raise ValueError("an entry without a value needs a note that says why")
        return self

    @property
    def text(self) -> str:
        """One line: "FDM Table 2: FID 1.79 (200 Mimg, NFE 35, samples 50000)"."""
        facts = [
            f"{value / unit:g} {name}" if unit else f"{name} {value}"
            for name, unit, value in (
                ("Mimg", 1e6, self.images),
                ("K iterations", 1e3, self.iterations),
                ("NFE", 0, self.nfe),
                ("samples", 0, self.samples),
            )
            if value is not None
        ]
        number = "not published" if self.value is None else f"{self.metric} {self.value:g}"
        inside = f" ({', '.join(facts)})" if facts else ""
        return f"{self.paper} {self.where}: {number}{inside}" + f"; {self.note}" * bool(self.note)


class Experiment(Spec):
    """One training job: shards, process, strategies, network, engine, and where it all goes.

    Attributes:
        name: the run's name: its folder under `storage` and its name in the tracker.
        storage: folder of all runs; every worker must reach it.
        evaluate: scores of snapshots while it trains; null scores none.
        published: the published numbers that this experiment stands for.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: PathText = "runs"
    published: tuple[PublishedSpec, ...] = ()
    data: Annotated[DataSpec, AfterValidator(_data_expanded)]
    process: ProcessSpec = EdmSpec()
    strategies: tuple[StrategySpec, ...] = ()
    network: NetworkSpec = DdpmppSpec()
    training: TrainingSpec
    grid: GridSpec = GridSpec()
    evaluate: EvaluateSpec | None = None
    cluster: ClusterSpec = ClusterSpec()
    tracking: TrackingSpec = TrackingSpec()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.storage) / self.name

    def identity(self, dataset_fingerprint: str) -> str:
        """Digest of what a resumed run must share with its checkpoint: a difference means another
        experiment.

        Spans given as shares of the budget count as the images they stand for, so extending such a
        run is refused rather than silently given another schedule.
        """
        budget = self.training.images
        tree = self.model_dump(mode="json", include={"process", "strategies", "network"})
        tree["data"] = {
            "fingerprint": dataset_fingerprint,
            **self.data.model_dump(mode="json", include={"split", "window", "flip", "augment"}),
        }
        tree["training"] = self.training.model_dump(
            mode="json",
            include={
                "seed",
                "global_batch",
                "optimizer",
                "lr_ramp",
                "ema",
                "label_dropout",
                "precision",
            },
        )
        return _digest(_spans_resolved(tree, budget))

    def execution(self) -> str:
        """Digest of the whole configuration, including what may change at a resume (workers,
        paths, budget), but for the published numbers, which decide nothing.
        """
        return _digest(self.model_dump(mode="json", exclude={"published"}))


def _spans_resolved(tree: Any, budget: int) -> Any:
    if isinstance(tree, dict):
        return {key: _spans_resolved(child, budget) for key, child in tree.items()}
    if isinstance(tree, list):
        return [_spans_resolved(child, budget) for child in tree]
    if isinstance(tree, str) and tree.strip().endswith("%"):
        return span_images(tree, budget)
    return tree


def _digest(tree: Any) -> str:
    return hashlib.sha256(
        json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
