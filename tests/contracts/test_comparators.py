"""Every comparator keeps the strategy contract."""

from typing import ClassVar

import pytest

from contracts.strategy_contract import StrategyContract
from fleetstep.diffusion.spec import (
    AntUwSpec,
    CltsSpec,
    DdpmSpec,
    LogitNormalSpec,
    LogNormalSpec,
    MinSnrSpec,
    P2Spec,
    TskDifCurSpec,
    UniformSpec,
    VeSpec,
    VpSpec,
)

IN_TIME = (VpSpec(), DdpmSpec())


class TestUniform(StrategyContract):
    changes: ClassVar = set()
    processes: ClassVar = IN_TIME

    @pytest.fixture
    def spec(self):
        return UniformSpec()


class TestP2(StrategyContract):
    changes: ClassVar = {"base_weight"}

    @pytest.fixture(params=[P2Spec(), P2Spec(k=0.5, gamma=2)], ids=["1", "2"])
    def spec(self, request):
        return request.param


class TestMinSnr(StrategyContract):
    changes: ClassVar = {"base_weight"}

    @pytest.fixture
    def spec(self):
        return MinSnrSpec()


class TestLogNormal(StrategyContract):
    changes: ClassVar = {"noise_levels"}
    processes: ClassVar = (VpSpec(), VeSpec(), DdpmSpec())

    @pytest.fixture(params=[LogNormalSpec(), LogNormalSpec(mean=0.5, std=3)], ids=["edm", "wide"])
    def spec(self, request):
        return request.param


class TestLogitNormal(StrategyContract):
    changes: ClassVar = {"noise_levels"}
    processes: ClassVar = IN_TIME

    @pytest.fixture(params=[LogitNormalSpec(), LogitNormalSpec(mean=-1, std=0.8)], ids=["0", "-1"])
    def spec(self, request):
        return request.param


class TestClts(StrategyContract):
    changes: ClassVar = {"law_at"}
    processes: ClassVar = (DdpmSpec(),)

    @pytest.fixture(params=["100%", "50%", 0], ids=str)
    def spec(self, request):
        return CltsSpec(window=request.param)


class TestAntUw(StrategyContract):
    changes: ClassVar = {"coupling", "adaptive"}

    @pytest.fixture
    def spec(self):
        return AntUwSpec()


class TestTskDifCur(StrategyContract):
    changes: ClassVar = {"adaptive"}

    @pytest.fixture
    def spec(self):
        return TskDifCurSpec()
