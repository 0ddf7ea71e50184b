"""A run's metrics on their way to the tracker: the worker's side, which never waits for it.

`log` appends to the spool and returns; a background thread sends what the spool holds. The spool
is the queue, so memory does not grow while the tracker is down, and whatever this process could
not send before it died is sent by `drain`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fleetstep.errors import TrackingError
from fleetstep.orchestration import tracking_store
from fleetstep.orchestration.spool import Cursor, Point, SpoolReader, SpoolWriter

_log = logging.getLogger(__name__)

# What MLflow takes in one request; a smaller batch is less to repeat.
_LIMIT = 1000
_BATCH = 500
# A send is about 10 ms of Python, in competition with the training step: every 5 s that is 0.2 %.
FLUSH_S = 5.0
_LONGEST_WAIT_S = 30.0


class SpoolLogger:
    """Keeps the metrics of one run in its spool and sends nothing: somebody else drains it. For
    the rank-0 worker alone.

    Args:
        spool_path: the run's spool; opened again after a restart, it knows what was logged.

    Raises:
        TrackingError: the spool cannot be used.
    """

    def __init__(self, spool_path: Path) -> None:
        self._spool = SpoolWriter(spool_path)
        self._keys: set[str] = set()

    def log(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        """Record values at `images_seen`; points at or below the last one of a key are dropped.

        Raises:
            TrackingError: a name MLflow would refuse, or a disk that is full.
        """
        if not metrics.keys() <= self._keys:
            # Checked here, where the caller is: in the queue it would hold up all that follow.
            for key in metrics:
                tracking_store.to_tracker_key(key)
            self._keys.update(metrics)
        self._spool.append(images_seen, metrics)

    def close(self) -> None:
        """Give the file back."""
        self._spool.close()


class MetricLogger:
    """Logs the metrics of one run. For the rank-0 worker alone.

    Args:
        uri: the tracker, secrets resolved.
        run_id: a run that the driver has made.
        spool_path: the run's spool; opened again after a restart, it knows what was logged.
        flush_s: seconds between two sends.

    Raises:
        TrackingError: the spool cannot be used. That the tracker cannot is no error here.
    """

    def __init__(
        self, uri: str, run_id: str, spool_path: Path, *, flush_s: float = FLUSH_S
    ) -> None:
        self._spool = SpoolLogger(spool_path)
        self._sender = _Sender(uri, run_id, spool_path)
        self._flush_s = flush_s
        self._closing = threading.Event()
        self._deadline = math.inf
        self._delivered = False
        # A daemon: a tracker that hangs must not keep a finished worker alive.
        self._thread = threading.Thread(target=self._run, name="metric-logger", daemon=True)
        self._thread.start()

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def log(self, images_seen: int, metrics: Mapping[str, float]) -> None:
        """Record values at `images_seen`; points at or below the last one of a key are dropped.

        Raises:
            TrackingError: a name MLflow would refuse, or a disk that is full.
        """
        self._spool.log(images_seen, metrics)

    def close(self, timeout: float = 10.0) -> bool:
        """Send the rest, for at most `timeout` seconds; False if some is left for `drain`."""
        self._deadline = time.monotonic() + timeout
        self._spool.close()
        self._closing.set()
        self._thread.join(timeout)
        return self._delivered

    def _run(self) -> None:
        wait = self._flush_s
        while not self._closing.wait(wait):
            wait = self._flush_s if self._try() else min(2 * wait, _LONGEST_WAIT_S)
        pause = 0.1
        while not (sent := self._try()) and time.monotonic() + pause < self._deadline:
            time.sleep(pause)
            pause *= 2
        self._delivered = sent

    def _try(self) -> bool:
        was_down = self._sender.error is not None
        try:
            self._sender.send_all()
        except TrackingError as error:
            if not was_down:
                _log.warning("metrics are kept in the spool for now: %s", error)
            return False
        if was_down:
            _log.warning("the tracker answers again: all metrics were sent")
        return True


def drain(uri: str, run_id: str, spool_path: Path, *, up_to: float = math.inf) -> int:
    """Send what a worker left in its spool; the number of points sent. Sending twice is harmless.

    Args:
        uri: the tracker, secrets resolved.
        run_id: a run of it.
        spool_path: the run's spool.
        up_to: points beyond so many images seen do not count and are left out.

    Raises:
        TrackingError: the tracker did not take them; they stay in the spool.
    """
    return _Sender(uri, run_id, spool_path, up_to).send_all()


class _Sender:
    """Moves points from the spool to the tracker, and the cursor behind them."""

    def __init__(self, uri: str, run_id: str, spool_path: Path, up_to: float = math.inf) -> None:
        self._uri, self._up_to = uri, up_to
        self._run_id = run_id
        self._reader = SpoolReader(spool_path)
        self._cursor = Cursor(spool_path, run_id)
        self._client: Any = None
        self._start: int | None = None
        self._unsent: list[Point] = []
        self.error: TrackingError | None = None

    def send_all(self) -> int:
        """Send until the end of the spool.

        Raises:
            TrackingError: also kept in `error` until a later call succeeds.
        """
        try:
            with tracking_store.tracker_errors(self._uri, f"take metrics of run {self._run_id}"):
                sent = 0
                while self._fill():
                    self._reader.sync()
                    self._send()
                    sent += len(self._unsent)
                    self._unsent = []
                    self._cursor.store(self._reader.offset)
        except TrackingError as error:
            self.error = error
            raise
        self.error = None
        return sent

    def _fill(self) -> bool:
        """Read the next batch, unless the last one is still to be sent; False at the end."""
        if self._start is None:
            self._start = self._cursor.load()
        while not self._unsent:
            before = self._reader.offset
            points = list(self._reader.read(_BATCH))
            self._unsent = [point for point in points if point.images_seen <= self._up_to]
            if self._reader.offset == before:
                return False
            # Lines before the cursor are read for the last point of each key, and not sent.
            if self._reader.offset <= self._start:
                self._unsent = []
        return True

    def _send(self) -> None:
        if self._client is None:
            self._client = tracking_store.connect(self._uri)
        from mlflow.entities import Metric

        metrics = [
            Metric(tracking_store.to_tracker_key(p.key), p.value, p.timestamp_ms, p.images_seen)
            for p in self._unsent
        ]
        # One call may have logged hundreds of names: a line of the spool is never split above.
        for first in range(0, len(metrics), _LIMIT):
            part = metrics[first : first + _LIMIT]
            self._client.log_batch(self._run_id, part, synchronous=True)
