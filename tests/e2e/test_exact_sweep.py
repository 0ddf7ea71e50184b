"""A sweep of the exact denoiser of the digits: no weights, no training, and an outcome that is
known. Few network calls tell the solvers apart, many give back the dataset, and the scores are the
same bits whoever did which unit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from fleetstep.config import SweepSpec
from fleetstep.evaluation.jackknife import StudentInterval, student_interval
from fleetstep.evaluation.record import ScoreRecord
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.cells import Cell, Unit
from fleetstep.orchestration.finished_units import Progress
from fleetstep.orchestration.sweep import Listener, plan, score, sweep
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_worker import build_worker
from fleetstep.sampling.spec import DpmppSpec, EulerSpec, HeunSpec, SolverSpec

EULER, HEUN, DPMPP = EulerSpec(), HeunSpec(), DpmppSpec(order=2)


def spec_of(
    digits: Path,
    storage: Path,
    *,
    solvers: Sequence[SolverSpec] = (HEUN, DPMPP),
    nfe: Sequence[int] = (3,),
    pool: int = 1,
) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "runs": f"exact:{digits}",
            "storage": str(storage),
            "solvers": [solver.model_dump() for solver in solvers],
            "nfe": list(nfe),
            "metrics": ["fd"],
            "pictures": 0,
            "pool": {"max": pool, "cpus_per_actor": 0.5},
        }
    )


class DyingError(Exception):
    """What ends a worker in the middle of a write."""


def work_off(
    spec: SweepSpec, units: Sequence[Unit], workers: int = 1, dies_in: int | None = None
) -> None:
    """Do units as a pool would, in this process: each in turn by another worker.

    Args:
        dies_in: the write, counted from 0, before whose end the process dies.
    """
    written = 0

    def fault(point: str) -> None:
        nonlocal written
        if point == "unit before rename":
            if written == dies_in:
                raise DyingError
            written += 1

    hands = [
        build_worker(Path(spec.storage), spec.extractors, fault=fault) for _ in range(workers)
    ]
    for position, unit in enumerate(units):
        hands[position % workers].run(unit)


def swept(spec: SweepSpec, workers: int = 1, seed: int = 0) -> tuple[CellScore, ...]:
    work = plan(spec)
    units = list(work.remaining)
    random.Random(seed).shuffle(units)
    work_off(spec, units, workers)
    return score(spec, work)


def record_of(scores: Sequence[CellScore], solver: SolverSpec, nfe: int) -> ScoreRecord:
    (found,) = (s for s in scores if (s.cell.solver, s.cell.nfe) == (solver, nfe))
    (record,) = found.records
    return record


def bits(scores: Sequence[CellScore]) -> dict[str, tuple[object, ...]]:
    return {
        s.cell.key: (s.moments_sha256, [(r.raw, r.pseudo_values) for r in s.records])
        for s in scores
    }


def lead(loser: ScoreRecord, winner: ScoreRecord) -> StudentInterval:
    """By how much a distance is the larger one; the cells share their latents."""
    pairs = zip(loser.pseudo_values, winner.pseudo_values, strict=True)
    return student_interval([a - b for a, b in pairs])


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> tuple[CellScore, ...]:
    """Three solvers at few, some and many calls, by one worker in one order."""
    storage = tmp_path_factory.mktemp("grid")
    return swept(
        spec_of(digits_path, storage, solvers=(EULER, HEUN, DPMPP), nfe=(3, 7, 29)), workers=1
    )


class TestOrdering:
    """Measured, n = 1,000, value +- half of its interval: at 3 calls DPM-Solver++ 0.036 +- 0.016,
    Euler 0.312 +- 0.052, Heun 0.540 +- 0.024; at 7 Euler 0.0057 +- 0.0046 and Heun 0.0074 +-
    0.0060 above DPM-Solver++; at 29 all within 0.0005 of zero, +- 0.003.
    """

    def test_three_calls_tell_all_three_apart(self, grid: tuple[CellScore, ...]):
        dpmpp, euler, heun = (record_of(grid, solver, 3) for solver in (DPMPP, EULER, HEUN))
        assert 0 < dpmpp.low < dpmpp.high < euler.low < euler.high < heun.low

    def test_seven_calls_still_tell_the_best_from_the_others(self, grid: tuple[CellScore, ...]):
        dpmpp, euler, heun = (record_of(grid, solver, 7) for solver in (DPMPP, EULER, HEUN))
        assert lead(euler, dpmpp).low > 0
        assert lead(heun, dpmpp).low > 0

    @pytest.mark.parametrize("solver", [EULER, HEUN, DPMPP], ids=lambda solver: solver.kind)
    def test_more_calls_are_better(self, grid: tuple[CellScore, ...], solver: SolverSpec):
        assert lead(record_of(grid, solver, 3), record_of(grid, solver, 29)).low > 0

    def test_many_calls_give_back_the_dataset_whoever_makes_them(
        self, grid: tuple[CellScore, ...]
    ):
        for solver in (EULER, HEUN, DPMPP):
            record = record_of(grid, solver, 29)
            assert record.low < 0 < record.high
            # The plain value is the bias of 1,000 images, which the jackknife takes away.
            assert record.raw > record.high

    def test_a_score_says_what_it_is_of(self, grid: tuple[CellScore, ...]):
        record = record_of(grid, DPMPP, 7)
        assert record.metric.startswith("fd1k.fs-rn20.multi112@")
        assert (record.run, record.images_seen, record.nfe) == ("exact-digits", 0, 7)
        assert (record.reference_n, record.n) == (1500, 1000)


def test_tracks_do_not_multiply_what_has_none(digits_path: Path, tmp_path: Path):
    spec = spec_of(digits_path, tmp_path).model_copy(update={"ema": ("fast", "slow")})
    assert [cell.track for cell in plan(spec).cells] == ["exact", "exact"]


@pytest.mark.cluster  # long; its twin without a dataset is in test_sweep_grid.py
class TestWhoDidIt:
    @pytest.mark.parametrize("workers", [2, 3])
    def test_the_number_of_workers_and_the_order_change_no_bit(
        self,
        grid: tuple[CellScore, ...],
        digits_path: Path,
        tmp_path: Path,
        workers: int,
    ):
        found = bits(swept(spec_of(digits_path, tmp_path), workers=workers, seed=workers))
        assert len(found) == 2
        assert found.items() <= bits(grid).items()

    def test_a_death_in_a_write_and_a_new_start_change_no_bit(
        self, grid: tuple[CellScore, ...], digits_path: Path, tmp_path: Path
    ):
        spec = spec_of(digits_path, tmp_path)
        with pytest.raises(DyingError):
            work_off(spec, plan(spec).remaining, workers=2, dies_in=20)
        again = plan(spec)
        # 15 units of the reference come first, then one of each cell in turn.
        assert cell_units(again.finished) == {"heun": 3, "dpmpp": 2}
        work_off(spec, again.remaining, workers=1)
        assert bits(score(spec, plan(spec))).items() <= bits(grid).items()
        assert plan(spec).remaining == ()

    def test_a_wider_grid_does_only_what_is_new(self, digits_path: Path, tmp_path: Path):
        swept(spec_of(digits_path, tmp_path, solvers=(DPMPP,)))
        wider = plan(spec_of(digits_path, tmp_path, solvers=(DPMPP, EULER)))
        assert {
            unit.source.solver for unit in wider.remaining if isinstance(unit.source, Cell)
        } == {EULER}
        assert len(wider.remaining) == 10


def cell_units(units: frozenset[Unit]) -> dict[str, int]:
    kinds = [unit.source.solver.kind for unit in units if isinstance(unit.source, Cell)]
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_actors_of_ray_stopped_once_and_started_again_agree_with_one_process(
    grid: tuple[CellScore, ...], digits_path: Path, tmp_path: Path
):
    def stop(progress: Progress) -> None:
        if progress.units_done == 19:
            raise KeyboardInterrupt

    one = spec_of(digits_path, tmp_path, pool=1)
    with pytest.raises(KeyboardInterrupt):
        sweep(one, plan(one), listener=Listener(progress=stop))
    three = spec_of(digits_path, tmp_path, pool=3)
    work: SweepPlan = plan(three)
    assert 19 <= len(work.finished) < len(work.units) == 35
    result = sweep(three, work)
    assert bits(result.scores).items() <= bits(grid).items()
