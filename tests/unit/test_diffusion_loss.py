"""Training loss, its keyed draws, and the held-out error."""

import math

import pytest
import torch

from fleetstep.diffusion.loss import (
    DiffusionLoss,
    held_out_errors,
    held_out_grid,
    noise_at,
    noise_levels_at,
)
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.spec import EdmSpec, FdmSpec, QuantileThreshold, SpeedSpec

SHAPE = (1, 4, 4)
SPEED = SpeedSpec(threshold=QuantileThreshold(q=0.7))


def objective(*strategies):
    return build_objective(EdmSpec(), strategies, budget_images=1_000_000, global_batch=512)


def zero(x, c_noise, labels):
    return torch.zeros_like(x)


def linear(x, c_noise, labels):
    return 0.3 * x + 0.1 * c_noise.view(-1, 1, 1, 1)


def test_draws_belong_to_positions_and_not_to_calls():
    built = objective(SPEED)
    whole_sigma, whole_eps = noise_levels_at(built, 7, 100, 96), noise_at(7, 100, 96, SHAPE)
    cuts = [(100, 5), (105, 60), (165, 31)]
    assert torch.equal(whole_sigma, torch.cat([noise_levels_at(built, 7, *cut) for cut in cuts]))
    assert torch.equal(whole_eps, torch.cat([noise_at(7, *cut, SHAPE) for cut in cuts]))
    assert (whole_sigma.dtype, whole_eps.dtype) == (torch.float64, torch.float32)


def test_an_image_meets_other_noise_an_epoch_later():
    epoch = 50
    assert not torch.equal(noise_at(7, 3, 1, SHAPE), noise_at(7, 3 + epoch, 1, SHAPE))
    built = objective()
    assert noise_levels_at(built, 7, 3, 1) != noise_levels_at(built, 7, 3 + epoch, 1)
    assert noise_levels_at(built, 7, 3, 1) != noise_levels_at(built, 8, 3, 1)


def test_strategies_share_the_uniform_behind_a_level():
    """A paired comparison: the same position draws the same quantile under either law."""
    plain, speed = objective(), objective(SPEED)
    u = plain.noise_levels.cdf(noise_levels_at(plain, 7, 0, 64))
    v = speed.noise_levels.cdf(noise_levels_at(speed, 7, 0, 64))
    assert torch.allclose(u, v, atol=1e-9)


@pytest.mark.parametrize("m", [None, 2.0])
@pytest.mark.parametrize("step", [0, 10_000])
def test_a_linear_network_end_to_end(m, step):
    """Loss of one sample, worked out with plain floats from the definitions."""
    x0, eps = (0.25, -1.0, 0.5, 1.0), (1.5, -0.5, 0.0, -2.0)
    sigma, sd = 0.4, 0.5
    t = (sigma - 0.002) / (80 - 0.002)
    b = (m or 0) * (0.1 * t + 19.9 * t**2 / 2)
    total = math.sqrt(sigma**2 + sd**2)
    c_in = math.exp(-b) * (1 + b) if m else 1 / total
    error = 0.0
    for clean, noise in zip(x0, eps, strict=True):
        x = clean + sigma * noise
        f = 0.3 * c_in * x + 0.1 * math.log(sigma) / 4
        d = sd**2 / total**2 * x + sigma * sd / total * f
        error += (d - clean) ** 2
    weight = total**2 / (sigma * sd) ** 2
    if m and step < 200:
        weight = min(weight, 5.0)

    built = objective(FdmSpec(multiplier=m)) if m else objective()
    loss = DiffusionLoss(built)(
        built.denoiser(linear),
        torch.tensor(x0).view(1, 1, 2, 2),
        None,
        torch.tensor([sigma], dtype=torch.float64),
        torch.tensor(eps).view(1, 1, 2, 2),
        step,
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(weight * error, rel=1e-5)


def test_labels_reach_the_network_and_gradients_come_back():
    scale = torch.nn.Parameter(torch.ones(3))

    def network(x, c_noise, labels):
        return scale[labels].view(-1, 1, 1, 1) * x

    built = objective(FdmSpec(), SPEED)
    sigma, eps = noise_levels_at(built, 1, 0, 4), noise_at(1, 0, 4, SHAPE)
    labels = torch.tensor([0, 2, 2, 0])
    loss = DiffusionLoss(built)
    loss(built.denoiser(network), torch.zeros(4, *SHAPE), labels, sigma, eps, 0).sum().backward()
    assert (scale.grad != 0).tolist() == [True, False, True]


def test_the_loss_of_a_sample_does_not_depend_on_its_batch():
    built = objective(FdmSpec(), SPEED)
    sigma, eps = noise_levels_at(built, 1, 0, 6), noise_at(1, 0, 6, SHAPE)
    x0 = noise_at(2, 0, 6, SHAPE)
    loss, denoiser = DiffusionLoss(built), built.denoiser(linear)
    whole = loss(denoiser, x0, None, sigma, eps, 3)
    parts = [
        loss(denoiser, x0[i : i + 2], None, sigma[i : i + 2], eps[i : i + 2], 3) for i in (0, 2, 4)
    ]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-6)


def test_the_held_out_grid_is_made_of_equal_shares():
    grid = held_out_grid(objective(FdmSpec(), SPEED), bins=4)
    z = [-1.1503493803760079, -0.3186393639643752, 0.3186393639643752, 1.1503493803760079]
    expected = [math.exp(-1.2 + 1.2 * value) for value in z]
    assert grid.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("strategies", [(), (FdmSpec(),), (SPEED,)], ids=["edm", "fdm", "speed"])
def test_the_best_linear_denoiser_of_gaussian_data_has_held_out_error_one(strategies):
    """F = 0 is optimal for N(0, sd^2): the weighted error is its posterior variance / c_out^2 = 1.

    At every level, for every strategy: the measure is free of clamps and multipliers.
    """
    built, count = objective(*strategies), 600
    x0 = 0.5 * noise_at(11, 0, count, SHAPE)
    sums = held_out_errors(built.denoiser(zero), x0, None, 0, held_out_grid(built), 5)
    assert sums.dtype == torch.float64
    # 9600 squared normals a level: standard error sqrt(2 / 9600) = 0.0144
    assert (sums / count - 1).abs().max().item() < 4 * 0.0144


def test_held_out_errors_add_over_batches_and_have_their_own_noise():
    built = objective()
    x0 = noise_at(11, 0, 20, SHAPE)
    grid, denoiser = held_out_grid(built), built.denoiser(linear)
    whole = held_out_errors(denoiser, x0, None, 0, grid, 5)
    parts = [
        held_out_errors(denoiser, x0[a:b], None, a, grid, 5) for a, b in ((0, 7), (7, 9), (9, 20))
    ]
    assert torch.allclose(whole, sum(parts), rtol=1e-6)
    elsewhere = held_out_errors(denoiser, x0, None, 20, grid, 5)
    assert not torch.allclose(whole, elsewhere, rtol=1e-3)
    assert not torch.allclose(whole, held_out_errors(denoiser, x0, None, 0, grid, 6), rtol=1e-3)


def test_held_out_errors_leave_no_graph():
    weight = torch.nn.Parameter(torch.ones(()))
    built = objective()
    denoiser = built.denoiser(lambda x, c, labels: weight * x)
    sums = held_out_errors(denoiser, torch.zeros(2, *SHAPE), None, 0, held_out_grid(built), 5)
    assert not sums.requires_grad
