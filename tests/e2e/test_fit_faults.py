"""A worker dies at each point of a job: nothing complete is lost, and the losses are those of an
unbroken run.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

import interruptions
from fleetstep.errors import DataError, TrainingError
from fleetstep.orchestration.fit import fit
from fleetstep.orchestration.history import History
from fleetstep.orchestration.spool import Point, SpoolReader
from fleetstep.orchestration.tracking_store import default_uri
from interruptions import KillOnce
from tiny_experiment import PRESETS, TINY, tiny

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# Workers do not have the tests on their path: what they call travels by value.
ray.cloudpickle.register_pickle_by_value(interruptions)


def series(folder: Path) -> list[tuple[str, int, float]]:
    """Everything that training computed, without what depends on the clock."""
    clock = re.compile("train/(images_per_s|data_wait_share|eta_s)")
    points: list[Point] = list(SpoolReader(folder / "spool" / "metrics.jsonl").read())
    return sorted(
        (point.key, point.images_seen, point.value)
        for point in points
        if not clock.fullmatch(point.key)
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def unbroken(storage: Path, digits_path: Path, ray_cluster: None) -> list[tuple[str, int, float]]:
    return series(fit(tiny(storage, digits_path, "name=unbroken")).folder)


@pytest.mark.parametrize(
    ("event", "nth"),
    [
        ("step", 13),  # between a checkpoint (10) and the next (15)
        ("save:part-written", 3),  # after the first rank's part
        ("save:before-manifest", 3),  # all parts, no manifest
        ("snapshot:weights-written", 2),  # inside a snapshot
    ],
)
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_costs_no_complete_checkpoint_and_changes_no_number(
    event: str,
    nth: int,
    storage: Path,
    digits_path: Path,
    tmp_path: Path,
    unbroken: list[tuple[str, int, float]],
):
    name = re.sub("[^a-z]", "-", event)
    marker = tmp_path / "killed"
    result = fit(tiny(storage, digits_path, f"name={name}"), on_event=KillOnce(marker, event, nth))
    assert marker.exists(), "nothing was killed, so nothing was tested"
    assert result.images_seen == 1280
    assert series(result.folder) == unbroken
    left = sorted(path.name for path in (result.folder / "checkpoints").iterdir())
    assert left == ["step-00000015", "step-00000020"]
    (run,) = History(default_uri(storage), "fleetstep").runs([name])
    assert run.status == "FINISHED"
    losses = [(p.images_seen, p.value) for p in run.metrics["train/loss"]]
    assert losses == [(n, v) for key, n, v in unbroken if key == "train/loss"]


@pytest.mark.usefixtures("ray_cluster")
def test_damaged_data_stops_the_job_with_the_shard_named_and_is_not_retried(
    storage: Path, digits_path: Path, tmp_path: Path
):
    import shutil

    copy = tmp_path / "digits"
    shutil.copytree(digits_path, copy)
    shard = sorted(copy.glob("train-*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-4096])
    started = time.monotonic()
    with pytest.raises(DataError, match=re.escape(shard.name)):
        fit(tiny(storage, copy, "name=damaged", "cluster.max_restarts=50"))
    assert time.monotonic() - started < 300, "50 restarts would take longer than this"
    (run,) = History(default_uri(storage), "fleetstep").runs(["damaged"])
    assert run.status == "FAILED"


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_keep_dying_end_the_job_after_the_allowed_restarts(
    storage: Path, digits_path: Path, tmp_path: Path
):
    with pytest.raises(TrainingError, match="worker"):
        fit(
            tiny(storage, digits_path, "name=dying", "cluster.max_restarts=0"),
            on_event=KillOnce(tmp_path / "killed", "step", 2),
        )
    (run,) = History(default_uri(storage), "fleetstep").runs(["dying"])
    assert run.status == "FAILED"


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path, digits_path: Path):
    storage = tmp_path / "runs"
    command = [
        sys.executable,
        "-m",
        "fleetstep",
        "train",
        str(PRESETS / "digits-edm.yaml"),
        f"storage={storage}",
        f"data.path={digits_path}",
        *TINY,
        "training.images=1280000",
        "training.lr_ramp=100",
        "training.ema={ema: {half_life: 100}}",
        "training.checkpoint_every=1000000",
        "training.snapshot_every=1000000",
    ]
    environment = os.environ | {"GOMP_SPINCOUNT": "1000", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "kimg" in line and "loss" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, "".join(lines) + rest
    (run,) = History(default_uri(storage), "fleetstep").runs(["digits-edm"])
    assert run.status == "KILLED"
    (_, newest) = sorted((storage / "digits-edm" / "checkpoints").iterdir())
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["images_seen"] > 0
    shorter = [f"training.images={manifest['images_seen'] + 64}", "--resume", "must", "--json"]
    again = subprocess.run(
        [*command, *shorter], capture_output=True, text=True, env=environment, timeout=240
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout)["images_seen"] == manifest["images_seen"] + 64
    (run,) = History(default_uri(storage), "fleetstep").runs(["digits-edm"])
    assert run.status == "FINISHED"
