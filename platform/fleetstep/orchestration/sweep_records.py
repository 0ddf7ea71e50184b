"""Scores in the tracker: a run for every cell and seed block, nested under the run whose network
it samples.

The tree then reads experiment > run > cell. A cell scored again goes on in its own run instead of
making a second one, and keeps what was measured of it before.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleetstep.errors import DataError, TrackingError
from fleetstep.evaluation.minimum import Minimum
from fleetstep.evaluation.record import ScoreRecord
from fleetstep.evaluation.spec import UNBIASED
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.cells import Cell, SnapshotRef, guidance_text
from fleetstep.orchestration.history import SCORES, History
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.sweep_solvers import schedule_label, solver_text
from fleetstep.orchestration.tracking import Tracker

Say = Callable[[str], None]


def record_score(
    tracker: Tracker,
    score: CellScore,
    *,
    reference: str,
    parent: str | None,
    minima: Sequence[Minimum] = (),
) -> str:
    """Put a score into the tracker; the id of its run.

    Args:
        tracker: where to.
        score: with one record or more.
        reference: what the images were compared with: key of the set, or digest of a file.
        parent: the run that it is nested under.
        minima: over the seed blocks of the cell; they belong to the first.
    """
    cell, samples = score.cell, _widest(score).n
    measured = {"samples": str(samples), "reference": reference}
    place = {
        "fleetstep.cell": cell.key,
        # Runs with equal weights, such as two before their first step, share cells.
        "fleetstep.run": cell.snapshot.run,
        "fleetstep.seed_block": str(score.seed_block),
        # More samples, or another reference, is another score of the same cell.
        **{f"fleetstep.{key}": value for key, value in measured.items()},
    }
    known = tracker.find_run(place)
    run_id = tracker.start_run(
        _name(score),
        _params(cell) | measured,
        tags={**place, "fleetstep.kind": "cell"} | _protocol(score),
        parent_run_id=parent,
        run_id=known,
    )
    with tracker.ending(run_id):
        records = [record.to_dict() for record in score.records]
        kept = [] if known is None else _measured_before(tracker, run_id, records)
        tracker.log_dict(run_id, [*kept, *records], SCORES)
        tracker.log_metrics(run_id, cell.snapshot.images_seen, metrics_of(score.records, minima))
    return run_id


def metrics_of(records: Sequence[ScoreRecord], minima: Sequence[Minimum] = ()) -> dict[str, float]:
    """The tracker's metrics of one score: "eval/fd1k.fs-rn20.multi112@4dabd2d8"."""
    metrics = {f"eval/{record.metric}": record.value for record in records}
    # What publications call FID is the plain value.
    metrics |= {
        f"eval/{record.metric.removesuffix(UNBIASED)}": record.raw
        for record in records
        if record.metric.endswith(UNBIASED)
    }
    return metrics | {f"eval/{minimum.metric}": minimum.minimum for minimum in minima}


def parent_of(tracker: Tracker, snapshot: SnapshotRef, say: Say | None) -> str | None:
    """The run that a snapshot's scores are nested under, if this tracker's experiment holds it.

    A run nested under one that is not there would be found by nobody. An exact denoiser was not
    trained: it gets a run of its own, once.
    """
    if snapshot.kind == "exact":
        return _exact_run(tracker, snapshot)
    folder = RunFolder(snapshot.path.parents[1])
    card = RunCard.read(folder.card)
    if card is not None and card.experiment == tracker.experiment and tracker.has_run(card.run_id):
        return card.run_id
    if say is not None:
        say(
            f"  the training run of {folder.root} is not in experiment {tracker.experiment!r} of "
            "this tracker, so its scores stand alone there and `compare` does not find them; "
            "set tracking.uri and tracking.experiment as they were for training"
        )
    return None


def _exact_run(tracker: Tracker, snapshot: SnapshotRef) -> str:
    place = {"fleetstep.kind": "exact", "fleetstep.checkpoint": snapshot.digest}
    if (known := tracker.find_run(place)) is not None:
        return known
    params = {"data": str(snapshot.data), "images": str(snapshot.images)}
    run_id = tracker.start_run(snapshot.run, params, tags=place)
    tracker.finish(run_id, "FINISHED")
    return run_id


def _widest(score: CellScore) -> ScoreRecord:
    """The record of most images: some metrics look at the first alone."""
    return max(score.records, key=lambda record: record.n)


def _name(score: CellScore) -> str:
    cell = score.cell
    guided = f" {guidance_text(cell.guidance)}" if cell.guidance is not None else ""
    block = f" seeds {_widest(score).seeds}" if score.seed_block else ""
    return (
        f"{solver_text(cell.solver)} nfe={cell.nfe or 'adaptive'}{guided} "
        f"@ {cell.snapshot.images_seen}{block}"
    )


def _params(cell: Cell) -> dict[str, str]:
    identity = {key: value for key, value in cell.identity.items() if key != "format"}
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in identity.items()
    }


def _protocol(score: CellScore) -> dict[str, str]:
    """The protocol card as tags, as far as cells differ in it."""
    cell, record = score.cell, _widest(score)
    return {
        "fleetstep.seeds": str(record.seeds),
        "fleetstep.ema": cell.track,
        "fleetstep.schedule": schedule_label(cell.solver),
        "fleetstep.guidance": record.guidance,
        "fleetstep.protocol": record.protocol,
    }


def _measured_before(
    tracker: Tracker, run_id: str, records: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Scores of the same images that this sweep does not measure again."""
    measured = {record["metric"] for record in records}
    try:
        entries = json.loads(History(tracker.uri, tracker.experiment).read(run_id, SCORES))
    except (TrackingError, ValueError):
        return []  # there was none, or nobody can read it
    kept = []
    for entry in entries if isinstance(entries, list) else ():
        with contextlib.suppress(DataError, AttributeError):
            if ScoreRecord.from_dict(entry).metric not in measured:
                kept.append(entry)
    return kept
