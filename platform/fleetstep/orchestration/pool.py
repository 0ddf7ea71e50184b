"""A pool of Ray actors that works through a list of units: one task is one unit and returns its
small result.

An actor that dies is replaced and its unit starts again; a unit that raises stops the pool with
that error. Nothing is accumulated inside an actor, so a death costs one unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from fleetstep.errors import FleetstepError, PoolError
from fleetstep.orchestration.dispatch import Ledger, Retire, Stop
from fleetstep.orchestration.placement import check_placement
from fleetstep.orchestration.session import alive_nodes, worker_environment

U = TypeVar("U")
R = TypeVar("R")
U_contra = TypeVar("U_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

THREADS = 1
"""Threads of an actor: bits must not depend on a machine's cores, nor actors share one."""

PATIENCE_S = 30.0
"""Seconds without any event after which the pool says what it is waiting for."""


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
    """The actor's unit returned `result`."""

    actor: int
    result: Any


@dataclass(frozen=True)
class Failed:
    """The worker's own code raised `error` (while it was built, or in a unit)."""

    actor: int
    error: BaseException


@dataclass(frozen=True)
class Lost:
    """The actor's process or machine is gone."""

    actor: int
    reason: str


Event = Ready | Finished | Failed | Lost


@dataclass(frozen=True)
class Notice:
    """Something about the pool worth a line of progress."""

    kind: Literal["ready", "lost", "replaced", "retired", "waiting"]
    actor: int | None
    text: str

    def __str__(self) -> str:
        return self.text


class Cluster(Protocol):
    """What the pool needs of Ray: actors are numbers, what happens to them comes out of `next`."""

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """The resources of each machine that is alive."""
        ...

    def start(self, actor: int) -> None:
        """Ask for an actor; `Ready`, `Failed` or `Lost` follows."""
        ...

    def submit(self, actor: int, unit: Any) -> None:
        """Hand `unit` to a ready, idle actor; `Finished`, `Failed` or `Lost` follows."""
        ...

    def next(self, timeout: float) -> Event | None:
        """The next event, or None after `timeout` seconds without one."""
        ...

    def close(self) -> None:
        """End all actors, at once."""
        ...


def run_units(
    units: Sequence[U],
    make_worker: Callable[[], Worker[U, R]],
    *,
    actors: int,
    on_result: Callable[[U, R], None],
    on_event: Callable[[Notice], None] | None = None,
    cpus_per_actor: float = 0.5,
    gpus_per_actor: float = 0.0,
    max_attempts: int = 3,
    max_replacements: int | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Run every unit once to its end on `actors` actors, starting them in the order given.

    Args:
        units: picklable descriptions of work; `str(unit)` names one in messages.
        make_worker: builds the worker inside its actor (picklable).
        on_result: called in this process for each finished unit, in the order of completion.
        on_event: told of actors that start, die and are replaced.
        cpus_per_actor: Ray's CPUs for each actor; a share of one packs several actors on it.
        max_attempts: how often a unit may be started before it is blamed for its actors' deaths.
        max_replacements: actors replaced in all; by default max(3, 2 * actors).
        cluster: the Ray cluster this process is connected to, unless given.

    Raises:
        ResourceError: the pool can never be placed; nothing was created.
        PoolError: a unit raised, or too many actors died. Finished units have been reported.
    """
    if not units:
        return
    actors = min(actors, len(units))
    cluster = cluster or RayCluster(make_worker, cpus=cpus_per_actor, gpus=gpus_per_actor)
    check_placement(cluster.nodes(), actors=actors, cpus=cpus_per_actor, gpus=gpus_per_actor)
    ledger = Ledger(
        units,
        max_attempts=max_attempts,
        max_replacements=max(3, 2 * actors) if max_replacements is None else max_replacements,
    )
    pool = _Pool(cluster, ledger, on_result, on_event or (lambda notice: None))
    try:
        for _ in range(actors):
            pool.start()
        while not ledger.complete:
            pool.react(cluster.next(PATIENCE_S))
    finally:
        cluster.close()


class _Pool:
    """Turns events into calls on the cluster; all judgement is the ledger's."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: Ledger[Any],
        on_result: Callable[[Any, Any], None],
        notify: Callable[[Notice], None],
    ) -> None:
        self._cluster, self._ledger, self._on_result, self._notify = (
            cluster,
            ledger,
            on_result,
            notify,
        )
        self._started = 0
        self._idle: list[int] = []

    def start(self) -> None:
        actor, self._started = self._started, self._started + 1
        self._ledger.joined(actor)
        self._cluster.start(actor)

    def react(self, event: Event | None) -> None:
        match event:
            case None:
                self._notify(
                    Notice("waiting", None, "no news: units are long, or the cluster is busy")
                )
            case Ready(actor, pid):
                self._notify(Notice("ready", actor, f"actor {actor} is ready (process {pid})"))
                self._idle.append(actor)
            case Finished(actor, result):
                self._on_result(self._ledger.finished(actor), result)
                self._idle.append(actor)
            case Failed(actor, error):
                raise _unit_error(self._ledger.unit_of(actor), error) from error
            case Lost(actor, reason):
                self._lost(actor, reason)
        self._feed()

    def _lost(self, actor: int, reason: str) -> None:
        unit = self._ledger.unit_of(actor)
        decision = self._ledger.lost(actor, reason)
        again = f"; {unit} starts again" if unit is not None else ""
        self._notify(Notice("lost", actor, f"actor {actor} died: {reason}{again}"))
        if isinstance(decision, Stop):
            raise PoolError(decision.message, decision.remedy)
        if isinstance(decision, Retire):
            self._notify(
                Notice("retired", actor, f"actor {actor} is not replaced: {decision.reason}")
            )
            return
        self._notify(
            Notice("replaced", actor, f"actor {actor} is replaced by actor {self._started}")
        )
        self.start()

    def _feed(self) -> None:
        while self._idle and (unit := self._ledger.assign(self._idle[-1])) is not None:
            self._cluster.submit(self._idle.pop(), unit)


def _unit_error(unit: object | None, error: BaseException) -> PoolError:
    where = f"{unit} failed" if unit is not None else "a worker could not be built"
    if isinstance(error, FleetstepError):
        return PoolError(f"{where}: {error.message}", error.remedy)
    return PoolError(
        f"{where}: {type(error).__name__}: {error}",
        "trying again would fail the same way; finished units are kept and are not done again",
    )


class _Actor:
    """One worker's process. An error in a constructor looks like a death, hence `ready`."""

    def __init__(self, make_worker: Callable[[], Worker[Any, Any]]) -> None:
        self._make_worker = make_worker

    def ready(self) -> int:
        import os

        import torch

        torch.set_num_threads(THREADS)
        self._worker = self._make_worker()
        return os.getpid()

    def run(self, unit: Any) -> Any:
        return self._worker.run(unit)


class RayCluster:
    """`Cluster` on the Ray cluster this process is connected to.

    Args:
        make_worker: builds the worker inside its actor.
        cpus: Ray's CPUs for each actor.
        gpus: Ray's GPUs for each actor.
    """

    def __init__(
        self, make_worker: Callable[[], Worker[Any, Any]], *, cpus: float, gpus: float
    ) -> None:
        self._make_worker = make_worker
        self._remote = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,  # the ledger decides
            max_task_retries=0,
            runtime_env={"env_vars": worker_environment(THREADS)},
        )(_Actor)
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, tuple[int, bool]] = {}

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """See `Cluster`."""
        return alive_nodes()

    def start(self, actor: int) -> None:
        """See `Cluster`."""
        handle = self._remote.remote(self._make_worker)
        self._actors[actor] = handle
        self._waiting[handle.ready.remote()] = (actor, True)

    def submit(self, actor: int, unit: Any) -> None:
        """See `Cluster`."""
        self._waiting[self._actors[actor].run.remote(unit)] = (actor, False)

    def next(self, timeout: float) -> Event | None:
        """See `Cluster`."""
        done, _ = ray.wait(list(self._waiting), num_returns=1, timeout=timeout)
        if not done:
            return None
        actor, starting = self._waiting.pop(done[0])
        try:
            value = ray.get(done[0])
        except RayTaskError as error:
            return Failed(actor, error.cause if isinstance(error.cause, BaseException) else error)
        except RayError as error:
            # An actor that is only unreachable may come back: end it, or its unit would run twice.
            ray.kill(self._actors.pop(actor), no_restart=True)
            return Lost(actor, _reason(error))
        return Ready(actor, value) if starting else Finished(actor, value)

    def close(self) -> None:
        """See `Cluster`."""
        for handle in self._actors.values():
            ray.kill(handle, no_restart=True)
        self._actors.clear()
        self._waiting.clear()


def _reason(error: BaseException) -> str:
    """The telling part of Ray's paragraph on a dead actor, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    _, _, because = text.partition("The actor is dead because ")
    return (because or text).partition(" Some common causes include")[0]
