"""Noise levels follow the laws they claim, in closed form and as drawn."""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fleetstep.diffusion.loss import noise_levels_at
from fleetstep.diffusion.noise_levels import Asymmetric, LogNormal
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import (
    EdmSpec,
    LogNormalLaw,
    MagnitudeThreshold,
    QuantileThreshold,
    SpeedSpec,
    suppressed_mass,
)

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

    def quantile_density(self, u_B):
        return torch.ones_like(u_B)


def test_the_torch_law_is_the_plain_python_law():
    plain = LogNormalLaw(MEAN, STD)
    u = grid(997)
    expected = torch.tensor([plain.icdf(value) for value in u.tolist()], dtype=torch.float64)
    assert torch.allclose(BASE.icdf(u), expected, rtol=1e-12)
    assert torch.allclose(
        BASE.cdf(expected),
        torch.tensor([plain.cdf(sigma) for sigma in expected.tolist()], dtype=torch.float64),
        rtol=1e-12,
    )
    assert all(math.isclose(plain.tail(s), 1 - plain.cdf(s), abs_tol=1e-15) for s in (0.1, 1, 9))


@given(
    k=st.floats(1, 100), a=st.floats(0.01, 0.99), u=st.floats(1e-9, 1 - 1e-9), law=st.booleans()
)
def test_cdf_undoes_icdf(k, a, u, law):
    wrapped = Asymmetric(BASE if law else Uniform(), k, a)
    point = torch.tensor([u], dtype=torch.float64)
    assert wrapped.cdf(wrapped.icdf(point)).item() == pytest.approx(u, rel=1e-9, abs=1e-9)


@given(k=st.floats(1, 100), a=st.floats(0.01, 0.99))
def test_the_density_is_k_times_higher_below_the_threshold_and_sums_to_one(k, a):
    """SpeeD, eq. 3, over any base law: read off the quantile densities of base and wrapper."""
    z = 1 + a * (k - 1)
    wrapped = Asymmetric(BASE, k, a)
    v = grid(200)
    v = v[(v - a).abs() > 1e-3]
    ratio = BASE.quantile_density(v) / wrapped.quantile_density(wrapped.cdf(BASE.icdf(v)))
    expected = torch.full_like(v, k / z).where(v < a, 1 / z)
    assert torch.allclose(ratio, expected, rtol=1e-9, atol=0)
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
