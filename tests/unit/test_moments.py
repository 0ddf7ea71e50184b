"""Exact integer moments: golden digest, exactness where float64 would round, files."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fleetstep.errors import DataError, ExtractorError
from fleetstep.evaluation.moments import FRACTION_BITS, Float32, Moments, load_with_facts, total
from lcg_inputs import gauss4, lcg, streaming_features

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))


def integers(features: Float32):
    """The definition, in Python's unbounded integers."""
    k = [[round(Fraction(float(f)) * 2**FRACTION_BITS) for f in row] for row in features]
    columns = list(zip(*k, strict=True))
    sums = [sum(column) for column in columns]
    outer = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in columns] for x in columns]
    return sums, outer


def test_the_inputs_follow_the_golden_rule():
    assert lcg(4, 1).tolist() == GOLDEN["lcg_check"]["lcg(4,1)"]
    assert gauss4((3,), 7) == pytest.approx(GOLDEN["lcg_check"]["gauss4((3,),7)"], rel=1e-14)


def test_golden_integers_and_digest():
    golden = GOLDEN["streaming"]
    moments = Moments.of(streaming_features())
    assert moments.n == golden["n"]
    assert moments.s_D.tolist() == golden["sum"]
    assert int(np.trace(moments.s_DD)) == golden["outer_trace"]
    assert moments.digest() == golden["sha256_int64_le(n,sum,outer)"]


@pytest.mark.parametrize("size", [0.01, 30.0, 700.0])
def test_sums_are_exact_at_every_size_of_features(size: float):
    """700 * 2^16 squared is 2^51: blocks of more than a few rows would lose bits in float64."""
    features = (size * gauss4((300, 3), 5) / 4).astype(np.float32)
    sums, outer = integers(features)
    moments = Moments.of(features)
    assert moments.s_D.tolist() == sums
    assert moments.s_DD.tolist() == outer


def test_a_wide_matrix_product_stays_below_the_exact_limit():
    """All rows at the limit of a block: 2,048 equal products of (2^21 - 1)^2."""
    k = 2**21 - 1
    features = np.full((4096, 2), k / 2**FRACTION_BITS)
    assert Moments.of(features).s_DD.tolist() == [[4096 * k * k] * 2] * 2


def test_covariance_is_that_of_the_rounded_features():
    features = streaming_features()
    rounded = np.rint(features.astype(np.float64) * 2**FRACTION_BITS) / 2**FRACTION_BITS
    moments = Moments.of(features)
    assert moments.mean() == pytest.approx(rounded.mean(0), rel=1e-13)
    assert moments.covariance() == pytest.approx(
        np.cov(rounded, rowvar=False), rel=1e-12, abs=1e-14
    )


def test_a_small_spread_far_from_zero_does_not_cancel():
    """Mean 300, deviation 1e-4: the usual s_DD/n - mean^2 has no digit left in float64."""
    k = np.array([[300 * 2**16 + step, 300 * 2**16 - 2 * step] for step in (-7, -2, 0, 3, 5, 2)])
    features = k / 2.0**FRACTION_BITS
    exact = np.cov((k - 300 * 2**16) / 2.0**FRACTION_BITS, rowvar=False)
    many = total([Moments.of(features)] * 300)
    assert Moments.of(features).covariance() == pytest.approx(exact, rel=1e-12)
    # 300 copies: the same scatter per row, another divisor.
    assert many.covariance() == pytest.approx(exact * 5 / 6 * 1800 / 1799, rel=1e-12)


def test_the_covariance_needs_two_rows():
    with pytest.raises(ValueError, match="at least two rows"):
        Moments.of(np.ones((1, 4), np.float32)).covariance()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1449.0])
def test_features_that_cannot_be_summed_exactly_are_refused(bad: float):
    features = np.zeros((5, 3), np.float32)
    features[2, 1] = bad
    with pytest.raises(ExtractorError, match="finite and smaller than 1448"):
        Moments.of(features)


def test_a_sum_beyond_64_bits_is_an_error():
    half = Moments(1, np.array([0]), np.array([[2**62]]))
    with pytest.raises(OverflowError, match="64 bits"):
        half + half


def test_only_a_part_can_be_taken_out():
    few, many = Moments.of(np.ones((2, 3))), Moments.of(np.full((5, 3), 0.5))
    with pytest.raises(ValueError, match="not a part"):
        few - many
    with pytest.raises(ValueError, match="not a part"):
        many - Moments.of(np.full((3, 3), 7.0))
    with pytest.raises(ValueError, match="cannot be combined"):
        few + Moments.zero(4)


def test_file_round_trip(tmp_path: Path):
    moments = Moments.of(streaming_features())
    moments.save(tmp_path / "m.safetensors", {"extractor": "x@1234"})
    again, facts = load_with_facts(tmp_path / "m.safetensors")
    assert again == moments == Moments.load(tmp_path / "m.safetensors")
    assert facts == {"extractor": "x@1234"}
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("position", [20, -1, -200])
def test_a_damaged_file_is_refused(tmp_path: Path, position: int):
    path = tmp_path / "m.safetensors"
    Moments.of(streaming_features()).save(path)
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|does not hold moments"):
        Moments.load(path)


def test_files_that_are_not_moments_are_refused(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(DataError, match="no moments at"):
        Moments.load(path)
    Moments.of(streaming_features()).save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="does not hold moments"):
        Moments.load(path)
    path.write_bytes(b"{}")
    with pytest.raises(DataError, match="does not hold moments"):
        Moments.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "m.safetensors"
    old = Moments.of(np.ones((3, 2)))
    old.save(path)

    def full(_: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Moments.of(np.zeros((3, 2))).save(path)
    assert Moments.load(path) == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]
