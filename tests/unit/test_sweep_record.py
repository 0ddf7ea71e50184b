"""A sweep's scores in the tracker: one run a score, under its training run, with its figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleetstep.orchestration.figures import keep_figures
from fleetstep.orchestration.history import History
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.sweep_job import _parent, _record
from fleetstep.orchestration.sweep_plan import Cell, SnapshotRef
from fleetstep.orchestration.tracking import Tracker
from fleetstep.sampling.spec import EulerSpec


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "digits")


def cell(root: Path) -> Cell:
    snapshot = SnapshotRef(
        path=root / "snapshots" / "images-000000064",
        digest="d",
        run="edm",
        images_seen=64,
        shape=(1, 8, 8),
        classes=10,
        data=root,
        dataset="x",
    )
    return Cell(
        snapshot=snapshot,
        track="ema",
        solver=EulerSpec(),
        nfe=5,
        labels="random",
        namespace=0,
        batch=100,
        extractor="e",
    )


def test_more_samples_or_another_reference_is_a_run_of_its_own(tracker: Tracker, tmp_path: Path):
    scored: Any = SimpleNamespace(cell=cell(tmp_path), records=())
    for samples, reference in ((1000, "a"), (2000, "a"), (1000, "b"), (1000, "a")):
        plan: Any = SimpleNamespace(
            samples=samples, reference_of={scored.cell: SimpleNamespace(key=reference)}
        )
        _record(tracker, plan, scored, None)
    found = tracker._client.search_runs([tracker.experiment_id])
    params = sorted((run.data.params["samples"], run.data.params["reference"]) for run in found)
    assert params == [("1000", "a"), ("1000", "b"), ("2000", "a")]


def test_a_parent_is_only_named_where_it_exists(tracker: Tracker, tmp_path: Path):
    folder, said = RunFolder(tmp_path / "edm"), list[str]()
    run_id = tracker.start_run("edm", {})
    assert _parent(tracker, folder, said.append) is None
    card = RunCard(run_id, "digits", "identity")
    card.write(folder.card)
    assert _parent(tracker, folder, said.append) == run_id
    replace(card, run_id="0" * 32).write(folder.card)
    assert _parent(tracker, folder, said.append) is None
    assert len(said) == 2
    assert all("set tracking.uri" in line for line in said)


def test_a_runs_own_figures_are_kept_with_it(tracker: Tracker, tmp_path: Path):
    run_id = tracker.start_run("edm", {})
    for images in (64, 128):
        tracker.log_metrics(run_id, images, {"train/loss": 1.0, "held_out/loss": 1 / images})
    keep_figures(tracker, run_id, tmp_path / "figures", None)
    (run,) = History(tracker.uri, "digits").runs([run_id])
    assert "figures/loss.png" in run.artifacts
    said: list[str] = []
    keep_figures(tracker, "0" * 32, tmp_path / "figures", said.append)
    assert "were not kept" in said[0]
