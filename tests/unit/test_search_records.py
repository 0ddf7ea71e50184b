from __future__ import annotations

import json
import math
from pathlib import Path

from fleetstep.orchestration.search_records import (
    WORST,
    Goal,
    Ledger,
    Life,
    Origin,
    Report,
    TrialRecord,
    best_trials,
)

LOSS = Goal("held_out/loss")
COST = Goal("wall_s")
SCORE = Goal("score/precision", "max")


def record(trial: str, images_seen: int, **changes: object) -> TrialRecord:
    values = changes.pop("values")
    assert isinstance(values, dict)
    report = Report(images_seen, values)
    return TrialRecord(trial, (Life(0, {}),), (report,), **changes)  # type: ignore[arg-type]


def filled(folder: Path) -> Ledger:
    ledger = Ledger(folder)
    ledger.begin("0000", Life(0, {"training.optimizer.lr": 0.25, "strategies": "fdm"}))
    ledger.report("0000", Report(640, {"held_out/loss": 0.5, "score/fd": math.nan}))
    ledger.begin("0000", Life(1, {"training.optimizer.lr": 0.3}, Origin("0001", 0, 640)), 640)
    ledger.report("0000", Report(1280, {"held_out/loss": 0.25, "score/fd": 3.0}))
    ledger.end("0000", "stopped", "asha at 1280")
    return ledger


def test_what_is_read_back_is_what_was_written(tmp_path: Path):
    written = filled(tmp_path)
    read = Ledger(tmp_path).records["0000"]
    was = written.records["0000"]
    assert (read.lives, read.ending, read.why) == (was.lives, was.ending, was.why)
    assert read.reports[1] == was.reports[1]
    assert read.reports[0].images_seen == 640
    assert math.isnan(read.reports[0].values["score/fd"])
    assert read.reports[0].flagged() == ("score/fd",)
    assert read.life.origin == Origin("0001", 0, 640)


def test_what_a_restarted_trial_repeats_is_not_written_again(tmp_path: Path):
    ledger = filled(tmp_path)
    before = (tmp_path / "0000.jsonl").read_bytes()
    assert not ledger.report("0000", Report(640, {"held_out/loss": 9.0}))
    assert not ledger.report("0000", Report(1280, {"held_out/loss": 9.0}))
    ledger.begin("0000", Life(1, {"training.optimizer.lr": 9.0}))
    ledger.end("0000", "finished")
    assert (tmp_path / "0000.jsonl").read_bytes() == before


def test_a_torn_line_is_cut_off_and_the_rest_stays(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.begin("0000", Life(0, {}))
    ledger.report("0000", Report(640, {"held_out/loss": 0.5}))
    path = tmp_path / "0000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "report", "images": 12')
    again = Ledger(tmp_path)
    assert again.records["0000"].images_seen == 640
    again.report("0000", Report(1280, {"held_out/loss": 0.4}))
    lines = path.read_bytes()
    assert lines.startswith(whole)
    assert [json.loads(line)["event"] for line in lines.splitlines()] == [
        "began",
        "report",
        "report",
    ]


def test_a_trial_that_was_lost_goes_on_and_may_end_again(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.begin("0000", Life(0, {}))
    ledger.end("0000", "lost", "its node died")
    assert Ledger(tmp_path).records["0000"].open
    ledger.end("0000", "finished")
    found = Ledger(tmp_path).records["0000"]
    assert not found.open
    assert found.ending == "finished"


def test_a_value_that_is_not_finite_is_the_worst_there_is():
    for value in (math.nan, math.inf, -math.inf, None):
        assert LOSS.sortable(value) == WORST
        assert SCORE.sortable(value) == -WORST
        assert LOSS.loss(value) == SCORE.loss(value) == WORST
    assert SCORE.loss(0.25) == -0.25


def test_the_best_is_among_those_that_got_the_furthest_and_did_not_fail():
    name = LOSS.name
    records = [
        record("0000", 1280, values={name: 0.5}, ending="finished"),
        record("0001", 640, values={name: 0.1}, ending="stopped"),
        record("0002", 1280, values={name: 0.4}, ending="finished"),
        record("0003", 1280, values={name: 0.2}, ending="failed"),
        record("0004", 1280, values={name: math.nan}, ending="finished"),
    ]
    assert best_trials(records, [LOSS]) == ("0002",)
    assert best_trials([], [LOSS]) == ()
    assert best_trials(records[4:], [LOSS]) == ()


def test_of_two_objectives_the_best_are_those_that_none_beats_in_both():
    values = [(0.5, 10.0), (0.4, 20.0), (0.45, 25.0), (0.5, 9.0), (0.4, 20.0)]
    records = [
        record(f"{index:04d}", 1280, values={LOSS.name: loss, COST.name: cost})
        for index, (loss, cost) in enumerate(values)
    ]
    assert best_trials(records, [LOSS, COST]) == ("0001", "0003", "0004")
