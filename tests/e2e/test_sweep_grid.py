"""A whole sweep of the digits' exact denoiser without Ray: the pool's own code, with actors in
this process that die in the middle of their writes.

Bits do not depend on who does what and who dies; what is interrupted goes on; every moment has a
table; screening leaves out what is worse, and says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetstep.config import SweepSpec
from fleetstep.errors import UsageError
from fleetstep.orchestration import live_scores, pool_status, sweep_job
from fleetstep.orchestration.cell_scores import score_cell
from fleetstep.orchestration.cells import Cell
from fleetstep.orchestration.finished_units import Progress
from fleetstep.orchestration.history import History
from fleetstep.orchestration.live_scores import Standing
from fleetstep.orchestration.measures import References, measures_of
from fleetstep.orchestration.screening import Screened
from fleetstep.orchestration.sweep import Listener, SweepResult, plan, sweep
from fleetstep.orchestration.sweep_plan import SweepPlan
from fleetstep.orchestration.sweep_worker import build_worker
from fleetstep.sampling.spec import HeunSpec
from in_process_cluster import InProcessCluster, Killer

SOLVERS = ({"kind": "dpmpp"}, {"kind": "heun"})


@pytest.fixture(scope="module")
def digits(digits_path: Path) -> str:
    return f"exact:{digits_path}#200"


def spec_of(digits: str, storage: Path, actors: int = 1, **changes: Any) -> SweepSpec:
    settings: dict[str, Any] = {
        "name": "grid",
        "runs": digits,
        "storage": str(storage),
        "solvers": list(SOLVERS),
        "nfe": [3],
        "reference_split": "heldout",
        "metrics": ["fd", "fd_z"],
        "pictures": 4,
        "pool": {"max": actors},
    }
    return SweepSpec.model_validate(settings | changes)


def swept(
    spec: SweepSpec, killer: Killer | None = None, seed: int = 0, listener: Listener | None = None
) -> SweepResult:
    storage = Path(spec.storage).resolve()

    def worker(fault: Any) -> Any:
        return build_worker(storage, spec.extractors, pictures=spec.pictures, fault=fault)

    cluster = InProcessCluster(worker, killer, seed)
    return sweep(spec, plan(spec), cluster=cluster, listener=listener)


def bits(result: SweepResult) -> list[tuple[Any, ...]]:
    return [(s.cell.key, s.seed_block, s.moments_sha256, s.records) for s in result.scores]


def files(storage: Path) -> list[str]:
    return sorted(
        str(path.relative_to(storage))
        for path in storage.rglob("*")
        if path.is_file() and "sweeps" not in path.parts
    )


@dataclass
class Heard:
    """What a listener was told."""

    progress: list[Progress] = field(default_factory=list)
    standings: list[Sequence[Standing]] = field(default_factory=list)
    dropped: list[Screened] = field(default_factory=list)

    def listener(self, interrupt_after: int | None = None) -> Listener:
        def progress(found: Progress) -> None:
            self.progress.append(found)
            if found.units_done == interrupt_after:
                raise KeyboardInterrupt

        return Listener(
            progress=progress, standings=self.standings.append, dropped=self.dropped.extend
        )


@pytest.fixture(scope="module")
def alone(digits: str, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """By one actor that nothing happens to."""
    return swept(spec_of(digits, tmp_path_factory.mktemp("alone")))


class TestBits:
    @pytest.mark.parametrize("actors", [2, 3])
    def test_any_number_of_actors_and_any_deaths(
        self, alone: SweepResult, digits: str, tmp_path: Path, actors: int
    ):
        killer = Killer(seed=actors, share=0.15)
        result = swept(spec_of(digits, tmp_path, actors), killer, seed=actors)
        assert killer.deaths >= 3
        assert bits(result) == bits(alone)
        assert files(tmp_path) == files(alone.path.parents[2])

    def test_an_interrupted_sweep_goes_on_where_it_was(
        self, alone: SweepResult, digits: str, tmp_path: Path
    ):
        spec, heard = spec_of(digits, tmp_path, 2), Heard()
        with pytest.raises(KeyboardInterrupt):
            swept(spec, listener=heard.listener(interrupt_after=12))
        partial = json.loads((tmp_path / "sweeps/grid/scores.json").read_text())
        assert partial["complete"] is False
        assert state_of(tmp_path) == "interrupted"
        known = written_at(tmp_path)
        assert len(plan(spec).finished) >= 12

        result = swept(spec, listener=heard.listener())
        assert bits(result) == bits(alone)
        assert json.loads(result.path.read_text())["complete"] is True
        assert state_of(tmp_path) == "finished"
        assert known.items() <= written_at(tmp_path).items()

    def test_a_finished_sweep_starts_nobody(self, alone: SweepResult, digits: str):
        spec = spec_of(digits, alone.path.parents[2])
        cluster = InProcessCluster(lambda fault: pytest.fail("a worker was built"))
        again = sweep(spec, plan(spec), cluster=cluster)
        assert cluster.started == 0
        assert bits(again) == bits(alone)


def written_at(storage: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (storage / "cells").rglob("unit*")}


def copy_of(result: SweepResult, storage: Path) -> Path:
    """A storage where that sweep was run."""
    shutil.copytree(result.path.parents[2], storage, dirs_exist_ok=True)
    return storage


def state_of(storage: Path) -> str:
    return str(status_of(storage)["state"])


def status_of(storage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((storage / "sweeps/grid/status.json").read_text())
    return found


def scores_of(storage: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((storage / "sweeps/grid/scores.json").read_text())
    return found


class AtOnce:
    """A thread that is not one: looks are over when they are asked for."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, call: Callable[..., Any], *args: object) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*args))
        return future

    def shutdown(self, **_: object) -> None:
        pass


@pytest.fixture
def prompt_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at every round, whatever the machine does."""
    monkeypatch.setattr(live_scores, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(live_scores, "LONGEST_SHARE", 1.0)


class TestLive:
    @pytest.mark.usefixtures("prompt_looks")
    def test_a_partial_value_is_that_of_the_first_blocks(self, digits: str, tmp_path: Path):
        spec, heard = spec_of(digits, tmp_path), Heard()
        with pytest.raises(KeyboardInterrupt):
            swept(spec, listener=heard.listener(interrupt_after=3 + 2 * 4 + 2))
        standings = heard.standings[-1]
        assert [one.blocks for one in standings] == [4, 4]
        measures, references = measures_of(spec), References(tmp_path, None)
        work = plan(spec)
        for one in standings:
            against = [
                (measure, references.of(work.reference_of[one.cell], measure.space))
                for measure in measures
            ]
            units = work.units_of(one.cell)[: one.blocks]
            expected = score_cell(tmp_path, one.cell, units, one.blocks, against)
            assert one.score is not None
            assert one.score.records == expected.records[:1]
            assert one.score.records[0].n == 100 * one.blocks
        assert [cell["scores"][0]["n"] for cell in scores_of(tmp_path)["cells"]] == [400, 400]

    def test_before_the_first_look_an_interrupted_sweep_has_no_values(
        self, digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """It ends at once, instead of scoring what there is."""
        heard = Heard()
        monkeypatch.setattr(live_scores, "score_cell", lambda *_, **__: pytest.fail("scored"))
        with pytest.raises(KeyboardInterrupt):
            swept(spec_of(digits, tmp_path), listener=heard.listener(interrupt_after=3 + 3))
        assert [one.score is None for one in heard.standings[-1]] == [True, True]
        waiting = [cell["solver"] for cell in scores_of(tmp_path)["waiting"]]
        assert waiting == ["dpmpp(order=2)", "heun"]

    def test_an_interrupt_takes_nothing_from_scores_that_are_there(
        self, alone: SweepResult, digits: str, tmp_path: Path
    ):
        spec = spec_of(digits, copy_of(alone, tmp_path))
        complete = alone.path.read_bytes()

        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        # All is sampled, and scored again.
        with pytest.raises(KeyboardInterrupt):
            swept(spec, listener=Listener(score=interrupt))
        assert state_of(tmp_path) == "interrupted"
        # More is sampled, and nothing of it was looked at yet.
        more = spec_of(digits, tmp_path, nfe=[3, 4])
        with pytest.raises(KeyboardInterrupt):
            swept(more, listener=Listener(progress=interrupt))
        assert (tmp_path / "sweeps/grid/scores.json").read_bytes() == complete

    def test_the_status_goes_on_while_scores_are_computed(
        self,
        alone: SweepResult,
        digits: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        copy_of(alone, tmp_path)
        next((tmp_path / "cells").rglob("unit-00009*")).unlink()
        seen = list[dict[str, Any]]()

        def look(_: object) -> None:
            seen.append(status_of(tmp_path))
            # As if a score took long: what is written at most once a second is due again.
            monkeypatch.setattr(pool_status, "_WRITE_EVERY_S", 0.0)

        swept(spec_of(digits, tmp_path, 2), listener=Listener(score=look))
        for status in seen:
            assert (status["state"], status["units_done"], status["units"]) == ("running", 23, 23)
            pool = status["pool"]
            assert [pool[key] for key in ("wanted", "starting", "running", "idle")] == [0] * 4
        first, second = (status["time"] for status in seen)
        assert second > first

    @pytest.mark.usefixtures("prompt_looks")
    def test_progress_counts_calls_and_ends_at_the_whole(self, digits: str, tmp_path: Path):
        heard = Heard()
        swept(spec_of(digits, tmp_path), listener=heard.listener())
        assert [found.units_done for found in heard.progress] == list(range(1, 24))
        last = heard.progress[-1]
        assert (last.units, last.calls_done, last.calls) == (23, 6000, 6000)
        assert heard.standings, "there was no table while it ran"


SCREENED = {"nfe": [3, 9], "screen": {"teacher": HeunSpec().model_dump(), "teacher_nfe": 35}}


class TestScreen:
    def test_what_is_worse_is_left_out_recorded_and_the_rest_scored(
        self, alone: SweepResult, digits: str, tmp_path: Path
    ):
        heard = Heard()
        spec = spec_of(digits, tmp_path, 2, **SCREENED)
        result = swept(spec, listener=heard.listener())
        dropped = {(one.cell.solver.kind, one.cell.nfe) for one in result.dropped}
        assert ("heun", 3) in dropped
        assert not dropped & {("dpmpp", 3), ("dpmpp", 9)}
        assert [one.cell for one in heard.dropped] == [one.cell for one in result.dropped]
        assert len(result.scores) == 4 - len(dropped)
        # A survivor has the score that it has without a screening.
        (kept,) = (s for s in result.scores if (s.cell.solver.kind, s.cell.nfe) == ("dpmpp", 3))
        (whole,) = (s for s in alone.scores if s.cell == kept.cell)
        assert kept == whole

        screened = json.loads((tmp_path / "sweeps/grid/screen.json").read_text())["cells"]
        assert [(one["solver"], one["nfe"]) for one in screened] == [
            ("dpmpp(order=2)", 3),
            ("dpmpp(order=2)", 9),
            ("heun", 3),
            ("heun", 9),
        ]
        assert sorted(one["rank"] for one in screened) == [1, 2, 3, 4]
        by_rank = sorted(screened, key=lambda one: one["rank"])
        assert [one["rms"] for one in by_rank] == sorted(one["rms"] for one in screened)
        assert all(one["gelbrich"]["holds"] for one in screened if one["gelbrich"])
        assert any(one["gelbrich"] for one in screened)
        written = json.loads(result.path.read_text())
        assert {(one["solver"], one["nfe"]) for one in written["dropped"]} >= {("heun", 3)}
        assert all("farther from the teacher" in one["reason"] for one in written["dropped"])
        # Of what was dropped, one unit was drawn.
        for one in result.dropped:
            assert len(list((tmp_path / "cells" / one.cell.key).glob("unit-*"))) == 1

    def test_a_sweep_that_goes_on_takes_the_same_decision(self, digits: str, tmp_path: Path):
        spec = spec_of(digits, tmp_path, **SCREENED)
        first = Heard()
        with pytest.raises(KeyboardInterrupt):
            swept(spec, listener=first.listener(interrupt_after=15))
        assert first.dropped
        again = Heard()
        swept(spec, listener=again.listener(), seed=3)
        assert [one.cell for one in again.dropped] == [one.cell for one in first.dropped]
        finished = Heard()
        swept(spec, listener=finished.listener())
        assert finished.progress == []
        assert finished.dropped == again.dropped

    def test_a_sweep_that_screens_nothing_leaves_no_verdict_of_another(
        self, alone: SweepResult, digits: str, tmp_path: Path
    ):
        file = copy_of(alone, tmp_path) / "sweeps/grid/screen.json"
        file.write_text("{}")
        swept(spec_of(digits, tmp_path))
        assert not file.exists()


class TestSeedBlocks:
    def test_each_block_is_a_score_and_the_lowest_stands_beside_them(
        self, alone: SweepResult, digits: str, tmp_path: Path
    ):
        spec = spec_of(digits, tmp_path, solvers=[{"kind": "dpmpp"}], seed_blocks=3)
        result = swept(spec)
        assert [score.seed_block for score in result.scores] == [0, 1, 2]
        assert [str(score.records[0].seeds) for score in result.scores] == [
            "0:0-999",
            "0:1000-1999",
            "0:2000-2999",
        ]
        assert result.scores[0].records == alone.scores[0].records
        ((cell, (lowest,)),) = result.minima.items()
        assert isinstance(cell, Cell)
        assert lowest.metric == f"{result.scores[0].records[0].metric}.min3"
        assert lowest.values == tuple(score.records[0].raw for score in result.scores)
        (written,) = json.loads(result.path.read_text())["minima"]
        assert written["minimum"] == min(lowest.values)


class TestJob:
    """`fleetstep sweep` around the sweep: what is said, shown, recorded and drawn."""

    @pytest.fixture
    def in_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def without_ray(spec: SweepSpec, work: SweepPlan, *, listener: Listener) -> SweepResult:
            return swept(spec, listener=listener)

        monkeypatch.setattr(sweep_job.sweeping, "sweep", without_ray)

    @pytest.mark.usefixtures("in_process", "prompt_looks")
    def test_scores_are_recorded_under_the_exact_denoisers_run(self, digits: str, tmp_path: Path):
        spec = spec_of(digits, tmp_path, seed_blocks=3, solvers=[{"kind": "dpmpp"}])
        said, shown = list[str](), list[Any]()
        result = sweep_job.run_sweep(spec, say=said.append, show=shown.append)
        cost, *lines = said
        assert "1 cells x 3,000 images = 9,000 network calls on one image" in cost
        assert "time: about" in cost
        assert "disk: about" in cost
        assert lines[-1].startswith("  33/33 units, 9,000 of 9,000 network calls")
        assert shown
        history = History(f"sqlite:///{tmp_path}/mlflow.db", "fleetstep")
        (run,) = history.runs(["exact-digits-200"])
        cells = history.children(run.run_id)
        assert sorted(cell.tags["fleetstep.seed_block"] for cell in cells) == ["0", "1", "2"]
        metrics = {key for cell in cells for key in cell.metrics}
        assert metrics >= {"eval/fd1k.fs-rn20.multi112@4dabd2d8.min3"}
        assert all(key.startswith(("eval/fd1k.", "eval/fd_z1k.")) for key in metrics)
        assert result.page is not None
        assert "sweeps/grid/index.html" in run.artifacts
        closing = "\n".join(sweep_job.closing_lines(result))
        assert "FID not run" in closing
        assert ".min3: " in closing
        assert len(sweep_job.tables(result)) == 1

    @pytest.mark.usefixtures("in_process")
    def test_results_of_another_grid_are_replaced_with_a_word_and_a_live_sweeps_never(
        self, alone: SweepResult, digits: str, tmp_path: Path
    ):
        copy_of(alone, tmp_path)
        said = list[str]()
        other = spec_of(digits, tmp_path, metrics=["fd"], solvers=[{"kind": "euler"}])
        sweep_job.run_sweep(other, say=said.append)
        assert sum("replaces the results of another grid" in line for line in said) == 1

        status = status_of(tmp_path) | {"state": "running", "pid": 1}
        (tmp_path / "sweeps/grid/status.json").write_text(json.dumps(status))
        before = scores_of(tmp_path)
        with pytest.raises(UsageError, match="'grid' is running already"):
            sweep(other, plan(other))
        assert (status_of(tmp_path), scores_of(tmp_path)) == (status, before)

    @pytest.mark.usefixtures("in_process", "prompt_looks")
    def test_an_interrupt_shows_the_last_table_and_what_is_left(
        self, digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        interrupt = Heard().listener(interrupt_after=9).progress
        shown_progress = sweep_job._Screen.progress

        def progress(self: Any, found: Progress) -> None:
            shown_progress(self, found)
            interrupt(found)

        monkeypatch.setattr(sweep_job._Screen, "progress", progress)
        said, shown = list[str](), list[Any]()
        with pytest.raises(KeyboardInterrupt):
            sweep_job.run_sweep(spec_of(digits, tmp_path), say=said.append, show=shown.append)
        assert said[-1].startswith("interrupted: 14 of 23 units are left; the same command")
        assert shown[-1].row_count == 2

    def test_a_file_of_statistics_that_cannot_serve_is_refused_before_anything(
        self, digits: str, tmp_path: Path
    ):
        file = tmp_path / "edm.npz"
        for width, metrics, says in (
            (112, ["fd", "kid"], r"kid compare with features of real images.*\n.*\[fd\]"),
            (2048, ["fd"], "statistics of 2048 features, and fs-rn20"),
        ):
            np.savez(file, mu=np.zeros(width), sigma=np.eye(width))
            spec = spec_of(digits, tmp_path, reference=str(file), metrics=metrics)
            with pytest.raises(UsageError, match=says):
                plan(spec)
        np.savez(file, mu=np.zeros(112), sigma=np.eye(112))
        work = plan(spec_of(digits, tmp_path, reference=str(file), metrics=["fd"]))
        assert work.references == ()
