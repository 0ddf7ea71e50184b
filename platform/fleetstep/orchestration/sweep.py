"""A sweep: snapshots x solvers x NFE, sampled and measured by a pool of actors, then scored.

The scores are the same bits for one actor or many, in any order, after a kill and after a resume:
image i depends on seed i alone (sampling/generate.py), sums are exact integers
(evaluation/moments.py), and blocks are fixed ranges of ids.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep.config import SweepSpec
from fleetstep.durable import write_json
from fleetstep.evaluation.features import load_extractor
from fleetstep.orchestration.cell_scores import (
    CellScore,
    close_reference,
    load_reference,
    score_cell,
)
from fleetstep.orchestration.pool import Notice, run_units
from fleetstep.orchestration.snapshots import find_snapshots, reference_of
from fleetstep.orchestration.sweep_plan import (
    ReferenceSet,
    SweepPlan,
    Unit,
    folder,
    network_calls,
    plan_sweep,
    refuse_latents,
)
from fleetstep.orchestration.sweep_worker import UnitSummary, build_worker
from fleetstep.orchestration.units import Fault, no_fault, read_unit
from fleetstep.sampling.spec import AmedSpec, SolverSpec, check_predictor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sweep is.

    Args:
        units_done, units: of the plan, those found finished included.
        calls_done, calls: network calls on one image, likewise, as `network_calls` counts them.
        seconds: since this sweep was started.
        calls_per_s: of this start alone; 0 until one unit is done.
        eta_s: seconds left at that rate; None while it is not known.
    """

    units_done: int
    units: int
    calls_done: int
    calls: int
    seconds: float
    calls_per_s: float
    eta_s: float | None


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep measured, and the file that says so."""

    plan: SweepPlan
    scores: tuple[CellScore, ...]
    path: Path

    @property
    def calls_counted(self) -> float:
        """Network calls on one image as the cells' NFE counts them."""
        return sum(self.plan.samples * score.records[0].nfe for score in self._sampled())

    @property
    def calls_made(self) -> float:
        """Those that were made: a first call that cells share counts once."""
        return sum(self.plan.samples * score.calls_made for score in self._sampled())

    def _sampled(self) -> Iterable[CellScore]:
        """One score for each cell whose samples were drawn: runs of equal weights share them."""
        return {score.cell.key: score for score in self.scores}.values()


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told what while a sweep runs; each is called in the driver, in order."""

    progress: Callable[[Progress], None] = lambda progress: None
    notice: Callable[[Notice], None] = lambda notice: None
    score: Callable[[CellScore], None] = lambda score: None


def plan(spec: SweepSpec) -> SweepPlan:
    """What the sweep will do and what is already done; reads files, starts nothing.

    Raises:
        UsageError: nothing of the grid can be run, or the number of samples makes no whole blocks.
        SamplingError: a predictor is missing, damaged or changed.
        CheckpointError: a snapshot is missing, damaged, or has no such EMA track.
        DataError: a run's dataset is missing or is not the one it was trained on.
        ExtractorError: the extractor's weights are missing or wrong.
    """
    storage = Path(spec.storage).resolve()
    solvers = tuple(_wherever_read(solver) for solver in spec.solvers)
    extractor = load_extractor(spec.extractor)
    found = find_snapshots(spec.runs, which=spec.snapshots, track=spec.ema)
    refuse_latents(found)
    snapshots = [(s, reference_of(s, spec.reference_split, extractor)) for s in found]
    return plan_sweep(
        snapshots,
        solvers=solvers,
        nfe=spec.nfe,
        samples=spec.samples,
        track=spec.ema,
        namespace=spec.namespace,
        labels=spec.labels,
        batch=spec.batch,
        extractor=extractor.digest,
        dtype=spec.dtype,
        finished=functools.partial(_is_finished, storage),
    )


def _wherever_read(solver: SolverSpec) -> SolverSpec:
    """The same solver in an actor's folder; a predictor that actors would refuse is refused
    here.
    """
    if not isinstance(solver, AmedSpec):
        return solver
    folder = Path(solver.predictor).resolve()
    check_predictor(folder)
    return solver.model_copy(update={"predictor": str(folder)})


def _is_finished(storage: Path, unit: Unit) -> bool:
    if isinstance(unit.source, ReferenceSet) and load_reference(storage, unit.source) is not None:
        return True
    return read_unit(unit.path(storage), unit) is not None


def sweep(
    spec: SweepSpec,
    work: SweepPlan,
    *,
    listener: Listener | None = None,
    fault: Fault = no_fault,
) -> SweepResult:
    """Run what remains of `work` on the connected Ray, score every cell, write `scores.json`.

    Interrupting it loses at most one unit an actor; starting it again goes on from there.

    Args:
        spec: the sweep's configuration.
        work: from `plan(spec)`.
        listener: progress, notices of the pool, and scores as they are computed.
        fault: called in the actors at the points of a unit's write; for tests.

    Raises:
        ResourceError: the pool cannot be placed.
        PoolError: a unit failed, or actors died too often.
    """
    listener = listener or Listener()
    storage = Path(spec.storage).resolve()
    _describe_cells(storage, work)
    progress = _Progress(work, listener.progress)
    run_units(
        work.remaining,
        functools.partial(
            build_worker, storage, spec.extractor, on_gpu=spec.gpus_per_actor > 0, fault=fault
        ),
        actors=spec.actors,
        cpus_per_actor=spec.cpus_per_actor,
        gpus_per_actor=spec.gpus_per_actor,
        on_result=progress.finished,
        on_event=listener.notice,
    )
    scores = score(spec, work, listener.score)
    path = storage / "sweeps" / spec.name / "scores.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, _as_json(spec, work, scores))
    return SweepResult(plan=work, scores=scores, path=path)


def score(
    spec: SweepSpec, work: SweepPlan, on_score: Callable[[CellScore], None] = lambda score: None
) -> tuple[CellScore, ...]:
    """The scores of a plan whose units are all there, in the order of its cells.

    Raises:
        DataError: a unit is missing or damaged.
    """
    storage = Path(spec.storage).resolve()
    extractor = load_extractor(spec.extractor)
    references = {ref.key: close_reference(storage, ref) for ref in work.references}
    scores = []
    for cell in work.cells:
        against = references[work.reference_of[cell].key]
        scores.append(score_cell(storage, cell, work.samples, against, extractor))
        on_score(scores[-1])
    return tuple(scores)


class _Progress:
    """Counts finished units and passes rate and time left on."""

    def __init__(self, work: SweepPlan, listen: Callable[[Progress], None]) -> None:
        self._work, self._listen = work, listen
        self._units = len(work.finished)
        self._found = network_calls(work.finished)
        self._calls = 0
        self._started = time.monotonic()

    def finished(self, unit: Unit, summary: UnitSummary) -> None:
        self._units += 1
        self._calls += network_calls([unit])
        seconds = time.monotonic() - self._started
        rate = self._calls / seconds if seconds > 0 else 0.0
        left = self._work.network_calls - self._found - self._calls
        self._listen(
            Progress(
                units_done=self._units,
                units=len(self._work.units),
                calls_done=self._found + self._calls,
                calls=self._work.network_calls,
                seconds=seconds,
                calls_per_s=rate,
                eta_s=left / rate if rate > 0 else None,
            )
        )


def _describe_cells(storage: Path, work: SweepPlan) -> None:
    """A folder named by a hash says in words what it holds."""
    for cell in work.cells:
        path = folder(storage, cell) / "cell.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, cell.identity)


def _as_json(spec: SweepSpec, work: SweepPlan, scores: tuple[CellScore, ...]) -> dict[str, Any]:
    return {
        "format": 1,
        "sweep": spec.model_dump(mode="json", exclude={"tracking", "address"}),
        "skipped": [
            {"solver": pair.solver, "nfe": pair.nfe, "reason": pair.reason}
            for pair in work.skipped
        ],
        "cells": [
            {
                "key": score.cell.key,
                "moments_sha256": score.moments_sha256,
                "calls_made": score.calls_made,
                "scores": [record.to_dict() for record in score.records],
            }
            for score in scores
        ],
    }
