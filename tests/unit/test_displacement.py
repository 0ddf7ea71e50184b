"""Screening: displacement from a teacher, its interval and its paired test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from fleetstep import rng
from fleetstep.evaluation.displacement import (
    Displacement,
    displacement,
    gelbrich_holds,
    worse,
)
from fleetstep.evaluation.moments import Float64
from lcg_inputs import gauss4

ONES = np.ones(5)


def moved(squares: Float64, confidence: float = 0.95) -> Displacement:
    """A displacement along one axis with these squares."""
    rows = np.zeros((len(squares), 5))
    rows[:, 1] = np.sqrt(squares)
    return displacement(rows, np.zeros_like(rows), ONES, confidence=confidence)


class TestDisplacement:
    def test_the_squares_are_in_standard_deviations(self):
        cell, teacher = gauss4((64, 5), 91), gauss4((64, 5), 92)
        scale = np.array([1.0, 2.0, 0.5, 3.0, 0.1])
        found = displacement(cell, teacher, scale)
        squares = [
            float((((a - b) * scale) ** 2).sum()) for a, b in zip(cell, teacher, strict=True)
        ]
        assert found.squares == pytest.approx(squares, rel=1e-12)
        assert found.rms == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-12)

    @pytest.mark.parametrize("confidence", [0.9, 0.99])
    def test_the_interval_is_students_of_the_squares(self, confidence: float):
        squares = np.arange(10.0, 26.0)
        found = moved(squares, confidence)
        low, high = scipy.stats.t.interval(
            confidence, 15, squares.mean(), scipy.stats.sem(squares)
        )
        assert (found.low, found.high) == pytest.approx((low**0.5, high**0.5), rel=1e-10)

    def test_the_lower_end_is_not_below_zero(self):
        found = moved(np.array([0.0, 0.0, 0.0, 100.0]))
        assert found.low == 0
        assert found.rms == 5

    def test_nothing_moved(self):
        rows = gauss4((8, 5), 91)
        found = displacement(rows, rows, ONES)
        assert (found.rms, found.low, found.high) == (0, 0, 0)

    def test_other_latents_are_refused(self):
        with pytest.raises(ValueError, match=r"same latents, got \(8, 5\) and \(7, 5\)"):
            displacement(gauss4((8, 5), 1), gauss4((7, 5), 1), ONES)
        with pytest.raises(ValueError, match="two or more values"):
            displacement(gauss4((1, 5), 1), gauss4((1, 5), 2), ONES)


class TestWorse:
    @pytest.mark.parametrize("confidence", [0.9, 0.999])
    def test_it_is_the_one_sided_paired_test(self, confidence: float):
        noise = rng.draw(4, "worse-test", 0, 200, (2, 24)).astype(np.float64)
        said, expected = [], []
        for first, second in np.abs(noise):
            a, b = first + second, first + 0.5
            said.append(worse(moved(a), moved(b), confidence))
            test = scipy.stats.ttest_rel(a, b, alternative="greater")
            expected.append(test.pvalue < 1 - confidence)
        assert said == expected
        assert 0 < sum(said) < 200

    def test_equal_ones_are_not_worse(self):
        same = moved(np.arange(1.0, 9.0))
        assert not worse(same, same, 0.9)

    def test_it_is_wrong_no_oftener_than_its_confidence_says(self):
        """4,000 pairs with no difference between them."""
        squares = rng.uniform(4, "worse-false", 0, 4000, (2, 64))
        wrong = np.mean([worse(moved(a), moved(b), 0.99) for a, b in squares])
        assert 0.005 < wrong < 0.016

    def test_other_latents_are_refused(self):
        with pytest.raises(ValueError, match="latent by latent, got 3 and 2"):
            worse(moved(np.ones(3)), moved(np.ones(2)), 0.9)


class TestBound:
    def test_the_gap_of_roots_against_the_upper_end(self):
        shift = moved(np.full(9, 4.0))
        assert shift.high == 2
        assert gelbrich_holds(9.0, 1.0, shift)
        assert gelbrich_holds(1.0, 9.0, shift)
        assert not gelbrich_holds(9.1, 1.0, shift)
        assert gelbrich_holds(-0.5, 4.0, shift)
        assert not gelbrich_holds(-0.5, 4.1, shift)

    def test_few_latents_leave_room_for_those_not_seen(self):
        spread = moved(np.arange(1.0, 8.0))
        gap = (spread.rms + spread.high) / 2
        assert spread.rms < gap
        assert gelbrich_holds(0.0, gap**2, spread)
