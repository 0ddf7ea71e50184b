"""From finished units to scores: exact sums in fixed blocks, whoever did which unit, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fleetstep.errors import DataError
from fleetstep.evaluation.jackknife import Estimate
from fleetstep.evaluation.moments import Float32, total
from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.reference import Reference
from fleetstep.evaluation.score import Sample, score
from fleetstep.evaluation.spec import (
    NEEDS_REFERENCE_FEATURES,
    MetricKind,
    images_scored,
    metric_name,
)
from fleetstep.orchestration.cells import Cell, FeatureSpace, Unit, folder, guidance_text
from fleetstep.orchestration.references import KnownReference, read_units
from fleetstep.orchestration.sweep_solvers import schedule_label, solver_text
from fleetstep.orchestration.units import Hardware, UnitResult, digest_of
from fleetstep.sampling.generate import labels_of

QUANTISATIONS: Mapping[str, str] = {
    "round": "uint8: floor(127.5 x + 128), clipped",
    "truncate": "uint8: floor(127.5 (x + 1)), clipped",
}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a cell's images are measured in one feature space.

    Args:
        space: the features.
        metrics: what is computed of them.
        probabilities: whether a metric needs class probabilities.
        texts: embedding of the text of every class, float32 [K, D], for clip_score.
        protocol: the named protocol that was asked for; "" for none.
    """

    space: FeatureSpace
    metrics: tuple[MetricKind, ...]
    probabilities: bool = False
    texts: Float32 | None = None
    protocol: str = ""

    @property
    def texts_sha256(self) -> str:
        """Digest of the texts; "" without."""
        return "" if self.texts is None else digest_of(self.texts)


@dataclass(frozen=True, kw_only=True)
class CellScore:
    """A cell's seed block and what was measured of it.

    Args:
        cell: what was sampled.
        seed_block: which block of sample ids.
        moments_sha256: digest of the moments of its features in each space: equal for equal bits.
        calls_made: network calls per image that were made; fewer than the NFE where cells shared
            their first call, and then not the same for every order of the work.
        records: one a space and metric.
    """

    cell: Cell
    seed_block: int
    moments_sha256: tuple[str, ...]
    calls_made: float
    records: tuple[ScoreRecord, ...]


def score_cell(
    storage: Path,
    cell: Cell,
    units: Sequence[Unit],
    blocks: int,
    measures: Sequence[tuple[Measure, KnownReference]],
    *,
    seed_block: int = 0,
) -> CellScore:
    """Every metric of the images of `units`, jackknifed over `blocks` blocks of whole units.

    Args:
        units: consecutive ones of the cell, a multiple of `blocks`: all of a seed block, or the
            first of them while the others are not there yet.
        measures: each with its reference.

    Raises:
        DataError: a unit is missing or damaged, or the calls that were counted are not the cell's.
    """
    digests: list[str] = []
    records: list[ScoreRecord] = []
    calls_made = 0.0
    for measure, against in measures:
        results = read_units(storage, units, measure.space)
        calls_made = sum(result.calls_made for result in results) / len(results)
        sample = _sample(cell, units, results, blocks, measure.texts)
        digests.append(total(list(sample.moments)).digest())
        estimates = score(measure.metrics, sample, against.reference)
        facts = _facts(storage, cell, units, results, measure, against)
        records += [
            _record(kind, estimate, cell, units, measure, against.reference, facts)
            for kind, estimate in estimates.items()
        ]
    return CellScore(
        cell=cell,
        seed_block=seed_block,
        moments_sha256=tuple(digests),
        calls_made=calls_made,
        records=tuple(records),
    )


def _sample(
    cell: Cell,
    units: Sequence[Unit],
    results: Sequence[UnitResult],
    blocks: int,
    texts: Float32 | None,
) -> Sample:
    """The units' features, joined into blocks."""
    size = len(units) // blocks
    starts = range(0, len(units), size)
    features = tuple(
        np.concatenate([result.features for result in results[s : s + size]]) for s in starts
    )
    rows = [result.probabilities for result in results if result.probabilities is not None]
    probabilities = (
        tuple(np.concatenate(rows[s : s + size]) for s in starts)
        if len(rows) == len(results)
        else None
    )
    embeddings = None
    if texts is not None:
        embeddings = tuple(texts[_labels(cell, units[s : s + size])] for s in starts)
    return Sample(features, probabilities, embeddings)


def _labels(cell: Cell, units: Sequence[Unit]) -> npt.NDArray[np.int64]:
    count = sum(unit.count for unit in units)
    return labels_of(cell.namespace, units[0].first, count, cell.snapshot.classes, cell.labels)


def _counted(storage: Path, cell: Cell, results: Sequence[UnitResult]) -> float:
    """Network calls per image: the cell's, or the mean over units for an adaptive solver."""
    if cell.nfe is None:
        return sum(result.nfe for result in results) / len(results)
    if counted := {result.nfe for result in results} - {cell.nfe}:
        raise DataError(
            f"every unit of ({cell}) makes {cell.nfe} network calls, "
            f"but {', '.join(map(str, sorted(counted)))} were counted",
            f"delete {folder(storage, cell)} and sweep again",
        )
    return cell.nfe


def _facts(
    storage: Path,
    cell: Cell,
    units: Sequence[Unit],
    results: Sequence[UnitResult],
    measure: Measure,
    against: KnownReference,
) -> dict[str, object]:
    """The protocol card: all of a record but its numbers, and what depends on the metric."""
    reference: Reference = against.reference
    return {
        "run": cell.snapshot.run,
        "checkpoint": cell.snapshot.digest,
        "images_seen": cell.snapshot.images_seen,
        "ema": cell.track,
        "solver": solver_text(cell.solver),
        "schedule": schedule_label(cell.solver),
        "nfe": _counted(storage, cell, results),
        "adaptive": cell.nfe is None,
        "guidance": guidance_text(cell.guidance),
        "labels": cell.labels,
        "dtype": cell.dtype,
        "protocol": measure.protocol,
        "extractor": measure.space.name,
        "extractor_sha256": measure.space.sha256,
        "preprocess": measure.space.preprocess,
        "quantisation": QUANTISATIONS[cell.quantisation],
        "reference": reference.name,
        "reference_sha256": reference.sha256,
        "versions": {name: version(name) for name in ("fleetstep", "torch", "numpy")},
        "hardware": _hardware([result.hardware for result in results], against.hardware),
    }


def _record(
    kind: MetricKind,
    estimate: Estimate,
    cell: Cell,
    units: Sequence[Unit],
    measure: Measure,
    reference: Reference,
    facts: Mapping[str, object],
) -> ScoreRecord:
    space = measure.space
    n = images_scored(kind, sum(unit.count for unit in units), estimate.blocks)
    kept = kind in NEEDS_REFERENCE_FEATURES
    return ScoreRecord(
        metric=metric_name(kind, space.name, space.sha256, n),
        kind=kind,
        value=estimate.value,
        raw=estimate.raw,
        se=estimate.standard_error,
        low=estimate.low,
        high=estimate.high,
        confidence=estimate.confidence,
        n=n,
        seeds=Seeds(cell.namespace, units[0].first, n),
        reference_n=len(reference.features()) if kept else reference.n,
        texts=measure.texts_sha256 if kind == "clip_score" else "",
        blocks=estimate.blocks,
        pseudo_values=estimate.pseudo_values,
        **facts,  # type: ignore[arg-type]
    )


def _hardware(units: Sequence[Hardware], reference: Iterable[Hardware]) -> dict[str, str]:
    """What the score was computed on; `mixed` says so where equal inputs may give unequal bits."""
    of_reference = frozenset(reference)
    kinds = sorted({*units, *of_reference})
    facts = {
        "device": " | ".join(sorted({kind.device for kind in kinds})),
        "threads": " | ".join(sorted({str(kind.threads) for kind in kinds})),
        "build": " | ".join(sorted({kind.build for kind in kinds})),
    }
    if len(kinds) > 1:
        count = Counter(units)
        facts["mixed"] = "; ".join(
            f"{_share(count[kind], kind in of_reference)} on {kind.device}, {kind.build}"
            for kind in kinds
        )
    return facts


def _share(units: int, reference: bool) -> str:
    """What was computed on one kind of hardware."""
    parts = [f"{units} units"] * (units > 0) + ["the reference"] * reference
    return " and ".join(parts)
