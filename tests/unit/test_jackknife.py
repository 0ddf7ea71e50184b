"""The jackknife against its golden, and its interval."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from feature_references import reference_of
from fleetstep import rng
from fleetstep.evaluation.jackknife import (
    jackknife,
    jackknife_estimate,
    jackknife_interval,
    mean_estimate,
    student_interval,
)
from fleetstep.evaluation.metrics import Gaussian, frechet, gaussian_distance
from fleetstep.evaluation.moments import Moments, total
from fleetstep.evaluation.reference import Reference
from lcg_inputs import streaming_features, streaming_reference

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def blocks():
    features = streaming_features()
    return [Moments.of(features[start : start + 100]) for start in range(0, 1000, 100)]


@pytest.fixture(scope="module")
def reference():
    return reference_of(streaming_reference())


class TestJackknife:
    def test_golden_leave_one_out(self, reference: Reference, blocks: list[Moments]):
        golden = GOLDEN["jackknife"]
        whole = total(blocks)
        left = [frechet(reference, whole - block) for block in blocks]
        assert left == pytest.approx(golden["leave_one_out"], rel=5e-7)

    def test_golden_estimate(self):
        golden = GOLDEN["jackknife"]
        estimate = jackknife_estimate(golden["fd"], golden["leave_one_out"])
        assert estimate.value == pytest.approx(golden["estimate"], rel=1e-12)
        assert estimate.standard_error == pytest.approx(golden["standard_error"], rel=1e-11)
        assert estimate.raw == golden["fd"]
        assert estimate.blocks == 10

    def test_from_blocks(self, reference: Reference, blocks: list[Moments]):
        golden = GOLDEN["jackknife"]
        estimate = jackknife(blocks, functools.partial(frechet, reference))
        assert estimate.value == pytest.approx(golden["estimate"], rel=1e-6)
        assert estimate.standard_error == pytest.approx(golden["standard_error"], rel=1e-6)

    @pytest.mark.parametrize("confidence", [0.95, 0.999])
    def test_the_interval_is_students(self, confidence: float):
        golden = GOLDEN["jackknife"]
        estimate = jackknife_estimate(golden["fd"], golden["leave_one_out"], confidence=confidence)
        low, high = scipy.stats.t.interval(
            confidence, 9, golden["estimate"], golden["standard_error"]
        )
        assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-10)

    def test_it_removes_the_bias_and_its_interval_covers(self):
        """120 repeats of n=200 in 8 dimensions, where the true distance is known."""
        truth = Gaussian(np.zeros(8), np.eye(8))
        exact = 8 * (1.1 - 1) ** 2
        estimates = [
            jackknife(
                [Moments.of(block) for block in np.split(1.1 * samples, 10)],
                lambda moments: gaussian_distance(truth, Gaussian.of(moments)),
            )
            for samples in rng.draw(0, "jackknife-test", 0, 120, (200, 8))
        ]
        raw_bias = np.mean([estimate.raw for estimate in estimates]) - exact
        bias = np.mean([estimate.value for estimate in estimates]) - exact
        covered = np.mean([estimate.low <= exact <= estimate.high for estimate in estimates])
        assert raw_bias > 0.05
        assert abs(bias) < raw_bias / 8
        assert covered >= 0.88
        spread = np.std([estimate.value for estimate in estimates], ddof=1)
        claimed = np.mean([estimate.standard_error for estimate in estimates])
        assert 0.75 < claimed / spread < 1.3

    def test_nothing_is_clipped(self):
        estimate = jackknife_estimate(0.01, [0.02, 0.021, 0.019, 0.02])
        assert estimate.value < 0
        assert estimate.low < estimate.value < estimate.high

    def test_unequal_blocks_are_refused(self, reference: Reference, blocks: list[Moments]):
        statistic = functools.partial(frechet, reference)
        with pytest.raises(ValueError, match="one size"):
            jackknife([*blocks[:2], blocks[2] + blocks[3]], statistic)
        with pytest.raises(ValueError, match="two or more"):
            jackknife(blocks[:1], statistic)


class TestStudentInterval:
    def test_it_is_scipys(self):
        values = rng.draw(0, "student-test", 0, 7).astype(np.float64)
        interval = student_interval(values.tolist(), 0.9)
        error = scipy.stats.sem(values)
        assert interval.mean == pytest.approx(values.mean(), rel=1e-12)
        assert interval.standard_error == pytest.approx(error, rel=1e-12)
        expected = scipy.stats.t.interval(0.9, 6, values.mean(), error)
        assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-10)

    def test_one_value_has_none(self):
        with pytest.raises(ValueError, match="two or more values, got 1"):
            student_interval([1.0])


class TestMeans:
    def test_the_jackknife_of_a_mean_is_the_mean_and_its_classical_error(self):
        """A law: with blocks of one value each, s / sqrt(n) exactly."""
        values = rng.draw(0, "mean-test", 0, 12).astype(np.float64)
        left = [(values.sum() - value) / 11 for value in values]
        by_leaving_out = jackknife_estimate(float(values.mean()), left)
        assert by_leaving_out.value == pytest.approx(values.mean(), rel=1e-12)
        assert by_leaving_out.standard_error == pytest.approx(
            values.std(ddof=1) / math.sqrt(12), rel=1e-12
        )
        direct = mean_estimate(values.tolist())
        assert direct.pseudo_values == pytest.approx(by_leaving_out.pseudo_values, rel=1e-10)
        assert direct.raw == pytest.approx(direct.value, rel=1e-14)


class TestIntervalAroundThePlainValue:
    def test_only_the_centre_moves(self):
        golden = GOLDEN["jackknife"]
        corrected = jackknife_estimate(golden["fd"], golden["leave_one_out"])
        plain = jackknife_interval(golden["fd"], golden["leave_one_out"])
        assert plain.value == pytest.approx(plain.raw, rel=1e-14)
        assert plain.raw == golden["fd"]
        assert plain.standard_error == pytest.approx(corrected.standard_error, rel=1e-10)
        assert plain.high - plain.low == pytest.approx(corrected.high - corrected.low, rel=1e-10)
