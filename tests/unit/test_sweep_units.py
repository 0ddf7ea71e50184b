"""Units in one process: the same bits however the work is cut, and no file that is not whole."""

from __future__ import annotations

import functools
import json
import os
import random
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetstep.errors import DataError
from fleetstep.evaluation.jackknife import jackknife
from fleetstep.evaluation.metrics import frechet
from fleetstep.evaluation.moments import Moments
from fleetstep.evaluation.record import ScoreRecord
from fleetstep.orchestration import measures, references
from fleetstep.orchestration.cell_scores import CellScore, Measure, score_cell
from fleetstep.orchestration.cells import Cell, Unit, folder, units_of
from fleetstep.orchestration.pictures import read_pictures
from fleetstep.orchestration.references import close_reference, is_closed, load_reference
from fleetstep.orchestration.units import (
    Hardware,
    UnitResult,
    digest_of,
    read_unit,
    write_unit,
)
from fleetstep.sampling.generate import generate
from fleetstep.sampling.spec import DpmppSdeSpec, HeunSpec, Rk45Spec
from pixel_sweep import (
    MEASURE,
    NEAR,
    REFERENCE,
    SPACE,
    PixelFeatures,
    Sweep,
    real_images,
    run,
)

UNIT = units_of(REFERENCE, 250)[1]
HARDWARE = Hardware("Test CPU", 1, "torch 0")


def result(seed: int = 0, rows: int = 100, *, classes: int = 0) -> UnitResult:
    stream = np.random.Generator(np.random.PCG64(seed))
    features = stream.normal(size=(rows, 6)).astype(np.float32)
    probabilities = stream.random((rows, classes), np.float32) if classes else None
    digest = digest_of(features, probabilities)
    return UnitResult(features, probabilities, digest, 9, 8.0, 1.5, HARDWARE)


class TestFile:
    @pytest.mark.parametrize("classes", [0, 10])
    def test_what_is_written_is_read(self, tmp_path: Path, classes: int):
        written = result(classes=classes)
        write_unit(tmp_path, UNIT, SPACE, written)
        found = read_unit(tmp_path, UNIT, SPACE)
        assert found is not None
        np.testing.assert_array_equal(found.features, written.features)
        if classes:
            np.testing.assert_array_equal(found.probabilities, written.probabilities)
        else:
            assert found.probabilities is None
        assert (found.digest, found.nfe, found.seconds) == (written.digest, 9, 1.5)
        assert found.hardware == HARDWARE
        path = UNIT.path(tmp_path, SPACE)
        assert os.listdir(path.parent) == [path.name]

    def test_a_missing_file_is_no_result(self, tmp_path: Path):
        assert read_unit(tmp_path, UNIT, SPACE) is None

    def test_a_changed_byte_is_noticed_wherever_it_is(self, tmp_path: Path):
        path = UNIT.path(tmp_path, SPACE)
        write_unit(tmp_path, UNIT, SPACE, result(classes=3))
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
            if read_unit(tmp_path, UNIT, SPACE) is not None:
                unnoticed.append(position)
        assert unnoticed == []

    @pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
    def test_a_cut_file_is_noticed(self, tmp_path: Path, kept: float):
        path = UNIT.path(tmp_path, SPACE)
        write_unit(tmp_path, UNIT, SPACE, result())
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
        assert read_unit(tmp_path, UNIT, SPACE) is None

    def test_the_file_of_another_unit_or_space_is_not_taken_for_this_one(self, tmp_path: Path):
        other = replace(SPACE, sha256="d" * 64)
        write_unit(tmp_path, UNIT, SPACE, result())
        content = UNIT.path(tmp_path, SPACE).read_bytes()
        for unit, space in ((Unit(REFERENCE, 0, 100), SPACE), (UNIT, other)):
            unit.path(tmp_path, space).write_bytes(content)
            assert read_unit(tmp_path, unit, space) is None

    def test_too_few_rows_are_no_result(self, tmp_path: Path):
        write_unit(tmp_path, UNIT, SPACE, result(rows=99))
        assert read_unit(tmp_path, UNIT, SPACE) is None

    @pytest.mark.parametrize("point", ["unit half written", "unit before rename"])
    def test_a_kill_inside_a_write_leaves_nothing_and_the_next_write_tidies_up(
        self, tmp_path: Path, point: str
    ):
        path = UNIT.path(tmp_path, SPACE)

        class Killed(BaseException):
            pass

        def fault(reached: str) -> None:
            if reached == point:
                raise Killed

        with pytest.raises(Killed):
            write_unit(tmp_path, UNIT, SPACE, result(), fault)
        assert read_unit(tmp_path, UNIT, SPACE) is None
        assert len(os.listdir(path.parent)) == 1
        write_unit(tmp_path, UNIT, SPACE, result())
        assert read_unit(tmp_path, UNIT, SPACE) is not None
        assert os.listdir(path.parent) == [path.name]


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
        assert record.metric == "fd1k.pixels@eeeeeeee"
        assert other.metric == "fd_z1k.pixels@eeeeeeee"
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
        first, second = (u.path(tmp_path, SPACE) for u in sweep.plan.units[10:12])
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
        against = close_reference(tmp_path, REFERENCE, SPACE)
        units = sweep.plan.units_of(cell)
        (record, _) = score_cell(tmp_path, cell, units, 10, [(MEASURE, against)]).records

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
        parts = np.split(PixelFeatures()(images).features, 10)
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
        found = read_unit(tmp_path, unit, SPACE)
        assert found is not None
        write_unit(tmp_path, unit, SPACE, replace(found, hardware=HARDWARE))
        mixed, *others = sweep.scores()
        assert "1 units on Test CPU, torch 0" in mixed.records[0].hardware["mixed"]
        assert all("mixed" not in other.records[0].hardware for other in others)

    def test_hardware_that_made_the_reference_alone_is_said_to_have(self, tmp_path: Path):
        sweep = Sweep(tmp_path)
        for unit in units_of(REFERENCE, 250):
            sweep.worker().run(unit)
            found = read_unit(tmp_path, unit, SPACE)
            assert found is not None
            write_unit(tmp_path, unit, SPACE, replace(found, hardware=HARDWARE))
        run(sweep.plan.units[3:], sweep.worker())
        for score in sweep.scores():
            said = score.records[0].hardware["mixed"].split("; ")
            assert sorted(part.partition(" on ")[0] for part in said) == [
                "10 units",
                "the reference",
            ]
            assert "the reference on Test CPU, torch 0" in said

    def test_a_wrong_count_of_network_calls_is_refused(self, tmp_path: Path):
        sweep = Sweep(tmp_path)
        run(sweep.plan.units, sweep.worker())
        unit = next(u for u in sweep.plan.units if isinstance(u.source, Cell))
        found = read_unit(tmp_path, unit, SPACE)
        assert found is not None
        write_unit(tmp_path, unit, SPACE, replace(found, nfe=4))
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


OTHER_SPACE = replace(SPACE, name="other", sha256="d" * 64)


class TestSeveralSpaces:
    """One pass of images feeds all extractors; each has a file, a reference and scores."""

    measures = (MEASURE, Measure(space=OTHER_SPACE, metrics=("fd",)))

    def test_each_space_has_the_scores_that_it_has_alone(self, done: Done, tmp_path: Path):
        both = Sweep(tmp_path, measures=self.measures)
        run(both.plan.units, both.worker())
        assert sorted(both.loaded) == ["far", "near"]
        for score, alone in zip(both.scores(), done[1], strict=True):
            assert score.records[:2] == alone.records
            assert score.records[2].metric == "fd1k.other@dddddddd"
            assert score.moments_sha256 == alone.moments_sha256 * 2

    def test_an_extractor_added_later_draws_again_and_keeps_what_is_there(
        self, done: Done, tmp_path: Path
    ):
        first = Sweep(tmp_path)
        run(first.plan.units, first.worker())
        paths = [unit.path(tmp_path, SPACE) for unit in first.plan.units_of(first.plan.cells[0])]
        written = [path.stat().st_mtime_ns for path in paths]
        both = Sweep(tmp_path, measures=self.measures)
        assert not both.plan.finished
        run(both.plan.remaining, both.worker())
        assert [path.stat().st_mtime_ns for path in paths] == written
        assert [s.records[:2] for s in both.scores()] == [s.records for s in done[1]]

    def test_probabilities_that_are_wanted_later_are_made_later(self, tmp_path: Path):
        first = Sweep(tmp_path)
        run(first.plan.units, first.worker())
        scores = Measure(space=SPACE, metrics=("fd", "is"), probabilities=True)
        later = Sweep(tmp_path, measures=[scores], extractors=[PixelFeatures(classifies=True)])
        cells = {unit for unit in later.plan.units if isinstance(unit.source, Cell)}
        assert set(later.plan.remaining) == cells
        run(later.plan.remaining, later.worker())
        for score in later.scores():
            assert score.records[1].metric == "is1k.pixels@eeeeeeee"
            assert 1 <= score.records[1].raw <= 2
        assert Sweep(tmp_path, measures=[scores]).plan.remaining == ()


class TestPictures:
    def test_the_first_images_of_a_cell_are_kept_as_they_were_measured(self, tmp_path: Path):
        sweep = Sweep(tmp_path)
        cell = sweep.plan.cells[0]
        run(sweep.plan.units_of(cell)[:2], sweep.worker(pictures=16))
        images = read_pictures(tmp_path, cell)
        assert images is not None
        assert images.shape == (16, 1, 4, 4)
        found = read_unit(tmp_path, sweep.plan.units_of(cell)[0], SPACE)
        assert found is not None
        np.testing.assert_array_equal(PixelFeatures()(images).features, found.features[:16])

    def test_pictures_that_are_wanted_later_are_drawn_later(self, tmp_path: Path):
        sweep = Sweep(tmp_path)
        cell = sweep.plan.cells[0]
        unit = sweep.plan.units_of(cell)[0]
        sweep.worker().run(unit)
        assert read_pictures(tmp_path, cell) is None
        sweep.worker(pictures=4).run(unit)
        assert len(read_pictures(tmp_path, cell)) == 4
        path = folder(tmp_path, cell) / "pictures.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert read_pictures(tmp_path, cell) is None

    def test_a_plan_that_wants_more_pictures_draws_the_first_units_again(self, tmp_path: Path):
        first = Sweep(tmp_path, pictures=4)
        run(first.plan.units, first.worker(pictures=4))
        assert Sweep(tmp_path, pictures=4).plan.remaining == ()
        more = Sweep(tmp_path, pictures=16)
        assert [(unit.source, unit.index) for unit in more.plan.remaining] == [
            (cell, 0) for cell in more.plan.cells
        ]
        run(more.plan.remaining, more.worker(pictures=16))
        for cell in more.plan.cells:
            images = read_pictures(tmp_path, cell)
            assert images is not None
            assert len(images) == 16
        assert Sweep(tmp_path, pictures=16).plan.remaining == ()


class TestReference:
    def test_statistics_are_computed_once_and_replace_their_units(self, done: Done):
        storage = done[0].storage
        names = sorted(os.listdir(folder(storage, REFERENCE)))
        assert names == [f"{part}.{SPACE.key}.safetensors" for part in ("features", "moments")]
        found = load_reference(storage, REFERENCE, SPACE)
        assert found is not None
        assert found.reference.n == 250
        assert found.reference.features().shape == (250, 32)

    def test_units_are_held_one_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        large = replace(REFERENCE, samples=1000)
        for unit in units_of(large, 1000):
            write_unit(tmp_path, unit, SPACE, result(unit.index))
        held: list[weakref.ref[np.ndarray]] = []
        most = 0

        def counted(*place: Any) -> UnitResult | None:
            nonlocal most
            found = read_unit(*place)
            if found is not None:
                held.append(weakref.ref(found.features))
                most = max(most, sum(features() is not None for features in held))
            return found

        monkeypatch.setattr(references, "read_unit", counted)
        closed = close_reference(tmp_path, large, SPACE).reference
        assert most <= 2  # the one that was added, and the one that is read
        features = np.concatenate([result(index).features for index in range(10)])
        assert closed.sha256 == Moments.of(features).digest()
        np.testing.assert_array_equal(closed.features(), features)

    def test_of_many_images_the_kept_ones_are_those_of_their_ids(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        kept = [0, 99, 100, 201, 249]
        monkeypatch.setattr(references, "kept_ids", lambda samples: kept)
        sweep = Sweep(tmp_path)
        run(units_of(REFERENCE, 250), sweep.worker())
        closed = close_reference(tmp_path, REFERENCE, SPACE).reference
        whole = PixelFeatures()(real_images(REFERENCE, 0, 250)).features
        np.testing.assert_array_equal(closed.features(), whole[kept])
        assert load_reference(tmp_path, REFERENCE, SPACE) is not None

    def test_a_sweep_that_is_overtaken_takes_what_the_other_closed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        sweep = Sweep(tmp_path)
        run(units_of(REFERENCE, 250), sweep.worker())
        read = references.read_unit

        def overtaken(*place: Any) -> UnitResult | None:
            monkeypatch.setattr(references, "read_unit", read)
            close_reference(tmp_path, REFERENCE, SPACE)
            return read(*place)

        monkeypatch.setattr(references, "read_unit", overtaken)
        closed = close_reference(tmp_path, REFERENCE, SPACE)
        found = load_reference(tmp_path, REFERENCE, SPACE)
        assert found is not None
        assert closed.reference.sha256 == found.reference.sha256

    def test_units_of_a_closed_reference_are_not_done_and_those_left_are_removed(
        self, tmp_path: Path
    ):
        both = Sweep(tmp_path, measures=TestSeveralSpaces.measures)
        units = units_of(REFERENCE, 250)
        late = both.worker()
        run(units, both.worker())
        unit = units[0].path(tmp_path, SPACE)
        content = unit.read_bytes()
        close_reference(tmp_path, REFERENCE, SPACE)
        names = sorted(os.listdir(folder(tmp_path, REFERENCE)))
        assert sum(name.startswith("unit-") for name in names) == 3  # of the other space
        assert len(late.run(units[0]).digests) == 1
        close_reference(tmp_path, REFERENCE, OTHER_SPACE)
        assert late.run(units[1]).digests == ()
        assert not list(folder(tmp_path, REFERENCE).glob("unit-*"))

        unit.write_bytes(content)
        close_reference(tmp_path, REFERENCE, SPACE)
        assert not unit.exists()

    def test_a_plan_reads_a_closed_reference_once(
        self, done: Done, monkeypatch: pytest.MonkeyPatch
    ):
        asked = []

        def counted(*place: Any) -> bool:
            asked.append(place)
            return is_closed(*place)

        monkeypatch.setattr(measures, "is_closed", counted)
        assert Sweep(done[0].storage).plan.remaining == ()
        assert asked == [(done[0].storage, REFERENCE, SPACE)]

    @pytest.mark.parametrize("part", ["features", "moments"])
    def test_a_damaged_file_is_no_statistics(self, tmp_path: Path, part: str):
        sweep = Sweep(tmp_path)
        run(units_of(REFERENCE, 250), sweep.worker())
        digest = close_reference(tmp_path, REFERENCE, SPACE).reference.sha256
        path = folder(tmp_path, REFERENCE) / f"{part}.{SPACE.key}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert load_reference(tmp_path, REFERENCE, SPACE) is None
        assert set(units_of(REFERENCE, 250)) <= set(Sweep(tmp_path).plan.remaining)
        run(units_of(REFERENCE, 250), sweep.worker())
        assert close_reference(tmp_path, REFERENCE, SPACE).reference.sha256 == digest

    def test_a_file_of_another_set_or_space_is_not_taken_for_this_one(
        self, done: Done, tmp_path: Path
    ):
        other = replace(REFERENCE, split="heldout")
        for reference, space in ((other, SPACE), (REFERENCE, OTHER_SPACE)):
            folder(tmp_path, reference).mkdir(parents=True, exist_ok=True)
            for part in ("features", "moments"):
                source = folder(done[0].storage, REFERENCE) / f"{part}.{SPACE.key}.safetensors"
                target = folder(tmp_path, reference) / f"{part}.{space.key}.safetensors"
                target.write_bytes(source.read_bytes())
            assert load_reference(tmp_path, reference, space) is None
