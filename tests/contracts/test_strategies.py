"""Every strategy keeps the strategy contract: warm-up, FDM and SpeeD."""

from typing import ClassVar

import pytest

from contracts.strategy_contract import StrategyContract
from fleetstep.diffusion.spec import (
    DdpmSpec,
    EdmSpec,
    FdmSpec,
    MagnitudeThreshold,
    QuantileThreshold,
    SlopeThreshold,
    SpeedSpec,
    StepsThreshold,
    VeSpec,
    VpSpec,
    WarmupSpec,
)

CONTINUOUS = (EdmSpec(), VpSpec(), VeSpec())
QUANTILE = QuantileThreshold(q=0.7)


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
    processes: ClassVar = CONTINUOUS

    @pytest.fixture
    def spec(self):
        return FdmSpec(multiplier=2)


class TestFdmWithoutWarmup(StrategyContract):
    changes: ClassVar = {"coefficients"}
    processes: ClassVar = CONTINUOUS

    @pytest.fixture
    def spec(self):
        return FdmSpec(warmup=None, clamp_t=True)


class TestFdmInProcessTime(StrategyContract):
    changes: ClassVar = {"coefficients"}
    processes: ClassVar = (VpSpec(),)

    @pytest.fixture
    def spec(self):
        return FdmSpec(warmup=None, time_map="process_time")


class TestSpeed(StrategyContract):
    changes: ClassVar = {"noise_levels", "multipliers"}

    @pytest.fixture(params=[None, 0.7, 0.02, 0.98])
    def spec(self, request):
        if request.param is None:
            return SpeedSpec()
        return SpeedSpec(k=25, lam=1, threshold=QuantileThreshold(q=request.param))


class TestSpeedByItsOtherMeasures(StrategyContract):
    changes: ClassVar = {"noise_levels", "multipliers"}

    @pytest.fixture(params=["quantile", "sigma_dot"])
    def spec(self, request):
        return SpeedSpec(
            threshold=QUANTILE, change=request.param, tail_weight=1, normalize="mean_one"
        )


class TestSpeedInSteps(StrategyContract):
    changes: ClassVar = {"noise_levels", "multipliers"}
    processes: ClassVar = (DdpmSpec(),)

    @pytest.fixture(
        params=[
            SpeedSpec(threshold=StepsThreshold()),
            SpeedSpec(threshold=SlopeThreshold(), change="finite_difference"),
            SpeedSpec(threshold=MagnitudeThreshold(rule="closed_form"), change="closed_form"),
        ],
        ids=["steps", "slope", "closed form"],
    )
    def spec(self, request):
        return request.param


class TestSpeedAsReleased(StrategyContract):
    changes: ClassVar = {"noise_levels", "multipliers", "coupling"}
    processes: ClassVar = (DdpmSpec(),)

    @pytest.fixture
    def spec(self):
        return SpeedSpec(
            threshold=StepsThreshold(),
            change="finite_difference",
            reflected_pairs=True,
            tail_weight=1,
        )


class TestSpeedReflected(StrategyContract):
    changes: ClassVar = {"coupling"}

    @pytest.fixture(params=[0.002, 0.642, 0.9999])
    def spec(self, request):
        return SpeedSpec(
            sampling=False, weighting=False, reflected_pairs=True, reflect_at=request.param
        )


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
