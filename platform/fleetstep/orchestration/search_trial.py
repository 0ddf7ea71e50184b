"""One trial of a search that trains: its workers run beside, and its objectives are read at the
points where it reports. Knows nothing of Ray Tune.

    next(after) -> the objectives at the first point after `after`, once they are all there
    stop()      -> the workers save and leave, and their resources with them

Workers do not wait at a point: what they train beyond it before a trial is stopped is the price
of never idling.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from fleetstep.errors import FleetstepError
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.spool import SpoolReader

HELD_OUT = "held_out/loss"
_RATE = "train/images_per_s"
_LOOK_S = 0.2
# How long workers get to write a checkpoint before the trial's own process goes.
GRACE_S = 120.0


@dataclass(frozen=True)
class Point:
    """What a trial says when it is asked for its next point.

    Attributes:
        images_seen: progress; of a trial that was asked to stop, that of its last point.
        values: objectives by name; a missing one is NaN.
        ended: "" goes on; "stopped": asked to, and can go on; "failed": would fail again.
        why: the error of a failed trial.
    """

    images_seen: int
    values: Mapping[str, float]
    ended: Literal["", "finished", "stopped", "failed"] = ""
    why: str = ""


class Reader(Protocol):
    """Reads objectives of a trial."""

    def at(self, images_seen: int) -> Mapping[str, float] | None:
        """The values at that point, by the objectives' names; None if they are not there yet."""


@dataclass
class Curves:
    """Objectives in the trial's own metrics: held-out loss, images seen, training time.

    Args:
        spool: of the trial's run.
        names: objective's name by its kind: held_out, images_seen, wall_s (seconds of training
            steps).
        first: images seen where the spool begins.
    """

    spool: Path
    names: Mapping[str, str]
    first: int = 0
    _held_out: dict[int, float] = field(default_factory=dict, init=False)
    _seconds: dict[int, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._reader, self._counted = SpoolReader(self.spool), self.first

    def at(self, images_seen: int) -> Mapping[str, float] | None:
        """None until the held-out loss of that point is logged: the last thing a snapshot does."""
        self._read()
        if images_seen not in self._held_out:
            return None
        known = {
            "held_out": self._held_out[images_seen],
            "images_seen": float(images_seen),
            "wall_s": sum(s for end, s in self._seconds.items() if end <= images_seen),
        }
        return {name: known[kind] for kind, name in self.names.items()}

    def _read(self) -> None:
        for point in self._reader.read():
            if point.key == HELD_OUT:
                self._held_out[point.images_seen] = point.value
            elif point.key == _RATE and point.value > 0:
                # The time of training steps alone: a trial that waited or was interrupted is not
                # charged for it, and a restart reads the same from its spool.
                self._seconds[point.images_seen] = (
                    point.images_seen - self._counted
                ) / point.value
                self._counted = point.images_seen


class TrainTrial:
    """A trial's training in the folder that it goes on in.

    Args:
        folder: of its run, prepared.
        points: images seen at which it reports, ascending; the last is its budget.
        names: of all objectives: those of a point without them are NaN.
        readers: what reads them.
        train: runs the workers and whoever measures beside them to the end, {"finished": ...};
            called once, in a thread.
        asked_to_stop: whether the whole search is asked to.
    """

    def __init__(
        self,
        folder: RunFolder,
        points: Sequence[int],
        names: Sequence[str],
        readers: Sequence[Reader],
        train: Callable[[], Mapping[str, Any]],
        *,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._points, self._names = folder, tuple(points), tuple(names)
        self._readers, self._train = readers, train
        self._asked_to_stop = asked_to_stop
        self._started = False
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._finished = False

    def next(self, after: int) -> Point:
        """The first point after `after` images, when all of its objectives are there."""
        target = next((point for point in self._points if point > after), self._points[-1])
        if self._asked_to_stop():
            self.stop()
            return Point(after, {}, "stopped")
        self._start()
        while True:
            # Asked before looking: what was written before it ended is then seen.
            over = self._done.is_set()
            if (values := self._read(target)) is not None:
                return self._reached(target, values)
            if over:
                return self._over(target, after)
            if self._asked_to_stop():
                self._folder.stop_request.touch()
            self._done.wait(_LOOK_S)

    def stop(self) -> bool:
        """Let the workers save and leave; False if they did not within the time they get."""
        if self._started and not self._done.is_set():
            self._folder.stop_request.touch()
            if not self._done.wait(GRACE_S):
                return False
        # Somebody else may have asked as well, too late for workers that had gone.
        self._folder.stop_request.unlink(missing_ok=True)
        return True

    def _start(self) -> None:
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name="trial", daemon=True).start()

    def _work(self) -> None:
        try:
            self._finished = bool(self._train()["finished"])
        except BaseException as error:  # told by the next point
            self._error = error
        finally:
            self._done.set()

    def _read(self, images_seen: int) -> Mapping[str, float] | None:
        found = [reader.at(images_seen) for reader in self._readers]
        if any(values is None for values in found):
            return None
        return {key: value for values in found if values for key, value in values.items()}

    def _reached(self, target: int, values: Mapping[str, float]) -> Point:
        if target < self._points[-1]:
            return Point(target, values)
        # The workers have nothing left to do but to go.
        self._done.wait(GRACE_S)
        return Point(target, values, "finished")

    def _over(self, target: int, after: int) -> Point:
        missing = dict.fromkeys(self._names, math.nan)
        if self._error is not None:
            return Point(target, missing, "failed", text_of(self._error))
        if not self._finished:
            return Point(after, {}, "stopped")
        last = target == self._points[-1]
        return Point(target, missing, "finished" if last else "")


def text_of(error: BaseException) -> str:
    """An error as a record keeps it."""
    if isinstance(error, FleetstepError):
        return str(error)
    return f"{type(error).__name__}: {error}"
