"""What a pool looks like at a moment, and the file that tells other processes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fleetstep.durable import write_json

State = Literal["running", "finished", "interrupted", "failed"]

_WRITE_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """A pool at a moment.

    Args:
        wanted: actors that the work asks for.
        starting, running, idle: actors asked for, at work, without work.
        pending_units, in_flight, done: units that no actor holds, that actors hold, and finished
            by this pool.
        replacements: actors that took the place of a dead one.
    """

    wanted: int = 0
    starting: int = 0
    running: int = 0
    idle: int = 0
    pending_units: int = 0
    in_flight: int = 0
    done: int = 0
    replacements: int = 0


class StatusFile:
    """JSON about work that is going on, whole at every moment, written at most once a second.

    It is a sign of life and no result: what cannot be written, as on a full disk, is left unsaid.

    Args:
        path: the file; its folder is made if missing.
        what: the name of the sweep or evaluation.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        self._known: dict[str, Any] = _known(PoolStatus(), 0, 0, 0.0, None)
        self._written = float("-inf")
        path.parent.mkdir(parents=True, exist_ok=True)

    def update(
        self,
        pool: PoolStatus,
        units_done: int,
        units: int,
        calls_per_s: float,
        eta_s: float | None,
    ) -> None:
        """Tell how far the work is.

        Args:
            pool: the actors.
            units_done, units: of the whole work, that of earlier starts included.
            calls_per_s: network calls on one image per second.
            eta_s: seconds left; None while it is not known.
        """
        self._known = _known(pool, units_done, units, calls_per_s, eta_s)
        if time.monotonic() - self._written >= _WRITE_EVERY_S:
            self._write("running")

    def close(self, state: State) -> None:
        """Say how it ended; whatever `update` held back is written too."""
        self._known["pool"] |= {key: 0 for key in ("wanted", "starting", "running", "idle")}
        self._write(state)

    def _write(self, state: State) -> None:
        self._written = time.monotonic()
        content = {
            "format": 1,
            "what": self._what,
            "state": state,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
            **self._known,
        }
        with contextlib.suppress(OSError):
            write_json(self._path, content)


def _known(
    pool: PoolStatus, units_done: int, units: int, calls_per_s: float, eta_s: float | None
) -> dict[str, Any]:
    return {
        "pool": asdict(pool),
        "units_done": units_done,
        "units": units,
        "calls_per_s": calls_per_s,
        "eta_s": eta_s,
    }
