"""Fréchet distance against goldens and clean-fid, plain and standardised."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from feature_references import reference_of
from fleetstep.evaluation.metrics import Gaussian, frechet, gaussian_distance, standardised
from fleetstep.evaluation.moments import Float64, Moments, total
from fleetstep.evaluation.reference import Reference
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
    return reference_of(streaming_reference())


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

    @pytest.mark.parametrize("rows", [200, 20])
    def test_the_root_is_a_triangle_whose_square_is_the_covariance(self, rows: int):
        one = gaussian(gauss4((rows, 64), 33))
        root = one.root_DD
        assert np.array_equal(root, np.tril(root))
        assert root @ root.T == pytest.approx(one.covariance_DD, rel=1e-12, abs=1e-13)


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
        plain = standardised(reference_of(real), Moments.of(made))
        other = standardised(reference_of(real * units), Moments.of(made * units))
        assert other == pytest.approx(plain, rel=1e-3)

    def test_a_constant_feature_keeps_its_scale(self):
        real, made = gauss4((400, 3), 1), gauss4((400, 3), 1)
        real[:, 2] = made[:, 2] = 0.5
        reference = reference_of(real)
        assert standardised(reference, Moments.of(made)) == pytest.approx(0, abs=1e-9)
        made[:, 2] += 0.25
        assert standardised(reference, Moments.of(made)) == pytest.approx(0.0625, rel=1e-9)
