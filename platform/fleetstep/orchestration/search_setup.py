"""From a search and what a trial is to do to the trial itself: its experiment, its folder, where
it starts, and how its objectives are read. Runs in the trial's own process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import (
    EvaluateSpec,
    Experiment,
    ScoreObjective,
    SearchSpec,
    trial_spec,
)
from fleetstep.orchestration.cell_scores import Measure
from fleetstep.orchestration.due_snapshots import planned_points
from fleetstep.orchestration.evaluator_setup import check_evaluation, evaluator_of
from fleetstep.orchestration.fit import check_start, train_workers
from fleetstep.orchestration.fit_worker import Assignment, facts_of
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.search_exploit import adopt
from fleetstep.orchestration.search_records import Goal, Life, Origin, SearchFolder
from fleetstep.orchestration.search_schedule import TrialJob
from fleetstep.orchestration.search_scores import EVALUATION, Scores, Wanted
from fleetstep.orchestration.search_trial import Curves, Reader, TrainTrial
from fleetstep.orchestration.sweep_solvers import solver_text
from fleetstep.training.checkpoint import no_event
from fleetstep.training.checkpoint_format import RunFacts, open_checkpoint
from fleetstep.training.snapshot import mark_reported, write_snapshot
from fleetstep.training.spec import Saves

_CURVES = ("held_out", "images_seen", "wall_s")


@dataclass(frozen=True)
class TrialMaker:
    """Makes the trials of a search; picklable, so that it reaches their processes.

    Attributes:
        search: checked.
        folder: of the search, absolute.
        at: the driver's working folder, from which the search's relative paths lead.
    """

    search: SearchSpec
    folder: SearchFolder
    at: Path = field(default_factory=Path.cwd)

    def __call__(self, job: TrialJob) -> TrainTrial:
        """The trial, ready to be asked for its first point; nothing of it runs yet.

        Raises:
            FleetstepError: it cannot start, now or ever.
        """
        # A process of its own. Where the folder is not, relative paths are refused one by one.
        with contextlib.suppress(OSError):
            os.chdir(self.at)
        return _train_trial(self.search, self.folder, job)


def goals_of(search: SearchSpec) -> tuple[Goal, ...]:
    """The search's objectives, the deciding one first."""
    return tuple(Goal(one.name, one.goal) for one in search.objectives)


def experiment_of(search: SearchSpec, folder: SearchFolder, trial: str, life: Life) -> Experiment:
    """The experiment of a trial's life, with absolute paths.

    A population's checkpoints are removed by the search alone: any of them may still be copied.
    """
    name = folder.run_name(trial, life.index)
    spec = trial_spec(search, life.assignment, name=name, storage=str(folder.trials))
    assert isinstance(spec, Experiment)
    if search.scheduler.kind == "pbt":
        training = spec.training.model_copy(update={"keep_checkpoints": None})
        spec = spec.model_copy(update={"training": training})
    return config.with_absolute_paths(spec)


def points_of(experiment: Experiment, *, scored: bool) -> tuple[int, ...]:
    """Images seen at which a trial reports: its snapshots but the untrained network's; of those,
    if a score counts, the ones that are scored.
    """
    if scored and experiment.evaluate is not None:
        points = planned_points(experiment.training, experiment.evaluate)
    else:
        points = tuple(sorted(Saves.of(experiment.training).snapshots()))
    return tuple(point for point in points if point > 0)


def _train_trial(search: SearchSpec, folder: SearchFolder, job: TrialJob) -> TrainTrial:
    experiment = experiment_of(search, folder, job.trial, job.life)
    run = RunFolder(experiment.folder)
    manifest = config.manifest_of(experiment)
    facts = facts_of(experiment, manifest)
    origin = job.life.origin
    if origin is not None:
        _take_over(folder, run, facts, origin)
    check_start(run, "auto", facts, None)
    run.prepare(config.dump(experiment))
    evaluate = experiment.evaluate
    measures = [] if evaluate is None else check_evaluation(evaluate, manifest)
    work = Assignment(experiment.model_dump_json(), "", None, str(run.root.resolve()), no_event)

    def train() -> Mapping[str, Any]:
        evaluator = evaluator_of(experiment, run, facts, measures, None, "", None)
        with evaluator or contextlib.nullcontext():
            outcome = train_workers(experiment, work, run, None)
            if evaluator is not None and outcome["finished"]:
                evaluator.finish()
        return outcome

    scores = [one for one in search.objectives if isinstance(one, ScoreObjective)]
    names: dict[str, str] = {one.kind: one.name for one in search.objectives}
    first = 0 if origin is None else origin.images_seen
    readers: list[Reader] = [
        Curves(run.spool, {kind: names[kind] for kind in _CURVES if kind in names}, first)
    ]
    if evaluate is not None and scores:
        readers.append(
            Scores(run.root / EVALUATION, tuple(_wanted(s, evaluate, measures) for s in scores))
        )
    return TrainTrial(
        run,
        points_of(experiment, scored=bool(scores)),
        [one.name for one in search.objectives],
        readers,
        train,
        asked_to_stop=folder.stop.exists,
    )


def _take_over(folder: SearchFolder, run: RunFolder, facts: RunFacts, origin: Origin) -> None:
    """Begin with another trial's checkpoint, unless this life has begun already. Its snapshot is
    made here: what the workers would say of it at their start was said by the donor.
    """
    if any(run.checkpoints.glob("step-*")):
        return
    donor = folder.run(origin.trial, origin.life)
    copied = adopt(donor.checkpoints, run.checkpoints, facts, origin)
    mark_reported(write_snapshot(run.snapshots, open_checkpoint(copied)))


def _wanted(
    objective: ScoreObjective, evaluate: EvaluateSpec, measures: Sequence[Measure]
) -> Wanted:
    """Which of a snapshot's scores an objective is."""
    filled = objective.filled(evaluate)
    assert filled.solver is not None
    assert filled.extractor is not None
    space = measures[evaluate.extractors.index(filled.extractor)].space
    return Wanted(
        objective.name,
        filled.metric,
        space.name,
        solver_text(filled.solver),
        filled.nfe,
        evaluate.ema[0],
    )
