"""Metrics on their way to a real SQLite tracker: never blocking, never lost, never twice."""

from __future__ import annotations

import math
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetstep.errors import TrackingError
from fleetstep.orchestration import metric_logger
from fleetstep.orchestration.metric_logger import MetricLogger, drain
from fleetstep.orchestration.spool import SpoolReader
from fleetstep.orchestration.tracking import Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("tracker")
    return Tracker(f"sqlite:///{folder}/mlflow.db", "logging")


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start_run("run", {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "metrics.jsonl"


def stored(tracker: Tracker, run_id: str) -> list[tuple[str, int, float, int]]:
    """All rows of the run, straight from the database."""
    with sqlite3.connect(tracker.uri.removeprefix("sqlite:///")) as database:
        rows = database.execute(
            "SELECT key, step, CASE WHEN is_nan THEN 'nan' ELSE value END, timestamp "
            "FROM metrics WHERE run_uuid = ? ORDER BY key, step, timestamp",
            (run_id,),
        ).fetchall()
    database.close()
    return rows


def spooled(path: Path) -> list[tuple[str, int, float, int]]:
    return sorted(
        (p.key, p.images_seen, p.value, p.timestamp_ms) for p in SpoolReader(path).read()
    )


@pytest.fixture
def refused() -> str:
    """An address nobody listens at, with a password in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://ada:s3cr%21t-p4ss@127.0.0.1:{probe.getsockname()[1]}"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_everything_logged_is_sent_with_the_spools_timestamps(
    tracker: Tracker, run_id: str, path: Path
):
    with MetricLogger(tracker.uri, run_id, path, flush_s=0.02) as logger:
        for step in range(1, 121):
            logger.log(step * 64, {f"train/metric_{i}": step / (i + 1) for i in range(10)})
        until(lambda: len(stored(tracker, run_id)) > 0)
        logger.log(10**7, {"late": 1.0})
    assert stored(tracker, run_id) == spooled(path)
    assert len(spooled(path)) == 1201
    assert drain(tracker.uri, run_id, path) == 0


def test_a_score_name_and_numbers_that_are_not_finite_arrive(
    tracker: Tracker, run_id: str, path: Path
):
    with MetricLogger(tracker.uri, run_id, path) as logger:
        logger.log(1, {"eval/fd.fs-rn20.multi112@1a2b3c4d": 1.5, "a": math.nan, "b": -math.inf})
        logger.log(2, {"a": 1.0})
    rows = [row[:3] for row in stored(tracker, run_id)]
    assert rows == [
        ("a", 1, "nan"),
        ("a", 2, 1.0),
        ("b", 1, -sys.float_info.max),
        ("eval/fd.fs-rn20.multi112:1a2b3c4d", 1, 1.5),
    ]


@pytest.mark.parametrize("key", ["loss:a", "lösung", "a//b", "../a", "a/", "", "x" * 251])
def test_a_name_that_would_block_the_queue_is_refused_at_once(
    tracker: Tracker, run_id: str, path: Path, key: str
):
    with (
        MetricLogger(tracker.uri, run_id, path) as logger,
        pytest.raises(TrackingError, match="metric name must be"),
    ):
        logger.log(1, {key: 1.0})
    assert spooled(path) == []


def test_one_call_with_more_names_than_mlflow_takes(tracker: Tracker, run_id: str, path: Path):
    with MetricLogger(tracker.uri, run_id, path) as logger:
        logger.log(1, {f"few/{i}": i for i in range(400)})
        logger.log(2, {f"many/{i}": i for i in range(1100)})
    assert len(stored(tracker, run_id)) == 1500


def test_a_dead_server_neither_blocks_nor_loses_anything(
    tracker: Tracker, run_id: str, path: Path, refused: str, caplog: pytest.LogCaptureFixture
):
    logger = MetricLogger(refused, run_id, path, flush_s=0.02)
    slowest = 0.0
    for step in range(1, 51):
        before = time.perf_counter()
        logger.log(step, {"loss": 1 / step, "lr": 0.1})
        slowest = max(slowest, time.perf_counter() - before)
        time.sleep(0.002)
    before = time.perf_counter()
    assert not logger.close(timeout=0.5)
    assert time.perf_counter() - before < 1.5
    # A call costs microseconds; the bound leaves room for a core taken away by another process.
    assert slowest < 0.25
    assert "s3cr" not in caplog.text
    assert drain(tracker.uri, run_id, path) == 100
    assert drain(tracker.uri, run_id, path) == 0
    assert stored(tracker, run_id) == spooled(path)


def test_draining_into_a_dead_server_says_why_and_hides_the_password(
    refused: str, run_id: str, path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logger = MetricLogger("sqlite:////nowhere/mlflow.db", run_id, path)
    logger.log(1, {"a": 1.0})
    assert not logger.close(timeout=0.3)
    with pytest.raises(TrackingError) as caught:
        drain(refused, run_id, path)
    text = str(caught.value)
    assert "ada:***@127.0.0.1" in text
    assert "spool" in text
    assert "s3cr" not in text
    assert "p4ss" not in text
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


def test_a_slow_tracker_does_not_slow_the_caller_and_close_keeps_its_time(
    tracker: Tracker, run_id: str, path: Path, monkeypatch: pytest.MonkeyPatch
):
    release, reached = threading.Event(), threading.Event()

    class Slow:
        def log_batch(self, *_: object, **__: object) -> None:
            reached.set()
            release.wait(30)

    monkeypatch.setattr(metric_logger.tracking_store, "connect", lambda uri: Slow())
    logger = MetricLogger(tracker.uri, run_id, path, flush_s=0.01)
    logger.log(1, {"a": 1.0})
    assert reached.wait(10)
    before = time.perf_counter()
    for step in range(2, 102):
        logger.log(step, {"a": 1.0})
    assert time.perf_counter() - before < 0.5
    before = time.perf_counter()
    assert not logger.close(timeout=0.2)
    assert time.perf_counter() - before < 1.0
    release.set()
    assert len(spooled(path)) == 101


def test_a_tracker_that_comes_back_gets_everything_in_order(
    tracker: Tracker, run_id: str, path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It fails before, and then after it took a batch: the answer is lost, not the batch."""
    calls: list[int] = []
    real = metric_logger.tracking_store.connect

    class Flaky:
        def __init__(self, client: Any) -> None:
            self._client = client

        def log_batch(self, run: str, metrics: list[Any], *, synchronous: bool) -> None:
            calls.append(len(metrics))
            if len(calls) == 1:
                raise ConnectionError("before")
            self._client.log_batch(run, metrics, synchronous=synchronous)
            if len(calls) == 2:
                raise ConnectionError("after")

    monkeypatch.setattr(metric_logger.tracking_store, "connect", lambda uri: Flaky(real(uri)))
    with MetricLogger(tracker.uri, run_id, path, flush_s=0.01) as logger:
        logger.log(1, {"a": 1.0, "b": math.nan})
        until(lambda: len(calls) >= 3)
        logger.log(2, {"a": 2.0})
    assert calls[:3] == [2, 2, 2]
    assert [row[:2] for row in stored(tracker, run_id)] == [("a", 1), ("a", 2), ("b", 1)]


WORK_FOR_EVER = """
import sys, itertools, time
from pathlib import Path
from fleetstep.orchestration.metric_logger import MetricLogger
uri, run_id, path, first = sys.argv[1:]
logger = MetricLogger(uri, run_id, Path(path), flush_s=0.01)
for step in itertools.count(int(first)):
    rare = {"rare": step} if step % 7 == 0 else {}
    logger.log(step * 64, {"loss": step * 0.1, "lr": 0.5, **rare})
    time.sleep(0.0005)
"""


def test_killed_between_batches_and_started_again_no_point_twice_none_missing(
    tracker: Tracker, run_id: str, path: Path
):
    def worker(first_step: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORK_FOR_EVER, tracker.uri, run_id, str(path)]
        return subprocess.Popen([*command, str(first_step)])

    def last_sent() -> int:
        return max((row[1] for row in stored(tracker, run_id)), default=0)

    def run_and_kill(first_step: int) -> int:
        goal = last_sent() + 64 * 50
        with worker(first_step) as child:
            until(lambda: last_sent() > goal, 60)
            child.send_signal(signal.SIGKILL)
        return last_sent()

    reached = run_and_kill(1)
    # From a checkpoint that is older than what was logged.
    run_and_kill(reached // 64 - 30)
    drain(tracker.uri, run_id, path)
    rows = stored(tracker, run_id)
    assert rows == spooled(path)
    losses = [step for key, step, *_ in rows if key == "loss"]
    assert losses == list(range(64, losses[-1] + 64, 64))
    rare = [step for key, step, *_ in rows if key == "rare"]
    assert rare == [step for step in losses if step // 64 % 7 == 0]


def test_a_lost_cursor_or_a_new_run_sends_all_again_without_duplicates(
    tracker: Tracker, run_id: str, path: Path
):
    with MetricLogger(tracker.uri, run_id, path) as logger:
        for step in range(1, 31):
            logger.log(step, {"a": step, "b": math.nan})
    path.with_name(path.name + ".sent").unlink()
    assert drain(tracker.uri, run_id, path) == 60
    assert len(stored(tracker, run_id)) == 60
    anew = tracker.start_run("made anew", {})
    assert drain(tracker.uri, anew, path) == 60
    assert stored(tracker, anew) == stored(tracker, run_id)


def test_a_worker_without_the_database_makes_none(run_id: str, path: Path, tmp_path: Path):
    elsewhere = tmp_path / "other-node" / "mlflow.db"
    logger = MetricLogger(f"sqlite:///{elsewhere}", run_id, path)
    logger.log(1, {"a": 1.0})
    assert not logger.close(timeout=0.3)
    assert not elsewhere.parent.exists()
