"""What a search's driver sees and remembers while trials run, without Ray: results go to disk
first, then to whoever shows or tracks them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleetstep.durable import write_json
from fleetstep.errors import TrainingError
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.search_actor import VALUES, WHY
from fleetstep.orchestration.search_records import (
    Goal,
    Ledger,
    Report,
    SearchFolder,
    Status,
    TrialRecord,
    best_trials,
)
from fleetstep.orchestration.search_schedule import ENDED, IMAGES, TrialJob
from fleetstep.orchestration.search_trial import GRACE_S

_STATUS_EVERY_S = 2.0
_LOOK_S = 0.2


@dataclass(frozen=True)
class Standing:
    """How far a search is.

    Attributes:
        records: of the trials that began, by number.
        status: of each.
        trials: how many there will be in all.
        best: numbers of the best ones.
        eta_s: seconds left by the speed so far; None before there is one.
    """

    records: tuple[TrialRecord, ...]
    status: Mapping[str, Status]
    trials: int
    best: tuple[str, ...]
    eta_s: float | None

    @property
    def done(self) -> int:
        """Trials that ended for good."""
        return sum(not record.open for record in self.records)


@dataclass
class SearchWatch:
    """The driver's memory of a search.

    Args:
        ledger: results on disk.
        folder: of the search.
        goals: the deciding one first.
        trials: how many there will be in all.
        budget: images of a whole trial.
        scheduler: who stops trials early, in words.
        hopeless: so many failed trials before any other ended are the end of the search.
        show: shown now and then.
    """

    ledger: Ledger
    folder: SearchFolder
    goals: Sequence[Goal]
    trials: int
    budget: int
    scheduler: str
    hopeless: int
    show: Callable[[Standing], None] | None = None
    _running: set[str] = field(default_factory=set, init=False)
    _idle: set[str] = field(default_factory=set, init=False)
    _leaving: list[RunFolder] = field(default_factory=list, init=False)
    _shown: float = field(default=-_STATUS_EVERY_S, init=False)

    def __post_init__(self) -> None:
        self._began, self._images = time.monotonic(), self._images_seen()

    def started(self, job: TrialJob) -> None:
        """A trial's process is up."""
        self._begin(job)
        self._running.add(job.trial)
        self._idle.discard(job.trial)

    def heard(self, job: TrialJob, result: Mapping[str, Any]) -> None:
        """A trial reached a point, or was asked to stop and has."""
        if result[ENDED] == "stopped":
            self._idle.add(job.trial)
            return
        values = {key: float(value) for key, value in result[VALUES].items()}
        if values:
            self.ledger.report(job.trial, Report(int(result[IMAGES]), values))

    def ended(self, job: TrialJob, result: Mapping[str, Any]) -> None:
        """A trial is over: by itself, or because the scheduler stopped it."""
        self._running.discard(job.trial)
        if result[ENDED] in ("finished", "failed"):
            self.ledger.end(job.trial, result[ENDED], str(result[WHY]))
        else:
            self.ledger.end(job.trial, "stopped", f"{self.scheduler} at {result[IMAGES]}")
            run = self.folder.run(job.trial, job.life.index)
            # Its actor asks as well, but the sooner its workers leave, the sooner others begin.
            run.stop_request.touch()
            self._leaving.append(run)

    def paused(self, job: TrialJob) -> None:
        """A trial waits for others without workers."""
        self._running.discard(job.trial)

    def lost(self, job: TrialJob, why: str) -> None:
        """A trial's process died too often, perhaps before it was up."""
        self._begin(job)
        self._running.discard(job.trial)
        self.ledger.end(job.trial, "lost", why)

    def idle(self) -> bool:
        """Whether every running trial has stopped as it was asked to."""
        return self._running <= self._idle

    def wait_for_leaving(self, timeout_s: float = GRACE_S) -> None:
        """Wait until the workers of trials that were stopped have saved and left: Ray gives
        their actors a few seconds at its end, and then kills them.
        """
        deadline = time.monotonic() + timeout_s
        while any(run.stop_request.exists() for run in self._leaving):
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S)
        self._leaving.clear()

    def look(self, state: str = "running") -> None:
        """Show and write how far it is, unless that was done a moment ago; the end always."""
        if state == "running" and time.monotonic() - self._shown < _STATUS_EVERY_S:
            return
        self._shown = time.monotonic()
        standing = self.standing()
        counts: dict[str, int] = {}
        for status in standing.status.values():
            counts[status] = counts.get(status, 0) + 1
        content = {
            "name": self.folder.root.name,
            "state": state,
            "trials": standing.trials,
            "done": standing.done,
            "counts": counts,
            "best": list(standing.best),
            "eta_s": standing.eta_s,
            "time_s": time.time(),
        }
        write_json(self.folder.status, content)
        if self.show is not None:
            self.show(standing)

    def check_hope(self) -> None:
        """Go on, unless nothing but failures came of the first trials.

        Raises:
            TrainingError: with the first one's error.
        """
        over = [record for record in self.ledger.records.values() if not record.open]
        if len(over) >= self.hopeless and all(record.ending == "failed" for record in over):
            first = min(over, key=lambda record: record.trial)
            raise TrainingError(
                f"the first {len(over)} trials of the search all failed; trial {first.trial}: "
                f"{first.why}",
                "repair the trial's configuration and choose another name for the search, or "
                "remove its folder",
            )

    def standing(self) -> Standing:
        """How far it is."""
        records = tuple(self.ledger.records[trial] for trial in sorted(self.ledger.records))
        return Standing(
            records=records,
            status={record.trial: self._status(record) for record in records},
            trials=self.trials,
            best=best_trials(records, self.goals),
            eta_s=self._eta_s(records),
        )

    def _begin(self, job: TrialJob) -> None:
        images_seen = job.life.origin.images_seen if job.life.origin else 0
        self.ledger.begin(job.trial, job.life, images_seen)

    def _status(self, record: TrialRecord) -> Status:
        if record.trial in self._running:
            return "running"
        return record.ending or "pending"

    def _eta_s(self, records: Sequence[TrialRecord]) -> float | None:
        rate = (self._images_seen() - self._images) / max(time.monotonic() - self._began, 1e-9)
        if rate <= 0:
            return None
        over = [r.images_seen for r in records if r.ending in ("finished", "stopped")]
        expected = sum(over) / len(over) if over else float(self.budget)
        left = expected * (self.trials - len(records))
        left += sum(max(expected - r.images_seen, 0.0) for r in records if r.open)
        return left / rate

    def _images_seen(self) -> int:
        return sum(record.images_seen for record in self.ledger.records.values())
