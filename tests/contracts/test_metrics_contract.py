"""The distances under their contract; goldens by scipy.linalg.sqrtm of the product, SciPy 1.17."""

from __future__ import annotations

import pytest

from contracts.metric_contract import Metric, MetricContract
from fleetstep.evaluation.metrics import frechet, standardised


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
