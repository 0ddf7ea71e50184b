"""The dry run of a sweep: what is not there is said, what is there must be sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetstep.config import SweepSpec
from fleetstep.errors import CheckpointError, ExtractorError, SamplingError, UsageError
from fleetstep.orchestration import sweep as sweeping
from fleetstep.orchestration.sweep_preview import preview_sweep
from small_run import write_small_run


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
    spec = sweep(small, extractor={"kind": "inception", "path": str(tmp_path / "none.pt")})
    found = preview_sweep(spec)
    (line,) = found.missing
    assert line.startswith(f"the Inception weights are not at {tmp_path / 'none.pt'}: nothing is")
    assert len(found.cells) == 3
    with pytest.raises(ExtractorError):
        sweeping.plan(spec)


def test_other_weights_than_inceptions_are_refused(small: Path, tmp_path: Path):
    (tmp_path / "other.pt").write_bytes(b"other")
    spec = sweep(small, extractor={"kind": "inception", "path": str(tmp_path / "other.pt")})
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
    assert [solver.kind for solver, _ in found.pairs] == ["euler", "euler"]
    (tmp_path / "p").mkdir()
    with pytest.raises(SamplingError, match="holds no predictor"):
        preview_sweep(spec)


def test_a_grid_that_no_solver_reaches_is_refused_without_runs_too(small: Path):
    settings = {"solvers": [{"kind": "heun"}], "nfe": [4]}
    for runs in ([str(small)], ["not-there"]):
        with pytest.raises(UsageError, match=r"nothing to score: .*heun at 4"):
            preview_sweep(sweep(small, runs=runs, **settings))
