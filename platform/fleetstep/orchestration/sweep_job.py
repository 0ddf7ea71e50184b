"""`fleetstep sweep`: a sweep on the configured cluster, with its progress printed and its scores
in the tracker.

Every cell becomes a run nested under the training run whose snapshot it scores, so that the tree
reads experiment > run > cell; a cell scored again goes on in its own run instead of making a
second one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from fleetstep.config import SweepSpec, resolve_secrets
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.figures import keep_figures
from fleetstep.orchestration.history import score_of
from fleetstep.orchestration.pool import Notice
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.sweep import Listener, Progress, SweepResult
from fleetstep.orchestration.sweep_plan import Cell, SweepPlan
from fleetstep.orchestration.sweep_solvers import solver_text
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.tracking_store import default_uri
from fleetstep.reporting.comparison import compare
from fleetstep.reporting.records import RunRecord, Score
from fleetstep.reporting.tables import sweep_table

Say = Callable[[str], None]
_EVERY_S = 5.0


def run_sweep(spec: SweepSpec, *, say: Say | None = None) -> SweepResult:
    """Run the sweep to its end and record every score; finished units are not computed again.

    Args:
        spec: the sweep's configuration.
        say: where progress lines go; None keeps quiet.
    """
    plan = sweeping.plan(spec)
    tracker = Tracker(
        tracking_uri(spec.tracking.uri, Path(spec.storage)), spec.tracking.experiment
    )
    # Whatever it is that a pool reports, a user wants to see it; progress only now and then.
    listener = Listener(progress=_Throttled(say), notice=lambda notice: _tell(say, notice))
    with connect(spec.address):
        result = sweeping.sweep(spec, plan, listener=listener)
    parents: dict[RunFolder, str | None] = {}
    for score in result.scores:
        folder = RunFolder(score.cell.snapshot.path.parents[1])
        if folder not in parents:
            parents[folder] = _parent(tracker, folder, say)
        _record(tracker, plan, score, parents[folder])
    for folder, run_id in parents.items():
        if run_id is not None:
            keep_figures(tracker, run_id, folder.figures, say)
    return result


def tracking_uri(configured: str | None, storage: Path) -> str:
    """The tracker's address with secrets resolved; by default the database beside the runs."""
    return resolve_secrets(configured) if configured is not None else default_uri(storage)


def _record(tracker: Tracker, plan: SweepPlan, score: CellScore, parent: str | None) -> None:
    cell = score.cell
    measured = {
        "samples": str(plan.samples),
        "reference": plan.reference_of[cell].key,
    }
    place = {
        "fleetstep.cell": cell.key,
        # Runs with equal weights, such as two before their first step, share cells.
        "fleetstep.run": cell.snapshot.run,
        # More samples, or another reference, is another score of the same cell.
        **{f"fleetstep.{key}": value for key, value in measured.items()},
    }
    run_id = tracker.start_run(
        f"{solver_text(cell.solver)} nfe={cell.nfe or 'adaptive'} @ {cell.snapshot.images_seen}",
        _params(cell) | measured,
        tags={**place, "fleetstep.kind": "cell"},
        parent_run_id=parent,
        run_id=tracker.find_run(place),
    )
    with tracker.ending(run_id):
        tracker.log_dict(run_id, [record.to_dict() for record in score.records], "scores.json")
        metrics = {f"eval/{record.metric}": record.value for record in score.records}
        # What publications call FID is the plain value.
        metrics |= {
            f"eval/{record.metric.removesuffix('.unbiased')}": record.raw
            for record in score.records
            if record.metric.startswith("fid")
        }
        tracker.log_metrics(run_id, cell.snapshot.images_seen, metrics)


def _parent(tracker: Tracker, folder: RunFolder, say: Say | None) -> str | None:
    """The training run of a folder, if this tracker's experiment holds it.

    A run nested under one that is not there would be found by nobody.
    """
    card = RunCard.read(folder.card)
    if card is not None and card.experiment == tracker.experiment and tracker.has_run(card.run_id):
        return card.run_id
    if say is not None:
        say(
            f"  the training run of {folder.root} is not in experiment {tracker.experiment!r} of "
            "this tracker, so its scores stand alone there and `compare` does not find them; "
            "set tracking.uri and tracking.experiment as they were for training"
        )
    return None


def _params(cell: Cell) -> dict[str, str]:
    identity = {key: value for key, value in cell.identity.items() if key != "format"}
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in identity.items()
    }


class _Throttled:
    """Prints a progress line every few seconds and at the end."""

    def __init__(self, say: Say | None) -> None:
        self._say, self._last = say, 0.0

    def __call__(self, progress: Progress) -> None:
        done = progress.units_done == progress.units
        if self._say is None or (not done and time.monotonic() - self._last < _EVERY_S):
            return
        self._last = time.monotonic()
        left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
        self._say(
            f"  {progress.units_done}/{progress.units} units, {progress.calls_done:,} of "
            f"{progress.calls:,} network calls, "
            f"{progress.calls_per_s:,.0f}/s{left}"
        )


def _tell(say: Say | None, notice: Notice) -> None:
    if say is not None:
        say(f"  {notice}")


def cost_text(result: SweepResult) -> str:
    """The sweep's network calls on one image, by NFE and as made."""
    return (
        f"network calls on one image: {result.calls_counted:,.0f} by NFE, "
        f"{result.calls_made:,.0f} made (a first call is shared where it can be)"
    )


def tables(result: SweepResult) -> list[Table]:
    """A table for every protocol of the sweep: solver x NFE against runs."""
    by_run: dict[str, list[Score]] = {}
    for score in result.scores:
        for record in score.records:
            by_run.setdefault(record.run, []).append(score_of(record.to_dict()))
    runs = [
        RunRecord(name=name, run_id=name, status="FINISHED", scores=tuple(scores))
        for name, scores in by_run.items()
    ]
    return [sweep_table(found) for found in compare(runs, runs[0].name).sweeps]
