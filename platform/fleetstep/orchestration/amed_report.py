"""What a trained predictor gains: root mean squared errors per pixel to a fine reference
trajectory on held-out latents, of the student with it, of its own base solver at the same cost,
and of the teacher.

Legend: B batch, C channels, H W pixels, N points of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import TypeAdapter
from torch import Tensor

from fleetstep.config import AmedEvaluationSpec
from fleetstep.reporting.amed import Contender, Spread
from fleetstep.sampling.amed.files import load_predictor
from fleetstep.sampling.amed.latents import training_latents
from fleetstep.sampling.denoiser import Denoiser, FeatureDenoiser
from fleetstep.sampling.guidance import Guided, calls_per_evaluation
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    AmedSpec,
    AmedStudentSpec,
    Dpm2Spec,
    HeunAbSpec,
    PredictorFacts,
    SolverFacts,
    SolverSpec,
)
from fleetstep.sampling.spec.amed_training import AmedTrainingSpec
from fleetstep.sampling.trajectory import sample
from fleetstep.training.group import Group

_LEARNED = ("r", "c", "a")


@dataclass(frozen=True)
class AmedReport:
    """What a predictor gains.

    Attributes:
        latents: how many were held out.
        reference: the solver of the reference, and its network calls per image.
        levels: the schedule's.
        contenders: base solver, student with the predictor, teacher; and, where the first call is
            analytical and the base can do without it, the base that spends all calls on steps: of
            it the sample's error alone, for it stops at other levels.
        learned: by output, one spread over images for each step.
        predictor: hash of its weights.
    """

    latents: int
    reference: str
    levels: tuple[float, ...]
    contenders: tuple[Contender, ...]
    learned: dict[str, tuple[Spread, ...]]
    predictor: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """RMSE per pixel of the samples, for the tracker."""
        roles = ("base", "amed", "teacher", "base_without_afs")
        return {
            f"report/rmse_{role}": contender.rmse[-1]
            for role, contender in zip(roles, self.contenders, strict=False)
        }


def read_report(file: Path) -> AmedReport:
    """What a worker wrote of `AmedReport.as_dict`."""
    return TypeAdapter(AmedReport).validate_json(file.read_bytes())


@dataclass(frozen=True)
class _Walker:
    """A sampler as the report compares it: levels to walk, of which every `stride`-th counts."""

    name: str
    solver: SolverSpec
    levels: Tensor
    stride: int

    @property
    def stops(self) -> int:
        """Levels after the first that count."""
        return (len(self.levels) - 1) // self.stride


def make_report(
    denoiser: FeatureDenoiser,
    predictor: Path,
    training: AmedTrainingSpec,
    evaluation: AmedEvaluationSpec,
    *,
    shape: tuple[int, int, int],
    classes: int,
    group: Group,
) -> AmedReport:
    """Measure a predictor that was saved; collective: the workers share the latents.

    Args:
        denoiser: plain; guidance is added here.
        predictor: its folder.
        training: how it was trained.
        evaluation: how many latents, and how fine the reference is.
        shape: (C, H, W) of an image.
        classes: number of classes; 0 for an unconditional network.
        group: the workers.
    """
    solver = AmedSpec(predictor=str(predictor))
    network, facts, guided = predictor, solver.facts, _guided(denoiser, training)
    reference, walkers = _walkers(solver, facts, training, evaluation)
    steps = len(facts.levels) - 1
    squared = torch.zeros(len(walkers), steps, dtype=torch.float64)
    outputs: list[list[list[float]]] = []
    for first, count in _batches(evaluation, group):
        z_BCHW, labels_B = training_latents(
            training.seed, first, count, shape, classes, group.device, "held out"
        )
        truth = _visited(guided, reference, z_BCHW, labels_B)
        for row, walker in enumerate(walkers):
            visited = _visited(guided, walker, z_BCHW, labels_B)
            errors = _squared_errors(visited, truth)
            squared[row, -len(errors) :] += errors
            if walker.solver is solver:
                outputs.append(_outputs(guided, network, visited, labels_B, facts))
    squared = group.sum(squared) / (evaluation.latents * math.prod(shape))
    calls = calls_per_evaluation(guided)
    return AmedReport(
        latents=evaluation.latents,
        reference=f"{reference.solver.label}, {_nfe(reference, calls)} network calls",
        levels=facts.levels,
        contenders=tuple(
            Contender(
                walker.name, _nfe(walker, calls), tuple(row[-walker.stops :].sqrt().tolist())
            )
            for walker, row in zip(walkers, squared, strict=True)
        ),
        learned=_spreads(group.gather(outputs), facts),
        predictor=facts.weights_sha256,
    )


def base_solver(facts: PredictorFacts) -> SolverSpec:
    """The student without a predictor, as it would be used: AMED-Solver's is DPM-Solver-2, which
    it is for r = 1/2, c = 1.
    """
    student = facts.student
    base = Dpm2Spec() if isinstance(student, AmedStudentSpec) else student
    return cast(
        SolverSpec,
        base.model_copy(update={"afs": facts.afs, "thresholding": facts.thresholding}),
    )


def _walkers(
    solver: AmedSpec,
    facts: PredictorFacts,
    training: AmedTrainingSpec,
    evaluation: AmedEvaluationSpec,
) -> tuple[_Walker, list[_Walker]]:
    """The reference; and those of `AmedReport.contenders`."""

    def on(stride: int) -> Tensor:
        """The schedule, with stride - 1 more levels in each interval."""
        points = stride * (len(facts.levels) - 1) + 1
        return sigmas(facts.schedule, points, facts.levels[-1], facts.levels[0])

    def plain(finer: SolverFacts) -> SolverSpec:
        return cast(SolverSpec, finer.model_copy(update={"thresholding": facts.thresholding}))

    base, teacher = base_solver(facts), training.chosen_teacher
    between = training.chosen_intermediate + 1
    per_interval = 2 * (len(facts.levels) - 1)
    finest = max(math.ceil(evaluation.reference_nfe / per_interval), 2 * between)
    reference = _Walker("reference", plain(HeunAbSpec()), on(finest), finest)
    stride = 2 // base.evals_per_step
    walkers = [
        _Walker(base.label, base, on(stride), stride),
        _Walker(
            f"AMED, {facts.student.label}",
            solver,
            torch.tensor(facts.levels, dtype=torch.float64),
            1,
        ),
        _Walker(f"teacher, {teacher.label}", plain(teacher), on(between), between),
    ]
    if facts.afs and base.evals_per_step == 1:
        whole = base.model_copy(update={"afs": False})
        steps = per_interval - 1
        levels = sigmas(facts.schedule, steps + 1, facts.levels[-1], facts.levels[0])
        walkers.append(_Walker(whole.label, whole, levels, steps))
    return reference, walkers


def _visited(
    denoiser: Denoiser, walker: _Walker, z_BCHW: Tensor, labels_B: Tensor | None
) -> tuple[Tensor, ...]:
    """The image at each of the N levels, from standard normal z."""
    start_BCHW = z_BCHW * walker.levels[0].item()
    with torch.inference_mode():
        result = sample(denoiser, walker.solver, walker.levels, start_BCHW, labels_B, trace=True)
    assert result.trace is not None, "asked for"
    return result.trace[:: walker.stride]


def _nfe(walker: _Walker, calls: int) -> int:
    return walker.solver.nfe_for(len(walker.levels), calls)


def _squared_errors(visited: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """Summed over images and pixels, at each level after the first, or as many of the last of
    them as were visited: float64.
    """
    compared = truth[1 - len(visited) :]
    errors = [(x - y).double().square().sum() for x, y in zip(visited[1:], compared, strict=True)]
    return torch.stack(errors).cpu()


def _outputs(
    denoiser: Denoiser,
    folder: Path,
    visited: Sequence[Tensor],
    labels_B: Tensor | None,
    facts: PredictorFacts,
) -> list[list[float]]:
    """What the predictor says at the student's own images: N - 1 steps of three, [3(N-1)][B]."""
    predictor = load_predictor(folder)[0].to(visited[0].device)
    found: list[list[float]] = []
    for n, (level, after) in enumerate(zip(facts.levels, facts.levels[1:], strict=False)):
        features = None
        if n > 0 or not facts.afs:
            x_BCHW = visited[n]
            sigma_B = torch.full(
                x_BCHW.shape[:1], level, dtype=torch.float64, device=x_BCHW.device
            )
            with torch.inference_mode():
                features = cast("FeatureDenoiser", denoiser).with_features(
                    x_BCHW, sigma_B, labels_B
                )[1]
        with torch.inference_mode():
            learned = predictor.predict(features, level, after)
        found += [value.double().flatten().tolist() for value in learned]
    return found


def _spreads(
    of_workers: Sequence[Sequence[Sequence[Sequence[float]]]], facts: PredictorFacts
) -> dict[str, tuple[Spread, ...]]:
    batches = [batch for worker in of_workers for batch in worker]
    kept = {"r": True, "c": facts.scale_dir > 0, "a": facts.scale_time > 0}
    spreads: dict[str, tuple[Spread, ...]] = {}
    for place, key in enumerate(_LEARNED):
        if not kept[key]:
            continue
        rows = [
            [value for batch in batches for value in batch[3 * n + place]]
            for n in range(len(facts.levels) - 1)
        ]
        spreads[key] = tuple(Spread(sum(row) / len(row), min(row), max(row)) for row in rows)
    return spreads


def _batches(evaluation: AmedEvaluationSpec, group: Group) -> list[tuple[int, int]]:
    """(first, count) of this worker's batches."""
    return list(evaluation.batches[group.rank :: group.world])


def _guided(denoiser: FeatureDenoiser, training: AmedTrainingSpec) -> Denoiser:
    return denoiser if training.guidance is None else Guided(denoiser, training.guidance)
