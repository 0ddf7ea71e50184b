"""FID-infinity: the line in 1/n, the subsets, and what is left of the bias."""

from __future__ import annotations

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.evaluation import extrapolation
from fleetstep.evaluation.extrapolation import at_infinity, frechet_at_infinity, subset_sizes
from fleetstep.evaluation.jackknife import jackknife
from fleetstep.evaluation.metrics import Gaussian, gaussian_distance
from fleetstep.evaluation.moments import Moments
from lcg_inputs import gauss4

TRUTH = Gaussian(np.zeros(8), np.eye(8))


class TestLine:
    def test_a_bias_in_one_over_n_is_removed_exactly(self):
        sizes = subset_sizes(10_000)
        assert at_infinity(sizes, [3.25 + 700 / size for size in sizes]) == pytest.approx(3.25)

    def test_it_is_the_least_squares_line(self):
        sizes = np.array([100, 150, 300, 600])
        values = np.array([5.0, 3.5, 3.0, 2.0])
        expected = np.polyfit(1 / sizes, values, 1)[1]
        assert at_infinity(sizes, values) == pytest.approx(expected, rel=1e-12)

    def test_fifteen_sizes_from_a_tenth_to_all(self):
        assert subset_sizes(50_000)[:2] == [5000, 8214]
        assert (len(subset_sizes(50_000)), subset_sizes(50_000)[-1]) == (15, 50_000)


class TestEstimate:
    def test_a_statistic_that_is_linear_in_one_over_n(self, monkeypatch: pytest.MonkeyPatch):
        """The whole path with a fake distance 2 + 50 / n: all pseudo-values are 2."""
        monkeypatch.setattr(extrapolation, "_distance", lambda _, moments: 2 + 50 / moments.n)
        estimate = frechet_at_infinity(TRUTH, np.split(gauss4((400, 8), 1), 10))
        assert estimate.raw == pytest.approx(2, rel=1e-12)
        assert estimate.pseudo_values == pytest.approx([2.0] * 10, rel=1e-10)

    def test_from_plain_covariances_of_the_same_subsets(self):
        rows = np.rint(1.1 * gauss4((300, 8), 2) * 256) / 256
        order = rng.permutation(0, "fd_inf", 0, 300)

        def extrapolated(kept: set[int]) -> float:
            sizes, values = [], []
            for size in subset_sizes(300):
                part = rows[[i for i in order[:size] if i in kept]]
                sizes.append(len(part))
                other = Gaussian(part.mean(0), np.cov(part, rowvar=False))
                values.append(gaussian_distance(TRUTH, other))
            return float(np.polyfit(1 / np.array(sizes), values, 1)[1])

        estimate = frechet_at_infinity(TRUTH, np.split(rows, 10))
        whole = extrapolated(set(range(300)))
        assert estimate.raw == pytest.approx(whole, rel=1e-9)
        assert estimate.value == pytest.approx(whole, rel=1e-9)
        left = [extrapolated(set(range(300)) - set(range(30 * b, 30 * b + 30))) for b in (0, 4)]
        gap = estimate.pseudo_values[4] - estimate.pseudo_values[0]
        assert gap == pytest.approx(9 * (left[0] - left[1]), rel=1e-8)

    def test_equal_features_give_equal_bits(self):
        blocks = np.split(gauss4((300, 8), 2), 10)
        assert frechet_at_infinity(TRUTH, blocks) == frechet_at_infinity(TRUTH, blocks)

    def test_it_removes_the_bias_covers_and_scatters_more_than_the_jackknife(self):
        """120 repeats of n=500, whose true distance is known."""
        exact = 8 * (1.1 - 1) ** 2
        line, plain = [], []
        for made in rng.draw(0, "fd-inf-test", 0, 120, (500, 8)):
            blocks = np.split(1.1 * made, 10)
            line.append(frechet_at_infinity(TRUTH, blocks))
            moments = [Moments.of(block) for block in blocks]
            plain.append(
                jackknife(moments, lambda part: gaussian_distance(TRUTH, Gaussian.of(part)))
            )
        raw_bias = np.mean([estimate.raw for estimate in plain]) - exact
        bias = np.mean([estimate.value for estimate in line]) - exact
        spread = np.std([estimate.value for estimate in line], ddof=1)
        covered = np.mean([estimate.low <= exact <= estimate.high for estimate in line])
        claimed = np.mean([estimate.standard_error for estimate in line])
        assert raw_bias > 0.04
        assert abs(bias) < raw_bias / 5
        assert covered >= 0.9
        assert 0.9 < claimed / spread < 1.5
        assert spread > 1.2 * np.std([estimate.value for estimate in plain], ddof=1)
