"""The dry run of a sweep: what is not there is said, what is there must be sound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from fleetstep.config import SweepSpec
from fleetstep.errors import CheckpointError, ExtractorError, SamplingError, UsageError
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration import sweep_preview
from fleetstep.orchestration.sweep_cost import cost_of
from fleetstep.orchestration.sweep_preview import SweepPreview
from fleetstep.orchestration.sweep_speed import Speed, measure_speed
from fleetstep.orchestration.sweep_worker import build_worker
from small_run import write_small_run


def preview_sweep(spec: SweepSpec) -> SweepPreview:
    return sweep_preview.preview_sweep(spec, lambda spec, plan: "not measured: a test")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, digits_path: Path) -> Path:
    return write_small_run(tmp_path_factory.mktemp("runs"), digits_path)


def sweep(small: Path, **changes: Any) -> SweepSpec:
    settings = {
        "runs": [str(small)],
        "storage": str(small.parent),
        "solvers": [{"kind": "euler"}, {"kind": "heun"}],
        "nfe": [4, 5],
    }
    return SweepSpec.model_validate(settings | changes)


def test_with_everything_there_the_plan_is_shown(small: Path):
    found = preview_sweep(sweep(small))
    assert found.missing == ()
    assert found.plan is not None
    assert found.network_calls == 1000 * (4 + 5 + 5)
    assert found.as_dict()["units"] == len(found.plan.units) == 45
    assert found.cells[0] == "euler, 4 calls, small at 3,200 images"


def test_without_a_run_the_grid_is_the_same(small: Path):
    whole = preview_sweep(sweep(small)).as_dict()
    found = preview_sweep(sweep(small, runs=["runs/not-there"]))
    assert found.missing == (
        "runs/not-there is NOT THERE, so nothing was checked against it: train it, or make it of "
        "released weights, e.g. `fleetstep import edm NETWORK.pkl --out runs/not-there`",
    )
    shown = found.as_dict()
    for key in ("grid", "skipped", "network_calls", "adaptive_cells"):
        assert shown[key] == whole[key]
    assert len(shown["skipped"]) == 1
    assert (shown["units"], shown["finished"]) == (None, None)
    assert shown["cells"] == [
        cell.replace("small at 3,200 images", "runs/not-there") for cell in whole["cells"]
    ]
    assert json.loads(json.dumps(shown)) == shown
    # The sweep itself is refused as ever.
    with pytest.raises(CheckpointError, match="neither a run folder"):
        sweeping.plan(found.spec)


def test_all_snapshots_of_a_missing_run_count_as_one(small: Path):
    text = preview_sweep(sweep(small, runs=["none"], snapshots="all")).summary()
    assert "14,000 network calls on one image (one snapshot of each run taken)" in text


def test_without_inceptions_weights_the_grid_is_shown(small: Path, tmp_path: Path):
    spec = sweep(small, extractors={"kind": "inception", "path": str(tmp_path / "none.pt")})
    found = preview_sweep(spec)
    (line,) = found.missing
    assert line.startswith(f"the Inception weights are not at {tmp_path / 'none.pt'}: nothing is")
    assert len(found.cells) == 3
    with pytest.raises(ExtractorError):
        sweeping.plan(spec)


def test_other_weights_than_inceptions_are_refused(small: Path, tmp_path: Path):
    (tmp_path / "other.pt").write_bytes(b"other")
    spec = sweep(small, extractors={"kind": "inception", "path": str(tmp_path / "other.pt")})
    with pytest.raises(ExtractorError, match="must have sha256"):
        preview_sweep(spec)


def test_a_folder_that_is_no_run_is_refused_beside_one_that_is_missing(
    small: Path, tmp_path: Path
):
    with pytest.raises(CheckpointError, match="neither a run folder"):
        preview_sweep(sweep(small, runs=["not-there", str(tmp_path)]))


def test_a_predictor_that_is_missing_is_left_out_and_a_broken_one_refused(
    small: Path, tmp_path: Path
):
    solvers = [{"kind": "euler"}, {"kind": "amed", "predictor": str(tmp_path / "p")}]
    spec = sweep(small, solvers=solvers)
    found = preview_sweep(spec)
    (line,) = found.missing
    assert line.startswith(f"predictor {tmp_path / 'p'} is NOT THERE, so the grid is without it")
    assert [setting.solver.kind for setting in found.settings] == ["euler", "euler"]
    (tmp_path / "p").mkdir()
    with pytest.raises(SamplingError, match="holds no predictor"):
        preview_sweep(spec)


def test_a_grid_that_no_solver_reaches_is_refused_without_runs_too(small: Path):
    settings = {"solvers": [{"kind": "heun"}], "nfe": [4]}
    for runs in ([str(small)], ["not-there"]):
        with pytest.raises(UsageError, match=r"nothing to score: .*heun at 4 calls"):
            preview_sweep(sweep(small, runs=runs, **settings))


def test_an_exact_denoiser_needs_its_dataset(small: Path, tmp_path: Path, digits_path: Path):
    found = preview_sweep(sweep(small, runs=[f"exact:{tmp_path}/none"]))
    (line,) = found.missing
    assert "pack a dataset" in line
    there = preview_sweep(sweep(small, runs=[f"exact:{digits_path}"]))
    assert there.cells[0] == "euler, 4 calls, exact-digits"


def test_the_grid_of_a_missing_run_has_every_dimension(small: Path):
    grid = {
        "solvers": [{"kind": "euler"}],
        "nfe": [4],
        "schedules": [None, {"kind": "logsnr"}],
        "guidance": [None, {"scale": 1.5}],
        "ema": ["ema", "slow"],
        "seed_blocks": 3,
    }
    found = preview_sweep(sweep(small, runs=["none"], **grid))
    assert len(found.cells) == len(set(found.cells)) == 2 * 2 * 2
    assert found.network_calls == 8 * 4 * 3 * 1000
    assert "none (slow)" in found.cells[-1]


class TestCost:
    def test_time_is_calls_by_the_networks_speed_over_the_actors(self, small: Path):
        spec = sweep(small, pool={"max": 2, "cpus_per_actor": 0.5, "price_per_hour": 7.2})
        work = sweeping.plan(spec)
        (network,) = {(c.snapshot.digest, c.track) for c in work.cells}
        cost = cost_of(spec, work, Speed(call_s={network: 0.01}, image_s=0.1, measured="x"))
        images = 3 * 1000 + 1500
        assert cost.calls == 14_000
        assert cost.actor_s == pytest.approx(14_000 * 0.01 + images * 0.1)
        assert cost.wall_s == pytest.approx(cost.actor_s / 2)
        assert cost.price == pytest.approx(cost.actor_s * 0.002)
        time, disk = cost.lines()
        assert "with 2 actors" in time
        assert "1.18 at your price" in time
        assert 4 * images * 112 < cost.disk_bytes < 4 * images * 130 + 1_600_000
        assert "free" in disk

    def test_what_is_finished_costs_nothing(self, small: Path):
        spec = sweep(small)
        work = sweeping.plan(spec)
        done = replace(work, finished=frozenset(work.units))
        cost = cost_of(spec, done, measure_speed(spec, done))
        assert (cost.calls, cost.actor_s) == (0, 0)
        assert next(cost.lines()) == "time: nothing is left to do"

    def test_a_probe_measures_each_network_and_the_features(self, small: Path):
        spec = sweep(small, nfe=[5])
        speed = measure_speed(spec, sweeping.plan(spec))
        assert isinstance(speed, Speed)
        (call_s,) = speed.call_s.values()
        assert 0 < call_s < 1
        assert 0 < speed.image_s < 1
        assert "one thread" in speed.measured

    def test_finished_units_of_this_hardware_are_a_measurement(self, small: Path, tmp_path: Path):
        settings = {"solvers": [{"kind": "euler"}], "pictures": 0}
        spec = sweep(small, nfe=[5], storage=str(tmp_path), **settings)
        work = sweeping.plan(spec)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            build_worker(tmp_path, spec.extractors).run(work.units_of(work.cells[0])[0])
        finally:
            torch.set_num_threads(threads)
        speed = measure_speed(spec, sweeping.plan(spec))
        assert isinstance(speed, Speed)
        assert speed.measured == "by finished units of this hardware"

    def test_a_gpu_is_not_guessed_from_a_cpu(self, small: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        spec = sweep(small, pool={"gpus_per_actor": 1})
        work = sweeping.plan(spec)
        answer = measure_speed(spec, work)
        assert isinstance(answer, str)
        cost = cost_of(spec, work, answer)
        assert (cost.wall_s, cost.price) == (None, None)
        assert next(cost.lines()).startswith("time: not measured")
