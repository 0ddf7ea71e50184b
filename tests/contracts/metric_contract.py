"""What every metric keeps; a new one names itself, writes its definition down, and inherits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from feature_references import on_grid, reference_of
from fleetstep.evaluation.jackknife import Estimate
from fleetstep.evaluation.moments import Float32, Float64, Moments, total
from fleetstep.evaluation.reference import Reference
from fleetstep.evaluation.score import Sample, score
from fleetstep.evaluation.spec import HIGHER_IS_BETTER, MetricKind
from lcg_inputs import gauss4

Metric = Callable[[Reference, Moments], float]
Bool = npt.NDArray[np.bool_]

BLOCKS = 10


class MetricContract:
    """For distances of moments: give `metric` and `golden`, its value for `real` and `made`."""

    golden: float

    @pytest.fixture
    def metric(self) -> Metric:
        raise NotImplementedError

    @pytest.fixture
    def real(self) -> Reference:
        return reference_of(gauss4((300, 12), 71))

    @pytest.fixture
    def made(self) -> Moments:
        return Moments.of(1.25 * gauss4((250, 12), 72) + 0.125)

    def test_identical_features_are_at_zero(self, metric: Metric, real: Reference):
        assert metric(real, Moments.of(real.features())) == pytest.approx(0, abs=1e-9)

    def test_golden_value(self, metric: Metric, real: Reference, made: Moments):
        assert metric(real, made) == pytest.approx(self.golden, rel=1e-9)

    def test_no_split_changes_a_bit(self, metric: Metric, real: Reference):
        features = gauss4((240, 12), 73)
        whole = metric(real, Moments.of(features))
        for parts in (2, 7):
            pieces = [Moments.of(piece) for piece in np.array_split(features, parts)]
            assert metric(real, total(pieces[::-1])) == whole

    def test_more_defect_is_farther(self, metric: Metric, real: Reference):
        features = gauss4((500, 12), 74)
        distances = [metric(real, Moments.of(scale * features)) for scale in (1.0, 1.2, 1.5, 2.0)]
        assert distances == sorted(distances)

    def test_fewer_images_than_features(self, metric: Metric, real: Reference):
        assert metric(real, Moments.of(gauss4((5, 12), 75))) > 0


def softmax(logits_nK: Float64) -> Float32:
    powers_nK = np.exp(logits_nK)
    return (powers_nK / powers_nK.sum(1, keepdims=True)).astype(np.float32)


def sample_of(features_nD: Float64, sharpness: float = 1.0) -> Sample:
    """Images with these features, the logits and the texts of which follow from them."""
    features = on_grid(features_nD)
    texts = on_grid(features_nD + gauss4(features_nD.shape, 78) / sharpness)
    return Sample(
        tuple(np.split(features, BLOCKS)),
        tuple(np.split(softmax(sharpness * features_nD), BLOCKS)),
        tuple(np.split(texts, BLOCKS)),
    )


class ScoreContract:
    """For everything that `score` computes.

    Give `kind`; `definition`, its value for the images of a sample that are kept, as the paper
    has it; and `corrects_bias`, whether the estimate's value is the jackknife's or the plain one.
    """

    kind: MetricKind
    corrects_bias: bool

    def definition(self, sample: Sample, kept_n: Bool, reference: Reference) -> float:
        raise NotImplementedError

    @pytest.fixture
    def real(self) -> Reference:
        return reference_of(on_grid(gauss4((150, 6), 76)))

    @pytest.fixture
    def made(self) -> Sample:
        return sample_of(1.125 * gauss4((120, 6), 77) + 0.25)

    def measure(self, sample: Sample, reference: Reference) -> Estimate:
        return score([self.kind], sample, reference)[self.kind]

    def test_the_plain_value_is_the_definition(self, made: Sample, real: Reference):
        everything = np.ones(made.n, bool)
        expected = self.definition(made, everything, real)
        assert self.measure(made, real).raw == pytest.approx(expected, rel=1e-9)

    def test_leaving_a_block_out_is_exact(self, made: Sample, real: Reference):
        everything = np.ones(made.n, bool)
        raw = self.definition(made, everything, real)
        pseudo_values = []
        for block in range(BLOCKS):
            kept = everything.copy()
            kept[block * 12 : block * 12 + 12] = False
            left = self.definition(made, kept, real)
            pseudo_values.append(BLOCKS * raw - (BLOCKS - 1) * left)
        value = float(np.mean(pseudo_values))
        shift = 0 if self.corrects_bias else raw - value
        estimate = self.measure(made, real)
        assert estimate.value == pytest.approx(value + shift, rel=1e-8)
        expected = np.array(pseudo_values) + shift
        assert estimate.pseudo_values == pytest.approx(expected, rel=1e-7, abs=1e-8)

    def test_the_order_of_images_in_a_block_does_not_matter(self, made: Sample, real: Reference):
        def turned(blocks: tuple[Float32, ...] | None) -> tuple[Float32, ...]:
            assert blocks is not None
            return tuple(block[::-1] for block in blocks)

        other = Sample(turned(made.features), turned(made.probabilities), turned(made.texts))
        there, back = self.measure(made, real), self.measure(other, real)
        assert back.raw == pytest.approx(there.raw, rel=1e-9)
        assert back.pseudo_values == pytest.approx(there.pseudo_values, rel=1e-7, abs=1e-8)

    def test_equal_images_give_equal_bits(self, made: Sample, real: Reference):
        assert self.measure(made, real) == self.measure(made, real)

    def test_it_says_which_direction_is_better(self, real: Reference):
        """Images of the reference's kind against ones whose features are far off and blurred."""
        good = self.measure(sample_of(gauss4((120, 6), 79), sharpness=3.0), real).value
        bad = self.measure(sample_of(0.125 * gauss4((120, 6), 79) + 4.0, sharpness=0.25), real)
        assert (good > bad.value) == (self.kind in HIGHER_IS_BETTER)
