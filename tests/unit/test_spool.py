"""The spool: what a killed process leaves, what a restart drops, what a reader sees."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fleetstep.errors import TrackingError
from fleetstep.orchestration.spool import Cursor, Point, SpoolReader, SpoolWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "metrics.jsonl"


def read(path: Path) -> list[Point]:
    return list(SpoolReader(path).read())


def places(path: Path, key: str) -> list[int]:
    return [point.images_seen for point in read(path) if point.key == key]


def test_points_come_back_as_they_were_logged(path: Path):
    writer = SpoolWriter(path)
    writer.append(64, {"loss": 0.1 + 0.2, "lr": 1e-300})
    writer.append(128, {"loss": math.inf, "lr": -math.inf, "grad": math.nan})
    points = read(path)
    assert [(p.key, p.images_seen) for p in points] == [
        ("loss", 64),
        ("lr", 64),
        ("loss", 128),
        ("lr", 128),
        ("grad", 128),
    ]
    assert [p.value for p in points[:4]] == [0.1 + 0.2, 1e-300, math.inf, -math.inf]
    assert math.isnan(points[4].value)
    assert len({p.timestamp_ms for p in points[:2]}) == 1
    strict = [json.loads(x, parse_constant=pytest.fail) for x in path.read_text().splitlines()]
    assert len(strict) == 2


def test_identity_is_key_and_images_seen(path: Path):
    writer = SpoolWriter(path)
    assert writer.append(64, {"a": 1.0})
    assert not writer.append(64, {"a": 2.0})
    assert not writer.append(32, {"a": 3.0})
    assert writer.append(64, {"a": 4.0, "b": 5.0})
    assert [(p.key, p.images_seen, p.value) for p in read(path)] == [("a", 64, 1), ("b", 64, 5)]


def test_a_restart_from_an_earlier_checkpoint_leaves_no_duplicate_and_no_gap(path: Path):
    first = SpoolWriter(path)
    for step in range(1, 9):
        first.append(step * 10, {"a": step, **({"rare": step} if step % 4 == 0 else {})})
    first.close()
    second = SpoolWriter(path)
    for step in range(6, 13):
        second.append(step * 10, {"a": -step, **({"rare": -step} if step % 4 == 0 else {})})
    assert places(path, "a") == list(range(10, 130, 10))
    assert places(path, "rare") == [40, 80, 120]
    assert [p.value for p in read(path) if p.key == "a"][7:9] == [8, -9]


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_torn_last_line_is_ignored_and_then_cut_off(path: Path, cut: int):
    writer = SpoolWriter(path)
    for images in (10, 20, 30):
        writer.append(images, {"a": images})
    writer.close()
    os.truncate(path, path.stat().st_size - cut)
    assert places(path, "a") == [10, 20]
    again = SpoolWriter(path)
    again.append(30, {"a": 3})
    again.append(40, {"a": 4})
    assert places(path, "a") == [10, 20, 30, 40]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_costs_that_line_alone_and_is_named(
    path: Path, caplog: pytest.LogCaptureFixture
):
    writer = SpoolWriter(path)
    for images in (10, 20, 30):
        writer.append(images, {"a": images})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00\xff{garbage\n[1]\n" + lines[2])
    assert places(path, "a") == [10, 30]
    assert [record.message.count(str(path)) for record in caplog.records] == [1, 1]


def test_a_reader_goes_on_where_it_stopped_and_counts_a_line_as_one(path: Path):
    writer = SpoolWriter(path)
    reader = SpoolReader(path)
    for step in range(1, 6):
        writer.append(step, {"a": step, "b": step, "c": step})
    assert len(list(reader.read(max_points=4))) == 6
    assert len(list(reader.read(max_points=4))) == 6
    writer.append(6, {"a": 6})
    assert [p.images_seen for p in reader.read()] == [5, 5, 5, 6]
    assert reader.offset == path.stat().st_size
    assert list(reader.read()) == []


def test_two_writers_of_one_run_give_each_point_once(path: Path):
    ghost, living = SpoolWriter(path), SpoolWriter(path)
    for images in range(1, 50):
        ghost.append(images, {"a": 1})
        living.append(images, {"a": 2})
    assert places(path, "a") == list(range(1, 50))


def test_a_write_that_fails_halfway_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    writer = SpoolWriter(path)
    writer.append(10, {"a": 1})
    whole = path.read_bytes()
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: real(file, data[:9]))
        with pytest.raises(TrackingError, match=r"only 9 of \d+ bytes.*\n.*--resume auto"):
            writer.append(20, {"a": 2})
    assert path.read_bytes() == whole
    assert writer.append(20, {"a": 2})
    assert places(path, "a") == [10, 20]


def test_a_spool_that_cannot_be_opened_or_is_closed_says_so(tmp_path: Path):
    with pytest.raises(TrackingError, match=f"{tmp_path} cannot be used: Is a directory"):
        SpoolWriter(tmp_path)
    writer = SpoolWriter(tmp_path / "s")
    writer.close()
    writer.close()
    with pytest.raises(TrackingError, match="closed spool"):
        writer.append(1, {"a": 1})


WRITE_FOR_EVER = """
import sys, itertools
from pathlib import Path
from fleetstep.orchestration.spool import SpoolWriter
writer = SpoolWriter(Path(sys.argv[1]))
for step in itertools.count(1):
    writer.append(step * 64, {f"train/metric_{i}": step * 0.1 for i in range(10)})
    if step == 200:
        print("ready", flush=True)
"""


def test_what_a_killed_process_wrote_is_there(path: Path):
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    logged = places(path, "train/metric_9")
    assert len(logged) >= 200
    assert logged == list(range(64, logged[-1] + 64, 64))
    writer = SpoolWriter(path)
    for images in range(logged[-1] - 640, logged[-1] + 640, 64):
        writer.append(images, {"train/metric_9": 0.0})
    assert places(path, "train/metric_9") == list(range(64, logged[-1] + 640, 64))


def test_a_cursor_belongs_to_one_run_and_one_spool(path: Path):
    writer = SpoolWriter(path)
    writer.append(10, {"a": 1})
    size = path.stat().st_size
    cursor = Cursor(path, "run-1")
    assert cursor.load() == 0
    cursor.store(size)
    assert Cursor(path, "run-1").load() == size
    assert Cursor(path, "run-2").load() == 0
    path.write_bytes(b"")
    assert cursor.load() == 0
    path.with_name("metrics.jsonl.sent").write_text("{torn")
    assert cursor.load() == 0
    assert sorted(p.name for p in path.parent.iterdir()) == ["metrics.jsonl", "metrics.jsonl.sent"]
