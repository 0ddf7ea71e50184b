"""Reading the tracker back: runs as plain data, and as the records of a comparison."""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleetstep.errors import ComparisonError, DataError, TrackingError
from fleetstep.evaluation.record import ScoreRecord
from fleetstep.orchestration import tracking_store
from fleetstep.orchestration.spool import Point
from fleetstep.orchestration.tracking_store import from_tracker_key
from fleetstep.reporting.records import Curve, Grid, RunRecord, Score

SCORES = "scores.json"
GRIDS = "grids"
FIGURES = "figures"
_GRID = re.compile(r"images-(\d+)\.png")
_PARENT = "mlflow.parentRunId"
KIND = "fleetstep.kind"
_SHORTEST_ID = 6
# MLflow's databases have no infinity: it stores the largest double instead.
_LARGEST = sys.float_info.max


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """Everything the tracker knows of one run.

    Args:
        status: RUNNING, FINISHED, FAILED or KILLED.
        params: flat parameters.
        tags: facts, without MLflow's own.
        metrics: name -> points in order of images seen.
        artifacts: paths of its files.
        parent: id of the run it is nested under.
        started_ms, ended_ms: milliseconds since 1970; no end while it is running.
    """

    name: str
    run_id: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()
    parent: str | None = None
    started_ms: int = 0
    ended_ms: int | None = None


class History:
    """One experiment of the tracker, open for reading.

    Args:
        uri: MLflow tracking URI, secrets resolved. A missing database is an error, not made.
        experiment: its name.

    Raises:
        TrackingError: no tracker there, or no such experiment; those it has are listed.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri = tracking_store.checked_uri(uri)
        self._name = experiment
        with self._errors("be opened"):
            self._client = tracking_store.connect(self._uri)
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                known = sorted(e.name for e in self._client.search_experiments())
                raise TrackingError(
                    f"the tracker has no experiment {experiment!r}; it has: {', '.join(known)}",
                    "name one of these by --experiment",
                )
            self._experiment_id = found.experiment_id

    def runs(self, names_or_ids: Sequence[str] = ()) -> list[RunHistory]:
        """The named runs in that order, or all training runs, oldest first.

        Args:
            names_or_ids: a run's name, its id, or the first six or more characters of its id.

        Raises:
            TrackingError: a name that no run has, or more than one.
        """
        with self._errors("list runs"):
            found = self._search()
            if names_or_ids:
                chosen = [self._pick(wanted, found) for wanted in names_or_ids]
            else:
                # Cells whose training run is in another tracker are not nested either.
                chosen = [run for run in found if run.data.tags.get(KIND) == "train"]
            return [self._history(run) for run in chosen]

    def kinds(self, names_or_ids: Sequence[str]) -> list[tuple[str, str, str]]:
        """(name, id, kind) of the named runs, without reading their metrics.

        Raises:
            TrackingError: as `runs`.
        """
        with self._errors("list runs"):
            found = self._search()
            chosen = [self._pick(wanted, found) for wanted in names_or_ids]
            return [
                (run.info.run_name, run.info.run_id, run.data.tags.get(KIND, "")) for run in chosen
            ]

    def files(self, run_id: str) -> frozenset[str]:
        """Names of the files in a run's topmost folder."""
        with self._errors(f"list files of run {run_id}"):
            return frozenset(entry.path for entry in self._client.list_artifacts(run_id))

    def children(self, run_id: str) -> list[RunHistory]:
        """Runs nested directly under a run, oldest first."""
        with self._errors(f"list runs under {run_id}"):
            return [
                self._history(run)
                for run in self._search()
                if run.data.tags.get(_PARENT) == run_id
            ]

    def keeping(self, artifact: str, run_id: str) -> list[tuple[str, str]]:
        """(name, id) of the runs nested under a run, at any depth, that keep such a file in their
        topmost folder: the nearest first, then the oldest.

        A sweep nests hundreds: they are listed once, and their metrics are not read.
        """
        with self._errors(f"list runs under {run_id}"):
            nested: dict[str | None, list[Any]] = {}
            for run in self._search():
                nested.setdefault(run.data.tags.get(_PARENT), []).append(run)
            found: list[tuple[str, str]] = []
            pending = [run_id]
            while pending:
                for run in nested.get(pending.pop(0), []):
                    pending.append(run.info.run_id)
                    if artifact in self.files(run.info.run_id):
                        found.append((run.info.run_name, run.info.run_id))
            return found

    def read(self, run_id: str, artifact: str) -> bytes:
        """Content of one of the run's files."""
        with (
            self._errors(f"read {artifact} of run {run_id}"),
            tempfile.TemporaryDirectory(prefix="fleetstep-") as folder,
        ):
            return Path(self._client.download_artifacts(run_id, artifact, folder)).read_bytes()

    def _errors(self, doing: str) -> Any:
        return tracking_store.tracker_errors(self._uri, doing)

    def _search(self) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], order_by=["attributes.start_time ASC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _pick(self, wanted: str, runs: Sequence[Any]) -> Any:
        exact = [run for run in runs if run.info.run_id == wanted]
        named = exact or [run for run in runs if run.info.run_name == wanted]
        # A name that is used at every level belongs to the outermost run.
        named = [run for run in named if _PARENT not in run.data.tags] or named
        if not named and len(wanted) >= _SHORTEST_ID:
            named = [run for run in runs if run.info.run_id.startswith(wanted)]
        if len(named) == 1:
            return named[0]
        if named:
            ids = "; ".join(
                f"{run.info.run_id} ({run.info.status}, {_time(run.info.start_time):%F %T} UTC)"
                for run in named
            )
            raise TrackingError(
                f"one run must be called {wanted!r}, but {len(named)} are: {ids}",
                "name the run by its id",
            )
        known = sorted({run.info.run_name for run in runs if _PARENT not in run.data.tags})
        close = difflib.get_close_matches(wanted, known, n=1)
        raise TrackingError(
            f"experiment {self._name!r} has no run {wanted!r}; "
            f"it has: {', '.join(known) or 'none'}",
            f"did you mean {close[0]!r}?" if close else "name one of these, or its id",
        )

    def _history(self, run: Any) -> RunHistory:
        info = run.info
        return RunHistory(
            name=info.run_name,
            run_id=info.run_id,
            status=info.status,
            params={from_tracker_key(k): v for k, v in run.data.params.items()},
            tags={k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
            metrics={
                from_tracker_key(key): self._points(info.run_id, key)
                for key in sorted(run.data.metrics)
            },
            artifacts=tuple(self._artifacts(info.run_id, None)),
            parent=run.data.tags.get(_PARENT),
            started_ms=info.start_time,
            # A run that was taken up again still has the time of its first end.
            ended_ms=None if info.status == "RUNNING" else info.end_time,
        )

    def _points(self, run_id: str, key: str) -> tuple[Point, ...]:
        points = [
            Point(from_tracker_key(key), m.step, _unbounded(m.value), m.timestamp)
            for m in self._client.get_metric_history(run_id, key)
        ]
        return tuple(sorted(points, key=lambda p: (p.images_seen, p.timestamp_ms)))

    def _artifacts(self, run_id: str, folder: str | None) -> Iterator[str]:
        for entry in self._client.list_artifacts(run_id, folder):
            if entry.is_dir:
                yield from self._artifacts(run_id, entry.path)
            else:
                yield entry.path


def records(history: History, names_or_ids: Sequence[str] = ()) -> list[RunRecord]:
    """What a comparison reads: runs with their curves, grids, and the scores of all sweeps.

    Scores are in a file `scores.json` of the run, or of runs nested under it at any depth.

    Raises:
        TrackingError: as `History.runs`.
        ComparisonError: a score record is damaged.
    """
    return [_record(history, run) for run in history.runs(names_or_ids)]


def score_of(record: Mapping[str, Any]) -> Score:
    """A report's score from the JSON values of an evaluation's score record.

    Raises:
        ComparisonError: as `checked`.
    """
    return Score.from_dict(checked(record))


def checked(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON values of a score record, unless nobody could have measured them.

    Raises:
        ComparisonError: a field is missing or damaged, or the metric's name is not that of its
            kind, features and n: whoever edits a file makes no FID.
    """
    try:
        ScoreRecord.from_dict(record)
    except DataError as error:
        raise ComparisonError(
            error.message, error.remedy or "the record was edited or damaged: sweep again"
        ) from error
    return record


def _record(history: History, run: RunHistory) -> RunRecord:
    logged = [point.timestamp_ms for points in run.metrics.values() for point in points]
    # A run made anew in another database holds points that are older than itself.
    began_ms = min([run.started_ms, *logged])
    return RunRecord(
        name=run.name,
        run_id=run.run_id,
        status=run.status,
        params=run.params,
        tags=run.tags,
        curves={key: _curve(points, began_ms) for key, points in run.metrics.items()},
        scores=_scores(history, run),
        grids=tuple(_grids(history, run)),
        started=_time(began_ms),
        ended=None if run.ended_ms is None else _time(run.ended_ms),
    )


def _curve(points: Sequence[Point], began_ms: int) -> Curve:
    return Curve.of((p.images_seen, p.value, (p.timestamp_ms - began_ms) / 1000) for p in points)


def _scores(history: History, run: RunHistory) -> tuple[Score, ...]:
    """All scores of the run and those nested under it; of one measured twice the later stays."""
    found: dict[Any, Score] = {}
    own = [(run.name, run.run_id)] if SCORES in run.artifacts else []
    for name, run_id in [*own, *history.keeping(SCORES, run.run_id)]:
        for score in _read_scores(history, name, run_id):
            found[score.protocol, score.cell, score.checkpoint] = score
    return tuple(found.values())


def _read_scores(history: History, name: str, run_id: str) -> list[Score]:
    try:
        entries = json.loads(history.read(run_id, SCORES))
    except ValueError:
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ComparisonError(
            f"{SCORES} of run {name} ({run_id}) is not a list of score records",
            "delete that run in the MLflow UI and sweep again",
        )
    return [score_of(entry) for entry in entries]


def _grids(history: History, run: RunHistory) -> Iterator[Grid]:
    for path in run.artifacts:
        folder, _, file = path.rpartition("/")
        if folder == GRIDS and (match := _GRID.fullmatch(file)):
            yield Grid(int(match[1]), history.read(run.run_id, path))


def _unbounded(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
