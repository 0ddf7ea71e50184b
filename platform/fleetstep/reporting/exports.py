"""A comparison as data: `comparison.json` with everything, `comparison.csv` as one tidy table.

Numbers are written so that reading them back gives the same doubles; what is not finite or not
known is null, or an empty field.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fleetstep.durable import write_json, write_text
from fleetstep.reporting.answer import headline
from fleetstep.reporting.arms import ArmStanding, SeedDifference
from fleetstep.reporting.comparison import Comparison, Standing, Sweep
from fleetstep.reporting.export_rows import Found, Row, rows
from fleetstep.reporting.records import Cell, Score
from fleetstep.reporting.speedup import Speedup
from fleetstep.reporting.statistics import Difference, Mean

FORMAT = 1


def write_exports(
    comparison: Comparison | None, searches: Sequence[Found], folder: Path
) -> tuple[Path, ...]:
    """Write both files into an existing folder, each whole or not at all.

    Raises:
        OSError: a file cannot be written.
    """
    paths = (folder / "comparison.json", folder / "comparison.csv")
    write_json(paths[0], as_json(comparison, searches))
    write_text(paths[1], as_csv(comparison, searches))
    return paths


def as_json(comparison: Comparison | None, searches: Sequence[Found] = ()) -> dict[str, Any]:
    """Everything as plain JSON data."""
    content: dict[str, Any] = {"format": FORMAT}
    if comparison is not None:
        content |= {
            "answer": headline(comparison),
            "baseline": comparison.baseline,
            "notes": [*comparison.refusals, *comparison.notes],
            "runs": [_run(comparison, standing) for standing in comparison.standings],
            "settings": [_arm(standing) for standing in comparison.arms.standings],
            "speedups": [
                _speedup(standing, key, level)
                for standing in comparison.arms.standings
                for key, levels in standing.speedups.items()
                for level in levels
            ],
            "differences": [
                _difference(sweep, run, cell, difference)
                for sweep in comparison.sweeps
                for (run, cell), difference in sweep.differences.items()
            ],
        }
    content["searches"] = [
        asdict(record) | {"importance": asdict(found)} for record, found in searches
    ]
    plain: dict[str, Any] = _finite(content)
    return plain


def as_csv(comparison: Comparison | None, searches: Sequence[Found] = ()) -> str:
    """The rows as CSV with a header."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for row in rows(comparison, searches):
        writer.writerow({name: _field(value) for name, value in asdict(row).items()})
    return buffer.getvalue()


def _run(comparison: Comparison, standing: Standing) -> dict[str, Any]:
    run = standing.run
    return {
        "name": run.name,
        "id": run.run_id,
        "status": run.status,
        "setting": comparison.looks[run.name][0],
        "compared_with": comparison.partners.get(run.name),
        "final_held_out_loss": standing.final_loss,
        "params": dict(run.params),
        "scores": [_score(score) for sweep in comparison.sweeps for score in sweep.of(run.name)],
    }


def _score(score: Score) -> dict[str, Any]:
    kept = ("value", "raw", "se", "low", "high", "n", "blocks", "images_seen", "checkpoint", "nfe")
    return {"metric": score.metric, "cell": asdict(score.cell)} | {
        name: getattr(score, name) for name in kept
    }


def _arm(standing: ArmStanding) -> dict[str, Any]:
    return {
        "name": standing.arm.name,
        "runs": [run.name for run in standing.arm.runs],
        "seeds": list(standing.arm.seeds),
        "held_out_loss": _mean(standing.loss),
        "score": _mean(standing.score),
        "held_out_loss_difference": _seed_difference(standing.loss_difference),
        "score_difference": _seed_difference(standing.score_difference),
    }


def _mean(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else asdict(mean)


def _seed_difference(found: SeedDifference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    pairs = [{"seed": seed, "difference": value} for seed, value in found.pairs]
    return {**asdict(found.mean), "pairs": pairs, "verdict": found.verdict}


def _speedup(standing: ArmStanding, key: str, level: Speedup) -> dict[str, Any]:
    return {
        "setting": standing.arm.name,
        "curve": key,
        "share": level.share,
        "level": level.level,
        "images": asdict(level.images) | {"value": level.images.value},
        "wall": asdict(level.wall) | {"value": level.wall.value},
        "pairs": [
            {
                "run": pair.run.name,
                "baseline": pair.baseline.name,
                "same_seed": pair.same_seed,
                "run_passage": asdict(own),
                "baseline_passage": asdict(other),
            }
            for pair, own, other in level.passages
        ],
    }


def _difference(sweep: Sweep, run: str, cell: Cell, difference: Difference) -> dict[str, Any]:
    return {
        "run": run,
        "baseline": sweep.partners[run],
        "metric": sweep.protocol.metric,
        **asdict(difference),
        "cell": asdict(cell),
        "verdict": difference.verdict,
    }


def _field(value: object) -> object:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else value


def _finite(value: Any) -> Any:
    """The same tree with null for what JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value
