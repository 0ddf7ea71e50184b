"""What was scored of a run's snapshots: a file each, so that nothing is scored twice and nothing
is forgotten; and the run's own curves of it.

<run>/evaluation/status.json               what the pool does
                 images-000000640.json     the scores of a snapshot, once the tracker has them
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleetstep.config import EvaluateSpec
from fleetstep.durable import sha256_of, write_json
from fleetstep.orchestration.cell_scores import CellScore, Measure
from fleetstep.orchestration.cells import content_hash, guidance_text
from fleetstep.orchestration.sweep_records import metrics_of
from fleetstep.orchestration.sweep_solvers import solver_text

_FORMAT = 1
_DEFAULT_TRACK = "ema"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Asked:
    """For what a snapshot's file of scores is good: anything else is scored anew.

    Attributes:
        identity: of the experiment whose snapshots they are.
        measured: digest of how images are drawn and measured, and of what they are compared with.
        run_id: the tracker's run that has the scores.
    """

    identity: str
    measured: str
    run_id: str

    @classmethod
    def of(
        cls, evaluate: EvaluateSpec, measures: Iterable[Measure], identity: str, run_id: str
    ) -> Asked:
        """When snapshots are scored, by whom, and where the weights of extractors and the
        reference lie, does not matter; what the reference's file holds, and its name, which the
        curves bear, do.
        """
        settings = evaluate.model_dump(mode="json", exclude={"every", "pool", "extractors"})
        if evaluate.reference is not None:
            path = Path(evaluate.reference)
            settings["reference"] = [path.stem, sha256_of(path)]
        settings["spaces"] = [measure.space.key + measure.texts_sha256 for measure in measures]
        return cls(identity, content_hash(settings), run_id)


class SnapshotScores:
    """The folder of such files.

    Args:
        folder: made when the first one is written.
        asked: what they must be good for.
    """

    def __init__(self, folder: Path, asked: Asked) -> None:
        self._folder, self._asked = folder, asked

    def scored(self) -> frozenset[int]:
        """Images seen at the snapshots that need no work."""
        return frozenset(
            entry["images_seen"]
            for path in self._folder.glob("images-*.json")
            if (entry := _read(path)) is not None and entry["asked"] == asdict(self._asked)
        )

    def write(
        self, images_seen: int, scores: Sequence[CellScore], refused: Sequence[str] = ()
    ) -> None:
        """Remember a snapshot's scores, and what of it could not be sampled."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": _FORMAT,
            "images_seen": images_seen,
            "asked": asdict(self._asked),
            "refused": list(refused),
            "scores": [record.to_dict() for score in scores for record in score.records],
        }
        write_json(self._folder / f"images-{images_seen:09d}.json", content)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["format"] == _FORMAT and isinstance(entry["images_seen"], int):
            return {"images_seen": entry["images_seen"], "asked": entry["asked"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def curve_points(score: CellScore, reference: str) -> dict[str, float]:
    """A score as points of the training run's own curves.

    A curve is named by the metric and by how images were drawn, as far as that is not the
    default: "eval/fd1k.fs-rn20.multi112@4dabd2d8/dpmpp-order-2@16", "@adaptive" where the
    number of calls is the solver's choice, with ".cfg-1.5", ".balanced"
    or ".heldout" after the solver and "/slow" at the end for an EMA track of that name.

    Args:
        score: of one cell.
        reference: name of what the images are compared with, "" for the usual training images.
    """
    cell = score.cell
    parts = [
        solver_text(cell.solver),
        guidance_text(cell.guidance),
        "" if cell.labels == "random" else cell.labels,
        reference,
    ]
    drawn = ".".join(_plain(part) for part in parts if part)
    calls = "adaptive" if cell.nfe is None else str(cell.nfe)
    track = "" if cell.track == _DEFAULT_TRACK else f"/{_plain(cell.track)}"
    return {
        f"{metric}/{drawn}@{calls}{track}": value
        for metric, value in metrics_of(score.records).items()
    }


def _plain(text: str) -> str:
    """`text` in characters that every tracker allows: "dpmpp(order=2)" is "dpmpp-order-2"."""
    return _NOT_IN_NAMES.sub("-", text).strip("-.")
