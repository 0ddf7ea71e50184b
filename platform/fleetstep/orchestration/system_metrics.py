"""What the rank-0 worker's machine is doing, as metrics of the run: MLflow's own collectors, whose
values go through the run's spool like all others.

MLflow's own monitor would be a second writer: it asks the server every ten seconds, gives up for
good when it does not answer, and counts its steps from 0 again after a restart.

Points are logged at images seen, as all are: they stand beside the loss they explain, `compare`
reads them as any curve, and a resumed run repeats none. Wall time is in each point's timestamp.
Processor time is the mean since the last reading, so that a pause without images is in it;
network traffic is the sum since the worker started.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

EVERY_S = 10.0
"""Seconds between two readings: they take about a millisecond."""

_PREFIX = "system/"
_log = logging.getLogger(__name__)


class SystemMetrics:
    """Readings of this machine's processors, memory, disk, network and GPUs, and of this process.

    Names are MLflow's, which its page "System metrics" shows: `system/cpu_utilization_percentage`,
    `system/network_receive_megabytes`, `system/gpu_0_utilization_percentage` (with the package
    nvidia-ml-py); our own are `system/process_cpu_percentage` (100 is one core) and
    `system/process_memory_megabytes`.

    Args:
        every_s: seconds between two readings; calls between them cost nothing.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._due = time.monotonic() + every_s
        self._collectors = _collectors()
        self._process = _process()
        # Processor time is counted from one reading to the next: this is where the first begins.
        self._read()

    def take(self) -> Mapping[str, float]:
        """The readings if it is time for them, else nothing.

        A machine that does not let itself be read is no reason to stop training.
        """
        now = time.monotonic()
        if now < self._due:
            return {}
        self._due = now + self._every_s
        try:
            return {f"{_PREFIX}{name}": value for name, value in self._read().items()}
        except OSError as error:
            _log.warning("no system metrics this time: %s", error)
            return {}

    def _read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for collector in self._collectors:
            collector.collect_metrics()
            values |= collector.aggregate_metrics()
            collector.clear_metrics()
        with self._process.oneshot():
            values["process_cpu_percentage"] = self._process.cpu_percent()
            values["process_memory_megabytes"] = self._process.memory_info().rss / 1e6
        return values


def _collectors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:
        _log.debug("no GPU metrics: %s", error)
    return found


def _process() -> Any:
    import psutil  # type: ignore[import-untyped]

    return psutil.Process()
