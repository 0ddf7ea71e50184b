"""Moments add: any split of the rows, in any order, gives the same integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fleetstep.evaluation.moments import Float32, Moments, total

rows = arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 5)),
    elements=st.floats(-1000, 1000, width=32),
)


@settings(max_examples=80, deadline=None)
@given(features=rows, seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 7))
def test_no_split_and_no_order_changes_a_bit(features: Float32, seed: int, parts: int):
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(features)
    cuts = np.sort(generator.integers(0, len(features) + 1, parts - 1))
    pieces = [Moments.of(piece) for piece in np.split(shuffled, cuts)]
    generator.shuffle(pieces)
    whole = Moments.of(features)
    assert total(pieces) == whole
    assert total(pieces).digest() == whole.digest()


@settings(max_examples=40, deadline=None)
@given(features=rows, cut=st.integers(0, 40))
def test_taking_out_undoes_adding(features: Float32, cut: int):
    first, second = Moments.of(features[:cut]), Moments.of(features[cut:])
    assert (first + second) - second == first
    assert first + Moments.zero(first.dim) == first


@settings(max_examples=40, deadline=None)
@given(features=rows)
def test_the_covariance_is_positive_semi_definite(features: Float32):
    if len(features) >= 2:
        covariance = Moments.of(features).covariance()
        values = np.linalg.eigvalsh(covariance)
        assert values.min() >= -1e-12 * max(1.0, values.max())
        assert np.array_equal(covariance, covariance.T)


def test_blocks_do_not_show():
    features = np.random.default_rng(0).normal(0, 20, (5000, 4))
    assert Moments.of(features) == total([Moments.of(row[None]) for row in features])
