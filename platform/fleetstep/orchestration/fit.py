"""`fleetstep train`: one training job by Ray Train, from the driver's side.

The driver checks everything first, makes the tracker's run, starts the workers and alone says how
the run ended. It trusts no state of Ray's for resuming: the checkpoints' own manifests decide.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import Experiment
from fleetstep.errors import ResumeError, TrackingError, TrainingError, UnknownRunError
from fleetstep.orchestration.figures import keep_figures
from fleetstep.orchestration.fit_worker import Assignment, facts_of, run_worker
from fleetstep.orchestration.metric_logger import drain
from fleetstep.orchestration.placement import check_placement
from fleetstep.orchestration.progress import Follower
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.session import alive_nodes, connect, worker_environment
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.orchestration.tracking import Tracker
from fleetstep.training.checkpoint import CheckpointStore, OnEvent, no_event
from fleetstep.training.checkpoint_format import RunFacts
from fleetstep.training.resume import Resume, check_leftovers, choose_start

Say = Callable[[str], None]
# How long workers get to write a checkpoint after Ctrl-C before the job is torn down.
_GRACE_S = 120.0
_CONTROLLER_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A job that used up its budget; one that was stopped leaves as an interruption.

    Attributes:
        folder: the run's folder.
        run_id: the run in the tracker.
        images_seen: progress.
        seconds: wall time of this call.
    """

    folder: Path
    run_id: str
    images_seen: int
    seconds: float

    def text(self) -> str:
        """A closing line."""
        where = f"{self.images_seen / 1000:g} kimg after {self.seconds:.0f} s"
        return f"{self.folder.name}: finished at {where} ({self.folder})"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "folder": str(self.folder),
            "run_id": self.run_id,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
        }


def fit(
    experiment: Experiment,
    *,
    resume: Resume = "auto",
    say: Say | None = None,
    on_event: OnEvent = no_event,
) -> FitResult:
    """Train to the end of the budget, from the newest sound checkpoint if there is one.

    Args:
        experiment: the checked configuration.
        resume: "auto" goes on if there is a checkpoint, "must" never starts from zero, "never"
            wants an empty folder.
        say: where progress lines go; None keeps quiet.
        on_event: called in the workers at points where a job may be interrupted; tests interrupt
            it there.

    Raises:
        ResumeError: the policy cannot be kept, or the checkpoint belongs to another experiment.
        ResourceError: the cluster cannot place the workers.
        TrainingError: the workers failed more often than `cluster.max_restarts`.
    """
    started = time.monotonic()
    experiment = config.with_absolute_paths(experiment)
    folder = RunFolder(experiment.folder)
    manifest = config.manifest_of(experiment)
    facts = facts_of(experiment, manifest)
    store = CheckpointStore(folder.checkpoints)
    if choose_start(store, resume, facts) is None:
        check_leftovers(folder.snapshots, resume, facts)
        _check_metrics(folder, facts)
    for skipped in store.skipped:
        _tell(say, f"  passed over {skipped.path.name}: {skipped.reason}")
    uri = tracking_uri(experiment.tracking.uri, Path(experiment.storage))
    tracker = Tracker(uri, experiment.tracking.experiment)
    with connect(experiment.cluster.address):
        _check_workers(experiment)
        folder.prepare(config.dump(experiment))
        run_id = _start_run(tracker, experiment, folder, facts)
        job = Assignment(
            experiment.model_dump_json(), run_id, tracker.uri, str(folder.root.resolve()), on_event
        )
        with tracker.ending(run_id):
            tracker.log_dataset(run_id, manifest.name, manifest.fingerprint, experiment.data.path)
            tracker.log_artifact(run_id, folder.config)
            try:
                with Follower(folder.spool, experiment.training.images, say):
                    outcome = _train(experiment, job, folder, say)
            finally:
                _collect(tracker, run_id, folder, say)
            if not outcome["finished"]:
                # Leaves the block as an interruption, so that the tracker says KILLED.
                raise KeyboardInterrupt
    keep_figures(tracker, run_id, folder.figures, say)
    return FitResult(
        folder=folder.root,
        run_id=run_id,
        images_seen=outcome["images_seen"],
        seconds=time.monotonic() - started,
    )


def _check_metrics(folder: RunFolder, facts: RunFacts) -> None:
    """Refuse to add to another experiment's metrics: below its last point they would be dropped
    as repeated, beyond it they would go on as one curve.
    """
    if not folder.spool.is_file() or folder.spool.stat().st_size == 0:
        return
    card = RunCard.read(folder.card)
    if card is None or card.identity != facts.identity:
        theirs = "unknown" if card is None else card.identity
        raise ResumeError(
            f"the run starts from nothing, but {folder.spool} holds metrics of another experiment "
            f"(identity fingerprint): {theirs}, this run has {facts.identity}",
            "choose another run name, or remove the run's folder",
        )


def _check_workers(experiment: Experiment) -> None:
    """Before anything of the run exists, so that a refusal leaves nothing behind."""
    cluster = experiment.cluster
    check_placement(
        alive_nodes(),
        actors=cluster.workers,
        cpus=cluster.cpus_per_worker,
        gpus=cluster.gpus_per_worker,
        what="training workers",
    )


def _start_run(
    tracker: Tracker, experiment: Experiment, folder: RunFolder, facts: RunFacts
) -> str:
    """The tracker's run: the one this folder had, or a new one."""
    card = RunCard.read(folder.card)
    known = card.run_id if card is not None and card.experiment == tracker.experiment else None
    start: dict[str, Any] = {
        "tags": {
            "fleetstep.kind": "train",
            "fleetstep.identity": facts.identity,
            "fleetstep.folder": str(folder.root),
        }
    }
    params = config.flatten(experiment)
    try:
        run_id = tracker.start_run(experiment.name, params, run_id=known, **start)
    except UnknownRunError:
        # Another database than last time: the folder is the truth, so the run is made anew there.
        run_id = tracker.start_run(experiment.name, params, **start)
    RunCard(run_id, tracker.experiment, facts.identity).write(folder.card)
    return run_id


def _collect(tracker: Tracker, run_id: str, folder: RunFolder, say: Say | None) -> None:
    """Whatever the workers left: metrics in the spool, grids on disk. A tracker that is down
    loses nothing of it.
    """
    try:
        drain(tracker.uri, run_id, folder.spool)
        for grid in sorted(folder.grids.glob("*.png")):
            tracker.log_artifact(run_id, grid, "grids")
    except TrackingError as error:
        _tell(say, f"  the tracker did not take everything, it stays in {folder.root}: {error}")


def _train(
    experiment: Experiment, job: Assignment, folder: RunFolder, say: Say | None
) -> dict[str, Any]:
    """Run the workers in a thread, so that this one can turn Ctrl-C into a request to save and
    stop.
    """
    ended: dict[str, Any] = {}
    # Not Thread.join: interrupted by a signal, Python 3.11 takes the thread for finished.
    done = threading.Event()

    def run() -> None:
        try:
            ended["outcome"] = _run_trainer(experiment, job, folder)
        except BaseException as error:  # handed to the waiting thread
            ended["error"] = error
        finally:
            done.set()

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    try:
        # With a time-out, because a wait without one is not interrupted on every platform.
        while not done.wait(0.5):
            pass
    except (KeyboardInterrupt, SystemExit):
        _tell(
            say,
            "  stopping: the workers save a checkpoint first; press Ctrl-C again to give "
            "up on that",
        )
        folder.stop_request.touch()
        done.wait(_GRACE_S)
        if "error" in ended:
            _tell(say, f"  that failed: {ended['error']}")
        if "outcome" not in ended:
            raise
    finally:
        folder.stop_request.unlink(missing_ok=True)
    if "error" in ended:
        raise ended["error"]
    outcome: dict[str, Any] = ended["outcome"]
    return outcome


def _run_trainer(experiment: Experiment, job: Assignment, folder: RunFolder) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    cluster = experiment.cluster
    on_gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": cluster.cpus_per_worker}
    if on_gpu:
        resources["GPU"] = cluster.gpus_per_worker
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=job.as_dict(),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=on_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            # A name of its own: Ray would otherwise resume from what it finds under an old one.
            name=f"attempt-{time.time_ns():x}-{os.getpid()}",
            storage_path=str(folder.root / "ray"),
            failure_config=FailureConfig(
                max_failures=cluster.max_restarts,
                # Ray's default is to start a failing controller again for ever.
                controller_failure_limit=_CONTROLLER_FAILURES,
            ),
            worker_runtime_env={
                "env_vars": worker_environment(max(1, int(cluster.cpus_per_worker)))
            },
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        outcome: dict[str, Any] = trainer.fit().return_value
    except WorkerGroupError as failure:
        raise folder.reason_to_give_up() or _worker_error(failure.worker_failures) from failure
    except ControllerError as failure:
        raise TrainingError(
            f"the training controller failed: {failure.controller_failure}",
            "run the same command again to go on from the last checkpoint",
        ) from failure
    if (error := folder.reason_to_give_up()) is not None:
        raise error
    return outcome


def _worker_error(failures: dict[int, Exception]) -> TrainingError:
    rank, failure = min(failures.items())
    return TrainingError(
        f"worker {rank} failed: {failure}",
        "finished checkpoints are kept: run the same command again to go on from the last one",
    )


def _tell(say: Say | None, text: str) -> None:
    if say is not None:
        say(text)
