"""Workers die again and again at random points: the numbers are still those of an unbroken run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import ray

import interruptions
from fleetstep.orchestration.fit import fit
from fleetstep.orchestration.spool import SpoolReader
from interruptions import KillOnce, Several
from tiny_experiment import tiny

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200), pytest.mark.usefixtures("ray_cluster")]

ray.cloudpickle.register_pickle_by_value(interruptions)
EVENTS = ("step", "save:part-written", "save:before-manifest", "snapshot:weights-written")


def losses(folder: Path) -> list[tuple[int, float]]:
    points = SpoolReader(folder / "spool" / "metrics.jsonl").read()
    return [(p.images_seen, p.value) for p in points if p.key == "train/loss"]


@pytest.mark.parametrize("seed", [0, 1])
def test_six_random_deaths_change_no_loss(seed: int, tmp_path: Path, digits_path: Path):
    chance = random.Random(seed)
    kills = tuple(
        KillOnce(tmp_path / f"killed-{i}", chance.choice(EVENTS), chance.randint(1, 4))
        for i in range(6)
    )
    storage = tmp_path / "runs"
    unbroken = fit(tiny(storage, digits_path, "name=unbroken"))
    broken = fit(
        tiny(storage, digits_path, "name=broken", "cluster.max_restarts=12"),
        on_event=Several(kills),
    )
    assert sum(kill.marker.exists() for kill in kills) >= 3
    assert losses(broken.folder) == losses(unbroken.folder)
