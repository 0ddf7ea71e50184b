"""What a sweep would do: `fleetstep sweep --dry-run`.

A dry run asks for no run, no predictor and no extractor: it says what is not there, and shows the
grid that follows from the configuration alone. What is there must be sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import SweepSpec
from fleetstep.config.amed import how_to_make
from fleetstep.errors import ExtractorError
from fleetstep.evaluation.features import load_extractor
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.snapshots import find_snapshots
from fleetstep.orchestration.sweep_plan import (
    ADAPTIVE_CALLS,
    SweepPlan,
    nothing_to_score,
    refuse_latents,
)
from fleetstep.orchestration.sweep_solvers import (
    Skipped,
    reachable,
    schedule_label,
    solver_text,
)
from fleetstep.sampling.spec import AmedSpec, SolverSpec, check_predictor


@dataclass(frozen=True, kw_only=True)
class SweepPreview:
    """The numbers of a sweep before it starts.

    Attributes:
        pairs: solvers and network calls per image, None for an adaptive solver, that can be run.
        skipped: those that cannot, and why.
        missing: what is not there, and how to get it.
        plan: the work; None if something is missing.
    """

    spec: SweepSpec
    pairs: tuple[tuple[SolverSpec, int | None], ...]
    skipped: tuple[Skipped, ...]
    missing: tuple[str, ...] = ()
    plan: SweepPlan | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The pairs on each snapshot; on each run while runs are missing."""
        if self.plan is not None:
            return tuple(map(str, self.plan.cells))
        return tuple(
            f"{solver_text(solver)}, {'its own' if nfe is None else nfe} calls, {run}"
            for run in self.spec.runs
            for solver, nfe in self.pairs
        )

    @property
    def network_calls(self) -> int:
        """Evaluations of a network on one image, over the whole grid."""
        if self.plan is not None:
            return self.plan.network_calls
        calls = sum(ADAPTIVE_CALLS if nfe is None else nfe for _, nfe in self.pairs)
        return len(self.spec.runs) * self.spec.samples * calls

    @property
    def adaptive_cells(self) -> int:
        """Cells whose network calls are a guess."""
        if self.plan is not None:
            return sum(cell.nfe is None for cell in self.plan.cells)
        return len(self.spec.runs) * sum(nfe is None for _, nfe in self.pairs)

    def summary(self) -> str:
        """A few lines: cells, network calls, what is missing or skipped, published numbers."""
        spec = self.spec
        lines = [
            f"{spec.name}: {len(self.cells)} cells x {spec.samples} images = "
            f"{self.network_calls:,} network calls on one image{self._guess}{self._finished}",
            f"  {spec.actors} actor(s) x {spec.cpus_per_actor:g} CPU, batch {spec.batch}",
            *(f"  {line}" for line in self.missing),
            *(f"  {line}" for line in self._grid()),
            *(f"  skipped {p.solver} at {p.nfe} calls: {p.reason}" for p in self.skipped),
            *(f"  published: {entry.text}" for entry in spec.published),
        ]
        return "\n".join(lines)

    @property
    def _guess(self) -> str:
        """What is not known of the cost."""
        found = []
        if self.adaptive_cells:
            found.append(
                f"{self.adaptive_cells} cells of an adaptive solver taken as {ADAPTIVE_CALLS} an "
                "image; what they make is counted"
            )
        if self.plan is None and self.spec.snapshots == "all":
            found.append("one snapshot of each run taken")
        return f" ({'; '.join(found)})" if found else ""

    @property
    def _finished(self) -> str:
        if self.plan is None:
            return ""
        return f"; {len(self.plan.finished)} of {len(self.plan.units)} units are finished already"

    def _grid(self) -> Iterator[str]:
        """One line for each solver."""
        by_solver: dict[SolverSpec, list[int | None]] = {}
        for solver, nfe in self.pairs:
            by_solver.setdefault(solver, []).append(nfe)
        for solver, calls in by_solver.items():
            shown = ", ".join("its own" if nfe is None else str(nfe) for nfe in calls)
            where = "" if solver.adaptive else f" on {schedule_label(solver)}"
            yield f"{solver.label}{where}: {shown} network calls per image"

    def text(self) -> str:
        """The summary and every cell, after the resolved configuration."""
        lines = [self.summary(), *(f"  {cell}" for cell in self.cells)]
        return f"{config.dump(self.spec)}---\n" + "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`; `units` and `finished` are null while something is missing."""
        plan = self.plan
        return {
            "sweep": self.spec.model_dump(mode="json"),
            "missing": list(self.missing),
            "grid": [
                {"solver": solver.label, "schedule": schedule_label(solver), "nfe": nfe}
                for solver, nfe in self.pairs
            ],
            "cells": list(self.cells),
            "skipped": [
                {"solver": p.solver, "nfe": p.nfe, "reason": p.reason} for p in self.skipped
            ],
            "network_calls": self.network_calls,
            "adaptive_cells": self.adaptive_cells,
            "units": None if plan is None else len(plan.units),
            "finished": None if plan is None else len(plan.finished),
        }


def preview_sweep(spec: SweepSpec) -> SweepPreview:
    """Plan the sweep; reads what is there of snapshots and finished units, starts nothing.

    Raises:
        FleetstepError: as `sweep.plan`, but not for what is not there.
    """
    missing = tuple(_missing(spec))
    solvers = [solver for solver in spec.solvers if not _is_absent(solver)]
    pairs, skipped = reachable(solvers, spec.nfe)
    if not missing:
        plan = sweeping.plan(spec)
        return SweepPreview(spec=spec, pairs=tuple(pairs), skipped=plan.skipped, plan=plan)
    if solvers and not pairs:
        raise nothing_to_score(skipped)
    there = [run for run in spec.runs if Path(run).exists()]
    refuse_latents(find_snapshots(there, which=spec.snapshots, track=spec.ema))
    return SweepPreview(spec=spec, pairs=tuple(pairs), skipped=tuple(skipped), missing=missing)


def _is_absent(solver: SolverSpec) -> bool:
    return isinstance(solver, AmedSpec) and not Path(solver.predictor).exists()


def _missing(spec: SweepSpec) -> Iterator[str]:
    for run in spec.runs:
        if not Path(run).exists():
            yield (f"{run} is NOT THERE, so nothing was checked against it: {how_to_make(run)}")
    for solver in spec.solvers:
        if not isinstance(solver, AmedSpec):
            continue
        if _is_absent(solver):
            yield (
                f"predictor {solver.predictor} is NOT THERE, so the grid is without it: train it "
                "with `fleetstep amed train`"
            )
        else:
            check_predictor(Path(solver.predictor))
    try:
        load_extractor(spec.extractor)
    except ExtractorError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        yield f"{error.message}: {error.remedy}"
