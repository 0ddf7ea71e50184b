"""Dynamic thresholding: the definition, its limits, and where a solver applies it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contracts.exact_denoisers import PointMass
from fleetstep.sampling.spec import (
    DpmppSpec,
    EulerSpec,
    HeunSpec,
    IpndmSpec,
    SolverSpec,
    ThresholdingSpec,
)
from fleetstep.sampling.thresholding import thresholded
from fleetstep.sampling.trajectory import sample

SHAPE = (6, 3, 8, 8)


def wide(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Images of standard deviation 0.1 to 3."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x * torch.tensor([0.1, 0.3, 0.5, 1.0, 2.0, 3.0])[:, None, None, None]).to(dtype)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("maximum", [1.0, 0.5])
def test_the_definition(quantile: float, maximum: float):
    x = wide()
    result = thresholded(x, ThresholdingSpec(quantile=quantile, maximum=maximum))
    for image, expected in zip(result.numpy(), x.numpy(), strict=True):
        q = max(np.quantile(np.abs(expected), quantile), maximum)
        np.testing.assert_allclose(image, np.clip(expected, -q, q) * maximum / q, rtol=1e-12)


def test_an_image_within_the_range_stays_as_it_is():
    x = wide()
    x = x / x.abs().amax()
    assert torch.equal(thresholded(x, ThresholdingSpec()), x)
    assert torch.equal(thresholded(x, ThresholdingSpec(maximum=2)), x)


def test_no_value_leaves_the_range_and_few_touch_its_end():
    spec = ThresholdingSpec(quantile=0.95)
    result = thresholded(20 * wide(), spec)
    assert result.abs().max() == 1
    clipped = (result.abs() == 1).flatten(1).double().mean(dim=1)
    torch.testing.assert_close(clipped, torch.full_like(clipped, 0.05), atol=1 / 192, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_does_not_depend_on_its_batch(dtype: torch.dtype):
    x = wide(dtype)
    whole = thresholded(x, ThresholdingSpec())
    assert whole.dtype == dtype
    assert whole.shape == x.shape
    for begin, end in [(0, 1), (1, 4), (5, 6)]:
        assert torch.equal(thresholded(x[begin:end], ThresholdingSpec()), whole[begin:end])


def test_an_image_of_more_values_than_torch_takes_a_quantile_of():
    # torch.quantile stops at 2^24 values, and float32 counts no further.
    side = 2400
    x = torch.arange(3 * side * side, dtype=torch.float32).reshape(1, 3, side, side) + 1.0
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x.flatten(), 0.995)
    result = thresholded(x, ThresholdingSpec())
    rank = 0.995 * (x.numel() - 1)
    below = x.flatten()[int(rank)].item()
    assert (result == 1).sum().item() == pytest.approx(0.005 * x.numel(), abs=2)
    assert result.flatten()[1000].item() == pytest.approx(1001 / below, rel=1e-6)


def test_gradients_pass():
    x = wide()[3:].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: thresholded(x, ThresholdingSpec(quantile=0.9)), (x,))


@pytest.mark.parametrize("solver", [EulerSpec, HeunSpec, IpndmSpec, DpmppSpec])
def test_every_evaluation_of_a_solver_is_thresholded(solver: type[SolverSpec]):
    # The network says mu everywhere: a solver that sees the thresholded image goes there instead.
    mu = torch.tensor([0.5, -4.0, 8.0], dtype=torch.float64)[:, None, None]
    spec = ThresholdingSpec(quantile=1.0)
    seen = mu / 8
    levels = torch.tensor([80.0, 5.0, 0.4, 0.002], dtype=torch.float64)
    z = torch.randn((4, 3, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = sample(PointMass(mu), solver(thresholding=spec), levels, seen + 80 * z, trace=True)
    assert result.trace is not None
    for x, sigma in zip(result.trace, result.sigmas, strict=True):
        torch.testing.assert_close(x, seen + sigma * z, rtol=0, atol=1e-11)
    plain = sample(PointMass(mu), solver(), levels, mu + 80 * z).x_BCHW
    torch.testing.assert_close(plain, mu + result.sigmas[-1] * z, rtol=0, atol=1e-11)


def test_the_last_denoising_is_thresholded():
    mu = torch.tensor([0.5, -4.0, 8.0], dtype=torch.float64)[:, None, None]
    levels = torch.tensor([80.0, 5.0, 0.4], dtype=torch.float64)
    solver = EulerSpec(thresholding=ThresholdingSpec(quantile=1.0), denoise_to_zero=True)
    denoiser = PointMass(mu)
    result = sample(denoiser, solver, levels, torch.zeros(2, 3, 1, 1, dtype=torch.float64))
    assert torch.equal(result.x_BCHW, (mu / 8).expand(2, 3, 1, 1))
    assert result.nfe == denoiser.nfe == 3


def test_an_infinite_value_is_not_hidden_by_clipping():
    x_BCHW = torch.zeros(2, 1, 4, 4)
    x_BCHW[1, 0, 2, 2] = torch.inf
    found = thresholded(x_BCHW, ThresholdingSpec(quantile=0.5))
    assert torch.equal(found[0], x_BCHW[0])
    assert not torch.isfinite(found[1]).any()
