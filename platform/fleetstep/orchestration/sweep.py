"""A sweep: networks x solvers x NFE, sampled and measured by a pool of actors, then scored.

The scores are the same bits for one actor or many, in any order, after a kill and after a resume:
image i depends on seed i alone (sampling/generate.py), sums are exact integers
(evaluation/moments.py), and blocks are fixed ranges of ids.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleetstep.config import SweepSpec
from fleetstep.durable import write_json
from fleetstep.evaluation.minimum import Minimum
from fleetstep.orchestration.cell_scores import CellScore, score_cell
from fleetstep.orchestration.cells import Cell, folder
from fleetstep.orchestration.finished_units import Progress
from fleetstep.orchestration.live_scores import Standing
from fleetstep.orchestration.measurable import check_subject
from fleetstep.orchestration.measures import (
    Finished,
    References,
    check_reference,
    measures_of,
    wherever_read,
)
from fleetstep.orchestration.pool import Notice, run_units
from fleetstep.orchestration.pool_actors import Cluster
from fleetstep.orchestration.screening import Screened
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.snapshots import find_snapshots, reference_of, track_of
from fleetstep.orchestration.sweep_file import SweepFiles, minima_of, write_scores
from fleetstep.orchestration.sweep_plan import (
    Rules,
    Subject,
    SweepPlan,
    plan_sweep,
    refuse_latents,
)
from fleetstep.orchestration.sweep_run import SweepRun
from fleetstep.orchestration.sweep_solvers import Setting, settings_of
from fleetstep.orchestration.sweep_start import check_start
from fleetstep.orchestration.sweep_worker import build_worker
from fleetstep.orchestration.units import Fault, no_fault
from fleetstep.sampling.spec import AmedSpec, SolverSpec, check_predictor


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep measured, and the file that says so.

    Args:
        plan: without the cells that screening dropped.
        scores: in the order of its cells and seed blocks.
        path: of scores.json.
        dropped: cells that screening left out, and why.
        minima: lowest values over seed blocks.
        page: of the sweep, where one was written.
    """

    plan: SweepPlan
    scores: tuple[CellScore, ...]
    path: Path
    dropped: tuple[Screened, ...] = ()
    minima: Mapping[Cell, tuple[Minimum, ...]] = field(default_factory=dict)
    page: Path | None = None

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
        return {(score.cell.key, score.seed_block): score for score in self.scores}.values()


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told what while a sweep runs; each is called in the driver, in order.

    Args:
        progress: after every unit.
        notice: of actors.
        standings: of all cells, now and then.
        dropped: of the cells that screening leaves out, once.
        score: of each score at the end.
    """

    progress: Callable[[Progress], None] = lambda progress: None
    notice: Callable[[Notice], None] = lambda notice: None
    standings: Callable[[Sequence[Standing]], None] = lambda standings: None
    dropped: Callable[[Sequence[Screened]], None] = lambda dropped: None
    score: Callable[[CellScore], None] = lambda score: None


def plan(spec: SweepSpec) -> SweepPlan:
    """What the sweep will do and what is already done; reads files, starts nothing.

    Raises:
        UsageError: nothing of the grid can be run, the number of samples makes no whole blocks,
            a file of statistics cannot serve, or images cannot be measured as asked.
        SamplingError: a predictor is missing, damaged or changed.
        CheckpointError: a snapshot is missing, damaged, or has no such EMA track.
        DataError: a run's dataset is missing or is not the one it was trained on.
        ExtractorError: an extractor's weights are missing or wrong.
    """
    storage = Path(spec.storage).resolve()
    solvers = tuple(_wherever_read(solver) for solver in spec.solvers)
    measures = measures_of(spec)
    check_reference(spec)
    networks = subjects(spec)
    for network in networks:
        check_subject(spec, measures, network.snapshot, network.reference)
    settings, skipped = settings_of(solvers, spec.nfe, spec.schedules, spec.guidance)
    screen = spec.screen
    return plan_sweep(
        networks,
        settings,
        skipped,
        Rules(
            samples=spec.samples,
            seed_blocks=spec.seed_blocks,
            namespace=spec.namespace,
            labels=spec.labels,
            batch=spec.batch,
            dtype=spec.dtype,
            quantisation=spec.quantisation,
            teacher=None if screen is None else Setting(screen.teacher, screen.teacher_nfe),
        ),
        finished=Finished(storage, measures, spec.pictures),
    )


def subjects(spec: SweepSpec) -> list[Subject]:
    """The networks of a sweep, with their references.

    Raises:
        UsageError, CheckpointError, DataError: as `plan`.
    """
    found: dict[Subject, None] = {}
    for track in spec.ema:
        snapshots = find_snapshots(spec.runs, which=spec.snapshots, track=track)
        refuse_latents(snapshots)
        for snapshot in snapshots:
            against = (
                reference_of(snapshot, spec.reference_split) if spec.reference is None else None
            )
            # An exact denoiser has no tracks, and is there once.
            named = track_of(snapshot, track)
            found[Subject(snapshot=snapshot, track=named, reference=against)] = None
    return list(found)


def _wherever_read(solver: SolverSpec) -> SolverSpec:
    """The same solver in an actor's folder; a predictor that actors would refuse is refused
    here.
    """
    if not isinstance(solver, AmedSpec):
        return solver
    predictor = Path(solver.predictor).resolve()
    check_predictor(predictor)
    return solver.model_copy(update={"predictor": str(predictor)})


def sweep(
    spec: SweepSpec,
    work: SweepPlan,
    *,
    listener: Listener | None = None,
    fault: Fault = no_fault,
    cluster: Cluster | None = None,
) -> SweepResult:
    """Run what remains of `work`, score every cell, write `scores.json`.

    Interrupting it loses at most one unit an actor; starting it again goes on from there.

    Args:
        spec: the sweep's configuration.
        work: from `plan(spec)`.
        listener: progress, notices of the pool, and scores as they are computed.
        fault: called in the actors at the points of a unit's write; for tests.
        cluster: in place of Ray; for tests.

    Raises:
        UsageError: the storage cannot be written, or a sweep of this name is running.
        ResourceError: the pool cannot be placed.
        PoolError: a unit failed, or actors died too often.
    """
    listener = listener or Listener()
    storage = Path(spec.storage).resolve()
    check_start(spec)
    describe_cells(storage, [*work.cells, *work.teacher_of.values()])
    with SweepRun(
        spec,
        work,
        on_progress=listener.progress,
        on_standings=listener.standings,
        on_dropped=listener.dropped,
    ) as run:
        _work_off(spec, run, listener, fault, cluster)
        run.sampled()

        def scored(found: CellScore) -> None:
            run.scored()
            listener.score(found)

        scores = score(spec, run.work, scored)
        minima = minima_of(scores)
        run.check_bounds(scores)
        files = SweepFiles.of(spec)
        write_scores(files.scores, spec, run.work, scores, dropped=run.dropped, minima=minima)
    return SweepResult(
        plan=run.work, scores=scores, path=files.scores, dropped=run.dropped, minima=minima
    )


def _work_off(
    spec: SweepSpec, run: SweepRun, listener: Listener, fault: Fault, cluster: Cluster | None
) -> None:
    """Have every unit done, on Ray unless a cluster is given; where all are there, by nobody."""
    units = run.units()
    if not units and run.screened:
        return
    with connect(spec.address) if cluster is None else contextlib.nullcontext():
        run_units(
            units,
            functools.partial(
                build_worker,
                Path(spec.storage).resolve(),
                wherever_read(spec.extractors),
                metrics=spec.metrics,
                on_gpu=spec.pool.gpus_per_actor > 0,
                pictures=spec.pictures,
                fault=fault,
            ),
            pool=spec.pool,
            on_result=run.finished,
            on_event=listener.notice,
            on_status=run.pool_changed,
            feed=None if run.screened else run.feed,
            cluster=cluster,
        )


def score(
    spec: SweepSpec, work: SweepPlan, on_score: Callable[[CellScore], None] = lambda score: None
) -> tuple[CellScore, ...]:
    """The scores of a plan whose units are all there, in the order of its cells.

    Raises:
        DataError: a unit is missing or damaged.
    """
    storage = Path(spec.storage).resolve()
    measures = measures_of(spec, spec.protocol or "")
    references = References(storage, spec.reference)
    scores = []
    for cell in work.cells:
        against = [(m, references.of(work.reference_of.get(cell), m.space)) for m in measures]
        for seed_block in range(work.seed_blocks):
            units = work.units_of(cell, seed_block)
            found = score_cell(storage, cell, units, work.blocks, against, seed_block=seed_block)
            scores.append(found)
            on_score(found)
    return tuple(scores)


def describe_cells(storage: Path, cells: Iterable[Cell]) -> None:
    """A folder named by a hash says in words what it holds."""
    for cell in dict.fromkeys(cells):
        path = folder(storage, cell) / "cell.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, cell.identity)
