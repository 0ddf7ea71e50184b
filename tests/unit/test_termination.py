"""SIGTERM, at whatever stage, ends a program in order."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetstep.cli import guarded
from fleetstep.config import PoolSpec
from fleetstep.orchestration.pool import run_units
from fleetstep.orchestration.pool_status import StatusFile
from fleetstep.orchestration.termination import sigterm_as_exit
from scripted_evaluation import Disk, ScriptedPool, Tracker, evaluator, write_snapshot
from simulated_cluster import SimulatedCluster


@pytest.fixture(autouse=True)
def _nobody_has_taken_the_signal() -> Iterator[None]:
    """Ray, started by another test of this process, takes it for itself."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_pool_withdraws_its_request_and_ends_its_actors(capsys: pytest.CaptureFixture[str]):
    cluster = SimulatedCluster()

    def program() -> None:
        run_units(
            ["unit a", "unit b", "unit c"],
            lambda: pytest.fail("built by the cluster"),
            pool=PoolSpec(max=2),
            on_result=lambda unit, result: terminate(),
            cluster=cluster,
        )

    with pytest.raises(SystemExit) as end:
        guarded(program)
    assert end.value.code == 143
    assert cluster.closed == 1
    assert cluster.autoscaler.asked[-1][1] == 0
    assert "ended by SIGTERM; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_evaluation_that_is_waited_for_ends_and_says_so(tmp_path: Path):
    waiting = threading.Event()
    (tmp_path / "snapshots").mkdir()
    write_snapshot(tmp_path / "snapshots", 300)

    def turn(pool: ScriptedPool) -> None:
        if len(pool.done) == 5 and not pool.training_ended.is_set():
            pool.training_ended.set()
            assert waiting.wait(10)
            terminate()
        if pool.training_ended.is_set():
            pool.pending.clear()  # nothing comes back any more

    def program() -> None:
        with evaluator(tmp_path, ScriptedPool(Disk(), turn), Tracker()) as beside:
            waiting.set()
            beside.finish()

    with pytest.raises(SystemExit) as end:
        guarded(program)
    assert end.value.code == 143
    status = json.loads((tmp_path / "evaluation" / "status.json").read_text())
    assert status["state"] == "interrupted"


def test_rays_own_handler_is_understood():
    """`ray.init` takes the signal, and leaves with its number."""
    with pytest.raises(SystemExit) as end:
        guarded(lambda: (_ for _ in ()).throw(SystemExit(int(signal.SIGTERM))))
    assert end.value.code == 143


@pytest.mark.parametrize("code", [0, 1, 2])
def test_other_exits_are_left_alone(code: int):
    with pytest.raises(SystemExit) as end:
        guarded(lambda: (_ for _ in ()).throw(SystemExit(code)))
    assert end.value.code == code


def test_a_block_inside_another_leaves_the_signal_with_the_outer_one(tmp_path: Path):
    file = StatusFile(tmp_path / "status.json", "digits")

    def program() -> None:
        with sigterm_as_exit():
            pass
        try:
            terminate()
        finally:
            file.close("interrupted")

    with pytest.raises(SystemExit), sigterm_as_exit():
        program()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
