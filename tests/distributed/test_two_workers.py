"""Two gloo workers on DeepSpeed ZeRO-1.

Exact resume after a SIGKILL, and checkpoints that change the number of workers.
"""

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
from torch import Tensor

import training_job
from fleetstep.training.checkpoint import CheckpointStore
from fleetstep.training.checkpoint_format import Checkpoint, CheckpointReader
from training_job import run, save_again

STRATEGIES: dict[str, Any] = {
    "uncertainty": {
        "process": {"kind": "ddpm"},
        "strategies": [{"kind": "ant_uw", "clusters": 4}],
    },
    "curriculum": {
        "process": {"kind": "ddpm"},
        "strategies": [{"kind": "tskdif_cur", "clusters": 5, "patience": 1}],
    },
    "pairs": {
        "process": {"kind": "ddpm"},
        "strategies": [{"kind": "speed", "reflected_pairs": True}],
    },
}
"""Runs whose draws or weights need more than one sample at a time."""


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
    """Runs on two workers, twice, and on one worker in between.

    unbroken/     12 steps on two workers
    plain*/       the same without dropout, at ZeRO 1, 2 and 3 and without DeepSpeed
    half/         6 steps
    killed/       rank 1 killed in its third save, after rank 0's part; then resumed
    alone/        half/ loaded and saved by one worker at stage 0
    back1/ back3/ alone/ loaded and saved by two workers at stages 1 and 3
    """
    root = tmp_path_factory.mktemp("two-workers")

    def on_two(name: str, kind: str = "1", **more: Any) -> dict[str, Any]:
        return {"root": str(root / name), "kind": kind, **more}

    codes = two_workers(
        root / "first",
        [
            on_two("unbroken"),
            on_two("plain1", changes={"dropout": 0.0}),
            on_two("half", changes={"images": 48}),
            *(
                on_two(name, changes={"dropout": 0.0, **settings})
                for name, settings in STRATEGIES.items()
            ),
            on_two("killed", kill=["save:part-written", 3], kill_rank=1),
        ],
    )
    assert codes[1] == -signal.SIGKILL
    assert codes[0] > 0  # the survivor fails instead of waiting for ever
    assert latest(root / "killed").images_seen == 16
    save_again(root / "half", root / "alone", "0")
    source = {"from": str(root / "alone")}
    codes = two_workers(
        root / "second",
        [
            on_two("killed"),
            on_two("back1", **source),
            on_two("back3", "3", **source),
            *(
                on_two(f"plain{kind}", kind, changes={"dropout": 0.0})
                for kind in ("torch", "2", "3")
            ),
        ],
    )
    assert codes == [0, 0]
    return root


def test_resume_after_a_kill_is_exact(root: Path):
    unbroken, resumed = points_of(root / "unbroken"), points_of(root / "killed")
    assert len(unbroken) == 12
    assert resumed == {n: loss for n, loss in unbroken.items() if int(n) > 16}
    a, b = contents(latest(root / "unbroken")), contents(latest(root / "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_do_not_depend_on_the_number_of_workers(root: Path, tmp_path: Path, name: str):
    """Losses agree to rounding, and what is learned of them is the same on both workers."""
    _, alone = run(tmp_path, kind="1", dropout=0.0, **training_job.specs(STRATEGIES[name]))
    both = {int(n): loss for n, loss in points_of(root / name).items()}
    assert both == pytest.approx(alone, rel=1e-5)
    ours, theirs = (latest(folder).states for folder in (tmp_path, root / name))
    assert len(theirs) == 2
    if "adaptive" in ours[0]:
        assert theirs[0]["adaptive"] == theirs[1]["adaptive"]
        for key, value in ours[0]["adaptive"].items():
            assert theirs[0]["adaptive"][key] == pytest.approx(value, rel=1e-5)


def test_each_worker_holds_half(root: Path):
    """Weights, moments and EMA: equal parts, up to alignment and file headers."""
    small, large = sorted(part["bytes"] for part in latest(root / "unbroken").parts)
    assert large - small < 0.2 * large


def test_a_checkpoint_changes_workers_and_stage_exactly(root: Path):
    original = latest(root / "half")
    assert len(original.parts) == 2
    expected = contents(original)
    for name, parts in (("alone", 1), ("back1", 2), ("back3", 2)):
        found = latest(root / name)
        assert len(found.parts) == parts
        assert (found.step, found.images_seen) == (6, 48)
        again = contents(found)
        assert again.keys() == expected.keys()
        assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_one_worker_or_two_see_the_same_images_and_noise(root: Path, tmp_path: Path):
    _, alone = run(tmp_path, dropout=0.0)
    for kind in ("torch", "1", "2", "3"):
        on_two = {int(n): loss for n, loss in points_of(root / f"plain{kind}").items()}
        assert on_two == pytest.approx(alone, rel=1e-5)
