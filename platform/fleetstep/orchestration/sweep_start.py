"""Before a sweep starts: its results can be written, nobody else writes them, and whose results
they take the place of is said.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from fleetstep.config import SweepSpec
from fleetstep.errors import UsageError
from fleetstep.orchestration.status import STALE_S
from fleetstep.orchestration.sweep_file import SweepFiles
from fleetstep.orchestration.sweep_plan import SweepPlan


def check_start(spec: SweepSpec) -> None:
    """Refuse a sweep that could not keep its results, or would mix them with another's.

    Raises:
        UsageError: the storage cannot be written, or another process runs a sweep of this name.
    """
    _check_storage(spec)
    _check_driver(spec)


def replaced(spec: SweepSpec, work: SweepPlan) -> str:
    """Which results of another grid this sweep's scores.json replaces, in a line; "" for none.

    They can be had again without sampling: finished units are kept by cell, whoever asked for
    them.
    """
    content = _read(SweepFiles.of(spec).scores)
    listed = [*_cells(content, "cells"), *_cells(content, "waiting")]
    known = {cell.key for cell in work.cells}
    others = [one for one in listed if one["key"] not in known]
    if not others:
        return ""
    runs = ", ".join(dict.fromkeys(str(one.get("run")) for one in others))
    count = len({one["key"] for one in others})
    return (
        f"sweep {spec.name!r}: replaces the results of another grid of this name ({count} cells "
        f"of {runs}); their units are kept, and another name keeps both"
    )


def _check_storage(spec: SweepSpec) -> None:
    folder = SweepFiles.of(spec).folder
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"storage: {spec.storage} must be a folder that can be written, and it cannot: "
            f"{error}",
            "use storage=FOLDER with one that this machine and the actors can write",
        ) from error


def _check_driver(spec: SweepSpec) -> None:
    path = SweepFiles.of(spec).status
    content = _read(path)
    try:
        host, pid = str(content["host"]), int(content["pid"])
        age_s = max(0.0, time.time() - float(content["time"]))
        running = content["state"] == "running"
    except (KeyError, TypeError, ValueError):
        return
    if running and _is_at_work(host, pid, age_s):
        raise UsageError(
            f"a sweep of the name {spec.name!r} is running already under {spec.storage}: process "
            f"{pid} on {host}, last heard of {age_s:.0f} s ago; two would write the same files",
            f"wait for it, or give this sweep another name; if that process is no sweep, "
            f"delete {path}",
        )


def _is_at_work(host: str, pid: int, age_s: float) -> bool:
    """Of a process on another host nothing is known but how long ago it was heard of."""
    if host != socket.gethostname():
        return age_s <= STALE_S
    if pid == os.getpid():
        return False  # an earlier sweep of this very process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cells(content: dict[str, Any], part: str) -> list[dict[str, Any]]:
    found = content.get(part)
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, dict) and "key" in one]
