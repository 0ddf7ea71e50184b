"""SpeeD's draws follow its probabilities, and its weights touch what they are to touch."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from fleetstep.diffusion.loss import DiffusionLoss, noise_levels_at
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.process import build_process
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    MagnitudeThreshold,
    QuantileThreshold,
    SpeedSpec,
    StepsThreshold,
    VeSpec,
    VpSpec,
    base_law,
)

DRAWS = 50_000
LINEAR = DdpmSpec()
CONTINUOUS = (VpSpec(), VeSpec(), EdmSpec())
RELEASED = SpeedSpec(k=5, threshold=StepsThreshold(count=700), reflected_pairs=True)


def objective(process, *strategies):
    return build_objective(process, strategies, budget_images=1_000_000, global_batch=512)


def drawn_steps(spec, count=DRAWS):
    sigma = noise_levels_at(objective(LINEAR, spec), 5, 0, count)
    return build_process(LINEAR).index_of(sigma).numpy()


def eq_3(k, tau, steps=1000):
    return np.where(np.arange(steps) < tau, k, 1) / (steps + tau * (k - 1))


def chi_square(index, pmf):
    return stats.chisquare(np.bincount(index, minlength=len(pmf)), pmf * len(index)).pvalue


@pytest.mark.parametrize(("k", "tau"), [(5, 700), (2, 700), (25, 250)])
def test_drawn_steps_pass_a_chi_square_test(k, tau):
    """Every step by itself, against eq. 3; and the test has the power to see a wrong k."""
    index = drawn_steps(SpeedSpec(k=k, threshold=StepsThreshold(count=tau)))
    assert chi_square(index, eq_3(k, tau)) > 0.01
    assert chi_square(index, eq_3(2 * k, tau)) < 1e-6


def test_even_positions_follow_eq_3_and_odd_ones_its_reflection():
    """Pairs are one draw, so each half is tested by itself."""
    index = drawn_steps(RELEASED, 2 * DRAWS)
    even, odd = index[::2], index[1::2]
    assert np.array_equal(odd, np.abs(642 - even))
    paper = eq_3(5, 700)
    assert chi_square(even, paper) > 0.01
    reflected = np.zeros(1000)
    np.add.at(reflected, np.abs(642 - np.arange(1000)), paper)
    seen = reflected > 0
    assert not np.isin(odd, np.flatnonzero(~seen)).any()
    assert chi_square(np.searchsorted(np.flatnonzero(seen), odd), reflected[seen]) > 0.01


@pytest.mark.parametrize("threshold", [MagnitudeThreshold(r=10), QuantileThreshold(q=0.7)])
@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.kind)
def test_drawn_levels_of_continuous_processes_pass_a_kolmogorov_smirnov_test(process, threshold):
    """Against the plain-Python law and eq. 3 in its quantiles, not against our own cdf."""
    k, law = 5.0, base_law(process)
    sigma = noise_levels_at(objective(process, SpeedSpec(k=k, threshold=threshold)), 9, 0, DRAWS)
    v = np.array([law.cdf(level) for level in sigma.tolist()])
    if isinstance(threshold, QuantileThreshold):
        a = threshold.q
    else:
        sd = 0.5 if process.kind == "edm" else 1.0
        a = law.cdf(sd * (threshold.r - 1) ** 0.5)
    shares = (k * np.minimum(v, a) + np.maximum(v - a, 0)) / (k * a + 1 - a)
    assert stats.kstest(shares, "uniform").pvalue > 0.01
    assert stats.kstest(v, "uniform").pvalue < 1e-9


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.kind)
def test_reflected_quantiles(process):
    """v -> |m - v|, whose law over [0, 1-m] is uniform twice over up to m."""
    m, law = 0.642, base_law(process)
    spec = SpeedSpec(sampling=False, reflected_pairs=True, reflect_at=m)
    sigma = noise_levels_at(objective(process, spec), 9, 0, 2 * DRAWS)
    v = np.array([law.cdf(level) for level in sigma.tolist()])
    even, odd = v[::2], v[1::2]
    assert np.allclose(odd, np.abs(m - even), rtol=0, atol=1e-9)
    assert stats.kstest(even, "uniform").pvalue > 0.01
    shares = np.minimum(odd, 1 - m) + np.minimum(odd, m)
    assert stats.kstest(shares, "uniform").pvalue > 0.01


@pytest.mark.parametrize("at", [2**-20, 0.25, 0.5])
@pytest.mark.parametrize("process", [*CONTINUOUS, EdmSpec(p_mean=0)], ids=str)
def test_the_level_at_the_mirror_has_a_finite_reflection(process, at):
    """With p_mean = 0 the median's own quantile is 1/2 to the last bit: its mirror is 0."""
    spec = SpeedSpec(sampling=False, reflected_pairs=True, reflect_at=at)
    built = objective(process, spec)
    low, mirrored = built.levels(torch.tensor([1e-9, at], dtype=torch.float64), 0, 0).tolist()
    assert 0 < mirrored < low


@pytest.mark.parametrize("first", [0, 1, 31, 1000, 1001])
def test_pairs_belong_to_positions_and_not_to_calls(first):
    """Any split, at odd positions too, and any odd start."""
    built = objective(LINEAR, RELEASED)
    whole = noise_levels_at(built, 5, 0, 1200)
    assert torch.equal(noise_levels_at(built, 5, first, 97), whole[first : first + 97])
    for cuts in ((0, 97), (0, 1, 2, 97), (0, 33, 34, 65, 97), tuple(range(98))):
        parts = [
            noise_levels_at(built, 5, first + low, high - low)
            for low, high in itertools.pairwise(cuts)
        ]
        assert torch.equal(torch.cat(parts), whole[first : first + 97])
    assert noise_levels_at(built, 5, first, 0).shape == (0,)


@pytest.mark.parametrize("tail", [None, 1.0])
@pytest.mark.parametrize("process", [LINEAR, *CONTINUOUS], ids=lambda p: p.kind)
def test_normalised_weights_have_mean_one_over_the_base_law(process, tail):
    threshold = QuantileThreshold(q=0.7)
    spec = SpeedSpec(lam=0.8, threshold=threshold, tail_weight=tail, normalize="mean_one")
    built = objective(process, spec)
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    sigma = built.base_noise_levels.icdf(u)
    (weight,) = built.multipliers
    exact = process is LINEAR
    assert weight(sigma).mean().item() == pytest.approx(1, rel=1e-12 if exact else 1e-6)
    (plain,) = objective(process, spec.model_copy(update={"normalize": "none"})).multipliers
    ratio = plain(sigma) / weight(sigma)
    assert torch.allclose(ratio, ratio[:1], rtol=1e-12)
    assert abs(ratio[0].item() - 1) > 0.1


def losses(spec, network):
    """Loss of each image under `network`, which sees x and the noise that is in it."""
    process = DdpmSpec(learned_variance=True)
    built = objective(process, *spec)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(6, 2, 4, 4, generator=generator) * 2 - 1
    eps = torch.randn(6, 2, 4, 4, generator=generator)
    sigma = build_process(process).table[torch.tensor([0, 1, 3, 10, 30, 100])]

    def both(x, c_noise, labels):
        return torch.cat([network(x, eps), 0.3 * torch.ones_like(x)], dim=1)

    loss = DiffusionLoss(built)(built.denoiser(both), x0, None, sigma, eps, 0)
    return loss.double(), sigma


def test_the_bound_of_a_learned_variance_is_not_weighted():
    speed = SpeedSpec(lam=1.0, sampling=False)
    (weight,) = objective(DdpmSpec(), speed).multipliers
    # A network that knows the noise has no squared error: what is left is the bound.
    plain, _ = losses((), lambda x, eps: eps)
    weighted, sigma = losses((speed,), lambda x, eps: eps)
    assert (plain.abs() > 1e-5).all()
    assert torch.allclose(weighted, plain, rtol=1e-4, atol=0)
    # One that says 0 has both, and only the squared error, 1 in the mean, is weighted.
    plain, _ = losses((), lambda x, eps: torch.zeros_like(x))
    weighted, _ = losses((speed,), lambda x, eps: torch.zeros_like(x))
    generator = torch.Generator().manual_seed(0)
    torch.rand(6, 2, 4, 4, generator=generator)
    error = torch.randn(6, 2, 4, 4, generator=generator).double().square().mean((1, 2, 3))
    assert torch.allclose(plain - weighted, (1 - weight(sigma)) * error, rtol=1e-3, atol=1e-4)
