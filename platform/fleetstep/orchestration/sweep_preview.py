"""What a sweep would do and cost: printed before it starts, and all that `--dry-run` does.

A dry run asks for no run, no predictor and no extractor: it says what is not there, and shows the
grid that follows from the configuration alone. What is there must be sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetstep import config
from fleetstep.config import SweepSpec
from fleetstep.config.amed import how_to_make
from fleetstep.errors import ExtractorError
from fleetstep.evaluation.features import load_extractor
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.cells import ADAPTIVE_CALLS, guidance_text
from fleetstep.orchestration.exact_sources import exact_source
from fleetstep.orchestration.snapshots import find_snapshots
from fleetstep.orchestration.sweep_cost import Cost, cost_of
from fleetstep.orchestration.sweep_plan import SweepPlan, nothing_to_score, refuse_latents
from fleetstep.orchestration.sweep_solvers import (
    Setting,
    Skipped,
    schedule_label,
    settings_of,
    solver_text,
)
from fleetstep.orchestration.sweep_speed import Speed, measure_speed
from fleetstep.sampling.spec import AmedSpec, SolverSpec, check_predictor

SpeedOf = Callable[[SweepSpec, SweepPlan], Speed | str]


@dataclass(frozen=True, kw_only=True)
class SweepPreview:
    """The numbers of a sweep before it starts.

    Attributes:
        settings: points of the grid that can be run, on any network.
        skipped: those that cannot, and why.
        missing: what is not there, and how to get it.
        plan: the work; None if something is missing.
        cost: of what remains; None if something is missing.
    """

    spec: SweepSpec
    settings: tuple[Setting, ...]
    skipped: tuple[Skipped, ...]
    missing: tuple[str, ...] = ()
    plan: SweepPlan | None = None
    cost: Cost | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The settings on each network; on each run while runs are missing."""
        if self.plan is not None:
            return tuple(map(str, self.plan.cells))
        return tuple(
            f"{_setting_text(setting)}, {run}"
            for run in self._networks
            for setting in self.settings
        )

    @property
    def images(self) -> int:
        """Images of each cell, over all seed blocks."""
        return self.spec.samples * self.spec.seed_blocks

    @property
    def network_calls(self) -> int:
        """Evaluations of a network on one image, over the whole grid."""
        if self.plan is not None:
            return self.plan.network_calls
        calls = sum(ADAPTIVE_CALLS if s.nfe is None else s.nfe for s in self.settings)
        return len(self._networks) * self.images * calls

    @property
    def adaptive_cells(self) -> int:
        """Cells whose network calls are a guess."""
        if self.plan is not None:
            return sum(cell.nfe is None for cell in self.plan.cells)
        return len(self._networks) * sum(s.nfe is None for s in self.settings)

    def summary(self) -> str:
        """A few lines: cells, network calls, what is missing or skipped, cost, published
        numbers.
        """
        spec = self.spec
        lines = [
            f"{spec.name}: {len(self.cells)} cells x {self.images:,} images = "
            f"{self.network_calls:,} network calls on one image{self._guess}{self._finished}",
            *(f"  {line}" for line in self._pool()),
            *(f"  {line}" for line in (self.cost.lines() if self.cost else ())),
            *(f"  {line}" for line in self.missing),
            *(f"  {line}" for line in self._grid()),
            *(f"  skipped {p.solver}{p.at}: {p.reason}" for p in self.skipped),
            *(f"  published: {entry.text}" for entry in spec.published),
        ]
        return "\n".join(lines)

    def text(self) -> str:
        """The summary and every cell, after the resolved configuration."""
        lines = [self.summary(), *(f"  {cell}" for cell in self.cells)]
        return f"{config.dump(self.spec)}---\n" + "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`; `units`, `finished` and `cost` are null while something is
        missing.
        """
        plan = self.plan
        return {
            "sweep": self.spec.model_dump(mode="json"),
            "missing": list(self.missing),
            "grid": [
                {
                    "solver": setting.solver.label,
                    "schedule": schedule_label(setting.solver),
                    "nfe": setting.nfe,
                    "guidance": guidance_text(setting.guidance),
                }
                for setting in self.settings
            ],
            "cells": list(self.cells),
            "skipped": [
                {"solver": p.solver, "nfe": p.nfe, "reason": p.reason} for p in self.skipped
            ],
            "network_calls": self.network_calls,
            "adaptive_cells": self.adaptive_cells,
            "units": None if plan is None else len(plan.units),
            "finished": None if plan is None else len(plan.finished),
            "cost": None if self.cost is None else self.cost.as_dict(),
        }

    @property
    def _networks(self) -> list[str]:
        """Runs and EMA tracks as configured."""
        tracks = self.spec.ema
        return [
            run if len(tracks) == 1 else f"{run} ({track})"
            for track in tracks
            for run in self.spec.runs
        ]

    @property
    def _guess(self) -> str:
        """What is not known of the number of calls."""
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

    def _pool(self) -> Iterator[str]:
        pool, screen = self.spec.pool, self.spec.screen
        gpus = f" and {pool.gpus_per_actor:g} GPU" if pool.gpus_per_actor else ""
        least = "" if pool.min == 0 else f"{pool.min} to "
        yield (
            f"{least}{pool.max} actor(s) x {pool.cpus_per_actor:g} CPU{gpus}, "
            f"batch {self.spec.batch}"
        )
        if screen is not None:
            yield (
                f"screened on {screen.latents} latents against {solver_text(screen.teacher)} at "
                f"{screen.teacher_nfe} calls: it leaves cells out, so this is the most it costs"
            )

    def _grid(self) -> Iterator[str]:
        """One line for each solver and guidance."""
        lines: dict[str, list[str]] = {}
        for setting in self.settings:
            where = "" if setting.solver.adaptive else f" on {schedule_label(setting.solver)}"
            guided = "" if setting.guidance is None else f", {guidance_text(setting.guidance)}"
            calls = "its own" if setting.nfe is None else str(setting.nfe)
            lines.setdefault(f"{setting.solver.label}{where}{guided}", []).append(calls)
        for name, all_calls in lines.items():
            yield f"{name}: {', '.join(all_calls)} network calls per image"


def preview_sweep(spec: SweepSpec, speed_of: SpeedOf = measure_speed) -> SweepPreview:
    """Plan the sweep; reads what is there of snapshots and finished units, starts nothing.

    Args:
        spec: the sweep's configuration.
        speed_of: measures an actor's speed for a plan.

    Raises:
        FleetstepError: as `sweep.plan`, but not for what is not there.
    """
    missing = tuple(_missing(spec))
    if not missing:
        return preview_plan(spec, sweeping.plan(spec), speed_of)
    solvers = [solver for solver in spec.solvers if not _is_absent(solver)]
    settings, skipped = settings_of(solvers, spec.nfe, spec.schedules, spec.guidance)
    if solvers and not settings:
        raise nothing_to_score(skipped)
    there = [run for run in spec.runs if not _absent_run(run)]
    for track in spec.ema:
        refuse_latents(find_snapshots(there, which=spec.snapshots, track=track))
    return SweepPreview(
        spec=spec, settings=tuple(settings), skipped=tuple(skipped), missing=missing
    )


def preview_plan(
    spec: SweepSpec, plan: SweepPlan, speed_of: SpeedOf = measure_speed
) -> SweepPreview:
    """The preview of a sweep of which everything is there."""
    settings, _ = settings_of(spec.solvers, spec.nfe, spec.schedules, spec.guidance)
    return SweepPreview(
        spec=spec,
        settings=tuple(settings),
        skipped=plan.skipped,
        plan=plan,
        cost=cost_of(spec, plan, speed_of(spec, plan)),
    )


def _setting_text(setting: Setting) -> str:
    calls = "its own" if setting.nfe is None else setting.nfe
    guided = "" if setting.guidance is None else f", {guidance_text(setting.guidance)}"
    return f"{solver_text(setting.solver)}, {calls} calls{guided}"


def _is_absent(solver: SolverSpec) -> bool:
    return isinstance(solver, AmedSpec) and not Path(solver.predictor).exists()


def _absent_run(run: str) -> str | None:
    """How a run that is not there, or a dataset in place of one, is made; None if it is there."""
    exact = exact_source(run)
    if exact is not None:
        return None if exact.folder.exists() else exact.how_to_pack
    return None if Path(run).exists() else how_to_make(run)


def _missing(spec: SweepSpec) -> Iterator[str]:
    for run in spec.runs:
        if (remedy := _absent_run(run)) is not None:
            yield f"{run} is NOT THERE, so nothing was checked against it: {remedy}"
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
    for extractor in spec.extractors:
        try:
            load_extractor(extractor)
        except ExtractorError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            yield f"{error.message}: {error.remedy}"
    if spec.reference is not None and not Path(spec.reference).exists():
        yield f"the reference {spec.reference} is NOT THERE: name a file of statistics"
