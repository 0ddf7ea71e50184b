"""The random-number format: golden vectors, addressability, and the distribution it promises."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from fleetstep import rng

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rng.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["purpose"])
def test_the_format_is_pinned_bit_by_bit(case):
    address = (case["seed"], case["purpose"], case["first"], case["count"], tuple(case["shape"]))
    words = [format(word, "016x") for word in rng.bits(*address).reshape(-1).tolist()]
    normals = rng.draw(*address).reshape(-1)
    assert GOLDEN["format"] == rng.FORMAT
    assert GOLDEN["block"] == rng.BLOCK
    assert words == case["bits"]
    assert [float(z).hex() for z in normals] == case["normals"]


@given(first=st.integers(0, 200), count=st.integers(0, 100), cut=st.integers(0, 100))
def test_any_split_of_a_range_gives_the_same_numbers(first, count, cut):
    cut = min(cut, count)
    whole = rng.draw(3, "noise", first, count, (2, 3))
    parts = [
        rng.draw(3, "noise", first, cut, (2, 3)),
        rng.draw(3, "noise", first + cut, count - cut, (2, 3)),
    ]
    assert np.array_equal(whole, np.concatenate(parts))


def test_seed_purpose_and_position_all_matter():
    base = rng.draw(0, "noise", 0, 4, (8,))
    assert not np.array_equal(base, rng.draw(1, "noise", 0, 4, (8,)))
    assert not np.array_equal(base, rng.draw(0, "latent", 0, 4, (8,)))
    assert not np.array_equal(base, rng.draw(0, "noise", 4, 4, (8,)))
    assert len(np.unique(rng.bits(0, "noise", 0, 500, (16,)))) == 8000


def test_the_normal_transform_equals_the_inverse_cdf():
    u = np.concatenate(
        [rng.uniform(0, "u", 0, 50_000), [2.0**-54, 1e-300, 1e-10, 0.075, 0.0750001, 1 - 2.0**-53]]
    )
    np.testing.assert_allclose(rng.normal_icdf(u), ndtri(u), rtol=4e-15, atol=1e-300)


def test_the_transform_does_not_depend_on_the_array_length_or_alignment():
    # Vector libraries treat loop remainders differently from full registers; exactly rounded
    # operations cannot.
    u = rng.uniform(1, "u", 0, 999)
    whole = rng.normal_icdf(u)
    single = np.concatenate([rng.normal_icdf(u[i : i + 1]) for i in range(u.size)])
    assert np.array_equal(whole, single)


def test_draws_are_standard_normal_and_uncorrelated():
    z = rng.draw(11, "noise", 0, 4096, (32,)).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(z.reshape(-1), "norm").pvalue > 1e-3
    neighbours = np.corrcoef(z[:-1].reshape(-1), z[1:].reshape(-1))[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(n)


def test_uniforms_are_strictly_inside_the_unit_interval():
    u = rng.uniform(0, "noise-level", 0, 100_000)
    assert 0 < u.min()
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_the_extreme_words_stay_inside_the_unit_interval_and_finite():
    extremes = rng._uniform_of(np.array([0, 2**64 - 1], np.uint64))
    assert 0 < extremes[0]
    assert extremes[1] < 1
    assert np.isfinite(rng.normal_icdf(extremes)).all()


def test_a_permutation_is_one_and_differs_by_index():
    first, second = rng.permutation(0, "order", 0, 1000), rng.permutation(0, "order", 1, 1000)
    assert sorted(first) == list(range(1000))
    assert not np.array_equal(first, second)


def test_another_process_with_another_hash_seed_draws_the_same():
    code = "from fleetstep import rng; print(rng.draw(5, 'noise', 7, 2, (2,)).tobytes().hex())"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "123", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == rng.draw(5, "noise", 7, 2, (2,)).tobytes().hex()


def test_negative_addresses_are_refused():
    with pytest.raises(ValueError, match="positions start at 0"):
        rng.draw(0, "noise", -1, 2)
