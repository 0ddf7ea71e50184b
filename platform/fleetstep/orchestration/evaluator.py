"""Evaluation while training: a run's snapshots are scored by a pool of actors beside it.

A thread of the driver watches the run's snapshots folder, plans those that are due as a sweep
does, and feeds their units to the pool. Nothing of it reaches the training workers: they neither
wait for it nor see its errors. Its units are those of a later sweep of the same snapshots, which
finds them done.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from fleetstep.errors import CheckpointError, FleetstepError, PoolError, TrackingError
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.cells import Unit
from fleetstep.orchestration.due_snapshots import DueSnapshots
from fleetstep.orchestration.evaluated import Evaluated
from fleetstep.orchestration.pool import Notice
from fleetstep.orchestration.pool_status import PoolStatus, StatusFile
from fleetstep.orchestration.snapshot_queue import Measured, SnapshotQueue
from fleetstep.orchestration.snapshot_scores import SnapshotScores
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_worker import UnitSummary
from fleetstep.orchestration.tolerant_worker import SECOND_LOOK_S, Refusal
from fleetstep.orchestration.trainer import Say, tell

NICENESS = 10
"""Of the actors and of the driver's thread: training goes first wherever they share a core."""

_LOOK_S = 1.0
_LINE_S = 5.0
# How long the pool gets to end when training has failed or was interrupted.
_GRACE_S = 30.0


class RunPool(Protocol):
    """`run_units` with its workers and its size settled."""

    def __call__(
        self,
        *,
        on_result: Callable[[Unit, UnitSummary | Refusal], None],
        on_event: Callable[[Notice], None],
        on_status: Callable[[PoolStatus], None],
        feed: Callable[[], Sequence[Unit] | None],
    ) -> None:
        """Run what `feed` gives until it says that nothing more comes."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a snapshot becomes scores; tests script each step.

    Attributes:
        plan: cells and units of the snapshot in a folder.
        run: the pool.
        score: the scores of a plan whose units are all there.
        record: puts the scores of a snapshot at that many images into the tracker.
    """

    plan: Callable[[Path], SweepPlan]
    run: RunPool
    score: Callable[[SweepPlan], Sequence[CellScore]]
    record: Callable[[int, SweepPlan, Sequence[CellScore]], None]


class _Stopped(Exception):
    """Raised inside the pool's loop to end it."""


class Evaluator:
    """Scores snapshots in a thread, for the time of a `with` block around training.

    The block's end waits for nothing: what is in flight is dropped, and finished units are kept.
    `finish`, called at the end of a training that used up its budget, waits.

    Args:
        due: which snapshots.
        scoring: how.
        scores: what was scored before, and where to remember it.
        status: told what the pool does.
        say: where progress lines go; None keeps quiet.
    """

    def __init__(
        self,
        due: DueSnapshots,
        scoring: Scoring,
        scores: SnapshotScores,
        status: StatusFile,
        say: Say | None = None,
    ) -> None:
        self._due, self._scoring, self._scores = due, scoring, scores
        self._queue = SnapshotQueue(scoring.plan)
        self._measured: list[Measured] = []
        self._scored = set(scores.scored())
        self._skipped: dict[int, str] = {}
        self._error: FleetstepError | None = None
        self._tracker_is_down = False
        self._progress = _Progress(self._queue, status)
        self._say = say
        self._next_look = self._next_line = 0.0
        self._looked_last = False
        # Training has ended; everything has to end; the thread has ended.
        self._over, self._stopping, self._done = (threading.Event() for _ in range(3))

    def __enter__(self) -> Evaluator:
        threading.Thread(target=self._work, name="evaluator", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._done.is_set():
            self._stopping.set()
            self._done.wait(_GRACE_S)
            if self._queue.open:
                tell(
                    self._say,
                    "  scoring of snapshots stopped: finished units are kept, and the same "
                    "command goes on with the others",
                )

    def finish(self) -> Evaluated:
        """Wait until every due snapshot has its scores, or cannot have them."""
        self._next_line = time.monotonic() + _LINE_S
        self._over.set()
        # Not Thread.join: interrupted by a signal, Python 3.11 takes the thread for finished.
        while not self._done.wait(0.5):
            pass
        _, due = self._due.look(self._known())
        settled = self._scored | self._skipped.keys()
        return Evaluated(
            scored=tuple(sorted(self._scored)),
            skipped=dict(sorted(self._skipped.items())),
            missing=tuple(point for point in due if point not in settled),
            error=self._error,
        )

    def _work(self) -> None:
        state: Any = "failed"
        try:
            _give_way()
            self._scoring.run(
                on_result=self._take_result,
                on_event=self._take_notice,
                on_status=self._progress.take,
                feed=self._feed,
            )
            self._record(last=True)
            state = "finished"
        except _Stopped:
            state = "interrupted"
        except Exception as error:  # told now and by `finish`: training goes on whatever it is
            self._error = _as_ours(error)
            tell(
                self._say,
                f"  scoring of snapshots failed: {self._error.message}; training is not touched, "
                "and the same command scores what is missing",
            )
        finally:
            try:
                self._progress.close(state)
            finally:
                # Whatever happens: `finish` waits for it, and with it the command.
                self._done.set()

    def _feed(self) -> Sequence[Unit] | None:
        if self._stopping.is_set():
            raise _Stopped
        self._progress.beat()
        if self._looked_last:
            self._show_progress()
            # Not None at once: the pool goes on asking, and can be stopped.
            return [] if self._queue.open else None
        # Asked before looking: what was written before it was set is then seen.
        over = self._over.is_set()
        if not over and time.monotonic() < self._next_look:
            return []
        self._next_look = time.monotonic() + _LOOK_S
        self._looked_last = over
        return self._look(over)

    def _look(self, over: bool) -> list[Unit]:
        fresh, due = self._due.look(self._known())
        units: list[Unit] = []
        for images_seen, snapshot in fresh.items():
            try:
                units += self._take(images_seen, snapshot)
            except CheckpointError as error:
                self._skip(images_seen, error.message)
        if over:
            for images_seen in sorted(set(due) - self._known()):
                self._skip(images_seen, "the run's folder does not hold it (any more)")
        self._record()
        return units

    def _take(self, images_seen: int, snapshot: Path) -> list[Unit]:
        """Looked at twice: what a file system shows for a moment is not damage."""
        try:
            return self._queue.take(images_seen, snapshot)
        except (CheckpointError, OSError):
            time.sleep(SECOND_LOOK_S)
            return self._queue.take(images_seen, snapshot)

    def _known(self) -> set[int]:
        at_work = {*self._queue.open, *(one.images_seen for one in self._measured)}
        return self._scored | self._skipped.keys() | at_work

    def _skip(self, images_seen: int, reason: str) -> None:
        self._skipped[images_seen] = reason
        tell(self._say, f"  the snapshot at {images_seen:,} images is not scored: {reason}")

    def _take_result(self, unit: Unit, result: UnitSummary | Refusal) -> None:
        if isinstance(result, Refusal):
            self._queue.refused(unit, result.reason)
        else:
            self._queue.finished(unit)
        self._progress.beat()
        self._record()

    def _take_notice(self, notice: Notice) -> None:
        # While it trains, nobody waits for the pool.
        waiting = notice.kind == "waiting" and self._over.is_set()
        if waiting or notice.kind in ("lost", "replaced", "retired"):
            tell(self._say, f"  evaluation: {notice}")

    def _record(self, *, last: bool = False) -> None:
        """Score and record what is measured, oldest first. A tracker that is down is asked again
        when the next snapshot is measured, and a `last` time.
        """
        fresh = self._queue.measured()
        self._measured += fresh
        while self._measured and (fresh or last):
            try:
                self._record_one(self._measured[0])
            except TrackingError as error:
                if last:
                    raise
                if not self._tracker_is_down:
                    tell(self._say, f"  scores wait, because {error.message}")
                self._tracker_is_down = True
                return
            self._tracker_is_down = False
            del self._measured[0]

    def _record_one(self, measured: Measured) -> None:
        images_seen, plan = measured.images_seen, measured.plan
        if not plan.cells:
            self._skip(images_seen, "; ".join(measured.refused))
            return
        for line in measured.refused:
            tell(self._say, f"  not scored: {line}")
        scores = self._scoring.score(plan)
        self._scoring.record(images_seen, plan, scores)
        self._scores.write(images_seen, scores, measured.refused)
        self._scored.add(images_seen)
        for score in scores:
            tell(self._say, f"  scored {score_text(score)}")

    def _show_progress(self) -> None:
        if time.monotonic() >= self._next_line and self._queue.open:
            self._next_line = time.monotonic() + _LINE_S
            tell(self._say, f"  training is finished, scoring goes on: {self._progress.text()}")


class _Progress:
    """What the pool does and how fast, for the status file and for people."""

    def __init__(self, queue: SnapshotQueue, status: StatusFile) -> None:
        self._queue, self._status = queue, status
        self._pool: PoolStatus | None = None
        self._busy_s, self._was_busy, self._last = 0.0, False, time.monotonic()

    def take(self, pool: PoolStatus) -> None:
        self._pool = pool
        self.beat()

    def beat(self) -> None:
        """Write the state, if the file is not fresh. Time without work says nothing of speed."""
        now = time.monotonic()
        if self._was_busy:
            self._busy_s += now - self._last
        self._was_busy, self._last = bool(self._queue.open), now
        if self._pool is not None:
            queue = self._queue
            self._status.update(
                self._pool, queue.units_done, queue.units, self._rate(), self._eta_s()
            )

    def close(self, state: Any) -> None:
        self._status.close(state)

    def text(self) -> str:
        queue, eta_s = self._queue, self._eta_s()
        points = ", ".join(f"{images_seen:,}" for images_seen in queue.open)
        left = "" if eta_s is None else f", about {eta_s:.0f} s left"
        return f"snapshot(s) at {points} images, {queue.units_done}/{queue.units} units{left}"

    def _rate(self) -> float:
        return self._queue.calls_done / self._busy_s if self._busy_s > 0 else 0.0

    def _eta_s(self) -> float | None:
        left, rate = self._queue.calls - self._queue.calls_done, self._rate()
        return left / rate if rate > 0 else None


def score_text(score: CellScore) -> str:
    """One line: where, how, and the first metric with its interval."""
    record = score.records[0]
    return (
        f"{score.cell}: {record.metric} {record.value:.4g} [{record.low:.4g}, {record.high:.4g}]"
    )


def _as_ours(error: Exception) -> FleetstepError:
    if isinstance(error, FleetstepError):
        return error
    return PoolError(f"{type(error).__name__}: {error}")


def _give_way() -> None:
    """Of this thread alone, which only Linux can, and not every sandbox allows."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            # Never up: that is forbidden.
            niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
