"""Laws of the metrics: what neither rotation, shift, scale nor a choice of samples can change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.metric_contract import sample_of
from feature_references import on_grid, reference_of
from fleetstep.evaluation.displacement import displacement, gelbrich_holds
from fleetstep.evaluation.metrics import Gaussian, frechet, gaussian_distance, standardised
from fleetstep.evaluation.moments import Float64, Moments
from fleetstep.evaluation.score import Sample, score
from fleetstep.evaluation.spec import MetricKind
from lcg_inputs import gauss4

seeds = st.integers(0, 2**32 - 1)


def population(rows: Float64) -> Gaussian:
    """Mean and covariance with divisor n: the Gaussian of exactly these samples."""
    return Gaussian(rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False, bias=True)))


def rotation(dim: int, seed: int) -> Float64:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


@settings(max_examples=40, deadline=None)
@given(seed=seeds, dim=st.integers(1, 8), n=st.integers(2, 60), m=st.integers(2, 60))
def test_the_frechet_distance_turns_and_moves_with_the_features(
    seed: int, dim: int, n: int, m: int
):
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(dim, dim))
    a, b = generator.normal(size=(n, dim)) @ mix, generator.normal(size=(m, dim)) + 0.5
    turned, shift = rotation(dim, seed), generator.normal(size=dim)
    plain = gaussian_distance(population(a), population(b))
    moved = gaussian_distance(
        population(3 * a @ turned + shift), population(3 * b @ turned + shift)
    )
    assert plain > 0
    assert moved == pytest.approx(9 * plain, rel=1e-6, abs=1e-6)
    assert gaussian_distance(population(b), population(a)) == pytest.approx(
        plain, rel=1e-6, abs=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(seed=seeds, dim=st.integers(1, 8), n=st.integers(2, 60))
def test_gaussians_are_no_farther_apart_than_their_samples(seed: int, dim: int, n: int):
    """Gelbrich 1990: W2 of the Gaussians <= W2 of the samples <= rms of any pairing."""
    generator = np.random.default_rng(seed)
    teacher = generator.normal(size=(n, dim)) @ generator.normal(size=(dim, dim))
    cell = teacher + generator.gamma(1.0) * generator.standard_t(3, size=(n, dim))
    moved = displacement(cell, teacher, np.ones(dim))
    distance = gaussian_distance(population(cell), population(teacher))
    assert distance <= moved.rms**2 * (1 + 1e-9) + 1e-9
    real = population(generator.normal(size=(50, dim)))
    gap = gaussian_distance(real, population(cell)), gaussian_distance(real, population(teacher))
    assert gelbrich_holds(*gap, moved)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, dim=st.integers(1, 8), n=st.integers(2, 60))
def test_of_a_translation_all_three_are_equal(seed: int, dim: int, n: int):
    generator = np.random.default_rng(seed)
    teacher, shift = generator.normal(size=(n, dim)), generator.normal(size=dim)
    moved = displacement(teacher + shift, teacher, np.ones(dim))
    distance = gaussian_distance(population(teacher + shift), population(teacher))
    assert distance == pytest.approx(moved.rms**2, rel=1e-5)
    assert moved.high == pytest.approx(moved.low, rel=1e-6)


def test_identical_images_are_perfect():
    rows = on_grid(gauss4((200, 5), 5))
    real = reference_of(rows)
    assert frechet(real, Moments.of(rows)) == pytest.approx(0, abs=1e-12)
    assert standardised(real, Moments.of(rows)) == pytest.approx(0, abs=1e-12)
    kinds: list[MetricKind] = ["precision", "recall", "coverage"]
    found = score(kinds, Sample(tuple(np.split(rows, 10))), real)
    assert [found[kind].raw for kind in kinds] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["precision", "recall", "density", "coverage"])
def test_neighbours_know_neither_axes_nor_origin_nor_scale(kind: MetricKind):
    """Signs, order and powers of two are exact, so the counts are equal, not only close."""
    made, real = on_grid(1.25 * gauss4((120, 5), 6)), on_grid(gauss4((150, 5), 7))
    order, signs = [3, 0, 4, 1, 2], np.array([1, -1, -1, 1, -1], np.float32)

    def other(rows: np.ndarray) -> np.ndarray:
        return 2 * (rows[:, order] * signs) + np.float32(1.5)

    plain = score([kind], Sample(tuple(np.split(made, 10))), reference_of(real))
    turned = score([kind], Sample(tuple(np.split(other(made), 10))), reference_of(other(real)))
    assert turned == plain


def test_precision_and_recall_are_each_other_with_the_sets_exchanged():
    a, b = on_grid(1.25 * gauss4((120, 5), 6)), on_grid(gauss4((120, 5), 7) + 0.5)
    there = score(["precision", "recall"], Sample(tuple(np.split(a, 10))), reference_of(b))
    back = score(["precision", "recall"], Sample(tuple(np.split(b, 10))), reference_of(a))
    assert there["precision"].raw == pytest.approx(back["recall"].raw, rel=1e-12)
    assert there["recall"].raw == pytest.approx(back["precision"].raw, rel=1e-12)
    assert there["precision"].raw != there["recall"].raw


@pytest.mark.parametrize("kind", ["fd", "fd_z", "kid"])
def test_values_turn_with_the_features_through_the_whole_path(kind: MetricKind):
    """Rotated features are rounded anew to 2^-16; `fd_z` and axes do not turn, they exchange."""
    made, real = 1.25 * gauss4((200, 5), 8) + 0.25, gauss4((150, 5), 9)
    turn = np.eye(5)[[3, 0, 4, 1, 2]] if kind == "fd_z" else rotation(5, 1)
    plain = score([kind], sample_of(made), reference_of(on_grid(real)))[kind]
    blocks = tuple(np.split(on_grid(made).astype(np.float64) @ turn, 10))
    turned = score([kind], Sample(blocks), reference_of(on_grid(real).astype(np.float64) @ turn))
    assert turned[kind].value == pytest.approx(plain.value, rel=1e-4)
    assert turned[kind].pseudo_values == pytest.approx(plain.pseudo_values, rel=1e-3)
