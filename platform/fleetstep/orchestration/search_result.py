"""How a search ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fleetstep.orchestration.search_confirm import Confirmation
from fleetstep.orchestration.search_records import Assignment, Goal, TrialRecord
from fleetstep.orchestration.search_watch import Standing
from fleetstep.reporting.search_terminal import TrialRow, search_table

Title = Callable[[Assignment], str]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A search that is over.

    Attributes:
        folder: of the search.
        goals: its objectives, the deciding one first.
        standing: of its trials.
        title: of an assignment, for people.
        seconds: wall time of the search in this call.
        confirmation: the winner against the baseline; None if that was not asked for.
    """

    folder: Path
    goals: tuple[Goal, ...]
    standing: Standing
    title: Title
    seconds: float
    confirmation: Confirmation | None = None

    @property
    def best(self) -> tuple[TrialRecord, ...]:
        """The best trial; of several objectives the ones that no other beats in all of them."""
        return tuple(r for r in self.standing.records if r.trial in self.standing.best)

    @property
    def winner(self) -> TrialRecord | None:
        """Of the best ones the one with the best deciding objective; None if there is none."""
        first = self.goals[0]
        return min(self.best, key=lambda record: first.loss(record.last(first)), default=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json` and the tracker; a value that is missing is null."""
        return {
            "name": self.folder.name,
            "folder": str(self.folder),
            "objectives": [asdict(goal) for goal in self.goals],
            "best": list(self.standing.best),
            "trials": [trial_dict(record, self.title) for record in self.standing.records],
            "seconds": self.seconds,
            "confirmation": None if self.confirmation is None else self.confirmation.as_dict(),
        }

    def tables(self) -> list[Table]:
        """Every trial."""
        return [standing_table(self.standing, self.goals, self.title)]

    def text(self) -> str:
        """Closing lines: the best trials, and where everything is."""
        if not self.best:
            return f"{self.folder.name}: no trial gave a value ({self.folder})"
        lines = []
        for record in self.best:
            values = ", ".join(f"{goal.name} {record.last(goal):.4g}" for goal in self.goals)
            lines.append(
                f"best: trial {record.trial} ({self.title(record.assignment)}): {values} "
                f"at {record.images_seen:,} images"
            )
        if self.confirmation is not None:
            lines.append(self.confirmation.text())
        return "\n".join([*lines, f"search: {self.folder}"])


def trial_dict(record: TrialRecord, title: Title) -> dict[str, Any]:
    """Plain data of a trial."""
    return {
        "trial": record.trial,
        "title": title(record.assignment),
        "assignment": dict(record.assignment),
        "status": record.ending or "unfinished",
        "why": record.why,
        "lives": [asdict(life) for life in record.lives],
        "reports": [
            {
                "images_seen": report.images_seen,
                "values": {
                    name: value if math.isfinite(value) else None
                    for name, value in report.values.items()
                },
                "flagged": list(report.flagged()),
            }
            for report in record.reports
        ],
    }


def standing_table(standing: Standing, goals: Sequence[Goal], title: Title) -> Table:
    """Every trial that began, as a table."""
    rows = [
        TrialRow(
            trial=record.trial,
            title=title(record.assignment),
            state=standing.status[record.trial],
            images_seen=record.images_seen,
            values=_last_values(record),
            best=record.trial in standing.best,
        )
        for record in standing.records
    ]
    return search_table(rows, [goal.name for goal in goals], standing.trials, standing.eta_s)


def _last_values(record: TrialRecord) -> Mapping[str, float]:
    return record.reports[-1].values if record.reports else {}
