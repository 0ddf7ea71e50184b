"""The actors of a pool as numbers and events: what a pool needs of Ray, and Ray's side of it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray
from ray import cloudpickle
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    RayActorError,
    RayError,
    RayTaskError,
)

from fleetstep.orchestration.autoscaling import Autoscaler, RayAutoscaler
from fleetstep.orchestration.pool_policy import LONGEST_LEASE_S
from fleetstep.orchestration.session import alive_nodes, worker_environment

U_contra = TypeVar("U_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

THREADS = 1
"""Threads of an actor: bits must not depend on a machine's cores, nor actors share one."""


class Worker(Protocol[U_contra, R_co]):
    """What runs inside an actor: built once there, then handed one unit at a time."""

    def run(self, unit: U_contra) -> R_co:
        """Do the work of `unit` and return a small, picklable result."""
        ...


@dataclass(frozen=True)
class Ready:
    """The actor was placed and has built its worker in process `pid`."""

    actor: int
    pid: int


@dataclass(frozen=True)
class Finished:
    """The actor's oldest lease is back.

    Args:
        actor: whose.
        results: of its first units, in their order; those without one were not begun.
        seconds: the work took.
        error: what the unit after the last result raised, if that is why it is not there.
    """

    actor: int
    results: Sequence[Any]
    seconds: float
    error: BaseException | None = None


@dataclass(frozen=True)
class Failed:
    """The worker could not be built, or its answer not be sent: `error` was raised."""

    actor: int
    error: BaseException


@dataclass(frozen=True)
class Lost:
    """The actor's process is gone, or its machine.

    Args:
        actor: which.
        reason: as Ray words it.
        machine_gone: the machine was preempted, died, or cannot be reached.
    """

    actor: int
    reason: str
    machine_gone: bool = False


Event = Ready | Finished | Failed | Lost


class Cluster(Protocol):
    """What the pool needs of Ray: actors are numbers, what happens to them comes out of `next`."""

    @property
    def autoscaler(self) -> Autoscaler:
        """Who adds machines, if anyone does."""
        ...

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        ...

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """The resources of each machine that is alive."""
        ...

    def start(self, actor: int) -> None:
        """Ask for an actor; `Ready`, `Failed` or `Lost` follows, if it is ever placed."""
        ...

    def submit(self, actor: int, units: Sequence[Any]) -> None:
        """Hand a lease to a ready actor, behind those it has; `Finished` or `Lost` follows."""
        ...

    def end(self, actor: int) -> None:
        """End an actor that holds no lease; no event follows."""
        ...

    def next(self, timeout: float) -> Event | None:
        """The next event, or None after `timeout` seconds without one."""
        ...

    def close(self) -> None:
        """End all actors, at once."""
        ...


class _Actor:
    """One worker's process. An error in a constructor looks like a death, hence `ready`."""

    def __init__(self, make_worker: Callable[[], Worker[Any, Any]], nice: int) -> None:
        self._make_worker, self._nice = make_worker, nice

    def ready(self) -> tuple[int, str]:
        """The process's id, and that of its machine in Ray."""
        import torch

        os.nice(self._nice)
        torch.set_num_threads(THREADS)
        self._worker = self._make_worker()
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def run(self, units: Sequence[Any]) -> tuple[list[Any], float, BaseException | None]:
        """Results of the first units, until one raises or the lease has lasted long enough."""
        results: list[Any] = []
        started = time.perf_counter()
        for unit in units:
            try:
                results.append(self._worker.run(unit))
            except Exception as error:
                return results, time.perf_counter() - started, _sendable(error)
            if time.perf_counter() - started >= LONGEST_LEASE_S:
                break
        return results, time.perf_counter() - started, None


def _sendable(error: Exception) -> Exception:
    """The error, or its words where it does not survive the way to another process."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class RayCluster:
    """`Cluster` on the Ray cluster this process is connected to.

    Args:
        make_worker: builds the worker inside its actor.
        cpus: Ray's CPUs for each actor.
        gpus: Ray's GPUs for each actor.
        nice: added to the niceness of the actors' processes.
    """

    def __init__(
        self, make_worker: Callable[[], Worker[Any, Any]], *, cpus: float, gpus: float, nice: int
    ) -> None:
        self._arguments = (make_worker, nice)
        self._remote = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,  # the ledger decides
            max_task_retries=0,
            # Never inside the placement group of a trial's workers, which has no room for it.
            scheduling_strategy="DEFAULT",
            runtime_env={"env_vars": worker_environment(THREADS)},
        )(_Actor)
        self._autoscaler = RayAutoscaler(cpus=cpus, gpus=gpus)
        self._handles: dict[int, Any] = {}
        # What each actor still has to answer, oldest first: only the oldest is waited for, so that
        # a lease that is done is heard of before the death that followed it.
        self._answers: dict[int, deque[Any]] = {}
        self._starting: set[int] = set()
        self._machines: dict[int, str] = {}
        self._arrived: deque[tuple[int, Any]] = deque()

    @property
    def autoscaler(self) -> Autoscaler:
        """See `Cluster`."""
        return self._autoscaler

    def now(self) -> float:
        """See `Cluster`."""
        return time.monotonic()

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """See `Cluster`."""
        return alive_nodes()

    def start(self, actor: int) -> None:
        """See `Cluster`."""
        self._handles[actor] = handle = self._remote.remote(*self._arguments)
        self._answers[actor] = deque([handle.ready.remote()])
        self._starting.add(actor)

    def submit(self, actor: int, units: Sequence[Any]) -> None:
        """See `Cluster`."""
        self._answers[actor].append(self._handles[actor].run.remote(units))

    def end(self, actor: int) -> None:
        """See `Cluster`. It may have died meanwhile: of what is ended, nothing is heard."""
        del self._answers[actor]
        self._starting.discard(actor)
        self._machines.pop(actor, None)
        self._arrived = deque(item for item in self._arrived if item[0] != actor)
        ray.kill(self._handles.pop(actor), no_restart=True)

    def next(self, timeout: float) -> Event | None:
        """See `Cluster`."""
        if not self._arrived:
            self._wait(timeout)
        if not self._arrived:
            return None
        actor, answer = self._arrived.popleft()
        self._answers[actor].popleft()
        return self._event(actor, answer)

    def _wait(self, timeout: float) -> None:
        """Take in every answer that is there: asking once for many is what lets one process serve
        many actors.
        """
        oldest = {answers[0]: actor for actor, answers in self._answers.items() if answers}
        if not oldest:
            time.sleep(timeout)
            return
        done, _ = ray.wait(list(oldest), num_returns=len(oldest), timeout=0)
        if not done:
            done, _ = ray.wait(list(oldest), num_returns=1, timeout=timeout)
        self._arrived.extend((oldest[answer], answer) for answer in done)

    def _event(self, actor: int, answer: Any) -> Event:
        starting = actor in self._starting
        self._starting.discard(actor)
        try:
            value = ray.get(answer)
        except RayTaskError as error:
            return Failed(actor, error.cause if isinstance(error.cause, BaseException) else error)
        except RayError as error:
            machine = self._machines.get(actor)
            # An actor that is only unreachable may come back and run its units a second time.
            self.end(actor)
            return Lost(actor, _reason(error), went_with_machine(error, machine, ray.nodes()))
        if not starting:
            return Finished(actor, *value)
        pid, self._machines[actor] = value
        return Ready(actor, pid)

    def close(self) -> None:
        """See `Cluster`."""
        for handle in self._handles.values():
            ray.kill(handle, no_restart=True)
        self._handles.clear()
        self._answers.clear()
        self._machines.clear()
        self._arrived.clear()


def went_with_machine(
    error: RayError, machine: str | None, nodes: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether an actor was lost with its machine, so that its unit is not to blame.

    Args:
        error: in place of the actor's answer.
        machine: Ray's id of it; None while the actor had not said.
        nodes: from `ray.nodes()`, asked after the error: those that Ray still believes in.
    """
    if isinstance(error, ActorUnavailableError | NodeDiedError):
        return True
    if isinstance(error, RayActorError) and error.preempted:
        return True
    alive = {node["NodeID"] for node in nodes if node["Alive"]}
    return machine is not None and machine not in alive


def _reason(error: BaseException) -> str:
    """The telling part of Ray's paragraph on a dead actor, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    _, _, because = text.partition("The actor is dead because ")
    return (because or text).partition(" Some common causes include")[0]
