"""Every metric under its contract, with its definition written down without blocks or pieces.

Goldens of the distances by scipy.linalg.sqrtm of the product, SciPy 1.17.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import scipy.linalg

from contracts.metric_contract import Bool, Metric, MetricContract, ScoreContract
from fleetstep import rng
from fleetstep.evaluation.extrapolation import subset_sizes
from fleetstep.evaluation.metrics import frechet, standardised
from fleetstep.evaluation.moments import Float32, Float64
from fleetstep.evaluation.reference import Reference
from fleetstep.evaluation.score import Sample
from fleetstep.evaluation.spec import MetricKind


class TestFrechet(MetricContract):
    golden = 1.3179538487043319

    @pytest.fixture
    def metric(self) -> Metric:
        return frechet


class TestStandardised(MetricContract):
    golden = 1.3228890187163114

    @pytest.fixture
    def metric(self) -> Metric:
        return standardised


def rows(blocks: tuple[Float32, ...] | None, kept_n: Bool) -> Float64:
    assert blocks is not None
    return np.concatenate(blocks).astype(np.float64)[kept_n]


def frechet_by_root(real: Float64, made: Float64) -> float:
    """Heusel et al. 2017, eq. 6, with a matrix square root."""
    shift = real.mean(0) - made.mean(0)
    a, b = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return float(shift @ shift + np.trace(a + b - 2 * root).real)


class TestFd(ScoreContract):
    kind = "fd"
    corrects_bias = True

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        return frechet_by_root(
            reference.features().astype(np.float64), rows(sample.features, kept_n)
        )


class TestFdZ(ScoreContract):
    kind = "fd_z"
    corrects_bias = True

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        real = reference.features().astype(np.float64)
        scale = real.std(0, ddof=1)
        return frechet_by_root(real / scale, rows(sample.features, kept_n) / scale)


class TestFdInf(ScoreContract):
    kind = "fd_inf"
    corrects_bias = False

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        real = reference.features().astype(np.float64)
        order = rng.permutation(0, "fd_inf", 0, sample.n)
        subsets = [[i for i in order[:size] if kept_n[i]] for size in subset_sizes(sample.n)]
        features = np.concatenate(sample.features).astype(np.float64)
        values = [frechet_by_root(real, features[subset]) for subset in subsets]
        line = np.polyfit([1 / len(subset) for subset in subsets], values, 1)
        return float(line[1])

    def test_the_order_of_images_in_a_block_does_not_matter(self, made: Sample, real: Reference):
        """It does: it chooses the subsets. But by less than the uncertainty."""
        there = self.measure(made, real)
        back = self.measure(Sample(tuple(block[::-1] for block in made.features)), real)
        assert back.value != there.value
        assert abs(back.value - there.value) < 2 * there.standard_error


class TestKid(ScoreContract):
    kind = "kid"
    corrects_bias = False

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        x, y = rows(sample.features, kept_n), reference.features().astype(np.float64)

        def kernel(a: Float64, b: Float64) -> Float64:
            return (a @ b.T / a.shape[1] + 1) ** 3

        def mean_of_pairs(a: Float64) -> float:
            return float(kernel(a, a)[~np.eye(len(a), dtype=bool)].mean())

        return mean_of_pairs(x) + mean_of_pairs(y) - 2 * float(kernel(x, y).mean())


class TestInceptionScore(ScoreContract):
    kind = "is"
    corrects_bias = True

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        p = rows(sample.probabilities, kept_n)
        return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))


def distances(a: Float64, b: Float64) -> Float64:
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def inside_real(sample: Sample, kept_n: Bool, reference: Reference, k: int) -> Bool:
    """[generated, real]; features on a grid tie, so an edge is an edge up to rounding."""
    made, real = rows(sample.features, kept_n), reference.features().astype(np.float64)
    radius = np.sort(distances(real, real), 1)[:, k]
    return distances(made, real) <= radius + 1e-9


class TestPrecision(ScoreContract):
    kind = "precision"
    corrects_bias = True

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        return float(inside_real(sample, kept_n, reference, 3).any(1).mean())


class TestRecall(ScoreContract):
    kind = "recall"
    corrects_bias = False

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        made, real = rows(sample.features, kept_n), reference.features().astype(np.float64)
        radius = np.sort(distances(made, made), 1)[:, 3]
        return float((distances(real, made) <= radius + 1e-9).any(1).mean())


class TestDensity(ScoreContract):
    kind = "density"
    corrects_bias = True

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        return float(inside_real(sample, kept_n, reference, 5).sum(1).mean() / 5)


class TestCoverage(ScoreContract):
    kind = "coverage"
    corrects_bias = False

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        return float(inside_real(sample, kept_n, reference, 5).any(0).mean())


class TestClipScore(ScoreContract):
    kind = "clip_score"
    corrects_bias = True

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        x, y = rows(sample.features, kept_n), rows(sample.texts, kept_n)
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        return float(np.maximum(100 * cosine, 0).mean())


def test_no_metric_is_without_its_contract():
    under_contract = {contract.kind for contract in ScoreContract.__subclasses__()}
    assert under_contract == set(get_args(MetricKind))
