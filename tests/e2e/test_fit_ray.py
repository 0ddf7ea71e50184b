"""The main job in small, on one Ray: train two runs with two workers, score them, compare them.

<storage>/digits-edm/ config.resolved.yaml run.json spool/metrics.jsonl
                      checkpoints/step-00000015 step-00000020
                      snapshots/images-000000000 images-000000640 images-000001280
                      grids/images-000000000.png ...
          mlflow.db artifacts/
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fleetstep.config import Experiment, PoolSpec, SweepSpec, load
from fleetstep.errors import ResourceError, ResumeError
from fleetstep.orchestration.fit import FitResult, fit
from fleetstep.orchestration.history import History
from fleetstep.orchestration.report import compare_runs
from fleetstep.orchestration.sweep_job import run_sweep
from fleetstep.orchestration.tracking_store import default_uri
from tiny_experiment import tiny

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(storage: Path, digits_path: Path, said: list[str], ray_cluster: None) -> FitResult:
    experiment = tiny(storage, digits_path, preset="digits-edm-fdm-speed")
    return fit(experiment, say=said.append)


def test_the_run_is_finished_and_its_files_are_there(result: FitResult, said: list[str]):
    assert result.images_seen == 1280
    names = sorted(path.name for path in (result.folder / "snapshots").iterdir())
    assert names == ["images-000000000", "images-000000640", "images-000001280"]
    checkpoints = sorted(path.name for path in (result.folder / "checkpoints").iterdir())
    assert checkpoints == ["step-00000015", "step-00000020"]
    for step in checkpoints:
        parts = sorted(path.name for path in (result.folder / "checkpoints" / step).iterdir())
        assert parts == ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
    with Image.open(result.folder / "grids" / "images-000001280.png") as grid:
        assert grid.size[0] == grid.size[1] >= 3 * 32
    assert any("100%" in line and "held-out" in line for line in said)


def test_the_tracker_holds_the_run(result: FitResult, storage: Path):
    (run,) = History(default_uri(storage), "fleetstep").runs([result.folder.name])
    assert run.run_id == result.run_id
    assert run.status == "FINISHED"
    assert run.params["strategies.0.kind"] == "fdm"
    assert run.tags["dataset.fingerprint"]
    held_out = run.metrics["held_out/loss"]
    assert [point.images_seen for point in held_out] == [0, 640, 1280]
    assert held_out[-1].value < held_out[0].value
    steps = [point.images_seen for point in run.metrics["train/loss"]]
    assert steps == list(range(64, 1281, 64))
    assert "grids/images-000001280.png" in run.artifacts
    assert "config.resolved.yaml" in run.artifacts


def test_the_resolved_configuration_can_be_run_again(
    result: FitResult, storage: Path, digits_path: Path
):
    again = load(Experiment, result.folder / "config.resolved.yaml")
    original = tiny(storage, digits_path, preset="digits-edm-fdm-speed")
    assert again.identity("x") == original.identity("x")
    assert again.folder.resolve() == result.folder.resolve()


def test_a_finished_run_has_no_step_left(result: FitResult, storage: Path, digits_path: Path):
    before = (result.folder / "spool" / "metrics.jsonl").read_bytes()
    again = fit(tiny(storage, digits_path, preset="digits-edm-fdm-speed"), resume="must")
    assert again.run_id == result.run_id
    assert (result.folder / "spool" / "metrics.jsonl").read_bytes() == before


def test_resume_policies_are_kept_before_anything_starts(
    result: FitResult, storage: Path, digits_path: Path
):
    with pytest.raises(ResumeError, match="resume is never"):
        fit(tiny(storage, digits_path, preset="digits-edm-fdm-speed"), resume="never")
    with pytest.raises(ResumeError, match="resume is must"):
        fit(tiny(storage, digits_path, "name=unheard-of"), resume="must")
    with pytest.raises(ResumeError, match="identity"):
        fit(tiny(storage, digits_path, "training.seed=1", preset="digits-edm-fdm-speed"))


def test_workers_that_cannot_be_placed_are_refused_with_the_sum(storage: Path, digits_path: Path):
    too_big = tiny(storage, digits_path, "name=too-big", "cluster.workers=8")
    with pytest.raises(ResourceError, match=r"8 training workers x 1 CPU = 8 CPU.*2 CPU in all"):
        fit(too_big)
    # Nothing of it was begun.
    assert not too_big.folder.exists()
    runs = History(default_uri(storage), "fleetstep").runs()
    assert "too-big" not in [run.name for run in runs]


def test_scores_and_a_page_come_out(
    result: FitResult, storage: Path, tmp_path: Path, ray_cluster: None
):
    spec = SweepSpec(
        runs=(str(result.folder / "snapshots" / "images-000000000"), str(result.folder)),
        storage=str(storage),
        nfe=(4,),
        samples=1000,
        pool=PoolSpec(max=2),
    )
    swept = run_sweep(spec)
    labels = {score.cell.solver.kind for score in swept.scores}
    assert labels == {"euler", "ipndm", "dpmpp"}  # heun makes odd numbers of calls only
    assert json.loads(swept.path.read_text())["skipped"][0]["solver"].startswith("heun")
    files = compare_runs(
        [], baseline=None, out=tmp_path / "out", storage=storage, experiment="fleetstep"
    )
    assert {plot.name for plot in files.plots} >= {"loss.png", "nfe.png"}
    page = files.page.read_text()
    assert "Not FID" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    children = History(default_uri(storage), "fleetstep").children(result.run_id)
    assert len(children) == len(swept.scores)
    assert all(child.status == "FINISHED" for child in children)
