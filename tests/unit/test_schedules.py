"""Schedules: golden levels, exact ends, descent, and the laws they are named after."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from contracts.exact_denoisers import PointMass, golden_latents, mixture
from fleetstep.errors import SamplingError
from fleetstep.sampling.discrete_schedules import FractionalSteps, accelerated_level_beyond
from fleetstep.sampling.schedules import VpTime, sigmas
from fleetstep.sampling.spec import (
    AcceleratedScheduleSpec,
    DdpmSubsetSpec,
    DiscreteSpec,
    EulerSpec,
    HeunSpec,
    IddpmSpec,
    LevelsSpec,
    LogSnrSpec,
    PolynomialSpec,
    ScheduleSpec,
    TimeUniformSpec,
    VpTimeSpec,
)
from fleetstep.sampling.trajectory import levels_for, sample
from solver_goldens import exact_denoiser, latents, reference

GOLDEN = reference("schedules")
VP = VpTime(beta_d=19.9, beta_min=0.1)
EDM_RANGE, VP_RANGE = (0.002, 80.0), (VP.sigma(1e-3), VP.sigma(1.0))
NAMED: dict[str, tuple[ScheduleSpec, tuple[float, float]]] = {
    "polynomial_rho7": (PolynomialSpec(), EDM_RANGE),
    "logsnr": (LogSnrSpec(), EDM_RANGE),
    "time_uniform_rho1": (TimeUniformSpec(), EDM_RANGE),
    "time_uniform_rho2": (TimeUniformSpec(rho=2), EDM_RANGE),
    "kd_karras": (PolynomialSpec(), EDM_RANGE),
    "kd_exponential": (LogSnrSpec(), EDM_RANGE),
    "kd_vp": (VpTimeSpec(), VP_RANGE),
    "dpm_vp_time_uniform": (VpTimeSpec(), VP_RANGE),
    "dpm_vp_time_quadratic": (VpTimeSpec(spacing="quadratic"), VP_RANGE),
    "dpm_vp_logSNR": (LogSnrSpec(), VP_RANGE),
}
SPANNING = [
    PolynomialSpec(),
    PolynomialSpec(rho=1),
    PolynomialSpec(rho=0.05),
    LogSnrSpec(),
    TimeUniformSpec(),
    TimeUniformSpec(rho=2),
    VpTimeSpec(),
    VpTimeSpec(spacing="quadratic"),
]
BOUNDLESS = (0.0, math.inf)
"""A range that no schedule could span: given where it must be ignored."""


def f64(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestGoldenLevels:
    @pytest.mark.parametrize("key", GOLDEN["schedules"])
    def test_continuous(self, key: str):
        row = GOLDEN["schedules"][key]
        expected = f64(row["edm_sigma"] if isinstance(row, dict) else row)
        expected = expected[expected > 0]
        schedule, ends = NAMED[key.split("/")[0]]
        levels = sigmas(schedule, len(expected), *ends)
        torch.testing.assert_close(levels, expected, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("name", ["time_uniform", "time_quadratic", "logSNR"])
    def test_vp_times(self, name: str):
        row = GOLDEN["schedules"][f"dpm_vp_{name}/5"]
        assert [VP.time(sigma) for sigma in row["edm_sigma"]] == pytest.approx(row["t"], rel=1e-9)
        assert [VP.sigma(t) for t in row["t"]] == pytest.approx(row["edm_sigma"], rel=1e-9)

    @pytest.mark.parametrize("process", [VP, VpTime.spanning(*EDM_RANGE)])
    @pytest.mark.parametrize("time", [1e-3, 0.1, 0.5, 1.0])
    def test_time_undoes_sigma(self, process: VpTime, time: float):
        assert process.time(process.sigma(time)) == pytest.approx(time, rel=1e-12)

    def test_time_keeps_its_digits_at_low_noise(self):
        # log(1 + sigma^2) = 0.1 t there, to the last bit.
        assert VP.time(1e-9) == pytest.approx(1e-17, rel=1e-14, abs=0)

    @pytest.mark.parametrize("key", GOLDEN["ddpm_subsets"]["timesteps"])
    def test_ddpm_subsets(self, key: str):
        steps = GOLDEN["ddpm_subsets"]["timesteps"][key]
        spacing, count = key.split("/")
        levels = sigmas(DdpmSubsetSpec(spacing=spacing), int(count), *BOUNDLESS)
        of_step = torch.arange(999, -1, -1)
        every = sigmas(DdpmSubsetSpec(), 1000, *BOUNDLESS)
        assert of_step[torch.isin(every, levels)].tolist() == steps

    def test_ddpm_levels(self):
        every = sigmas(DdpmSubsetSpec(), 1000, *BOUNDLESS).flip(0)
        at = GOLDEN["ddpm_subsets"]["edm_sigma_at_t"]
        levels = every[[int(step) for step in at]]
        torch.testing.assert_close(levels, f64(list(at.values())), rtol=1e-9, atol=0)

    @pytest.mark.parametrize("key", GOLDEN["schedule13"])
    def test_accelerated(self, key: str):
        row, settings = GOLDEN["schedule13"][key], dict(pair.split("=") for pair in key.split(","))
        points = int(settings["T"])
        schedule = AcceleratedScheduleSpec(c0=settings["c0"], c1=settings["c1"])
        levels = sigmas(schedule, points, *BOUNDLESS)
        beyond = accelerated_level_beyond(schedule, points)
        beta = [*row["beta"], row["beta_Tplus1"]]
        abar = list(itertools.accumulate((1 - b for b in beta), lambda a, b: a * b))
        expected = [math.sqrt((1 - a) / a) for a in abar]
        assert [*levels.flip(0).tolist(), beyond] == pytest.approx(expected, rel=1e-9)
        assert 1 / (1 + levels[0].item() ** 2) == pytest.approx(row["abar_T"], rel=1e-9)
        assert 1 / (1 + levels[-1].item() ** 2) == pytest.approx(row["abar_1"], rel=1e-9)

    @pytest.mark.parametrize(
        ("name", "schedule", "ends"),
        [("iddpm", IddpmSpec(), (0.002, 81.0)), ("ve", LogSnrSpec(), (0.02, 100.0))],
    )
    def test_edms_ablation(self, name: str, schedule: ScheduleSpec, ends: tuple[float, float]):
        runs = [run for run in reference("others")["runs"] if run["solver"] == "edm_ablation"]
        (run,) = (run for run in runs if run["params"]["discretization"] == name)
        calls = f64(run["sigma_calls"])
        # Two calls a step, the second where the next step begins.
        visited = torch.cat((calls[:1], calls[1::2]))
        levels = sigmas(schedule, run["num_steps"], *ends)
        torch.testing.assert_close(levels, visited, rtol=1e-9, atol=0)


class TestRange:
    @pytest.mark.parametrize("schedule", SPANNING, ids=lambda schedule: schedule.label)
    @pytest.mark.parametrize("points", [2, 3, 18, 1000])
    def test_levels_descend_between_exact_ends(self, schedule: ScheduleSpec, points: int):
        levels = sigmas(schedule, points, 0.003, 77.7)
        assert levels.dtype == torch.float64
        assert len(levels) == points
        assert (levels[0].item(), levels[-1].item()) == (77.7, 0.003)
        assert bool((levels.diff() < 0).all())

    def test_each_schedule_is_uniform_in_its_own_variable(self):
        def assert_even(values: torch.Tensor) -> None:
            torch.testing.assert_close(
                values.diff(), values.diff().mean().expand(11), rtol=1e-9, atol=0
            )

        assert_even(sigmas(PolynomialSpec(rho=3.5), 12, *EDM_RANGE) ** (1 / 3.5))
        assert_even(sigmas(LogSnrSpec(), 12, *EDM_RANGE).log())
        fitted = VpTime.spanning(*EDM_RANGE)
        assert fitted.time(80.0) == pytest.approx(1.0, rel=1e-12)
        assert fitted.time(0.002) == pytest.approx(1e-3, rel=1e-9)
        # sampling.md's own figures for this range
        assert fitted.beta_d == pytest.approx(17.537957, abs=1e-6)
        assert fitted.beta_min == pytest.approx(-0.0047690, abs=1e-7)
        assert_even(f64([fitted.time(s) for s in sigmas(TimeUniformSpec(), 12, *EDM_RANGE)]))
        root = [fitted.time(s) ** 0.5 for s in sigmas(TimeUniformSpec(rho=2), 12, *EDM_RANGE)]
        assert_even(f64(root))
        assert_even(f64([VP.time(s) for s in sigmas(VpTimeSpec(), 12, *EDM_RANGE)]))
        ddpm = FractionalSteps.of("latent", 1000)
        assert_even(f64([ddpm.time(s) for s in sigmas(DiscreteSpec(), 12, *EDM_RANGE)]))

    def test_polynomial_tends_to_logsnr(self):
        limit = sigmas(LogSnrSpec(), 12, *EDM_RANGE)
        far = [
            (sigmas(PolynomialSpec(rho=rho), 12, *EDM_RANGE) / limit - 1).abs().max().item()
            for rho in (1e3, 1e6, 1e15)
        ]
        # The distance is of first order in 1 / rho, and nothing cancels on the way.
        assert far[0] / far[1] == pytest.approx(1e3, rel=0.02)
        assert far[2] < 1e-12

    def test_discrete_is_the_table_interpolated_in_log_alpha(self):
        betas = np.linspace(np.sqrt(0.00085), np.sqrt(0.012), 1000) ** 2
        log_alpha = 0.5 * np.log(np.cumprod(1 - betas))
        for rho in (1.0, 2.0):
            t = np.linspace(1.0, 1e-3 ** (1 / rho), 11) ** rho
            between = np.interp(t, np.arange(1, 1001) / 1000, log_alpha)
            levels = sigmas(DiscreteSpec(rho=rho), 11, *EDM_RANGE)
            expected = torch.from_numpy(np.sqrt(np.exp(-2 * between) - 1))
            torch.testing.assert_close(levels, expected, rtol=1e-9, atol=0)
        # The ends of Stable Diffusion's range.
        assert levels[0].item() == pytest.approx(14.6146, abs=1e-4)
        assert levels[-1].item() == pytest.approx(0.0292, abs=1e-4)

    def test_discrete_spans_what_network_and_process_share(self):
        linear = DiscreteSpec(betas="linear")
        assert sigmas(linear, 5, 0.002, 80.0)[0].item() == 80.0
        assert sigmas(linear, 5, 0.05, 300.0)[-1].item() == 0.05
        whole = sigmas(linear, 5, 1e-3, 300.0)
        assert whole[0].item() == pytest.approx(157.40728081040757, rel=1e-12)
        assert whole[-1].item() == pytest.approx(0.010000500037502575, rel=1e-12)
        with pytest.raises(SamplingError, match=r"0\.0291\d+ to 14\.6146.* 20 to 80: no range"):
            sigmas(DiscreteSpec(), 5, 20.0, 80.0)

    @pytest.mark.parametrize(
        "schedule",
        [
            LevelsSpec(sigmas=(3.0, 1.0)),
            DdpmSubsetSpec(),
            AcceleratedScheduleSpec(c0=1, c1=2),
        ],
        ids=lambda schedule: schedule.kind,
    )
    def test_schedules_with_levels_of_their_own_ignore_the_range(self, schedule: ScheduleSpec):
        assert torch.equal(sigmas(schedule, 2, *BOUNDLESS), sigmas(schedule, 2, *EDM_RANGE))

    def test_iddpm_keeps_the_levels_in_the_range(self):
        for low, high in [(0.002, 80.0), (0.5, 3.0)]:
            levels = sigmas(IddpmSpec(), 7, low, high)
            assert low <= levels[-1] < levels[0] <= high
        with pytest.raises(SamplingError, match=r"has \d+ levels in \[0\.5, 3\], and 900 points"):
            sigmas(IddpmSpec(), 900, 0.5, 3.0)

    def test_levels_written_down_pass_through(self):
        given = (9.0, 3.0000000000000004, 3.0, 0.1)
        assert sigmas(LevelsSpec(sigmas=given), 4, *BOUNDLESS).tolist() == list(given)
        assert sigmas(LevelsSpec(sigmas=(*given, 0.0)), 4, *BOUNDLESS).tolist() == list(given)
        with pytest.raises(SamplingError, match="have 4 positive ones, not 3"):
            sigmas(LevelsSpec(sigmas=given), 3, *BOUNDLESS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("points", "low", "high", "rule"),
        [
            (1, 0.002, 80.0, "at least 2 points, got 1"),
            (5, 0.0, 80.0, "0 < sigma_min < sigma_max"),
            (5, 2.0, 1.0, "0 < sigma_min < sigma_max"),
            (5, 0.002, math.inf, "0 < sigma_min < sigma_max"),
            (40, 1.0, 1.0 + 1e-15, "does not descend"),
        ],
    )
    def test_what_is_no_schedule(self, points: int, low: float, high: float, rule: str):
        with pytest.raises(SamplingError, match=rule) as refusal:
            sigmas(LogSnrSpec(), points, low, high)
        assert refusal.value.remedy

    def test_a_range_of_no_vp_process(self):
        # Its time would rise far above 2 between t = 1e-3 and 1.
        with pytest.raises(SamplingError, match=r"no VP process rises from 1 at t = 0\.001 to 2"):
            sigmas(TimeUniformSpec(), 2, 1.0, 2.0)

    @pytest.mark.parametrize("points", [2, 3, 20])
    def test_h_of_the_accelerated_schedule(self, points: int):
        schedule = AcceleratedScheduleSpec(c0=2, c1=8)
        with pytest.raises(SamplingError, match="needs h < 1") as refusal:
            sigmas(schedule, points, *BOUNDLESS)
        # 8 ln(26) / 26 = 1.0025 and 8 ln(27) / 27 = 0.977
        assert "T = 27 or more" in refusal.value.remedy
        assert len(sigmas(schedule, 27, *BOUNDLESS)) == 27

    # Levels all without bound, the first alone, and levels that are zero.
    @pytest.mark.parametrize(("c0", "c1"), [(1, 400), (1, 78.49), (200, 201)])
    def test_accelerated_levels_beyond_float64(self, c0: float, c1: float):
        with pytest.raises(SamplingError, match="does not descend between finite, positive"):
            sigmas(AcceleratedScheduleSpec(c0=c0, c1=c1), 5000, *BOUNDLESS)

    @pytest.mark.parametrize(
        ("settings", "points", "rule"),
        [
            ({"offset": 1}, 1000, "begins at step 1000, and the last of 1000 is 999"),
            ({}, 1001, "comes to step 0 twice"),
            ({"spacing": "trailing"}, 1001, "twice"),
            ({"spacing": "quad"}, 50, "comes to step 0 twice"),
            ({"end": "first"}, 6, "would repeat it"),
            ({"end": "first", "spacing": "linspace"}, 6, "would repeat it"),
        ],
    )
    def test_subsets_that_the_process_does_not_have(
        self, settings: dict[str, Any], points: int, rule: str
    ):
        with pytest.raises(SamplingError, match=rule) as refusal:
            sigmas(DdpmSubsetSpec(**settings), points, *BOUNDLESS)
        assert refusal.value.remedy


class TestSubsets:
    def test_every_size_is_numpys(self):
        total = 1000
        every = sigmas(DdpmSubsetSpec(), total, *BOUNDLESS).flip(0)

        def chosen(spacing: str, count: int) -> np.ndarray:
            levels = sigmas(DdpmSubsetSpec(spacing=spacing), count, *BOUNDLESS)
            return torch.searchsorted(every, levels).numpy()

        for count in (*range(2, 130), 250, 334, 1000):
            # numpy's arange may give one number too many
            trailing = np.round(np.arange(total, 0, -total / count))[:count].astype(int) - 1
            assert np.array_equal(chosen("trailing", count), trailing)
            linspace = np.linspace(0, total - 1, count).round().astype(int)[::-1]
            assert np.array_equal(chosen("linspace", count), linspace)
        for count in range(2, 28):
            quad = (np.linspace(0, np.sqrt(total * 0.8), count) ** 2).astype(int)[::-1]
            assert np.array_equal(chosen("quad", count), quad)

    def test_the_end(self):
        every = sigmas(DdpmSubsetSpec(), 1000, *BOUNDLESS).flip(0)
        zero, none = (
            sigmas(DdpmSubsetSpec(offset=1, end=end), 5, *BOUNDLESS) for end in ("zero", "none")
        )
        assert torch.equal(zero, every[[801, 601, 401, 201, 1]])
        assert torch.equal(none, zero)
        first = sigmas(DdpmSubsetSpec(offset=1, end="first"), 6, *BOUNDLESS)
        assert torch.equal(first, every[[801, 601, 401, 201, 1, 0]])
        assert torch.equal(
            sigmas(DdpmSubsetSpec(spacing="trailing", end="first"), 2, *BOUNDLESS), every[[999, 0]]
        )

    @pytest.mark.parametrize("betas", ["linear", "quadratic", "cosine", "latent"])
    def test_levels_follow_from_the_betas(self, betas: str):
        levels = sigmas(DdpmSubsetSpec(betas=betas, steps=50), 50, *BOUNDLESS).flip(0)
        log_abar = -torch.log1p(levels**2)
        beta = -torch.expm1(torch.cat((log_abar[:1], log_abar.diff())))
        u = np.arange(51) / 50
        cosine = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        expected = {
            "linear": np.linspace(1e-4, 0.02, 50),
            "quadratic": np.linspace(np.sqrt(1e-4), np.sqrt(0.02), 50) ** 2,
            "cosine": np.minimum(1 - cosine[1:] / cosine[:-1], 0.999),
            "latent": np.linspace(np.sqrt(0.00085), np.sqrt(0.012), 50) ** 2,
        }[betas]
        torch.testing.assert_close(beta, torch.from_numpy(expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("c0", "c1"), [(2, 6), (1, 3), (2, 8)])
def test_the_accelerated_schedule_reaches_the_noise_it_promises(c0: float, c1: float):
    # abar_T = T^-(c1 - c0) / e in the limit: the rise sums to one, the plateau to the exponent.
    def excess(points: int) -> float:
        highest = sigmas(AcceleratedScheduleSpec(c0=c0, c1=c1), points, *BOUNDLESS)[0].item()
        return -math.log1p(highest**2) + (c1 - c0) * math.log(points)

    assert excess(100_000) == pytest.approx(-1, abs=0.025)
    assert abs(excess(100_000) + 1) < 0.25 * abs(excess(10_000) + 1)


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
    assert (levels[0].item(), levels[-2].item(), levels[-1].item()) == (*expected, 0.0)
    assert len(levels) == 6


def test_a_schedule_given_replaces_the_default():
    chosen = levels_for(mixture(), EulerSpec(schedule=LogSnrSpec()), 5)
    assert torch.equal(chosen, sigmas(LogSnrSpec(), 6, 0.002, 80.0))


def test_a_zero_follows_where_the_schedule_ends_there():
    solver = EulerSpec(schedule=DdpmSubsetSpec(spacing="trailing"))
    levels = levels_for(exact_denoiser(0.01, 158.0), solver, 10)
    assert len(levels) == 11
    assert levels[-1].item() == 0
    assert torch.equal(levels[:-1], sigmas(DdpmSubsetSpec(spacing="trailing"), 10, *BOUNDLESS))


def test_a_schedule_beyond_the_networks_range_is_refused_when_sampled():
    solver = EulerSpec(schedule=DdpmSubsetSpec(spacing="trailing"))
    levels = levels_for(mixture(), solver, 10)
    with pytest.raises(SamplingError, match=r"from 157\.407 to 0\.338.* leave the range"):
        sample(mixture(), solver, levels, 157.4 * latents())


@pytest.mark.parametrize(
    ("levels", "rule"),
    [
        ([80.0, 1.0, 1.0, 0.002], "strictly descending"),
        ([0.002, 80.0], "strictly descending"),
        ([80.0, 0.0, 0.0], "strictly descending"),
        ([80.0, -1.0], "positive"),
        ([0.0], "positive"),
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


@pytest.mark.parametrize("check", reference("problem")["D_check"]["2"], ids=lambda c: c["sigma"])
def test_the_golden_denoiser_is_the_one_the_figures_were_made_with(check: dict[str, Any]):
    x, expected = f64(check["x"]), f64(check["D"])
    sigma = torch.full((len(x),), check["sigma"], dtype=torch.float64)
    denoised = exact_denoiser()(x[:, :, None, None], sigma, None)[:, :, 0, 0]
    torch.testing.assert_close(denoised, expected, rtol=1e-12, atol=1e-12)
