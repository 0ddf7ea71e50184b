"""Snapshots are scored while a run trains: several in flight, none lost, whatever ends first."""

from __future__ import annotations

import _thread
import json
import os
import threading
from pathlib import Path

import pytest

from fleetstep.errors import CheckpointError, DataError, PoolError, TrackingError
from fleetstep.orchestration import evaluator as evaluating
from fleetstep.orchestration.cells import Cell, Unit
from fleetstep.orchestration.evaluator import Evaluator
from fleetstep.orchestration.pool_status import StatusFile
from fleetstep.orchestration.sweep_plan import SweepPlan
from scripted_evaluation import (
    EULER,
    HEUN,
    Disk,
    ScriptedPool,
    Tracker,
    evaluator,
    finish,
    images_seen_of,
    refuse,
    write_snapshot,
)

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "_LOOK_S", 0.0)
    monkeypatch.setattr(evaluating, "SECOND_LOOK_S", 0.0)


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    (tmp_path / "snapshots").mkdir()
    return tmp_path / "snapshots"


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()


def state_of(root: Path) -> str:
    return str(json.loads((root / "evaluation" / "status.json").read_text())["state"])


class Training:
    """A script: a snapshot appears before every `each`-th unit, then training ends."""

    def __init__(self, snapshots: Path, *points: int, each: int = 3) -> None:
        self.snapshots, self.points, self.each = snapshots, list(points), each

    def __call__(self, pool: ScriptedPool) -> None:
        if self.points and len(pool.done) % self.each == 0:
            write_snapshot(self.snapshots, self.points.pop(0))
        if not self.points:
            pool.training_ended.set()


def run(evaluator: Evaluator, pool: ScriptedPool) -> evaluating.Evaluated:
    """A training that ends when the script says so, and the evaluator beside it."""
    with evaluator:
        assert pool.training_ended.wait(10)
        return evaluator.finish()


def test_every_due_snapshot_is_scored_and_none_waits_for_the_one_before(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    pool = ScriptedPool(Disk(), Training(snapshots, 0, 100, 200, 300))
    evaluated = run(evaluator(tmp_path, pool, tracker), pool)
    assert evaluated.scored == (100, 200, 300)
    assert (evaluated.missing, evaluated.skipped, evaluated.error) == ((), {}, None)
    assert tracker.recorded == [100, 200, 300]
    # The reference first, and once; then snapshots, the oldest first.
    assert pool.fed_points() == [None, 100, 200, 300]
    assert len(pool.fed) == len(set(pool.fed)) == 2 + 3 * 10
    # Units of the second were handed out before the first was done.
    first_of_200 = next(i for i, u in enumerate(pool.fed) if images_seen_of(u) == 200)
    assert first_of_200 == 12
    assert state_of(tmp_path) == "finished"


def test_several_snapshots_are_in_flight_at_once(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    for point in (100, 200, 300):
        write_snapshot(snapshots, point)
    most = 0

    def turn(pool: ScriptedPool) -> None:
        nonlocal most
        most = max(most, len({images_seen_of(unit) for unit in pool.pending} - {None}))
        pool.training_ended.set()

    pool = ScriptedPool(Disk(), turn)
    run(evaluator(tmp_path, pool, tracker), pool)
    assert most == 3


def test_a_newer_snapshot_that_is_done_first_is_recorded_first_and_the_older_still_comes(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    def newest_first(pending: object) -> int:
        points = [images_seen_of(unit) or 10**9 for unit in pending]  # type: ignore[attr-defined]
        return points.index(max(points))

    pool = ScriptedPool(Disk(), Training(snapshots, 100, 200, 300, each=1), choose=newest_first)
    evaluated = run(evaluator(tmp_path, pool, tracker), pool)
    assert tracker.recorded == [300, 200, 100]
    assert evaluated.scored == (100, 200, 300)


def test_results_that_come_together_are_recorded_oldest_first(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    """All finished before this start: the driver died after the units, before the scores."""
    disk = Disk()
    for point in (300, 100, 200):
        disk.units.update(disk.plan(write_snapshot(snapshots, point)).units)
    pool = ScriptedPool(disk, lambda pool: pool.training_ended.set())
    run(evaluator(tmp_path, pool, tracker), pool)
    assert tracker.recorded == [100, 200, 300]
    assert pool.fed == []


def test_training_that_ends_first_waits_for_every_score(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    for point in (100, 200, 300):
        write_snapshot(snapshots, point)
    pool = ScriptedPool(Disk())
    with evaluator(tmp_path, pool, tracker) as beside:
        evaluated = beside.finish()
    assert evaluated.scored == (100, 200, 300)
    evaluated.check()


@pytest.mark.parametrize("after", [1, 7, 12, 13, 25])
def test_a_failed_training_keeps_what_is_finished_and_the_next_start_does_only_the_rest(
    after: int, tmp_path: Path, snapshots: Path, tracker: Tracker
):
    for point in (100, 200, 300):
        write_snapshot(snapshots, point)
    disk = Disk()

    def turn(pool: ScriptedPool) -> None:
        if len(pool.done) >= after:
            pool.training_ended.set()
            pool.pending.clear()  # nothing comes back any more

    pool, said = ScriptedPool(disk, turn), list[str]()

    def fail() -> None:
        with evaluator(tmp_path, pool, tracker, said=said):
            assert pool.training_ended.wait(10)
            raise ValueError("training failed")

    with pytest.raises(ValueError, match="training failed"):
        fail()
    assert state_of(tmp_path) == "interrupted"
    assert "finished units are kept" in said[-1]
    assert len(disk.units) == after
    again = ScriptedPool(disk)
    with evaluator(tmp_path, again, tracker) as beside:
        assert beside.finish().scored == (100, 200, 300)
    assert len(again.fed) == 32 - after
    assert set(again.fed).isdisjoint(pool.done)
    # And of each snapshot the scores came once.
    assert sorted(tracker.recorded) == [100, 200, 300]


def test_ctrl_c_while_only_scores_are_missing_keeps_finished_units(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    write_snapshot(snapshots, 300)
    disk = Disk()

    def turn(pool: ScriptedPool) -> None:
        if len(pool.done) == 5:
            pool.pending.clear()
            if not pool.training_ended.is_set():
                pool.training_ended.set()
                assert waiting.wait(10)
                _thread.interrupt_main()

    pool, waiting = ScriptedPool(disk, turn), threading.Event()
    with pytest.raises(KeyboardInterrupt), evaluator(tmp_path, pool, tracker) as beside:  # noqa: PT012
        waiting.set()
        beside.finish()
    assert state_of(tmp_path) == "interrupted"
    again = ScriptedPool(disk)
    with evaluator(tmp_path, again, tracker) as beside:
        assert beside.finish().scored == (300,)
    assert len(again.fed) == 12 - 5


def test_a_second_start_of_a_scored_run_does_nothing_unless_something_else_is_asked(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    for point in (100, 200, 300):
        write_snapshot(snapshots, point)
    disk = Disk()
    with evaluator(tmp_path, ScriptedPool(disk), tracker) as beside:
        beside.finish()
    with evaluator(tmp_path, ScriptedPool(disk), tracker) as beside:
        assert beside.finish().scored == (100, 200, 300)
    assert tracker.recorded == [100, 200, 300]
    with evaluator(tmp_path, ScriptedPool(disk), tracker, measured="otherwise") as beside:
        beside.finish()
    assert tracker.recorded == [100, 200, 300] * 2


def test_a_pool_that_fails_leaves_training_alone_and_is_told_at_once_and_at_the_end(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    def run_out_of_memory(unit: Unit) -> object:
        if images_seen_of(unit) == 200:
            raise PoolError(f"{unit} lost its actor 3 times", "use a smaller batch")
        return finish(unit)

    for point in (100, 200, 300):
        write_snapshot(snapshots, point)
    disk, said = Disk(), list[str]()
    pool = ScriptedPool(disk, answer=run_out_of_memory)
    with evaluator(tmp_path, pool, tracker, said=said) as beside:
        evaluated = beside.finish()
    assert (evaluated.scored, evaluated.missing) == ((100,), (200, 300))
    assert any("lost its actor" in line and "training is not touched" in line for line in said)
    with pytest.raises(
        PoolError, match=r"2 snapshot\(s\) have no scores yet, at 200, 300"
    ) as told:
        evaluated.check()
    assert "use a smaller batch; then run the same command again" in told.value.remedy
    assert state_of(tmp_path) == "failed"
    again = ScriptedPool(disk)
    with evaluator(tmp_path, again, tracker) as beside:
        beside.finish().check()
    assert tracker.recorded == [100, 200, 300]


def test_an_error_that_is_nobodys_is_an_error_all_the_same(
    tmp_path: Path, snapshots: Path, tracker: Tracker
):
    write_snapshot(snapshots, 300)

    def broken(**_: object) -> None:
        raise RuntimeError("Ray is gone")

    with evaluator(tmp_path, broken, tracker, disk=Disk()) as beside:
        evaluated = beside.finish()
    with pytest.raises(PoolError, match="RuntimeError: Ray is gone"):
        evaluated.check()


class TestAThreadThatFailsOutsideOfItsWork:
    """`finish` waits for the thread without end, so that the thread must always say its own."""

    def test_in_its_first_step(
        self,
        tmp_path: Path,
        snapshots: Path,
        tracker: Tracker,
        monkeypatch: pytest.MonkeyPatch,
    ):
        def forbidden(*_: object) -> None:
            raise PermissionError("not in this sandbox")

        monkeypatch.setattr(os, "setpriority", forbidden)
        write_snapshot(snapshots, 300)
        with evaluator(tmp_path, ScriptedPool(Disk()), tracker) as beside:
            assert beside.finish().scored == (300,)

    def test_in_its_last_step(
        self,
        tmp_path: Path,
        snapshots: Path,
        tracker: Tracker,
        monkeypatch: pytest.MonkeyPatch,
    ):
        def broken(*_: object) -> None:
            raise RuntimeError("in the clean-up")

        raised, others = list[str](), set(threading.enumerate())
        monkeypatch.setattr(threading, "excepthook", lambda end: raised.append(str(end.exc_value)))
        monkeypatch.setattr(StatusFile, "close", broken)
        write_snapshot(snapshots, 300)
        with evaluator(tmp_path, ScriptedPool(Disk()), tracker) as beside:
            assert beside.finish().scored == (300,)
        for thread in set(threading.enumerate()) - others:
            thread.join(10)
        assert raised == ["in the clean-up"]


class TestASnapshotThatCannotBeScored:
    @pytest.mark.parametrize("error", [CheckpointError("not there"), OSError("stale handle")])
    def test_what_a_file_system_shows_for_a_moment_is_not_believed(
        self, error: Exception, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        write_snapshot(snapshots, 300)

        class Blinking(Disk):
            looks = 0

            def plan(self, path: Path) -> SweepPlan:
                self.looks += 1
                if self.looks == 1:
                    raise error
                return super().plan(path)

        with evaluator(tmp_path, ScriptedPool(Blinking()), tracker) as beside:
            evaluated = beside.finish()
        assert (evaluated.scored, evaluated.skipped) == ((300,), {})

    def test_a_file_system_that_fails_is_tried_again_at_the_next_start(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        write_snapshot(snapshots, 300)

        def answer(unit: Unit) -> object:
            raise OSError("stale handle")

        disk = Disk()
        with evaluator(tmp_path, ScriptedPool(disk, answer=answer), tracker) as beside:
            evaluated = beside.finish()
        assert (evaluated.skipped, evaluated.missing) == ({}, (300,))
        with pytest.raises(PoolError, match="stale handle") as told:
            evaluated.check()
        assert "run the same command again" in told.value.remedy
        with evaluator(tmp_path, ScriptedPool(disk), tracker) as beside:
            assert beside.finish().scored == (300,)

    def test_a_damaged_one_is_told_and_the_others_go_on(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        for point in (100, 200, 300):
            write_snapshot(snapshots, point)
        (snapshots / "images-000000200" / "damaged").touch()
        said: list[str] = []
        with evaluator(tmp_path, ScriptedPool(Disk()), tracker, said=said) as beside:
            evaluated = beside.finish()
        assert evaluated.scored == (100, 300)
        assert evaluated.skipped == {200: "images-000000200 is damaged"}
        assert "  the snapshot at 200 images is not scored: images-000000200 is damaged" in said
        evaluated.check()

    def test_one_that_disappears_while_its_units_wait_costs_only_itself(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        for point in (100, 200, 300):
            write_snapshot(snapshots, point)

        def answer(unit: Unit) -> object:
            return refuse(unit) if images_seen_of(unit) == 100 else finish(unit)

        with evaluator(tmp_path, ScriptedPool(Disk(), answer=answer), tracker) as beside:
            evaluated = beside.finish()
        assert evaluated.scored == (200, 300)
        assert "drew what is not finite" in evaluated.skipped[100]

    def test_one_that_never_came_is_named(self, tmp_path: Path, snapshots: Path, tracker: Tracker):
        for point in (100, 200):
            write_snapshot(snapshots, point)
        with evaluator(tmp_path, ScriptedPool(Disk()), tracker) as beside:
            evaluated = beside.finish()
        assert evaluated.scored == (100, 200)
        assert evaluated.skipped == {300: "the run's folder does not hold it (any more)"}

    def test_scores_outlive_their_snapshot(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        for point in (100, 200, 300):
            write_snapshot(snapshots, point)
        disk = Disk()
        with evaluator(tmp_path, ScriptedPool(disk), tracker) as beside:
            beside.finish()
        (snapshots / "images-000000200" / "snapshot.json").unlink()
        with evaluator(tmp_path, ScriptedPool(disk), tracker) as beside:
            evaluated = beside.finish()
        assert (evaluated.scored, evaluated.skipped) == ((100, 200, 300), {})

    def test_a_cell_that_cannot_be_sampled_costs_only_itself(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        write_snapshot(snapshots, 300)

        def answer(unit: Unit) -> object:
            heun = isinstance(unit.source, Cell) and unit.source.solver.kind == "heun"
            return refuse(unit) if heun else finish(unit)

        said: list[str] = []
        pool = ScriptedPool(Disk(EULER, HEUN), answer=answer)
        with evaluator(tmp_path, pool, tracker, said=said) as beside:
            evaluated = beside.finish()
        assert evaluated.scored == (300,)
        assert [cell.solver.kind for cell in tracker.cells] == ["euler"]
        assert any(line.startswith("  not scored: heun, 5 calls") for line in said)
        (file,) = (tmp_path / "evaluation").glob("images-*.json")
        assert "heun" in json.loads(file.read_text())["refused"][0]

    def test_data_that_changed_is_no_fault_of_a_snapshot(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        write_snapshot(snapshots, 300)

        class Changed(Disk):
            def plan(self, path: Path) -> object:  # type: ignore[override]
                raise DataError("the dataset has changed", "put it back")

        with evaluator(tmp_path, ScriptedPool(Changed()), tracker) as beside:
            evaluated = beside.finish()
        assert (evaluated.skipped, evaluated.missing) == ({}, (300,))


class TestATrackerThatIsDown:
    def test_for_a_while_costs_nothing_and_is_told_once(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        tracker.down = TrackingError("the server does not answer", "start it")
        said: list[str] = []

        def turn(pool: ScriptedPool) -> None:
            if len(pool.done) == 30:
                tracker.down = None

        for point in (100, 200, 300):
            write_snapshot(snapshots, point)
        pool = ScriptedPool(Disk(), turn)
        with evaluator(tmp_path, pool, tracker, said=said) as beside:
            evaluated = beside.finish()
        assert tracker.recorded == [100, 200, 300]
        assert evaluated.scored == (100, 200, 300)
        assert [line for line in said if "does not answer" in line] == [
            "  scores wait, because the server does not answer"
        ]

    def test_to_the_end_is_an_error_and_the_next_start_needs_no_unit(
        self, tmp_path: Path, snapshots: Path, tracker: Tracker
    ):
        tracker.down = TrackingError("the server does not answer", "start it")
        for point in (100, 200, 300):
            write_snapshot(snapshots, point)
        disk = Disk()
        with evaluator(tmp_path, ScriptedPool(disk), tracker) as beside:
            evaluated = beside.finish()
        assert evaluated.missing == (100, 200, 300)
        with pytest.raises(PoolError, match="the server does not answer"):
            evaluated.check()
        tracker.down = None
        again = ScriptedPool(disk)
        with evaluator(tmp_path, again, tracker) as beside:
            beside.finish().check()
        assert again.fed == []
        assert tracker.recorded == [100, 200, 300]


def test_people_are_told_each_score_and_how_far_it_is(
    tmp_path: Path, snapshots: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(evaluating, "_LINE_S", 0.0)
    write_snapshot(snapshots, 300)
    said: list[str] = []
    with evaluator(tmp_path, ScriptedPool(Disk()), tracker, said=said) as beside:
        beside.finish()
    assert any("training is finished, scoring goes on: snapshot(s) at 300" in one for one in said)
    assert "  scored euler, 5 calls, edm at 300 images: fd1k.x 1 [0.5, 1.5]" in said
    status = json.loads((tmp_path / "evaluation" / "status.json").read_text())
    assert (status["units_done"], status["units"], status["eta_s"]) == (12, 12, 0.0)


def test_only_its_own_thread_gives_way(tmp_path: Path, snapshots: Path, tracker: Tracker):
    niceness, seen = os.getpriority(os.PRIO_PROCESS, 0), list[int]()

    def turn(pool: ScriptedPool) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))  # 0 is the calling thread

    write_snapshot(snapshots, 300)
    with evaluator(tmp_path, ScriptedPool(Disk(), turn), tracker) as beside:
        beside.finish()
    assert set(seen) == {max(niceness, evaluating.NICENESS)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
