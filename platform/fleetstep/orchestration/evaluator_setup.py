"""The evaluator of an experiment: what it scores, how, and where the scores go."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from fleetstep.config import EvaluateSpec, Experiment, MeasureSpec, PoolSpec, SweepSpec
from fleetstep.data.manifest import Manifest
from fleetstep.durable import sha256_of
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.autoscaling import RayAutoscaler
from fleetstep.orchestration.cell_scores import CellScore, Measure
from fleetstep.orchestration.due_snapshots import DueSnapshots
from fleetstep.orchestration.evaluator import NICENESS, Evaluator, Scoring
from fleetstep.orchestration.measurable import check_size, check_texts
from fleetstep.orchestration.measures import check_reference, measures_of, wherever_read
from fleetstep.orchestration.placement import check_placement
from fleetstep.orchestration.pool import run_units
from fleetstep.orchestration.pool_status import StatusFile
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.session import alive_nodes
from fleetstep.orchestration.snapshot_scores import Asked, SnapshotScores, curve_points
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_records import record_score
from fleetstep.orchestration.sweep_worker import build_worker
from fleetstep.orchestration.tolerant_worker import build_tolerant
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.trainer import Say
from fleetstep.spec import span_images
from fleetstep.training.checkpoint_format import RunFacts
from fleetstep.training.spec import Saves

_SHARED = (
    *MeasureSpec.model_fields,
    "solvers",
    "nfe",
    "ema",
    "samples",
    "labels",
    "batch",
    "pool",
)


def check_evaluation(evaluate: EvaluateSpec, manifest: Manifest) -> list[Measure]:
    """What is measured, once all that it needs was found: hours before the first score.

    Args:
        manifest: of the dataset that is trained on.

    Raises:
        ExtractorError: an extractor's weights are missing or wrong.
        DataError: the reference's file is missing, damaged, or not one of statistics.
        UsageError: the reference cannot serve these metrics and features, or the texts are not
            those of the dataset's classes.
    """
    check_reference(evaluate)
    if evaluate.reference is None:
        split = evaluate.reference_split
        check_size(evaluate.metrics, f"split {split} of {manifest.name}", manifest.samples(split))
    measures = measures_of(evaluate)
    check_texts(measures, manifest.name, manifest.classes)
    return measures


def check_pool(pool: PoolSpec) -> None:
    """Refuse actors of which the cluster can never place one; machines that an autoscaler may add
    are the pool's affair.

    Raises:
        ResourceError: with what is asked for and what there is.
    """
    if RayAutoscaler(cpus=pool.cpus_per_actor, gpus=pool.gpus_per_actor).grows():
        return
    check_placement(
        alive_nodes(),
        actors=1,
        cpus=pool.cpus_per_actor,
        gpus=pool.gpus_per_actor,
        what="evaluation actors",
    )


def evaluator_of(
    experiment: Experiment,
    folder: RunFolder,
    facts: RunFacts,
    measures: Sequence[Measure],
    tracker: Tracker | None,
    run_id: str,
    say: Say | None,
) -> Evaluator | None:
    """What scores the experiment's snapshots; None if it asks for no scores. Without a tracker
    the scores stay in the run's folder.
    """
    evaluate = experiment.evaluate
    if evaluate is None:
        return None
    root = folder.root / "evaluation"
    root.mkdir(parents=True, exist_ok=True)
    training = experiment.training
    return Evaluator(
        DueSnapshots(
            folder.snapshots,
            facts.identity,
            planned=Saves.of(training).snapshots(),
            every=span_images(evaluate.every, training.images),
        ),
        _scoring(experiment, evaluate, tracker, run_id),
        SnapshotScores(root, Asked.of(evaluate, measures, facts.identity, run_id)),
        StatusFile(root / "status.json", experiment.name),
        say,
    )


def _scoring(
    experiment: Experiment, evaluate: EvaluateSpec, tracker: Tracker | None, run_id: str
) -> Scoring:
    spec = _sweep_of(experiment, evaluate, experiment.folder)
    storage = Path(spec.storage).resolve()
    reference_name = _reference_name(evaluate)
    worker = functools.partial(
        build_worker,
        storage,
        wherever_read(spec.extractors),
        metrics=spec.metrics,
        on_gpu=spec.pool.gpus_per_actor > 0,
        pictures=spec.pictures,
    )

    def plan(snapshot: Path) -> SweepPlan:
        found = sweeping.plan(_sweep_of(experiment, evaluate, snapshot))
        sweeping.describe_cells(storage, found.cells)
        return found

    def record(images_seen: int, plan: SweepPlan, scores: Sequence[CellScore]) -> None:
        if tracker is None:
            return
        for score in scores:
            known = plan.reference_of.get(score.cell)
            reference = score.records[0].reference_sha256 if known is None else known.key
            record_score(tracker, score, reference=reference, parent=run_id)
            points = curve_points(score, reference_name)
            tracker.log_metrics(run_id, images_seen, points)

    return Scoring(
        plan=plan,
        run=functools.partial(
            run_units,
            (),
            functools.partial(build_tolerant, worker),
            pool=evaluate.pool,
            nice=NICENESS,
        ),
        score=functools.partial(sweeping.score, spec),
        record=record,
    )


def _sweep_of(experiment: Experiment, evaluate: EvaluateSpec, source: Path) -> SweepSpec:
    """The sweep that scores `source` alone: one of the same settings later finds its units."""
    return SweepSpec(
        name=experiment.name,
        runs=(str(source),),
        storage=experiment.storage,
        guidance=(evaluate.guidance,),
        tracking=experiment.tracking,
        **{field: getattr(evaluate, field) for field in _SHARED},
    )


def _reference_name(evaluate: EvaluateSpec) -> str:
    """What the curves' names say of the reference: nothing of the usual one."""
    if evaluate.reference is not None:
        path = Path(evaluate.reference)
        return f"{path.stem}-{sha256_of(path)[:8]}"
    return "" if evaluate.reference_split == "train" else evaluate.reference_split
