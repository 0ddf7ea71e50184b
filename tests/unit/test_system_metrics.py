"""Readings of the machine: due every so often, true, and through the spool like all points."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from fleetstep.orchestration import system_metrics
from fleetstep.orchestration.metric_logger import SpoolLogger
from fleetstep.orchestration.spool import SpoolReader
from fleetstep.orchestration.system_metrics import SystemMetrics


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(system_metrics.time, "monotonic", lambda: now[0])
    return now


def test_readings_come_when_they_are_due_and_at_no_other_time(clock: list[float]):
    system = SystemMetrics(every_s=10)
    assert system.take() == {}
    clock[0] += 9.9
    assert system.take() == {}
    clock[0] += 0.1
    assert system.take() != {}
    assert system.take() == {}
    # A long pause makes one reading due, not many.
    clock[0] += 1000
    assert system.take() != {}
    assert system.take() == {}


def test_readings_are_of_this_machine_and_this_process(clock: list[float]):
    system = SystemMetrics(every_s=10)
    begun, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < 0.3:
        pass
    spent = 100 * (time.process_time() - cpu) / (time.perf_counter() - begun)
    clock[0] += 10
    read = system.take()
    assert set(read) >= {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/disk_usage_percentage",
        "system/network_receive_megabytes",
        "system/network_transmit_megabytes",
    }
    # The core may be taken away between the two clocks.
    assert read["system/process_cpu_percentage"] == pytest.approx(spent, abs=30)
    assert 0 < read["system/cpu_utilization_percentage"] <= 100
    memory = psutil.Process(os.getpid()).memory_info().rss / 1e6
    assert read["system/process_memory_megabytes"] == pytest.approx(memory, rel=0.1)
    used = psutil.virtual_memory().used / 1e6
    assert read["system/system_memory_usage_megabytes"] == pytest.approx(used, rel=0.2)


def test_a_resumed_run_repeats_no_reading(clock: list[float], tmp_path: Path):
    def work(first: int, last: int) -> None:
        system, logger = SystemMetrics(every_s=10), SpoolLogger(tmp_path / "metrics.jsonl")
        for step in range(first, last):
            clock[0] += 4
            logger.log(64 * step, {"train/loss": 1.0, **system.take()})
        logger.close()

    work(1, 31)
    work(21, 51)
    points = list(SpoolReader(tmp_path / "metrics.jsonl").read())
    seen = [p.images_seen for p in points if p.key == "system/process_memory_megabytes"]
    # Every third step is more than ten seconds; the second start counts from its own first step.
    assert seen == [64 * step for step in (*range(3, 31, 3), *range(32, 51, 3))]


def test_a_machine_that_cannot_be_read_costs_the_reading_alone(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    system = SystemMetrics(every_s=10)

    def refuse(*_: object) -> None:
        raise PermissionError("/proc/net/dev")

    with monkeypatch.context() as patch:
        patch.setattr(psutil, "net_io_counters", refuse)
        clock[0] += 10
        assert system.take() == {}
    assert "no system metrics this time" in caplog.text
    clock[0] += 10
    assert system.take() != {}
