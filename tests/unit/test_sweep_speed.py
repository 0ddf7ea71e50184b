"""The probe on a GPU of the cluster: what goes wrong there is told, and ends no sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray import exceptions

from fleetstep.config import SweepSpec
from fleetstep.orchestration import sweep_speed
from fleetstep.orchestration.sweep_speed import measure_speed
from pixel_sweep import Sweep


class Task:
    """A remote function of which nothing runs."""

    def __call__(self, function: object) -> Task:
        return self

    def remote(self, *arguments: object) -> str:
        return "answer"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (exceptions.RaySystemError("the raylet is gone"), "the raylet is gone"),
        (exceptions.WorkerCrashedError(), "The worker died"),
        (
            exceptions.RayTaskError("probe", "Traceback", ValueError("no kernel image")),
            "no kernel image",
        ),
        (exceptions.GetTimeoutError(), "no GPU was free for 60 s"),
    ],
)
def test_a_probe_that_fails_is_no_measurement(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def get(answer: str, timeout: float) -> Any:
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(sweep_speed, "alive_nodes", lambda: [{"CPU": 2.0, "GPU": 1.0}])
    monkeypatch.setattr(ray, "remote", lambda **options: Task())
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda answer, force: None)
    spec = SweepSpec.model_validate(
        {"runs": ["runs/near"], "pool": {"max": 1, "gpus_per_actor": 1}}
    )
    found = measure_speed(spec, Sweep(tmp_path).plan)
    assert isinstance(found, str)
    assert found.startswith("not measured: ")
    assert said in found
    assert "\n" not in found


class Growing:
    """An autoscaler in place of Ray's."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer

    def __call__(self, *, cpus: float, gpus: float) -> Growing:
        assert gpus == 1
        return self

    def grows(self) -> bool:
        return self.answer


def test_a_probe_waits_for_a_gpu_only_where_one_may_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def get(answer: str, timeout: float) -> Any:
        raise exceptions.GetTimeoutError

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(sweep_speed, "alive_nodes", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(ray, "remote", lambda **options: Task())
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda answer, force: None)
    spec = SweepSpec.model_validate(
        {"runs": ["runs/near"], "pool": {"max": 1, "gpus_per_actor": 1}}
    )
    plan = Sweep(tmp_path).plan
    monkeypatch.setattr(sweep_speed, "RayAutoscaler", Growing(False))
    assert (
        measure_speed(spec, plan) == "not measured: no machine of the cluster has an actor's GPU"
    )
    monkeypatch.setattr(sweep_speed, "RayAutoscaler", Growing(True))
    assert measure_speed(spec, plan) == "not measured: no GPU was free for 60 s"
