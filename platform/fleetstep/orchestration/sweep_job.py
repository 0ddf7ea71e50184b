"""`fleetstep sweep`: a sweep on the configured cluster, with its cost and progress printed, its
scores in the tracker and on a page.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from fleetstep.config import SweepSpec, resolve_secrets
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.figures import keep_figures
from fleetstep.orchestration.finished_units import Progress
from fleetstep.orchestration.live_scores import Standing
from fleetstep.orchestration.live_table import live_table, minima_lines
from fleetstep.orchestration.pool import Notice
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.screening import Screened
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.sweep import Listener, SweepResult
from fleetstep.orchestration.sweep_file import SweepFiles
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_preview import preview_plan
from fleetstep.orchestration.sweep_records import parent_of, record_score
from fleetstep.orchestration.sweep_report import write_report
from fleetstep.orchestration.sweep_start import check_start, replaced
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.tracking_store import default_uri
from fleetstep.reporting.sweep_record import SweepRecord
from fleetstep.reporting.sweep_terminal import answer, cells_table

Say = Callable[[str], None]
Show = Callable[[Table], None]

_EVERY_S, _TABLE_EVERY_S = 5.0, 15.0


def run_sweep(spec: SweepSpec, *, say: Say | None = None, show: Show | None = None) -> SweepResult:
    """Run the sweep to its end and record every score; finished units are not computed again.

    Args:
        spec: the sweep's configuration.
        say: where lines go: the cost before it starts, then progress; None keeps quiet.
        show: where tables of all cells go while it runs; None shows none.

    Raises:
        FleetstepError: as `sweep.plan` and `sweep.sweep`.
    """
    check_start(spec)
    plan = sweeping.plan(spec)
    if say is not None and (line := replaced(spec, plan)):
        say(line)
    tracker = Tracker(
        tracking_uri(spec.tracking.uri, Path(spec.storage)), spec.tracking.experiment
    )
    screen = _Screen(say or (lambda line: None), show)
    listener = Listener(
        progress=screen.progress,
        notice=screen.notice,
        standings=screen.standings,
        dropped=screen.dropped,
    )
    with _machines_to_measure_on(spec, plan):
        if say is not None:
            say(preview_plan(spec, plan).summary())
        try:
            result = sweeping.sweep(spec, plan, listener=listener)
        except KeyboardInterrupt:
            screen.interrupted()
            raise
    parents = _record(tracker, result, say)
    page = _page(spec, say)
    if page is not None:
        for run_id in parents:
            tracker.log_artifact(run_id, page, f"sweeps/{spec.name}")
    return replace(result, page=page)


def tracking_uri(configured: str | None, storage: Path) -> str:
    """The tracker's address with secrets resolved; by default the database beside the runs."""
    return resolve_secrets(configured) if configured is not None else default_uri(storage)


def _machines_to_measure_on(
    spec: SweepSpec, plan: SweepPlan
) -> contextlib.AbstractContextManager[None]:
    """Speed on a GPU is measured by the cluster's actors; on a CPU before there are any."""
    if plan.remaining and spec.pool.gpus_per_actor:
        return connect(spec.address)
    return contextlib.nullcontext()


def _record(tracker: Tracker, result: SweepResult, say: Say | None) -> list[str]:
    """Scores, and the training runs' figures; the runs that the scores are nested under."""
    parents: dict[str, str | None] = {}
    folders: dict[str, RunFolder] = {}
    for score in result.scores:
        cell = score.cell
        place = _home(cell.snapshot)
        if place not in parents:
            parents[place] = parent_of(tracker, cell.snapshot, say)
            if cell.snapshot.kind == "snapshot":
                folders[place] = RunFolder(Path(place))
        reference = result.plan.reference_of.get(cell)
        record_score(
            tracker,
            score,
            reference=score.records[0].reference_sha256 if reference is None else reference.key,
            parent=parents[place],
            minima=result.minima.get(cell, ()) if score.seed_block == 0 else (),
        )
    for place, run_id in parents.items():
        if run_id is not None and place in folders:
            keep_figures(tracker, run_id, folders[place].figures, say)
    return [run_id for run_id in parents.values() if run_id is not None]


def _home(snapshot: SnapshotRef) -> str:
    """What scores are nested under: a run's folder, or an exact denoiser."""
    return snapshot.digest if snapshot.kind == "exact" else str(snapshot.path.parents[1])


def _page(spec: SweepSpec, say: Say | None) -> Path | None:
    """The sweep's page: what was measured is worth more than its pictures."""
    files = SweepFiles.of(spec)
    try:
        record = json.loads(files.scores.read_text(encoding="utf-8"))
        return write_report(record, Path(spec.storage).resolve(), files.report)
    except Exception as error:
        if say is not None:
            say(f"  the page of the sweep was not written: {type(error).__name__}: {error}")
        return None


class _Screen:
    """What a user sees while a sweep runs."""

    def __init__(self, say: Say, show: Show | None) -> None:
        self._say, self._show = say, show
        self._last_line = self._last_table = 0.0
        self._progress: Progress | None = None
        self._standings: Sequence[Standing] = ()
        self._dropped: Sequence[Screened] = ()

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        done = progress.units_done == progress.units
        if not done and time.monotonic() - self._last_line < _EVERY_S:
            return
        self._last_line = time.monotonic()
        left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
        self._say(
            f"  {progress.units_done}/{progress.units} units, {progress.calls_done:,} of "
            f"{progress.calls:,} network calls, {progress.calls_per_s:,.0f}/s{left}"
        )

    def notice(self, notice: Notice) -> None:
        self._say(f"  {notice}")

    def standings(self, standings: Sequence[Standing]) -> None:
        self._standings = standings
        if self._show is None or time.monotonic() - self._last_table < _TABLE_EVERY_S:
            return
        self._last_table = time.monotonic()
        self._show(live_table(standings, self._dropped))

    def dropped(self, dropped: Sequence[Screened]) -> None:
        self._dropped = dropped
        for one in dropped:
            self._say(f"  left out: {one.cell}: {one.reason}")
        self._say(f"  screened: {len(dropped)} cells are left out")

    def interrupted(self) -> None:
        """The last table and the last words of an interrupted sweep."""
        if self._show is not None and self._standings:
            self._show(live_table(self._standings, self._dropped))
        progress = self._progress
        if progress is None:
            self._say("interrupted before a unit was done; the same command starts it again")
            return
        left = progress.units - progress.units_done
        self._say(
            f"interrupted: {left} of {progress.units} units are left; the same command goes on "
            "there, and scores.json holds what is known so far"
        )


def closing_lines(result: SweepResult) -> list[str]:
    """What is said below the tables: what was left out, minima, cost, and where it all is."""
    fid = any(r.metric.startswith("fid") for score in result.scores for r in score.records)
    return [
        *answer(_read(result)),
        *(f"left out: {one.cell}: {one.reason}" for one in result.dropped),
        *minima_lines(result.minima),
        *([] if fid else ["FID not run: these features give no number that is called FID"]),
        f"network calls on one image: {result.calls_counted:,.0f} by NFE, "
        f"{result.calls_made:,.0f} made (a first call is shared where it can be)",
        f"scores: {result.path}",
        *([] if result.page is None else [f"page: {result.page}"]),
    ]


def tables(result: SweepResult) -> list[Table]:
    """Every cell with all its metrics."""
    return [cells_table(_read(result))]


def _read(result: SweepResult) -> SweepRecord:
    return SweepRecord.from_dict(json.loads(result.path.read_text(encoding="utf-8")))
