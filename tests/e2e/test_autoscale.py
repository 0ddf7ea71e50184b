"""Machines come for a pool's work and go after it, by Ray's autoscaler and its fake machines.

Ray's own AutoscalingCluster is no use here: it ends every Ray process of the machine, and needs a
file that is not in the wheel. So the head is started by hand, in a session of its own, with token
authentication, of which a driver that connects by address must be told before it imports Ray: it
is a process of its own, this file run as a program.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import ray

from fleetstep.config import PoolSpec
from fleetstep.errors import ResourceError
from fleetstep.orchestration.pool import run_units
from fleetstep.orchestration.pool_status import PoolStatus, StatusFile
from fleetstep.orchestration.status import find_status

pytestmark = pytest.mark.cluster

# The fake provider knows no other head.
HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
FAKE = "ray.autoscaler._private.fake_multi_node.node_provider"
MOST = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(address: str) -> dict[str, object]:
    """A head without CPUs and up to `MOST` machines of one CPU, gone after 6 s without work."""
    nothing_to_run = (
        "initialization_commands", "setup_commands", "head_setup_commands",
        "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    )  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": MOST,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": f"{FAKE}.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "small": {
                "resources": {"CPU": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST,
            },
        },
        "head_node_type": HEAD_TYPE,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{name: [] for name in nothing_to_run},
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the driver saw on a head whose autoscaler starts raylets as machines."""
    # Sockets lie there, whose paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="fs-as-"))
    ip, port = ray.util.get_node_ip_address(), free_port()
    (folder / "token").write_text(secrets.token_hex(32))
    (folder / "cluster.json").write_text(json.dumps(settings(f"{ip}:{port}")))
    shared = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    of_the_head = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    }
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
                f"--node-ip-address={ip}", f"--port={port}", "--num-cpus=0",
                # Outside the range of workers' ports.
                "--ray-client-server-port=20311", "--include-dashboard=false",
                "--object-store-memory=100000000", f"--temp-dir={folder / 'ray'}",
                f"--autoscaling-config={folder / 'cluster.json'}",
            ],
            env=shared | of_the_head,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        storage = tmp_path_factory.mktemp("storage")
        done = subprocess.run(
            [sys.executable, __file__, f"{ip}:{port}", str(storage)],
            env=shared,
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, f"{done.stderr[-3000:]}\n{(folder / 'log').read_text()}"
        yield json.loads(done.stdout.splitlines()[-1])
    finally:
        # A polite signal would drain for half a minute.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_machines_are_added_for_the_work_and_removed_after_it(seen: dict[str, Any]):
    assert sorted(seen["results"]) == list(range(UNITS))
    machines = seen["machines"]
    assert (machines[0], max(machines), machines[-1]) == (0, MOST, 0)
    assert [kind for kind, _ in seen["notices"]].count("lost") == 0
    assert seen["notices"][0] == ["waiting", "0 of 5 actors placed, waiting for nodes"]


def test_the_status_shows_wanted_running_and_idle_actors(seen: dict[str, Any]):
    shown = seen["shown"]
    assert any(status["wanted"] == status["starting"] == 5 for status in shown)
    assert max(status["running"] for status in shown) == MOST
    assert any(status["wanted"] == 0 and status["idle"] > 0 for status in shown)
    assert seen["last"] == asdict(PoolStatus(done=UNITS))


def test_what_no_machine_could_hold_is_refused_instead_of_waited_for(seen: dict[str, Any]):
    assert "1 actor x 2 CPU = 2 CPU asked for" in seen["refusal"]


# --- the driver ----------------------------------------------------------------------------------

UNITS = 12


class Sleeper:
    def run(self, unit: int) -> int:
        time.sleep(1.0)
        return unit


class Watch:
    """The number of machines with a CPU, which the head has not, over time."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            count = sum(resources.get("CPU", 0) > 0 for resources in alive)
            if not self.seen or self.seen[-1] != count:
                self.seen.append(count)
            time.sleep(0.2)


def connect(address: str, patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def drive(address: str, storage: Path) -> dict[str, Any]:
    """Run units, wait until pool and machines have gone, then ask for what cannot be had."""
    connect(address)
    watch = Watch()
    file = StatusFile(storage / "sweeps" / "digits" / "status.json", "digits")
    told: list[PoolStatus] = []
    shown: list[PoolStatus] = []
    results: list[int] = []
    notices: list[tuple[str, str]] = []

    def on_status(status: PoolStatus) -> None:
        told.append(status)
        file.update(status, status.done, UNITS, 0.0, None)
        shown.extend(one.pool for one in find_status(storage))

    def feed() -> list[int] | None:
        if not told:
            return list(range(UNITS))
        gone = len(results) == UNITS and watch.seen[-1] == 0
        return None if gone else []

    run_units(
        [],
        Sleeper,
        pool=PoolSpec(min=0, max=5, idle_s=2.0, cpus_per_actor=1.0),
        on_result=lambda unit, result: results.append(result),
        on_event=lambda notice: notices.append((notice.kind, notice.text)),
        on_status=on_status,
        feed=feed,
    )
    return {
        "results": results,
        "machines": watch.seen,
        "notices": notices,
        "shown": [asdict(status) for status in shown],
        "last": asdict(told[-1]),
        "refusal": refusal(),
    }


def refusal() -> str:
    try:
        run_units(
            range(3),
            Sleeper,
            pool=PoolSpec(max=1, cpus_per_actor=2.0),
            on_result=lambda unit, result: None,
        )
    except ResourceError as error:
        return str(error)
    return "nothing was refused"


if __name__ == "__main__":
    print(json.dumps(drive(sys.argv[1], Path(sys.argv[2]))))
