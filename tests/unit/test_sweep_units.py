"""Units in one process: the same bits however the work is cut, and no file that is not whole."""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fleetstep.errors import DataError
from fleetstep.evaluation.metrics import frechet, jackknife
from fleetstep.evaluation.moments import Moments
from fleetstep.evaluation.record import ScoreRecord
from fleetstep.orchestration.cell_scores import (
    CellScore,
    close_reference,
    load_reference,
    moments_path,
    score_cell,
)
from fleetstep.orchestration.sweep_plan import (
    Cell,
    ReferenceSet,
    SnapshotRef,
    SweepPlan,
    Unit,
    plan_sweep,
    units_of,
)
from fleetstep.orchestration.sweep_worker import SweepWorker
from fleetstep.orchestration.units import (
    Hardware,
    UnitResult,
    digest_of,
    read_unit,
    write_unit,
)
from fleetstep.sampling.generate import generate
from fleetstep.sampling.spec import (
    DpmppSdeSpec,
    DpmppSpec,
    EulerSpec,
    HeunSpec,
    Rk45Spec,
    SolverSpec,
)

REFERENCE = ReferenceSet(
    data=Path("digits"),
    fingerprint="f" * 64,
    split="train",
    samples=250,
    extractor="e" * 64,
    preprocess="none",
)
UNIT = units_of(REFERENCE, 250)[1]
HARDWARE = Hardware("Test CPU", 1, "torch 0")


def result(seed: int = 0, rows: int = 100) -> UnitResult:
    features = np.random.Generator(np.random.PCG64(seed)).normal(size=(rows, 6)).astype(np.float32)
    return UnitResult(features, digest_of(features), 9, 8.0, 1.5, HARDWARE)


class TestFile:
    def test_what_is_written_is_read(self, tmp_path: Path):
        path = UNIT.path(tmp_path)
        write_unit(path, UNIT, result())
        found = read_unit(path, UNIT)
        assert found is not None
        np.testing.assert_array_equal(found.features, result().features)
        assert (found.digest, found.nfe, found.seconds) == (result().digest, 9, 1.5)
        assert found.hardware == HARDWARE
        assert os.listdir(path.parent) == [path.name]

    def test_a_missing_file_is_no_result(self, tmp_path: Path):
        assert read_unit(UNIT.path(tmp_path), UNIT) is None

    def test_a_changed_byte_is_noticed_wherever_it_is(self, tmp_path: Path):
        path = UNIT.path(tmp_path)
        write_unit(path, UNIT, result())
        sound = path.read_bytes()
        header = 8 + int.from_bytes(sound[:8], "little")
        padding = len(sound[:header]) - len(sound[:header].rstrip(b" "))
        unnoticed = []
        for position in [
            *range(0, header - padding, 5),
            *range(header, len(sound), 97),
            len(sound) - 1,
        ]:
            content = bytearray(sound)
            content[position] ^= 1
            path.write_bytes(content)
            if read_unit(path, UNIT) is not None:
                unnoticed.append(position)
        assert unnoticed == []

    @pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
    def test_a_cut_file_is_noticed(self, tmp_path: Path, kept: float):
        path = UNIT.path(tmp_path)
        write_unit(path, UNIT, result())
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
        assert read_unit(path, UNIT) is None

    def test_the_file_of_another_unit_is_not_taken_for_this_one(self, tmp_path: Path):
        path = UNIT.path(tmp_path)
        write_unit(path, Unit(REFERENCE, 0, 100), result())
        assert read_unit(path, UNIT) is None

    def test_too_few_rows_are_no_result(self, tmp_path: Path):
        path = UNIT.path(tmp_path)
        write_unit(path, UNIT, result(rows=99))
        assert read_unit(path, UNIT) is None

    @pytest.mark.parametrize("point", ["unit half written", "unit before rename"])
    def test_a_kill_inside_a_write_leaves_nothing_and_the_next_write_tidies_up(
        self, tmp_path: Path, point: str
    ):
        path = UNIT.path(tmp_path)

        class Killed(BaseException):
            pass

        def fault(reached: str) -> None:
            if reached == point:
                raise Killed

        with pytest.raises(Killed):
            write_unit(path, UNIT, result(), fault)
        assert read_unit(path, UNIT) is None
        assert len(os.listdir(path.parent)) == 1
        write_unit(path, UNIT, result())
        assert read_unit(path, UNIT) is not None
        assert os.listdir(path.parent) == [path.name]


class PixelFeatures:
    """An extractor without weights: every pixel of a 4x4 image, and its square."""

    name, digest, dim, preprocess = "pixels", "e" * 64, 32, "none"

    def __call__(self, images_nCHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        flat = images_nCHW.reshape(len(images_nCHW), -1).astype(np.float32) / 255
        return np.concatenate([flat, flat**2], axis=1)


class GaussianDenoiser:
    """E[x0 | x] for data N(mean, 0.3^2): the exact answer of a perfect network."""

    sigma_min, sigma_max = 0.0, float("inf")

    def __init__(self, mean: float) -> None:
        self.mean = mean
        self.nfe = 0

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        shrink = 0.09 / (0.09 + sigma_B.view(-1, 1, 1, 1) ** 2)
        return self.mean + shrink * (x_BCHW - self.mean)


def _real_images(reference: ReferenceSet, first: int, count: int) -> npt.NDArray[np.uint8]:
    shape = (reference.samples, 1, 4, 4)
    pixels = np.random.Generator(np.random.PCG64(1)).normal(0.0, 0.3, size=shape)
    return np.clip(pixels * 127.5 + 128, 0, 255).astype(np.uint8)[first : first + count]


def _snapshot(name: str, digest: str) -> SnapshotRef:
    return SnapshotRef(
        path=Path("runs") / name,
        digest=digest * 64,
        run=name,
        images_seen=1000,
        shape=(1, 4, 4),
        classes=10,
        data=Path("digits"),
        dataset="f" * 64,
    )


NEAR, FAR = _snapshot("near", "1"), _snapshot("far", "2")


class Sweep:
    """A small sweep whose units run in this process."""

    def __init__(
        self,
        storage: Path,
        samples: int = 1000,
        solvers: Sequence[SolverSpec] = (EulerSpec(), DpmppSpec()),
    ) -> None:
        self.storage = storage
        self.loaded: list[str] = []
        self.plan: SweepPlan = plan_sweep(
            [(NEAR, REFERENCE), (FAR, REFERENCE)],
            solvers=solvers,
            nfe=(3,),
            samples=samples,
            track="ema",
            namespace=5,
            labels="balanced",
            batch=32,
            extractor=PixelFeatures.digest,
            finished=lambda unit: read_unit(unit.path(storage), unit) is not None,
        )

    def worker(self) -> SweepWorker:
        return SweepWorker(
            self.storage,
            PixelFeatures(),
            self.denoiser_of,
            _real_images,
            device=torch.device("cpu"),
        )

    def denoiser_of(self, snapshot: SnapshotRef, track: str) -> GaussianDenoiser:
        self.loaded.append(snapshot.run)
        return GaussianDenoiser({"near": 0.1, "far": 0.6}[snapshot.run])

    def scores(self) -> list[CellScore]:
        against = close_reference(self.storage, REFERENCE)
        return [
            score_cell(self.storage, cell, self.plan.samples, against, PixelFeatures())
            for cell in self.plan.cells
        ]


def run(units: Sequence[Unit], *workers: SweepWorker) -> None:
    for index, unit in enumerate(units):
        workers[index % len(workers)].run(unit)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, list[CellScore]]:
    sweep = Sweep(tmp_path_factory.mktemp("one"))
    run(sweep.plan.units, sweep.worker())
    return sweep, sweep.scores()


Done = tuple[Sweep, list[CellScore]]


class TestSweep:
    def test_three_workers_in_any_order_give_the_same_bits(self, done: Done, tmp_path: Path):
        sweep = Sweep(tmp_path)
        units = list(sweep.plan.units)
        random.Random(0).shuffle(units)
        run(units, *(sweep.worker() for _ in range(3)))
        again = sweep.scores()
        assert [s.moments_sha256 for s in again] == [s.moments_sha256 for s in done[1]]
        assert [s.records for s in again] == [s.records for s in done[1]]

    def test_a_worker_loads_each_network_once(self, done: Done):
        assert sorted(done[0].loaded) == ["far", "near"]

    def test_the_distance_orders_the_models_and_its_interval_holds(self, done: Done):
        plain = {(s.cell.snapshot.run, s.cell.solver.kind): s.records[0] for s in done[1]}
        for solver in ("euler", "dpmpp"):
            near, far = plain["near", solver], plain["far", solver]
            assert far.value > 3 * near.value
            assert near.low < near.value < near.high < far.low
            assert near.blocks == len(near.pseudo_values) == 10

    def test_a_record_says_how_it_was_made(self, done: Done):
        record, other = done[1][0].records
        assert record.metric == "fd.pixels@eeeeeeee"
        assert other.metric == "fd_z.pixels@eeeeeeee"
        assert (record.run, record.checkpoint, record.nfe, record.n) == ("near", "1" * 64, 3, 1000)
        assert (record.seeds.namespace, record.seeds.count, record.labels) == (5, 1000, "balanced")
        assert (record.reference, record.reference_n) == ("digits/train", 250)
        assert record.hardware["threads"] == str(torch.get_num_threads())
        assert "mixed" not in record.hardware

    def test_finished_units_are_kept_and_damaged_ones_are_done_again(
        self, done: Done, tmp_path: Path
    ):
        sweep = Sweep(tmp_path)
        run(sweep.plan.units[:20], sweep.worker())
        first, second = (u.path(tmp_path) for u in sweep.plan.units[10:12])
        kept = first.stat().st_mtime_ns
        second.write_bytes(second.read_bytes()[:-7])

        resumed = Sweep(tmp_path)
        assert len(resumed.plan.finished) == 19
        assert sweep.plan.units[11] in resumed.plan.remaining
        run(resumed.plan.remaining, resumed.worker())
        assert first.stat().st_mtime_ns == kept
        assert [s.records for s in resumed.scores()] == [s.records for s in done[1]]

    def test_cells_share_their_first_call_and_say_so(self, done: Done):
        """Both solvers begin with D(x_T): of 3 calls each, the second makes 2 a batch."""
        made = {(s.cell.snapshot.run, s.cell.solver.kind): s.calls_made for s in done[1]}
        assert made == {
            ("near", "euler"): 3,
            ("near", "dpmpp"): 2,
            ("far", "euler"): 3,
            ("far", "dpmpp"): 2,
        }
        assert {record.nfe for score in done[1] for record in score.records} == {3}

    def test_a_unit_that_is_there_costs_no_network_call(self, done: Done):
        sweep, _ = done
        again = Sweep(sweep.storage)
        unit = next(u for u in again.plan.units if isinstance(u.source, Cell))
        summary = again.worker().run(unit)
        assert again.loaded == []
        assert summary.seconds == 0
        assert summary.nfe == 3

    def test_more_samples_reuse_the_first_ones(self, done: Done):
        larger = Sweep(done[0].storage, samples=2000)
        own = [u for u in larger.plan.remaining if isinstance(u.source, Cell)]
        assert {u.index for u in own} == set(range(10, 20))

    def test_blocks_are_consecutive_ranges_of_ids(self, done: Done, tmp_path: Path):
        """Three units a block: the estimate is that of features cut by hand, made in one go."""
        sweep = Sweep(tmp_path, samples=3000)
        cell = sweep.plan.cells[0]
        run(
            [unit for unit in sweep.plan.units if unit.source in (cell, REFERENCE)], sweep.worker()
        )
        against = close_reference(tmp_path, REFERENCE)
        (record, _) = score_cell(tmp_path, cell, 3000, against, PixelFeatures()).records

        images = generate(
            sweep.denoiser_of(NEAR, "ema"),
            cell.solver,
            cell.nfe,
            namespace=5,
            count=3000,
            shape=(1, 4, 4),
            classes=10,
            batch=500,
        ).images
        parts = np.split(PixelFeatures()(images), 10)
        distance = functools.partial(frechet, against.reference)
        expected = jackknife([Moments.of(part) for part in parts], distance)
        assert record.pseudo_values == expected.pseudo_values
        assert (record.value, record.se) == (expected.value, expected.standard_error)

    def test_a_missing_unit_is_named(self, done: Done, tmp_path: Path):
        sweep = Sweep(tmp_path)
        run(sweep.plan.units[:-1], sweep.worker())
        name = r"unit 9 of \(dpmpp\(order=2\), 3 calls, far at 1,000 images\)"
        with pytest.raises(DataError, match=f"{name} is missing"):
            sweep.scores()

    def test_mixed_hardware_is_flagged(self, tmp_path: Path):
        sweep = Sweep(tmp_path)
        run(sweep.plan.units, sweep.worker())
        unit = next(u for u in sweep.plan.units if isinstance(u.source, Cell))
        found = read_unit(unit.path(tmp_path), unit)
        assert found is not None
        write_unit(unit.path(tmp_path), unit, replace(found, hardware=HARDWARE))
        mixed, *others = sweep.scores()
        assert "1 units on Test CPU, torch 0" in mixed.records[0].hardware["mixed"]
        assert all("mixed" not in other.records[0].hardware for other in others)

    def test_a_wrong_count_of_network_calls_is_refused(self, tmp_path: Path):
        sweep = Sweep(tmp_path)
        run(sweep.plan.units, sweep.worker())
        unit = next(u for u in sweep.plan.units if isinstance(u.source, Cell))
        found = read_unit(unit.path(tmp_path), unit)
        assert found is not None
        write_unit(unit.path(tmp_path), unit, replace(found, nfe=4))
        with pytest.raises(DataError, match=r"makes 3 network calls, but 4 were counted"):
            sweep.scores()


OTHER_SOLVERS = (Rk45Spec(rtol=1e-2, atol=1e-2), DpmppSdeSpec(), HeunSpec(s_churn=10))


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> list[CellScore]:
    sweep = Sweep(tmp_path_factory.mktemp("one"), solvers=OTHER_SOLVERS)
    run(sweep.plan.units, sweep.worker())
    return sweep.scores()


class TestOtherSolvers:
    """Stochastic and adaptive cells: the same bits for any order, and what was counted."""

    def test_any_order_gives_the_same_bits(self, scores: list[CellScore], tmp_path: Path):
        sweep = Sweep(tmp_path, solvers=OTHER_SOLVERS)
        units = list(sweep.plan.units)
        random.Random(1).shuffle(units)
        run(units, sweep.worker(), sweep.worker())
        assert [s.records for s in sweep.scores()] == [s.records for s in scores]

    def test_a_stochastic_cell_shares_nothing(self, scores: list[CellScore]):
        sde, heun = (s for s in scores[:3] if s.cell.solver.stochastic)
        assert sde.calls_made == heun.calls_made == sde.records[0].nfe == 3

    def test_an_adaptive_cell_holds_the_mean_of_what_was_counted(self, scores: list[CellScore]):
        near, far = (s for s in scores if s.cell.solver.adaptive)
        for score in (near, far):
            record = score.records[0]
            assert record.adaptive
            assert record.schedule == "adaptive"
            assert 8 <= record.nfe < 200
            assert record.nfe == score.calls_made
            assert ScoreRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
        assert not scores[1].records[0].adaptive


class TestReference:
    def test_statistics_are_computed_once_and_replace_their_units(self, done: Done):
        storage = done[0].storage
        path = moments_path(storage, REFERENCE)
        assert os.listdir(path.parent) == [path.name]
        found = load_reference(storage, REFERENCE)
        assert found is not None
        assert found.reference.n == 250

    def test_a_damaged_file_is_no_statistics(self, tmp_path: Path):
        sweep = Sweep(tmp_path)
        run(units_of(REFERENCE, 250), sweep.worker())
        digest = close_reference(tmp_path, REFERENCE).reference.sha256
        path = moments_path(tmp_path, REFERENCE)
        path.write_bytes(path.read_bytes()[:-1])
        assert load_reference(tmp_path, REFERENCE) is None
        run(units_of(REFERENCE, 250), sweep.worker())
        assert close_reference(tmp_path, REFERENCE).reference.sha256 == digest

    def test_a_file_of_another_set_is_not_taken_for_this_one(self, done: Done, tmp_path: Path):
        other = replace(REFERENCE, split="heldout")
        path = moments_path(tmp_path, other)
        path.parent.mkdir(parents=True)
        path.write_bytes(moments_path(done[0].storage, REFERENCE).read_bytes())
        assert load_reference(tmp_path, other) is None
