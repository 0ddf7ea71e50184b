from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetstep.orchestration.history import History, RunHistory
from fleetstep.orchestration.search_records import (
    Ledger,
    Life,
    Origin,
    Report,
    SearchFolder,
)
from fleetstep.orchestration.search_tracking import SearchTracker
from fleetstep.orchestration.spool import SpoolWriter
from fleetstep.orchestration.tracking_store import default_uri
from small_run import small_experiment

KEY = "training.optimizer.lr"


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    found = SearchFolder(tmp_path / "searches" / "toy")
    found.root.mkdir(parents=True)
    found.resolved.write_text("name: toy\n")
    return found


def tracker_of(folder: SearchFolder, ledger: Ledger, uri: str, **changes: Any) -> SearchTracker:
    def experiment_of(trial: str, life: Life) -> Any:
        name = folder.run_name(trial, life.index)
        return small_experiment(folder.trials, Path("/data"), name)

    return SearchTracker(
        uri=uri,
        experiment="fleetstep",
        folder=folder,
        ledger=ledger,
        params={"searcher.kind": "grid"},
        title=lambda assignment: f"lr={assignment[KEY]}",
        experiment_of=experiment_of,
        identity_of=lambda experiment: f"identity of {experiment.name}",
        **changes,
    )


def results(*best: str) -> dict[str, Any]:
    """Of a search, as far as the tracker's side looks at them."""
    return {"name": "s", "objectives": [], "best": list(best), "trials": [], "confirmation": None}


def log(folder: SearchFolder, trial: str, *points: int, life: int = 0) -> None:
    writer = SpoolWriter(folder.run(trial, life).spool)
    for images_seen in points:
        writer.append(images_seen, {"train/loss": images_seen / 100})
    writer.close()


def begun(folder: SearchFolder) -> Ledger:
    ledger = Ledger(folder.results)
    for index, lr in enumerate((0.5, 0.25)):
        trial = f"{index:04d}"
        ledger.begin(trial, Life(0, {KEY: lr}))
        log(folder, trial, 32, 64)
        ledger.report(trial, Report(64, {"held_out/loss": lr, "wall_s": 3.0}))
    return ledger


def runs(uri: str) -> tuple[RunHistory, dict[str, RunHistory]]:
    history = History(uri, "fleetstep")
    (search,) = history.runs(["toy"])
    children = history.children(search.run_id)
    assert len({child.name for child in children}) == len(children), "a trial has two runs"
    return search, {child.name: child for child in children}


def points(run: RunHistory, key: str) -> list[tuple[int, float]]:
    return [(point.images_seen, point.value) for point in run.metrics[key]]


def test_the_tree_is_search_over_trials_and_is_told_once_whatever_starts_again(
    folder: SearchFolder, tmp_path: Path
):
    uri = default_uri(tmp_path)
    ledger = begun(folder)
    ledger.end("0000", "stopped", "asha at 64")
    first = tracker_of(folder, ledger, uri)
    assert first.sync()
    assert first.sync()
    assert first.close("KILLED", results())
    search, trials = runs(uri)
    assert (search.status, search.tags["fleetstep.kind"]) == ("KILLED", "search")
    assert [run.status for run in trials.values()] == ["KILLED", "KILLED"]
    assert trials["toy-0000"].tags["fleetstep.stopped"] == "asha at 64"
    assert "fleetstep.stopped" not in trials["toy-0001"].tags

    # The driver died; another one goes on.
    ledger = Ledger(folder.results)
    log(folder, "0001", 96)
    ledger.report("0001", Report(96, {"held_out/loss": 0.125, "wall_s": 4.0}))
    second = tracker_of(folder, ledger, uri)
    assert second.sync()
    ledger.begin("0002", Life(0, {KEY: 0.75}))
    ledger.end("0002", "failed", "the loss is nan")
    scores = folder.run("0001").root / "evaluation"
    scores.mkdir()
    for images_seen in (96, 64):
        path = scores / f"images-{images_seen:09d}.json"
        path.write_text(json.dumps({"scores": [{"images_seen": images_seen}]}))
    ledger.end("0001", "finished")
    assert second.close("FINISHED", results("0001"))
    again, after = runs(uri)
    assert again.run_id == search.run_id
    assert again.status == "FINISHED"
    assert {name: run.status for name, run in after.items()} == {
        "toy-0000": "KILLED",
        "toy-0001": "FINISHED",
        "toy-0002": "FAILED",
    }
    assert after["toy-0001"].run_id == trials["toy-0001"].run_id
    assert points(after["toy-0001"], "train/loss") == [(32, 0.32), (64, 0.64), (96, 0.96)]
    assert points(after["toy-0001"], "wall_s") == [(64, 3.0), (96, 4.0)]
    # Its own curve has the held-out loss; a second copy of it would be a second point.
    assert "held_out/loss" not in after["toy-0001"].metrics
    assert after["toy-0001"].params[f"search.{KEY}"] == "0.25"
    assert after["toy-0001"].params["training.images"] == "3200"
    assert after["toy-0001"].tags["fleetstep.trial"] == "toy/0001"
    assert after["toy-0001"].tags["fleetstep.title"] == "lr=0.25"
    assert after["toy-0002"].tags["fleetstep.error"] == "the loss is nan"
    assert {"results.json", "search.resolved.yaml"} <= set(again.artifacts)
    found = History(uri, "fleetstep").read(after["toy-0001"].run_id, "scores.json")
    assert [record["images_seen"] for record in json.loads(found)] == [64, 96]
    # A trial that is over is not opened again: its end stays when it was.
    assert after["toy-0000"].ended_ms == trials["toy-0000"].ended_ms


def test_a_tracker_that_is_down_costs_a_notice_and_is_told_everything_later(
    folder: SearchFolder, tmp_path: Path
):
    said: list[str] = []
    ledger = begun(folder)
    blocked = tmp_path / "not-a-folder"
    blocked.write_text("")
    down = tracker_of(folder, ledger, default_uri(blocked), say=said.append)
    assert not down.sync()
    assert not down.sync()
    assert not down.close("FINISHED", results())
    assert len(said) == 1
    assert "told later" in said[0]
    blocked.unlink()
    assert down.sync()
    _, trials = runs(default_uri(blocked))
    assert points(trials["toy-0000"], "train/loss") == [(32, 0.32), (64, 0.64)]


def test_of_a_trial_that_took_over_weights_only_what_led_to_them_is_told(
    folder: SearchFolder, tmp_path: Path
):
    uri = default_uri(tmp_path)
    ledger = begun(folder)
    log(folder, "0000", 96)  # workers do not wait for the comparison at 64
    tracker = tracker_of(folder, ledger, uri, population=True)
    assert tracker.sync()
    _, trials = runs(uri)
    assert "train/loss" not in trials["toy-0000"].metrics, "what counts is not known yet"
    assert points(trials["toy-0000"], "wall_s") == [(64, 3.0)]

    ledger.begin("0000", Life(1, {KEY: 0.3}, Origin("0001", 0, 64)), 64)
    log(folder, "0000", 96, 128, life=1)
    ledger.report("0000", Report(128, {"held_out/loss": 0.1, "wall_s": 5.0}))
    assert tracker.sync()
    ledger.end("0000", "finished")
    assert tracker.close("FINISHED", results())
    _, trials = runs(uri)
    run = trials["toy-0000"]
    assert points(run, "train/loss") == [(32, 0.32), (64, 0.64), (96, 0.96), (128, 1.28)]
    assert points(run, f"search/{KEY}") == [(0, 0.5), (64, 0.3)]
    assert run.params[f"search.{KEY}"] == "0.5"
    lives = json.loads(run.tags["fleetstep.lives"])
    assert [(life["images_seen"], life["from"]) for life in lives] == [(0, None), (64, "0001")]


def test_another_database_is_told_from_the_beginning(folder: SearchFolder, tmp_path: Path):
    ledger = begun(folder)
    for trial in ("0000", "0001"):
        ledger.end(trial, "finished")
    for name in ("here", "there"):
        uri = default_uri(tmp_path / name)
        assert tracker_of(folder, ledger, uri).close("FINISHED", results())
        _, trials = runs(uri)
        assert points(trials["toy-0001"], "train/loss") == [(32, 0.32), (64, 0.64)]
