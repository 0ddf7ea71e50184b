"""`compare_runs` from a tracker: runs, trials and searches, told apart by what they are."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleetstep.config.search_space import Space
from fleetstep.errors import ComparisonError
from fleetstep.orchestration.history import History
from fleetstep.orchestration.metric_logger import MetricLogger
from fleetstep.orchestration.report import compare_runs
from fleetstep.orchestration.search_confirm import Confirmation, Pair
from fleetstep.orchestration.search_records import Ending, Goal, Life, Report, TrialRecord
from fleetstep.orchestration.search_result import trial_dict
from fleetstep.orchestration.tracked_searches import named, search_json
from fleetstep.orchestration.tracking import Tracker
from fleetstep.reporting.search_record import SearchRecord
from page_reader import Reader
from synthetic_search import demo_search


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two settings with two seeds each, and a search with one tracked trial."""
    folder = tmp_path_factory.mktemp("tracker")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "digits")
    for name, speed, params in (("edm", 1, {}), ("fdm", 2, {"strategies.0.kind": "fdm"})):
        for seed in (0, 1):
            own = {"training.seed": str(seed), "name": f"{name}-s{seed}", **params}
            run = tracker.start_run(f"{name}-s{seed}", own, tags={"fleetstep.kind": "train"})
            with MetricLogger(tracker.uri, run, folder / run / "metrics.jsonl") as logger:
                for images in (1000, 2000, 4000, 8000):
                    logger.log(images, {"held_out/loss": (9 + seed) * (speed * images) ** -0.5})
            tracker.finish(run, "FINISHED")
    search = tracker.start_run("digits-speed", {}, tags={"fleetstep.kind": "search"})
    trial = tracker.start_run(
        "digits-speed-0000", {}, parent_run_id=search, tags={"fleetstep.kind": "trial"}
    )
    tracker.log_dict(search, demo_search(8), "search.json")
    unfinished = tracker.start_run("unfinished", {}, tags={"fleetstep.kind": "search"})
    damaged = tracker.start_run("damaged", {}, tags={"fleetstep.kind": "search"})
    (folder / "search.json").write_text("{")
    tracker.log_artifact(damaged, folder / "search.json")
    for run in (search, trial, unfinished, damaged):
        tracker.finish(run, "FINISHED")
    return SimpleNamespace(uri=tracker.uri, search=search, trial=trial, folder=folder)


def compared(made: Any, out: Path, *names: str, baseline: str | None = None) -> Any:
    return compare_runs(
        names, baseline=baseline, out=out, storage=made.folder, experiment="digits", uri=made.uri
    )


def test_without_names_all_training_runs_are_compared_and_no_trial(made: Any, tmp_path: Path):
    files = compared(made, tmp_path / "out", baseline="edm")
    html = files.page.read_text()

    assert [s.arm.name for s in files.comparison.arms.standings] == ["edm", "fdm"]
    assert files.searches == ()
    assert files.as_dict()["answer"] == "fdm is better than edm over 2 seeds at 95 %"
    assert "digits-speed" not in html
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "loss.png",
        "speedup.png",
        "comparison.json",
        "comparison.csv",
    }
    (level, *_) = files.comparison.arms.standings[1].speedups["held_out/loss"]
    assert level.images.value == pytest.approx(2.0, rel=1e-9)


def test_a_search_is_known_by_its_kind_and_stands_alone(made: Any, tmp_path: Path):
    files = compared(made, tmp_path, "digits-speed")

    assert files.comparison is None
    assert files.as_dict()["answer"].startswith("Best of digits-speed: ")
    assert [table.title.plain.partition(":")[0] for table in files.tables] == [
        "Best of digits-speed",
        "What mattered for held_out, from 4 trials",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.html",
        "search1-curves.png",
        "search1-parallel.png",
        "comparison.json",
        "comparison.csv",
    }
    rows = csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text()))
    assert sum(row["table"] == "trial" for row in rows) == 8


def test_runs_and_a_search_stand_on_one_page_with_anchors_of_their_own(made: Any, tmp_path: Path):
    files = compared(made, tmp_path, "edm-s0", made.search[:12], "fdm-s0")
    read = Reader(files.page.read_text())

    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    anchors = [a["href"][1:] for t, a in read.tags if t == "a"]
    assert set(anchors) <= set(ids)
    assert "digits-speed-trials" in anchors
    assert sum(tag == "h1" for tag, _ in read.tags) == 1
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["edm-s0", "fdm-s0"]
    assert [search["name"] for search in content["searches"]] == ["digits-speed"]


def test_a_trial_is_a_run(made: Any):
    found = named(History(made.uri, "digits"), ["digits-speed-0000", "edm-s0"])

    assert [run.name for run in found.runs] == ["digits-speed-0000", "edm-s0"]
    assert found.searches == ()


def test_what_cannot_be_compared_is_explained(made: Any, tmp_path: Path):
    with pytest.raises(ComparisonError, match=r"unfinished .* keeps no search.json.*\n.*--resume"):
        compared(made, tmp_path / "a", "unfinished")
    with pytest.raises(ComparisonError, match=r"search.json of search damaged .* is no JSON"):
        compared(made, tmp_path / "b", "damaged")
    with pytest.raises(ComparisonError, match=r"baseline 'edm' .* only searches were named"):
        compared(made, tmp_path / "c", "digits-speed", baseline="edm")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_searchs_results_become_the_record_that_is_compared():
    """From what the search itself knows, through JSON, to what the report reads."""
    space = Space.parse(
        {
            "training": {"optimizer": {"lr": {"log_uniform": [1e-4, 1e-2]}}},
            "strategies": {
                "choice": {
                    "plain": [],
                    "fdm": [{"kind": "fdm", "multiplier": {"uniform": [1, 3]}}],
                }
            },
        }
    )
    goals = (Goal("held_out"), Goal("is", "max"))

    def trial(name: str, ending: Ending, *values: float, why: str = "") -> dict[str, Any]:
        reports = tuple(
            Report(1000 * i, {"held_out": value, "is": 1 / value})
            for i, value in enumerate(values, start=1)
        )
        life = Life(0, space.sample(0, int(name)))
        return trial_dict(TrialRecord(name, (life,), reports, ending, why), space.title)

    results = {
        "name": "s",
        "objectives": [asdict(goal) for goal in goals],
        "best": ["0000"],
        "confirmation": Confirmation(
            goals[0], "0000", "strategies=[]", (Pair(1, 2.0, 4.0), Pair(2, 2.0, 3.0))
        ).as_dict(),
        "trials": [
            trial("0000", "finished", 4.0, 2.0),
            trial("0001", "stopped", 8.0, why="asha at 1000"),
            trial("0002", "failed", 5.0, math.nan, why="boom"),
        ],
    }
    content = search_json(results, [d.as_dict() for d in space.dimensions], {"0000": "abc"})
    record = SearchRecord.from_dict(json.loads(json.dumps(content, allow_nan=False)))
    finished, stopped, failed = record.trials

    assert [(o.name, o.goal) for o in record.objectives] == [("held_out", "min"), ("is", "max")]
    assert [(d.key, d.kind, d.when) for d in record.dimensions] == [
        ("training.optimizer.lr", "log_uniform", ()),
        ("strategies", "choice", ()),
        ("strategies/fdm/0.multiplier", "uniform", (("strategies", "fdm"),)),
    ]
    assert record.dimensions[0].low == 1e-4
    assert record.dimensions[1].labels == ("plain", "fdm")
    assert finished.values == {"held_out": 2.0, "is": 0.5}
    assert finished.curves["held_out"] == ((1000, 4.0), (2000, 2.0))
    assert finished.run_id == "abc"
    assert (stopped.status, stopped.stopped_at, stopped.error) == ("stopped", 1000, "")
    assert (failed.status, failed.error) == ("failed", "boom")
    assert all(math.isnan(value) for value in failed.values.values())
    assert dict(finished.assignment) == dict(space.sample(0, 0))
    assert record.confirm is not None
    assert (record.confirm.trial, record.confirm.baseline) == ("0000", "strategies=[]")
    assert record.confirm.pairs == ((1, 2.0, 4.0), (2, 2.0, 3.0))
