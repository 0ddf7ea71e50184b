"""The evaluator of an experiment with real networks, features and tracker; only the pool is a loop
in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleetstep.config import EvaluateSpec, Experiment, SweepSpec
from fleetstep.data.manifest import load_manifest
from fleetstep.orchestration import evaluator_setup
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.evaluated import Evaluated
from fleetstep.orchestration.evaluator_setup import check_evaluation, evaluator_of
from fleetstep.orchestration.fit_worker import facts_of
from fleetstep.orchestration.history import History
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.tracking import Tracker
from fleetstep.orchestration.tracking_store import default_uri
from small_run import small_experiment, write_small_run

SAMPLED: dict[str, Any] = {"solvers": ({"kind": "dpmpp", "order": 2},), "nfe": (3,)}
MEASURED: dict[str, Any] = {
    "samples": 1000,
    "metrics": ("fd", "kid"),
    "reference_split": "heldout",
}
CURVE = "eval/{}1k.fs-rn20.multi112@4dabd2d8/dpmpp-order-2.heldout@3"


def in_process(on_unit: Callable[[Any], None]) -> Callable[..., None]:
    """`run_units` with one worker in this process."""

    def run_units(units: Any, make_worker: Any, *, feed: Any, on_result: Any, **_: object) -> None:
        worker = make_worker()
        while (units := feed()) is not None:
            for unit in units:
                on_unit(unit)
                on_result(unit, worker.run(unit))

    return run_units


@pytest.fixture
def experiment(tmp_path: Path, digits_path: Path) -> Experiment:
    """Its run has snapshots at 1,600 and 3,200 images, the last one."""
    write_small_run(tmp_path, digits_path, seed=1, images_seen=1600)
    write_small_run(tmp_path, digits_path, seed=2, images_seen=3200)
    evaluate = EvaluateSpec(every="50%", **SAMPLED, **MEASURED)
    return small_experiment(tmp_path, digits_path).model_copy(update={"evaluate": evaluate})


@pytest.fixture
def evaluate(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, Evaluated]]:
    """Score the run's snapshots as beside a training that has ended: (id of its run, the end)."""

    def call(on_unit: Callable[[Any], None] = lambda unit: None) -> tuple[str, Evaluated]:
        monkeypatch.setattr(evaluator_setup, "run_units", in_process(on_unit))
        manifest = load_manifest(Path(experiment.data.path))
        assert experiment.evaluate is not None
        measures = check_evaluation(experiment.evaluate, manifest)
        tracker = Tracker(default_uri(Path(experiment.storage)), "fleetstep")
        run_id = tracker.start_run(experiment.name, {}, tags={"fleetstep.kind": "train"})
        folder = RunFolder(experiment.folder)
        facts = facts_of(experiment, manifest)
        evaluator = evaluator_of(experiment, folder, facts, measures, tracker, run_id, None)
        assert evaluator is not None
        with evaluator:
            return run_id, evaluator.finish()

    return call


def scores_of(experiment: Experiment, images_seen: int) -> list[dict[str, Any]]:
    file = experiment.folder / "evaluation" / f"images-{images_seen:09d}.json"
    scores: list[dict[str, Any]] = json.loads(file.read_text())["scores"]
    return scores


def test_scores_are_those_of_a_sweep_which_finds_every_unit(
    experiment: Experiment, evaluate: Callable[..., tuple[str, Evaluated]]
):
    run_id, ended = evaluate()
    assert ended.scored == (1600, 3200)
    spec = SweepSpec(
        runs=(str(experiment.folder),),
        snapshots="all",
        storage=experiment.storage,
        **SAMPLED,
        **MEASURED,
    )
    work = sweeping.plan(spec)
    assert work.remaining == ()
    swept = [record.to_dict() for score in sweeping.score(spec, work) for record in score.records]
    assert swept == [*scores_of(experiment, 1600), *scores_of(experiment, 3200)]
    (run,) = History(default_uri(Path(experiment.storage)), "fleetstep").runs([run_id])
    assert {(record["kind"], record["images_seen"], record["value"]) for record in swept} == {
        (kind, point.images_seen, point.value)
        for kind in ("fd", "kid")
        for point in run.metrics[CURVE.format(kind)]
    }
    children = History(default_uri(Path(experiment.storage)), "fleetstep").children(run_id)
    assert [child.status for child in children] == ["FINISHED"] * 2


def test_a_snapshot_removed_while_its_units_wait_costs_only_itself(
    experiment: Experiment, evaluate: Callable[..., tuple[str, Evaluated]]
):
    older = experiment.folder / "snapshots" / "images-000001600"
    _, ended = evaluate(on_unit=lambda unit: shutil.rmtree(older, ignore_errors=True))
    assert ended.scored == (3200,)
    assert list(ended.skipped) == [1600]
    assert "is not a snapshot" in ended.skipped[1600]
    ended.check()
