"""One small local Ray for the whole session of end-to-end tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

MIB = 2**20


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A two-CPU Ray in this process's name; ended with it, never by `ray stop`."""
    import ray

    with pytest.MonkeyPatch.context() as environment:
        # Read when Ray starts: what it passes on to its processes cannot be changed later.
        for name, value in {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "GOMP_SPINCOUNT": "1000",
        }.items():
            environment.setenv(name, value)
        # Ray puts sockets there: paths over 107 bytes fail, and pytest has long ones.
        folder = tempfile.mkdtemp(prefix="fs-ray-")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=150 * MIB,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
