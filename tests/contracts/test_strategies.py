"""Every strategy keeps the strategy contract."""

from typing import ClassVar

import pytest

from contracts.strategy_contract import StrategyContract
from fleetstep.diffusion.spec import FdmSpec, QuantileThreshold, SpeedSpec, WarmupSpec


class TestWarmup(StrategyContract):
    changes: ClassVar = {"clamps"}

    @pytest.fixture
    def spec(self):
        return WarmupSpec(window="5%")


class TestWarmupForEver(StrategyContract):
    changes: ClassVar = {"clamps"}

    @pytest.fixture
    def spec(self):
        return WarmupSpec(release="never")


class TestFdm(StrategyContract):
    changes: ClassVar = {"coefficients", "clamps"}

    @pytest.fixture
    def spec(self):
        return FdmSpec(multiplier=2)


class TestFdmWithoutWarmup(StrategyContract):
    changes: ClassVar = {"coefficients"}

    @pytest.fixture
    def spec(self):
        return FdmSpec(warmup=None, clamp_t=True)


class TestSpeed(StrategyContract):
    changes: ClassVar = {"noise_levels", "multipliers"}

    @pytest.fixture(params=[None, 0.7, 0.02, 0.98])
    def spec(self, request):
        if request.param is None:
            return SpeedSpec()
        return SpeedSpec(k=25, lam=1, threshold=QuantileThreshold(q=request.param))


class TestSpeedSampling(StrategyContract):
    changes: ClassVar = {"noise_levels"}

    @pytest.fixture
    def spec(self):
        return SpeedSpec(weighting=False)


class TestSpeedWeighting(StrategyContract):
    changes: ClassVar = {"multipliers"}

    @pytest.fixture
    def spec(self):
        return SpeedSpec(sampling=False)
