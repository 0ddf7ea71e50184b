"""`fleetstep amed train`: a predictor for one network and one schedule, trained by Ray Train, from
the driver's side.

<storage>/<name>/ config.resolved.yaml run.json spool/ checkpoints/   as of any run
                  predictor/    predictor.json, predictor.safetensors: what `sample` takes
                  report.json   what it gains on held-out latents
                  figures/      error.png, learned.png
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fleetstep import config
from fleetstep.config import AmedExperiment
from fleetstep.config.amed import check_guidance
from fleetstep.errors import ConfigError, TrackingError
from fleetstep.orchestration.amed_checkpoint import choose_amed_start
from fleetstep.orchestration.amed_report import AmedReport, read_report
from fleetstep.orchestration.amed_worker import (
    AmedAssignment,
    facts_of,
    predictor_folder,
    report_file,
    run_amed_worker,
)
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.history import FIGURES
from fleetstep.orchestration.progress import Follower
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.sample import guidance_warnings
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.snapshots import find_snapshots
from fleetstep.orchestration.sweep_job import tracking_uri
from fleetstep.orchestration.tracked_run import check_metrics, collect, start_run
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.trainer import Say, check_workers, run_workers, tell
from fleetstep.reporting.amed import error_figure, learned_figure, report_table
from fleetstep.reporting.plots import write_plot
from fleetstep.training.checkpoint import CheckpointStore, OnEvent, no_event
from fleetstep.training.resume import Resume


@dataclass(frozen=True, kw_only=True)
class AmedResult:
    """A training that used up its budget; one that was stopped leaves as an interruption.

    Attributes:
        folder: the run's folder.
        predictor: the predictor's folder.
        run_id: the run in the tracker.
        images_seen: latents, over all workers.
        seconds: wall time of this call.
        report: what the predictor gains; None if none was asked for.
        warnings: what a user should know of the network and the guidance.
    """

    folder: Path
    predictor: Path
    run_id: str
    images_seen: int
    seconds: float
    report: AmedReport | None
    warnings: tuple[str, ...]

    def text(self) -> str:
        """A closing line."""
        where = f"{self.images_seen / 1000:g} kimg after {self.seconds:.0f} s"
        return (
            f"{self.folder.name}: finished at {where}; sample with --solver amed:{self.predictor}"
        )

    def tables(self) -> tuple[Table, ...]:
        """The report for the terminal, if there is one."""
        if self.report is None:
            return ()
        return (report_table(self.report.contenders, self.report.latents),)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "folder": str(self.folder),
            "predictor": str(self.predictor),
            "run_id": self.run_id,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "report": None if self.report is None else self.report.as_dict(),
            "warnings": list(self.warnings),
        }


def train_amed(
    experiment: AmedExperiment,
    *,
    resume: Resume = "auto",
    say: Say | None = None,
    on_event: OnEvent = no_event,
) -> AmedResult:
    """Train a predictor to the end of the budget, from the newest sound checkpoint if there is
    one, and measure it.

    Args:
        experiment: the checked configuration.
        resume: "auto" goes on if there is a checkpoint, "must" never starts from zero, "never"
            wants an empty folder.
        say: where progress lines go; None keeps quiet.
        on_event: called in the workers at points where a job may be interrupted; tests interrupt
            it there.

    Raises:
        CheckpointError: the network's snapshot is missing or damaged.
        ConfigError: guidance is asked of an unconditional network.
        ResumeError: the policy cannot be kept, or the checkpoint belongs to another training, or
            to a longer one.
        ResourceError: the cluster cannot place the workers.
        TrainingError: the workers failed more often than `cluster.max_restarts`.
    """
    started = time.monotonic()
    experiment = experiment.absolute()
    snapshot = network_of_training(experiment)
    folder, facts = RunFolder(experiment.folder), facts_of(experiment, snapshot)
    store = CheckpointStore(folder.checkpoints)
    if choose_amed_start(store, resume, facts, experiment.images) is None:
        check_metrics(folder, facts)
    for skipped in store.skipped:
        tell(say, f"  passed over {skipped.path.name}: {skipped.reason}")
    uri = tracking_uri(experiment.tracking.uri, Path(experiment.storage))
    tracker = Tracker(uri, experiment.tracking.experiment)
    with connect(experiment.cluster.address):
        check_workers(experiment.cluster)
        folder.prepare(config.dump(experiment))
        params = config.flatten(experiment) | {"network.snapshot": snapshot.digest}
        run_id = start_run(
            tracker, experiment.name, params, kind="amed", folder=folder, facts=facts
        )
        job = AmedAssignment(
            experiment.model_dump_json(),
            run_id,
            tracker.uri,
            str(folder.root.resolve()),
            on_event,
            snapshot,
        )
        with tracker.ending(run_id):
            tracker.log_artifact(run_id, folder.config)
            try:
                with Follower(folder.spool, experiment.images, say):
                    outcome = run_workers(
                        run_amed_worker, job.as_dict(), experiment.cluster, folder, say
                    )
            finally:
                collect(tracker, run_id, folder, say)
            if not outcome["finished"]:
                # Leaves the block as an interruption, so that the tracker says KILLED.
                raise KeyboardInterrupt
            report = _keep(tracker, run_id, folder, experiment, say)
    return AmedResult(
        folder=folder.root,
        predictor=predictor_folder(folder),
        run_id=run_id,
        images_seen=outcome["images_seen"],
        seconds=time.monotonic() - started,
        report=report,
        warnings=tuple(guidance_warnings(snapshot, experiment.training.guidance)),
    )


def network_of_training(experiment: AmedExperiment) -> SnapshotRef:
    """The snapshot that is trained for.

    Raises:
        CheckpointError: it is missing, damaged, or has no such track.
        ConfigError: guidance is asked of an unconditional network.
    """
    (snapshot,) = find_snapshots([experiment.run], which="last", track=experiment.track)
    if problems := check_guidance(experiment.training, snapshot.classes, experiment.run):
        raise ConfigError(problems)
    return snapshot


def _keep(
    tracker: Tracker, run_id: str, folder: RunFolder, experiment: AmedExperiment, say: Say | None
) -> AmedReport | None:
    """Predictor, report and figures with the run; a tracker that is down keeps none, and loses
    nothing: all of it is in the run's folder.
    """
    report = read_report(report_file(folder)) if experiment.evaluation.latents else None
    figures = [] if report is None else _draw(report, experiment.name, folder.figures)
    try:
        for file in sorted(predictor_folder(folder).iterdir()):
            tracker.log_artifact(run_id, file, "predictor")
        for figure in figures:
            tracker.log_artifact(run_id, figure, FIGURES)
        if report is not None:
            tracker.log_artifact(run_id, report_file(folder))
            tracker.log_metrics(run_id, experiment.images, report.metrics())
    except TrackingError as error:
        tell(say, f"  the tracker did not take everything, it stays in {folder.root}: {error}")
    return report


def _draw(report: AmedReport, name: str, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in (
        error_figure(report.levels, report.contenders),
        learned_figure(name, report.levels, report.learned),
    ):
        paths.append(folder / f"{figure.key}.png")
        write_plot(figure, paths[-1])
    return paths
