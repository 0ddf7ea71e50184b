"""What one Ray Train worker does: put the pieces of a run together and hand them to the training
loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fleetstep.config import ClusterSpec, Experiment
from fleetstep.data.augmentation import Augmentation
from fleetstep.data.manifest import Manifest
from fleetstep.data.stream import Stream
from fleetstep.errors import FleetstepError
from fleetstep.networks.execution import prepare
from fleetstep.orchestration.metric_logger import MetricLogger, SpoolLogger
from fleetstep.orchestration.pieces import network_of, objective_of
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.snapshot_view import SnapshotView
from fleetstep.orchestration.system_metrics import SystemMetrics
from fleetstep.training.checkpoint import CheckpointStore, OnEvent
from fleetstep.training.checkpoint_format import Checkpoint, RunFacts
from fleetstep.training.ema import EmaTracks
from fleetstep.training.engine import DeepSpeedEngine
from fleetstep.training.loop import Callbacks, Job, Outcome, train
from fleetstep.training.resume import choose_start
from fleetstep.training.snapshot import read_snapshot
from fleetstep.training.spec import BatchPlan, batch_arithmetic, effective_stage


@dataclass(frozen=True)
class Assignment:
    """Everything a worker needs, picklable; the tracker's address has its secrets resolved and is
    never printed. Without one, metrics stay in the run's spool.
    """

    experiment: str
    run_id: str
    tracking_uri: str | None = field(repr=False)
    folder: str
    on_event: OnEvent

    def as_dict(self) -> dict[str, Any]:
        """The form Ray Train passes on."""
        return {"assignment": self}


def run_worker(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train as one of the workers; what rank 0 returns reaches the driver."""
    job: Assignment = arguments["assignment"]
    experiment = Experiment.model_validate_json(job.experiment)

    def trained(folder: RunFolder, device: torch.device) -> dict[str, Any]:
        with _Run(experiment, folder, job, device) as run:
            outcome = run.train()
        return {"images_seen": outcome.images_seen, "finished": outcome.status == "finished"}

    return as_worker(job, experiment.cluster, trained)


def as_worker(
    job: Assignment,
    cluster: ClusterSpec,
    train: Callable[[RunFolder, torch.device], dict[str, Any]],
) -> dict[str, Any]:
    """Run `train` as one of Ray Train's workers, in the job's folder and on the worker's device.

    Ray Train starts all workers again when one fails, whatever the reason. An error of our own
    (bad data, a loss that is not finite) would only happen again: it is noted in the run's folder,
    and workers that find the note return at once.
    """
    folder = RunFolder(Path(job.folder))
    if folder.reason_to_give_up() is not None:
        return {"gave_up": True}
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
    try:
        return train(folder, _device_of(cluster))
    except FleetstepError as error:
        folder.give_up(error)
        raise


class _Run:
    """The pieces of a run in this worker."""

    def __init__(
        self, experiment: Experiment, folder: RunFolder, job: Assignment, device: torch.device
    ) -> None:
        training = experiment.training
        self._experiment, self._folder, self._on_event = experiment, folder, job.on_event
        self._stream = Stream(experiment.data, seed=training.seed)
        self._objective = objective_of(experiment)
        plan = batch_arithmetic(
            training.global_batch, experiment.cluster.workers, training.micro_batch
        )
        assert isinstance(plan, BatchPlan), plan  # the driver has refused any other
        network = self._network()
        prepare(
            network,
            activation_checkpointing=training.activation_checkpointing,
            compile=training.compile,
        )
        self._engine = DeepSpeedEngine(
            network,
            training.optimizer,
            plan,
            stage=effective_stage(training, experiment.cluster.workers),
            precision=training.precision,
            device=device,
        )
        self._plan = plan
        self._ema = EmaTracks(
            training.ema,
            budget=training.images,
            global_batch=training.global_batch,
            owned=self._engine.owned(),
        )
        self._store = CheckpointStore(folder.checkpoints, keep=training.keep_checkpoints)
        self._view = SnapshotView(
            network=self._network(),
            objective=self._objective,
            stream=self._stream,
            split=experiment.data.heldout,
            heldout=training.heldout,
            grid=experiment.grid,
            group=self._engine.group,
            device=device,
        )
        rank_0 = self._engine.group.rank == 0
        self._logger = logger_of(job, folder) if rank_0 else None
        self._system = SystemMetrics() if rank_0 else None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._logger is not None:
            self._logger.close()
        self._stream.close()

    def train(self) -> Outcome:
        """Run the loop from the newest sound checkpoint; a restart goes on whatever the user
        asked for at first.
        """
        facts = facts_of(self._experiment, self._stream.manifest)
        job = Job(
            training=self._experiment.training,
            plan=self._plan,
            engine=self._engine,
            objective=self._objective,
            stream=self._stream,
            augmentation=_augmentation(self._experiment),
            prefetch=self._experiment.data.prefetch,
            ema=self._ema,
            store=self._store,
            snapshots=self._folder.snapshots,
            facts=facts,
            callbacks=Callbacks(report=report_checkpoint, log=self._log, snapshot=self._snapshot),
            on_event=self._on_event,
            should_stop=self._folder.stop_request.exists,
        )
        return train(job, choose_start(self._store, "auto", facts, self._engine.group))

    def _network(self) -> torch.nn.Module:
        return network_of(self._experiment, self._stream.shape, self._stream.classes)

    def _log(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        if self._logger is not None and self._system is not None:
            self._logger.log(images_seen, {**metrics, **self._system.take()})

    def _snapshot(self, path: Path, images_seen: int) -> None:
        """Held-out error and grid of every snapshot, shared by the workers."""
        track = next(iter(self._experiment.training.ema))
        weights, _ = read_snapshot(path, track)
        self._view.load(weights)
        self._log(images_seen, self._view.held_out())
        if self._experiment.grid.samples:
            self._view.draw(self._folder.grid(images_seen))


def facts_of(experiment: Experiment, manifest: Manifest) -> RunFacts:
    """What a checkpoint of this experiment on that dataset says about itself."""
    return RunFacts(
        identity=experiment.identity(manifest.fingerprint),
        dataset=manifest.fingerprint,
        execution=experiment.execution(),
        config=experiment.model_dump(mode="json"),
        shape=manifest.shape,
        classes=manifest.classes,
    )


def logger_of(job: Assignment, folder: RunFolder) -> MetricLogger | SpoolLogger:
    """Where the job's metrics go; for rank 0."""
    if job.tracking_uri is None:
        return SpoolLogger(folder.spool)
    return MetricLogger(job.tracking_uri, job.run_id, folder.spool)


def _augmentation(experiment: Experiment) -> Augmentation | None:
    return Augmentation(experiment.data.augment) if experiment.data.augment > 0 else None


def _device_of(cluster: ClusterSpec) -> torch.device:
    """Where this worker computes."""
    if cluster.gpus_per_worker == 0:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def report_checkpoint(checkpoint: Checkpoint) -> None:
    """Tell Ray Train that this worker is alive and where it is; only at checkpoints: it blocks."""
    import ray.train

    ray.train.report({"step": checkpoint.step, "images_seen": checkpoint.images_seen})
