"""From finished units to scores: exact sums in fixed blocks, whoever did which unit, and when.

Legend: D features.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from fleetstep.errors import DataError
from fleetstep.evaluation.features import Extractor
from fleetstep.evaluation.metrics import Reference, frechet, jackknife, standardised
from fleetstep.evaluation.moments import Moments, load_with_facts, total
from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.spec import metric_name
from fleetstep.orchestration.sweep_plan import (
    Cell,
    ReferenceSet,
    Unit,
    blocks_of,
    folder,
    units_of,
)
from fleetstep.orchestration.sweep_solvers import schedule_label, solver_text
from fleetstep.orchestration.units import Hardware, UnitResult, read_unit

QUANTISATION = "uint8: floor(127.5 x + 128), clipped"


@dataclass(frozen=True, kw_only=True)
class CellScore:
    """A cell and what was measured of it.

    Args:
        cell: what was sampled.
        moments_sha256: digest of the moments of all its features: equal for equal bits.
        calls_made: network calls per image that were made; fewer than the NFE where cells shared
            their first call, and then not the same for every order of the work.
        records: one a metric: the Fréchet distance, then the standardised one.
    """

    cell: Cell
    moments_sha256: str
    calls_made: float
    records: tuple[ScoreRecord, ...]


@dataclass(frozen=True)
class ReferenceScore:
    """The statistics of a reference set, and the hardware its features were computed on."""

    reference: Reference
    hardware: frozenset[Hardware]


def moments_path(storage: Path, reference: ReferenceSet) -> Path:
    """Where a reference set's statistics are kept."""
    return folder(storage, reference) / "moments.safetensors"


def load_reference(storage: Path, reference: ReferenceSet) -> ReferenceScore | None:
    """The statistics of a reference set; None unless they are there, whole, and of this set."""
    try:
        moments, facts = load_with_facts(moments_path(storage, reference))
        hardware = frozenset(Hardware(**values) for values in json.loads(facts["hardware"]))
        identity = json.loads(facts["reference"])
    except (DataError, KeyError, TypeError, ValueError):
        return None
    if identity != reference.identity or moments.n != reference.samples:
        return None
    return ReferenceScore(Reference(_name(reference), moments), hardware)


def close_reference(storage: Path, reference: ReferenceSet) -> ReferenceScore:
    """Add the reference's units up and keep the sum, unless that was done before.

    Raises:
        DataError: a unit is missing or damaged.
    """
    if (found := load_reference(storage, reference)) is not None:
        return found
    units = units_of(reference, reference.samples)
    results = _read_all(storage, units)
    hardware = frozenset(result.hardware for result in results)
    moments = total([Moments.of(result.features) for result in results])
    facts = {
        "reference": json.dumps(reference.identity),
        "hardware": json.dumps([asdict(kind) for kind in sorted(hardware)]),
    }
    moments.save(moments_path(storage, reference), facts)
    for unit in units:
        unit.path(storage).unlink(missing_ok=True)
    return ReferenceScore(Reference(_name(reference), moments), hardware)


def score_cell(
    storage: Path, cell: Cell, samples: int, against: ReferenceScore, extractor: Extractor
) -> CellScore:
    """Fréchet distances of the cell's first `samples` ids, jackknifed over 10 or 20 blocks.

    Raises:
        DataError: a unit is missing or damaged, or the calls that were counted are not the cell's.
    """
    units = units_of(cell, samples)
    results = _read_all(storage, units)
    nfe = _counted(storage, cell, results)
    blocks = _blocks([Moments.of(result.features) for result in results], blocks_of(samples))
    hardware = _hardware([result.hardware for result in results], against.hardware)
    records = tuple(
        _record(cell, nfe, blocks, against.reference, extractor, hardware, is_standardised=flag)
        for flag in (False, True)
    )
    return CellScore(
        cell=cell,
        moments_sha256=total(blocks).digest(),
        calls_made=sum(result.calls_made for result in results) / len(results),
        records=records,
    )


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


def _read_all(storage: Path, units: Iterable[Unit]) -> list[UnitResult]:
    results = []
    for unit in units:
        result = read_unit(unit.path(storage), unit)
        if result is None:
            raise DataError(
                f"{unit} is missing or damaged at {unit.path(storage)}",
                "start the sweep again: this unit is done again, the others are kept",
            )
        results.append(result)
    return results


def _blocks(units: Sequence[Moments], count: int) -> list[Moments]:
    """Consecutive units added up into `count` blocks."""
    size = len(units) // count
    return [total(list(units[start : start + size])) for start in range(0, len(units), size)]


def _record(
    cell: Cell,
    nfe: float,
    blocks: Sequence[Moments],
    reference: Reference,
    extractor: Extractor,
    hardware: Mapping[str, str],
    *,
    is_standardised: bool,
) -> ScoreRecord:
    distance = standardised if is_standardised else frechet
    estimate = jackknife(blocks, functools.partial(distance, reference))
    n = sum(block.n for block in blocks)
    return ScoreRecord(
        metric=metric_name(extractor.name, extractor.digest, n, standardised=is_standardised),
        value=estimate.value,
        raw=estimate.raw,
        se=estimate.standard_error,
        low=estimate.low,
        high=estimate.high,
        confidence=estimate.confidence,
        n=n,
        blocks=estimate.blocks,
        pseudo_values=estimate.pseudo_values,
        seeds=Seeds(cell.namespace, 0, n),
        run=cell.snapshot.run,
        checkpoint=cell.snapshot.digest,
        images_seen=cell.snapshot.images_seen,
        ema=cell.track,
        solver=solver_text(cell.solver),
        schedule=schedule_label(cell.solver),
        nfe=nfe,
        adaptive=cell.nfe is None,
        labels=cell.labels,
        extractor=extractor.name,
        extractor_sha256=extractor.digest,
        preprocess=extractor.preprocess,
        quantisation=QUANTISATION,
        reference=reference.name,
        reference_sha256=reference.sha256,
        reference_n=reference.n,
        versions={name: version(name) for name in ("fleetstep", "torch", "numpy")},
        hardware=hardware,
    )


def _hardware(units: Sequence[Hardware], reference: Iterable[Hardware]) -> dict[str, str]:
    """What the score was computed on; `mixed` says so where equal inputs may give unequal bits."""
    kinds = sorted({*units, *reference})
    facts = {
        "device": " | ".join(sorted({kind.device for kind in kinds})),
        "threads": " | ".join(sorted({str(kind.threads) for kind in kinds})),
        "build": " | ".join(sorted({kind.build for kind in kinds})),
    }
    if len(kinds) > 1:
        count = Counter(units)
        facts["mixed"] = "; ".join(
            f"{count[kind]} units on {kind.device}, {kind.build}" for kind in kinds
        )
    return facts


def _name(reference: ReferenceSet) -> str:
    return f"{reference.data.name}/{reference.split}"
