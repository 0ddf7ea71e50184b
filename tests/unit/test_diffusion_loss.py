"""Training loss, its keyed draws, and the held-out error."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from fleetstep import rng
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Stream
from fleetstep.diffusion.loss import (
    DiffusionLoss,
    held_out_errors,
    held_out_levels,
    noise_at,
    noise_levels_at,
)
from fleetstep.diffusion.objective import build_objective
from fleetstep.diffusion.precondition import coefficients_of
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    FdmSpec,
    Prediction,
    QuantileThreshold,
    SpeedSpec,
    VeSpec,
    VpSpec,
    sigma_data_of,
)

SHAPE = (1, 4, 4)
SPEED = SpeedSpec(threshold=QuantileThreshold(q=0.7))


KINDS = (EdmSpec, VpSpec, VeSpec, DdpmSpec)


def objective(*strategies, process=None):
    return build_objective(
        process or EdmSpec(), strategies, budget_images=1_000_000, global_batch=512
    )


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


def test_an_image_meets_other_noise_an_epoch_later(digits_path):
    """Drawn by position, as the training loop does, over two epochs of the digits."""
    stream, built, seed = Stream(DataSpec(path=str(digits_path)), seed=7), objective(), 7
    met = {}
    for first in range(0, 2 * stream.size, 100):
        batch = stream.batch(first, 100)
        sigma = noise_levels_at(built, seed, batch.first, len(batch))
        eps = noise_at(seed, batch.first, len(batch), batch.images.shape[1:])
        for image, level, noise in zip(batch.images, sigma, eps, strict=True):
            met.setdefault(image.tobytes(), []).append((level, noise))
    twice = [places for places in met.values() if len(places) == 2]
    assert len(twice) > 1000
    for (level, noise), (later_level, later_noise) in twice:
        assert level != later_level
        assert not torch.equal(noise, later_noise)
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


def test_held_out_levels_cover_equal_shares_of_the_process_s_law():
    """A level in every bin for every image, spread over the bin, whatever strategies train on."""
    built, bins, count = objective(FdmSpec(), SPEED), 4, 500
    levels = held_out_levels(built, bins, 5, 0, count)
    assert (levels.shape, levels.dtype) == ((count, bins), torch.float64)
    assert torch.equal(levels, held_out_levels(objective(), bins, 5, 0, count))
    # Quartiles of ln sigma ~ N(-1.2, 1.2^2).
    quartile = 0.6744897501960817
    edges = [0, *(math.exp(-1.2 + 1.2 * z) for z in (-quartile, 0, quartile)), math.inf]
    for j in range(bins):
        assert (levels[:, j] > edges[j]).all()
        assert (levels[:, j] < edges[j + 1]).all()
    # 125 images' worth of the highest quarter lie above the 15/16 quantile, where no midpoint is.
    above = (levels[:, -1] > math.exp(-1.2 + 1.2 * 1.5341205443525463)).double().mean().item()
    assert above == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / count))


def test_held_out_levels_belong_to_images_and_not_to_batches():
    built = objective()
    parts = [held_out_levels(built, 8, 5, first, count) for first, count in ((0, 7), (7, 13))]
    assert torch.equal(held_out_levels(built, 8, 5, 0, 20), torch.cat(parts))
    assert not torch.equal(parts[0], held_out_levels(built, 8, 6, 0, 7))


def test_the_largest_uniform_still_gives_a_finite_held_out_level(monkeypatch):
    largest = 1 - 2.0**-53
    monkeypatch.setattr(rng, "uniform", lambda *_: np.full(8, largest))
    assert held_out_levels(objective(), 8, 0, 0, 1).isfinite().all()


def test_held_out_errors_are_edm_weighted():
    """D = c_skip x + c_out (F = 1), worked out with plain floats for one image and two levels."""
    x0, levels, sd = (0.25, -1.0, 0.5, 1.0), (0.3, 4.0), 0.5
    sums = held_out_errors(
        objective(FdmSpec(), SPEED).denoiser(lambda x, c_noise, labels: torch.ones_like(x)),
        objective().own_weight,
        torch.tensor(x0).view(1, 1, 2, 2),
        None,
        6,
        torch.tensor([levels], dtype=torch.float64),
        5,
    )
    noise = rng.draw(5, "held-out-noise", 12, 2, (1, 2, 2)).reshape(2, 4)
    expected = []
    for sigma, eps in zip(levels, noise.tolist(), strict=True):
        total = math.hypot(sigma, sd)
        error = [
            (sd**2 / total**2 * (clean + sigma * e) + sigma * sd / total - clean) ** 2
            for clean, e in zip(x0, eps, strict=True)
        ]
        expected.append(sum(error) / 4 * total**2 / (sigma * sd) ** 2)
    assert sums.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strategies", [(), (FdmSpec(),), (SPEED,)], ids=["edm", "fdm", "speed"])
def test_the_best_linear_denoiser_of_gaussian_data_has_held_out_error_one(strategies):
    """F = 0 is optimal for N(0, sd^2): the weighted error is its posterior variance / c_out^2 = 1.

    At every level, for every strategy: the measure is free of clamps and multipliers.
    """
    built, count = objective(*strategies), 600
    x0 = 0.5 * noise_at(11, 0, count, SHAPE)
    levels = held_out_levels(built, 8, 5, 0, count)
    sums = held_out_errors(built.denoiser(zero), built.own_weight, x0, None, 0, levels, 5)
    assert sums.dtype == torch.float64
    # 9600 squared normals a level: standard error sqrt(2 / 9600) = 0.0144
    assert (sums / count - 1).abs().max().item() < 4 * 0.0144


def test_held_out_errors_add_over_batches_and_have_their_own_noise():
    built = objective()
    x0 = noise_at(11, 0, 20, SHAPE)
    denoiser = built.denoiser(linear)

    def errors(first, end, seed=5, noise_of=0):
        levels = held_out_levels(built, 8, 5, first, end - first)
        rows, index = x0[first:end], noise_of + first
        return held_out_errors(denoiser, built.own_weight, rows, None, index, levels, seed)

    whole = errors(0, 20)
    assert torch.allclose(whole, sum(errors(*cut) for cut in ((0, 7), (7, 9), (9, 20))), rtol=1e-6)
    assert not torch.allclose(whole, errors(0, 20, noise_of=20), rtol=1e-3)
    assert not torch.allclose(whole, errors(0, 20, seed=6), rtol=1e-3)


def test_held_out_errors_leave_no_graph():
    weight = torch.nn.Parameter(torch.ones(()))
    built = objective()
    denoiser = built.denoiser(lambda x, c, labels: weight * x)
    levels = held_out_levels(built, 8, 5, 0, 2)
    sums = held_out_errors(denoiser, built.own_weight, torch.zeros(2, *SHAPE), None, 0, levels, 5)
    assert not sums.requires_grad


def draws(built, count=256):
    """Noise levels, clean images and noise of `count` stream positions."""
    x0 = noise_at(2, 0, count, SHAPE).tanh()
    return noise_levels_at(built, 1, 0, count), x0, noise_at(1, 0, count, SHAPE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_the_loss_is_the_plain_error_of_what_the_network_predicts(kind, prediction):
    """||F - target||^2 summed over an image (EDM's reduction), or its mean (DDPM's)."""
    process = kind(prediction=prediction)
    built = objective(process=process)
    sigma, x0, eps = draws(built)
    rows = sigma.view(-1, 1, 1, 1)
    sd, s = sigma_data_of(process), 1 / (1 + rows**2).sqrt()
    total = (rows**2 + sd**2).sqrt()
    target = {
        "eps": -eps if kind is VeSpec else eps,
        "x0": x0,
        "v": s * eps - s * rows * x0,
        "F": (x0 - sd**2 / total**2 * (x0 + rows * eps)) * total / (rows * sd),
    }[prediction]
    answer = (0.6 * target + 0.3).float()
    loss = DiffusionLoss(built)(built.denoiser(lambda *_: answer), x0, None, sigma, eps, 0)
    square = (answer - target.double()).square()
    expected = square.mean((1, 2, 3)) if kind is DdpmSpec else square.sum((1, 2, 3))
    assert torch.allclose(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_errors_are_the_same_for_the_same_denoiser_of_any_prediction(kind):
    """D = 0.4 x, said as eps, x0, v and F: one error, under the process's own weight."""
    sums = []
    for prediction in get_args(Prediction):
        process = kind(prediction=prediction)
        built = objective(process=process)
        levels = held_out_levels(built, 4, 5, 0, 6)
        x0 = noise_at(11, 0, 6, SHAPE)
        calls = iter(levels.unbind(1))

        def network(scaled, c_noise, labels, calls=calls, process=process):
            c_skip, c_out, c_in, _ = coefficients_of(process)(next(calls))
            factor = (0.4 - c_skip) / c_out / c_in
            return factor.view(-1, 1, 1, 1) * scaled.double()

        sums.append(
            held_out_errors(built.denoiser(network), built.own_weight, x0, None, 0, levels, 5)
        )
    for other in sums[1:]:
        assert torch.allclose(sums[0], other, rtol=1e-6, atol=0)
    noise = torch.from_numpy(rng.draw(5, "held-out-noise", 0, 24, SHAPE)).view(6, 4, *SHAPE)
    rows = levels.view(6, 4, 1, 1, 1)
    error = (0.4 * (x0.unsqueeze(1) + rows * noise) - x0.unsqueeze(1)).square().mean((2, 3, 4))
    is_edm, sd = kind is EdmSpec, 0.5
    weight = (levels**2 + sd**2) / (levels * sd) ** 2 if is_edm else levels**-2
    assert torch.allclose(sums[0], (weight * error).sum(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lowest_and_highest_level_cost_no_digits(kind):
    """A linear network at both ends of the process's range, against float64 throughout."""
    built = objective(process=kind())
    low, high = built.process.sigma_min, built.process.sigma_max
    sigma = torch.tensor([low, high], dtype=torch.float64)
    x0, eps = noise_at(2, 0, 2, SHAPE).tanh(), noise_at(1, 0, 2, SHAPE)
    answer = noise_at(3, 0, 2, SHAPE)
    loss = DiffusionLoss(built)(built.denoiser(lambda *_: answer), x0, None, sigma, eps, 0)
    c_skip, c_out, _, _ = (c.view(-1, 1, 1, 1) for c in built.coefficients(sigma))
    x = x0.double() + sigma.view(-1, 1, 1, 1) * eps.double()
    square = ((c_skip * x + c_out * answer.double() - x0) / c_out).square()
    expected = square.mean((1, 2, 3)) if kind is DdpmSpec else square.sum((1, 2, 3))
    assert torch.allclose(loss.double(), expected, rtol=1e-6, atol=0)
