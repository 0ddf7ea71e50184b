"""Searches whose trials are real trainings with their own workers, on a two-CPU Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import scripted_search
from fleetstep.orchestration.history import History, RunHistory
from fleetstep.orchestration.search_janitor import checkpoints_in
from fleetstep.orchestration.search_records import Ledger, SearchFolder
from fleetstep.orchestration.tracking_store import default_uri
from scripted_search import ASHA, PBT, write_search

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

_DRIVER = [sys.executable, str(Path(scripted_search.__file__))]


def start(file: Path, log: Path, *options: str, at: Path | None = None) -> subprocess.Popen[str]:
    with log.open("w") as errors:
        return subprocess.Popen(
            [*_DRIVER, str(file), *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=at,
        )


def finished(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, log.read_text()[-4000:]
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def runs_of(storage: Path, name: str) -> tuple[RunHistory, dict[str, RunHistory]]:
    history = History(default_uri(storage), "fleetstep")
    (search,) = history.runs([name])
    trials = history.children(search.run_id)
    by_name = {trial.name: trial for trial in trials}
    assert len(by_name) == len(trials), "a trial has two runs"
    return search, by_name


def test_a_search_is_interrupted_resumed_and_leaves_nothing_twice(
    tmp_path: Path, digits_path: Path
):
    storage, log = tmp_path / "runs", tmp_path / "log"
    file = write_search(
        tmp_path / "search.yaml", ASHA, storage, Path(digits_path.name)
    )  # relative paths, as the shipped searches have them
    folder = SearchFolder(storage / "searches" / "rates")

    process = start(file, log, at=digits_path.parent)
    deadline = time.monotonic() + 300
    while not any(r.reports for r in Ledger(folder.results).records.values()):
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, "no trial ever reported"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130, log.read_text()[-4000:]
    search, before = runs_of(storage, "rates")
    assert search.status == "KILLED"
    assert set(before) <= {"rates-0000", "rates-0001"}
    left = Ledger(folder.results).records
    assert all(record.ending is None for record in left.values())
    # The workers saved where they were, so that nothing is trained twice.
    assert all(list(folder.run(trial).checkpoints.glob("step-*")) for trial in left)

    found = finished(start(file, log, at=digits_path.parent), log)
    assert set(found["groups"]) == {"REMOVED"}
    assert found["free"] == 2.0
    trials = {trial["trial"]: trial for trial in found["result"]["trials"]}
    assert list(trials) == ["0000", "0001", "0002", "0003"]
    assert trials["0000"]["status"] == "finished"
    assert found["result"]["best"] == ["0000"]
    stopped = [trial for trial in trials.values() if trial["status"] == "stopped"]
    assert {"0002", "0003"} & {trial["trial"] for trial in stopped}

    search, after = runs_of(storage, "rates")
    assert search.status == "FINISHED"
    assert sorted(after) == [f"rates-{trial}" for trial in trials]
    for name, run in before.items():
        assert after[name].run_id == run.run_id
    for trial in trials.values():
        run = after[f"rates-{trial['trial']}"]
        assert run.status == ("KILLED" if trial["status"] == "stopped" else "FINISHED")
        points = [(point.images_seen, point.value) for point in run.metrics["held_out/loss"]]
        reported = [(r["images_seen"], r["values"]["held_out/loss"]) for r in trial["reports"]]
        assert [point for point in points if point in reported] == reported
        steps = [point.images_seen for point in run.metrics["train/loss"]]
        assert steps == sorted(set(steps)), "a point was logged twice"
        assert steps == list(range(64, steps[-1] + 1, 64)), "a point is missing"
        assert run.params["search.training.optimizer.lr"] == str(
            trial["assignment"]["training.optimizer.lr"]
        )
    assert any(
        "asha at " in after[f"rates-{t['trial']}"].tags["fleetstep.stopped"] for t in stopped
    )
    # Of the trials that are over a snapshot is kept, and of the best its last checkpoint.
    kept = {trial: len(list(folder.run(trial).checkpoints.glob("step-*"))) for trial in trials}
    assert kept == {"0000": 1, "0001": 0, "0002": 0, "0003": 0}
    assert all(len(list(folder.run(t).snapshots.glob("images-*"))) == 1 for t in trials)


def test_a_population_copies_the_weights_of_its_best_and_goes_on_with_other_settings(
    tmp_path: Path, digits_path: Path
):
    storage, log = tmp_path / "runs", tmp_path / "log"
    file = write_search(tmp_path / "search.yaml", PBT, storage, digits_path)
    folder = SearchFolder(storage / "searches" / "population")
    found = finished(start(file, log, "--keep"), log)
    assert found["free"] == 2.0
    trials = {trial["trial"]: trial for trial in found["result"]["trials"]}
    assert [trial["status"] for trial in trials.values()] == ["finished"] * 4
    (copied,) = [trial for trial in trials.values() if len(trial["lives"]) == 2]
    at_comparison = {
        name: trial["reports"][1]["values"]["held_out/loss"] for name, trial in trials.items()
    }
    assert copied["trial"] == max(at_comparison, key=at_comparison.__getitem__)
    before, after = copied["lives"]
    donor = after["origin"]["trial"]
    assert donor == min(at_comparison, key=at_comparison.__getitem__)
    assert after["origin"]["images_seen"] == 640
    key = "training.optimizer.lr"
    assert after["assignment"][key] / trials[donor]["assignment"][key] in (
        pytest.approx(0.8),
        pytest.approx(1.2),
    )
    assert after["assignment"][key] != before["assignment"][key]

    theirs = checkpoints_in(folder.run(donor).checkpoints)[640]
    ours = checkpoints_in(folder.run(copied["trial"], 1).checkpoints)[640]
    # Weights, both moments and the average.
    part = "rank-00000.safetensors"
    assert (ours / part).read_bytes() == (theirs / part).read_bytes()
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (ours, theirs)]
    assert manifests[0]["parent"]["identity"] == manifests[1]["facts"]["identity"]
    assert manifests[0]["facts"]["identity"] != manifests[1]["facts"]["identity"]
    # From there on it is better than its own first life was, and not the donor itself.
    end = {name: trial["reports"][-1]["values"]["held_out/loss"] for name, trial in trials.items()}
    assert end[copied["trial"]] < at_comparison[donor] < at_comparison[copied["trial"]]
    assert end[copied["trial"]] != end[donor]

    _, runs = runs_of(storage, "population")
    run = runs[f"population-{copied['trial']}"]
    steps = [point.images_seen for point in run.metrics["train/loss"]]
    assert steps == list(range(64, 1281, 64)), "lives overlap, or leave a gap"
    rates = [(point.images_seen, point.value) for point in run.metrics[f"search/{key}"]]
    assert rates == [(0, before["assignment"][key]), (640, after["assignment"][key])]
    assert run.params[f"search.{key}"] == str(before["assignment"][key])
