"""A snapshot as an MLflow model: the images of `fleetstep sample`, whoever loads it."""

from __future__ import annotations

import json
import pickletools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetstep.durable import write_json
from fleetstep.errors import CheckpointError, UsageError
from fleetstep.orchestration import tracking_store
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.logged_models import (
    LoggedSnapshot,
    best_score,
    export_to_mlflow,
    log_snapshot_model,
)
from fleetstep.orchestration.model_flavor import SnapshotModel
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.sample import sample_to_files
from fleetstep.orchestration.snapshots import find_snapshots
from fleetstep.orchestration.tracking import Tracker
from fleetstep.reporting.records import Score
from fleetstep.sampling.generate import labels_of
from fleetstep.training.snapshot import FACTS, REPORTED
from small_run import small_experiment, write_small_run
from synthetic_records import as_json
from synthetic_records import score as synthetic_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> Path:
    """A run whose snapshot says what images it is for."""
    run = write_small_run(tmp_path_factory.mktemp("runs"), digits_path, name="small")
    (path,) = (run / "snapshots").iterdir()
    facts = json.loads((path / FACTS).read_text())
    write_json(path / FACTS, facts | {"shape": [1, 8, 8], "classes": 10})
    (path / REPORTED).touch()
    return run


@pytest.fixture(scope="module")
def snapshot(folder: Path) -> SnapshotRef:
    (found,) = find_snapshots([str(folder)], which="last", track="ema")
    return found


@pytest.fixture(scope="module")
def tracker(folder: Path) -> Tracker:
    return Tracker(f"sqlite:///{folder.parent}/mlflow.db", "fleetstep")


@pytest.fixture(scope="module")
def run_id(tracker: Tracker, folder: Path, digits_path: Path) -> str:
    run_id = tracker.start_run("small", {}, tags={"fleetstep.kind": "train"})
    experiment = small_experiment(folder.parent, digits_path, "small")
    RunFolder(folder).prepare(json.dumps(experiment.model_dump(mode="json")))
    RunCard(run_id, "fleetstep", "i").write(RunFolder(folder).card)
    return run_id


@pytest.fixture(scope="module")
def logged(tracker: Tracker, run_id: str, snapshot: SnapshotRef) -> LoggedSnapshot:
    best = replace(measured(1.25), checkpoint=snapshot.digest)
    return log_snapshot_model(
        tracker, run_id, snapshot, name="small", register_as="digits", score=best
    )


def measured(value: float) -> Score:
    return synthetic_score("small", pseudo_values=(value, value))


@pytest.fixture(scope="module")
def model(snapshot: SnapshotRef) -> SnapshotModel:
    return SnapshotModel(snapshot.path)


def sampled(folder: Path, out: Path, seeds: str, **options: Any) -> tuple[Any, Any]:
    from fleetstep.config.solver_text import parse_solver
    from fleetstep.orchestration.sample import parse_guidance

    sample_to_files(
        folder,
        out=out / "grid.png",
        solver=parse_solver(options.get("solver", "heun")),
        nfe=options.get("nfe"),
        seeds=seeds,
        ema="ema",
        labels=options.get("labels", "balanced"),
        guidance=parse_guidance(options.get("guidance"), "all"),
        npz=out / "images.npz",
        say=None,
    )
    arrays = np.load(out / "images.npz")
    return arrays["images"], arrays["labels"]


LOAD_ELSEWHERE = """
import sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
drawn = model.predict({"seed": list(range(105))}, params={"nfe": 5, "solver": "dpmpp_2m"})
np.savez(sys.argv[3], **drawn)
"""


def test_a_fresh_process_draws_the_very_images_of_sample(
    tracker: Tracker, logged: LoggedSnapshot, folder: Path, tmp_path: Path
):
    """More seeds than a batch, from the registered version."""
    out = tmp_path / "theirs.npz"
    uri = f"models:/digits/{logged.version}"
    subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, tracker.uri, uri, str(out)],
        check=True,
        cwd=tmp_path,
        timeout=120,
    )
    theirs = np.load(out)
    images, labels = sampled(folder, tmp_path, "0-104", nfe=5, solver="dpmpp_2m")
    assert theirs["images"].dtype == np.uint8
    assert theirs["images"].shape == (105, 8, 8, 1)
    np.testing.assert_array_equal(theirs["images"], images)
    np.testing.assert_array_equal(theirs["labels"], labels)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "dpmpp_2m", "nfe": 5, "labels": "random"},
        {"solver": "{kind: ipndm, order: 3}", "nfe": 6, "guidance": 2.0},
    ],
)
def test_parameters_are_those_of_sample(
    model: SnapshotModel, folder: Path, tmp_path: Path, options: dict[str, Any]
):
    images, labels = sampled(folder, tmp_path, "40-43", **options)
    drawn = model.predict({"seed": range(40, 44)}, options)
    np.testing.assert_array_equal(drawn["images"], images)
    np.testing.assert_array_equal(drawn["labels"], labels)


def test_seeds_come_in_any_order(model: SnapshotModel):
    params = {"nfe": 3, "solver": "euler"}
    drawn = model.predict({"seed": [7, 8, 2, 7]}, params)
    single = [model.predict({"seed": [seed]}, params)["images"][0] for seed in (7, 2)]
    pair = model.predict({"seed": [7, 8]}, params)["images"]
    np.testing.assert_array_equal(drawn["images"], [*pair, single[1], single[0]])
    expected = labels_of(0, 0, 9, 10, "balanced")[[7, 8, 2, 7]]
    np.testing.assert_array_equal(drawn["labels"], expected)


@pytest.mark.parametrize("guidance", [None, 1.5])
def test_labels_of_ones_own_change_the_images_they_are_given_to(
    model: SnapshotModel, guidance: float | None
):
    """103 seeds, more than a batch: the second is padded with seeds that keep their labels."""
    params = {"nfe": 4, "solver": "euler", "guidance": guidance}
    seeds = range(103)
    drawn = model.predict({"seed": seeds}, params)
    again = model.predict({"seed": seeds, "label": drawn["labels"]}, params)
    np.testing.assert_array_equal(again["images"], drawn["images"])
    other = drawn["labels"].copy()
    other[[3, 101]] = (other[[3, 101]] + 1) % 10
    changed = model.predict({"seed": seeds, "label": other}, params)
    np.testing.assert_array_equal(changed["labels"], other)
    differ = (changed["images"] != drawn["images"]).any(axis=(1, 2, 3))
    assert np.flatnonzero(differ).tolist() == [3, 101]


@pytest.mark.parametrize(
    ("rows", "params", "says"),
    [
        ({"seed": []}, {}, "got none"),
        ({"seed": [0], "label": [10]}, {}, "a class from 0 to 9, got 10"),
        ({"seed": [0]}, {"labels": "odd"}, "must be random or balanced, got 'odd'"),
        ({"seed": [0]}, {"solver": "hoin"}, "heun"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    model: SnapshotModel, rows: dict[str, Any], params: dict[str, Any], says: str
):
    with pytest.raises(UsageError, match=says):
        model.predict(rows, params)


def test_nothing_in_a_model_is_code_or_a_pickle(
    tracker: Tracker, logged: LoggedSnapshot, snapshot: SnapshotRef
):
    client = tracking_store.connect(tracker.uri)
    location = client.get_logged_model(logged.model_id).artifact_location
    found = Path(location.removeprefix("file://"))
    # Loading a registered version from a local tracker leaves this note in it.
    note = found / "registered_model_meta"
    files = sorted(path for path in found.rglob("*") if path.is_file() and path != note)
    assert [str(path.relative_to(found)) for path in files] == [
        "MLmodel",
        "conda.yaml",
        f"data/{snapshot.path.name}/ema.safetensors",
        f"data/{snapshot.path.name}/snapshot.json",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "serving_input_example.json",
    ]
    for path in files:
        with pytest.raises(ValueError, match=r"."):
            list(pickletools.genops(path.read_bytes()))
    for name in ("ema.safetensors", "snapshot.json"):
        copy = found / "data" / snapshot.path.name / name
        assert copy.read_bytes() == (snapshot.path / name).read_bytes()
    assert "fleetstep==" in (found / "requirements.txt").read_text()


def test_a_snapshot_is_logged_and_registered_once(
    tracker: Tracker, run_id: str, logged: LoggedSnapshot, snapshot: SnapshotRef
):
    again = log_snapshot_model(tracker, run_id, snapshot, name="small", register_as="digits")
    assert (again.model_id, again.version) == (logged.model_id, logged.version)
    client = tracking_store.connect(tracker.uri)
    (version,) = client.search_model_versions("name = 'digits'")
    # The score that was known stays.
    assert version.tags["score"] == "1.25"
    assert version.tags["metric"].startswith("fd")
    assert version.tags["nfe"] == "9"
    assert version.tags["protocol"] == "own"
    assert version.tags["images_seen"] == "3200"
    assert version.run_id == run_id
    outputs = client.get_run(run_id).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(logged.model_id, 3200)]
    model = client.get_logged_model(logged.model_id)
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "digits", "version": "1"}]
    assert model.status == "READY"


def test_export_finds_the_run_and_its_best_score(
    tracker: Tracker,
    run_id: str,
    folder: Path,
    logged: LoggedSnapshot,
    snapshot: SnapshotRef,
):
    theirs = [
        replace(measured(value), checkpoint=digest, nfe=nfe)
        for value, nfe, digest in [
            (3.0, 5, snapshot.digest),
            (2.0, 9, snapshot.digest),
            (1.0, 9, "f" * 64),
        ]
    ]
    cell = tracker.start_run("heun", {}, tags={"fleetstep.kind": "cell"}, parent_run_id=run_id)
    tracker.log_dict(cell, [as_json(score) for score in theirs], "scores.json")
    exported = export_to_mlflow(folder, register="digits")
    assert exported.model_id == logged.model_id
    assert exported.score is not None
    assert exported.score.value == 2.0
    version = tracking_store.connect(tracker.uri).get_model_version("digits", exported.version)
    assert version.tags["score"] == "2"
    assert f"version 1 of digits, {exported.score.metric} 2)" in exported.text()
    plain = json.loads(json.dumps(exported.as_dict()))
    assert (plain["version"], plain["score"]["nfe"]) == ("1", "9")
    assert export_to_mlflow(folder).text() == f"logged as {logged.uri}"


def test_one_metric_is_a_versions_score():
    fd, better = measured(1.0), measured(0.5)
    kid = replace(fd, metric="kid1k.other", kind="kid", value=0.25)
    recall = [replace(fd, metric="recall", kind="recall", value=v) for v in (0.2, 0.9)]
    assert best_score([], None) is None
    assert best_score(recall, None) is recall[1]
    assert best_score([fd, kid, better], None) is better
    assert best_score([fd, kid], "kid1k.other") is kid
    assert best_score([fd, kid], "kid") is kid
    other = replace(fd, metric="fd1k.other")
    with pytest.raises(UsageError, match=r"'fd' names 2 of .*: fd1k\.other, fd2k\.fs-rn20"):
        best_score([fd, other], None)
    with pytest.raises(UsageError, match=r"'fid50k' names 0 of .*: fd2k"):
        best_score([fd], "fid50k")
    with pytest.raises(UsageError, match=r"(?s)'fd' names 0 of .*: none.*fleetstep sweep"):
        best_score([], "fd")


def test_what_no_run_trained_and_what_does_not_know_its_images_is_refused(
    tracker: Tracker, run_id: str, digits_path: Path, tmp_path: Path
):
    old = write_small_run(tmp_path, digits_path, name="old")
    with pytest.raises(CheckpointError, match="is of none"):
        export_to_mlflow(old)
    (ref,) = find_snapshots([str(old)], which="last", track="ema")
    with pytest.raises(CheckpointError, match="does not say what images"):
        log_snapshot_model(tracker, run_id, ref, name="old")
    (ref.path / "ema.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="damaged"):
        log_snapshot_model(tracker, run_id, ref, name="old")
