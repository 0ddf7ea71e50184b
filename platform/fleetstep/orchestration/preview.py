"""What a training job would do, worked out from its configuration alone: `fleetstep train
--dry-run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fleetstep import config
from fleetstep.config import Experiment
from fleetstep.diffusion.spec import FdmSpec, SpeedSpec, WarmupSpec, nearly_inert, suppressed_mass
from fleetstep.errors import ConfigError
from fleetstep.spec import span_images
from fleetstep.training.spec import BatchPlan, Saves, batch_arithmetic, total_steps


@dataclass(frozen=True, kw_only=True)
class TrainingPreview:
    """The numbers of a job before it starts.

    Attributes:
        batches: workers, micro-batch and accumulation of one optimiser step.
        samples, shards: size of the training split.
        steps: optimiser steps in all.
        checkpoints, snapshots: how many of each the run will write.
        grid_calls: network calls spent on sample grids.
        notes: what a user should know about the chosen strategies.
    """

    experiment: Experiment
    batches: BatchPlan
    dataset: str
    samples: int
    heldout: int
    shards: int
    steps: int
    checkpoints: int
    snapshots: int
    grid_calls: int
    notes: tuple[str, ...]

    def summary(self) -> str:
        """A few lines to print before training starts."""
        training, cluster = self.experiment.training, self.experiment.cluster
        plan = self.batches
        lines = [
            f"{self.experiment.name}: {self.steps} steps of {training.global_batch} images "
            f"= {training.images / 1000:g} kimg ({training.images / self.samples:.1f} "
            f"epochs of {self.samples})",
            f"  batch {training.global_batch} = {cluster.workers} worker(s) x "
            f"{plan.micro_batch} images "
            f"x {plan.accumulation} accumulation",
            f"  data {self.dataset}: {self.samples} samples in {self.shards} shard(s), of "
            f"which every worker reads its own samples through the index; "
            f"{self.heldout} held out",
            f"  {self.checkpoints} checkpoint(s), {self.snapshots} snapshot(s), "
            f"{self.grid_calls} network calls for grids",
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def text(self) -> str:
        """The summary after the resolved configuration."""
        return f"{config.dump(self.experiment)}---\n{self.summary()}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "experiment": self.experiment.model_dump(mode="json"),
            "workers": self.experiment.cluster.workers,
            "per_worker": self.batches.per_worker,
            "micro_batch": self.batches.micro_batch,
            "accumulation": self.batches.accumulation,
            "samples": self.samples,
            "heldout": self.heldout,
            "shards": self.shards,
            "steps": self.steps,
            "checkpoints": self.checkpoints,
            "snapshots": self.snapshots,
            "grid_calls": self.grid_calls,
            "notes": list(self.notes),
        }


def preview_training(experiment: Experiment) -> TrainingPreview:
    """Work the job's numbers out; reads the dataset's manifest, starts nothing."""
    manifest = config.manifest_of(experiment)
    training, budget = experiment.training, experiment.training.images
    plan = batch_arithmetic(
        training.global_batch, experiment.cluster.workers, training.micro_batch
    )
    if isinstance(plan, str):
        raise ConfigError([f"training.global_batch: {plan}"])
    train, heldout = (
        manifest.splits[experiment.data.split],
        manifest.splits[experiment.data.heldout],
    )
    saves = Saves.of(training)
    snapshots = sum(map(saves.snapshot, saves.points()))
    return TrainingPreview(
        experiment=experiment,
        batches=plan,
        dataset=manifest.name,
        samples=sum(shard.samples for shard in train),
        heldout=sum(shard.samples for shard in heldout),
        shards=len(train),
        steps=total_steps(budget, training.global_batch),
        checkpoints=sum(map(saves.checkpoint, saves.points())),
        snapshots=snapshots,
        grid_calls=snapshots * experiment.grid.samples * experiment.grid.nfe,
        notes=tuple(_notes(experiment)),
    )


def _notes(experiment: Experiment) -> list[str]:
    notes = []
    training = experiment.training
    for strategy in experiment.strategies:
        if isinstance(strategy, SpeedSpec):
            mass = suppressed_mass(experiment.process, strategy)
            k = strategy.k if strategy.sampling else 1.0
            notes.append(
                f"SpeeD: {_percent(mass)} of the base law's mass lies beyond the threshold; its "
                f"share of the draws falls to {_percent(mass / (k * (1 - mass) + mass))}"
                if k > 1
                else f"SpeeD: {_percent(mass)} of the base law's mass lies beyond the threshold "
                "and keeps its share of the draws"
            )
            if (warning := nearly_inert(experiment.process, strategy)) is not None:
                notes.append(f"warning: {warning}")
        warmup = (
            strategy if isinstance(strategy, WarmupSpec) else getattr(strategy, "warmup", None)
        )
        if isinstance(warmup, WarmupSpec):
            images = span_images(warmup.window, training.images)
            name = "FDM" if isinstance(strategy, FdmSpec) else "warm-up"
            notes.append(
                f"{name}: loss-weight clamp over the first {images / 1000:g} kimg "
                f"({images / training.images:.0%})"
            )
    ramp = span_images(training.lr_ramp, training.images)
    if ramp > training.images:
        notes.append(
            f"warning: the learning-rate ramp of {ramp / 1000:g} kimg is longer than the "
            f"run; it ends at "
            f'{training.images / ramp:.1%} of lr (training.lr_ramp="5%" scales with the run)'
        )
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"
