"""SIGKILL at every kind of moment: nothing complete is lost, and the run goes on unchanged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import training_job
from training_job import run, toy_job

# (event, occurrence, images that must be safe). Checkpoints: every 16 images; steps of 8.
KILLS = {
    "between steps": ("step", 5, 32),
    "after the first part": ("save:part-written", 3, 16),
    "before the manifest": ("save:before-manifest", 4, 32),
    "inside a snapshot": ("snapshot:weights-written", 2, 48),
    "before a snapshot is reported": ("snapshot:done", 2, 48),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that were killed, two at a time."""
    roots = {name: tmp_path_factory.mktemp("killed") for name in KILLS}
    names = list(KILLS)
    for pair in (names[:2], names[2:4], names[4:]):
        workers = []
        for name in pair:
            event, occurrence, _ = KILLS[name]
            spec = {"root": str(roots[name]), "kind": "torch", "kill": [event, occurrence]}
            arguments = json.dumps({"rank": 0, "world": 1, "runs": [spec]})
            workers.append(subprocess.Popen([sys.executable, training_job.__file__, arguments]))
        for worker in workers:
            assert worker.wait(timeout=120) == -signal.SIGKILL
    return roots


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> training_job.Points:
    return run(tmp_path_factory.mktemp("unbroken"))[1]


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_goes_on(name: str, killed: dict[str, Path], unbroken: training_job.Points):
    safe = KILLS[name][2]
    job = toy_job(killed[name])
    start = job.store.latest()
    assert start is not None
    assert start.images_seen == safe
    told: list[int] = []
    callbacks = replace(job.callbacks, snapshot=lambda path, images_seen: told.append(images_seen))
    outcome, points = run(killed[name], resume="must", job=replace(job, callbacks=callbacks))
    assert outcome.status == "finished"
    assert points == {n: loss for n, loss in unbroken.items() if n > safe}
    assert told == ([48, 96] if safe <= 48 else [96])
    snapshots = sorted(p.name for p in (killed[name] / "snapshots").iterdir())
    assert snapshots == ["images-000000000", "images-000000048", "images-000000096"]
    assert [p.name for p in job.store.folders()] == ["step-00000012", "step-00000010"]
