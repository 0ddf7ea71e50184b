"""Several processes, each the logger of a run of its own, on one SQLite file."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fleetstep.orchestration.spool import SpoolReader
from fleetstep.orchestration.tracking import Tracker

STEPS = 120

WORK = """
import logging, sys, time
from pathlib import Path
from fleetstep.orchestration.metric_logger import MetricLogger
logging.basicConfig(level=logging.WARNING)
uri, run_id, path, steps = sys.argv[1:]
with MetricLogger(uri, run_id, Path(path), flush_s=0.01) as logger:
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(1, int(steps) + 1):
        logger.log(64 * step, {f"train/metric_{i}": step / (i + 1) for i in range(5)})
        time.sleep(0.002)
    assert logger.close(timeout=60)
"""


@pytest.mark.parametrize("writers", [2, pytest.param(8, marks=pytest.mark.cluster)])
def test_each_has_all_its_points_once_and_no_error(writers: int, tmp_path: Path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "writers")
    run_ids = [tracker.start_run(f"writer-{i}", {}) for i in range(writers)]
    spools = [tmp_path / f"{run_id}.jsonl" for run_id in run_ids]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, tracker.uri, run_id, str(spool), str(STEPS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for run_id, spool in zip(run_ids, spools, strict=True)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    # All at once from here on.
    ends = [child.communicate("go\n", timeout=200) for child in children]
    assert [child.returncode for child in children] == [0] * writers, ends
    # No point was even late: nobody had to wait so long that a send failed.
    assert [stderr for _, stderr in ends] == [""] * writers
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        for run_id, spool in zip(run_ids, spools, strict=True):
            rows = database.execute(
                "SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ? "
                "ORDER BY key, step, timestamp",
                (run_id,),
            ).fetchall()
            assert rows == sorted(
                (p.key, p.images_seen, p.value, p.timestamp_ms) for p in SpoolReader(spool).read()
            )
            assert len(rows) == 5 * STEPS
