"""Comparisons as data: every number exact, nothing left out, and plain JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetstep.reporting.comparison import Comparison, compare
from fleetstep.reporting.export_rows import Found
from fleetstep.reporting.exports import as_csv, as_json, write_exports
from fleetstep.reporting.importance import importance
from fleetstep.reporting.search_record import SearchRecord
from synthetic_records import curve, seed_records
from synthetic_search import demo_search


@pytest.fixture(scope="module")
def comparison():
    return compare(seed_records(), "edm")


@pytest.fixture(scope="module")
def search():
    record = SearchRecord.from_dict(demo_search())
    return record, importance(record, resamples=4)


@pytest.fixture(scope="module")
def content(comparison: Comparison, search: Found):
    return json.loads(json.dumps(as_json(comparison, [search]), allow_nan=False))


@pytest.fixture(scope="module")
def table(comparison: Comparison, search: Found):
    return list(csv.DictReader(io.StringIO(as_csv(comparison, [search]))))


def of(table: list[dict[str, str]], kind: str) -> list[dict[str, str]]:
    return [row for row in table if row["table"] == kind]


def test_every_score_and_difference_is_there_to_the_last_digit(
    comparison: Comparison, table: list[dict[str, str]]
):
    scores = {
        (row["subject"], row["measure"], row["place"]): float(row["value"])
        for row in of(table, "score")
    }
    differences = {
        (row["subject"], row["measure"], row["place"]): (float(row["low"]), row["against"])
        for row in of(table, "difference")
    }
    assert sum(len(sweep.scores) for sweep in comparison.sweeps) == len(scores) == 6 * 40
    assert sum(len(sweep.differences) for sweep in comparison.sweeps) == len(differences) == 3 * 40
    for sweep in comparison.sweeps:
        for (run, cell), score in sweep.scores.items():
            assert scores[run, sweep.protocol.metric, cell.title] == score.value
        for (run, cell), difference in sweep.differences.items():
            found = differences[run, sweep.protocol.metric, cell.title]
            assert found == (difference.low, run.replace("edm-fdm", "edm"))


def test_speed_ups_have_their_intervals_and_bounds_are_no_values(
    comparison: Comparison, table: list[dict[str, str]], content: dict[str, Any]
):
    standing = comparison.arms.standings[1]
    rows = of(table, "speedup_images")
    levels = [level for levels in standing.speedups.values() for level in levels]

    assert len(rows) == len(of(table, "speedup_wall")) == len(content["speedups"]) == len(levels)
    for row, entry, level in zip(rows, content["speedups"], levels, strict=True):
        assert (row["subject"], row["against"], row["n"]) == ("edm-fdm", "edm", "3")
        assert float(row["place"]) == entry["share"] == level.share
        assert [pair["run"] for pair in entry["pairs"]] == [f"edm-fdm-s{i}" for i in range(3)]
        if level.images.value is None:
            assert row["value"] == row["low"] == ""
            assert row["note"] == f"at least {level.images.at_least!r}"
            assert entry["images"]["value"] is entry["images"]["at_most"] is None
        else:
            assert float(row["value"]) == entry["images"]["value"] == level.images.value
            assert float(row["high"]) == entry["images"]["high"] == level.images.high
    assert any(row["value"] == "" for row in rows)


def test_settings_are_there_with_their_seeds_and_verdict(
    content: dict[str, Any], table: list[dict[str, str]]
):
    edm, fdm = content["settings"]

    assert (edm["name"], edm["seeds"], edm["score_difference"]) == ("edm", ["0", "1", "2"], None)
    assert fdm["score_difference"]["verdict"] == "better"
    assert len(fdm["score_difference"]["pairs"]) == 3
    (loss, score) = of(table, "seed_difference")
    assert float(loss["value"]) == fdm["held_out_loss_difference"]["value"]
    assert (score["note"], score["place"]) == ("better", "ipndm, NFE 19")


def test_every_trial_of_a_search_is_there_and_what_has_no_value_is_empty(
    search: Found, content: dict[str, Any], table: list[dict[str, str]]
):
    rows = {row["subject"]: row for row in of(table, "trial")}

    assert rows.keys() == {trial.id for trial in search[0].trials}
    assert (rows["0005"]["value"], rows["0005"]["note"]) == ("", "failed")
    (written,) = content["searches"]
    assert written["trials"][5]["values"] == {"held_out": None}
    for trial, entry in zip(search[0].trials, written["trials"], strict=True):
        if trial.status != "failed":
            assert entry["values"]["held_out"] == trial.values["held_out"]
            assert float(rows[trial.id]["value"]) == trial.values["held_out"]
    assert len(of(table, "importance")) == len(written["importance"]["dimensions"]) == 4
    (ratio,) = of(table, "confirmation_ratio")
    assert (ratio["against"], ratio["note"], ratio["n"]) == ("plain EDM", "better", "3")


def test_what_is_not_finite_is_null_and_never_breaks_the_json():
    records = [
        replace(run, curves={"held_out/loss": curve([float("inf"), float("nan")])}, scores=())
        for run in seed_records()[:2]
    ]
    content = as_json(compare(records, records[0].name))

    assert (
        json.loads(json.dumps(content, allow_nan=False))["runs"][0]["final_held_out_loss"] is None
    )


def test_both_files_are_written_beside_the_page(
    comparison: Comparison, search: Found, tmp_path: Path, content: dict[str, Any]
):
    paths = write_exports(comparison, [search], tmp_path)

    assert [path.name for path in paths] == ["comparison.json", "comparison.csv"]
    assert json.loads(paths[0].read_text()) == content
    assert paths[1].read_text() == as_csv(comparison, [search])


def test_a_search_alone_has_no_runs(search: Found):
    assert as_json(None, [search]).keys() == {"format", "searches"}
    assert {row["table"] for row in csv.DictReader(io.StringIO(as_csv(None, [search])))} == {
        "trial",
        "importance",
        "confirmation_ratio",
        "confirmation_difference",
    }
