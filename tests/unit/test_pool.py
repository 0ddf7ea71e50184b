"""Every way a pool can live and end, on a virtual clock: no Ray, no processes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from fleetstep.config import PoolSpec
from fleetstep.errors import ExtractorError, PoolError, ResourceError
from fleetstep.orchestration.pool import Notice, run_units
from fleetstep.orchestration.pool_policy import LONGEST_LEASE_S
from fleetstep.orchestration.pool_silence import PATIENCE_S
from fleetstep.orchestration.pool_status import PoolStatus
from simulated_cluster import DIE, PREEMPT, START_S, SimulatedAutoscaler, SimulatedCluster

UNITS = [f"unit {name}" for name in "abcdef"]
MANY = [f"unit {number:03d}" for number in range(300)]


def pool(
    cluster: SimulatedCluster, units: Sequence[str], most: int = 2, **options: Any
) -> dict[str, str]:
    """Run units on a pool; of the options, those of a `PoolSpec` go there."""
    fields = {key: options.pop(key) for key in PoolSpec.model_fields.keys() & options.keys()}
    results: dict[str, str] = {}

    def on_result(unit: str, result: str) -> None:
        assert unit not in results, "a unit was reported twice"
        results[unit] = result

    options = {"on_result": on_result, **options}
    run_units(units, _never_built, pool=PoolSpec(max=most, **fields), cluster=cluster, **options)
    return results


def _never_built() -> Any:
    raise AssertionError("workers are built by the cluster, not by the pool")


def done(units: Sequence[str]) -> dict[str, str]:
    return {unit: unit.upper() for unit in units}


class Feed:
    """Hands out units at their times, then says that no more will come."""

    def __init__(self, cluster: SimulatedCluster, batches: Sequence[tuple[float, list[str]]]):
        self._cluster, self._batches, self.asked = cluster, list(batches), list[float]()

    def __call__(self) -> list[str] | None:
        self.asked.append(self._cluster.clock)
        if not self._batches:
            return None
        due: list[str] = []
        while self._batches and self._batches[0][0] <= self._cluster.clock:
            due += self._batches.pop(0)[1]
        return due


class TestWork:
    def test_units_start_in_the_given_order_and_each_runs_once(self):
        cluster = SimulatedCluster()
        assert pool(cluster, UNITS) == done(UNITS)
        assert cluster.begun == UNITS
        assert cluster.started == [0, 1]
        assert cluster.closed == 1

    def test_no_more_actors_than_units(self):
        cluster = SimulatedCluster()
        pool(cluster, UNITS[:1])
        assert cluster.started == [0]

    def test_nothing_to_do_touches_nothing(self):
        cluster = SimulatedCluster(machines=[])
        assert pool(cluster, []) == {}
        assert cluster.started == []
        assert cluster.closed == 0

    def test_an_actor_that_is_never_placed_blocks_no_unit(self):
        cluster = SimulatedCluster(
            machines=[{"CPU": 1.0}], cpus=1.0, autoscaler=SimulatedAutoscaler(most=1)
        )
        assert pool(cluster, UNITS, cpus_per_actor=1.0) == done(UNITS)
        assert cluster.started == [0, 1]

    def test_an_interrupt_keeps_what_is_finished_and_ends_the_actors(self):
        cluster = SimulatedCluster()
        seen: list[str] = []

        def interrupt_after_two(unit: str, result: str) -> None:
            seen.append(unit)
            if len(seen) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pool(cluster, UNITS, on_result=interrupt_after_two)
        assert seen == UNITS[:2]
        assert cluster.closed == 1
        assert cluster.autoscaler.asked[-1][1] == 0

    def test_silence_is_reported(self):
        notices: list[Notice] = []
        cluster = SimulatedCluster(unit_s=2.5 * PATIENCE_S)
        pool(cluster, UNITS[:1], on_event=notices.append)
        assert [notice.kind for notice in notices] == ["ready", "waiting", "waiting"]
        assert str(notices[1]).startswith("no news from actor 0 for 30 s (unit a): ")

    def test_an_actor_that_hangs_is_named_while_others_work_at_growing_intervals(self):
        cluster = SimulatedCluster(unit_s=lambda unit: 1000.0 if unit == "unit b" else 4.0)
        waits: list[tuple[float, Notice]] = []

        def hear(notice: Notice) -> None:
            if notice.kind == "waiting":
                waits.append((cluster.clock, notice))

        units = ["unit a", "unit b", *MANY]
        assert pool(cluster, units, on_event=hear) == done(units)
        assert all("s (unit b)" in str(notice) for _, notice in waits)
        assert {notice.actor for _, notice in waits} == {1}
        at = [clock - START_S for clock, _ in waits]
        assert at == pytest.approx([30, 60, 120, 240, 480, 960], abs=1.0)


class TestLeases:
    def test_short_units_go_out_many_at_a_time_and_two_leases_ahead(self):
        cluster = SimulatedCluster(unit_s=0.01)
        statuses: list[PoolStatus] = []
        assert pool(cluster, MANY, on_status=statuses.append) == done(MANY)
        sizes = [len(units) for _, units in cluster.leases]
        assert sizes[0] == 1
        assert 30 < max(sizes) <= 75
        assert len(sizes) < 40
        held = {0: 0, 1: 0}
        for actor, _ in cluster.leases[2:6]:
            held[actor] += 1
        assert held == {0: 2, 1: 2}

    def test_long_units_go_out_one_at_a_time(self):
        cluster = SimulatedCluster(unit_s=1.0)
        pool(cluster, UNITS)
        assert [len(units) for _, units in cluster.leases] == [1] * 6

    def test_the_last_units_are_shared(self):
        cluster = SimulatedCluster(unit_s=0.01)
        pool(cluster, MANY)
        assert [len(units) for _, units in cluster.leases[-4:]] == [1] * 4

    def test_a_lease_whose_units_are_slower_than_thought_comes_back_early(self):
        slow = set(MANY[40:])
        cluster = SimulatedCluster(unit_s=lambda unit: 1.0 if unit in slow else 0.002)
        when: list[float] = []
        results: dict[str, str] = {}

        def on_result(unit: str, result: str) -> None:
            results[unit] = result
            when.append(cluster.clock)

        pool(cluster, MANY, on_result=on_result)
        assert results == done(MANY)
        # Two actors with two leases each, every one of them cut.
        assert max(b - a for a, b in pairwise(when)) <= LONGEST_LEASE_S + 1.0
        assert cluster.clock < START_S + (len(slow) + 6) / 2

    def test_what_a_lease_finished_before_an_error_is_reported(self):
        broken = ZeroDivisionError("by nought")
        cluster = SimulatedCluster({MANY[40]: [broken]}, unit_s=0.01)
        results: list[str] = []
        with pytest.raises(PoolError, match=rf"^{MANY[40]} failed: ZeroDivisionError: by nought"):
            pool(cluster, MANY, most=1, on_result=lambda unit, result: results.append(unit))
        assert results == MANY[:40]
        assert len(next(units for _, units in cluster.leases if MANY[40] in units)) > 1


class TestDeaths:
    def test_a_dead_actor_is_replaced_and_its_unit_starts_next(self):
        cluster = SimulatedCluster({"unit b": [DIE]})
        notices: list[Notice] = []
        assert pool(cluster, UNITS, on_event=notices.append) == done(UNITS)
        assert cluster.started == [0, 1, 2]
        assert cluster.begun == ["unit a", "unit b", "unit b", *UNITS[2:]]
        assert [n.kind for n in notices if n.kind != "ready"] == ["lost", "replaced"]
        assert notices[2].text == "actor 1 died: killed by a test; unit b starts again"

    def test_an_actor_that_dies_while_starting_is_replaced(self):
        cluster = SimulatedCluster(starts=["machine gone"])
        assert pool(cluster, UNITS) == done(UNITS)
        assert cluster.started == [0, 1, 2]

    def test_a_death_in_a_lease_costs_one_unit(self):
        cluster = SimulatedCluster({MANY[100]: [DIE]}, unit_s=0.01)
        statuses: list[PoolStatus] = []
        assert pool(cluster, MANY, most=1, on_status=statuses.append) == done(MANY)
        first = next(units for _, units in cluster.leases if MANY[100] in units)
        alone = [units for _, units in cluster.leases if len(units) == 1]
        assert len(first) > 1
        assert all((unit,) in alone for unit in first)
        # The stored ones took no time again; the lease that waited behind was not taken apart.
        assert cluster.clock == pytest.approx(2 * START_S + 3.0, abs=0.02)
        assert sum(len(units) > 1 for _, units in cluster.leases) > 5
        assert statuses[-1].replacements == 1

    def test_a_unit_that_kills_every_actor_is_named_even_in_a_crowd(self):
        cluster = SimulatedCluster({MANY[100]: [DIE] * 9}, unit_s=0.01)
        with pytest.raises(
            PoolError, match=rf"{MANY[100]} lost its actor 3 times.*killed by a test"
        ):
            pool(cluster, MANY)
        assert cluster.begun.count(MANY[100]) == 4
        assert cluster.closed == 1

    def test_preemptions_are_no_units_fault(self):
        cluster = SimulatedCluster({"unit b": [PREEMPT] * 5})
        assert pool(cluster, UNITS, max_attempts=2) == done(UNITS)
        assert cluster.begun.count("unit b") == 6

    def test_what_takes_every_machine_down_is_bounded_all_the_same(self):
        cluster = SimulatedCluster({"unit b": [PREEMPT] * 99})
        with pytest.raises(PoolError, match="all 4 replacements are used up"):
            pool(cluster, UNITS[1:2], max_replacements=4)
        assert cluster.begun.count("unit b") == 1 + 4

    def test_neighbours_of_such_a_unit_are_not_blamed(self):
        cluster = SimulatedCluster({MANY[100]: [DIE] * 2, MANY[101]: [DIE]}, unit_s=0.01)
        assert pool(cluster, MANY, max_attempts=2) == done(MANY)

    def test_without_replacements_the_pool_shrinks_and_finishes(self):
        cluster = SimulatedCluster({"unit a": [DIE]})
        notices: list[Notice] = []
        assert pool(cluster, UNITS, max_replacements=0, on_event=notices.append) == done(UNITS)
        assert cluster.started == [0, 1]
        assert [n.kind for n in notices if n.kind != "ready"] == ["lost", "retired"]

    def test_replacements_in_a_row_are_bounded(self):
        cluster = SimulatedCluster(starts=["no memory"] * 99)
        with pytest.raises(PoolError, match=r"all 3 replacements are used up.*no memory"):
            pool(cluster, UNITS, max_replacements=3)
        assert len(cluster.started) == 2 + 3
        assert cluster.closed == 1

    def test_preempted_actors_end_no_work_that_gets_on(self):
        cluster = SimulatedCluster({unit: [DIE] for unit in MANY[::2]})
        statuses: list[PoolStatus] = []
        assert pool(cluster, MANY, on_status=statuses.append) == done(MANY)
        assert statuses[-1].replacements > 100

    def test_the_last_unit_needs_no_replacement_while_another_actor_idles(self):
        cluster = SimulatedCluster(
            {"unit b": [DIE]}, unit_s=lambda u: 20.0 if u == "unit b" else 0
        )
        notices: list[Notice] = []
        assert pool(cluster, UNITS[:2], on_event=notices.append) == done(UNITS[:2])
        assert cluster.started == [0, 1]
        assert notices[-1].kind == "retired"

    def test_our_own_errors_keep_their_remedy_across_the_pool(self):
        missing = ExtractorError("the weights are not there", "give their path")
        with pytest.raises(PoolError) as caught:
            pool(SimulatedCluster(starts=[missing]), UNITS)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (
            str(error)
            == "a worker could not be built: the weights are not there\n  -> give their path"
        )


class TestErrors:
    def test_one_of_the_file_system_may_pass_and_any_other_would_come_again(self):
        for error, remedy in (
            (OSError(5, "Input/output error"), "look at that file system"),
            (ValueError("wrong shape"), "trying again would fail the same way"),
        ):
            with pytest.raises(PoolError) as caught:
                pool(SimulatedCluster({"unit a": [error]}), UNITS)
            assert caught.value.remedy.startswith(remedy)


class TestFeed:
    def test_units_that_come_late_are_done_and_the_pool_ends_when_no_more_will_come(self):
        cluster = SimulatedCluster()
        feed = Feed(cluster, [(0.0, UNITS[:2]), (40.0, UNITS[2:5]), (41.0, UNITS[5:])])
        assert pool(cluster, [], feed=feed, idle_s=1000.0) == done(UNITS)
        assert max(b - a for a, b in pairwise(feed.asked)) <= 1.0
        assert cluster.started == [0, 1]
        assert cluster.ended == []
        assert cluster.clock == pytest.approx(60.0, abs=1.0)

    def test_it_is_not_asked_again_once_it_has_ended(self):
        cluster = SimulatedCluster()
        feed = Feed(cluster, [])
        assert pool(cluster, UNITS, feed=feed) == done(UNITS)
        assert len(feed.asked) == 1

    def test_without_work_the_pool_shrinks_to_nothing_and_grows_again(self):
        cluster = SimulatedCluster()
        feed = Feed(cluster, [(0.0, UNITS[:2]), (200.0, UNITS[2:])])
        alive: dict[float, int] = {}

        def watch(status: PoolStatus) -> None:
            alive[cluster.clock] = status.starting + status.running + status.idle

        assert pool(cluster, [], feed=feed, idle_s=30.0, on_status=watch) == done(UNITS)
        ended = [at for at, _ in cluster.ended]
        assert ended == pytest.approx([START_S + 10.0 + 30.0] * 2, abs=1.0)
        assert {n for at, n in alive.items() if 45 < at < 199} == {0}
        assert cluster.started == [0, 1, 2, 3]
        assert [n for _, n in cluster.autoscaler.asked] == [2, 1, 0, 2, 1, 0]

    def test_it_keeps_the_least_number_of_actors(self):
        cluster = SimulatedCluster()
        feed = Feed(cluster, [(100.0, UNITS)])
        pool(cluster, [], feed=feed, min=1, idle_s=5.0)
        assert cluster.started[0] == 0
        assert all(actor != 0 for _, actor in cluster.ended)
        assert cluster.leases[0] == (0, ("unit a",))

    def test_actors_that_have_not_begun_are_not_waited_for_when_others_did_the_work(self):
        cluster = SimulatedCluster(
            machines=[{"CPU": 1.0}], cpus=1.0, autoscaler=SimulatedAutoscaler(most=1)
        )
        feed = Feed(cluster, [(0.0, UNITS), (90.0, [])])
        pool(cluster, [], 3, feed=feed, cpus_per_actor=1.0, idle_s=1000.0)
        assert [actor for _, actor in cluster.ended] == [2, 1]
        assert [at for at, _ in cluster.ended] == [START_S + 40, START_S + 50]


class TestMachines:
    def test_a_pool_runs_with_what_fits_and_says_so(self):
        cluster = SimulatedCluster()
        notices: list[Notice] = []
        assert pool(cluster, UNITS, 6, on_event=notices.append) == done(UNITS)
        assert cluster.started == [0, 1, 2, 3]
        assert str(notices[0]) == "4 of 6 actors placed, waiting for nodes"

    def test_a_machine_that_joins_is_used(self):
        cluster = SimulatedCluster(machines=[{"CPU": 1.0}], cpus=1.0)
        cluster.at(5.0, lambda: cluster.machines.append({"CPU": 1.0}))
        assert pool(cluster, UNITS, 3, cpus_per_actor=1.0) == done(UNITS)
        assert cluster.started == [0, 1]

    def test_one_that_cannot_hold_an_actor_is_refused_before_anything_is_created(self):
        cluster = SimulatedCluster(cpus=3.0)
        with pytest.raises(ResourceError, match=r"1 actor x 3 CPU = 3 CPU .* with 2 CPU in all"):
            pool(cluster, UNITS, cpus_per_actor=3.0)
        assert cluster.started == []
        assert cluster.closed == 1

    def test_an_autoscaler_is_asked_for_what_the_backlog_needs_and_let_go(self):
        autoscaler = SimulatedAutoscaler(most=3)
        cluster = SimulatedCluster(machines=[], cpus=1.0, autoscaler=autoscaler, unit_s=60.0)
        statuses: list[PoolStatus] = []
        assert pool(
            cluster, UNITS[:5], 4, cpus_per_actor=1.0, idle_s=10.0, on_status=statuses.append
        ) == done(UNITS[:5])
        assert autoscaler.asked[0] == (0.0, 4)
        assert [n for _, n in autoscaler.asked] == [4, 2, 1, 0]
        assert (statuses[0].wanted, statuses[0].starting) == (4, 4)
        assert max(status.running for status in statuses) == 3
        # Its work done, the third goes while two are still busy.
        (at, _), *_ = [end for end in cluster.ended if end[0] > 70.0]
        assert at == pytest.approx(5.0 + START_S + 60.0 + 10.0, abs=1.0)

    def test_what_it_can_bring_is_not_refused_and_what_it_cannot_is(self):
        autoscaler = SimulatedAutoscaler(most=1, kinds=[{"CPU": 1.0}, {"CPU": 4.0}])
        cluster = SimulatedCluster(machines=[], cpus=1.0, autoscaler=autoscaler)
        assert pool(cluster, UNITS[:1], cpus_per_actor=1.0) == done(UNITS[:1])
        with pytest.raises(ResourceError, match=r"1 actor x 5 CPU"):
            pool(
                SimulatedCluster(machines=[], cpus=5.0, autoscaler=autoscaler),
                UNITS,
                cpus_per_actor=5.0,
            )

    @pytest.mark.parametrize("refusing", [True, False])
    def test_one_of_unknown_kinds_is_believed_when_it_keeps_refusing(self, refusing: bool):
        autoscaler = SimulatedAutoscaler(most=1, after_s=60.0)
        autoscaler.refusing = refusing
        cluster = SimulatedCluster(machines=[], cpus=1.0, autoscaler=autoscaler)
        if refusing:
            with pytest.raises(ResourceError, match="hold 0 such actors"):
                pool(cluster, UNITS, cpus_per_actor=1.0)
            assert 5.0 <= cluster.clock <= 7.0
            assert autoscaler.asked[-1][1] == 0
        else:
            assert pool(cluster, UNITS, cpus_per_actor=1.0) == done(UNITS)

    def test_actors_that_need_no_cpu_start_at_once(self):
        cluster = SimulatedCluster(machines=[{"CPU": 1.0}], cpus=0.0)
        assert pool(cluster, UNITS, 6, cpus_per_actor=0.0) == done(UNITS)
        assert len(cluster.started) == 6


class TestStatus:
    def test_it_is_told_on_every_change_and_as_a_sign_of_life(self):
        cluster = SimulatedCluster({"unit b": [DIE]})
        told: list[tuple[float, PoolStatus]] = []
        pool(cluster, UNITS, on_status=lambda status: told.append((cluster.clock, status)))
        assert told[0][1] == PoolStatus(wanted=2, starting=2, pending_units=6)
        assert told[-1][1] == PoolStatus(idle=2, done=6, replacements=1)
        assert max(b - a for (a, _), (b, _) in pairwise(told)) <= 1.0
        for _, status in told:
            assert status.pending_units + status.in_flight + status.done == 6
            assert status.starting + status.running + status.idle <= 2
