"""The AMED predictor: its size, its outputs on the golden inputs, and the features it is given."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from amed_problem import fill
from fleetstep.sampling.amed.features import pooled
from fleetstep.sampling.amed.predictor import AmedPredictor
from solver_goldens import reference


def f64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("scales", "size"),
    [((0, 0), "r_only"), ((0.01, 0), "r+dir"), ((0.01, 0.2), "r+dir+time")],
)
def test_the_size_is_the_published_one(scales: tuple[float, float], size: str):
    predictor = AmedPredictor(*scales)
    expected = reference("amed")["predictor"]["num_params"][size]
    assert sum(parameter.numel() for parameter in predictor.parameters()) == expected


def test_golden_outputs():
    golden = reference("amed")["predictor"]
    predictor = fill(AmedPredictor(0.01, 0.2, dtype=torch.float64))
    features_B64 = torch.sin(0.37 * torch.arange(128, dtype=torch.float64)).view(2, 64)
    for row in golden["outputs"]:
        learned = predictor(features_B64, f64([row["t_cur"]] * 2), f64([row["t_next"]] * 2))
        for found, name in zip(learned, ("r", "scale_dir", "scale_time"), strict=True):
            assert found.shape == (2, 1, 1, 1)
            torch.testing.assert_close(found.flatten(), f64(row[name]), rtol=1e-9, atol=1e-9)


def test_an_absent_head_says_one():
    predictor = fill(AmedPredictor(0, 0, dtype=torch.float64))
    r, c, a = predictor(torch.ones(3, 64), f64([5.0] * 3), f64([1.0] * 3))
    assert torch.equal(c, torch.ones(3, 1, 1, 1).double())
    assert torch.equal(a, c)
    assert ((r > 0) & (r < 1)).all()


def test_the_outputs_stay_in_their_ranges():
    predictor = AmedPredictor(0.01, 0.2, dtype=torch.float64)
    features_B64 = 1e6 * torch.randn(64, 64, generator=torch.manual_seed(0), dtype=torch.float64)
    _, c, a = predictor(features_B64, f64([80.0] * 64), f64([0.002] * 64))
    assert 0.99 <= c.min() < 0.9901  # both ends are reached
    assert 1.0099 < c.max() <= 1.01
    assert 0.8 <= a.min()
    assert a.max() <= 1.2


def test_the_start_is_keyed_by_the_seed():
    first, again, other = (AmedPredictor(0.01, 0.2, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(*(p.parameters() for p in (first, again, other)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (a.dim() == 1)  # biases are zero


def test_the_start_has_the_stated_deviations():
    predictor = AmedPredictor(0.01, 0.2)
    deviation = predictor.encode_0.weight.std().item()
    assert deviation == pytest.approx(1 / 8, rel=0.03)  # 8,192 numbers: 0.8 %
    assert predictor.encode_1.weight.std().item() == pytest.approx(1 / math.sqrt(128), rel=0.12)
    bound = math.sqrt(6 / 16)
    assert 0.8 * bound < predictor.embed_time.weight.abs().max() <= bound


def test_without_features_it_sees_zeros():
    predictor = fill(AmedPredictor(0.01, 0.2, dtype=torch.float64))
    expected = predictor(torch.zeros(1, 64), f64([80.0]), f64([24.0]))
    for found, wanted in zip(predictor.predict(None, 80.0, 24.0), expected, strict=True):
        assert torch.equal(found, wanted)


def test_without_features_it_sees_the_mean_of_standardised_ones():
    predictor = fill(AmedPredictor(0.01, 0.2, standardised=True, dtype=torch.float64))
    mean_64 = torch.linspace(-3, 5, 64, dtype=torch.float64)
    predictor.freeze_statistics(mean_64, torch.full((64,), 2.0).double())
    at_the_mean = predictor.predict(mean_64.view(1, 1, 8, 8), 80.0, 24.0)
    for found, wanted in zip(predictor.predict(None, 80.0, 24.0), at_the_mean, strict=True):
        assert torch.equal(found, wanted)


def test_standardised_features_do_not_know_the_scale():
    # A transformer's residual stream has any scale: 1000 f + 7 says what f says.
    plain = fill(AmedPredictor(0.01, 0, standardised=True, dtype=torch.float64))
    scaled = fill(AmedPredictor(0.01, 0, standardised=True, dtype=torch.float64))
    features = torch.randn(5, 3, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    rows_B64 = pooled(features)
    plain.freeze_statistics(rows_B64.mean(0), rows_B64.std(0))
    scaled.freeze_statistics(1000 * rows_B64.mean(0) + 7, 1000 * rows_B64.std(0))
    expected = plain.predict(features, 5.0, 1.0)
    found = scaled.predict(1000 * features + 7, 5.0, 1.0)
    torch.testing.assert_close(found.r, expected.r, rtol=0, atol=1e-12)
    assert expected.r.std() > 0.01


def test_a_feature_that_does_not_vary_is_not_blown_up():
    predictor = AmedPredictor(0.01, 0, standardised=True, dtype=torch.float64)
    std_64 = torch.cat((torch.full((63,), 2.0), torch.tensor([1e-15]))).double()
    predictor.freeze_statistics(torch.zeros(64).double(), std_64)
    assert predictor.feature_std[-1] == 1
    assert (predictor.feature_std[:-1] == 2).all()


def test_features_of_eight_by_eight_are_channel_means():
    features = torch.randn(3, 5, 8, 8, generator=torch.manual_seed(0))
    assert torch.equal(pooled(features), features.mean(1).flatten(1))


@pytest.mark.parametrize("side", [1, 2, 4, 7, 16, 12, 32])
def test_features_of_any_size_keep_a_constant(side: int):
    features = torch.full((2, 3, side, side), 0.625)
    assert torch.equal(pooled(features), torch.full((2, 64), 0.625))


def test_larger_features_are_averaged_and_smaller_ones_interpolated():
    fine = torch.randn(2, 1, 16, 16, generator=torch.manual_seed(0))
    blocks = fine.view(2, 8, 2, 8, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(pooled(fine), blocks)
    # A slope along rows stays one, away from the border.
    coarse = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    row = pooled(coarse).view(8, 8)[3]
    torch.testing.assert_close(row[1:7], torch.arange(6) / 2 + 0.25)
    assert pooled(F.pad(fine, (0, 0, 0, 8))).shape == (2, 64)


def test_no_gradient_reaches_the_features():
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert not pooled(features).requires_grad
