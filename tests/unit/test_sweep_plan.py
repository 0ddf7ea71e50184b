"""A plan is a pure function: what is in it, what it costs, when two plans mean the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetstep.errors import SamplingError, UsageError
from fleetstep.orchestration.sweep_plan import (
    ADAPTIVE_CALLS,
    Cell,
    ReferenceSet,
    SnapshotRef,
    SweepPlan,
    Unit,
    blocks_of,
    plan_sweep,
    units_of,
)
from fleetstep.orchestration.sweep_solvers import schedule_label, solver_text
from fleetstep.sampling.spec import (
    PREDICTOR_FACTS,
    AmedSpec,
    EulerSpec,
    HeunAbSpec,
    HeunSpec,
    IpndmSpec,
    LevelsSpec,
    LogSnrSpec,
    PolynomialSpec,
    PredictorFacts,
    Rk45Spec,
    ThresholdingSpec,
)


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


def predictor(folder: Path, snapshot: str = "a" * 64) -> AmedSpec:
    """A solver whose predictor has its facts and no weights: enough for a plan."""
    facts = PredictorFacts(
        student=IpndmSpec(),
        schedule=PolynomialSpec(),
        levels=(80.0, 10.0, 0.002),
        afs=True,
        scale_dir=0.01,
        scale_time=0.0,
        dtype="float32",
        snapshot=snapshot,
        track="ema",
        run="edm",
        images_seen=12_800,
        weights_sha256="0123456789abcdef" * 4,
    ).sealed()
    folder.mkdir()
    (folder / PREDICTOR_FACTS).write_text(facts.model_dump_json())
    return AmedSpec(predictor=str(folder))


class TestSolversOfTheirOwn:
    def test_an_adaptive_solver_is_one_cell_of_a_snapshot(self):
        made = plan(solvers=(Rk45Spec(), EulerSpec()), nfe=(5, 8, 9))
        adaptive = [cell for cell in made.cells if cell.solver.kind == "rk45"]
        assert [(cell.snapshot.run, cell.nfe) for cell in adaptive] == [
            ("edm", None),
            ("fdm", None),
        ]
        assert len(made.cells) == 2 * (1 + 3)
        assert made.skipped == ()
        assert made.network_calls == 2 * 1000 * (ADAPTIVE_CALLS + 5 + 8 + 9)
        assert str(adaptive[0]).endswith("its own calls, edm at 12,800 images")
        assert adaptive[0].schedule is None
        assert schedule_label(adaptive[0].solver) == "adaptive"

    def test_a_predictor_is_one_cell_of_the_snapshot_it_was_trained_for(self, tmp_path: Path):
        made = plan(solvers=(predictor(tmp_path / "p"), EulerSpec()), nfe=(5, 8))
        (cell,) = [cell for cell in made.cells if cell.solver.kind == "amed"]
        assert (cell.snapshot.run, cell.nfe, cell.dtype) == ("edm", 3, "float32")
        assert {c.dtype for c in made.cells if c is not cell} == {"float64"}
        (skipped,) = made.skipped
        assert skipped.solver == f"amed(ipndm(order=4), {cell.solver.facts.seal[:8]}) on fdm"
        assert skipped.nfe == 3
        assert "not for snapshot bbbbbbbbbbbb" in skipped.reason
        assert schedule_label(cell.solver) == "polynomial(rho=7)"

    def test_a_predictor_is_known_by_its_content_and_not_its_folder(self, tmp_path: Path):
        one, copy, other = (
            plan(
                snapshots=[(snapshot(digest=digest), REFERENCE)],
                solvers=(predictor(tmp_path / name, digest),),
            ).cells[0]
            for name, digest in (("one", "a" * 64), ("copy", "a" * 64), ("other", "b" * 64))
        )
        assert one.key == copy.key != other.key

    def test_a_missing_predictor_is_refused(self, tmp_path: Path):
        with pytest.raises(SamplingError, match="holds no predictor"):
            plan(solvers=(AmedSpec(predictor=str(tmp_path / "none")),))

    def test_written_levels_are_one_cell_at_the_calls_they_make(self):
        levels = LevelsSpec(sigmas=(80.0, 5.0, 1.0, 0.1))
        made = plan(solvers=(EulerSpec(schedule=levels), HeunAbSpec(schedule=levels)), nfe=(5,))
        assert [cell.nfe for cell in made.cells] == [3, 6, 3, 6]

    def test_one_kind_with_several_schedules_or_a_first_step_is_several_cells(self):
        logsnr = IpndmSpec(schedule=LogSnrSpec())
        made = plan(solvers=(IpndmSpec(), logsnr, IpndmSpec(afs=True)), nfe=(5,))
        assert len({cell.key for cell in made.cells}) == 6
        texts = [solver_text(cell.solver) for cell in made.cells[:3]]
        assert texts == ["ipndm(order=4)", "ipndm(order=4) on logsnr", "ipndm(order=4, afs=True)"]
        assert [schedule_label(cell.solver) for cell in made.cells[:3]] == [
            "polynomial(rho=7)",
            "logsnr",
            "polynomial(rho=7)",
        ]

    def test_naming_the_default_schedule_changes_nothing(self):
        named = plan(solvers=(IpndmSpec(schedule=PolynomialSpec()),), nfe=(5,)).cells[0]
        plain = plan(solvers=(IpndmSpec(),), nfe=(5,)).cells[0]
        assert named.key == plain.key
        assert solver_text(named.solver) == solver_text(plain.solver)


class TestIdentity:
    cell = Cell(
        snapshot=snapshot(),
        track="ema",
        solver=IpndmSpec(),
        nfe=9,
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
            {"solver": IpndmSpec(schedule=PolynomialSpec(rho=3.0))},
            {"solver": IpndmSpec(schedule=LogSnrSpec())},
            {"solver": IpndmSpec(afs=True)},
            {"solver": IpndmSpec(denoise_to_zero=True)},
            {"solver": IpndmSpec(thresholding=ThresholdingSpec())},
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
        assert self.cell.key == "774a1ef4574e94011529"
        assert Unit(self.cell, 3, 100).path(Path("s")) == Path(
            "s/sweeps/774a1ef4574e94011529/unit-00003.safetensors"
        )

    @pytest.mark.parametrize(
        "change",
        [{"fingerprint": "0"}, {"split": "heldout"}, {"extractor": "x"}, {"preprocess": "y"}],
    )
    def test_a_reference_is_named_by_content(self, change: dict[str, str]):
        assert replace(REFERENCE, **change).key != REFERENCE.key
