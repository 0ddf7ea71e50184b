"""A whole sweep on real actors: the same bits for one or three of them, and for any death.

<storage>/sweeps/<cell>/cell.json  unit-00000.safetensors ... unit-00009.safetensors
          sweeps/<name>/scores.json
          references/<set>/moments.safetensors
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from fleetstep.config import PoolSpec, SweepSpec
from fleetstep.errors import PoolError, ResourceError
from fleetstep.orchestration.pool import Notice
from fleetstep.orchestration.sweep import Listener, Progress, SweepResult, plan, sweep
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.sampling.spec import DpmppSpec, EulerSpec, HeunSpec
from small_run import write_small_run

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> Path:
    return write_small_run(tmp_path_factory.mktemp("runs"), digits_path)


def spec_of(run: Path, storage: Path, actors: int, cpus_per_actor: float = 0.5) -> SweepSpec:
    return SweepSpec(
        runs=(str(run),),
        storage=str(storage),
        solvers=(EulerSpec(), HeunSpec(), DpmppSpec()),
        nfe=(4,),
        reference_split="heldout",
        samples=1000,
        pool=PoolSpec(max=actors, cpus_per_actor=cpus_per_actor),
    )


@pytest.fixture(scope="module")
def alone(run: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> SweepResult:
    """The sweep by one actor that nothing happens to."""
    spec = spec_of(run, tmp_path_factory.mktemp("alone"), actors=1)
    return sweep(spec, plan(spec))


def bits(result: SweepResult) -> list[tuple[str, str, tuple[float, ...]]]:
    return [
        (score.cell.key, score.moments_sha256, record.pseudo_values)
        for score in result.scores
        for record in score.records
    ]


def files(storage: Path) -> list[str]:
    return sorted(str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file())


class Killer:
    """Kills the process of one actor once `after` units are done."""

    def __init__(self, after: int) -> None:
        self.after, self.notices, self.pid = after, list[Notice](), 0

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)

    def progress(self, progress: Progress) -> None:
        if progress.units_done < self.after or self.pid:
            return
        lost = {n.actor for n in self.notices if n.kind == "lost"}
        ready = [n.text for n in self.notices if n.kind == "ready" and n.actor not in lost]
        if len(ready) > 1:
            (pid,) = re.findall(r"process (\d+)", ready[-1])
            self.pid = int(pid)
            os.kill(self.pid, signal.SIGKILL)


def interrupt_after(units: int) -> Listener:
    def progress(progress: Progress) -> None:
        if progress.units_done == units:
            raise KeyboardInterrupt

    return Listener(progress=progress)


def test_one_actor_scores_every_cell(alone: SweepResult):
    assert [(s.cell.solver.kind, s.cell.nfe) for s in alone.scores] == [
        ("euler", 4),
        ("dpmpp", 4),
    ]
    assert [(s.solver, s.nfe) for s in alone.plan.skipped] == [("heun", 4)]
    for score in alone.scores:
        records = {record.kind: record for record in score.records}
        assert list(records) == ["fd", "fd_z", "kid", "precision", "recall"]
        distance = records["fd"]
        assert re.fullmatch(r"fd1k\.fs-rn20\.multi112@[0-9a-f]{8}", distance.metric)
        assert distance.low < distance.value < distance.high
        assert distance.reference_n == 297
        assert distance.hardware["threads"] == "1"
        assert "mixed" not in distance.hardware
        assert records["fd_z"].metric.startswith("fd_z1k.")
    written = json.loads(alone.path.read_text())
    assert written["cells"][0]["scores"][0] == alone.scores[0].records[0].to_dict()
    assert written["skipped"][0]["solver"] == "heun"


def test_three_actors_an_interrupt_and_two_deaths_change_no_bit(
    alone: SweepResult, run: Path, tmp_path: Path
):
    before = spec_of(run, tmp_path / "results", actors=1)
    with pytest.raises(KeyboardInterrupt):
        sweep(before, plan(before), listener=interrupt_after(8))

    spec = spec_of(run, tmp_path / "results", actors=3)
    work = plan(spec)
    assert len(work.finished) >= 8
    kept = set((tmp_path / "results").rglob("unit-*.safetensors"))
    assert kept
    written = {path: path.stat().st_mtime_ns for path in kept}

    marker = str(tmp_path / "died")

    def die_once(point: str) -> None:
        if point != "unit before rename":
            return
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    killer = Killer(after=len(work.finished) + 4)
    listener = Listener(progress=killer.progress, notice=killer.notice)
    result = sweep(spec, work, listener=listener, fault=die_once)

    assert Path(marker).exists()
    assert killer.pid
    assert [n.kind for n in killer.notices].count("lost") == 2
    assert bits(result) == bits(alone)
    assert [s.records for s in result.scores] == [s.records for s in alone.scores]
    assert files(tmp_path / "results") == files(Path(alone.path.parents[2]))
    assert {path: path.stat().st_mtime_ns for path in kept if path.exists()}.items() <= (
        written.items()
    )


def test_a_finished_sweep_starts_no_actor(alone: SweepResult, run: Path):
    spec = spec_of(run, alone.path.parents[2], actors=1)
    notices: list[Notice] = []
    again = sweep(spec, plan(spec), listener=Listener(notice=notices.append))
    assert notices == []
    assert bits(again) == bits(alone)


def test_an_error_in_an_actor_arrives_with_its_remedy(run: Path, tmp_path: Path):
    moved = shutil.copytree(run, tmp_path / "run")
    spec = spec_of(moved, tmp_path / "results", actors=1)
    work: SweepPlan = plan(spec)
    shutil.rmtree(moved / "snapshots")
    with pytest.raises(
        PoolError, match=r"unit 0 of \(euler, 4 calls.* is not a snapshot"
    ) as caught:
        sweep(spec, work)
    assert "snapshots/images-" in caught.value.remedy


def test_a_pool_that_does_not_fit_is_refused(run: Path, tmp_path: Path):
    spec = spec_of(run, tmp_path, actors=5, cpus_per_actor=3.0)
    with pytest.raises(ResourceError, match=r"1 actor x 3 CPU = 3 CPU .* hold 0 such actors"):
        sweep(spec, plan(spec))
