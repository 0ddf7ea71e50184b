"""Connecting to Ray: a local cluster on a laptop, or the one at an address, with the same settings
for every process.

Resources are asked for, never assumed: `require` compares a request with what the cluster has and
refuses with the sum.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from fleetstep.errors import ResourceError

# Read by Ray in the driver before it starts anything, and passed on to its processes.
_DRIVER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often the controller looks at its workers; a report is only noticed then (the default is
    # 2 s).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # One process logs to one run: Tune's own loggers would be a second writer.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def worker_environment(threads: int) -> dict[str, str]:
    """Environment of every worker process.

    libgomp's threads spin at barriers: when a core is taken away for a moment a step of 150 ms
    takes seconds. A bounded spin count cures it. `threads` is the number of CPUs that the worker
    asked Ray for.
    """
    return {
        "GOMP_SPINCOUNT": "1000",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Ray for the time of a block: `address`, or a local cluster that ends with the block.

    A cluster this process is already connected to is used as it is and left running.
    """
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # Ray puts sockets there, whose paths may not exceed 107 bytes.
    folder = tempfile.mkdtemp(prefix="fs-ray-") if address is None else None
    if address is None:
        options |= {"include_dashboard": False, "_temp_dir": folder}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def require(what: str, count: int, each: Mapping[str, float], remedy: str) -> None:
    """Refuse a request that the connected cluster could never place.

    Args:
        what: who asks, for the message ("training workers").
        count: number of processes.
        each: resources of one of them, for example {"CPU": 1, "GPU": 0}.
        remedy: which fields to change.

    Raises:
        ResourceError: with the sum asked for and the sum that exists.
    """
    total = ray.cluster_resources()
    for resource, amount in each.items():
        if amount * count > total.get(resource, 0.0) + 1e-9:
            raise ResourceError(
                f"{count} {what} x {amount:g} {resource} = {amount * count:g} {resource}, "
                f"but the cluster has {total.get(resource, 0.0):g}",
                remedy,
            )
