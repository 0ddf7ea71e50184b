"""Searches in the tracker: which of the named runs are one, and the record each keeps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleetstep.errors import ComparisonError
from fleetstep.orchestration.history import History, records
from fleetstep.reporting.records import RunRecord
from fleetstep.reporting.search_record import SearchRecord

SEARCH = "search"
"""Kind of a search's run in the tracker."""

SEARCH_FILE = "search.json"
"""The search's record among its run's files."""


@dataclass(frozen=True)
class Named:
    """What was named, apart by kind: runs (trials among them), and searches."""

    runs: tuple[RunRecord, ...]
    searches: tuple[SearchRecord, ...]


def named(history: History, names_or_ids: Sequence[str] = ()) -> Named:
    """The named runs and searches, or all training runs; trials of searches are no training runs.

    Raises:
        TrackingError: as `History.runs`.
        ComparisonError: a search keeps no record, or one that cannot be read.
    """
    if not names_or_ids:
        return Named(tuple(records(history)), ())
    kinds = history.kinds(names_or_ids)
    runs = [run_id for _, run_id, kind in kinds if kind != SEARCH]
    searches = (_search(history, name, run_id) for name, run_id, kind in kinds if kind == SEARCH)
    return Named(tuple(records(history, runs) if runs else ()), tuple(searches))


def _search(history: History, name: str, run_id: str) -> SearchRecord:
    if SEARCH_FILE not in history.files(run_id):
        raise ComparisonError(
            f"search {name} ({run_id}) keeps no {SEARCH_FILE}, which is written at its end",
            "let it finish, or go on with it: fleetstep tune ... --resume",
        )
    try:
        content = json.loads(history.read(run_id, SEARCH_FILE))
    except ValueError as error:
        raise ComparisonError(
            f"{SEARCH_FILE} of search {name} ({run_id}) is no JSON: {error}",
            "go on with the search, which writes it anew: fleetstep tune ... --resume",
        ) from error
    return SearchRecord.from_dict(content)


def search_json(
    results: Mapping[str, Any], dimensions: Iterable[Mapping[str, Any]], run_ids: Mapping[str, str]
) -> dict[str, Any]:
    """The record that a search keeps as `SEARCH_FILE`, from its results.

    Args:
        results: `SearchResult.as_dict()`.
        dimensions: `Dimension.as_dict()` of each, in the order of the file.
        run_ids: trial -> its run in the tracker.
    """
    return {
        "name": results["name"],
        "objectives": [
            {"name": goal["name"], "goal": goal["mode"]} for goal in results["objectives"]
        ],
        "dimensions": list(dimensions),
        "trials": [
            _trial_json(entry, results["objectives"], run_ids.get(entry["trial"], ""))
            for entry in results["trials"]
        ],
        "best": list(results["best"]),
        "confirm": results["confirmation"],
    }


def _trial_json(
    entry: Mapping[str, Any], objectives: Sequence[Mapping[str, Any]], run_id: str
) -> dict[str, Any]:
    """A trial that failed has its curve but no value, whatever it reported before."""
    reports = entry["reports"]
    names = [goal["name"] for goal in objectives]
    status = {"unfinished": "running"}.get(entry["status"], entry["status"])
    last = reports[-1]["values"] if reports and status != "failed" else {}
    return {
        "id": entry["trial"],
        "title": entry["title"],
        "assignment": dict(entry["assignment"]),
        "status": status,
        "stopped_at": reports[-1]["images_seen"] if status == "stopped" and reports else None,
        "values": {name: last.get(name) for name in names},
        "curve": {
            name: [[r["images_seen"], r["values"].get(name)] for r in reports] for name in names
        },
        "run_id": run_id,
        "error": entry["why"] if status in ("failed", "lost") else "",
    }
