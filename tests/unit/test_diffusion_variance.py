"""The learned variance and its bound, against Bayes' rule and torch's own distributions."""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fleetstep.diffusion.loss import DiffusionLoss, noise_at, noise_levels_at
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import DdpmSpec, ddpm_betas, output_channels
from fleetstep.diffusion.variance import VarianceBound, bin_probability

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "processes.json").read_text())
SCHEDULES = ("linear", "quadratic", "cosine")
STEPS = torch.tensor([1, 2, 50, 219, 500, 998, 999])
SHAPE = (2, 3, 3)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def bound_of(schedule="linear", steps=1000):
    return VarianceBound.of(DdpmSpec(schedule=schedule, steps=steps, learned_variance=True))


def images(seed, count, scale=1.0):
    return scale * noise_at(seed, 0, count, SHAPE).double()


def wide(values_B):
    return values_B.view(-1, 1, 1, 1)


def posterior(schedule, x0, x, i):
    """Mean and variance of x_{i-1} given x_i and x0: the product of two Gaussians in x_{i-1},
    q(x_i | x_{i-1}) = N(sqrt(alpha) x_{i-1}, beta) and q(x_{i-1} | x0) = N(sqrt(abar) x0, 1-abar).
    """
    betas = torch.tensor(ddpm_betas(schedule, 1000), dtype=torch.float64)
    before = (1 - betas).cumprod(0)[i - 1]
    beta, alpha = betas[i], 1 - betas[i]
    precision = alpha / beta + 1 / (1 - before)
    pull = wide(alpha.sqrt() / beta) * x + wide(before.sqrt() / (1 - before)) * x0
    return pull / wide(precision), 1 / precision


def signal(schedule, i):
    return (1 - torch.tensor(ddpm_betas(schedule, 1000), dtype=torch.float64)).cumprod(0)[i]


@every_schedule
def test_the_posterior_variance_clipped(schedule):
    bound = bound_of(schedule)
    for index, row in GOLDEN["ddpm_schedules_T1000"][schedule].items():
        got = bound.log_posterior_variances[int(index)].item()
        # The cosine schedule's 1 - abar is 1 up to 2e-9 at its end, where the reference cancels.
        assert got == pytest.approx(row["posterior_log_variance_clipped"], rel=1e-9, abs=1e-12)


@every_schedule
def test_posterior_mean_and_variance_are_bayes_rule(schedule):
    """The mean shifts by c0 when x0 does, whatever x is; the variance is beta~."""
    bound, i = bound_of(schedule), STEPS
    x0, x, other = (images(seed, len(i)) for seed in (1, 2, 3))
    mean, variance = posterior(schedule, x0, x, i)
    moved, _ = posterior(schedule, other, x, i)
    c0 = bound.clean_coefficients[i]
    assert torch.allclose(moved - mean, wide(c0) * (other - x0), rtol=1e-8, atol=1e-10)
    assert torch.allclose(bound.log_posterior_variances[i].exp(), variance, rtol=1e-9)
    assert bound.clean_coefficients[0].item() == pytest.approx(1, rel=1e-12)


@every_schedule
def test_v_interpolates_between_posterior_and_forward_variance(schedule):
    bound, i = bound_of(schedule), STEPS
    for v, table in ((-1.0, bound.log_posterior_variances), (1.0, bound.log_betas)):
        got = bound.log_variance(torch.full((len(i), *SHAPE), v, dtype=torch.float64), i)
        assert torch.allclose(got, wide(table[i]).expand_as(got), rtol=1e-14)
    middle = bound.log_variance(torch.zeros(len(i), 1, 1, 1, dtype=torch.float64), i).flatten()
    ends = bound.log_posterior_variances[i], bound.log_betas[i]
    assert torch.allclose(middle, sum(ends) / 2, rtol=1e-14)


@every_schedule
def test_later_steps_are_the_divergence_of_posterior_and_reverse_step(schedule):
    """In x_i = s x_hat: torch's KL of two normals whose means Bayes' rule gives for x0 and D."""
    bound, i = bound_of(schedule), STEPS
    x0, d, v, eps = (images(seed, len(i), 0.7) for seed in (1, 2, 3, 4))
    sigma = bound.process.table[i]
    x = wide(signal(schedule, i).sqrt()) * (x0 + wide(sigma) * eps)
    mean, variance = posterior(schedule, x0, x, i)
    model_mean, _ = posterior(schedule, d, x, i)
    beta = torch.tensor(ddpm_betas(schedule, 1000), dtype=torch.float64)[i]
    f = (v + 1) / 2
    model_std = (f * wide(beta.log()) + (1 - f) * wide(variance.log())).exp().sqrt()
    nats = kl_divergence(
        Normal(mean, wide(variance.sqrt()).expand_as(x)), Normal(model_mean, model_std)
    )
    expected = nats.mean((1, 2, 3)) / math.log(2)
    got = bound(x0, d, v, sigma)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-12)


def test_a_right_prediction_with_the_posterior_s_variance_costs_nothing():
    bound, i = bound_of(), STEPS
    x0 = images(1, len(i))
    cost = bound(x0, x0, torch.full_like(x0, -1), bound.process.table[i])
    assert torch.equal(cost, torch.zeros(len(i)))
    assert (bound(x0, x0, torch.zeros_like(x0), bound.process.table[i]) > 0).all()


def test_the_first_step_is_the_likelihood_of_the_bin():
    """D is the mean and exp(v's variance) the variance; erf of torch's normal, in bits."""
    bound = bound_of()
    x0 = torch.arange(18, dtype=torch.float64).reshape(1, *SHAPE) * 15 / 127.5 - 1
    d, v = x0 + 0.01 * images(1, 1), 0.3 * images(2, 1)
    std = (bound.log_variance(v, torch.tensor([0])) / 2).exp()
    normal = Normal(d, std)
    low, high = normal.cdf(x0 - 1 / 255), normal.cdf(x0 + 1 / 255)
    low, high = low.where(x0 > -0.999, 0.0), high.where(x0 < 0.999, 1.0)
    got = bound(x0, d, v, bound.process.table[:1]).item()
    assert got == pytest.approx(-(high - low).log2().mean().item(), rel=1e-6)


@pytest.mark.parametrize("mean", [-3.0, -0.97, 0.1234, 1.0, 1.4])
@pytest.mark.parametrize("std", [1e-3, 0.0073, 0.1, 3.0])
def test_the_bins_of_256_values_sum_to_one(mean, std):
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_variance = torch.full_like(values, 2 * math.log(std))
    probability = bin_probability(values, values - mean, log_variance)
    assert (probability >= 0).all()
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bin_far_in_the_tail_keeps_its_digits(sign):
    """To 1e-12 and beyond, on either side, where 1 - CDF has lost them: by logarithms of CDFs."""
    a = torch.arange(1, 9, dtype=torch.float64)
    std = 0.05
    near, far = (torch.special.log_ndtr((half - a * std) / std) for half in (1 / 255, -1 / 255))
    expected = near + torch.log(-torch.expm1(far - near))
    log_variance = torch.full_like(a, 2 * math.log(std))
    got = bin_probability(torch.zeros_like(a), sign * a * std, log_variance)
    assert got.min() < 1e-12
    assert torch.allclose(got.log(), expected, rtol=1e-12)


@pytest.mark.parametrize("x0", [-1.0, 0.2, 1.0])
def test_an_outlier_costs_forty_bits_and_pulls_at_nothing(x0):
    """Log2 of 1e12: 50 and 5000 standard deviations would cost 1800 and 18 million bits."""
    bound = bound_of()
    std = bound.log_posterior_variances[0].div(2).exp().item()
    x0_BCHW = torch.full((4, 1, 1, 1), x0, dtype=torch.float64)
    inward = -1 if x0 > 0 else 1
    off = wide(torch.tensor([5.0, 7.5, 50.0, 5000.0], dtype=torch.float64)) * std + 1 / 255
    v = torch.full_like(off, -1.0).requires_grad_()
    bits_B = bound(x0_BCHW, x0_BCHW + inward * off, v, bound.process.table[[0] * 4])
    bits_B.sum().backward()
    assert bits_B[0] < 25
    assert bits_B[1:].tolist() == [pytest.approx(12 * math.log2(10), rel=1e-6)] * 3
    assert (v.grad.flatten() != 0).tolist() == [True, False, False, False]


@every_schedule
@pytest.mark.parametrize("steps", [2, 4, 10, 100, 1000])
@pytest.mark.parametrize("v", [-100.0, -30.0, 30.0, 100.0, 200.0])
def test_gradients_of_any_v_are_finite_in_every_row(schedule, steps, v):
    """Rows of i = 0 beside others: none sees the other's formula. Too wide or too narrow, the
    divergence falls as v goes back.
    """
    bound = bound_of(schedule, steps)
    i = torch.tensor([0, 1, steps - 1, 0])
    x0, d = images(1, 4).clamp(-1, 1), images(2, 4)
    v_BCHW = torch.full_like(x0, v).requires_grad_()
    bound(x0, d, v_BCHW, bound.process.table[i]).sum().backward()
    assert v_BCHW.grad.isfinite().all()
    assert (v_BCHW.grad[1:3] * v > 0).all()
    alone = torch.full_like(x0, v).requires_grad_()
    for row in range(4):
        one = slice(row, row + 1)
        bound(x0[one], d[one], alone[one], bound.process.table[i[one]]).sum().backward()
    assert torch.equal(alone.grad, v_BCHW.grad)


@pytest.mark.parametrize("index", [0, 1, 500, 999])
def test_gradients_are_finite_and_reach_the_variance_alone(index):
    bound = bound_of()
    x0 = images(1, 1).clamp(-1, 1)
    d = (x0 + 0.01 * images(2, 1)).requires_grad_()
    v = images(3, 1).requires_grad_()
    bound(x0, d, v, bound.process.table[[index]]).sum().backward()
    assert d.grad is None
    assert v.grad.isfinite().all()
    assert (v.grad != 0).all()


@pytest.mark.parametrize("steps", [100, 1000, 4000])
def test_a_bound_of_other_lengths_is_scaled_to_a_thousand_steps(steps):
    """0.001 of a sum over T steps, of which a sample has one: T/1000 of it, at T = 1000 all."""
    bound = bound_of("cosine", steps)
    i = torch.tensor([steps // 2])
    x0, d, v = images(1, 1), images(2, 1), torch.full((1, *SHAPE), -1.0).double()
    c0, variance = bound.clean_coefficients[i], bound.log_posterior_variances[i].exp()
    bits = (c0 * (x0 - d)).square().mean().item() / variance.item() / 2 / math.log(2)
    got = bound(x0, d, v, bound.process.table[i]).item()
    assert got == pytest.approx(bits * steps / 1000, rel=1e-6)


def test_the_loss_adds_the_bound_unweighted_and_the_network_gives_twice_the_channels():
    process = DdpmSpec(learned_variance=True)
    learned = build_objective(process, [], budget_images=1, global_batch=1)
    plain = build_objective(DdpmSpec(), [], budget_images=1, global_batch=1)
    assert (output_channels(process, 3), output_channels(DdpmSpec(), 3)) == (6, 3)
    x0, eps = images(1, 64).float().tanh(), noise_at(2, 0, 64, SHAPE)
    sigma = noise_levels_at(learned, 0, 0, 64)
    scale = torch.nn.Parameter(torch.tensor([0.5, 0.1]))

    def network(x, c_noise, labels):
        return torch.cat([scale[0] * x, scale[1] * x], 1)

    loss = DiffusionLoss(learned)(learned.denoiser(network), x0, None, sigma, eps, 0)
    mse = DiffusionLoss(plain)(
        plain.denoiser(lambda x, c, labels: network(x, c, labels)[:, :2]), x0, None, sigma, eps, 0
    )
    d, v = learned.denoiser(network).with_rest(x0 + wide(sigma).float() * eps, sigma)
    assert v.shape == x0.shape
    assert torch.allclose(loss, mse + learned.variance(x0, d, v, sigma), rtol=1e-3)
    assert (loss > mse).all()
    both, alone = (torch.autograd.grad(part.sum(), scale)[0] for part in (loss, mse))
    assert both[0].item() == pytest.approx(alone[0].item(), rel=1e-6)
    assert (alone[1].item(), both[1].item() != 0) == (0, True)


def test_bounds_compare_and_cross_processes():
    bound = bound_of()
    bound.log_posterior_variances  # noqa: B018  (fills the cache)
    assert pickle.loads(pickle.dumps(bound)) == bound == bound_of()
    assert bound != bound_of("cosine")
