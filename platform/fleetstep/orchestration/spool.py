"""The spool: a file beside a run that holds every metric point before the tracker does.

One JSON line a log call, appended with a single write:

    {"images": 12800, "ms": 1763690000123, "metrics": {"train/loss": 0.41, "train/lr": "nan"}}

Values that are not finite are strings, so every line is JSON. A process that is killed loses
nothing it had written; a last line that was cut off is ignored by readers and removed by the next
writer.

A point's identity is (key, images seen): a point at or below the last one of its key, in the
file's order, is dropped by the writer and again by the reader. So a run that goes on from an
earlier checkpoint leaves no duplicate, nor do two writers of which one is a dead node's ghost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleetstep.errors import TrackingError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One value of one metric.

    Args:
        key: metric name.
        images_seen: training progress.
        value: may be NaN or infinite.
        timestamp_ms: milliseconds since 1970, when it was first logged; kept for ever.
    """

    key: str
    images_seen: int
    value: float
    timestamp_ms: int


class SpoolWriter:
    """Appends to a spool. One live writer a file.

    Opening reads what is there, to know the last point of each key, and cuts off a torn last line.

    Args:
        path: the spool file; it and its folder are made if missing.

    Raises:
        TrackingError: the file cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            reader = SpoolReader(path)
            for _ in reader.read():
                pass
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.ftruncate(self._file, reader.offset)
        except OSError as error:
            raise _unusable(path, error) from error
        self._last = reader.last

    def append(self, images_seen: int, metrics: Mapping[str, float]) -> bool:
        """Write the points that are new; False if none was.

        The operating system has the data when this returns: it survives the process.

        Raises:
            TrackingError: the line could not be written whole, for example on a full disk, and
                nothing of it remains; or the spool was closed.
        """
        with self._lock:
            if self._file < 0:
                raise TrackingError(
                    f"a closed spool takes no points, but got some at {images_seen} images",
                    "log before closing",
                )
            fresh = {
                key: float(value)
                for key, value in metrics.items()
                if images_seen > self._last.get(key, -1)
            }
            if not fresh:
                return False
            line = _encode(images_seen, time.time_ns() // 1_000_000, fresh)
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    # A fragment in the middle would join the next line and spoil both.
                    os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                    raise OSError(f"only {written} of {len(line)} bytes were written")
            except OSError as error:
                raise _unusable(self.path, error) from error
            self._last.update(dict.fromkeys(fresh, images_seen))
            return True

    def close(self) -> None:
        """Give the file back; closing twice is harmless."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


class SpoolReader:
    """Reads points in order, each identity once, and can go on where it stopped.

    Attributes:
        offset: bytes read so far; always the end of a whole line.
        last: images seen of the last point of each key, up to `offset`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0
        self.last: dict[str, int] = {}

    def read(self, max_points: int | None = None) -> Iterator[Point]:
        """The points after `offset`; stops after the line that reaches `max_points`.

        `offset` moves on with each line, not each point: use it when the iterator has ended.

        Raises:
            OSError: the file exists and cannot be read. A missing file has no points.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        count = 0
        with file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n") or (max_points is not None and count >= max_points):
                    return
                self.offset += len(line)
                for point in _decode(line, self._path):
                    if point.images_seen > self.last.get(point.key, -1):
                        self.last[point.key] = point.images_seen
                        count += 1
                        yield point

    def sync(self) -> None:
        """Wait until what was read is on the disk: the tracker must not hold more than it."""
        file = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


class Cursor:
    """How much of a spool a tracker run has acknowledged: a byte offset in a file beside it.

    It only saves work. Sent again, the same points are recognised by the tracker. It belongs to
    one tracker run: for any other it reads as 0, so a run that was made anew gets all points.
    """

    def __init__(self, spool: Path, run_id: str) -> None:
        self._spool = spool
        self._path = spool.with_name(spool.name + ".sent")
        self._run_id = run_id

    def load(self) -> int:
        """Acknowledged bytes; 0 if unknown, or if they are more than the spool has."""
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            offset = int(state["offset"])
            known = state["run_id"] == self._run_id and offset <= self._spool.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return offset if known else 0

    def store(self, offset: int) -> None:
        """Replace the file atomically; a disk that refuses costs a replay and is no error."""
        text = json.dumps({"run_id": self._run_id, "offset": offset})
        # The process id keeps a draining driver and a dying worker out of each other's way.
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self._path)


def _encode(images_seen: int, timestamp_ms: int, metrics: Mapping[str, float]) -> bytes:
    values = {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
    record = {"images": images_seen, "ms": timestamp_ms, "metrics": values}
    return (json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n").encode()


def _decode(line: bytes, path: Path) -> list[Point]:
    try:
        record = json.loads(line)
        images, timestamp_ms = int(record["images"]), int(record["ms"])
        return [
            Point(key, images, float(value), timestamp_ms)
            for key, value in record["metrics"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        # Only a damaged disk or an editor gets here; the other points are still good.
        _log.warning("%s: a damaged line was skipped: %r", path, line[:80])
        return []


def _unusable(path: Path, error: OSError) -> TrackingError:
    return TrackingError(
        f"every metric must reach the spool before the tracker, but {path} cannot be used: "
        f"{error.strerror or error}",
        "free space or make the folder writable, then run again with --resume auto: points that "
        "were logged are kept",
    )
