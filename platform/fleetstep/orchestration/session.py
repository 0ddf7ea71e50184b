"""Connecting to Ray: a local cluster on a laptop, or the one at an address, with the same settings
for every process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
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
def connect(address: str | None, *, dashboard: bool = False) -> Iterator[None]:
    """Ray for the time of a block: `address`, or a local cluster that ends with the block.

    Args:
        address: of a running cluster; None starts a local one.
        dashboard: of a local cluster: without it nobody releases the workers of a training whose
            own driver, an actor, was killed.

    A cluster this process is already connected to is used as it is and left running. When the
    block fails, the local cluster's logs are kept and their folder is named on stderr.
    """
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # Ray puts sockets there, whose paths may not exceed 107 bytes.
    folder = tempfile.mkdtemp(prefix="fs-ray-") if address is None else None
    if folder is not None:
        # "local", because without an address Ray would follow RAY_ADDRESS to another cluster.
        options |= {"address": "local", "include_dashboard": dashboard, "_temp_dir": folder}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
        yield
    except ResourceError:
        raise  # refused before anything ran: there is nothing to look up
    except Exception:
        # First, so that what Ray's processes still have to say is in the files.
        ray.shutdown()
        if folder is not None:
            _keep_logs(Path(folder))
        raise
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def alive_nodes() -> list[Mapping[str, float]]:
    """The resources of each machine of the connected cluster that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _keep_logs(temporary: Path) -> None:
    """Move Ray's logs out of a folder about to be removed: they are all there is to say why a
    process died.
    """
    logs = (temporary / "session_latest" / "logs").resolve()
    if logs.is_dir():
        kept = shutil.move(logs, tempfile.mkdtemp(prefix="fleetstep-ray-logs-"))
        print(f"Ray's logs of this failure are in {kept}", file=sys.stderr)
