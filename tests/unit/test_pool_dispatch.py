"""Every way a pool can end, against scripted clusters: no Ray, no processes, no clock."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from fleetstep.errors import ExtractorError, PoolError, ResourceError
from fleetstep.orchestration.dispatch import Ledger, Replace, Retire, Stop, breadth_first
from fleetstep.orchestration.placement import check_placement
from fleetstep.orchestration.pool import (
    Event,
    Failed,
    Finished,
    Lost,
    Notice,
    Ready,
    run_units,
)

Reply = Callable[[int, str], Event]


def finish(actor: int, unit: str) -> Event:
    return Finished(actor, unit.upper())


def die(actor: int, unit: str) -> Event:
    return Lost(actor, "killed by a test")


class ScriptedCluster:
    """Runs units at once; a unit's n-th start gets its n-th scripted reply (default: finish)."""

    def __init__(
        self,
        script: Mapping[str, Sequence[Reply]] | None = None,
        *,
        starts: Sequence[Callable[[int], Event] | None] = (),
        nodes: Sequence[Mapping[str, float]] = ({"CPU": 2.0},),
    ) -> None:
        self.script = {unit: deque(replies) for unit, replies in (script or {}).items()}
        self.starts = deque(starts)
        self.events: deque[Event | KeyboardInterrupt] = deque()
        self.started: list[int] = []
        self.submitted: list[tuple[int, str]] = []
        self.closed = 0
        self._nodes = nodes

    def nodes(self) -> Sequence[Mapping[str, float]]:
        return self._nodes

    def start(self, actor: int) -> None:
        self.started.append(actor)
        reply = (
            self.starts.popleft() if self.starts else (lambda number: Ready(number, 1000 + number))
        )
        if reply is not None:  # None: the cluster never finds room for it
            self.events.append(reply(actor))

    def submit(self, actor: int, unit: str) -> None:
        self.submitted.append((actor, unit))
        replies = self.script.get(unit)
        self.events.append((replies.popleft() if replies else finish)(actor, unit))

    def next(self, timeout: float) -> Event | None:
        assert self.events, "the pool waits for an event that will never come"
        event = self.events.popleft()
        if isinstance(event, KeyboardInterrupt):
            raise event
        return event

    def close(self) -> None:
        self.closed += 1


def pool(
    cluster: ScriptedCluster, units: Sequence[str], actors: int = 2, **options: Any
) -> dict[str, str]:
    results: dict[str, str] = {}

    def on_result(unit: str, result: str) -> None:
        assert unit not in results, "a unit was reported twice"
        results[unit] = result

    run_units(units, _never_built, actors=actors, on_result=on_result, cluster=cluster, **options)
    return results


def _never_built() -> Any:
    raise AssertionError("workers are built by the cluster, not by the pool")


UNITS = [f"unit {name}" for name in "abcdef"]
ALL = {unit: unit.upper() for unit in UNITS}


class TestBreadthFirst:
    def test_takes_one_of_each_group_in_turn_and_loses_none(self):
        assert breadth_first([["a0", "a1", "a2"], ["b0"], [], ["c0", "c1"]]) == [
            "a0",
            "b0",
            "c0",
            "a1",
            "c1",
            "a2",
        ]


class TestPool:
    def test_units_start_in_the_given_order_and_each_runs_once(self):
        cluster = ScriptedCluster()
        assert pool(cluster, UNITS) == ALL
        assert [unit for _, unit in cluster.submitted] == UNITS
        assert cluster.started == [0, 1]
        assert cluster.closed == 1

    def test_no_more_actors_than_units(self):
        cluster = ScriptedCluster()
        pool(cluster, UNITS[:1], actors=2)
        assert cluster.started == [0]

    def test_nothing_to_do_touches_nothing(self):
        cluster = ScriptedCluster(nodes=[])
        assert pool(cluster, []) == {}
        assert cluster.started == []

    def test_an_actor_that_is_never_placed_blocks_no_unit(self):
        cluster = ScriptedCluster(starts=[lambda n: Ready(n, 1), None])
        assert pool(cluster, UNITS) == ALL

    def test_a_dead_actor_is_replaced_and_its_unit_starts_next(self):
        cluster = ScriptedCluster({"unit b": [die]})
        notices: list[Notice] = []
        assert pool(cluster, UNITS, on_event=notices.append) == ALL
        assert cluster.started == [0, 1, 2]
        order = [unit for _, unit in cluster.submitted]
        assert order.count("unit b") == 2
        assert all(order.count(unit) == 1 for unit in UNITS if unit != "unit b")
        assert (
            order.index("unit d") > len(order) - order[::-1].index("unit b") - 1
        )  # before the units not yet begun
        assert [n.kind for n in notices if n.kind != "ready"] == ["lost", "replaced"]
        assert any(
            "unit b starts again" in n.text and "killed by a test" in n.text for n in notices
        )

    def test_an_actor_that_dies_while_starting_is_replaced(self):
        cluster = ScriptedCluster(starts=[lambda n: Lost(n, "machine gone")])
        assert pool(cluster, UNITS) == ALL
        assert cluster.started == [0, 1, 2]

    def test_a_unit_that_kills_every_actor_is_named(self):
        cluster = ScriptedCluster({"unit b": [die] * 3})
        with pytest.raises(PoolError, match=r"unit b lost its actor 3 times.*killed by a test"):
            pool(cluster, UNITS, max_replacements=10)
        assert [unit for _, unit in cluster.submitted].count("unit b") == 3
        assert cluster.closed == 1

    def test_without_replacements_the_pool_shrinks_and_finishes(self):
        cluster = ScriptedCluster({"unit a": [die]})
        notices: list[Notice] = []
        assert pool(cluster, UNITS, max_replacements=0, on_event=notices.append) == ALL
        assert cluster.started == [0, 1]
        assert [n.kind for n in notices if n.kind != "ready"] == ["lost", "retired"]

    def test_the_number_of_replacements_is_bounded(self):
        dying = [lambda n: Lost(n, "no memory")] * 99
        cluster = ScriptedCluster(starts=dying)
        with pytest.raises(PoolError, match=r"all 3 replacements are used up.*no memory"):
            pool(cluster, UNITS, max_replacements=3)
        assert len(cluster.started) == 2 + 3
        assert cluster.closed == 1

    def test_the_last_unit_needs_no_replacement_while_another_actor_idles(self):
        cluster = ScriptedCluster({"unit b": [die]})
        assert pool(cluster, UNITS[:2]) == {unit: ALL[unit] for unit in UNITS[:2]}
        assert cluster.started == [0, 1]

    def test_a_units_own_error_stops_at_once_and_names_it(self):
        broken = ZeroDivisionError("by nought")
        cluster = ScriptedCluster({"unit c": [lambda actor, unit: Failed(actor, broken)]})
        with pytest.raises(
            PoolError, match=r"unit c failed: ZeroDivisionError: by nought"
        ) as caught:
            pool(cluster, UNITS)
        assert caught.value.__cause__ is broken
        assert [unit for _, unit in cluster.submitted].count("unit c") == 1
        assert cluster.closed == 1

    def test_our_own_errors_keep_their_remedy_across_the_pool(self):
        missing = ExtractorError("the weights are not there", "give their path")
        cluster = ScriptedCluster(starts=[lambda n: Failed(n, missing)])
        with pytest.raises(PoolError) as caught:
            pool(cluster, UNITS)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (
            str(error)
            == "a worker could not be built: the weights are not there\n  -> give their path"
        )

    def test_an_interrupt_keeps_what_is_finished_and_ends_the_actors(self):
        cluster = ScriptedCluster()
        seen: list[str] = []

        def interrupt_after_two(unit: str, result: str) -> None:
            seen.append(unit)
            if len(seen) == 2:
                cluster.events.appendleft(KeyboardInterrupt())

        with pytest.raises(KeyboardInterrupt):
            run_units(
                UNITS, _never_built, actors=2, on_result=interrupt_after_two, cluster=cluster
            )
        assert seen == UNITS[:2]
        assert cluster.closed == 1

    def test_silence_is_reported(self):
        cluster = ScriptedCluster()
        cluster.events.append(None)  # type: ignore[arg-type]
        notices: list[Notice] = []
        pool(cluster, UNITS, on_event=notices.append)
        assert notices[0].kind == "waiting"


class TestPlacement:
    def test_the_refusal_states_the_sum_before_anything_is_created(self):
        cluster = ScriptedCluster(nodes=[{"CPU": 2.0}])
        with pytest.raises(ResourceError) as caught:
            pool(cluster, UNITS, actors=5, cpus_per_actor=0.5)
        assert cluster.started == []
        assert (
            "5 actors x 0.5 CPU = 2.5 CPU asked for, but 1 machine with 2 CPU in all hold 4"
            in str(caught.value)
        )
        assert "at most 4 actors" in caught.value.remedy

    def test_an_actor_is_not_split_over_two_machines(self):
        two_small = [{"CPU": 1.0}, {"CPU": 1.0}]
        with pytest.raises(ResourceError, match="hold 0 such actors"):
            check_placement(two_small, actors=1, cpus=2.0, gpus=0)
        check_placement(two_small, actors=2, cpus=1.0, gpus=0)

    def test_gpus_count_too(self):
        with pytest.raises(
            ResourceError, match=r"3 x 0.5 GPU = 1.5 GPU asked for.* and 1 GPU in all hold 2"
        ):
            check_placement([{"CPU": 8.0, "GPU": 1.0}], actors=3, cpus=1.0, gpus=0.5)

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
    def test_fractions_add_up_exactly(self, share: float):
        fit = round(1 / share - 0.5) if share == 0.3 else round(1 / share)
        check_placement([{"CPU": 1.0}], actors=fit, cpus=share, gpus=0)
        with pytest.raises(ResourceError):
            check_placement([{"CPU": 1.0}], actors=fit + 1, cpus=share, gpus=0)


class TestLedger:
    def ledger(self, **limits: int) -> Ledger[str]:
        ledger = Ledger(
            UNITS,
            max_attempts=limits.get("attempts", 3),
            max_replacements=limits.get("replacements", 2),
        )
        for actor in (0, 1):
            ledger.joined(actor)
        return ledger

    def test_a_unit_is_never_in_two_places(self):
        ledger = self.ledger()
        assert (ledger.assign(0), ledger.assign(1)) == ("unit a", "unit b")
        assert isinstance(ledger.lost(0, "gone"), Replace)
        assert ledger.unit_of(0) is None
        assert ledger.finished(1) == "unit b"
        assert ledger.assign(1) == "unit a"
        assert ledger.done == 1

    def test_the_decision_follows_attempts_then_replacements_then_survivors(self):
        ledger = self.ledger(attempts=2, replacements=1)
        ledger.assign(0)
        assert isinstance(ledger.lost(0, "first"), Replace)
        ledger.joined(2)
        assert isinstance(ledger.lost(2, "while starting"), Retire)
        assert ledger.assign(1) == "unit a"
        stop = ledger.lost(1, "second")
        assert isinstance(stop, Stop)
        assert "unit a lost its actor 2 times" in stop.message
