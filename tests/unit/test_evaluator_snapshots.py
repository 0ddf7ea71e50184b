"""Which snapshots are due, what is missing of them, and how their scores are remembered."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetstep.config import EvaluateSpec
from fleetstep.errors import CheckpointError, DataError, NonFiniteError, PoolError
from fleetstep.orchestration import tolerant_worker
from fleetstep.orchestration.cells import ReferenceSet, Unit
from fleetstep.orchestration.due_snapshots import (
    DueSnapshots,
    due_points,
    planned_points,
    snapshots_in,
)
from fleetstep.orchestration.evaluated import Evaluated
from fleetstep.orchestration.snapshot_queue import SnapshotQueue
from fleetstep.orchestration.snapshot_scores import Asked, SnapshotScores, curve_points
from fleetstep.orchestration.tolerant_worker import Refusal, TolerantWorker
from fleetstep.orchestration.tracking_store import from_tracker_key, to_tracker_key
from fleetstep.sampling.spec import DpmppSpec, EulerSpec, GuidanceSpec, HeunSpec, Rk45Spec
from fleetstep.training.spec import TrainingSpec
from scripted_evaluation import EULER, HEUN, IDENTITY, Disk, write_snapshot

POINTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=30)


class TestWhatIsDue:
    @pytest.mark.parametrize(
        ("snapshots", "every", "due"),
        [
            ((0, 20, 40, 60, 80, 100), 20, (20, 40, 60, 80, 100)),
            # The first at or after 25, 50, 75 and 100.
            ((0, 20, 40, 60, 80, 100), 25, (40, 60, 80, 100)),
            ((0, 20, 40, 60, 80, 100), 50, (60, 100)),
            ((0, 20, 40, 60, 80, 100), 1000, (100,)),
            ((0, 20, 40, 60, 80, 100), 1, (20, 40, 60, 80, 100)),
            # Every snapshot there is, the untrained network included.
            ((0, 20, 40), 0, (0, 20, 40)),
            # One that stands for two multiples is scored once.
            ((0, 90, 100), 40, (90, 100)),
        ],
    )
    def test_by_example(self, snapshots: tuple[int, ...], every: int, due: tuple[int, ...]):
        assert due_points(snapshots, every) == due

    @given(snapshots=POINTS, every=st.integers(1, 12_000))
    def test_law(self, snapshots: list[int], every: int):
        due, last = due_points(snapshots, every), max(snapshots)
        first_after = {
            min(s for s in snapshots if s >= multiple)
            for multiple in range(every, last + 1, every)
        }
        assert set(due) == first_after | {last}
        assert list(due) == sorted(due)

    def test_of_a_whole_run_in_shares_of_its_budget(self):
        training = TrainingSpec(
            images=96_000, global_batch=128, snapshot_every="20%", checkpoint_every="25%"
        )
        # Multiples of 24,000 among snapshots at multiples of 19,200.
        asked = EvaluateSpec(every="25%")
        assert planned_points(training, asked) == (38_400, 57_600, 76_800, 96_000)

    def test_only_complete_folders_count(self, tmp_path: Path):
        write_snapshot(tmp_path, 100)
        (tmp_path / "images-000000200").mkdir()
        write_snapshot(tmp_path, 300).rename(tmp_path / ".images-000000300.tmp")
        assert list(snapshots_in(tmp_path)) == [100]
        assert snapshots_in(tmp_path / "nowhere") == {}

    def test_snapshots_of_another_experiment_are_not_seen(self, tmp_path: Path):
        write_snapshot(tmp_path, 100, "another")
        ours = write_snapshot(tmp_path, 200)
        due = DueSnapshots(tmp_path, IDENTITY, (0, 100, 200), 100)
        assert due.look(()) == ({200: ours}, (100, 200))

    def test_a_snapshot_is_handed_out_until_it_is_known(self, tmp_path: Path):
        path = write_snapshot(tmp_path, 100)
        due = DueSnapshots(tmp_path, IDENTITY, (0, 100, 200), 100)
        assert due.look(())[0] == due.look(())[0] == {100: path}
        assert due.look((100,))[0] == {}

    def test_one_that_was_scored_and_removed_stays_due_so_that_no_other_takes_its_place(
        self, tmp_path: Path
    ):
        write_snapshot(tmp_path, 120)
        due = DueSnapshots(tmp_path, IDENTITY, (0, 200), 100)
        assert due.look(())[1] == (120, 200)
        assert due.look((110,))[1] == (110, 200)

    def test_a_run_that_goes_on_with_other_snapshots_is_judged_by_those_it_has(
        self, tmp_path: Path
    ):
        for point in (0, 90, 180):  # of an earlier start
            write_snapshot(tmp_path, point)
        due = DueSnapshots(tmp_path, IDENTITY, range(0, 401, 100), 100)
        assert due.look(())[1] == (180, 200, 300, 400)


class TestWhatIsMissing:
    def test_the_reference_is_handed_out_once_for_all(self, tmp_path: Path):
        disk = Disk()
        queue = SnapshotQueue(disk.plan)
        first = queue.take(100, write_snapshot(tmp_path, 100))
        second = queue.take(200, write_snapshot(tmp_path, 200))
        assert [isinstance(u.source, ReferenceSet) for u in first].count(True) == 2
        assert not any(isinstance(unit.source, ReferenceSet) for unit in second)
        for unit in second:
            queue.finished(unit)
        assert queue.measured() == []  # it waits for the reference
        for unit in first[:2]:
            queue.finished(unit)
        assert [one.images_seen for one in queue.measured()] == [200]
        assert queue.open == (100,)

    def test_it_counts_what_it_handed_out(self, tmp_path: Path):
        queue = SnapshotQueue(Disk().plan)
        units = queue.take(100, write_snapshot(tmp_path, 100))
        assert (queue.units, queue.units_done) == (12, 0)
        assert (queue.calls, queue.calls_done) == (5000, 0)
        for unit in units[:7]:
            queue.finished(unit)
        assert (queue.units_done, queue.calls_done) == (7, 2500)

    def test_a_refused_cell_is_not_waited_for_and_its_late_units_do_no_harm(self, tmp_path: Path):
        queue = SnapshotQueue(Disk(EULER, HEUN).plan)
        units = queue.take(100, write_snapshot(tmp_path, 100))
        heun = [u for u in units if "heun" in str(u)]
        queue.refused(heun[0], "not finite")
        for unit in units:
            if unit not in heun:
                queue.finished(unit)
        (measured,) = queue.measured()
        assert [cell.solver.kind for cell in measured.plan.cells] == ["euler"]
        assert measured.refused == (f"{heun[0].source}: not finite",)
        for unit in heun[1:]:
            queue.refused(unit, "not finite")
        assert queue.units_done == queue.units
        assert queue.measured() == []


class TestATolerantWorker:
    """`made` counts what reached the sweep's worker."""

    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tolerant_worker, "SECOND_LOOK_S", 0.0)

    @staticmethod
    def worker(error: Exception) -> tuple[TolerantWorker, list[Unit]]:
        made: list[Unit] = []

        class Worker:
            def run(self, unit: Unit) -> Any:
                made.append(unit)
                if "heun" in str(unit) or isinstance(unit.source, ReferenceSet):
                    raise error
                return "a summary"

        return TolerantWorker(Worker()), made

    @pytest.fixture
    def units(self, tmp_path: Path) -> dict[str, list[Unit]]:
        plan = Disk(EULER, HEUN).plan(write_snapshot(tmp_path, 100))
        return {
            name: [unit for unit in plan.units if name in str(unit)]
            for name in ("euler", "heun", "reference")
        }

    @pytest.mark.parametrize(
        ("error", "looks"),
        [(CheckpointError("it is gone", "x"), 2), (NonFiniteError("it is gone"), 1)],
    )
    def test_refuses_a_cell_once_and_does_the_others(
        self, error: Exception, looks: int, units: dict[str, list[Unit]]
    ):
        worker, made = self.worker(error)
        answers = [worker.run(unit) for unit in units["heun"]]
        assert answers == [Refusal("it is gone")] * 10
        assert len(made) == looks
        assert worker.run(units["euler"][0]) == "a summary"

    @pytest.mark.parametrize("error", [CheckpointError("not there"), OSError("stale handle")])
    def test_does_not_believe_what_a_file_system_shows_for_a_moment(
        self, error: Exception, units: dict[str, list[Unit]]
    ):
        looks: list[Unit] = []

        class Blinking:
            def run(self, unit: Unit) -> Any:
                looks.append(unit)
                if len(looks) == 1:
                    raise error
                return "a summary"

        assert TolerantWorker(Blinking()).run(units["heun"][0]) == "a summary"

    def test_raises_what_is_not_the_snapshots_fault(self, units: dict[str, list[Unit]]):
        for error in (OSError("disk full"), DataError("the dataset has changed")):
            with pytest.raises(type(error)):
                self.worker(error)[0].run(units["heun"][0])
        with pytest.raises(CheckpointError):
            self.worker(CheckpointError("x"))[0].run(units["reference"][0])


def scored(**changes: Any) -> Any:
    """A cell's score with one record."""
    cell = {
        "solver": DpmppSpec(),
        "nfe": 16,
        "guidance": None,
        "labels": "random",
        "track": "ema",
        **changes,
    }
    record = SimpleNamespace(
        metric="fd1k.fs-rn20.multi112@4dabd2d8", value=2.5, to_dict=lambda: {"value": 2.5}
    )
    return SimpleNamespace(cell=SimpleNamespace(**cell), records=(record,))


class TestCurves:
    def test_the_name_says_the_metric_the_solver_and_its_calls(self):
        assert curve_points(scored(), "") == {
            "eval/fd1k.fs-rn20.multi112@4dabd2d8/dpmpp-order-2@16": 2.5
        }

    def test_a_solver_that_chooses_its_calls_says_so(self):
        (name,) = curve_points(scored(solver=Rk45Spec(), nfe=None), "")
        assert name.startswith("eval/fd1k.fs-rn20.multi112@4dabd2d8/rk45-")
        assert name.endswith("@adaptive")

    def test_whatever_changes_the_images_changes_the_name_and_every_tracker_takes_it(self):
        asked = [
            scored(),
            scored(nfe=9),
            scored(solver=HeunSpec()),
            scored(solver=DpmppSpec(order=3)),
            scored(solver=EulerSpec(schedule={"kind": "polynomial", "rho": 5})),
            scored(solver=EulerSpec(schedule={"kind": "polynomial", "rho": 7})),
            scored(guidance=GuidanceSpec(scale=1.5)),
            scored(guidance=GuidanceSpec(scale=1.5, channels="first_three")),
            scored(labels="balanced"),
            scored(track="slow"),
        ]
        names = [name for one in asked for name in curve_points(one, "")]
        names += curve_points(scored(), "heldout")
        assert len(set(names)) == len(names) == len(asked) + 1
        assert [from_tracker_key(to_tracker_key(name)) for name in names] == names


class TestRememberedScores:
    ASKED = Asked("identity", "measured", "run")

    def test_count_for_the_same_question_only(self, tmp_path: Path):
        SnapshotScores(tmp_path, self.ASKED).write(640, [scored()])
        assert SnapshotScores(tmp_path, self.ASKED).scored() == {640}
        for other in (
            Asked("another", "measured", "run"),
            Asked("identity", "otherwise", "run"),
            Asked("identity", "measured", "run of a new database"),
        ):
            assert SnapshotScores(tmp_path, other).scored() == frozenset()

    @pytest.mark.parametrize("damage", ["", "[]", "{}", '{"format": 1, "images_seen": "640"}'])
    def test_a_damaged_file_counts_for_nothing(self, damage: str, tmp_path: Path):
        SnapshotScores(tmp_path, self.ASKED).write(640, [scored()])
        (tmp_path / "images-000000640.json").write_text(damage)
        assert SnapshotScores(tmp_path, self.ASKED).scored() == frozenset()

    def test_can_be_read(self, tmp_path: Path):
        SnapshotScores(tmp_path / "new", self.ASKED).write(640, [scored()], ["heun: not finite"])
        entry = json.loads((tmp_path / "new" / "images-000000640.json").read_text())
        assert entry["scores"] == [{"value": 2.5}]
        assert entry["refused"] == ["heun: not finite"]

    def test_when_and_by_whom_snapshots_are_scored_is_another_question(self):
        space = SimpleNamespace(space=SimpleNamespace(key="space"), texts_sha256="")
        other = SimpleNamespace(space=SimpleNamespace(key="other weights"), texts_sha256="")
        texts = SimpleNamespace(space=SimpleNamespace(key="space"), texts_sha256="ab")

        def asked(measure: Any = space, **settings: Any) -> Asked:
            return Asked.of(EvaluateSpec(**settings), [measure], "identity", "run")

        assert asked(every="5%", pool={"max": 8}) == asked()
        assert asked(samples=2000) != asked()
        assert asked(metrics=("fd",)) != asked()
        assert asked(other) != asked()
        assert asked(texts) != asked()

    def test_what_the_reference_holds_is_the_question_and_not_where_it_lies(self, tmp_path: Path):
        def asked(name: str, content: bytes) -> Asked:
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            return Asked.of(EvaluateSpec(reference=str(file)), [], "identity", "run")

        first = asked("here/cifar10.npz", b"statistics")
        assert asked("there/cifar10.npz", b"statistics") == first
        assert asked("here/cifar10.npz", b"others") != first
        # The curves bear its name.
        assert asked("here/flowers.npz", b"statistics") != first


class TestHowItEnded:
    def test_in_words_and_as_data(self):
        ended = Evaluated(
            scored=(640, 1280), skipped={960: "it is damaged"}, missing=(), error=None
        )
        ended.check()
        assert ended.text() == (
            "scored 2 snapshot(s), at 640, 1,280 images; 1 cannot be scored; 960: it is damaged"
        )
        assert ended.as_dict() == {"scored": [640, 1280], "skipped": {"960": "it is damaged"}}

    def test_an_error_without_missing_scores_is_none_the_less_told(self):
        ended = Evaluated(scored=(1,), skipped={}, missing=(), error=PoolError("x"))
        with pytest.raises(PoolError):
            ended.check()
