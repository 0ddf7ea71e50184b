"""Kernel distance against libraries' figures, and what holds for its expected value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.evaluation.jackknife import Estimate
from fleetstep.evaluation.kernel_distance import kernel_distance, pair_sum
from fleetstep.evaluation.moments import Float64
from lcg_inputs import gauss4, lcg

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))[
    "kid"
]


def distance(made: Float64, real: Float64, blocks: int = 10) -> Estimate:
    return kernel_distance(np.split(made, blocks), real, pair_sum(real))


@pytest.fixture(scope="module")
def golden_inputs():
    a = gauss4((300, 12), 41) @ (lcg(144, 10).reshape(12, 12) - 0.5) + 0.1
    b = gauss4((250, 12), 42) @ (lcg(144, 11).reshape(12, 12) - 0.5)
    return a, b


class TestGolden:
    def test_of_all_samples(self, golden_inputs: tuple[Float64, Float64]):
        expected = GOLDEN["all_samples_unbiased_no_subsets"]
        assert distance(*golden_inputs).raw == pytest.approx(expected, rel=1e-8)

    def test_the_number_of_blocks_does_not_matter(self, golden_inputs: tuple[Float64, Float64]):
        a, b = golden_inputs
        for blocks in (2, 20):
            estimate = distance(a, b, blocks)
            assert estimate.raw == pytest.approx(
                GOLDEN["all_samples_unbiased_no_subsets"], rel=1e-8
            )
            assert estimate.value == pytest.approx(estimate.raw, rel=1e-12)

    def test_of_one_subset_as_both_libraries_compute_it(
        self, golden_inputs: tuple[Float64, Float64]
    ):
        a, b = golden_inputs
        golden = GOLDEN["first_100_rows_single_subset"]
        for value in golden.values():
            assert distance(a[:100], b[:100]).raw == pytest.approx(value, rel=1e-8)

    def test_of_torch_fidelitys_subsets(self, golden_inputs: tuple[Float64, Float64]):
        """Their 20 subsets of 100, drawn as they draw them, each by our estimate."""
        a, b = golden_inputs
        generator = np.random.RandomState(2020)
        values = []
        for _ in range(20):
            first = a[generator.choice(len(a), 100, replace=False)]
            second = b[generator.choice(len(b), 100, replace=False)]
            values.append(distance(first, second).raw)
        golden = GOLDEN["torch-fidelity rng_seed=2020 subsets=20 size=100"]
        assert np.mean(values) == pytest.approx(golden["kernel_inception_distance_mean"], rel=1e-8)
        assert np.std(values) == pytest.approx(golden["kernel_inception_distance_std"], rel=1e-8)

    def test_of_clean_fids_subsets(self, golden_inputs: tuple[Float64, Float64]):
        a, b = golden_inputs
        generator = np.random.RandomState(0)
        values = []
        for _ in range(20):
            second = b[generator.choice(len(b), 100, replace=False)]
            first = a[generator.choice(len(a), 100, replace=False)]
            values.append(distance(first, second).raw)
        (golden,) = (value for name, value in GOLDEN.items() if name.startswith("clean-fid"))
        assert np.mean(values) == pytest.approx(golden, rel=1e-8)


class TestPieces:
    def test_more_rows_than_a_piece(self):
        """2,500 rows are three pieces; the plain formula says the same."""
        x, y = gauss4((2500, 3), 43), gauss4((1100, 3), 44)
        kernel = (x @ x.T / 3 + 1) ** 3
        within_x = (kernel.sum() - np.trace(kernel)) / (2500 * 2499)
        kernel = (y @ y.T / 3 + 1) ** 3
        within_y = (kernel.sum() - np.trace(kernel)) / (1100 * 1099)
        expected = within_x + within_y - 2 * ((x @ y.T / 3 + 1) ** 3).mean()
        assert distance(x, y, 2).raw == pytest.approx(expected, rel=1e-9)


class TestExpectedValue:
    def test_samples_of_the_reference_are_at_zero_whatever_their_number(self):
        """Unbiased: the mean of repeats is zero within three of its errors.

        Pairs of a sample with itself would add 0.2 and more.
        """
        for n, m in ((20, 50), (50, 20)):
            made = rng.draw(1, f"kid-made-{n}", 0, 400, (n, 4)).astype(np.float64)
            real = rng.draw(1, f"kid-real-{n}", 0, 400, (m, 4)).astype(np.float64)
            values = [distance(a, b).raw for a, b in zip(made, real, strict=True)]
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            assert abs(np.mean(values)) < 3 * error
            assert error < 0.02

    def test_the_interval_covers_the_distance_from_the_reference(self):
        """200 repeats of n=200 whose distance from one reference is known from 40,000 samples."""
        real = rng.draw(2, "kid-reference", 0, 300, (4,)).astype(np.float64)
        many = 1.2 * rng.draw(2, "kid-many", 0, 40_000, (4,)).astype(np.float64)
        exact = np.mean([distance(part, real).raw for part in np.split(many, 20)])
        repeats = [
            distance(1.2 * made, real)
            for made in rng.draw(2, "kid-repeats", 0, 200, (200, 4)).astype(np.float64)
        ]
        covered = np.mean([estimate.low <= exact <= estimate.high for estimate in repeats])
        claimed = np.mean([estimate.standard_error for estimate in repeats])
        spread = np.std([estimate.value for estimate in repeats], ddof=1)
        assert 0.9 <= covered <= 0.99
        assert 0.85 < claimed / spread < 1.25


class TestRefusals:
    def test_no_pairs(self):
        with pytest.raises(ValueError, match="needs pairs"):
            kernel_distance([np.zeros((1, 2))] * 2, np.zeros((5, 2)), 0.0)
        with pytest.raises(ValueError, match="needs pairs"):
            kernel_distance([np.zeros((3, 2))] * 2, np.zeros((1, 2)), 0.0)

    def test_unequal_blocks(self):
        with pytest.raises(ValueError, match="one size"):
            kernel_distance([np.zeros((3, 2)), np.zeros((4, 2))], np.zeros((5, 2)), 0.0)
