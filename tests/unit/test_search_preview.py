from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetstep import config
from fleetstep.config import SearchSpec, load, rungs
from fleetstep.errors import ResourceError, ResumeError, TrainingError, UsageError
from fleetstep.orchestration.pieces import network_of
from fleetstep.orchestration.search_job import (
    check_folder,
    only_driver,
    preview,
    search_folder,
)
from fleetstep.orchestration.search_preview import experiments_of, fitting, preview_search
from fleetstep.orchestration.search_records import (
    Goal,
    Ledger,
    Life,
    Origin,
    Report,
    SearchFolder,
)
from fleetstep.orchestration.search_result import SearchResult
from fleetstep.orchestration.search_run import SearchRun
from fleetstep.orchestration.search_schedule import JOB, TrialJob
from fleetstep.orchestration.search_watch import SearchWatch
from fleetstep.reporting.search_terminal import TrialRow, progress_text, search_table
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import RunFacts
from fleetstep.training.ema import EmaTracks
from fleetstep.training.engine import TorchEngine
from fleetstep.training.snapshot import write_snapshot
from fleetstep.training.spec import BatchPlan, batch_arithmetic
from scripted_search import ASHA, PBT, write_search


@pytest.fixture
def search(tmp_path: Path, digits_path: Path) -> SearchSpec:
    return load(SearchSpec, write_search(tmp_path / "s.yaml", ASHA, tmp_path, digits_path))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_bound_on_disk_holds_for_what_is_written_and_is_not_far_from_it(
    search: SearchSpec, tmp_path: Path
):
    folder = search_folder(search)
    experiments = experiments_of(search, folder)
    bound = preview_search(search, folder, experiments, rungs(search), at_a_time=2).disk
    experiment = experiments[0]
    training, manifest = experiment.training, config.manifest_of(experiment)
    plan = batch_arithmetic(training.global_batch, 1, None)
    assert isinstance(plan, BatchPlan)
    network = network_of(experiment, manifest.shape, manifest.classes)
    engine = TorchEngine(network, training.optimizer, plan)
    ema = EmaTracks(training.ema, budget=1280, global_batch=64, owned=engine.owned())
    store = CheckpointStore(tmp_path / "checkpoints")
    facts = RunFacts("i", "d", config=experiment.model_dump(mode="json"))
    checkpoint = store.save(engine, ema, facts, images_seen=0)
    snapshot = write_snapshot(tmp_path / "snapshots", checkpoint)
    assert 0.7 * bound.checkpoint < size_of(checkpoint.path) <= bound.checkpoint
    assert 0.7 * bound.snapshot < size_of(snapshot) <= bound.snapshot
    # Two at work keep two checkpoints, write a third, and have five snapshots each.
    at_work = 3 * bound.checkpoint + 5 * bound.snapshot
    assert bound.total == 2 * at_work + 4 * bound.snapshot + bound.checkpoint


def test_a_population_is_at_work_as_a_whole(tmp_path: Path, digits_path: Path):
    file = write_search(tmp_path / "s.yaml", PBT, tmp_path, digits_path)
    bound = preview(load(SearchSpec, file)).disk
    # Checkpoints at 0, 320 and 640 and one that is being written, of this life and the last.
    assert bound.at_work == 8 * bound.checkpoint + 5 * bound.snapshot
    assert bound.total == 4 * bound.at_work + 4 * bound.snapshot + bound.checkpoint


def test_the_numbers_are_said_before_anything_starts(search: SearchSpec, tmp_path: Path):
    seen = preview(search)
    assert (seen.trials, seen.budget, seen.images, seen.rungs) == (4, 1280, 5120, (320, 640))
    text = seen.text()
    assert "4 trials of 1,280 images" in text
    assert "at most 5,120 images" in text
    assert "decided at 320, 640 images" in text
    assert json.dumps(seen.as_dict())
    assert not search_folder(search).root.exists()


def test_as_many_trials_run_as_fit_and_one_that_never_fits_is_refused_with_the_sum(
    search: SearchSpec,
):
    experiments = experiments_of(search, search_folder(search))
    # Two workers of one CPU each, at most two trials, of four.
    assert fitting(search, experiments, [{"CPU": 2.0}]) == 1
    assert fitting(search, experiments, [{"CPU": 3.0}, {"CPU": 1.0}]) == 2
    assert fitting(search, experiments, [{"CPU": 64.0}]) == 2
    unlimited = search.model_copy(update={"concurrent": None})
    assert fitting(unlimited, experiments, [{"CPU": 64.0}]) == 4
    with pytest.raises(ResourceError, match=r"a trial .*2 training workers x 1 CPU = 2 CPU"):
        fitting(search, experiments, [{"CPU": 1.0}])


def test_two_searches_are_not_mixed(search: SearchSpec, tmp_path: Path):
    folder = search_folder(search)
    with pytest.raises(ResumeError, match="holds no search"):
        check_folder(search, folder, "must")
    folder.root.mkdir(parents=True)
    folder.resolved.write_text(config.dump(search))
    check_folder(search, folder, "must")
    check_folder(search.model_copy(update={"concurrent": 1}), folder, "auto")
    with pytest.raises(ResumeError, match="resume is never"):
        check_folder(search, folder, "never")
    other = search.model_copy(update={"scheduler": config.FifoSpec()})
    with pytest.raises(ResumeError, match="other settings: scheduler"):
        check_folder(other, folder, "auto")


LOSS = Goal("held_out/loss")


def test_two_processes_do_not_run_one_search(search: SearchSpec):
    folder = search_folder(search)
    with only_driver(folder):
        with pytest.raises(UsageError, match="another process"), only_driver(folder):
            pass
    with only_driver(folder):
        pass


def proposed(search: SearchSpec) -> list[TrialJob]:
    folder = search_folder(search)
    run = SearchRun(search, folder, Ledger(folder.results), (LOSS,), at_a_time=2)
    found = run.proposals()
    return (
        []
        if found is None
        else [TrialJob.of({JOB: j}) for j in found["config"][JOB]["grid_search"]]
    )


def test_a_search_that_goes_on_gives_ray_what_is_not_over_and_nothing_else(search: SearchSpec):
    rates = [{"training.optimizer.lr": text} for text in ("0.01", "0.001", "1e-05", "1e-06")]
    assert proposed(search) == [
        TrialJob(f"{index:04d}", Life(0, rate)) for index, rate in enumerate(rates)
    ]
    ledger = Ledger(search_folder(search).results)
    for index, ending in enumerate(("finished", None, "lost")):
        ledger.begin(f"{index:04d}", Life(0, rates[index]))
        ledger.report(f"{index:04d}", Report(320, {LOSS.name: 0.5}))
        if ending is not None:
            ledger.end(f"{index:04d}", ending)
    # Halving hears every point of them again, and has heard it already.
    assert [(job.trial, job.after) for job in proposed(search)] == [
        ("0001", 0),
        ("0002", 0),
        ("0003", 0),
    ]
    for index in (1, 2, 3):
        ledger.begin(f"{index:04d}", Life(0, rates[index]))
        ledger.end(f"{index:04d}", "failed")
    assert proposed(search) == []


def test_a_population_that_goes_on_repeats_what_was_not_compared(
    tmp_path: Path, digits_path: Path
):
    file = write_search(tmp_path / "s.yaml", PBT, tmp_path, digits_path)
    search = load(SearchSpec, file)
    ledger = Ledger(search_folder(search).results)
    first = proposed(search)
    copied = Life(1, first[1].life.assignment, Origin("0000", 0, 640))
    for job in first:
        ledger.begin(job.trial, job.life)
        ledger.report(job.trial, Report(640, {LOSS.name: 0.5}))
    # The driver died when one of them had taken over another's weights.
    ledger.begin("0001", copied, 640)
    again = {job.trial: job for job in proposed(search)}
    assert again["0001"] == TrialJob("0001", copied, 640)
    assert [again[trial].after for trial in ("0000", "0002", "0003")] == [0, 0, 0]
    for trial in again:
        ledger.report(trial, Report(960, {LOSS.name: 0.4}))
    assert [job.after for job in proposed(search)] == [640] * 4


def watch_of(folder: SearchFolder, **changes: Any) -> SearchWatch:
    settings = {"trials": 4, "budget": 1280, "scheduler": "asha", "hopeless": 3} | changes
    folder.root.mkdir(parents=True, exist_ok=True)
    return SearchWatch(Ledger(folder.results), folder, (LOSS,), **settings)


def told(images_seen: int, ended: str = "", loss: float | None = None) -> dict[str, Any]:
    return {
        "images_seen": images_seen,
        "ended": ended,
        "why": "the loss is nan" if ended == "failed" else "",
        "values": {} if loss is None else {LOSS.name: loss},
    }


def jobs(count: int) -> list[TrialJob]:
    return [TrialJob(f"{index:04d}", Life(0, {"lr": 0.5})) for index in range(count)]


def test_a_search_of_failures_alone_ends_with_the_first_error(tmp_path: Path):
    watch = watch_of(SearchFolder(tmp_path / "s"))
    for job in jobs(3):
        watch.check_hope()
        watch.started(job)
        watch.heard(job, told(320, "failed"))
        watch.ended(job, told(320, "failed"))
    with pytest.raises(TrainingError, match=r"first 3 trials .* trial 0000: the loss is nan"):
        watch.check_hope()


def test_one_trial_that_did_not_fail_keeps_the_search_going(tmp_path: Path):
    watch = watch_of(SearchFolder(tmp_path / "s"))
    good, *bad = jobs(4)
    watch.started(good)
    watch.heard(good, told(320, loss=0.5))
    (watch.folder.run("0000").root).mkdir(parents=True)
    watch.ended(good, told(320))
    for job in bad:
        watch.started(job)
        watch.ended(job, told(320, "failed"))
    watch.check_hope()
    standing = watch.standing()
    assert list(standing.status.values()) == ["stopped", "failed", "failed", "failed"]
    assert standing.best == ("0000",)
    assert standing.records[0].why == "asha at 320"


def test_a_process_that_never_came_up_is_lost_and_not_forgotten(tmp_path: Path):
    watch = watch_of(SearchFolder(tmp_path / "s"))
    watch.lost(jobs(1)[0], "its node died")
    assert watch.standing().status == {"0000": "lost"}
    assert Ledger(watch.ledger.folder).records["0000"].open


def test_the_driver_waits_for_workers_that_leave_and_says_when_all_have_stopped(tmp_path: Path):
    watch = watch_of(SearchFolder(tmp_path / "s"))
    one, other = jobs(2)
    for job in (one, other):
        watch.started(job)
    assert not watch.idle()
    watch.heard(one, told(0, "stopped"))
    assert not watch.idle()
    run = watch.folder.run("0001")
    run.root.mkdir(parents=True)
    watch.ended(other, told(320))
    assert run.stop_request.exists()
    assert watch.idle()
    watch.wait_for_leaving(timeout_s=0.01)
    status = json.loads(watch.folder.status.read_text()) if watch.folder.status.exists() else {}
    watch.look("killed")
    status = json.loads(watch.folder.status.read_text())
    assert status["state"] == "killed"
    assert status["counts"] == {"running": 1, "stopped": 1}


def test_a_result_is_plain_data_and_names_the_best(tmp_path: Path):
    watch = watch_of(SearchFolder(tmp_path / "s"))
    for job, loss in zip(jobs(2), (0.5, float("nan")), strict=True):
        watch.started(job)
        watch.heard(job, told(1280, "finished", loss=loss))
        watch.ended(job, told(1280, "finished"))
    result = SearchResult(
        folder=watch.folder.root,
        goals=(LOSS,),
        standing=watch.standing(),
        title=lambda assignment: f"lr={assignment['lr']}",
        seconds=1.0,
    )
    found = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert found["best"] == ["0000"]
    assert result.winner == watch.ledger.records["0000"]
    assert found["trials"][1]["reports"][0]["values"] == {LOSS.name: None}
    assert found["trials"][1]["reports"][0]["flagged"] == [LOSS.name]
    assert "best: trial 0000 (lr=0.5): held_out/loss 0.5 at 1,280 images" in result.text()


def test_the_table_marks_the_best_and_its_line_counts(tmp_path: Path):
    from rich.console import Console

    rows = [
        TrialRow("0000", "lr=0.5", "finished", 1280, {LOSS.name: 0.51234}, best=True),
        TrialRow("0001", "lr=0.1", "stopped", 320, {LOSS.name: 0.75}),
        TrialRow("0002", "lr=9", "failed", 0, {}),
        TrialRow("0003", "lr=1", "running", 640, {LOSS.name: float("nan")}),
    ]
    line = progress_text(rows, 16, 200.0)
    assert line == ("3 of 16 trials done (1 stopped early, 1 failed), 1 running, about 3:20 left")
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(search_table(rows, [LOSS.name], 16, 200.0))
    console.file.close()
    lines = console.export_text().splitlines()
    assert any("0000 *" in text and "0.5123" in text for text in lines)
    assert not any("*" in text for text in lines if "0001" in text)
    assert max(len(text.rstrip()) for text in lines) <= 80


def test_of_several_best_trials_the_winner_is_best_in_the_deciding_objective(tmp_path: Path):
    goals = (LOSS, Goal("wall_s"))
    folder = SearchFolder(tmp_path / "s")
    folder.root.mkdir()
    watch = SearchWatch(
        Ledger(folder.results), folder, goals, trials=2, budget=64, scheduler="fifo", hopeless=3
    )
    for job, values in zip(jobs(2), ((0.5, 1.0), (0.4, 2.0)), strict=True):
        watch.started(job)
        named = {goal.name: value for goal, value in zip(goals, values, strict=True)}
        watch.heard(job, told(64, "finished") | {"values": named})
        watch.ended(job, told(64, "finished"))
    result = SearchResult(
        folder=folder.root, goals=goals, standing=watch.standing(), title=str, seconds=1.0
    )
    assert [record.trial for record in result.best] == ["0000", "0001"]
    assert result.winner == watch.ledger.records["0001"]
