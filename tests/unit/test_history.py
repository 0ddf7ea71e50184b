"""What was tracked is read back: as plain runs, and as the records of a comparison."""

from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fleetstep.errors import ComparisonError, TrackingError
from fleetstep.orchestration.history import History, records, score_of
from fleetstep.orchestration.metric_logger import MetricLogger, drain
from fleetstep.orchestration.tracking import Tracker
from synthetic_records import as_json, score

TRAIN = {"fleetstep.kind": "train"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two training runs, one of them swept twice, the second time in nested cells."""
    folder = tmp_path_factory.mktemp("tracker")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "digits")
    edm = tracker.start_run("edm", {"strategies.0.kind": "fdm"}, tags={"host": "h", **TRAIN})
    with MetricLogger(tracker.uri, edm, folder / "spool" / "metrics.jsonl") as logger:
        logger.log(64, {"train/loss": 1.0, "odd": math.inf})
        logger.log(128, {"train/loss": math.nan, "odd": -math.inf})
        logger.log(192, {"train/loss": 0.5, "eval/fd.x@1a2b3c4d": 2.0})
    picture = io.BytesIO()
    Image.new("L", (4, 4), 7).save(picture, "PNG")
    for name in ("images-000012800.png", "images-000000064.png", "montage.png"):
        (folder / name).write_bytes(picture.getvalue())
        tracker.log_artifact(edm, folder / name, "grids")
    tracker.log_artifact(edm, folder / "images-000012800.png", "figures")
    first = [as_json(score(pseudo_values=(9.0, 9.2), nfe=nfe)) for nfe in (9, 17)]
    tracker.log_dict(edm, first, "scores.json")
    sweep = tracker.start_run("sweep", {}, parent_run_id=edm)
    cell = tracker.start_run("heun-9", {}, parent_run_id=sweep)
    tracker.log_dict(cell, [as_json(score(pseudo_values=(1.0, 1.2), nfe=9))], "scores.json")
    for run in (cell, sweep, edm):
        tracker.finish(run, "FINISHED")
    twins = [tracker.start_run("twin", {}, tags=TRAIN) for _ in range(2)]
    damaged = tracker.start_run("damaged", {}, tags=TRAIN)
    # A cell whose training run is in another tracker.
    tracker.start_run("alone", {}, tags={"fleetstep.kind": "cell"})
    tracker.log_dict(damaged, {"not": "a list"}, "scores.json")
    return SimpleNamespace(
        tracker=tracker,
        history=History(tracker.uri, "digits"),
        edm=edm,
        sweep=sweep,
        cell=cell,
        twins=twins,
        png=picture.getvalue(),
    )


def test_a_run_is_read_back_as_it_was_logged(made: Any):
    (run,) = made.history.runs(["edm"])
    assert (run.name, run.run_id, run.status, run.parent) == ("edm", made.edm, "FINISHED", None)
    assert run.params == {"strategies.0.kind": "fdm"}
    assert run.tags == {"host": "h", **TRAIN}
    assert run.metrics.keys() == {"train/loss", "odd", "eval/fd.x@1a2b3c4d"}
    assert [p.images_seen for p in run.metrics["train/loss"]] == [64, 128, 192]
    assert math.isnan(run.metrics["train/loss"][1].value)
    assert [p.value for p in run.metrics["odd"]] == [math.inf, -math.inf]
    assert abs(run.metrics["odd"][0].timestamp_ms - run.started_ms) < 60_000


def test_runs_are_named_by_name_id_or_the_beginning_of_it(made: Any):
    wanted = ["edm", made.sweep, made.edm[:12], made.cell]
    found = [run.run_id for run in made.history.runs(wanted)]
    assert found == [made.edm, made.sweep, made.edm, made.cell]
    assert [run.run_id for run in made.history.children(made.edm)] == [made.sweep]
    assert [run.parent for run in made.history.children(made.sweep)] == [made.sweep]
    names = [run.name for run in made.history.runs()]
    assert names == ["edm", "twin", "twin", "damaged"]


def test_an_outermost_run_has_the_first_right_to_a_name(made: Any):
    nested = made.tracker.start_run("edm", {}, parent_run_id=made.twins[0])
    assert made.history.runs(["edm"])[0].run_id == made.edm
    assert made.history.runs([nested])[0].run_id == nested


def test_names_that_are_not_one_run_are_explained(made: Any):
    with pytest.raises(TrackingError, match="2 are") as ambiguous:
        made.history.runs(["twin"])
    assert all(run_id in str(ambiguous.value) for run_id in made.twins)
    with pytest.raises(TrackingError, match=r"has no run 'emd'; it has: .*edm.*\n.*mean 'edm'"):
        made.history.runs(["emd"])


def test_a_tracker_or_experiment_that_is_not_there_is_not_made(made: Any, tmp_path: Path):
    missing = tmp_path / "runs" / "mlflow.db"
    with pytest.raises(TrackingError, match=f"no tracker database at {missing}\n"):
        History(f"sqlite:///{missing}", "digits")
    assert not missing.parent.exists()
    with pytest.raises(TrackingError, match="no experiment 'digit'; it has: Default, digits"):
        History(made.tracker.uri, "digit")


def test_files_of_nested_runs_are_found_at_any_depth_in_one_search(
    made: Any, monkeypatch: pytest.MonkeyPatch
):
    searches = []
    search = made.history._search
    monkeypatch.setattr(made.history, "_search", lambda: searches.append(1) or search())

    assert made.history.keeping("scores.json", made.edm) == [("heun-9", made.cell)]
    assert made.history.keeping("scores.json", made.twins[0]) == []
    assert made.history.keeping("grids", made.sweep) == []
    assert len(searches) == 3


def test_a_record_holds_curves_grids_and_the_scores_of_every_sweep(made: Any):
    (run,) = records(made.history, ["edm"])
    loss = run.curves["train/loss"]
    assert loss.images_seen == (64, 128, 192)
    assert (loss.values[0], loss.values[2]) == (1.0, 0.5)
    assert all(0 <= wall < 60 for wall in loss.wall_s)
    assert list(loss.wall_s) == sorted(loss.wall_s)
    assert sorted((grid.images_seen, grid.png) for grid in run.grids) == [
        (64, made.png),
        (12800, made.png),
    ]
    # The cell measured again replaces the older value; the other stays.
    assert sorted((s.nfe, round(s.value, 6)) for s in run.scores) == [(9, 1.1), (17, 9.1)]
    assert run.started is not None
    assert abs((datetime.now(UTC) - run.started).total_seconds()) < 600
    assert run.ended is not None
    assert records(made.history, [made.twins[0]])[0].ended is None


def test_the_clock_of_a_run_made_anew_begins_with_its_first_point(made: Any, tmp_path: Path):
    spool = tmp_path / "metrics.jsonl"
    lines = [{"images": n, "ms": 10**12 + 500 * n, "metrics": {"a": 1.0}} for n in (1, 4)]
    spool.write_text("".join(json.dumps(line) + "\n" for line in lines))
    anew = made.tracker.start_run("anew", {})
    drain(made.tracker.uri, anew, spool)
    (run,) = records(made.history, [anew])
    assert run.curves["a"].wall_s == (0.0, 1.5)
    made.tracker._client.delete_run(anew)


def test_damaged_scores_are_named_with_their_run(made: Any):
    with pytest.raises(ComparisonError, match=r"scores.json of run damaged \(.*\n.*sweep again"):
        records(made.history, ["damaged"])


def test_a_score_is_rebuilt_from_its_record():
    assert score_of(as_json(score())) == score()
    with pytest.raises(ComparisonError, match="must hold solver"):
        score_of({k: v for k, v in as_json(score()).items() if k != "solver"})
