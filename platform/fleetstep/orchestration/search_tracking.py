"""A search in the tracker: one run for it, under it one a trial, and one writer for all of them.

The writer is a thread of the driver that tells the tracker what is on disk: results, and the
metrics that trials leave in their spools. Nothing waits for it, and a tracker that is down gets
everything later. A trial's run is found again by its tag, so a search that goes on makes none
twice.

Of a trial that took over another's weights only what led to its present state is told: the points
of a life up to the comparison that ended it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import Experiment
from fleetstep.config.search_dimensions import Dimension
from fleetstep.durable import write_json
from fleetstep.errors import TrackingError
from fleetstep.orchestration.history import SCORES
from fleetstep.orchestration.metric_logger import drain
from fleetstep.orchestration.run_folder import RunCard
from fleetstep.orchestration.search_records import (
    Ledger,
    Life,
    SearchFolder,
    TrialRecord,
)
from fleetstep.orchestration.search_scores import EVALUATION, scores_in
from fleetstep.orchestration.search_trial import HELD_OUT
from fleetstep.orchestration.tracked_searches import SEARCH_FILE, search_json
from fleetstep.orchestration.tracking import Status, Tracker
from fleetstep.orchestration.trainer import Say, tell

TRIAL = "fleetstep.trial"
STOPPED = "fleetstep.stopped"
_EVERY_S = 5.0
_ENDINGS: Mapping[str, Status] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "lost": "FAILED",
}


@dataclass
class SearchTracker:
    """Tells the tracker of a search; use it in a `with` block around the search.

    Args:
        uri: of the tracker, secrets resolved.
        experiment: the tracker's experiment.
        folder: of the search.
        ledger: its results.
        params: of the search's own run.
        title: of an assignment, for people.
        experiment_of: of a trial's life.
        identity_of: of an experiment.
        dimensions: of the search's space.
        population: whether trials take over others' weights.
        say: told once when the tracker does not answer.
    """

    uri: str
    experiment: str
    folder: SearchFolder
    ledger: Ledger
    params: Mapping[str, str]
    title: Callable[[Mapping[str, Any]], str]
    experiment_of: Callable[[str, Life], Experiment]
    identity_of: Callable[[Experiment], str]
    dimensions: tuple[Dimension, ...] = ()
    population: bool = False
    say: Say | None = None
    _tracker: Tracker | None = field(default=None, init=False)
    _search_run: str | None = field(default=None, init=False)
    _runs: dict[str, str] = field(default_factory=dict, init=False)
    _reported: dict[str, int] = field(default_factory=dict, init=False)
    _down: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="search-tracker", daemon=True)
        self._told = _Told(self.folder.root / "tracked.json", self.uri, self.experiment)

    def __enter__(self) -> SearchTracker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.sync()

    def sync(self) -> bool:
        """Tell all that is new; False if the tracker did not take it, which costs a notice."""
        try:
            self._sync()
        except TrackingError as error:
            if not self._down:
                tell(self.say, f"  the tracker is told later, because {error.message}")
            self._down = True
            return False
        self._down = False
        return True

    def close(self, status: Status, results: Mapping[str, Any]) -> bool:
        """After the block: tell the rest, the search's results and how it ended."""
        if not self.sync():
            return False
        try:
            tracker, run_id = self._opened()
            for trial, run in self._runs.items():
                record = self.ledger.records[trial]
                if record.open and trial not in self._told:
                    tracker.finish(run, _ENDINGS.get(record.ending or "", "KILLED"))
            tracker.log_artifact(run_id, self.folder.resolved)
            self._keep(results)
            tracker.finish(run_id, status)
        except TrackingError as error:
            tell(self.say, f"  the tracker was not told how the search ended: {error}")
            return False
        return True

    def keep(self, results: Mapping[str, Any]) -> None:
        """Keep results that are known since the search ended in place of those it ended with."""
        try:
            self._keep(results)
        except TrackingError as error:
            tell(self.say, f"  the tracker was not told what was confirmed: {error}")

    def _keep(self, results: Mapping[str, Any]) -> None:
        tracker, run_id = self._opened()
        dimensions = [one.as_dict() for one in self.dimensions]
        tracker.log_dict(run_id, results, "results.json")
        tracker.log_dict(run_id, search_json(results, dimensions, self._runs), SEARCH_FILE)

    def _opened(self) -> tuple[Tracker, str]:
        """The tracker and the search's own run, opened at the first need."""
        if self._tracker is None:
            self._tracker = Tracker(self.uri, self.experiment)
        if self._search_run is None:
            name = self.folder.root.name
            tags = {"fleetstep.search": name, "fleetstep.folder": str(self.folder.root)}
            self._search_run = self._tracker.start_run(
                name,
                self.params,
                tags={"fleetstep.kind": "search", **tags},
                run_id=self._tracker.find_run(tags),
            )
        return self._tracker, self._search_run

    def _sync(self) -> None:
        tracker, search_run = self._opened()
        for trial, record in list(self.ledger.records.items()):
            if trial in self._told:
                continue
            run_id = self._run_of(tracker, search_run, record)
            self._tell_metrics(tracker, run_id, record)
            if record.ending is not None and not record.open:
                self._tell_end(tracker, run_id, record)

    def _run_of(self, tracker: Tracker, search_run: str, record: TrialRecord) -> str:
        """The trial's run: the one of this process, one that is found by its tag, or a new one."""
        if record.trial in self._runs:
            return self._runs[record.trial]
        name = self.folder.root.name
        first = record.lives[0]
        experiment = self.experiment_of(record.trial, first)
        tags = {
            TRIAL: f"{name}/{record.trial}",
            "fleetstep.folder": str(self.folder.root),
        }
        identity = self.identity_of(experiment)
        run_id = tracker.start_run(
            self.folder.run_name(record.trial),
            config.flatten(experiment)
            | {f"search.{key}": str(value) for key, value in first.assignment.items()},
            tags={
                "fleetstep.kind": "trial",
                "fleetstep.identity": identity,
                "fleetstep.title": self.title(first.assignment),
                **tags,
            },
            parent_run_id=search_run,
            run_id=tracker.find_run(tags),
        )
        # Whoever scores the trial's snapshots later finds its run by this.
        RunCard(run_id, self.experiment, identity).write(self.folder.run(record.trial).card)
        self._runs[record.trial] = run_id
        return run_id

    def _tell_metrics(self, tracker: Tracker, run_id: str, record: TrialRecord) -> None:
        for life, end in _ended_lives(record, self.population):
            drain(self.uri, run_id, self._spool(record, life), up_to=end)
        heard = self._reported.get(record.trial, -1)
        for report in record.reports:
            if report.images_seen > heard:
                # A trial's own curves hold its held-out loss already, and once is enough.
                values = {k: v for k, v in report.values.items() if k != HELD_OUT}
                tracker.log_metrics(run_id, report.images_seen, values)
                self._reported[record.trial] = report.images_seen
        if len(record.lives) > 1:
            self._tell_lives(tracker, run_id, record)

    def _tell_lives(self, tracker: Tracker, run_id: str, record: TrialRecord) -> None:
        """What a population changed on the way: parameters of the tracker cannot change."""
        changes = []
        for life in record.lives:
            origin = life.origin
            images_seen = 0 if origin is None else origin.images_seen
            changes.append(
                {
                    "images_seen": images_seen,
                    "from": None if origin is None else origin.trial,
                    "assignment": dict(life.assignment),
                }
            )
            numbers = {
                f"search/{key}": float(value)
                for key, value in life.assignment.items()
                if isinstance(value, int | float)
            }
            tracker.log_metrics(run_id, images_seen, numbers)
        tracker.set_tags(run_id, {"fleetstep.lives": json.dumps(changes)})

    def _tell_end(self, tracker: Tracker, run_id: str, record: TrialRecord) -> None:
        run = self.folder.run(record.trial, record.life.index)
        if run.config.is_file():
            tracker.log_artifact(run_id, run.config)
        for grid in sorted(run.grids.glob("*.png")):
            tracker.log_artifact(run_id, grid, "grids")
        if scores := scores_in(run.root / EVALUATION):
            tracker.log_dict(run_id, scores, SCORES)
        if record.ending == "stopped":
            tracker.set_tags(run_id, {STOPPED: record.why})
        elif record.why:
            tracker.set_tags(run_id, {"fleetstep.error": record.why})
        assert record.ending is not None
        status = _ENDINGS[record.ending]
        tracker.finish(run_id, status)
        self._told.add(record.trial, status)

    def _spool(self, record: TrialRecord, life: Life) -> Path:
        return self.folder.run(record.trial, life.index).spool


def _ended_lives(record: TrialRecord, population: bool) -> Iterator[tuple[Life, float]]:
    """The lives whose points may be told, and the images seen up to which they count: of a
    population, those that are over; otherwise all there is.
    """
    for life, after in zip(record.lives, record.lives[1:], strict=False):
        assert after.origin is not None, "only the first life of a trial begins with nothing"
        yield life, after.origin.images_seen
    if not population or not record.open:
        # Of what is trained beyond the end of a trial that was stopped, nothing is compared.
        yield record.life, float("inf")


class _Told:
    """The trials of which a tracker knows everything, in a file: they are not opened again.

    Args:
        path: of the file.
        uri, experiment: the tracker; for another one nothing has been told.
    """

    def __init__(self, path: Path, uri: str, experiment: str) -> None:
        self._path = path
        self._tracker = hashlib.sha256(f"{uri}|{experiment}".encode()).hexdigest()[:16]
        self._trials: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["tracker"] == self._tracker:
                self._trials = dict(content["trials"])

    def __contains__(self, trial: str) -> bool:
        return trial in self._trials

    def add(self, trial: str, status: str) -> None:
        """Remember that all was told."""
        self._trials[trial] = status
        with contextlib.suppress(OSError):
            write_json(self._path, {"tracker": self._tracker, "trials": self._trials})
