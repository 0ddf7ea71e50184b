"""A plan is a pure function: what is in it, what it costs, when two plans mean the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetstep.errors import UsageError
from fleetstep.orchestration.sweep_plan import (
    Cell,
    ReferenceSet,
    SnapshotRef,
    SweepPlan,
    Unit,
    blocks_of,
    plan_sweep,
    units_of,
)
from fleetstep.sampling.spec import EulerSpec, HeunSpec, IpndmSpec, LogSnrSpec, PolynomialSpec


def snapshot(name: str = "edm", digest: str = "a" * 64) -> SnapshotRef:
    return SnapshotRef(
        path=Path("runs") / name,
        digest=digest,
        run=name,
        images_seen=12_800,
        shape=(1, 8, 8),
        classes=10,
        data=Path("digits"),
        dataset="f" * 64,
    )


REFERENCE = ReferenceSet(
    data=Path("digits"),
    fingerprint="f" * 64,
    split="train",
    samples=1_250,
    extractor="e" * 64,
    preprocess="nearest x4",
)


def plan(**changes: Any) -> SweepPlan:
    settings: dict[str, Any] = {
        "snapshots": [(snapshot(), REFERENCE), (snapshot("fdm", "b" * 64), REFERENCE)],
        "solvers": (EulerSpec(), HeunSpec()),
        "nfe": (5, 8),
        "samples": 1000,
        "track": "ema",
        "namespace": 0,
        "labels": "random",
        "batch": 100,
        "extractor": "e" * 64,
        "finished": lambda unit: False,
    }
    return plan_sweep(**{**settings, **changes})


class TestPlan:
    def test_a_pair_out_of_reach_is_skipped_with_its_reason(self):
        made = plan()
        assert [(c.snapshot.run, c.solver.kind, c.nfe) for c in made.cells] == [
            ("edm", "euler", 5),
            ("edm", "euler", 8),
            ("edm", "heun", 5),
            ("fdm", "euler", 5),
            ("fdm", "euler", 8),
            ("fdm", "heun", 5),
        ]
        assert [(s.solver, s.nfe) for s in made.skipped] == [("heun", 8)]
        assert "nfe=7 or nfe=9" in made.skipped[0].reason

    def test_costs_are_calls_per_image_times_images(self):
        made = plan()
        assert made.network_calls == 2 * 1000 * (5 + 8 + 5)
        half = plan(finished=lambda unit: isinstance(unit.source, Cell) and unit.index < 5)
        assert half.remaining_network_calls == made.network_calls // 2
        assert len(half.units) - len(half.remaining) == len(half.finished) == 6 * 5

    def test_units_cover_each_id_of_each_cell_once_breadth_first(self):
        made = plan()
        own = [unit for unit in made.units if isinstance(unit.source, Cell)]
        assert [unit.source for unit in own[:6]] == list(made.cells)
        assert [unit.index for unit in own] == sorted(unit.index for unit in own)
        for cell in made.cells:
            ids = [i for u in own if u.source == cell for i in range(u.first, u.first + u.count)]
            assert ids == list(range(1000))

    def test_the_reference_comes_first_once_and_whole(self):
        made = plan()
        assert made.references == (REFERENCE,)
        assert made.units[:13] == tuple(units_of(REFERENCE, 1_250))
        assert [unit.count for unit in made.units[:13]] == [100] * 12 + [50]

    def test_two_datasets_have_two_references(self):
        other = replace(REFERENCE, fingerprint="0" * 64, samples=100)
        made = plan(snapshots=[(snapshot(), REFERENCE), (snapshot("b", "b" * 64), other)])
        assert made.references == (REFERENCE, other)
        assert {made.reference_of[cell] for cell in made.cells if cell.snapshot.run == "b"} == {
            other
        }

    def test_a_copy_of_the_dataset_elsewhere_is_the_same_reference(self):
        moved = replace(REFERENCE, data=Path("elsewhere"))
        made = plan(snapshots=[(snapshot(), REFERENCE), (snapshot("b", "b" * 64), moved)])
        assert made.references == (REFERENCE,)

    def test_the_same_snapshot_named_twice_is_scored_once(self):
        assert (
            plan(snapshots=[(snapshot(), REFERENCE)] * 2).cells
            == plan(snapshots=[(snapshot(), REFERENCE)]).cells
        )

    def test_runs_with_the_same_weights_share_units_and_have_a_score_each(self):
        """Two runs of one seed before their first step, on two datasets of the same shape."""
        twin = replace(snapshot(), run="twin", path=Path("runs/twin"), data=Path("fashion"))
        other = replace(REFERENCE, fingerprint="0" * 64, data=Path("fashion"))
        made = plan(snapshots=[(snapshot(), REFERENCE), (twin, other)])
        assert [cell.snapshot.run for cell in made.cells] == ["edm"] * 3 + ["twin"] * 3
        assert [made.reference_of[cell] for cell in made.cells] == [REFERENCE] * 3 + [other] * 3
        assert made.network_calls == 1000 * (5 + 8 + 5)

    def test_more_samples_extend_the_same_units(self):
        assert set(plan().units) <= set(plan(samples=4000).units)

    @pytest.mark.parametrize(
        ("samples", "blocks"), [(1000, 10), (2000, 20), (3000, 10), (50_000, 20)]
    )
    def test_blocks_are_whole_units(self, samples: int, blocks: int):
        assert blocks_of(samples) == blocks
        assert samples % (blocks * 100) == 0

    @pytest.mark.parametrize(
        ("samples", "nearest"), [(0, "1,000"), (100, "1,000"), (2600, "3,000")]
    )
    def test_other_sample_counts_are_refused_with_the_nearest(self, samples: int, nearest: str):
        with pytest.raises(UsageError, match=f"multiple of 1,000.*\n.*use {nearest};"):
            plan(samples=samples)

    def test_a_grid_out_of_reach_altogether_is_refused_with_the_reasons(self):
        with pytest.raises(UsageError, match=r"heun at 4: .*cannot make exactly 4"):
            plan(solvers=(HeunSpec(),), nfe=(4,))

    @pytest.mark.parametrize("channels", [2, 4])
    def test_latents_are_refused_before_anything_else(self, channels: int):
        latents = replace(snapshot("dit"), shape=(channels, 32, 32))
        with pytest.raises(UsageError, match=rf"dit cannot be scored: .* {channels} x 32 x 32"):
            plan(snapshots=[(snapshot(), REFERENCE), (latents, REFERENCE)])
        rgb = replace(snapshot(), shape=(3, 32, 32))
        assert plan(snapshots=[(rgb, REFERENCE)]).cells


class TestIdentity:
    cell = Cell(
        snapshot=snapshot(),
        track="ema",
        solver=IpndmSpec(),
        nfe=9,
        schedule=PolynomialSpec(),
        labels="random",
        namespace=0,
        batch=100,
        extractor="e" * 64,
    )

    @pytest.mark.parametrize(
        "change",
        [
            {"track": "slow"},
            {"solver": IpndmSpec(order=3)},
            {"solver": EulerSpec()},
            {"nfe": 10},
            {"schedule": PolynomialSpec(rho=3.0)},
            {"schedule": LogSnrSpec()},
            {"labels": "balanced"},
            {"namespace": 1},
            {"batch": 50},
            {"extractor": "d" * 64},
            {"dtype": "float32"},
            {"snapshot": snapshot(digest="c" * 64)},
        ],
    )
    def test_whatever_changes_the_bits_changes_the_folder(self, change: dict[str, Any]):
        assert replace(self.cell, **change).key != self.cell.key

    @pytest.mark.parametrize("change", [{"path": Path("/moved")}, {"run": "renamed"}])
    def test_where_a_snapshot_lies_and_its_name_do_not(self, change: dict[str, Any]):
        assert replace(self.cell, snapshot=replace(snapshot(), **change)).key == self.cell.key

    def test_the_hash_is_a_format_that_other_versions_must_find_again(self):
        assert self.cell.key == "35f3c998e668ecc8db18"
        assert Unit(self.cell, 3, 100).path(Path("s")) == Path(
            "s/sweeps/35f3c998e668ecc8db18/unit-00003.safetensors"
        )

    @pytest.mark.parametrize(
        "change",
        [{"fingerprint": "0"}, {"split": "heldout"}, {"extractor": "x"}, {"preprocess": "y"}],
    )
    def test_a_reference_is_named_by_content(self, change: dict[str, str]):
        assert replace(REFERENCE, **change).key != REFERENCE.key
