"""Which cells of a sweep are not worth scoring in full: their features, on a few shared latents,
lie farther from a teacher's than those of a cell that costs no more.

The decision is a function of finished units alone, so a sweep that is started again takes the
same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fleetstep.config import ScreenSpec
from fleetstep.durable import write_json
from fleetstep.evaluation.displacement import (
    Displacement,
    displacement,
    gelbrich_holds,
    worse,
)
from fleetstep.evaluation.moments import Float32, Float64
from fleetstep.orchestration.cell_scores import CellScore, Measure
from fleetstep.orchestration.cells import UNIT, Cell, FeatureSpace, units_of
from fleetstep.orchestration.measures import References
from fleetstep.orchestration.references import read_units
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_solvers import solver_text

FORMAT = 1
"""Of screen.json."""


@dataclass(frozen=True, kw_only=True)
class Screened:
    """What screening says of one cell.

    Args:
        cell: which.
        teacher: what it is compared with.
        moved: displacement of its features from the teacher's.
        rank: among the cells of its network and guidance, 1 the nearest to the teacher.
        beaten_by: the cell that made it not worth scoring; None if it is scored.
    """

    cell: Cell
    teacher: Cell
    moved: Displacement
    rank: int
    beaten_by: Cell | None

    @property
    def reason(self) -> str:
        """Why it was dropped; "" if it was not."""
        if self.beaten_by is None:
            return ""
        calls = self.beaten_by.nfe
        return (
            f"farther from the teacher ({self.moved.rms:.3g}) than "
            f"{solver_text(self.beaten_by.solver)} at {calls} calls, which costs no more"
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a screening.

    Args:
        screened: every cell that was judged, in the order of the plan.
        space: features in which it was judged.
    """

    screened: tuple[Screened, ...]
    space: FeatureSpace

    @property
    def dropped(self) -> tuple[Screened, ...]:
        """The cells that are not scored."""
        return tuple(one for one in self.screened if one.beaten_by is not None)


def screen(
    spec: ScreenSpec,
    work: SweepPlan,
    storage: Path,
    measure: Measure,
    references: References,
) -> Verdict:
    """Judge the cells of a plan whose screening units are all done.

    Args:
        spec: how many latents, and how sure.
        work: the plan.
        storage: where the units are.
        measure: the features, those of the sweep's first extractor.
        references: their scale: features count in units of the reference's standard deviations.

    Raises:
        DataError: a unit is missing or damaged.
    """
    moved = {
        cell: displacement(
            _features(storage, cell, measure.space, spec.latents),
            _features(storage, teacher, measure.space, spec.latents),
            _scale(references, work, cell, measure.space),
        )
        for cell, teacher in work.teacher_of.items()
    }
    found: dict[Cell, Screened] = {}
    for group in _groups(moved):
        of_group = {cell: moved[cell] for cell in group}
        ranks = {cell: rank for rank, cell in enumerate(_ranked(of_group), start=1)}
        beaten = beaten_cells(of_group, spec.confidence)
        for cell in group:
            found[cell] = Screened(
                cell=cell,
                teacher=work.teacher_of[cell],
                moved=moved[cell],
                rank=ranks[cell],
                beaten_by=beaten.get(cell),
            )
    return Verdict(screened=tuple(found[cell] for cell in moved), space=measure.space)


def beaten_cells(moved: Mapping[Cell, Displacement], confidence: float) -> dict[Cell, Cell]:
    """Which cells of one network and guidance are not worth scoring, each with the cell that says
    so: of those that cost no more and are nearer to the teacher, the nearest.

    The nearest cell of every number of calls stays, so that each has one.

    Args:
        moved: displacement of each cell.
        confidence: one-sided, of the paired comparison.
    """
    ranked = _ranked(moved)
    best: dict[int | None, Cell] = {}
    for cell in ranked:
        best.setdefault(cell.nfe, cell)
    beaten = {}
    for cell in ranked:
        if best[cell.nfe] is cell:
            continue
        for other in ranked:
            cheaper = other is not cell and other.expected_calls <= cell.expected_calls
            if cheaper and worse(moved[cell], moved[other], confidence):
                beaten[cell] = other
                break
    return beaten


def _ranked(moved: Mapping[Cell, Displacement]) -> list[Cell]:
    """Nearest first; the order of the plan among equals."""
    return sorted(moved, key=lambda cell: moved[cell].rms)


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that can be compared: of one network, against one reference, with one guidance."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        network = (cell.snapshot, cell.track, cell.guidance)
        groups.setdefault(network, []).append(cell)
    return list(groups.values())


def _features(storage: Path, cell: Cell, space: FeatureSpace, latents: int) -> Float32:
    (result,) = read_units(storage, units_of(cell, UNIT)[:1], space)
    return result.features[:latents]


def _scale(references: References, work: SweepPlan, cell: Cell, space: FeatureSpace) -> Float64:
    return references.of(work.reference_of.get(cell), space).reference.scale_D


def bounds(
    verdict: Verdict, scores: Sequence[CellScore], measure: Measure
) -> dict[Cell, dict[str, Any]]:
    """Whether the distances of the survivors agree with how far their features were moved.

    For two cells of one network, |sqrt(fd_z) - sqrt(fd_z')| is at most the sum of their
    displacements (Gelbrich 1990 and the triangle inequality). Every survivor is held against the
    one that is nearest to the teacher; where that is the teacher itself it was moved by nothing.

    Args:
        verdict: of the screening.
        scores: of the survivors.
        measure: the features of the screening.

    Returns:
        For every survivor whose standardised distance is known: both distances and the bound.
    """
    distances = {
        score.cell: record.value
        for score in scores
        if score.seed_block == 0
        for record in score.records
        if record.kind == "fd_z" and record.extractor_sha256 == measure.space.sha256
    }
    moved = {one.cell: one.moved for one in verdict.screened if one.cell in distances}
    found = {}
    for group in _groups(moved):
        anchor = _ranked({cell: moved[cell] for cell in group})[0]
        for cell in group:
            if cell is anchor:
                continue
            reach = replace(moved[cell], high=moved[cell].high + moved[anchor].high)
            found[cell] = {
                "fd_z": distances[cell],
                "against": anchor.key,
                "fd_z_against": distances[anchor],
                "bound": reach.high,
                "holds": gelbrich_holds(distances[cell], distances[anchor], reach),
            }
    return found


def write_screen(
    path: Path,
    spec: ScreenSpec,
    verdict: Verdict,
    checked: Mapping[Cell, Mapping[str, Any]] | None = None,
) -> None:
    """Keep the ranking, every decision, and afterwards the bounds, as JSON."""
    content = {
        "format": FORMAT,
        "screen": spec.model_dump(mode="json"),
        "features": f"{verdict.space.name}@{verdict.space.sha256[:8]}",
        "cells": [_as_json(one, (checked or {}).get(one.cell)) for one in verdict.screened],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _as_json(one: Screened, checked: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        **one.cell.facts,
        "teacher": {"key": one.teacher.key, "cell": str(one.teacher)},
        "rms": one.moved.rms,
        "low": one.moved.low,
        "high": one.moved.high,
        "confidence": one.moved.confidence,
        "rank": one.rank,
        "kept": one.beaten_by is None,
        "beaten_by": None if one.beaten_by is None else one.beaten_by.key,
        "reason": one.reason,
        "gelbrich": None if checked is None else dict(checked),
    }
