"""A pool of Ray actors that works through units, growing and shrinking with what there is to do.

Units go out in leases of a second or so (pool_policy.py). A worker stores each unit's outcome
itself, so the death of an actor, or its preemption, costs the unit in progress; the other units of
its lease are found done. A unit that raises stops the pool with that error. An actor that hangs is
told of and not ended: how long a unit may take is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fleetstep.config import PoolSpec
from fleetstep.errors import FleetstepError, PoolError
from fleetstep.orchestration.dispatch import Ledger, Retire, Stop
from fleetstep.orchestration.placement import check_placement, placeable
from fleetstep.orchestration.pool_actors import (
    Cluster,
    Event,
    Failed,
    Finished,
    Lost,
    RayCluster,
    Ready,
    Worker,
)
from fleetstep.orchestration.pool_policy import Pace, wanted_actors
from fleetstep.orchestration.pool_silence import Silence
from fleetstep.orchestration.pool_status import PoolStatus

U = TypeVar("U")
R = TypeVar("R")

TICK_S = 1.0
"""Seconds after which the pool looks around whatever happens: for units, machines, idle actors."""

REFUSAL_S = 5.0
"""Seconds for which the autoscaler must refuse an actor before it is believed."""


@dataclass(frozen=True)
class Notice:
    """Something about the pool worth a line of progress."""

    kind: Literal["ready", "lost", "replaced", "retired", "ended", "waiting"]
    actor: int | None
    text: str

    def __str__(self) -> str:
        return self.text


def run_units(
    units: Sequence[U],
    make_worker: Callable[[], Worker[U, R]],
    *,
    pool: PoolSpec,
    on_result: Callable[[U, R], None],
    on_event: Callable[[Notice], None] | None = None,
    on_status: Callable[[PoolStatus], None] | None = None,
    feed: Callable[[], Sequence[U] | None] | None = None,
    nice: int = 0,
    max_attempts: int = 3,
    max_replacements: int | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Run every unit to its end, starting them in the order given.

    Args:
        units: picklable descriptions of work; `str(unit)` names one in messages.
        make_worker: builds the worker inside its actor (picklable). Its `run` may be called for a
            unit again after a death, and should then find what is stored.
        pool: how many actors, and what each asks of Ray.
        on_result: called in this process once for each finished unit.
        on_event: told of actors that start, end, die and are replaced.
        on_status: told of the pool whenever it changes, and every second as a sign of life.
        feed: asked for more units whenever a lease comes back and every second; None is "no more
            ever". Without it the units given are all. While there is nothing to do actors idle,
            and after `pool.idle_s` the pool shrinks to `pool.min`.
        nice: added to the niceness of the actors' processes, which is 15 of 19 in Ray already.
        max_attempts: actors that one unit may take down, alone, before it is blamed. Actors that
            go with their machine do not count.
        max_replacements: actors replaced in a row; by default max(3, 2 * pool.max).
        cluster: the Ray cluster this process is connected to, unless given.

    Raises:
        ResourceError: not one actor can ever be placed.
        PoolError: a unit raised, or too many actors died. Finished units have been reported.
    """
    if not units and feed is None:
        return
    cluster = cluster or RayCluster(
        make_worker, cpus=pool.cpus_per_actor, gpus=pool.gpus_per_actor, nice=nice
    )
    limit = max(3, 2 * pool.max) if max_replacements is None else max_replacements
    running = _Pool(
        cluster,
        pool,
        Ledger(units, max_attempts=max_attempts, max_replacements=limit),
        on_result=on_result,
        notify=on_event or (lambda notice: None),
        tell=on_status or (lambda status: None),
        feed=feed,
    )
    try:
        running.check_placement()
        while running.advance():
            running.react(cluster.next(TICK_S))
    finally:
        cluster.autoscaler.ask(0)
        cluster.close()


class _Pool:
    """Turns events into calls on the cluster; judgement is the ledger's and the policy's."""

    def __init__(
        self,
        cluster: Cluster,
        spec: PoolSpec,
        ledger: Ledger[Any],
        *,
        on_result: Callable[[Any, Any], None],
        notify: Callable[[Notice], None],
        tell: Callable[[PoolStatus], None],
        feed: Callable[[], Sequence[Any] | None] | None,
    ) -> None:
        self._cluster, self._spec, self._ledger = cluster, spec, ledger
        self._on_result, self._notify, self._tell, self._feed = on_result, notify, tell, feed
        self._pace = Pace()
        self._grows = cluster.autoscaler.grows()
        self._started = 0
        self._starting: set[int] = set()
        # And when each was last heard of, or given work when it had none.
        self._ready: dict[int, float] = {}
        self._most = spec.max
        self._fits = 0
        self._placed: int | None = None
        self._asked = 0
        self._refused_since: float | None = None
        self._silence = Silence(cluster.now())
        self._looked = self._told_at = float("-inf")
        self._told: PoolStatus | None = None

    # --- what the pool is ------------------------------------------------------------------------

    @property
    def _alive(self) -> int:
        return len(self._starting) + len(self._ready)

    @property
    def _wanted(self) -> int:
        return wanted_actors(
            pending=self._ledger.pending,
            busy=self._ledger.busy,
            pace=self._pace,
            least=min(self._spec.min, self._most),
            most=self._most,
        )

    def check_placement(self) -> None:
        """Refuse a pool of which not one actor can ever be placed.

        Raises:
            ResourceError: no machine that is there, or that is known to come, can hold one.
        """
        kinds = self._cluster.autoscaler.node_kinds() if self._grows else []
        if not self._grows or kinds:
            self._refuse([*self._cluster.nodes(), *kinds])

    def _refuse(self, nodes: Sequence[Any]) -> None:
        check_placement(
            nodes, actors=1, cpus=self._spec.cpus_per_actor, gpus=self._spec.gpus_per_actor
        )

    # --- what it does between two events ---------------------------------------------------------

    def advance(self) -> bool:
        """Take in new units, fit the number of actors to them and hand out leases; False at the
        end of the work.
        """
        if self._feed is not None:
            units = self._feed()
            if units is None:
                self._feed = None
            else:
                self._ledger.add(units)
        if self._feed is None and self._ledger.complete:
            self._report()
            return False
        now = self._cluster.now()
        self._look_around(now)
        self._resize(now)
        self._hand_out(now)
        self._report()
        return True

    def _look_around(self, now: float) -> None:
        """At most once a tick, for it asks Ray: the machines, and the autoscaler."""
        wanted = self._wanted
        if wanted > self._asked or now - self._looked >= TICK_S:
            self._asked = wanted
            self._cluster.autoscaler.ask(wanted)
        if now - self._looked < TICK_S:
            return
        self._looked = now
        self._tell_silence(now)
        nodes = self._cluster.nodes()
        self._fits = placeable(
            nodes, cpus=self._spec.cpus_per_actor, gpus=self._spec.gpus_per_actor
        )
        placed = min(self._fits, wanted)
        if placed != self._placed and placed < wanted:
            self._say("waiting", None, f"{placed} of {wanted} actors placed, waiting for nodes")
        self._placed = placed
        if self._fits or not wanted or not (self._grows and self._cluster.autoscaler.refuses()):
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since >= REFUSAL_S:
            self._refuse(nodes)

    def _tell_silence(self, now: float) -> None:
        if (line := self._silence.line(now, self._ready, self._ledger)) is not None:
            self._say("waiting", *line)

    def _resize(self, now: float) -> None:
        wanted = self._wanted
        # Where machines can come, actors that wait for one are what brings it.
        holds = wanted if self._grows else min(wanted, self._fits)
        while self._alive < holds:
            self._start()
        if self._alive > wanted:
            self._shrink(wanted, now)

    def _shrink(self, wanted: int, now: float) -> None:
        """End actors beyond those wanted: at once if they have not begun, else when they have been
        idle for long.
        """
        for actor in sorted(self._starting, reverse=True)[: max(0, self._alive - wanted)]:
            self._starting.remove(actor)
            self._cluster.end(actor)
        idle = [actor for actor in self._ready if not self._ledger.held_by(actor)]
        idle.sort(key=self._ready.__getitem__)
        for actor in idle[: max(0, self._alive - wanted)]:
            if (seconds := now - self._ready[actor]) >= self._spec.idle_s:
                del self._ready[actor]
                self._cluster.end(actor)
                self._say("ended", actor, f"actor {actor} ended after {seconds:.0f} s of no work")

    def _start(self) -> None:
        actor, self._started = self._started, self._started + 1
        self._starting.add(actor)
        self._cluster.start(actor)

    def _hand_out(self, now: float) -> None:
        """One lease to each actor that has none, then a second one where units are short."""
        for ahead in range(self._pace.leases_ahead):
            for actor in self._ready:
                if not self._ledger.pending:
                    return
                if self._ledger.held_by(actor) <= ahead:
                    size = self._pace.lease(self._ledger.pending, len(self._ready))
                    lease = self._ledger.assign(actor, size)
                    assert lease is not None  # something is pending
                    if not ahead:
                        self._ready[actor] = now
                    self._cluster.submit(actor, lease.units)

    def _report(self) -> None:
        status = PoolStatus(
            wanted=self._wanted,
            starting=len(self._starting),
            running=self._ledger.busy,
            idle=len(self._ready) - self._ledger.busy,
            pending_units=self._ledger.pending,
            in_flight=self._ledger.in_flight,
            done=self._ledger.done,
            replacements=self._ledger.replacements,
        )
        now = self._cluster.now()
        if status != self._told or now - self._told_at >= TICK_S:
            self._told, self._told_at = status, now
            self._tell(status)

    # --- events ----------------------------------------------------------------------------------

    def react(self, event: Event | None) -> None:
        """Take in what happened."""
        now = self._cluster.now()
        if event is not None:
            self._silence.heard(now)
        match event:
            case Ready(actor, pid):
                self._starting.remove(actor)
                self._ready[actor] = now
                self._say("ready", actor, f"actor {actor} is ready (process {pid})")
            case Finished():
                self._finished(event, now)
            case Failed(actor, error):
                lease = self._ledger.running(actor)
                where = f"{lease} failed" if lease else "a worker could not be built"
                raise _error(where, error) from error
            case Lost():
                self._lost(event)

    def _finished(self, event: Finished, now: float) -> None:
        count = len(event.results)
        lease = self._ledger.finished(event.actor, count)
        self._ready[event.actor] = now
        if not lease.suspect:  # that one may have been done and stored before
            self._pace = self._pace.after(count, event.seconds)
        for unit, result in zip(lease.units, event.results, strict=False):
            self._on_result(unit, result)
        if event.error is not None:
            raise _error(f"{lease.units[count]} failed", event.error) from event.error

    def _lost(self, event: Lost) -> None:
        actor, reason = event.actor, event.reason
        self._starting.discard(actor)
        self._ready.pop(actor, None)
        lease = self._ledger.lost(actor, reason, machine_gone=event.machine_gone)
        again = ""
        if lease is not None and not isinstance(lease, Stop):
            again = f"; {lease} {'starts' if len(lease.units) == 1 else 'start'} again"
        self._say("lost", actor, f"actor {actor} died: {reason}{again}")
        if isinstance(lease, Stop):
            raise PoolError(lease.message, lease.remedy)
        decision = self._ledger.replace(alive=self._alive, wanted=self._wanted, reason=reason)
        if isinstance(decision, Stop):
            raise PoolError(decision.message, decision.remedy)
        if isinstance(decision, Retire):
            self._most -= decision.for_good
            self._say("retired", actor, f"actor {actor} is not replaced: {decision.reason}")
            return
        self._say("replaced", actor, f"actor {actor} is replaced by actor {self._started}")
        self._start()

    def _say(self, kind: Any, actor: int | None, text: str) -> None:
        self._notify(Notice(kind, actor, text))


def _error(where: str, error: BaseException) -> PoolError:
    if isinstance(error, FleetstepError):
        return PoolError(f"{where}: {error.message}", error.remedy)
    if isinstance(error, OSError):
        return PoolError(
            f"{where}: {type(error).__name__}: {error}",
            "look at that file system; what is started again does not do finished units again",
        )
    return PoolError(
        f"{where}: {type(error).__name__}: {error}",
        "trying again would fail the same way; finished units are kept and are not done again",
    )
