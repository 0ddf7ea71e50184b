"""What a training job would do, worked out from its configuration alone: `fleetstep train
--dry-run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import Experiment
from fleetstep.errors import ConfigError
from fleetstep.orchestration.due_snapshots import planned_points
from fleetstep.orchestration.strategy_notes import process_note, strategy_notes
from fleetstep.orchestration.sweep_solvers import settings_of
from fleetstep.spec import span_images
from fleetstep.training.spec import BatchPlan, Saves, batch_arithmetic, total_steps


@dataclass(frozen=True, kw_only=True)
class DatasetSize:
    """What the dataset holds.

    Attributes:
        name: of the dataset.
        samples, shards: of the training split.
        heldout: samples held out.
    """

    name: str
    samples: int
    heldout: int
    shards: int

    @classmethod
    def of(cls, experiment: Experiment) -> DatasetSize:
        """From the manifest of the experiment's dataset."""
        manifest = config.manifest_of(experiment)
        return cls(
            name=manifest.name,
            samples=manifest.samples(experiment.data.split),
            heldout=manifest.samples(experiment.data.heldout),
            shards=len(manifest.splits[experiment.data.split]),
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationSize:
    """What scoring snapshots while the run trains takes.

    Attributes:
        snapshots: how many are scored.
        cells: scores of each: solver, NFE and EMA track.
        calls: network calls on one image, in all.
    """

    snapshots: int
    cells: int
    calls: int

    @classmethod
    def of(cls, experiment: Experiment) -> EvaluationSize | None:
        """Worked out from the configuration; None if nothing is scored."""
        evaluate = experiment.evaluate
        if evaluate is None:
            return None
        settings, _ = settings_of(evaluate.solvers, evaluate.nfe, guidance=(evaluate.guidance,))
        snapshots = len(planned_points(experiment.training, evaluate))
        images = snapshots * len(evaluate.ema) * evaluate.samples
        return cls(
            snapshots=snapshots,
            cells=len(settings) * len(evaluate.ema),
            calls=images * sum(setting.nfe or 0 for setting in settings),
        )


@dataclass(frozen=True, kw_only=True)
class TrainingPreview:
    """The numbers of a job before it starts.

    Attributes:
        batches: workers, micro-batch and accumulation of one optimiser step.
        dataset: its size; None if it is not there.
        steps: optimiser steps in all.
        checkpoints, snapshots: how many of each the run will write.
        grid_calls: network calls spent on sample grids.
        evaluation: scores of snapshots while it trains; None without.
        notes: what a user should know about the process and the chosen strategies.
    """

    experiment: Experiment
    batches: BatchPlan
    dataset: DatasetSize | None
    steps: int
    checkpoints: int
    snapshots: int
    grid_calls: int
    evaluation: EvaluationSize | None
    notes: tuple[str, ...]

    def summary(self) -> str:
        """A few lines to print before training starts."""
        training, cluster = self.experiment.training, self.experiment.cluster
        plan, dataset = self.batches, self.dataset
        epochs = (
            ""
            if dataset is None
            else f" ({training.images / dataset.samples:.1f} epochs of {dataset.samples})"
        )
        lines = [
            f"{self.experiment.name}: {self.steps} steps of {training.global_batch} images "
            f"= {training.images / 1000:g} kimg{epochs}",
            f"  batch {training.global_batch} = {cluster.workers} worker(s) x "
            f"{plan.micro_batch} images "
            f"x {plan.accumulation} accumulation",
            self._data_line(),
            f"  {self.checkpoints} checkpoint(s), {self.snapshots} snapshot(s), "
            f"{self.grid_calls} network calls for grids",
            *self._evaluation_lines(),
        ]
        published = (f"  published: {entry.text}" for entry in self.experiment.published)
        return "\n".join([*lines, *(f"  {note}" for note in self.notes), *published])

    def _evaluation_lines(self) -> Iterator[str]:
        evaluate, size = self.experiment.evaluate, self.evaluation
        if evaluate is None or size is None:
            return
        pool = evaluate.pool
        yield (
            f"  {size.snapshots} snapshot(s) x {size.cells} cell(s) scored while it trains, with "
            f"{evaluate.samples:,} images each: {size.calls:,} network calls by at most "
            f"{pool.max} actor(s) beside the workers"
        )

    def _data_line(self) -> str:
        data, dataset = self.experiment.data, self.dataset
        if dataset is None:
            return (
                f"  data {data.path} is NOT THERE, so nothing was checked against it: "
                f"{config.how_to_pack(data)}"
            )
        return (
            f"  data {dataset.name}: {dataset.samples} samples in {dataset.shards} shard(s), of "
            f"which every worker reads its own samples through the index; "
            f"{dataset.heldout} held out"
        )

    def text(self) -> str:
        """The summary after the resolved configuration."""
        return f"{config.dump(self.experiment)}---\n{self.summary()}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        dataset = self.dataset
        return {
            "experiment": self.experiment.model_dump(mode="json"),
            "workers": self.experiment.cluster.workers,
            "per_worker": self.batches.per_worker,
            "micro_batch": self.batches.micro_batch,
            "accumulation": self.batches.accumulation,
            "samples": None if dataset is None else dataset.samples,
            "heldout": None if dataset is None else dataset.heldout,
            "shards": None if dataset is None else dataset.shards,
            "steps": self.steps,
            "checkpoints": self.checkpoints,
            "snapshots": self.snapshots,
            "grid_calls": self.grid_calls,
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "notes": list(self.notes),
        }


def preview_training(experiment: Experiment) -> TrainingPreview:
    """Work the job's numbers out; reads the dataset's manifest if it is there, starts nothing."""
    training, budget = experiment.training, experiment.training.images
    plan = batch_arithmetic(
        training.global_batch, experiment.cluster.workers, training.micro_batch
    )
    if isinstance(plan, str):
        raise ConfigError([f"training.global_batch: {plan}"])
    saves = Saves.of(training)
    snapshots = len(saves.snapshots())
    return TrainingPreview(
        experiment=experiment,
        batches=plan,
        dataset=DatasetSize.of(experiment) if Path(experiment.data.path).exists() else None,
        steps=total_steps(budget, training.global_batch),
        checkpoints=len(saves.checkpoints()),
        snapshots=snapshots,
        grid_calls=snapshots * experiment.grid.samples * experiment.grid.nfe,
        evaluation=EvaluationSize.of(experiment),
        notes=(process_note(experiment.process), *strategy_notes(experiment), *_notes(experiment)),
    )


def _notes(experiment: Experiment) -> Iterator[str]:
    training, guidance = experiment.training, experiment.grid.guidance
    if experiment.data.augment:
        yield (
            f"augmentation: each change with probability {experiment.data.augment:g}, of which "
            "the network is told"
        )
    if guidance is not None and guidance.scale != 1 and training.label_dropout == 0:
        yield (
            f"warning: grids are guided with scale {guidance.scale:g}, but no label is dropped in "
            "training, so the network never learns its image for no class "
            "(training.label_dropout=0.1 is usual)"
        )
    ramp = span_images(training.lr_ramp, training.images)
    if ramp > training.images:
        yield (
            f"warning: the learning-rate ramp of {ramp / 1000:g} kimg is longer than the "
            f"run; it ends at "
            f'{training.images / ramp:.1%} of lr (training.lr_ramp="5%" scales with the run)'
        )
