"""Noise levels follow the laws they claim, in closed form and as drawn."""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fleetstep.diffusion.change import inverse_density
from fleetstep.diffusion.loss import noise_levels_at
from fleetstep.diffusion.noise_levels import (
    Asymmetric,
    LogNormal,
    UniformSteps,
    WeightedSteps,
    build_law,
)
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    MagnitudeThreshold,
    QuantileThreshold,
    SpeedSpec,
    VeSpec,
    VpSpec,
    base_law,
    suppressed_mass,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "processes.json").read_text())[
    "edm_lognormal"
]

NORMAL = NormalDist()
MEAN, STD = -1.2, 1.2
BASE = LogNormal(MEAN, STD)


def grid(count):
    """Midpoints of `count` equal parts of (0, 1): the mean over them is an expectation."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def objective(*strategies):
    return build_objective(EdmSpec(), strategies, budget_images=1_000_000, global_batch=512)


@dataclass(frozen=True)
class Uniform:
    """A law on (0, 1) that is its own quantile: DDPM's uniform steps."""

    def icdf(self, u_B):
        return u_B

    def cdf(self, sigma_B):
        return sigma_B


SCHEDULES = ("linear", "quadratic", "cosine")
SMOOTH = {
    "edm": EdmSpec(),
    "edm narrow": EdmSpec(p_mean=0.3, p_std=0.4),
    "vp": VpSpec(),
    "vp 3x": VpSpec(beta_scale=3),
    "ve": VeSpec(),
}
STEPPED = {schedule: DdpmSpec(schedule=schedule) for schedule in SCHEDULES}
PROCESSES = SMOOTH | STEPPED
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
every_smooth_process = pytest.mark.parametrize("process", SMOOTH.values(), ids=SMOOTH)


@every_process
def test_the_torch_law_is_the_plain_python_law(process):
    plain, law = base_law(process), build_law(process)
    u = grid(997)
    expected = torch.tensor([plain.icdf(value) for value in u.tolist()], dtype=torch.float64)
    assert torch.allclose(law.icdf(u), expected, rtol=1e-12, atol=0)
    for sigma in (expected, expected * 1.01):
        shares = torch.tensor([plain.cdf(value) for value in sigma.tolist()], dtype=torch.float64)
        assert torch.allclose(law.cdf(sigma), shares, rtol=1e-12, atol=1e-15)
        tails = torch.tensor([plain.tail(value) for value in sigma.tolist()], dtype=torch.float64)
        assert torch.allclose(shares + tails, torch.ones_like(shares), rtol=1e-12)


@pytest.mark.parametrize("process", [VpSpec(), VeSpec(), DdpmSpec()], ids=["vp", "ve", "ddpm"])
def test_levels_outside_the_support_have_no_share(process):
    plain, law = base_law(process), build_law(process)
    outside = torch.tensor([1e-6, 1e6], dtype=torch.float64)
    assert law.cdf(outside).tolist() == [plain.cdf(1e-6), plain.cdf(1e6)] == [0, 1]
    assert (plain.tail(1e-6), plain.tail(1e6)) == (1, 0)


@every_process
def test_tails_keep_their_digits(process):
    """Where 1 - cdf has none left: the share above the level of a last step or 1e-12."""
    plain = base_law(process)
    u = 1 - 2.0**-40
    if process.kind == "ddpm":
        assert plain.tail(plain.sigmas[-2]) == 1 / 1000
    else:
        assert plain.tail(plain.icdf(u)) == pytest.approx(2.0**-40, rel=1e-3)


@every_smooth_process
def test_cdf_undoes_icdf_on_every_process(process):
    law = build_law(process)
    u = torch.cat([torch.logspace(-9, -1, 200, dtype=torch.float64), grid(1000)])
    sigma = law.icdf(u)
    assert torch.allclose(law.cdf(sigma), u, rtol=1e-9, atol=1e-14)
    assert torch.allclose(law.icdf(law.cdf(sigma)), sigma, rtol=1e-9)


@every_smooth_process
def test_the_inverse_density_is_the_slope_of_the_icdf(process):
    law = build_law(process)
    u, h = grid(500) * 0.98 + 0.01, 1e-6
    slope = (law.icdf(u + h) - law.icdf(u - h)) / (2 * h)
    assert torch.allclose(inverse_density(law, law.icdf(u)), slope, rtol=1e-6, atol=0)
    point = u.clone().requires_grad_()
    if process.kind != "edm":  # its normal quantile is not torch's
        (exact,) = torch.autograd.grad(law.icdf(point).sum(), point)
        assert torch.allclose(inverse_density(law, law.icdf(u)), exact, rtol=1e-12, atol=0)


def test_edm_s_law_at_reference_levels():
    for sigma, cdf in GOLDEN["cdf"].items():
        level = torch.tensor([float(sigma)], dtype=torch.float64)
        assert BASE.cdf(level).item() == pytest.approx(cdf, rel=1e-9)
        density = 1 / inverse_density(BASE, level).item()
        assert density == pytest.approx(GOLDEN["pdf"][sigma], rel=1e-9)


@every_smooth_process
def test_drawn_levels_pass_a_kolmogorov_smirnov_test(process):
    """Against the papers' definitions: t, ln sigma uniform, or ln sigma normal."""
    built = build_objective(process, [], budget_images=1, global_batch=1)
    sigma = noise_levels_at(built, 3, 0, 20_000)
    match process:
        case EdmSpec():
            sample, law = sigma.log(), stats.norm(process.p_mean, process.p_std)
        case VpSpec():
            b = (1 + sigma**2).log() / process.beta_scale
            sample = ((0.1**2 + 2 * 19.9 * b).sqrt() - 0.1) / 19.9
            law = stats.uniform(1e-5, 1 - 1e-5)
        case VeSpec():
            sample = sigma.log()
            law = stats.uniform(math.log(0.02), math.log(100 / 0.02))
    assert stats.kstest(sample.numpy(), law.cdf).pvalue > 0.01


@pytest.mark.parametrize("process", STEPPED.values(), ids=STEPPED)
def test_drawn_steps_are_each_as_likely(process):
    built = build_objective(process, [], budget_images=1, global_batch=1)
    sigma = noise_levels_at(built, 3, 0, 20_000)
    steps = {level: i for i, level in enumerate(build_process(process).sigmas)}
    counts = np.bincount([steps[level] for level in sigma.tolist()], minlength=1000)
    assert len(counts) == 1000
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("process", STEPPED.values(), ids=STEPPED)
def test_step_i_is_drawn_for_a_thousandth_of_all_uniforms(process):
    law, table = build_law(process), build_process(process).table
    u = grid(10_000)
    steps = torch.searchsorted(table, law.icdf(u))
    assert torch.equal(steps, torch.arange(1000).repeat_interleave(10))
    assert torch.allclose(law.cdf(table), torch.arange(1, 1001).double() / 1000)
    assert law.icdf(torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [
        law.sigmas[0],
        law.sigmas[-1],
    ]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20).filter(lambda p: sum(p) > 0.01))
def test_weighted_steps_are_drawn_by_their_weights(weights):
    """Shares of a fine grid of uniforms, steps of probability 0 never; cdf is the running sum."""
    pmf = tuple(w / math.fsum(weights) for w in weights)
    sigmas = tuple(float(i + 1) for i in range(len(pmf)))
    law = WeightedSteps(sigmas, pmf)
    points = 20_000
    drawn = law.icdf(grid(points)).long() - 1
    shares = torch.bincount(drawn, minlength=len(pmf)).double() / points
    exact = torch.tensor(pmf, dtype=torch.float64)
    assert torch.allclose(shares, exact, rtol=0, atol=1.001 / points)
    assert (shares[exact == 0] == 0).all()
    assert torch.allclose(law.cdf(torch.tensor(sigmas).double()), exact.cumsum(0), atol=1e-12)
    assert law.cdf(torch.tensor([0.5], dtype=torch.float64)).item() == 0


def test_equal_weights_are_uniform_steps():
    sigmas = build_process(DdpmSpec()).sigmas
    u = grid(30_011)
    weighted = WeightedSteps(sigmas, (1 / 1000,) * 1000)
    assert torch.equal(weighted.icdf(u), UniformSteps(sigmas).icdf(u))


@given(
    k=st.floats(1, 100), a=st.floats(0.01, 0.99), u=st.floats(1e-9, 1 - 1e-9), law=st.booleans()
)
def test_cdf_undoes_icdf(k, a, u, law):
    wrapped = Asymmetric(BASE if law else Uniform(), k, a)
    point = torch.tensor([u], dtype=torch.float64)
    assert wrapped.cdf(wrapped.icdf(point)).item() == pytest.approx(u, rel=1e-9, abs=1e-9)


@given(k=st.floats(1, 100), a=st.floats(0.01, 0.99))
def test_the_density_is_k_times_higher_below_the_threshold_and_sums_to_one(k, a):
    """SpeeD, eq. 3, over any base law: the slope of the wrapper's cdf in quantiles of the base."""
    z = 1 + a * (k - 1)
    wrapped = Asymmetric(BASE, k, a)
    v, h = grid(200), 1e-4
    v = v[(v - a).abs() > 1e-3]
    ratio = (wrapped.cdf(BASE.icdf(v + h)) - wrapped.cdf(BASE.icdf(v - h))) / (2 * h)
    expected = torch.full_like(v, k / z).where(v < a, 1 / z)
    assert torch.allclose(ratio, expected, rtol=1e-8, atol=1e-10)
    assert a * k / z + (1 - a) / z == pytest.approx(1)


def test_the_mean_of_the_logarithm_is_that_of_two_truncated_normals():
    k, a = 5.0, 0.7
    u = grid(400_000)
    z_a = NORMAL.inv_cdf(a)
    q = k * a / (k * a + 1 - a)
    # E[z | z < z_a] = -phi(z_a) / a, E[z | z > z_a] = phi(z_a) / (1 - a)
    z_mean = q * -NORMAL.pdf(z_a) / a + (1 - q) * NORMAL.pdf(z_a) / (1 - a)
    assert Asymmetric(BASE, k, a).icdf(u).log().mean().item() == pytest.approx(
        MEAN + STD * z_mean, abs=2e-5
    )
    assert BASE.icdf(u).log().mean().item() == pytest.approx(MEAN, abs=1e-9)


@pytest.mark.parametrize(
    "strategies",
    [
        (),
        (SpeedSpec(k=5, threshold=QuantileThreshold(q=0.7)),),
        (SpeedSpec(k=25, threshold=MagnitudeThreshold(r=2)),),
    ],
    ids=["edm", "quantile", "magnitude"],
)
def test_drawn_levels_pass_a_chi_square_test(strategies):
    """Against masses counted by hand from k, a and the normal law, not against our own cdf."""
    draws, bins = 20_480, 40
    sigma = noise_levels_at(objective(*strategies), 3, 0, draws)
    v = torch.tensor([NORMAL.cdf((math.log(s) - MEAN) / STD) for s in sigma.tolist()])
    counts = torch.histc(v, bins, 0, 1).tolist()
    k, a = 1.0, 0.5
    if strategies:
        (speed,) = strategies
        k, a = speed.k, 1 - suppressed_mass(EdmSpec(), speed)
    edges = [j / bins for j in range(bins + 1)]

    def mass(v):
        return (k * min(v, a) + max(v - a, 0)) / (k * a + 1 - a)

    expected = [draws * (mass(hi) - mass(lo)) for lo, hi in pairwise(edges)]
    assert stats.chisquare(counts, expected).pvalue > 0.01
    if strategies:
        assert stats.chisquare(counts, [draws / bins] * bins).pvalue < 1e-9


@pytest.mark.parametrize(("k", "tau"), [(1, 700), (2, 700), (5, 700), (25, 250)])
def test_over_uniform_steps_the_masses_are_the_papers(k, tau):
    steps = 1000
    law = Asymmetric(Uniform(), k, tau / steps)
    edges = torch.arange(steps + 1, dtype=torch.float64) / steps
    pmf = law.cdf(edges).diff()
    z = steps + tau * (k - 1)
    expected = torch.full_like(pmf, k / z).where(torch.arange(steps) < tau, 1 / z)
    assert torch.allclose(pmf, expected, rtol=1e-9, atol=0)
    assert pmf.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("k", "a"), [(2, 0.6), (25, 0.9), (5, 0.3), (5, 0.02)])
def test_the_largest_uniform_still_gives_a_finite_level(k, a):
    """In float64 the form a + (u-q) Z is 1 or more here, whose level is infinite."""
    u = torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)
    sigma = Asymmetric(BASE, k, a).icdf(u)
    assert sigma.isfinite().all()
    assert (sigma > 0).all()


def test_without_suppression_the_law_is_the_base_law_itself():
    assert objective(SpeedSpec(k=1)).noise_levels == objective().noise_levels
    u = grid(1000)
    assert torch.allclose(Asymmetric(BASE, 1, 0.7).icdf(u), BASE.icdf(u), rtol=1e-12)
