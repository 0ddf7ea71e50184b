"""Whether a trial can give what the search is to optimise: checks of one trial that is valid by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fleetstep.config.amed import AmedExperiment
from fleetstep.config.measure import EvaluateSpec
from fleetstep.config.search_objectives import ObjectiveSpec, RmseObjective, ScoreObjective
from fleetstep.config.specs import Experiment
from fleetstep.config.sweep import SweepSpec

# Fields of a sweep that make its grid; the cell of a trial has one of each.
_GRID = ("runs", "ema", "solvers", "schedules", "guidance", "nfe")


def check_objectives_of(
    trial: Experiment | SweepSpec | AmedExperiment, objectives: Sequence[ObjectiveSpec]
) -> list[str]:
    """Problems of a valid trial under the objectives; [] if it gives each of them one value."""
    scores = [one for one in objectives if isinstance(one, ScoreObjective)]
    if isinstance(trial, SweepSpec):
        problems = [*_more_than_a_cell(trial)]
        return problems + [line for one in scores for line in _of_cell(one, trial)]
    if isinstance(trial, AmedExperiment):
        asked = any(isinstance(one, RmseObjective) for one in objectives)
        if asked and trial.evaluation.latents == 0:
            return [
                "evaluation.latents: 0 makes no report, and rmse is its number; use 256, or 2 or "
                "more"
            ]
        return []
    return [line for one in scores for line in _of_training(one, trial.evaluate)]


def _more_than_a_cell(sweep: SweepSpec) -> Iterator[str]:
    for name in _GRID:
        if (count := len(getattr(sweep, name))) > 1:
            yield f"{name}: a trial scores one cell, and has one of them, got {count}"
    if sweep.snapshots != "last":
        yield f"snapshots: a trial scores one cell; use last, got {sweep.snapshots}"
    if sweep.seed_blocks > 1:
        yield f"seed_blocks: a trial has one score; use 1, got {sweep.seed_blocks}"
    if sweep.screen is not None:
        yield "screen: drops cells of a grid, and a trial scores one; use null"


def _of_cell(score: ScoreObjective, sweep: SweepSpec) -> Iterator[str]:
    """One metric, in the features of one extractor."""
    if score.extractor is None and len(sweep.extractors) > 1:
        yield (
            f"extractors: {len(sweep.extractors)} of them give {score.metric}; say which, by "
            "extractor of the objective"
        )
        return
    extractor = score.extractor or sweep.extractors[0]
    if extractor not in sweep.extractors or score.metric not in sweep.metrics_of(extractor):
        yield (
            f"metrics: {score.metric} of {extractor.kind} is an objective, and is not measured; "
            "add it to metrics and extractors"
        )


def _of_training(score: ScoreObjective, evaluate: EvaluateSpec | None) -> Iterator[str]:
    """One way to draw and measure, of whatever the objective leaves to the section."""
    assert evaluate is not None, "a score gives its trial the section"
    for field, many in (("solver", "solvers"), ("nfe", "nfe"), ("extractor", "extractors")):
        count = len(getattr(evaluate, many))
        if getattr(score, field) is None and count > 1:
            yield (
                f"evaluate.{many}: {count} of them give {score.metric}; say which, by {field} of "
                "the objective"
            )
    if len(evaluate.ema) > 1:
        yield f"evaluate.ema: a trial's score is of one track, got {', '.join(evaluate.ema)}"
    extractor = score.extractor or evaluate.extractors[0]
    if score.metric not in evaluate.metrics_of(extractor):
        yield f"evaluate.metrics: features of {extractor.kind} cannot give {score.metric}"
