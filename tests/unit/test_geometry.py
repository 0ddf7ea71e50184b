"""Trajectory geometry against golden values of an 8-D mixture, and laws of the search for r."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.orchestration import trajectory_report
from fleetstep.sampling.alignment import align
from fleetstep.sampling.exact import GaussianMixture
from fleetstep.sampling.geometry import COMPONENTS, geometry, unit_variance
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import AmedStudentSpec, Dpm2Spec, HeunAbSpec, PolynomialSpec
from fleetstep.sampling.trajectory import sample
from small_run import write_small_run

GOLDEN = Path(__file__).parents[1] / "golden" / "solvers"
LEVELS = sigmas(PolynomialSpec(), 41, 0.002, 80.0)


def f64(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@functools.cache
def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def mixture() -> GaussianMixture:
    gmm = golden("problem")["gmm"]["d8"]
    return GaussianMixture(*(f64(gmm[key]) for key in ("weights", "means", "variances")))


@functools.cache
def trace() -> tuple[Tensor, ...]:
    start = 80 * f64(golden("problem")["gmm"]["latents"]["8"]).reshape(2, 2, 2, 2)
    found = sample(mixture(), HeunAbSpec(), LEVELS, start, trace=True)
    assert found.nfe == golden("pca")["config"]["nfe"]
    assert found.trace is not None
    return found.trace


def points_BNd() -> Tensor:
    return torch.stack(trace(), dim=1).flatten(2)


@pytest.mark.parametrize("which", [0, 1])
def test_geometry_is_golden(which: int):
    expected = golden("pca")[f"sample{which}"]
    found = geometry(points_BNd())
    errors = f64([expected["rel_proj_err"][str(k + 1)] for k in range(COMPONENTS)])
    torch.testing.assert_close(found.errors_BKN[which], errors, rtol=1e-9, atol=1e-9)
    # 1 - 1e-8: what is left over is known to 1e-15, one minus it to 1e-16.
    explained = 1 - found.unexplained_BK[which]
    torch.testing.assert_close(explained, f64(expected["cum_var"][:3]), rtol=0, atol=1e-12)
    deviation = f64(expected["deviation"])
    torch.testing.assert_close(found.deviations_BN[which], deviation, rtol=1e-9, atol=1e-9)


def test_the_smallest_errors_are_as_a_full_svd_says():
    """Relative accuracy where one Gram matrix for all components would have none left."""
    for points_Nd, errors_KN in zip(points_BNd(), geometry(points_BNd()).errors_BKN, strict=True):
        centred = points_Nd - points_Nd.mean(0)
        _, _, rows = torch.linalg.svd(centred, full_matrices=False)
        for k in range(COMPONENTS):
            left = centred - centred @ rows[: k + 1].T @ rows[: k + 1]
            expected = left.norm(dim=1) / points_Nd.norm(dim=1)
            torch.testing.assert_close(errors_KN[k], expected, rtol=1e-8, atol=1e-12)


def test_a_planar_trajectory_has_two_components_and_a_straight_one_no_deviation():
    t = torch.linspace(1, 3, 12, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(3, 1, 50, dtype=torch.float64, generator=generator)
    plane = geometry((axes[0] + t * axes[1] + t.square() * axes[2])[None])
    assert plane.errors_BKN[0, 0].max() > 1e-3
    assert plane.errors_BKN[0, 1].max() < 1e-13
    assert plane.unexplained_BK[0, 1] < 1e-26
    line = geometry((axes[0] + t * axes[1] + 1e-9 * axes[2] * (t - 1) * (t - 3))[None])
    assert line.deviations_BN.max() < 1e-7
    assert line.deviations_BN.max() > 1e-10


def test_geometry_does_not_depend_on_the_batch():
    whole = geometry(points_BNd())
    parts = [geometry(one[None]) for one in points_BNd()]
    joined = torch.cat([part.errors_BKN for part in parts])
    torch.testing.assert_close(whole.errors_BKN, joined, rtol=1e-9, atol=1e-13)


def test_unit_variance_divides_each_point_by_its_own_scale():
    ones = torch.ones(1, 3, 2, dtype=torch.float64)
    scaled = unit_variance(ones, f64([3.0, 1.0, 0.0]))
    expected = f64([10**-0.5, 2**-0.5, 1.0])[None, :, None].expand(1, 3, 2)
    torch.testing.assert_close(scaled, expected, rtol=1e-15, atol=0)


def test_too_few_points_are_refused():
    with pytest.raises(SamplingError, match="3 components need more points"):
        geometry(torch.zeros(1, 3, 8))


# --- the search for r ----------------------------------------------------------------------------

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def coarse() -> tuple[tuple[float, ...], tuple[Tensor, ...]]:
    return tuple(LEVELS[::8].tolist()), trace()[::8]


def test_the_search_walks_the_products_own_steps():
    levels, reference = coarse()
    found = align(mixture(), Dpm2Spec(), levels, reference, RATIOS)
    for r, distance in zip(RATIOS, found.distances[0], strict=True):
        pair = f64(list(levels[:2]))
        end = sample(mixture(), Dpm2Spec(r=r), pair, reference[0]).x_BCHW
        expected = (end - reference[1]).flatten(1).square().sum(1).mean().sqrt().item()
        assert distance == pytest.approx(expected, rel=1e-10)
    whole = sample(mixture(), Dpm2Spec(), f64(list(levels)), reference[0]).x_BCHW
    baseline = (whole - reference[-1]).flatten(1).square().sum(1).mean().sqrt().item()
    assert found.baseline[-1] == pytest.approx(baseline, rel=1e-9)


@pytest.mark.parametrize("student", [Dpm2Spec(), AmedStudentSpec()])
def test_each_step_takes_the_nearest_of_its_ends(student):
    levels, reference = coarse()
    denoiser = mixture()
    found = align(denoiser, student, levels, reference, RATIOS)
    for row, best, kept in zip(found.distances, found.best, found.searched, strict=True):
        assert kept == min(row) == row[RATIOS.index(best)]
    # One r in the list: the search is that trajectory. And r = 1/2 is the baseline.
    only = align(mixture(), student, levels, reference, (0.5,))
    assert only.searched == only.baseline == found.baseline
    # A first call for all ratios, a second for each, and two for the baseline.
    assert denoiser.nfe == (len(levels) - 1) * (1 + len(RATIOS) + 2)


def test_the_two_students_agree_at_one_half():
    """DPM-Solver-2's weights at r = 1/2 are (1, 0): AMED-Solver's (Table 1)."""
    levels, reference = coarse()
    dpm2, amed = (
        align(mixture(), student, levels, reference, (0.5,))
        for student in (Dpm2Spec(), AmedStudentSpec())
    )
    torch.testing.assert_close(f64([*dpm2.distances]), f64([*amed.distances]), rtol=1e-12, atol=0)


# --- fleetstep trajectory ------------------------------------------------------------------------


def test_the_command_measures_a_run_whatever_its_batches(
    run, digits_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_small_run(tmp_path / "runs", digits_path)
    records = []
    for batch in (6, 4):
        out = tmp_path / f"t{batch}"
        arguments = ("--samples", 6, "--batch", batch, "--points", 11, "--out", out, "--json")
        code, text, _ = run("trajectory", source, *arguments)
        assert code == 0
        record = json.loads((out / "trajectory.json").read_text())
        assert record == json.loads(text)
        if not records:
            for name in ("trajectory-geometry.png", "alignment.png"):
                assert 10_000 < (out / name).stat().st_size < 200_000
        records.append(record)
        # The other batches are compared by their record; it need not be drawn again.
        for draw in ("write_geometry", "write_alignment"):
            monkeypatch.setattr(trajectory_report, draw, lambda *_: None)
    whole, split = (record["views"] for record in records)
    for view in ("raw", "unit_variance"):
        for key, values in whole[view].items():
            torch.testing.assert_close(f64(values), f64(split[view][key]), rtol=1e-4, atol=1e-5)
        errors = f64(whole[view]["error_mean"])
        # Every component takes something away.
        assert bool((errors.mean(1).diff() < 0).all())
    assert [search["student"] for search in records[0]["alignment"]] == ["dpm2", "amed"]
    assert len(records[0]["alignment"][0]["levels"]) == 6
