"""Ray Train around a job's workers: they are placed, run, asked to save and stop on Ctrl-C, and
what one of them raised is told.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from fleetstep.config import ClusterSpec
from fleetstep.errors import TrainingError
from fleetstep.orchestration.placement import check_placement
from fleetstep.orchestration.run_folder import RunFolder
from fleetstep.orchestration.session import alive_nodes, worker_environment

Say = Callable[[str], None]
Worker = Callable[[dict[str, Any]], dict[str, Any]]
# How long workers get to write a checkpoint after Ctrl-C before the job is torn down.
_GRACE_S = 120.0
_CONTROLLER_FAILURES = 3


def check_workers(cluster: ClusterSpec) -> None:
    """Refuse workers that can never be placed, before anything of the run exists.

    Raises:
        ResourceError: with the sum asked for and the sum there is.
    """
    check_placement(
        alive_nodes(),
        actors=cluster.workers,
        cpus=cluster.cpus_per_worker,
        gpus=cluster.gpus_per_worker,
        what="training workers",
    )


def run_workers(
    worker: Worker,
    arguments: dict[str, Any],
    cluster: ClusterSpec,
    folder: RunFolder,
    say: Say | None,
) -> dict[str, Any]:
    """What rank 0 returned. The workers run in a thread, so that this one can turn Ctrl-C into a
    request to save and stop.

    Raises:
        TrainingError: the workers failed more often than `cluster.max_restarts`; or the error
            with which one of them gave up.
    """
    ended: dict[str, Any] = {}
    # Not Thread.join: interrupted by a signal, Python 3.11 takes the thread for finished.
    done = threading.Event()

    def run() -> None:
        try:
            ended["outcome"] = _run_trainer(worker, arguments, cluster, folder)
        except BaseException as error:  # handed to the waiting thread
            ended["error"] = error
        finally:
            done.set()

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    try:
        # With a time-out, because a wait without one is not interrupted on every platform.
        while not done.wait(0.5):
            pass
    except (KeyboardInterrupt, SystemExit):
        tell(
            say,
            "  stopping: the workers save a checkpoint first; press Ctrl-C again to give "
            "up on that",
        )
        folder.stop_request.touch()
        done.wait(_GRACE_S)
        if "error" in ended:
            tell(say, f"  that failed: {ended['error']}")
        if "outcome" not in ended:
            raise
    finally:
        folder.stop_request.unlink(missing_ok=True)
    if "error" in ended:
        raise ended["error"]
    outcome: dict[str, Any] = ended["outcome"]
    return outcome


def _run_trainer(
    worker: Worker, arguments: dict[str, Any], cluster: ClusterSpec, folder: RunFolder
) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    on_gpu = cluster.gpus_per_worker > 0
    resources = {"CPU": cluster.cpus_per_worker}
    if on_gpu:
        resources["GPU"] = cluster.gpus_per_worker
    trainer = TorchTrainer(
        worker,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=on_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            # A name of its own: Ray would otherwise resume from what it finds under an old one.
            name=f"attempt-{time.time_ns():x}-{os.getpid()}",
            storage_path=str(folder.root / "ray"),
            failure_config=FailureConfig(
                max_failures=cluster.max_restarts,
                # Ray's default is to start a failing controller again for ever.
                controller_failure_limit=_CONTROLLER_FAILURES,
            ),
            worker_runtime_env={
                "env_vars": worker_environment(max(1, int(cluster.cpus_per_worker)))
            },
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        outcome: dict[str, Any] = trainer.fit().return_value
    except WorkerGroupError as failure:
        raise folder.reason_to_give_up() or _worker_error(failure.worker_failures) from failure
    except ControllerError as failure:
        raise TrainingError(
            f"the training controller failed: {failure.controller_failure}",
            "run the same command again to go on from the last checkpoint",
        ) from failure
    if (error := folder.reason_to_give_up()) is not None:
        raise error
    return outcome


def _worker_error(failures: dict[int, Exception]) -> TrainingError:
    rank, failure = min(failures.items())
    return TrainingError(
        f"worker {rank} failed: {failure}",
        "finished checkpoints are kept: run the same command again to go on from the last one",
    )


def tell(say: Say | None, text: str) -> None:
    """Say it, unless nobody listens."""
    if say is not None:
        say(text)
