"""What a search knows of its trials, on disk: the truth that a resumed search starts from.

<storage>/searches/<name>/ search.resolved.yaml   the search, as it can be run again
                           status.json            how far it is
                           stop                   exists while its trials are asked to stop
                           results/0003.jsonl     everything that happened to trial 3, in order
                           trials/<name>-0003/    its run's folder; <name>-0003-life1/ after it
                                                  went on from another trial's checkpoint
                           ray/                   Ray Tune's own; nothing reads it back

Ray Tune restores neither the rungs of a successive halving nor the clock of a population, so a
search that goes on is a new one of Ray's that these files are told to first.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fleetstep.orchestration.run_folder import RunFolder

Value = str | int | float | bool
Assignment = Mapping[str, Value]
Ending = Literal["finished", "stopped", "failed", "lost"]
"""How a trial ended: budget used up; stopped early; its error would come again; its process died
too often, which a resumed search tries again.
"""

Status = Literal["pending", "running", "finished", "stopped", "failed", "lost"]
WORST = 1e300
"""Stands for a value that is missing or not finite, so that schedulers can sort it."""


@dataclass(frozen=True)
class Goal:
    """What a search optimises.

    Attributes:
        name: in tables and in the tracker.
        mode: whether less or more of it is better.
    """

    name: str
    mode: Literal["min", "max"] = "min"

    @property
    def worst(self) -> float:
        """The worst finite value."""
        return WORST if self.mode == "min" else -WORST

    def sortable(self, value: float | None) -> float:
        """The value, or the worst one if it is missing or not finite."""
        return value if value is not None and math.isfinite(value) else self.worst

    def loss(self, value: float | None) -> float:
        """Less is better."""
        return self.sortable(value) * (1 if self.mode == "min" else -1)


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another trial that a life began with."""

    trial: str
    life: int
    images_seen: int


@dataclass(frozen=True)
class Life:
    """A stretch of a trial under one assignment. Only a population gives a trial a second one.

    Attributes:
        index: 0 for the first.
        assignment: the values of the search's dimensions.
        origin: where its weights came from; None starts from nothing.
    """

    index: int
    assignment: Assignment
    origin: Origin | None = None


@dataclass(frozen=True)
class Report:
    """The objectives of a trial at one point; a value that is missing is NaN."""

    images_seen: int
    values: Mapping[str, float]

    def flagged(self) -> tuple[str, ...]:
        """Names of the values that are not finite."""
        return tuple(name for name, value in self.values.items() if not math.isfinite(value))


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of a trial.

    Attributes:
        trial: its number as text, such as "0003".
        lives: oldest first; never empty.
        reports: by images seen, ascending.
        ending: None while it has not ended.
        why: the error of a failed trial, or who stopped it and where.
    """

    trial: str
    lives: tuple[Life, ...]
    reports: tuple[Report, ...] = ()
    ending: Ending | None = None
    why: str = ""

    @property
    def life(self) -> Life:
        """The present one."""
        return self.lives[-1]

    @property
    def assignment(self) -> Assignment:
        """Of the present life."""
        return self.life.assignment

    @property
    def images_seen(self) -> int:
        """At the last report."""
        return self.reports[-1].images_seen if self.reports else 0

    @property
    def open(self) -> bool:
        """Whether a resumed search goes on with it."""
        return self.ending in (None, "lost")

    def last(self, goal: Goal) -> float:
        """The last value that was reported, NaN if there is none or the trial failed."""
        if self.ending == "failed" or not self.reports:
            return math.nan
        return self.reports[-1].values.get(goal.name, math.nan)


@dataclass(frozen=True)
class SearchFolder:
    """Paths inside a search's folder."""

    root: Path

    @property
    def resolved(self) -> Path:
        """The resolved search."""
        return self.root / "search.resolved.yaml"

    @property
    def status(self) -> Path:
        """How far it is."""
        return self.root / "status.json"

    @property
    def stop(self) -> Path:
        """Exists while trials are asked to save and stop."""
        return self.root / "stop"

    @property
    def results(self) -> Path:
        """A file a trial."""
        return self.root / "results"

    @property
    def trials(self) -> Path:
        """The storage of the trials' runs."""
        return self.root / "trials"

    @property
    def ray(self) -> Path:
        """Ray Tune's own files."""
        return self.root / "ray"

    def run(self, trial: str, life: int = 0) -> RunFolder:
        """The run's folder of a trial's life."""
        return RunFolder(self.trials / self.run_name(trial, life))

    def run_name(self, trial: str, life: int = 0) -> str:
        """Name of that run."""
        return f"{self.root.name}-{trial}" + (f"-life{life}" if life else "")


@dataclass
class Ledger:
    """The results of a search's trials: read once, then kept up with what is written.

    One live writer, the search's driver. What `write` returned from survives the machine.

    Args:
        folder: one file a trial; made with the first.
    """

    folder: Path
    records: dict[str, TrialRecord] = field(init=False)

    def __post_init__(self) -> None:
        found = (_read(path) for path in sorted(self.folder.glob("*.jsonl")))
        self.records = {record.trial: record for record in found if record is not None}

    def begin(self, trial: str, life: Life, images_seen: int = 0) -> None:
        """A life began; one that is known already is not written again."""
        known = self.records.get(trial)
        if known is not None and any(one.index == life.index for one in known.lives):
            return
        origin = life.origin
        self._write(
            trial,
            {
                "event": "began",
                "life": life.index,
                "images": images_seen,
                "assignment": dict(life.assignment),
                "origin": None if origin is None else vars(origin),
            },
        )
        lives = (life,) if known is None else (*known.lives, life)
        self.records[trial] = _with(known, trial=trial, lives=lives)

    def report(self, trial: str, report: Report) -> bool:
        """A trial reported; False, and nothing is written, at or below its last point: a trial
        that was started again repeats what it reported before.
        """
        known = self.records[trial]
        if known.reports and report.images_seen <= known.images_seen:
            return False
        values = {
            key: value if math.isfinite(value) else str(value)
            for key, value in report.values.items()
        }
        self._write(trial, {"event": "report", "images": report.images_seen, "values": values})
        self.records[trial] = _with(known, reports=(*known.reports, report))
        return True

    def end(self, trial: str, ending: Ending, why: str = "") -> None:
        """A trial ended; one that was lost may end again."""
        known = self.records[trial]
        if known.open:
            self._write(trial, {"event": "ended", "status": ending, "why": why})
            self.records[trial] = _with(known, ending=ending, why=why)

    def _write(self, trial: str, event: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{trial}.jsonl"
        _cut_torn_line(path)
        with path.open("ab") as file:
            file.write((json.dumps(event, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def best_trials(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> tuple[str, ...]:
    """The best trial; of several objectives all that no other trial is better than in every one.

    Only trials that got the furthest are compared: a loss after a tenth of the budget says
    nothing against one after all of it.
    """
    able = [r for r in records if r.reports and r.ending != "failed"]
    able = [r for r in able if all(math.isfinite(r.last(goal)) for goal in goals)]
    furthest = max((record.images_seen for record in able), default=0)
    losses = {
        record.trial: tuple(goal.loss(record.last(goal)) for goal in goals)
        for record in able
        if record.images_seen == furthest
    }
    front = tuple(
        trial
        for trial, mine in losses.items()
        if not any(_dominates(other, mine) for other in losses.values())
    )
    return front[:1] if len(goals) == 1 else front


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def _with(record: TrialRecord | None, **changes: Any) -> TrialRecord:
    return TrialRecord(**(({} if record is None else vars(record)) | changes))


def _cut_torn_line(path: Path) -> None:
    """A writer that was killed may have left half a line: the next one must not join it."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _read(path: Path) -> TrialRecord | None:
    """The record in a file; None if not even its beginning was written."""
    record: TrialRecord | None = None
    for event in _events(path):
        match event["event"]:
            case "began":
                origin = event["origin"]
                life = Life(
                    event["life"],
                    event["assignment"],
                    None if origin is None else Origin(**origin),
                )
                lives = (life,) if record is None else (*record.lives, life)
                record = _with(record, trial=path.stem, lives=lives)
            case "report" if record is not None:
                values = {key: float(value) for key, value in event["values"].items()}
                report = Report(event["images"], values)
                record = _with(record, reports=(*record.reports, report))
            case "ended":
                record = _with(record, ending=event["status"], why=event["why"])
    return record


def _events(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)
