"""The tracker over a real `mlflow server`: whole runs, a server that dies, is slow, or locked, and
secrets that stay where they are.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2e.tracking_server import SlowProxy, TrackingServer
from fleetstep.durable import write_json
from fleetstep.orchestration import metric_logger, tracking_store
from fleetstep.orchestration.fit import fit
from fleetstep.orchestration.history import History
from fleetstep.orchestration.logged_models import export_to_mlflow, log_snapshot_model
from fleetstep.orchestration.metric_logger import MetricLogger
from fleetstep.orchestration.model_flavor import SnapshotModel
from fleetstep.orchestration.snapshots import find_snapshots
from fleetstep.orchestration.spool import SpoolReader
from fleetstep.orchestration.tracking import Tracker
from fleetstep.training.snapshot import FACTS
from small_run import write_small_run
from tiny_experiment import tiny

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    started = TrackingServer(tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def tracker(server: TrackingServer) -> Tracker:
    return Tracker(server.uri, "server")


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start_run("run", {})


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "metrics.jsonl"


def stored(database: Path, run_id: str) -> list[tuple[str, int, float, int]]:
    """Every row of the run in a tracker's own database: doubled ones would show here."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        return connection.execute(
            "SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ? "
            "ORDER BY key, step, timestamp",
            (run_id,),
        ).fetchall()


def spooled(path: Path) -> list[tuple[str, int, float, int]]:
    return sorted(
        (p.key, p.images_seen, p.value, p.timestamp_ms) for p in SpoolReader(path).read()
    )


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thread of every request that metrics make."""
    threads: list[str] = []
    real = tracking_store.connect

    class Recorded:
        def __init__(self, uri: str) -> None:
            self._client = real(uri)

        def log_batch(self, *arguments: Any, **options: Any) -> None:
            threads.append(threading.current_thread().name)
            self._client.log_batch(*arguments, **options)

    monkeypatch.setattr(metric_logger.tracking_store, "connect", Recorded)
    return threads


def test_a_whole_run(server: TrackingServer, tracker: Tracker, spool: Path, tmp_path: Path):
    run_id = tracker.start_run("edm", {"training.seed": "0"}, tags={"fleetstep.kind": "train"})
    picture = tmp_path / "images-000000064.png"
    picture.write_bytes(b"pixels")
    with tracker.ending(run_id):
        tracker.log_dataset(run_id, "digits", "ab" * 32, "/data/digits")
        tracker.log_artifact(run_id, picture, "grids")
        with MetricLogger(server.uri, run_id, spool) as logger:
            for step in range(1, 21):
                logger.log(64 * step, {"train/loss": 1 / step, "eval/fd@1": step})
        cell = tracker.start_run("heun nfe=9", {}, parent_run_id=run_id)
        with tracker.ending(cell):
            tracker.log_metrics(cell, 1280, {"eval/fd@1": 3.5})
    history = History(server.uri, "server")
    (run,) = history.runs([run_id])
    assert (run.status, run.params, run.tags["fleetstep.kind"]) == (
        "FINISHED",
        {"training.seed": "0"},
        "train",
    )
    assert [p.images_seen for p in run.metrics["eval/fd@1"]] == list(range(64, 1281, 64))
    assert len(stored(server.database, run_id)) == len(spooled(spool)) == 40
    assert history.read(run_id, "grids/images-000000064.png") == b"pixels"
    ((nested,),) = [history.children(run_id)]
    assert (nested.run_id, nested.status, nested.parent) == (cell, "FINISHED", run_id)
    assert nested.metrics["eval/fd@1"][0].value == 3.5


def test_the_dataset_column_has_name_digest_and_source(tracker: Tracker, run_id: str):
    tracker.log_dataset(run_id, "digits", "0123456789abcdef" * 4, "/data/digits")
    (used,) = tracking_store.connect(tracker.uri).get_run(run_id).inputs.dataset_inputs
    assert used.dataset.name == "digits"
    assert (
        "0123456789abcdef" * 4
        == History(tracker.uri, "server").runs([run_id])[0].tags["dataset.fingerprint"]
    )
    assert ("0123456789abcdef" * 4).startswith(used.dataset.digest)
    assert len(used.dataset.digest) >= 12
    assert json.loads(used.dataset.source) == {"uri": "/data/digits"}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]


DRIVER = """
import sys, time
from fleetstep.orchestration.tracking import Tracker
tracker = Tracker(sys.argv[1], "server")
run_id = tracker.start_run("driver", {}, run_id=sys.argv[3] if len(sys.argv) > 3 else None)
with tracker.ending(run_id):
    print(run_id, flush=True)
    if sys.argv[2] == "fail":
        raise ZeroDivisionError
    if sys.argv[2] == "wait":
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("act", "number", "status"),
    [
        ("end", None, "FINISHED"),
        ("fail", None, "FAILED"),
        ("wait", signal.SIGTERM, "KILLED"),
        ("wait", signal.SIGINT, "KILLED"),
    ],
)
def test_the_final_status_is_right(
    server: TrackingServer, act: str, number: signal.Signals | None, status: str, tmp_path: Path
):
    run_id, _ = drive(server, act, number, tmp_path)
    assert History(server.uri, "server").runs([run_id])[0].status == status


def test_a_driver_that_was_killed_is_gone_on_with(server: TrackingServer, tmp_path: Path):
    """Nobody can say how it ended: the run says so when it is taken up again."""
    run_id, _ = drive(server, "wait", signal.SIGKILL, tmp_path)
    look = History(server.uri, "server")
    assert look.runs([run_id])[0].status == "RUNNING"
    again, _ = drive(server, "end", None, tmp_path, run_id)
    assert again == run_id
    (run,) = look.runs([run_id])
    assert run.status == "FINISHED"
    assert json.loads(run.tags["fleetstep.resume.1"])["changed"] == {}


def drive(
    server: TrackingServer, act: str, number: signal.Signals | None, folder: Path, *run_id: str
) -> tuple[str, int]:
    command = [sys.executable, "-c", DRIVER, server.uri, act, *run_id]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder
    ) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        if number is not None:
            child.send_signal(number)
    return name, child.returncode


def test_a_resumed_run_has_no_point_twice_and_none_missing(
    server: TrackingServer, tracker: Tracker, spool: Path
):
    run_id = tracker.start_run("resumed", {"training.images": "6400"})
    with MetricLogger(server.uri, run_id, spool) as logger:
        for step in range(1, 81):
            logger.log(64 * step, {"train/loss": 1 / step})
    tracker.finish(run_id, "KILLED")
    tracker.start_run("resumed", {"training.images": "9600"}, run_id=run_id)
    with MetricLogger(server.uri, run_id, spool) as logger:
        # From a checkpoint that is older than what was logged.
        for step in range(51, 151):
            logger.log(64 * step, {"train/loss": 2 / step})
    tracker.finish(run_id, "FINISHED")
    rows = stored(server.database, run_id)
    assert rows == spooled(spool)
    assert [step for _, step, *_ in rows] == list(range(64, 64 * 150 + 1, 64))
    (run,) = History(server.uri, "server").runs([run_id])
    changed = json.loads(run.tags["fleetstep.resume.1"])["changed"]
    assert changed == {"training.images": ["6400", "9600"]}


def test_a_server_that_is_killed_and_comes_back_has_everything_once(
    server: TrackingServer, tracker: Tracker, run_id: str, spool: Path, senders: list[str]
):
    logger = MetricLogger(server.uri, run_id, spool, flush_s=0.02)
    for step in range(1, 201):
        logger.log(64 * step, {"train/loss": 1 / step, "train/lr": 1e-3})
    until(lambda: len(stored(server.database, run_id)) > 0)
    server.kill()
    # Nobody answers; the calls return all the same, and the spool has every point.
    for step in range(201, 401):
        logger.log(64 * step, {"train/loss": 1 / step, "train/lr": 1e-3})
    assert len(spooled(spool)) == 800
    until(lambda: logger._sender.error is not None)
    assert len(stored(server.database, run_id)) < 800
    server.start()
    for step in range(401, 501):
        logger.log(64 * step, {"train/loss": 1 / step, "train/lr": 1e-3})
    assert logger.close(timeout=60)
    assert stored(server.database, run_id) == spooled(spool)
    assert len(spooled(spool)) == 1000
    # Training's own thread never met the network: that is why it cannot be held up.
    assert set(senders) == {"metric-logger"}


def test_a_slow_server_is_asked_by_one_thread_one_request_at_a_time(
    server: TrackingServer, run_id: str, spool: Path, senders: list[str]
):
    with SlowProxy(server, 2.0).running() as proxy:
        proxy.open.clear()
        logger = MetricLogger(proxy.uri, run_id, spool, flush_s=0.02)
        logger.log(64, {"train/loss": 1.0})
        until(lambda: proxy.received == 1)
        for step in range(2, 1002):
            logger.log(64 * step, {"train/loss": 1 / step})
        # The first request is still on its way, and 1,000 calls have returned.
        assert proxy.received == 1
        assert stored(server.database, run_id) == []
        assert len(spooled(spool)) == 1001
        proxy.open.set()
        assert logger.close(timeout=30)
        # 1 + 1,000 points in batches: few requests, never two of them at once.
        assert proxy.most_at_once == 1
        assert proxy.received <= 5
    assert set(senders) == {"metric-logger"}
    assert stored(server.database, run_id) == spooled(spool)


def test_a_database_that_another_process_locks_loses_nothing(tmp_path: Path, spool: Path):
    """Longer than SQLite waits by itself: the send fails and is repeated."""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "locked")
    run_id = tracker.start_run("run", {})
    logger = MetricLogger(tracker.uri, run_id, spool, flush_s=0.02)
    logger.log(64, {"train/loss": 1.0})
    until(lambda: len(stored(tmp_path / "mlflow.db", run_id)) == 1)
    other = sqlite3.connect(tmp_path / "mlflow.db", timeout=30, isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        for step in range(2, 102):
            logger.log(64 * step, {"train/loss": 1 / step})
        until(lambda: logger._sender.error is not None)
        assert len(spooled(spool)) == 101
        other.execute("ROLLBACK")
    assert logger.close(timeout=60)
    assert stored(tmp_path / "mlflow.db", run_id) == spooled(spool)


def test_a_model_is_registered_and_sampled_from_the_server(
    server: TrackingServer, tracker: Tracker, run_id: str, digits_path: Path, tmp_path: Path
):
    run = write_small_run(tmp_path, digits_path)
    (path,) = (run / "snapshots").iterdir()
    facts = json.loads((path / FACTS).read_text())
    write_json(path / FACTS, facts | {"shape": [1, 8, 8], "classes": 10})
    (snapshot,) = find_snapshots([str(run)], which="last", track="ema")
    logged = log_snapshot_model(tracker, run_id, snapshot, name="small", register_as="digits")
    out = tmp_path / "theirs.npz"
    program = (
        "import sys, mlflow, numpy; mlflow.set_tracking_uri(sys.argv[1]); "
        "m = mlflow.pyfunc.load_model(sys.argv[2]); "
        "numpy.savez(sys.argv[3], **m.predict({'seed': list(range(9))}, params={'nfe': 5}))"
    )
    for uri in (logged.uri, f"models:/digits/{logged.version}"):
        command = [sys.executable, "-c", program, server.uri, uri, str(out)]
        subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
        ours = SnapshotModel(path).predict({"seed": range(9)}, {"nfe": 5})
        np.testing.assert_array_equal(np.load(out)["images"], ours["images"])


SECRETS = {
    "FLEETSTEP_TEST_PASSWORD": "pl4nted-in-the-address",
    "FLEETSTEP_TEST_USER": "pl4nted-user",
    "AWS_SECRET_ACCESS_KEY": "pl4nted-aws",
    "MLFLOW_TRACKING_TOKEN": "pl4nted-token",
    "HF_TOKEN": "pl4nted-hub",
}


def test_a_run_through_a_server_that_dies_keeps_every_point_and_no_secret(
    server: TrackingServer,
    ray_cluster: None,
    digits_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    """Training by Ray, the server killed and started again in the middle of it; then a model of
    it. What is planted in the address and in the environment is nowhere to be found.
    """
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    storage = tmp_path / "runs"
    experiment = tiny(
        storage,
        digits_path,
        "name=planted",
        "training.images=19200",
        "training.checkpoint_every=50%",
        "tracking.uri=http://${env:FLEETSTEP_TEST_USER}:${env:FLEETSTEP_TEST_PASSWORD}"
        f"@127.0.0.1:{server.port}",
    )
    spool = experiment.folder / "spool" / "metrics.jsonl"
    said: list[str] = []
    killed_at = kill_and_start_again(server, spool)
    result = fit(experiment, say=said.append)
    killed_at.join()
    assert result.images_seen == 19200
    (run,) = History(server.uri, "fleetstep").runs(["planted"])
    assert run.status == "FINISHED"
    rows = stored(server.database, run.run_id)
    assert rows == spooled(spool)
    losses = [step for key, step, *_ in rows if key == "train/loss"]
    assert losses == list(range(64, 19201, 64))
    exported = export_to_mlflow(experiment.folder, register="planted")
    assert exported.version == "1"
    out, err = capfd.readouterr()
    texts = {"what was printed": out + err + caplog.text + "\n".join(said) + exported.text()}
    for folder in (server.folder, storage):
        for path in folder.rglob("*"):
            if path.is_file():
                texts[str(path)] = path.read_bytes().decode("latin-1")
    assert len(texts) > 20
    found = [(place, name) for place, text in texts.items() for name in leaks(text)]
    assert found == []


def leaks(text: str) -> list[str]:
    return [name for name, value in SECRETS.items() if value in text]


def kill_and_start_again(server: TrackingServer, spool: Path) -> threading.Thread:
    """Once the run has logged something."""

    def work() -> None:
        until(lambda: spool.is_file() and spool.stat().st_size > 0, 120)
        server.kill()
        server.start()

    thread = threading.Thread(target=work)
    thread.start()
    return thread
