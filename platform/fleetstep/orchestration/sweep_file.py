"""scores.json: what a sweep measured, complete or so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep.config import SweepSpec
from fleetstep.durable import write_json
from fleetstep.evaluation.minimum import Minimum
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.cells import Cell
from fleetstep.orchestration.live_scores import Standing
from fleetstep.orchestration.screening import Screened
from fleetstep.orchestration.sweep_plan import SweepPlan

FORMAT = 3

FEWEST_BLOCKS_OF_A_MINIMUM = 3
"""Seed blocks of which the lowest value is reported, as by Karras et al. (2022)."""


@dataclass(frozen=True, kw_only=True)
class SweepFiles:
    """Where a sweep keeps what is about all of its cells.

    Args:
        folder: of the sweep, by its name.
    """

    folder: Path

    @classmethod
    def of(cls, spec: SweepSpec) -> SweepFiles:
        """Those of a configuration."""
        return cls(folder=Path(spec.storage).resolve() / "sweeps" / spec.name)

    @property
    def scores(self) -> Path:
        """Every score."""
        return self.folder / "scores.json"

    @property
    def screen(self) -> Path:
        """What screening said of every cell."""
        return self.folder / "screen.json"

    @property
    def status(self) -> Path:
        """What the pool does."""
        return self.folder / "status.json"

    @property
    def report(self) -> Path:
        """Folder of the page."""
        return self.folder / "report"


def minima_of(scores: Iterable[CellScore]) -> dict[Cell, tuple[Minimum, ...]]:
    """The lowest plain Fréchet distance over three or more seed blocks, of every cell."""
    values: dict[tuple[Cell, str], list[float]] = {}
    for score in scores:
        for record in score.records:
            if record.kind == "fd":
                metric = record.metric.removesuffix(".unbiased")
                values.setdefault((score.cell, metric), []).append(record.raw)
    found: dict[Cell, tuple[Minimum, ...]] = {}
    for (cell, metric), of_blocks in values.items():
        if len(of_blocks) >= FEWEST_BLOCKS_OF_A_MINIMUM:
            lowest = Minimum(f"{metric}.min{len(of_blocks)}", tuple(of_blocks))
            found[cell] = (*found.get(cell, ()), lowest)
    return found


def write_scores(
    path: Path,
    spec: SweepSpec,
    work: SweepPlan,
    scores: Sequence[CellScore],
    *,
    dropped: Sequence[Screened] = (),
    minima: Mapping[Cell, Sequence[Minimum]] | None = None,
) -> None:
    """Write the scores of a sweep that is done."""
    content = _head(spec, work, dropped, complete=True)
    content["cells"] = [_cell(score) for score in scores]
    content["minima"] = [
        {"key": cell.key, "run": cell.snapshot.run, **minimum.as_dict()}
        for cell, lowest in (minima or {}).items()
        for minimum in lowest
    ]
    _write(path, content)


def write_standings(
    path: Path,
    spec: SweepSpec,
    work: SweepPlan,
    standings: Sequence[Standing],
    *,
    dropped: Sequence[Screened] = (),
) -> None:
    """Write what is known of a sweep that is going on; each score says of how many images."""
    content = _head(spec, work, dropped, complete=False)
    content["cells"] = [_cell(one.score) for one in standings if one.score is not None]
    content["waiting"] = [
        {**one.cell.facts, "seed_block": one.seed_block} for one in standings if one.score is None
    ]
    content["minima"] = []
    _write(path, content)


def _head(
    spec: SweepSpec, work: SweepPlan, dropped: Sequence[Screened], *, complete: bool
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "complete": complete,
        "sweep": spec.model_dump(mode="json", exclude={"tracking", "address"}),
        "skipped": [
            {"solver": point.solver, "nfe": point.nfe, "reason": point.reason}
            for point in work.skipped
        ],
        "dropped": [{**one.cell.facts, "reason": one.reason} for one in dropped],
    }


def _cell(score: CellScore) -> dict[str, Any]:
    return {
        **score.cell.facts,
        "seed_block": score.seed_block,
        "moments_sha256": list(score.moments_sha256),
        "calls_made": score.calls_made,
        "scores": [record.to_dict() for record in score.records],
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
