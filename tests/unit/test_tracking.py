"""The driver's tracker on a real SQLite database: runs, how they end, and what they keep."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetstep.addresses import redacted
from fleetstep.errors import TrackingError, UnknownRunError
from fleetstep.orchestration import tracking_store
from fleetstep.orchestration.history import History, RunHistory
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.tracking_store import from_tracker_key, to_tracker_key


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("tracker")
    return Tracker(f"sqlite:///{folder}/new/folder/mlflow.db", "digits")


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start_run("edm", {"training.seed": "0"})


def look(tracker: Tracker, run_id: str) -> RunHistory:
    return History(tracker.uri, tracker.experiment).runs([run_id])[0]


def folder(tracker: Tracker) -> Path:
    return Path(tracker.uri.removeprefix("sqlite:///")).parent


def test_the_database_is_write_ahead_and_nothing_is_left_in_the_working_folder(tracker: Tracker):
    database = sqlite3.connect(folder(tracker) / "mlflow.db")
    with contextlib.closing(database):
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not Path("mlflow.db").exists()
    assert not Path("mlruns").exists()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"


CREATE = """
import sys
from fleetstep.orchestration.tracking import Tracker
tracker = Tracker(sys.argv[1], "same")
run_id = tracker.start_run(sys.argv[2], {}, tags={"fleetstep.kind": "train"})
for images in range(50):
    tracker.log_metrics(run_id, images, {"a": images})
tracker.finish(run_id, "FINISHED")
print(tracker.experiment_id)
"""


def test_two_processes_make_one_database_and_write_to_it_at_once(tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, uri, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for name in ("one", "two")
    ]
    answers = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], answers
    # Quiet, too: no migration log of the first run.
    assert [stderr for _, stderr in answers] == ["", ""]
    assert answers[0][0] == answers[1][0]
    runs = History(uri, "same").runs()
    assert sorted(run.name for run in runs) == ["one", "two"]
    for run in runs:
        assert run.status == "FINISHED"
        assert [p.images_seen for p in run.metrics["a"]] == list(range(50))


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("act", "leaves_with", "status"),
    [
        (lambda: None, None, "FINISHED"),
        (fail, ZeroDivisionError, "FAILED"),
        (interrupt, KeyboardInterrupt, "KILLED"),
        (terminate, SystemExit, "KILLED"),
    ],
)
def test_the_status_is_right_at_every_end(
    tracker: Tracker,
    run_id: str,
    act: Callable[[], None],
    leaves_with: type[BaseException] | None,
    status: str,
):
    # Ray, started by another test of this process, takes the signal for itself.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert look(tracker, run_id).status == "RUNNING"
    expected = pytest.raises(leaves_with) if leaves_with else contextlib.nullcontext()
    with expected, tracker.ending(run_id):
        act()
    run = look(tracker, run_id)
    assert run.status == status
    assert run.ended_ms is not None
    assert run.ended_ms >= run.started_ms
    assert signal.signal(signal.SIGTERM, before) is signal.SIG_DFL


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_tracker(
    tracker: Tracker,
    run_id: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(tracker._client, "set_terminated", refuse)
    with pytest.raises(ZeroDivisionError), tracker.ending(run_id):
        fail()
    assert f"record that run {run_id} is FAILED: OSError: disk gone" in caplog.text
    with pytest.raises(TrackingError, match="is FINISHED: OSError"), tracker.ending(run_id):
        pass


def test_someone_elses_sigterm_handler_stays(tracker: Tracker, run_id: str):
    caught: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        with tracker.ending(run_id):
            terminate()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert caught == [signal.SIGTERM]
    assert look(tracker, run_id).status == "FINISHED"


def test_parameters_are_kept_whole_in_number_and_cut_in_length(tracker: Tracker):
    params = {f"p.{i}": str(i) for i in range(250)}
    run = look(tracker, tracker.start_run("many", {**params, "long": "x" * 7000}))
    assert run.params.keys() == {*params, "long"}
    assert run.params["p.249"] == "249"
    assert run.params["long"] == "x" * 5999 + "…"


def test_going_on_with_a_run_keeps_parameters_and_records_what_changed(tracker: Tracker):
    first = {"workers": "1", "seed": "0", "long": "x" * 7000}
    run_id = tracker.start_run("edm", first, tags={"state": "new", "kept": "yes"})
    tracker.finish(run_id, "KILLED")
    again = {**first, "workers": "2", "added": "5"}
    assert tracker.start_run("edm", again, tags={"state": "old"}, run_id=run_id) == run_id
    tracker.start_run("edm", again, run_id=run_id)
    tracker.start_run("edm", {**again, "workers": "4"}, run_id=run_id)
    run = look(tracker, run_id)
    assert run.status == "RUNNING"
    assert run.ended_ms is None
    assert (run.params["workers"], run.params["seed"], run.params["added"]) == ("1", "0", "5")
    assert (run.tags["state"], run.tags["kept"]) == ("old", "yes")
    events = [run.tags[f"fleetstep.resume.{n}"] for n in (1, 2, 3)]
    assert [e.partition('"changed": ')[2] for e in events] == [
        '{"workers": ["1", "2"]}}',
        "{}}",
        '{"workers": ["2", "4"]}}',
    ]


@pytest.mark.parametrize("deleted", [False, True])
def test_going_on_with_a_run_that_is_not_there(tracker: Tracker, run_id: str, deleted: bool):
    wanted = run_id if deleted else "0" * 32
    if deleted:
        tracker._client.delete_run(run_id)
    with pytest.raises(TrackingError, match=f"run {wanted} cannot go on.*\n.*restore it"):
        tracker.start_run("edm", {}, run_id=wanted)


def test_the_drivers_points_are_not_repeated_after_a_restart(tracker: Tracker, run_id: str):
    key = "eval/fd.fs-rn20.multi112@1a2b3c4d"
    for images in (100, 200, 100, 200, 300):
        tracker.log_metrics(run_id, images, {key: images / 100})
    points = look(tracker, run_id).metrics[key]
    assert [(p.images_seen, p.value) for p in points] == [(100, 1), (200, 2), (300, 3)]


def test_another_value_at_a_step_is_the_curves_last_and_the_one_before_is_kept(
    tracker: Tracker, run_id: str
):
    """A reference or a measure that has changed: the score of a snapshot is another."""
    for value in (1.0, 2.0, 2.0):
        tracker.log_metrics(run_id, 100, {"eval/again": value})
    points = look(tracker, run_id).metrics["eval/again"]
    assert [(p.images_seen, p.value) for p in points] == [(100, 1), (100, 2)]
    tracker.log_metrics(run_id, 100, {"eval/again": 1.0})
    assert tracker._client.get_run(run_id).data.metrics["eval/again"] == 1.0


def test_the_drivers_late_points_are_kept(tracker: Tracker, run_id: str):
    """Snapshots are scored in the order in which their scores come."""
    for images in (300, 100, 300, 200):
        tracker.log_metrics(run_id, images, {"eval/late": images / 100})
    points = look(tracker, run_id).metrics["eval/late"]
    assert [(p.images_seen, p.value) for p in points] == [(100, 1), (200, 2), (300, 3)]


def test_files_and_the_dataset_are_kept_with_the_run(
    tracker: Tracker, run_id: str, tmp_path: Path
):
    (tmp_path / "config.resolved.yaml").write_text("a: 1\n")
    tracker.log_artifact(run_id, tmp_path / "config.resolved.yaml")
    tracker.log_artifact(run_id, tmp_path / "config.resolved.yaml", "grids")
    tracker.log_dict(run_id, [{"value": 1.5}], "scores.json")
    for _ in range(2):
        tracker.log_dataset(run_id, "digits", "ab" * 32, "/data/digits")
    run = look(tracker, run_id)
    kept = {"config.resolved.yaml", "grids/config.resolved.yaml", "scores.json"}
    assert set(run.artifacts) == kept
    assert run.tags["dataset.fingerprint"] == "ab" * 32
    (entry,) = tracker._client.get_run(run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("digits", "ab" * 6)
    assert (folder(tracker) / "artifacts" / run_id / "artifacts" / "scores.json").is_file()
    with pytest.raises(ValueError, match="JSON"):
        tracker.log_dict(run_id, float("nan"), "scores.json")


def test_a_run_is_found_by_its_tags_or_named_as_ambiguous(tracker: Tracker):
    tags = {"trial_id": "t-1", "sweep": "s"}
    assert tracker.find_run(tags) is None
    first = tracker.start_run("trial", {}, tags=tags)
    assert tracker.find_run(tags) == first
    assert tracker.find_run({**tags, "sweep": "another"}) is None
    second = tracker.start_run("trial", {}, tags=tags)
    with pytest.raises(TrackingError, match="trial_id=t-1") as caught:
        tracker.find_run(tags)
    assert first in str(caught.value)
    assert second in str(caught.value)
    with pytest.raises(TrackingError, match="must not hold"):
        tracker.find_run({"name": "a' or '1'='1"})


def test_a_deleted_experiment_is_not_written_to(tracker: Tracker):
    other = Tracker(tracker.uri, "gone")
    other._client.delete_experiment(other.experiment_id)
    with pytest.raises(TrackingError, match=f"restore --experiment-id {other.experiment_id}"):
        Tracker(tracker.uri, "gone")


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "./runs:ada:s3cret@x", ""])
def test_an_address_that_is_no_tracker_is_refused(uri: str):
    with pytest.raises(TrackingError, match=r"must begin with one of sqlite.*\n.*leave it out"):
        Tracker(uri, "x")


def test_a_database_that_cannot_be_opened_says_where(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=f"{tmp_path}/file/mlflow.db could not be opened"):
        Tracker(f"sqlite:///{tmp_path}/file/mlflow.db", "x")
    (tmp_path / "garbage.db").write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(TrackingError, match="DatabaseError: file is not a database"):
        Tracker(f"sqlite:///{tmp_path}/garbage.db", "x")


@pytest.mark.parametrize(
    "uri",
    [
        "http://ada:s3cr%21t-p4ss@127.0.0.1:1",
        "postgresql://ada:s3cr%21t-p4ss@127.0.0.1:1/runs",
        "mysql+nosuchdriver://ada:x@127.0.0.1:1/runs?password=s3cr%21t-p4ss",
        "postgresql://ada:s3cr%21t-p4ss@127.0.0.1:s3cr%21t-p4ss/runs",
    ],
)
def test_a_password_is_in_no_error_and_no_log(
    uri: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(TrackingError) as caught:
        Tracker(uri, "x")
    shown = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert "127.0.0.1" in str(caught.value)
    assert "p4ss" not in shown
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_default_database_is_beside_the_runs_wherever_a_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert tracking_store.default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_store.checked_uri("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert tracking_store.checked_uri("http://host:5000") == "http://host:5000"


@pytest.mark.parametrize(
    "key", ["eval/fd.fs-rn20.multi112@1a2b3c4d", "train/loss", "held_out/bin 3", "a@b@c", "x-._"]
)
def test_names_are_mapped_and_back(key: str):
    assert "@" not in to_tracker_key(key)
    assert from_tracker_key(to_tracker_key(key)) == key


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://user:hunter2@host/db", "postgresql://user:***@host/db"),
        ("http://hunter2@host:5000", "http://***@host:5000"),
        ("mysql://host/db?api_key=hunter2&a=b", "mysql://host/db?api_key=***&a=b"),
        ("mysql://host/db?client-secret=hunter2", "mysql://host/db?client-secret=***"),
        ("mysql://host/db?access_key=hunter2", "mysql://host/db?access_key=***"),
        ("mysql://host/db?sslpassword=hunter2", "mysql://host/db?sslpassword=***"),
        ("http://host:5000/?x=y", "http://host:5000/?x=y"),
    ],
)
def test_no_secret_of_an_address_is_printed(uri: str, shown: str):
    assert redacted(uri) == shown


def test_an_unknown_run_is_an_error_of_its_own(tracker: Tracker, run_id: str):
    with pytest.raises(UnknownRunError):
        tracker.start_run("edm", {}, run_id="0" * 32)
    assert tracker.has_run(run_id)
    assert not tracker.has_run("0" * 32)
    other = Tracker(tracker.uri, "another experiment")
    assert not other.has_run(run_id)


def test_a_run_whose_parameters_are_refused_has_failed(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(tracker._client, "log_batch", refuse)
    with pytest.raises(TrackingError, match="disk gone"):
        tracker.start_run("refused", {"a": "1"})
    monkeypatch.undo()
    (run,) = History(tracker.uri, tracker.experiment).runs(["refused"])
    assert run.status == "FAILED"
