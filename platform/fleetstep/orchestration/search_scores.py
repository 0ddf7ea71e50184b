"""Scores of a trial's snapshots as its objectives: read from the files that the evaluator beside
its training writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVALUATION = "evaluation"
"""Folder of such files in a run's."""


@dataclass(frozen=True)
class Wanted:
    """One score among those of a snapshot.

    Attributes:
        name: of the objective.
        metric: its kind.
        extractor: name of the features.
        solver: as records name it.
        nfe: network calls per image; None is the solver's own choice.
        track: the EMA track that is sampled.
    """

    name: str
    metric: str
    extractor: str
    solver: str
    nfe: int | None
    track: str

    def is_in(self, record: Mapping[str, Any]) -> bool:
        """Whether a score record is this one."""
        said = ("kind", "extractor", "solver", "ema")
        asked = (self.metric, self.extractor, self.solver, self.track)
        calls = record["adaptive"] or self.nfe is None or round(record["nfe"]) == self.nfe
        return calls and tuple(record[key] for key in said) == asked


@dataclass(frozen=True)
class Scores:
    """The scores of a run's snapshots.

    Args:
        folder: of the evaluator's files.
        wanted: an objective each.
    """

    folder: Path
    wanted: Sequence[Wanted]

    def at(self, images_seen: int) -> Mapping[str, float] | None:
        """None until that snapshot is scored; a score that it cannot have is NaN."""
        try:
            text = (self.folder / f"images-{images_seen:09d}.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        records = json.loads(text)["scores"]
        return {
            wanted.name: next((r["value"] for r in records if wanted.is_in(r)), math.nan)
            for wanted in self.wanted
        }


def scores_in(folder: Path) -> list[dict[str, Any]]:
    """The score records of all of a run's snapshots, by images seen: what a comparison reads."""
    files = sorted(folder.glob("images-*.json"))
    return [
        record
        for file in files
        for record in json.loads(file.read_text(encoding="utf-8"))["scores"]
    ]
