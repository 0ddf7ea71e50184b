"""Schedules: golden levels, exact ends, descent, and the laws they are named after."""

from __future__ import annotations

import pytest
import torch

from contracts.exact_denoisers import SCHEDULES, PointMass, golden, golden_latents, mixture
from fleetstep.errors import SamplingError
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    EulerSpec,
    HeunSpec,
    LogSnrSpec,
    PolynomialSpec,
    ScheduleSpec,
)
from fleetstep.sampling.trajectory import levels_for, sample


@pytest.mark.parametrize("key", golden()["schedules"])
def test_golden_levels(key: str):
    name, points = key.split("/N")
    expected = torch.tensor(golden()["schedules"][key], dtype=torch.float64)
    levels = sigmas(SCHEDULES[name], int(points), 0.002, 80.0)
    torch.testing.assert_close(levels, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [PolynomialSpec(), PolynomialSpec(rho=1), LogSnrSpec()])
@pytest.mark.parametrize("points", [2, 3, 18, 1000])
def test_levels_descend_between_exact_ends(schedule: ScheduleSpec, points: int):
    levels = sigmas(schedule, points, 0.003, 77.7)
    assert levels.dtype == torch.float64
    assert len(levels) == points
    assert (levels[0].item(), levels[-1].item()) == (77.7, 0.003)
    assert bool((levels.diff() < 0).all())


def test_each_schedule_is_uniform_in_its_own_variable():
    root = sigmas(PolynomialSpec(rho=3.5), 12, 0.002, 80.0) ** (1 / 3.5)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(11), rtol=1e-9, atol=0)
    log = sigmas(LogSnrSpec(), 12, 0.002, 80.0).log()
    torch.testing.assert_close(log.diff(), log.diff().mean().expand(11), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("points", "low", "high", "rule"),
    [
        (1, 0.002, 80.0, "at least 2 points, got 1"),
        (5, 0.0, 80.0, "0 < sigma_min < sigma_max"),
        (5, 2.0, 1.0, "0 < sigma_min < sigma_max"),
        (5, 0.002, float("inf"), "0 < sigma_min < sigma_max"),
        (40, 1.0, 1.0 + 1e-15, "does not descend"),
    ],
)
def test_what_is_no_schedule_is_refused(points: int, low: float, high: float, rule: str):
    with pytest.raises(SamplingError, match=rule) as refusal:
        sigmas(LogSnrSpec(), points, low, high)
    assert refusal.value.remedy


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ((0.02, 100.0), (80.0, 0.02)),
        ((0.0001, 50.0), (50.0, 0.002)),
        ((0.002, 80.0), (80.0, 0.002)),
    ],
)
def test_the_range_is_cut_to_what_the_network_knows(
    known: tuple[float, float], expected: tuple[float, float]
):
    levels = levels_for(PointMass(torch.zeros(1, 1, 1), *known), HeunSpec(), 9)
    assert (levels[0].item(), levels[-1].item()) == expected
    assert len(levels) == 5


def test_a_schedule_given_replaces_the_default():
    chosen = levels_for(mixture(), EulerSpec(), 5, LogSnrSpec())
    assert torch.equal(chosen, sigmas(LogSnrSpec(), 6, 0.002, 80.0))


@pytest.mark.parametrize(
    ("levels", "rule"),
    [
        ([80.0, 1.0, 1.0, 0.002], "strictly descending"),
        ([0.002, 80.0], "strictly descending"),
        ([80.0, 1.0, 0.0], "positive"),
        ([], "positive"),
        ([float("nan"), 1.0], "descending"),
        ([81.0, 1.0], "leave the range \\[0.002, 80\\]"),
        ([80.0, 0.001], "leave the range"),
        ([80.0], "at least 2 points"),
    ],
)
def test_levels_given_by_hand_are_checked(levels: list[float], rule: str):
    with pytest.raises(SamplingError, match=rule) as refusal:
        sample(mixture(), EulerSpec(), torch.tensor(levels), golden_latents())
    assert refusal.value.remedy


def test_levels_written_with_rounded_ends_are_accepted():
    levels = torch.tensor([80.00000000000001, 1.0, 0.0019999999999999996], dtype=torch.float64)
    assert sample(mixture(), EulerSpec(), levels, golden_latents()).nfe == 2


def test_labels_are_one_an_image():
    levels = sigmas(LogSnrSpec(), 3, 0.002, 80.0)
    with pytest.raises(SamplingError, match="one label per image"):
        sample(mixture(), EulerSpec(), levels, golden_latents(), torch.zeros(3, dtype=torch.int64))


def test_a_miscounted_call_is_caught():
    class Forgetful(PointMass):
        def __call__(self, *args: torch.Tensor) -> torch.Tensor:
            denoised = super().__call__(*args)
            self.nfe = 0
            return denoised

    levels = sigmas(LogSnrSpec(), 3, 0.002, 80.0)
    with pytest.raises(SamplingError, match="declares 2 network calls on 3 points"):
        sample(Forgetful(torch.zeros(2, 1, 1)), EulerSpec(), levels, golden_latents())


def test_the_golden_denoiser_is_the_one_the_figures_were_made_with():
    for check in golden()["D_check"]:
        x, expected = (torch.tensor(check[key], dtype=torch.float64) for key in ("x", "D"))
        sigma = torch.full((len(x),), check["sigma"], dtype=torch.float64)
        denoised = mixture()(x[:, :, None, None], sigma, None)[:, :, 0, 0]
        torch.testing.assert_close(denoised, expected, rtol=1e-12, atol=1e-12)
