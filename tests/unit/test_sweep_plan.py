"""A plan is a pure function: what is in it, what it costs, when two plans mean the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetstep.errors import SamplingError, UsageError
from fleetstep.orchestration.cells import (
    ADAPTIVE_CALLS,
    Cell,
    FeatureSpace,
    ReferenceSet,
    SnapshotRef,
    Unit,
    units_of,
)
from fleetstep.orchestration.dispatch import breadth_first
from fleetstep.orchestration.sweep_plan import (
    Rules,
    Subject,
    SweepPlan,
    blocks_of,
    plan_sweep,
)
from fleetstep.orchestration.sweep_solvers import (
    Setting,
    schedule_label,
    settings_of,
    solver_text,
)
from fleetstep.sampling.spec import (
    PREDICTOR_FACTS,
    AmedSpec,
    DpmppSdeSpec,
    EulerSpec,
    GuidanceSpec,
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


REFERENCE = ReferenceSet(data=Path("digits"), fingerprint="f" * 64, split="train", samples=1_250)
GUIDED = GuidanceSpec(scale=1.5)


def subject(
    network: SnapshotRef, reference: ReferenceSet | None = REFERENCE, track: str = "ema"
) -> Subject:
    return Subject(snapshot=network, track=track, reference=reference)


def plan(**changes: Any) -> SweepPlan:
    grid: dict[str, Any] = {
        "subjects": [subject(snapshot()), subject(snapshot("fdm", "b" * 64))],
        "solvers": (EulerSpec(), HeunSpec()),
        "nfe": (5, 8),
        "schedules": (None,),
        "guidance": (None,),
        "finished": lambda unit: False,
    }
    grid |= {key: changes.pop(key) for key in grid.keys() & changes.keys()}
    settings, skipped = settings_of(
        grid["solvers"], grid["nfe"], grid["schedules"], grid["guidance"]
    )
    rules = Rules(**({"samples": 1000} | changes))
    return plan_sweep(grid["subjects"], settings, skipped, rules, finished=grid["finished"])


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
        made = plan(subjects=[subject(snapshot()), subject(snapshot("b", "b" * 64), other)])
        assert made.references == (REFERENCE, other)
        assert {made.reference_of[cell] for cell in made.cells if cell.snapshot.run == "b"} == {
            other
        }

    def test_a_copy_of_the_dataset_elsewhere_is_the_same_reference(self):
        moved = replace(REFERENCE, data=Path("elsewhere"))
        made = plan(subjects=[subject(snapshot()), subject(snapshot("b", "b" * 64), moved)])
        assert made.references == (REFERENCE,)

    def test_the_same_snapshot_named_twice_is_scored_once(self):
        assert (
            plan(subjects=[subject(snapshot())] * 2).cells
            == plan(subjects=[subject(snapshot())]).cells
        )

    def test_runs_with_the_same_weights_share_units_and_have_a_score_each(self):
        """Two runs of one seed before their first step, on two datasets of the same shape."""
        twin = replace(snapshot(), run="twin", path=Path("runs/twin"), data=Path("fashion"))
        other = replace(REFERENCE, fingerprint="0" * 64, data=Path("fashion"))
        made = plan(subjects=[subject(snapshot()), subject(twin, other)])
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
        with pytest.raises(UsageError, match=r"heun at 4 calls: .*cannot make exactly 4"):
            plan(solvers=(HeunSpec(),), nfe=(4,))

    @pytest.mark.parametrize("channels", [2, 4])
    def test_latents_are_refused_before_anything_else(self, channels: int):
        latents = replace(snapshot("dit"), shape=(channels, 32, 32))
        with pytest.raises(UsageError, match=rf"dit cannot be scored: .* {channels} x 32 x 32"):
            plan(subjects=[subject(snapshot()), subject(latents)])
        rgb = replace(snapshot(), shape=(3, 32, 32))
        assert plan(subjects=[subject(rgb)]).cells


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
                subjects=[subject(snapshot(digest=digest))],
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


class TestProduct:
    def test_every_dimension_of_the_grid_is_there_once(self):
        made = plan(
            subjects=[
                subject(snapshot(name, digest * 64), track=track)
                for track in ("ema", "slow")
                for name, digest in (("edm", "a"), ("fdm", "b"))
            ],
            solvers=(EulerSpec(), IpndmSpec()),
            schedules=(None, LogSnrSpec()),
            guidance=(None, GUIDED),
            nfe=(4, 6),
        )
        assert made.skipped == ()
        points = {
            (c.track, c.snapshot.run, c.solver.kind, c.schedule.kind, c.guidance, c.nfe)
            for c in made.cells
        }
        assert len(made.cells) == len(points) == len({c.key for c in made.cells}) == 2**6

    def test_guidance_halves_the_steps_and_odd_numbers_cannot_be_reached(self):
        made = plan(solvers=(EulerSpec(),), guidance=(GUIDED,), nfe=(5, 8))
        assert {cell.nfe for cell in made.cells} == {8}
        ((name, nfe, reason),) = {(s.solver, s.nfe, s.reason) for s in made.skipped}
        assert (name, nfe) == ("euler", 5)
        assert "2 times for guidance" in reason
        # At scale 1 it is the conditional network alone.
        free = plan(solvers=(EulerSpec(),), guidance=(GuidanceSpec(scale=1),), nfe=(5,))
        assert free.network_calls == 2 * 1000 * 5

    def test_guidance_of_a_network_without_classes_is_skipped_and_the_rest_runs(self):
        free = replace(snapshot("free", "c" * 64), classes=0)
        made = plan(
            subjects=[subject(snapshot()), subject(free)],
            solvers=(EulerSpec(),),
            nfe=(8,),
            guidance=(None, GUIDED),
        )
        assert [(c.snapshot.run, c.guidance) for c in made.cells] == [
            ("edm", None),
            ("edm", GUIDED),
            ("free", None),
        ]
        assert "has none" in made.skipped[0].reason

    def test_solvers_with_levels_of_their_own_take_no_schedule(self):
        levels = EulerSpec(schedule=LevelsSpec(sigmas=(80.0, 1.0)))
        made = plan(solvers=(Rk45Spec(), levels), schedules=(None, LogSnrSpec()), nfe=(5,))
        kept = {(c.solver.kind, c.nfe) for c in made.cells}
        assert ("rk45", None) in kept
        assert any(s.solver.startswith("rk45") and "its own" in s.reason for s in made.skipped)

    def test_a_point_of_the_grid_that_is_asked_for_twice_is_there_once(self):
        made = plan(solvers=(EulerSpec(),), schedules=(None, PolynomialSpec()), nfe=(5,))
        assert len(made.cells) == 2  # one a network
        both = (IpndmSpec(), IpndmSpec(schedule=LogSnrSpec()))
        made = plan(solvers=both, schedules=(None, LogSnrSpec()), nfe=(5,))
        assert len(made.cells) == len({cell.key for cell in made.cells}) == 2 * 2


class TestSeedBlocks:
    def test_blocks_follow_one_another_each_breadth_first(self):
        made = plan(seed_blocks=3)
        own = [unit for unit in made.units if isinstance(unit.source, Cell)]
        per_block = len(made.cells) * 10
        for block in range(3):
            part = own[block * per_block : (block + 1) * per_block]
            groups = [made.units_of(cell, block) for cell in made.cells]
            assert part == breadth_first(groups)
            assert {u.index for u in part} == set(range(10 * block, 10 * block + 10))

    def test_a_block_has_the_ids_that_more_samples_would_have(self):
        second = plan(seed_blocks=2).units_of(plan().cells[0], 1)
        assert second == units_of(plan().cells[0], 2000)[10:]
        assert set(plan(samples=2000).units) == set(plan(seed_blocks=2).units)


TEACHER = Setting(HeunSpec(), 79)


class TestScreening:
    def test_the_first_round_and_the_teachers_come_first(self):
        made = plan(teacher=TEACHER)
        assert made.units[: len(made.screening)] == made.screening
        own = [unit for unit in made.screening if isinstance(unit.source, Cell)]
        assert {unit.index for unit in own} == {0}
        assert [unit.source for unit in own[:6]] == list(made.cells)
        assert {(u.source.snapshot.run, u.source.nfe) for u in own[6:]} == {
            ("edm", 79),
            ("fdm", 79),
        }
        assert made.network_calls == plan().network_calls + 2 * 100 * 79

    def test_guidance_doubles_the_teachers_calls(self):
        made = plan(teacher=TEACHER, solvers=(EulerSpec(),), nfe=(8,), guidance=(None, GUIDED))
        assert {(c.guidance, t.nfe) for c, t in made.teacher_of.items()} == {
            (None, 79),
            (GUIDED, 158),
        }

    def test_a_teacher_that_is_in_the_grid_is_sampled_once(self):
        made = plan(teacher=TEACHER, nfe=(5, 79))
        keys = [(unit.source.key, unit.index) for unit in made.units]
        assert len(keys) == len(set(keys))

    def test_stochastic_and_adaptive_cells_have_no_teacher(self):
        solvers = (EulerSpec(), DpmppSdeSpec(), Rk45Spec())
        made = plan(teacher=TEACHER, solvers=solvers, nfe=(5,))
        assert {cell.solver.kind for cell in made.teacher_of} == {"euler"}
        assert plan(teacher=TEACHER, solvers=solvers[1:], nfe=(5,)).screening == ()

    def test_without_cells_keeps_what_was_done_to_drop_them(self):
        made = plan(teacher=TEACHER, finished=lambda unit: unit.index == 0)
        dropped, *kept = made.cells
        left = made.without({dropped})
        assert list(left.cells) == kept
        assert [u.index for u in left.units if u.source == dropped] == [0]
        assert left.finished == {u for u in left.units if u.index == 0}
        assert left.network_calls == made.network_calls - 900 * dropped.nfe


class TestIdentity:
    cell = Cell(
        snapshot=snapshot(),
        track="ema",
        solver=IpndmSpec(),
        nfe=9,
        labels="random",
        namespace=0,
        batch=100,
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
            {"guidance": GUIDED},
            {"guidance": GuidanceSpec(scale=1.5, channels="first_three")},
            {"quantisation": "truncate"},
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
        assert self.cell.key == "12924c30a207b0fc53be"
        space = FeatureSpace(name="x", sha256="e" * 64, preprocess="none")
        assert space.key == "13677378a5d5"
        assert Unit(self.cell, 3, 100).path(Path("s"), space) == Path(
            "s/cells/12924c30a207b0fc53be/unit-00003.13677378a5d5.safetensors"
        )

    @pytest.mark.parametrize("change", [{"name": "y"}, {"sha256": "d"}, {"preprocess": "y"}])
    def test_a_feature_space_names_its_own_file_of_the_same_images(self, change: dict[str, str]):
        space = FeatureSpace(name="x", sha256="e" * 64, preprocess="none")
        other = replace(space, **change)
        unit = Unit(self.cell, 3, 100)
        assert unit.path(Path("s"), space) != unit.path(Path("s"), other)
        assert unit.path(Path("s"), space).parent == unit.path(Path("s"), other).parent

    @pytest.mark.parametrize("change", [{"fingerprint": "0"}, {"split": "heldout"}])
    def test_a_reference_is_named_by_content(self, change: dict[str, str]):
        assert replace(REFERENCE, **change).key != REFERENCE.key
        assert replace(REFERENCE, data=Path("moved")).key == REFERENCE.key
