"""Cross-checks of what is sampled and scored: a sweep, and a run's evaluation while it trains.

Each returns problems; a check runs on whatever parts it needs are valid.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from pydantic import ValidationError

from fleetstep.config.measure import EvaluateSpec
from fleetstep.config.sweep import ScreenSpec
from fleetstep.data.spec import DataSpec
from fleetstep.errors import SamplingError
from fleetstep.evaluation.spec import IMAGE_CHANNELS, too_large
from fleetstep.sampling.spec import AmedSpec, GuidanceSpec, ScheduleSpec, SolverSpec
from fleetstep.spec import span_images
from fleetstep.training.spec import TrainingSpec


def check_sweep(parts: Mapping[str, Any]) -> list[str]:
    """A sweep's grid: something of it can be reached, nothing is there twice."""
    problems: list[str] = []
    if {"solvers", "nfe", "schedules", "guidance"} <= parts.keys():
        problems += _check_reach(
            parts["solvers"], parts["nfe"], parts["schedules"], parts["guidance"]
        )
    if "solvers" in parts:
        problems += _check_duplicates(parts["solvers"])
        problems += _missing_predictors(parts["solvers"])
    if (screen := parts.get("screen")) is not None:
        problems += _check_teacher(screen)
        if {"solvers", "nfe", "schedules", "guidance"} <= parts.keys():
            problems += _check_judged(screen, _deterministic_points(parts))
    for name in ("nfe", "schedules", "guidance", "ema", "runs"):
        problems += _repeated(name, parts.get(name, ()))
    return problems


def check_evaluation(parts: Mapping[str, Any]) -> list[str]:
    """A run's `evaluate` section against itself, its training and its dataset.

    The dataset's facts are checked with the other images, in `check_evaluated_images`.
    """
    evaluate = parts.get("evaluate")
    if evaluate is None:
        return []
    problems = [*_check_evaluated_solvers(evaluate)]
    for name in ("nfe", "ema"):
        problems += [f"evaluate.{line}" for line in _repeated(name, getattr(evaluate, name))]
    if "training" in parts:
        problems += _check_evaluated_training(evaluate, parts["training"])
    return problems


def check_evaluated_images(
    evaluate: EvaluateSpec,
    data: DataSpec,
    classes: int,
    channels: int,
    resolution: int,
    splits: Iterable[str],
) -> list[str]:
    """A run's `evaluate` section against its dataset.

    Args:
        evaluate, data: sections of the experiment.
        classes, channels, resolution: of the dataset.
        splits: that it has; empty while it is not there.
    """
    problems = []
    if channels not in IMAGE_CHANNELS:
        problems.append(
            f"evaluate: the {channels} channels of the data are latents, and features are of "
            "images with 1 or 3 channels; use evaluate: null"
        )
    for index, extractor in enumerate(evaluate.extractors):
        if reason := too_large((resolution, resolution), extractor):
            problems.append(
                f"evaluate.extractors.{index}: {reason}; use another extractor (inception, "
                "dinov2, clip) or evaluate: null"
            )
    if evaluate.guidance is not None and not classes:
        problems.append(
            f"evaluate.guidance: scale {evaluate.guidance.scale:g} needs class labels, and the "
            "dataset has no classes; use guidance: null"
        )
    known = list(splits)
    if known and evaluate.reference is None and evaluate.reference_split not in known:
        problems.append(
            f"evaluate.reference_split: {evaluate.reference_split!r} is not a split of "
            f"{data.path}; it has {', '.join(known)}"
        )
    return problems


def unreachable(solver: SolverSpec, nfe: int, guidance: GuidanceSpec | None = None) -> list[str]:
    """Why `solver` cannot make exactly `nfe` network calls; empty if it can."""
    try:
        solver.points_for(nfe, 1 if guidance is None else guidance.calls)
    except SamplingError as error:
        return [f"{error.message}; {error.remedy}"]
    return []


def _check_reach(
    solvers: Sequence[SolverSpec],
    nfes: Sequence[int],
    schedules: Sequence[ScheduleSpec | None],
    guidances: Sequence[GuidanceSpec | None],
) -> list[str]:
    """Single points out of reach are skipped, with their reasons; a whole grid is a mistake."""
    reasons = []
    for solver in solvers:
        for schedule in schedules:
            walked = _on(solver, schedule)
            if walked is None:
                continue
            if not _takes_nfe(walked):
                return []
            for guidance in guidances:
                for nfe in nfes:
                    found = unreachable(walked, nfe, guidance)
                    if not found:
                        return []
                    reasons += found
    why = reasons[0] if reasons else "no solver takes any of the schedules; use schedules: [null]"
    return [f"nfe: no solver reaches any of {list(nfes)}; {why}"]


def _check_duplicates(solvers: Sequence[SolverSpec]) -> list[str]:
    """One solver under two names; that `schedules` gives a solver the one it has is no mistake."""
    names = [_name(solver) for solver in solvers]
    return [f"solvers: {name} is listed twice" for name in _twice(names)]


def _twice(names: Sequence[str]) -> Iterator[str]:
    return (name for name, times in sorted(Counter(names).items()) if times > 1)


def _on(solver: SolverSpec, schedule: ScheduleSpec | None) -> SolverSpec | None:
    """The solver with that schedule; None where it cannot have it, which skips the pair."""
    if schedule is None:
        return solver
    if solver.adaptive or solver.learned:
        return None
    try:
        return type(solver).model_validate(solver.model_dump() | {"schedule": schedule})
    except ValidationError:
        return None


def _name(solver: SolverSpec) -> str:
    """Its settings, one text for those that mean the same: naming a default changes nothing."""
    settings = solver.model_dump(mode="json")
    if solver.schedule == solver.default_schedule:
        settings["schedule"] = None
    return json.dumps(settings)


def _takes_nfe(solver: SolverSpec) -> bool:
    """Whether its number of calls is chosen by the sweep."""
    return not (
        solver.adaptive or solver.learned or solver.chosen_schedule.fixed_points is not None
    )


def _missing_predictors(solvers: Sequence[SolverSpec]) -> list[str]:
    problems = []
    for index, solver in enumerate(solvers):
        if isinstance(solver, AmedSpec):
            try:
                _ = solver.facts
            except SamplingError as error:
                problems.append(f"solvers.{index}: {error.message}; {error.remedy}")
    return problems


def _check_teacher(screen: ScreenSpec) -> list[str]:
    found = unreachable(screen.teacher, screen.teacher_nfe)
    return [f"screen.teacher_nfe: {line}" for line in found]


def _deterministic_points(parts: Mapping[str, Any]) -> Iterator[tuple[int, SolverSpec]]:
    """Evaluations of the denoiser in each cell that a teacher judges: guidance's calls are left
    out, as they are of the teacher's.
    """
    for solver in parts["solvers"]:
        for schedule in parts["schedules"]:
            walked = _on(solver, schedule)
            if walked is None or walked.adaptive or walked.stochastic:
                continue
            if not _takes_nfe(walked):
                # A predictor that is not there is named elsewhere.
                with contextlib.suppress(SamplingError):
                    yield walked.nfe_for(walked.chosen_schedule.fixed_points or 0), walked
                continue
            for guidance in parts["guidance"]:
                each = 1 if guidance is None else guidance.calls
                for nfe in parts["nfe"]:
                    if not unreachable(walked, nfe, guidance):
                        yield nfe // each, walked


def _check_judged(screen: ScreenSpec, points: Iterable[tuple[int, SolverSpec]]) -> list[str]:
    """The teacher stands for the exact solution: of fewer calls than a cell it would judge better
    ones as worse.
    """
    most, solver = max(points, key=lambda point: point[0], default=(0, None))
    if solver is None or screen.teacher_nfe >= most:
        return []
    remedy = "leave out the cells of more calls"
    if _takes_nfe(screen.teacher):
        enough = next(nfe for nfe in count(most) if not unreachable(screen.teacher, nfe))
        remedy = f"use {enough} or more"
    return [
        f"screen.teacher_nfe: must be no fewer calls than the {most} of {solver.label}, which it "
        f"judges, got {screen.teacher_nfe}; {remedy}"
    ]


def _repeated(name: str, values: Sequence[Any]) -> list[str]:
    """Values that stand in a list more than once."""
    texts = [
        json.dumps(value.model_dump(mode="json")) if hasattr(value, "model_dump") else str(value)
        for value in values
    ]
    return [f"{name}: {text} is listed twice" for text in _twice(texts)]


def _check_evaluated_solvers(evaluate: EvaluateSpec) -> Iterator[str]:
    for index, solver in enumerate(evaluate.solvers):
        where = f"evaluate.solvers.{index}"
        if solver.learned:
            yield (
                f"{where}: a predictor serves the snapshot it was trained for, and kind "
                f"{solver.kind} cannot draw a network in training; use another kind"
            )
        elif solver.adaptive:
            yield (
                f"{where}: kind {solver.kind} chooses its own number of network calls, so "
                "scores would cost what nobody can plan; use another kind"
            )
        else:
            for nfe in evaluate.nfe if _takes_nfe(solver) else ():
                for line in unreachable(solver, nfe, evaluate.guidance):
                    yield f"evaluate.nfe: {line}"
    yield from (f"evaluate.{line}" for line in _check_duplicates(evaluate.solvers))


def _check_evaluated_training(evaluate: EvaluateSpec, training: TrainingSpec) -> list[str]:
    problems = [
        f"evaluate.ema: {track!r} is not an EMA track; training.ema has {', '.join(training.ema)}"
        for track in evaluate.ema
        if track not in training.ema
    ]
    every = span_images(evaluate.every, training.images)
    if not 0 < every <= training.images:
        problems.append(
            f"evaluate.every: {evaluate.every} is {every:,} images, and must lie in 1 .. "
            f"training.images = {training.images:,}; for no scores use evaluate: null"
        )
    return problems
