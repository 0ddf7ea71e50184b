"""What every distance between moments of features keeps; a new one names itself and inherits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fleetstep.evaluation.metrics import Reference
from fleetstep.evaluation.moments import Moments, total
from lcg_inputs import gauss4

Metric = Callable[[Reference, Moments], float]


class MetricContract:
    """Give `metric` and `golden`, its value for `real` against `made`."""

    golden: float

    @pytest.fixture
    def metric(self) -> Metric:
        raise NotImplementedError

    @pytest.fixture
    def real(self) -> Reference:
        return Reference("real", Moments.of(gauss4((300, 12), 71)))

    @pytest.fixture
    def made(self) -> Moments:
        return Moments.of(1.25 * gauss4((250, 12), 72) + 0.125)

    def test_identical_features_are_at_zero(self, metric: Metric, real: Reference):
        assert metric(real, real.moments) == pytest.approx(0, abs=1e-9)

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
