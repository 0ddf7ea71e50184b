"""`fleetstep train`: one training job by Ray Train, from the driver's side.

The driver checks everything first, makes the tracker's run, starts the workers and alone says how
the run ended. It trusts no state of Ray's for resuming: the checkpoints' own manifests decide.

Where the experiment asks for scores, an evaluator works beside the workers. Training's end does
not wait for it, and nothing that happens to it changes how training is recorded; the command
itself succeeds only when the scores are there.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import Experiment
from fleetstep.errors import TrackingError
from fleetstep.orchestration.evaluated import Evaluated
from fleetstep.orchestration.evaluator_setup import check_evaluation, check_pool, evaluator_of
from fleetstep.orchestration.figures import keep_figures
from fleetstep.orchestration.fit_worker import Assignment, facts_of, run_worker
from fleetstep.orchestration.progress import Follower
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.run_notes import HELD_OUT, last_point, training_sentence
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.orchestration.tracked_run import check_metrics, collect, start_run
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.trainer import Say, check_workers, run_workers, tell
from fleetstep.training.checkpoint import CheckpointStore, OnEvent, no_event
from fleetstep.training.checkpoint_format import Checkpoint, RunFacts
from fleetstep.training.resume import Resume, check_leftovers, choose_start


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A job that used up its budget; one that was stopped leaves as an interruption.

    Attributes:
        folder: the run's folder.
        run_id: the run in the tracker.
        images_seen: progress.
        seconds: wall time of this call.
        evaluated: the snapshots that were scored; None if none were to be.
    """

    folder: Path
    run_id: str
    images_seen: int
    seconds: float
    evaluated: Evaluated | None = None

    def text(self) -> str:
        """A closing line, and one on scores if there are any."""
        where = f"{self.images_seen / 1000:g} kimg after {self.seconds:.0f} s"
        scored = "" if self.evaluated is None else f"\n  {self.evaluated.text()}"
        return f"{self.folder.name}: finished at {where} ({self.folder}){scored}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "folder": str(self.folder),
            "run_id": self.run_id,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "evaluation": None if self.evaluated is None else self.evaluated.as_dict(),
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
        ExtractorError, DataError: snapshots could not be scored as asked.
        PoolError: training is finished, and scores of its snapshots are missing.
    """
    started = time.monotonic()
    experiment = config.with_absolute_paths(experiment)
    folder = RunFolder(experiment.folder)
    manifest = config.manifest_of(experiment)
    facts = facts_of(experiment, manifest)
    evaluate = experiment.evaluate
    measures = [] if evaluate is None else check_evaluation(evaluate, manifest)
    if check_start(folder, resume, facts, say) is None:
        check_metrics(folder, facts)
    uri = tracking_uri(experiment.tracking.uri, Path(experiment.storage))
    tracker = Tracker(uri, experiment.tracking.experiment)
    with connect(experiment.cluster.address):
        check_workers(experiment.cluster)
        if evaluate is not None:
            check_pool(evaluate.pool)
        folder.prepare(config.dump(experiment))
        run_id = start_run(
            tracker,
            experiment.name,
            config.flatten(experiment),
            kind="train",
            folder=folder,
            facts=facts,
        )
        evaluator = evaluator_of(experiment, folder, facts, measures, tracker, run_id, say)
        with evaluator or contextlib.nullcontext():
            images_seen = _train(experiment, tracker, run_id, folder, on_event, say)
            evaluated = None if evaluator is None else evaluator.finish()
        keep_figures(tracker, run_id, folder.figures, say)
        if evaluated is not None:
            evaluated.check()
    return FitResult(
        folder=folder.root,
        run_id=run_id,
        images_seen=images_seen,
        seconds=time.monotonic() - started,
        evaluated=evaluated,
    )


def _train(
    experiment: Experiment,
    tracker: Tracker,
    run_id: str,
    folder: RunFolder,
    on_event: OnEvent,
    say: Say | None,
) -> int:
    """The workers' part, and how the tracker's run ends: images seen when the budget is used up.

    Raises:
        KeyboardInterrupt: the run was stopped before that.
    """
    manifest = config.manifest_of(experiment)
    with tracker.ending(run_id):
        tracker.log_dataset(run_id, manifest.name, manifest.fingerprint, experiment.data.path)
        tracker.log_artifact(run_id, folder.config)
        tracker.describe(run_id, training_sentence(experiment, manifest.name))
        job = Assignment(
            experiment.model_dump_json(),
            run_id,
            tracker.uri,
            str(folder.root.resolve()),
            on_event,
        )
        try:
            outcome = train_workers(experiment, job, folder, say)
        finally:
            collect(tracker, run_id, folder, say)
        if not outcome["finished"]:
            # Leaves the block as an interruption, so that the tracker says KILLED.
            raise KeyboardInterrupt
        reached = last_point(folder.spool, HELD_OUT)
        with contextlib.suppress(TrackingError):  # `ending` says it if the tracker is down
            tracker.describe(run_id, training_sentence(experiment, manifest.name, reached))
    return int(outcome["images_seen"])


def check_start(
    folder: RunFolder, resume: Resume, facts: RunFacts, say: Say | None
) -> Checkpoint | None:
    """The checkpoint that a job in this folder will go on from, None from nothing.

    Raises:
        ResumeError: the policy cannot be kept, or the folder holds another experiment.
    """
    store = CheckpointStore(folder.checkpoints)
    start = choose_start(store, resume, facts)
    if start is None:
        check_leftovers(folder.snapshots, resume, facts)
    for skipped in store.skipped:
        tell(say, f"  passed over {skipped.path.name}: {skipped.reason}")
    return start


def train_workers(
    experiment: Experiment, job: Assignment, folder: RunFolder, say: Say | None
) -> dict[str, Any]:
    """Run the workers in a folder that is prepared: {"images_seen", "finished"} of rank 0.

    Raises:
        TrainingError: as `run_workers`.
    """
    with Follower(folder.spool, experiment.training.images, say):
        return run_workers(run_worker, job.as_dict(), experiment.cluster, folder, say)
