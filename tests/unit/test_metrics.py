"""Fréchet distance against goldens and clean-fid, the jackknife, paired differences."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from fleetstep import rng
from fleetstep.evaluation.metrics import (
    Gaussian,
    Reference,
    frechet,
    gaussian_distance,
    jackknife,
    jackknife_estimate,
    standardised,
)
from fleetstep.evaluation.moments import Float64, Moments, total
from lcg_inputs import gauss4, lcg, streaming_features, streaming_reference

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))


def gaussian(rows: Float64):
    return Gaussian(rows.mean(0), np.cov(rows, rowvar=False))


def clean_fid(a: Gaussian, b: Gaussian) -> float:
    from fleetstep.torchvision_door import import_torchvision

    import_torchvision()
    from cleanfid.fid import frechet_distance

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `disp` argument", DeprecationWarning)
        return float(frechet_distance(a.mean_D, a.covariance_DD, b.mean_D, b.covariance_DD))


@pytest.fixture(scope="module")
def eight():
    x = gauss4((200, 8), 11) @ (lcg(64, 3).reshape(8, 8) - 0.5) + 0.1
    y = gauss4((300, 8), 12) @ (lcg(64, 4).reshape(8, 8) - 0.5) - 0.05
    return gaussian(x), gaussian(y)


@pytest.fixture(scope="module")
def blocks():
    features = streaming_features()
    return [Moments.of(features[start : start + 100]) for start in range(0, 1000, 100)]


@pytest.fixture(scope="module")
def reference():
    return Reference("golden", Moments.of(streaming_reference()))


class TestFrechet:
    def test_golden_inputs(self, eight: tuple[Gaussian, Gaussian]):
        golden = GOLDEN["frechet"]["d8"]
        assert eight[0].mean_D == pytest.approx(golden["mu_X"], rel=1e-12)
        assert np.trace(eight[0].covariance_DD) == pytest.approx(golden["trace_X"], rel=1e-12)
        assert np.trace(eight[1].covariance_DD) == pytest.approx(golden["trace_Y"], rel=1e-12)

    def test_golden_of_five_libraries(self, eight: tuple[Gaussian, Gaussian]):
        for value in GOLDEN["frechet"]["d8"]["values"].values():
            assert gaussian_distance(*eight) == pytest.approx(value, rel=1e-8)

    def test_it_is_symmetric(self, eight: tuple[Gaussian, Gaussian]):
        assert gaussian_distance(*eight) == pytest.approx(
            gaussian_distance(*eight[::-1]), rel=1e-12
        )

    def test_golden_identical(self, eight: tuple[Gaussian, Gaussian]):
        assert gaussian_distance(eight[0], eight[0]) == pytest.approx(0, abs=1e-12)

    def test_golden_analytic(self):
        a = Gaussian(np.zeros(4), np.diag([1.0, 4, 9, 16]))
        b = Gaussian(np.array([1.0, 2, 3, 4]) / 10, np.diag([4.0, 9, 16, 25]))
        assert gaussian_distance(a, b) == pytest.approx(
            GOLDEN["frechet"]["analytic_diagonal"]["exact"], rel=1e-12
        )

    def test_it_equals_clean_fid(self, eight: tuple[Gaussian, Gaussian]):
        assert gaussian_distance(*eight) == pytest.approx(clean_fid(*eight), rel=1e-8)

    def test_it_equals_clean_fid_in_64_dimensions(self):
        x = gauss4((500, 64), 21) @ (lcg(4096, 5).reshape(64, 64) - 0.5)
        y = gauss4((400, 64), 22) @ (lcg(4096, 6).reshape(64, 64) - 0.5) + 0.2
        a, b = gaussian(x), gaussian(y)
        assert gaussian_distance(a, b) == pytest.approx(clean_fid(a, b), rel=1e-8)

    @pytest.mark.parametrize(("n", "m"), [(12, 90), (12, 20), (90, 12)])
    def test_fewer_rows_than_features(self, n: int, m: int):
        """Exactly: tr (S_1 S_2)^(1/2) is the nuclear norm of A B^T with S_1 = A^T A, S_2 = B^T B.

        Without the floor on the eigenvalues this is off by 1e-6, matrix square roots by 1e-4.
        """
        x, y = gauss4((n, 64), 31), 1.2 * gauss4((m, 64), 32) + 0.1
        a = (x - x.mean(0)) / np.sqrt(n - 1)
        b = (y - y.mean(0)) / np.sqrt(m - 1)
        nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
        shift = x.mean(0) - y.mean(0)
        exact = shift @ shift + (a**2).sum() + (b**2).sum() - 2 * nuclear
        assert gaussian_distance(gaussian(x), gaussian(y)) == pytest.approx(exact, rel=1e-12)

    def test_golden_from_integers(self, reference: Reference, blocks: list[Moments]):
        whole = Gaussian.of(total(blocks))
        golden = GOLDEN["streaming"]
        value = gaussian_distance(gaussian(streaming_reference()), whole)
        assert value == pytest.approx(golden["fd_from_integers"], rel=1e-10)
        value = frechet(reference, total(blocks))
        # The rounding of both sides to 2^-16 is worth 1e-7, no more.
        assert value == pytest.approx(golden["fd_two_pass_float64"], rel=2e-7)

    def test_the_reference_is_named_by_its_content(self, reference: Reference):
        assert reference.n == 1500
        assert reference.sha256 == Reference("another name", reference.moments).sha256
        assert reference.sha256 != Reference("golden", Moments.of(streaming_features())).sha256


class TestStandardised:
    def test_it_is_the_distance_of_features_over_the_reference_deviation(
        self, reference: Reference, blocks: list[Moments]
    ):
        whole = total(blocks)
        real, made = streaming_reference(), streaming_features().astype(np.float64)
        scale = real.std(0, ddof=1)
        expected = gaussian_distance(gaussian(real / scale), gaussian(made / scale))
        assert standardised(reference, whole) == pytest.approx(expected, rel=1e-5)

    def test_units_of_a_feature_do_not_matter(self):
        real, made = gauss4((400, 3), 1), 1.1 * gauss4((400, 3), 2)
        units = np.array([1.0, 4.0, 0.25])  # powers of two: no other rounding of the features
        plain = standardised(Reference("", Moments.of(real)), Moments.of(made))
        other = standardised(Reference("", Moments.of(real * units)), Moments.of(made * units))
        assert other == pytest.approx(plain, rel=1e-3)

    def test_a_constant_feature_keeps_its_scale(self):
        real, made = gauss4((400, 3), 1), gauss4((400, 3), 1)
        real[:, 2] = made[:, 2] = 0.5
        reference = Reference("", Moments.of(real))
        assert standardised(reference, Moments.of(made)) == pytest.approx(0, abs=1e-9)
        made[:, 2] += 0.25
        assert standardised(reference, Moments.of(made)) == pytest.approx(0.0625, rel=1e-9)


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
