"""A sweep's scores in the tracker: one run a score, under its training run, with its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetstep.evaluation.minimum import Minimum
from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.spec import INCEPTION_SHA256, MetricKind, inception_name, metric_name
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.cells import Cell, SnapshotRef
from fleetstep.orchestration.figures import keep_figures
from fleetstep.orchestration.history import History
from fleetstep.orchestration.run_folder import RunCard, RunFolder
from fleetstep.orchestration.sweep_records import metrics_of, parent_of, record_score
from fleetstep.orchestration.tracking import Tracker
from fleetstep.sampling.spec import EulerSpec, GuidanceSpec
from synthetic_sweep import record


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "digits")


def snapshot(root: Path, **changes: Any) -> SnapshotRef:
    found = SnapshotRef(
        path=root / "snapshots" / "images-000000064",
        digest="d",
        run="edm",
        images_seen=64,
        shape=(1, 8, 8),
        classes=10,
        data=root,
        dataset="x",
    )
    return replace(found, **changes)


def scored(
    root: Path, n: int = 1000, kinds: tuple[MetricKind, ...] = ("fd",), seed_block: int = 0
) -> CellScore:
    cell = Cell(
        snapshot=snapshot(root),
        track="ema",
        solver=EulerSpec(),
        nfe=5,
        guidance=GuidanceSpec(scale=1.5),
        labels="random",
        namespace=0,
        batch=100,
    )
    records = tuple(record(kind=kind, n=n, first=seed_block * n) for kind in kinds)
    return CellScore(
        cell=cell,
        seed_block=seed_block,
        moments_sha256=("a",),
        calls_made=4.0,
        records=records,
    )


def runs_of(tracker: Tracker) -> list[Any]:
    return list(tracker._client.search_runs([tracker.experiment_id]))


def names(tracker: Tracker, run_id: str) -> list[str]:
    found = json.loads(History(tracker.uri, "digits").read(run_id, "scores.json"))
    return [ScoreRecord.from_dict(entry).metric for entry in found]


def test_more_samples_another_reference_or_other_seeds_are_runs_of_their_own(
    tracker: Tracker, tmp_path: Path
):
    for n, reference, block in (
        (1000, "a", 0),
        (2000, "a", 0),
        (1000, "b", 0),
        (1000, "a", 1),
        (1000, "a", 0),
    ):
        score = scored(tmp_path, n, seed_block=block)
        record_score(tracker, score, reference=reference, parent=None)
    found = sorted(
        (r.data.params["samples"], r.data.params["reference"], r.data.tags["fleetstep.seeds"])
        for r in runs_of(tracker)
    )
    assert found == [
        ("1000", "a", "0:0-999"),
        ("1000", "a", "0:1000-1999"),
        ("1000", "b", "0:0-999"),
        ("2000", "a", "0:0-1999"),
    ]


def test_a_run_says_how_it_was_made_and_names_its_metrics_with_n(tracker: Tracker, tmp_path: Path):
    score = scored(tmp_path, kinds=("fd", "kid"))
    lowest = Minimum("fd1k.x.min3", (3.0, 1.0, 2.0))
    record_score(tracker, score, reference="a", parent=None, minima=[lowest])
    (run,) = runs_of(tracker)
    assert run.info.run_name == "euler nfe=5 cfg 1.5 @ 64"
    assert run.info.status == "FINISHED"
    assert run.data.tags["fleetstep.kind"] == "cell"
    assert json.loads(run.data.params["guidance"]) == {"scale": 1.5, "channels": "all"}
    history = History(tracker.uri, "digits").runs([run.info.run_id])[0]
    assert {key: points[-1].value for key, points in history.metrics.items()} == {
        f"eval/{score.records[0].metric}": score.records[0].value,
        f"eval/{score.records[1].metric}": score.records[1].value,
        "eval/fd1k.x.min3": 1.0,
    }
    assert {points[-1].images_seen for points in history.metrics.values()} == {64}


def test_what_was_measured_before_is_kept_and_measured_again_replaced(
    tracker: Tracker, tmp_path: Path
):
    first = record_score(tracker, scored(tmp_path, kinds=("fd",)), reference="a", parent=None)
    more = scored(tmp_path, kinds=("kid", "recall"))
    assert record_score(tracker, more, reference="a", parent=None) == first
    kinds = [name.partition("1k.")[0] for name in names(tracker, first)]
    assert kinds == ["fd", "kid", "recall"]
    record_score(tracker, more, reference="a", parent=None)
    assert len(names(tracker, first)) == 3


def test_what_publications_call_fid_is_the_plain_value():
    name = inception_name("legacy_tensorflow")
    found = record(extractor=name, extractor_sha256=INCEPTION_SHA256, n=50_000)
    assert metrics_of([found]) == {
        "eval/fid50k.tf.unbiased": found.value,
        "eval/fid50k.tf": found.raw,
    }
    assert metric_name("fd", name, INCEPTION_SHA256, 50_000) == found.metric
    assert found.seeds == Seeds(0, 0, 50_000)


def test_other_distances_have_one_value_each():
    facts = {"extractor": inception_name("clean"), "extractor_sha256": INCEPTION_SHA256}
    for kind in ("fd_z", "fd_inf"):
        found = record(kind=kind, **facts)
        assert found.value != found.raw
        assert metrics_of([found]) == {f"eval/{found.metric}": found.value}


def test_a_score_of_fewer_images_does_not_name_the_run(tracker: Tracker, tmp_path: Path):
    """Some metrics look at the first images alone."""
    found = scored(tmp_path, n=50_000, kinds=("fd",))
    few = replace(found, records=(record(kind="kid", n=10_000), *found.records))
    record_score(tracker, few, reference="r", parent=None)
    assert tracker.find_run({"fleetstep.samples": "50000", "fleetstep.seeds": "0:0-49999"})


def test_a_parent_is_only_named_where_it_exists(tracker: Tracker, tmp_path: Path):
    folder, said = RunFolder(tmp_path / "edm"), list[str]()
    network = snapshot(tmp_path / "edm")
    run_id = tracker.start_run("edm", {})
    assert parent_of(tracker, network, said.append) is None
    card = RunCard(run_id, "digits", "identity")
    card.write(folder.card)
    assert parent_of(tracker, network, said.append) == run_id
    replace(card, run_id="0" * 32).write(folder.card)
    assert parent_of(tracker, network, said.append) is None
    assert len(said) == 2
    assert all("set tracking.uri" in line for line in said)


def test_an_exact_denoiser_has_one_run_of_its_own(tracker: Tracker, tmp_path: Path):
    exact = snapshot(tmp_path, kind="exact", run="exact-digits", images=1500)
    parent = parent_of(tracker, exact, pytest.fail)
    assert parent == parent_of(tracker, exact, pytest.fail)
    other = replace(exact, digest="e", run="exact-digits-500", images=500)
    assert parent_of(tracker, other, pytest.fail) != parent
    record_score(tracker, scored(tmp_path), reference="a", parent=parent)
    history = History(tracker.uri, "digits")
    (run,) = history.runs(["exact-digits"])
    assert (run.run_id, run.status, run.tags["fleetstep.kind"]) == (parent, "FINISHED", "exact")
    assert len(history.children(run.run_id)) == 1


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
