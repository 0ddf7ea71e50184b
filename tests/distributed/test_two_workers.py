"""Two gloo workers on DeepSpeed ZeRO-1: exact resume after a SIGKILL, and checkpoints that change the number of workers."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import training_job
from torch import Tensor
from training_job import run, toy_job

from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import Checkpoint, CheckpointReader


def two_workers(folder: Path, runs: Sequence[dict[str, Any]]) -> list[int]:
    """Run jobs on two processes; their exit codes."""
    folder.mkdir(exist_ok=True)
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                training_job.__file__,
                json.dumps(
                    {
                        "rank": rank,
                        "world": 2,
                        "rendezvous": (folder / "rendezvous").as_uri(),
                        "runs": runs,
                    }
                ),
            ],
            stderr=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    _, errors = workers[0].communicate(timeout=180)
    codes = [worker.wait(timeout=60) for worker in workers]
    if codes == [1, 1]:
        pytest.fail(errors.decode())
    return codes


def contents(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every quantity of every parameter, whole."""
    quantities = ["param", "exp_avg", "exp_avg_sq", *(f"ema.{t}" for t in checkpoint.tracks)]
    with CheckpointReader(checkpoint) as reader:
        return {
            f"{quantity}/{name}": reader.read(quantity, name, 0, math.prod(shape))
            for quantity in quantities
            for name, shape in checkpoint.shapes.items()
        }


def latest(root: Path) -> Checkpoint:
    found = CheckpointStore(root / "checkpoints").latest()
    assert found is not None
    return found


def points_of(root: Path) -> dict[str, float]:
    points: dict[str, float] = json.loads((root / "points.json").read_text())
    return points


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs on two workers, and one alone in between.

    unbroken/  12 steps on two workers
    killed/    rank 1 killed once rank 0 may have written its part of the third checkpoint; then resumed
    alone/     half of it by one worker at stage 0; then finished by two at stage 1
    """
    root = tmp_path_factory.mktemp("two-workers")

    def on(name: str, **more: Any) -> dict[str, Any]:
        return {"root": str(root / name), "kind": "1", **more}

    kill = {"kill": ["save:part-written", 3], "kill_rank": 1}
    codes = two_workers(root / "first", [on("unbroken"), on("killed", **kill)])
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    run(root / "alone", kind="0", images=48)
    (root / "alone-before").mkdir()
    latest(root / "alone").path.rename(root / "alone-before" / "saved")
    (root / "alone-before" / "checkpoints").mkdir()
    (root / "alone-before" / "saved").rename(
        root / "alone-before" / "checkpoints" / "step-00000006"
    )
    (root / "reloaded" / "checkpoints").mkdir(parents=True)
    return root


def test_resume_after_a_kill_is_exact(root: Path):
    assert latest(root / "killed").images_seen == 16
