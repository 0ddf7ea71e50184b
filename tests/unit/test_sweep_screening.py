"""Screening drops what is shown to be worse at no less cost, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.config import ScreenSpec
from fleetstep.errors import DataError
from fleetstep.evaluation.displacement import Displacement, displacement
from fleetstep.orchestration.cells import Cell
from fleetstep.orchestration.screening import beaten_cells, screen, write_screen
from fleetstep.orchestration.sweep_solvers import Setting
from fleetstep.orchestration.units import UnitResult, digest_of, read_unit, write_unit
from fleetstep.sampling.spec import (
    DpmppSdeSpec,
    DpmppSpec,
    EulerSpec,
    HeunSpec,
    IpndmSpec,
    Rk45Spec,
    SolverSpec,
)
from pixel_sweep import MEASURE, NEAR, SPACE, Sweep, run

LATENTS, D = 64, 32
EXACT = rng.draw(0, "exact features", 0, LATENTS, (D,))
ONES = np.ones(D)


def cell(solver: SolverSpec, nfe: int) -> Cell:
    return Cell(
        snapshot=NEAR,
        track="ema",
        solver=solver,
        nfe=nfe,
        labels="random",
        namespace=0,
        batch=100,
    )


def moved(size: float, noise: str = "shared") -> Displacement:
    """A displacement of about that size in a direction of its own for each latent."""
    return displacement(
        EXACT + np.float32(size) * rng.draw(0, noise, 0, LATENTS, (D,)), EXACT, ONES
    )


E5, E9, H5, H9, D5, D9 = (
    cell(solver, nfe) for solver in (EulerSpec(), HeunSpec(), DpmppSpec()) for nfe in (5, 9)
)


class TestDecision:
    def test_worse_at_the_same_cost_is_dropped_and_names_who_says_so(self):
        beaten = beaten_cells({E5: moved(1.0), H5: moved(2.0), D5: moved(0.5)}, 0.99)
        assert beaten == {E5: D5, H5: D5}

    def test_worse_than_a_cheaper_one_is_dropped_unless_it_is_the_best_of_its_calls(self):
        table = {D5: moved(0.5), E9: moved(1.0), H9: moved(1.5)}
        assert beaten_cells(table, 0.99) == {H9: D5}

    def test_worse_than_a_dearer_one_is_kept(self):
        assert beaten_cells({E5: moved(2.0), H9: moved(0.5)}, 0.99) == {}

    def test_a_tie_is_kept(self):
        same = {E5: moved(1.0), H5: moved(1.0)}
        assert beaten_cells(same, 0.99) == {}
        # Of equal size in directions of their own: 64 latents cannot tell.
        near = {E5: moved(1.0, "one"), H5: moved(1.01, "two")}
        assert beaten_cells(near, 0.99) == {}

    def test_a_small_difference_counts_where_it_is_on_every_latent(self):
        """The comparison is paired: intervals of the two alone overlap by far."""
        close = {E5: moved(1.0), H5: moved(1.05)}
        assert close[E5].high > close[H5].low
        assert beaten_cells(close, 0.99) == {H5: E5}

    def test_the_last_cell_is_kept(self):
        assert beaten_cells({E5: moved(100.0)}, 0.99) == {}

    @pytest.mark.parametrize("seed", range(20))
    def test_every_number_of_calls_keeps_its_best_cell(self, seed: int):
        cells = [E5, H5, D5, E9, H9, D9]
        sizes = rng.uniform(seed, "sizes", 0, len(cells))
        table = {c: moved(float(s) + 0.1) for c, s in zip(cells, sizes, strict=True)}
        kept = [c for c in cells if c not in beaten_cells(table, 0.99)]
        for nfe in (5, 9):
            best = min((c for c in cells if c.nfe == nfe), key=lambda c: table[c].rms)
            assert best in kept

    def test_a_survivor_may_not_be_told_by_one_that_was_dropped_alone(self):
        """Whoever says so is the nearest of those that cost no more, so it survives itself."""
        table = {D5: moved(0.2), E5: moved(0.5), H5: moved(1.0)}
        beaten = beaten_cells(table, 0.99)
        assert set(beaten.values()) == {D5}


SOLVERS = (EulerSpec(), HeunSpec(), IpndmSpec(), DpmppSdeSpec(), Rk45Spec(rtol=1e-2, atol=1e-2))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Screening units done; by hand, the features of two cells are then moved."""
    made = Sweep(
        tmp_path, solvers=SOLVERS, nfe=(5,), networks=(NEAR,), teacher=Setting(HeunSpec(), 35)
    )
    run(made.plan.screening, made.worker())
    return made


def push(sweep: Sweep, kind: str, by: float) -> None:
    """Move the features of a cell's first unit."""
    unit = next(
        u
        for u in sweep.plan.screening
        if isinstance(u.source, Cell) and u.source.solver.kind == kind
    )
    found = read_unit(sweep.storage, unit, SPACE)
    assert found is not None
    features = found.features + np.float32(by)
    changed = UnitResult(**{**vars(found), "features": features, "digest": digest_of(features)})
    write_unit(sweep.storage, unit, SPACE, changed)


class TestOfFiles:
    def test_stochastic_and_adaptive_cells_are_not_judged(self, sweep: Sweep):
        push(sweep, "euler", 5.0)
        verdict = screen(ScreenSpec(), sweep.plan, sweep.storage, MEASURE, sweep.references())
        assert [one.cell.solver.kind for one in verdict.screened] == ["euler", "heun", "ipndm"]
        assert [one.cell.solver.kind for one in verdict.dropped] == ["euler", "heun"]
        left = sweep.plan.without({one.cell for one in verdict.dropped})
        assert [c.solver.kind for c in left.cells] == ["ipndm", "dpmpp_sde", "rk45"]

    def test_it_is_a_function_of_the_files(self, sweep: Sweep):
        push(sweep, "ipndm", 5.0)
        verdicts = [
            screen(ScreenSpec(), sweep.plan, sweep.storage, MEASURE, sweep.references())
            for _ in range(2)
        ]
        assert verdicts[0] == verdicts[1]
        ranks = {one.cell.solver.kind: one.rank for one in verdicts[0].screened}
        assert ranks["ipndm"] == 3

    def test_only_the_first_latents_are_looked_at(self, sweep: Sweep):
        eight = ScreenSpec(latents=8)
        verdict = screen(eight, sweep.plan, sweep.storage, MEASURE, sweep.references())
        assert {len(one.moved.squares) for one in verdict.screened} == {8}

    def test_a_damaged_unit_is_named(self, sweep: Sweep):
        unit = next(u for u in sweep.plan.screening if isinstance(u.source, Cell))
        unit.path(sweep.storage, SPACE).unlink()
        with pytest.raises(DataError, match=r"unit 0 of \(euler, 5 calls.* is missing"):
            screen(ScreenSpec(), sweep.plan, sweep.storage, MEASURE, sweep.references())

    def test_the_file_says_what_was_decided_and_why(self, sweep: Sweep, tmp_path: Path):
        push(sweep, "euler", 5.0)
        verdict = screen(ScreenSpec(), sweep.plan, sweep.storage, MEASURE, sweep.references())
        checked = {verdict.screened[2].cell: {"holds": True, "bound": 1.0}}
        write_screen(tmp_path / "deep" / "screen.json", ScreenSpec(), verdict, checked)
        content = json.loads((tmp_path / "deep" / "screen.json").read_text())
        assert content["screen"]["latents"] == 64
        euler, _, ipndm = content["cells"]
        assert (euler["kept"], ipndm["kept"]) == (False, True)
        assert euler["beaten_by"] == ipndm["key"]
        assert euler["reason"].startswith("farther from the teacher (")
        assert euler["teacher"]["cell"].startswith("heun, 35 calls")
        assert (euler["gelbrich"], ipndm["gelbrich"]["holds"]) == (None, True)

    def test_each_network_and_guidance_is_judged_apart(self, tmp_path: Path):
        both = Sweep(tmp_path, solvers=SOLVERS[:2], nfe=(5,), teacher=Setting(HeunSpec(), 35))
        run(both.plan.screening, both.worker())
        verdict = screen(ScreenSpec(), both.plan, tmp_path, MEASURE, both.references())
        ranks = {(one.cell.snapshot.run, one.rank) for one in verdict.screened}
        assert ranks == {(name, rank) for name in ("near", "far") for rank in (1, 2)}


def test_a_cell_with_another_dtype_is_still_of_the_same_network():
    table = {E5: moved(1.0), replace(D5, dtype="float32"): moved(0.2)}
    assert set(beaten_cells(table, 0.99)) == {E5}
