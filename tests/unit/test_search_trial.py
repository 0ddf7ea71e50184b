from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest

from fleetstep.errors import NonFiniteError
from fleetstep.orchestration import search_trial
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.search_actor import result_of
from fleetstep.orchestration.search_records import WORST, Goal
from fleetstep.orchestration.search_scores import Scores, Wanted
from fleetstep.orchestration.search_trial import Curves, TrainTrial
from fleetstep.orchestration.spool import SpoolWriter
from scripted_search import ScriptedTraining

LOSSES = {320: 0.9, 640: 0.7, 960: 0.6, 1280: 0.5}
NAME = "held_out/loss"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search_trial, "_LOOK_S", 0.005)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.prepare("")
    return run


def trial_of(folder: RunFolder, training: ScriptedTraining, **changes: object) -> TrainTrial:
    curves = Curves(folder.spool, {"held_out": NAME})
    return TrainTrial(folder, LOSSES, [NAME], [curves], training, **changes)  # type: ignore[arg-type]


def test_every_point_is_reported_once_in_order_and_the_last_says_so(folder: RunFolder):
    trial = trial_of(folder, ScriptedTraining(folder, LOSSES))
    after, heard = 0, []
    while not heard or heard[-1].ended == "":
        heard.append(trial.next(after))
        after = heard[-1].images_seen
    assert [(p.images_seen, p.values[NAME]) for p in heard] == list(LOSSES.items())
    assert [p.ended for p in heard] == ["", "", "", "finished"]


def test_a_new_process_repeats_what_was_logged_before_it(folder: RunFolder):
    ScriptedTraining(folder, {320: 0.9, 640: 0.7})()
    rest = ScriptedTraining(folder, {960: 0.6, 1280: 0.5})
    trial = trial_of(folder, rest)
    assert trial.next(0).images_seen == 320
    assert trial.next(640).images_seen == 960


def test_a_point_waits_until_all_its_objectives_are_there(folder: RunFolder, tmp_path: Path):
    scores = tmp_path / "scores"
    scores.mkdir()
    record = {
        "kind": "fd",
        "extractor": "rn20",
        "solver": "dpmpp(order=2)",
        "ema": "ema",
        "nfe": 9.0,
        "adaptive": False,
        "value": 12.5,
    }
    other = record | {"nfe": 5.0, "value": 99.0}
    wanted = Wanted("score/fd", "fd", "rn20", "dpmpp(order=2)", 9, "ema")
    readers = [Curves(folder.spool, {"held_out": NAME}), Scores(scores, (wanted,))]
    released = threading.Event()
    training = ScriptedTraining(folder, LOSSES)

    def train() -> dict[str, object]:
        outcome = training()
        released.wait(5)
        return outcome

    trial = TrainTrial(folder, LOSSES, [NAME, "score/fd"], readers, train)
    heard = []
    asked = threading.Thread(target=lambda: heard.append(trial.next(0)))
    asked.start()
    while training.reached[-1:] != [1280]:
        time.sleep(0.005)
    asked.join(0.05)
    assert not heard, "the score is late, and is waited for"
    text = '{"scores": [%s, %s]}'
    import json

    (scores / "images-000000320.json").write_text(text % (json.dumps(other), json.dumps(record)))
    asked.join(5)
    assert heard[0].values == {NAME: 0.9, "score/fd": 12.5}
    # A score that was refused is missing, and never waited for.
    (scores / "images-000000640.json").write_text('{"scores": []}')
    assert math.isnan(trial.next(320).values["score/fd"])
    # Nor is one that nobody makes any more once training is over.
    released.set()
    late = trial.next(640)
    assert late.images_seen == 960
    assert math.isnan(late.values[NAME])


def test_a_failure_is_told_with_its_error_and_is_the_worst(folder: RunFolder):
    def fail(images_seen: int) -> None:
        if images_seen == 960:
            raise NonFiniteError("the loss is nan at step 12", "lower the learning rate")

    trial = trial_of(folder, ScriptedTraining(folder, LOSSES, fail))
    assert trial.next(320).values == {NAME: 0.7}
    point = trial.next(640)
    assert (point.images_seen, point.ended) == (960, "failed")
    assert "nan at step 12" in point.why
    told = result_of(point, Goal(NAME))
    assert told["objective"] == WORST
    assert told["done"] is True


def test_a_loss_that_is_not_a_number_is_told_as_the_worst_and_goes_on(folder: RunFolder):
    trial = trial_of(folder, ScriptedTraining(folder, LOSSES | {320: math.nan}))
    point = trial.next(0)
    assert math.isnan(point.values[NAME])
    told = result_of(point, Goal(NAME))
    assert told["objective"] == WORST
    assert told["done"] is False
    assert result_of(point, Goal(NAME, "max"))["objective"] == -WORST


def test_a_stopped_trial_asks_its_workers_and_leaves_no_request_behind(folder: RunFolder):
    at_work = threading.Event()

    def wait(images_seen: int) -> None:
        if images_seen == 640:
            at_work.set()
            while not folder.stop_request.exists():
                time.sleep(0.005)

    training = ScriptedTraining(folder, LOSSES, wait)
    trial = trial_of(folder, training)
    trial.next(0)
    at_work.wait(5)
    assert trial.stop()
    assert training.reached == [320]
    assert not folder.stop_request.exists()
    # The driver asks too, and may come too late.
    folder.stop_request.touch()
    assert trial.stop()
    assert not folder.stop_request.exists()


def test_when_the_search_is_asked_to_stop_the_trial_leaves_and_can_go_on(
    folder: RunFolder, tmp_path: Path
):
    asked = tmp_path / "stop"

    def wait(images_seen: int) -> None:
        if images_seen == 640:
            asked.touch()
            while not folder.stop_request.exists():
                time.sleep(0.005)

    trial = trial_of(folder, ScriptedTraining(folder, LOSSES, wait), asked_to_stop=asked.exists)
    assert trial.next(0).images_seen == 320
    point = trial.next(320)
    assert (point.images_seen, point.ended) == (320, "stopped")
    assert not folder.stop_request.exists()
    # One that has not begun does not begin.
    late = ScriptedTraining(folder, LOSSES)
    assert trial_of(folder, late, asked_to_stop=asked.exists).next(0).ended == "stopped"
    assert late.reached == []


def test_training_time_is_that_of_the_steps_whatever_happened_between(tmp_path: Path):
    spool = tmp_path / "metrics.jsonl"
    writer = SpoolWriter(spool)
    for images_seen, rate in ((100, 50.0), (200, 100.0), (300, 25.0)):
        writer.append(images_seen, {"train/images_per_s": rate})
        writer.append(images_seen, {"held_out/loss": 1.0})
    writer.close()
    names = {"held_out": NAME, "wall_s": "wall_s", "images_seen": "images_seen"}
    curves = Curves(spool, names)
    assert curves.at(200) == {NAME: 1.0, "wall_s": 100 / 50 + 100 / 100, "images_seen": 200.0}
    assert curves.at(300) == {NAME: 1.0, "wall_s": 2 + 1 + 4.0, "images_seen": 300.0}
    assert curves.at(400) is None
    # A life that began at 100 images is charged from there.
    assert Curves(spool, {"wall_s": "wall_s"}, first=50).at(100) == {"wall_s": 1.0}
