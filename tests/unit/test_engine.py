from __future__ import annotations

import pytest
import torch
from torch import nn

from contracts.engine_contract import OPTIMIZER, EngineContract, engine_loop, plain_loop, state_of
from fleetstep.errors import ConfigError
from fleetstep.training.engine import DeepSpeedEngine, Engine, TorchEngine
from fleetstep.training.group import current_group
from fleetstep.training.spec import BatchPlan, OptimizerSpec, ZeroStage
from training_job import toy_network


class TestTorchEngine(EngineContract):
    def make(self, network: nn.Module, optimizer: OptimizerSpec, plan: BatchPlan) -> Engine:
        return TorchEngine(network, optimizer, plan)


class DeepSpeedContract(EngineContract):
    stage: ZeroStage

    def make(self, network: nn.Module, optimizer: OptimizerSpec, plan: BatchPlan) -> Engine:
        return DeepSpeedEngine(network, optimizer, plan, stage=self.stage)


class TestZero0(DeepSpeedContract):
    stage = 0


class TestZero1(DeepSpeedContract):
    stage = 1


class TestZero2(DeepSpeedContract):
    stage = 2


class TestZero3(DeepSpeedContract):
    stage = 3


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_trains_close_to_fp32_and_keeps_fp32_masters(stage: ZeroStage):
    plan = BatchPlan(1, 8, 8, 1)
    losses, _, _ = plain_loop(5)
    engine = DeepSpeedEngine(toy_network(), OPTIMIZER, plan, stage=stage, precision="bf16")
    found, _ = engine_loop(engine, plan, 0, 5)
    assert found == pytest.approx(losses, rel=0.02)
    assert found != pytest.approx(losses, rel=1e-6)
    state = state_of(engine)
    assert all(value.dtype == torch.float32 for value in state.values())
    rounded = [torch.equal(v, v.bfloat16().float()) for (q, _), v in state.items() if q == "param"]
    assert not any(rounded)
    resumed = DeepSpeedEngine(toy_network(seed=1), OPTIMIZER, plan, stage=stage, precision="bf16")
    resumed.load(lambda quantity, name, start, n: state[quantity, name][start : start + n], 5)
    assert engine_loop(resumed, plan, 5, 7) == engine_loop(engine, plan, 5, 7)


def test_what_deepspeed_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="use 1, 2 or 3"):
        DeepSpeedEngine(toy_network(), OPTIMIZER, BatchPlan(1, 8, 8, 1), stage=0, precision="bf16")
    with pytest.raises(ConfigError, match="2 workers, the group has 1"):
        DeepSpeedEngine(toy_network(), OPTIMIZER, BatchPlan(2, 4, 4, 1), stage=1)


def test_one_worker_is_its_own_group():
    group = current_group(torch.device("cpu"))
    assert (group.rank, group.world) == (0, 1)
    assert group.gather({"a": [1, "x"]}) == [{"a": [1, "x"]}]
    values = torch.tensor([1.5, 2.5], dtype=torch.float64)
    total = group.sum(values)
    assert torch.equal(total, values)
    assert total.data_ptr() != values.data_ptr()
