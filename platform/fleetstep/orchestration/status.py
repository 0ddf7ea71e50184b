"""`fleetstep status`: what the status files under a storage folder say, and how old they are."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fleetstep.orchestration.pool_status import PoolStatus

STALE_S = 60.0
"""Seconds without a sign of life after which work that says it runs is not believed."""

_PLACES = ("sweeps/*/status.json", "*/evaluation/status.json")


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What one status file says.

    Args:
        path: the file.
        what: the name of the sweep or evaluation.
        state: running, finished, interrupted, failed; silent if it says that it runs but does not
            show it; unreadable.
        age_s: seconds since the file was written.
        pool: the actors.
        units_done, units, calls_per_s, eta_s: as in `StatusFile.update`.
    """

    path: Path
    what: str
    state: str
    age_s: float
    pool: PoolStatus
    units_done: int
    units: int
    calls_per_s: float
    eta_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """The sighting as plain data."""
        return {**asdict(self), "path": str(self.path)}


def find_status(storage: Path) -> list[Sighting]:
    """Every status file under `storage`, the newest first."""
    return sorted(_read_all(storage, time.time()), key=lambda seen: seen.age_s)


def _read_all(storage: Path, now: float) -> Iterator[Sighting]:
    for place in _PLACES:
        for path in storage.glob(place):
            try:
                yield _read(path, now)
            except (ValueError, KeyError, TypeError):
                yield _unreadable(path, now)
            except FileNotFoundError:  # a folder removed meanwhile
                continue


def _read(path: Path, now: float) -> Sighting:
    content = json.loads(path.read_text())
    age_s = max(0.0, now - content["time"])
    state = content["state"]
    if state == "running" and (age_s > STALE_S or not _lives(content["host"], content["pid"])):
        state = "silent"
    return Sighting(
        path=path,
        what=content["what"],
        state=state,
        age_s=age_s,
        pool=PoolStatus(**content["pool"]),
        units_done=content["units_done"],
        units=content["units"],
        calls_per_s=content["calls_per_s"],
        eta_s=content["eta_s"],
    )


def _unreadable(path: Path, now: float) -> Sighting:
    return Sighting(
        path=path,
        what=path.parent.name,
        state="unreadable",
        age_s=max(0.0, now - path.stat().st_mtime),
        pool=PoolStatus(),
        units_done=0,
        units=0,
        calls_per_s=0.0,
        eta_s=None,
    )


def _lives(host: str, pid: int) -> bool:
    """Whether the process may be alive: of another host's nothing is known."""
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def table_of(seen: list[Sighting]) -> Table:
    """The sightings as a table, one row each."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("what", "state", "units"):
        table.add_column(heading, no_wrap=heading != "what")
    for heading in ("calls/s", "left", "wanted", "starting", "running", "idle"):
        table.add_column(heading, justify="right")
    for one in seen:
        table.add_row(
            one.what,
            _state(one),
            f"{one.units_done}/{one.units}",
            *(_at_work(one) if one.state == "running" else [""] * 6),
        )
    return table


def _state(one: Sighting) -> str:
    match one.state:
        case "running":
            return "running"
        case "silent":
            return f"no sign for {_span(one.age_s)}"
        case ended:
            return f"{ended} {_span(one.age_s)} ago"


def _at_work(one: Sighting) -> list[str]:
    pool = one.pool
    return [
        f"{one.calls_per_s:.3g}",
        "" if one.eta_s is None else _span(one.eta_s),
        *(str(actors) for actors in (pool.wanted, pool.starting, pool.running, pool.idle)),
    ]


def _span(seconds: float) -> str:
    """Two figures of it: 48 s, 12 min, 3.5 h, 2.1 d."""
    for unit, size, longest in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < longest * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"
