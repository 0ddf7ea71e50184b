"""`fleetstep train`: one training job by Ray Train, from the driver's side.

The driver checks everything first, makes the tracker's run, starts the workers and alone says how
the run ended. It trusts no state of Ray's for resuming: the checkpoints' own manifests decide.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import Experiment
from fleetstep.orchestration.figures import keep_figures
from fleetstep.orchestration.fit_worker import Assignment, facts_of, run_worker
from fleetstep.orchestration.progress import Follower
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.orchestration.tracked_run import check_metrics, collect, start_run
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.trainer import Say, check_workers, run_workers, tell
from fleetstep.training.checkpoint import CheckpointStore, OnEvent, no_event
from fleetstep.training.resume import Resume, check_leftovers, choose_start


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
        check_metrics(folder, facts)
    for skipped in store.skipped:
        tell(say, f"  passed over {skipped.path.name}: {skipped.reason}")
    uri = tracking_uri(experiment.tracking.uri, Path(experiment.storage))
    tracker = Tracker(uri, experiment.tracking.experiment)
    with connect(experiment.cluster.address):
        check_workers(experiment.cluster)
        folder.prepare(config.dump(experiment))
        run_id = start_run(
            tracker,
            experiment.name,
            config.flatten(experiment),
            kind="train",
            folder=folder,
            facts=facts,
        )
        job = Assignment(
            experiment.model_dump_json(), run_id, tracker.uri, str(folder.root.resolve()), on_event
        )
        with tracker.ending(run_id):
            tracker.log_dataset(run_id, manifest.name, manifest.fingerprint, experiment.data.path)
            tracker.log_artifact(run_id, folder.config)
            try:
                with Follower(folder.spool, experiment.training.images, say):
                    outcome = run_workers(
                        run_worker, job.as_dict(), experiment.cluster, folder, say
                    )
            finally:
                collect(tracker, run_id, folder, say)
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
