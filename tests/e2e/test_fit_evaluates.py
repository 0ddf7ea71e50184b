"""A run whose snapshots are scored while it trains, on one Ray.

<storage>/digits-edm/ evaluation/status.json images-000000640.json images-000001280.json
                      snapshots/images-000000000 images-000000640 images-000001280
          cells/ references/    as a sweep's
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from fleetstep.config import SweepSpec
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.fit import FitResult, fit
from fleetstep.orchestration.history import History, RunHistory
from fleetstep.orchestration.tracking_store import default_uri
from tiny_experiment import tiny

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("ray_cluster"),
]

# Workers do not have the tests on their path: what they call travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SAMPLED: dict[str, Any] = {"solvers": ({"kind": "dpmpp", "order": 2},), "nfe": (4,)}
MEASURED: dict[str, Any] = {
    "samples": 1000,
    "metrics": ("fd", "kid"),
    "reference_split": "heldout",
}


@dataclass
class WaitForScores:
    """An `on_event` that holds training at a step until a snapshot's scores are there: they come
    while it trains, or never.
    """

    scores: Path
    step: int
    seen: int = 0

    def __call__(self, name: str) -> None:
        self.seen += name == "step"
        deadline = time.monotonic() + 240
        while self.seen == self.step and not self.scores.exists():
            assert time.monotonic() < deadline, "no scores came while the run trained"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def experiment(storage: Path, data: Path) -> Any:
    evaluate = {"every": "50%", **SAMPLED, **MEASURED, "pool": {"max": 1, "cpus_per_actor": 0}}
    return tiny(storage, data, f"evaluate={json.dumps(evaluate)}")


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(storage: Path, digits_path: Path, said: list[str], ray_cluster: None) -> FitResult:
    first = storage / "digits-edm" / "evaluation" / "images-000000640.json"
    # Both of Ray's CPUs are the workers': the pool must not wait for one.
    return fit(
        experiment(storage, digits_path), say=said.append, on_event=WaitForScores(first, step=15)
    )


def run_of(storage: Path) -> RunHistory:
    (run,) = History(default_uri(storage), "fleetstep").runs(["digits-edm"])
    return run


def test_snapshots_are_scored_at_their_images_seen(
    result: FitResult, storage: Path, said: list[str]
):
    assert result.evaluated is not None
    assert result.evaluated.scored == (640, 1280)
    run = run_of(storage)
    assert run.status == "FINISHED"
    curves = [name for name in run.metrics if name.startswith("eval/")]
    assert len(curves) == 2
    assert all("/dpmpp-order-2.heldout@4" in name for name in curves)
    for name in curves:
        assert [point.images_seen for point in run.metrics[name]] == [640, 1280]
    assert sum(line.startswith("  scored dpmpp(order=2), 4 calls") for line in said) == 2
    status = json.loads((result.folder / "evaluation" / "status.json").read_text())
    assert (status["state"], status["units_done"]) == ("finished", status["units"])


def test_every_score_has_a_run_of_its_own_as_a_sweeps_has(result: FitResult, storage: Path):
    children = History(default_uri(storage), "fleetstep").children(result.run_id)
    assert [child.status for child in children] == ["FINISHED"] * 2
    assert all("scores.json" in child.artifacts for child in children)
    steps = [[p.images_seen for p in points] for c in children for points in c.metrics.values()]
    assert sorted(steps) == [[640], [640], [1280], [1280]]


def test_a_later_sweep_finds_every_unit_and_the_same_bits(result: FitResult, storage: Path):
    spec = SweepSpec(
        runs=tuple(str(result.folder / "snapshots" / f"images-{n:09d}") for n in (640, 1280)),
        storage=str(storage),
        **SAMPLED,
        **MEASURED,
    )
    work = sweeping.plan(spec)
    assert work.remaining == ()
    swept = [record.to_dict() for score in sweeping.score(spec, work) for record in score.records]
    beside = [
        record
        for n in (640, 1280)
        for record in json.loads(
            (result.folder / "evaluation" / f"images-{n:09d}.json").read_text()
        )["scores"]
    ]
    assert swept == beside
    points = {
        (point.images_seen, point.value)
        for name, series in run_of(storage).metrics.items()
        if name.startswith("eval/")
        for point in series
    }
    assert points == {(record["images_seen"], record["value"]) for record in swept}


def test_the_same_command_again_scores_what_is_missing_and_trains_nothing(
    result: FitResult, storage: Path, digits_path: Path
):
    folder = result.folder / "evaluation"
    before = {path.name: path.read_text() for path in folder.glob("images-*.json")}
    logged = (result.folder / "spool" / "metrics.jsonl").read_bytes()
    (folder / "images-000001280.json").unlink()
    units = sorted((storage / "cells").glob("*/unit-*"))
    made = {path: path.stat().st_mtime_ns for path in units}
    lost = [path for path in units if path.name.startswith("unit-00003")]
    for path in lost:
        path.unlink()
    again = fit(experiment(storage, digits_path))
    assert again.evaluated is not None
    assert again.evaluated.scored == (640, 1280)
    after = {path.name: path.read_text() for path in folder.glob("images-*.json")}
    assert (
        json.loads(after["images-000001280.json"])["scores"]
        == (json.loads(before["images-000001280.json"])["scores"])
    )
    assert (result.folder / "spool" / "metrics.jsonl").read_bytes() == logged
    # One unit of the snapshot that was missing was sampled anew; the other has its scores.
    anew = [path for path in units if path.exists() and path.stat().st_mtime_ns != made[path]]
    assert len(anew) == 1
    assert run_of(storage).status == "FINISHED"
    assert len(History(default_uri(storage), "fleetstep").children(result.run_id)) == 2
