"""Which units go where and what follows a death: the ledger alone. Also what fits on machines."""

from __future__ import annotations

import pytest

from fleetstep.errors import ResourceError
from fleetstep.orchestration.dispatch import Ledger, Replace, Retire, Stop, breadth_first
from fleetstep.orchestration.placement import check_placement

UNITS = [f"unit {name}" for name in "abcdef"]


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


def ledger(*, attempts: int = 3, replacements: int = 2) -> Ledger[str]:
    return Ledger(UNITS, max_attempts=attempts, max_replacements=replacements)


def take(of: Ledger[str], actor: int, size: int = 1) -> tuple[str, ...]:
    lease = of.assign(actor, size)
    assert lease is not None
    return lease.units


def counts(of: Ledger[str]) -> tuple[int, int, int]:
    return of.pending, of.in_flight, of.done


class TestLedger:
    def test_a_unit_is_in_one_place(self):
        work = ledger()
        assert (take(work, 0, 2), take(work, 1, 2), take(work, 0)) == (
            ("unit a", "unit b"),
            ("unit c", "unit d"),
            ("unit e",),
        )
        assert counts(work) == (1, 5, 0)
        assert (work.busy, work.held_by(0), work.held_by(7)) == (2, 2, 0)
        assert work.finished(0, 2).units == ("unit a", "unit b")
        assert counts(work) == (1, 3, 2)
        assert work.held_by(0) == 1

    def test_units_that_were_not_begun_come_next(self):
        work = ledger()
        take(work, 0, 4)
        work.finished(0, 1)
        assert counts(work) == (5, 0, 1)
        assert take(work, 1, 6) == tuple(UNITS[1:])

    def test_after_a_death_the_units_of_its_lease_start_alone_and_the_lease_behind_as_before(self):
        work = ledger()
        take(work, 0, 2), take(work, 0, 2)
        again = work.lost(0, "gone")
        assert str(again) == "unit a and 1 more"
        assert counts(work) == (6, 0, 0)
        assert [take(work, 1, 9) for _ in range(3)] == [("unit a",), ("unit b",), tuple(UNITS[2:])]

    def test_a_lease_of_one_that_waits_behind_a_death_is_not_suspected(self):
        work = ledger(attempts=1)
        take(work, 0, 2), take(work, 0, 1)
        work.lost(0, "gone")  # unit c waited
        take(work, 1), take(work, 2), take(work, 3)
        work.finished(1, 1), work.finished(2, 1)
        assert isinstance(work.lost(3, "again"), Stop)

    def test_a_unit_is_blamed_for_deaths_it_saw_alone_and_its_neighbours_are_not(self):
        work = ledger(attempts=2)
        take(work, 0, 3)
        work.lost(0, "first")
        assert take(work, 1) == ("unit a",)
        assert not isinstance(work.lost(1, "second"), Stop)
        assert take(work, 2) == ("unit a",)
        assert take(work, 3) == ("unit b",)
        assert not isinstance(work.lost(3, "third"), Stop)
        stop = work.lost(2, "fourth")
        assert isinstance(stop, Stop)
        assert "unit a lost its actor 2 times, the last time because: fourth" in stop.message

    def test_a_unit_whose_machine_went_is_not_blamed_and_earlier_deaths_still_count(self):
        work = ledger(attempts=2)
        for actor, machine_gone in enumerate((True, False, True, True)):
            take(work, actor)
            lease = work.lost(actor, "gone", machine_gone=machine_gone)
            assert str(lease) == "unit a"
        take(work, 9)
        assert isinstance(work.lost(9, "killed"), Stop)

    def test_an_actor_without_work_takes_nothing_with_it(self):
        work = ledger()
        assert work.lost(0, "gone") is None
        assert counts(work) == (6, 0, 0)

    def test_the_place_is_filled_while_replacements_are_left_and_then_given_up(self):
        work = ledger(replacements=1)
        decide = lambda alive, wanted: work.replace(alive=alive, wanted=wanted, reason="why")  # noqa: E731
        assert decide(2, 2) == Retire(
            "the remaining actors suffice for the remaining units", for_good=False
        )
        assert decide(1, 2) == Replace()
        assert decide(1, 2) == Retire("all 1 replacements are used up", for_good=True)
        assert isinstance(stop := decide(0, 2), Stop)
        assert "why" in stop.message
        assert work.replacements == 1

    def test_work_that_gets_on_earns_replacements_back_up_to_the_limit(self):
        work = ledger(replacements=1)
        for _ in range(3):
            take(work, 0)
            work.finished(0, 1)
        assert work.replace(alive=1, wanted=2, reason="") == Replace()
        assert isinstance(work.replace(alive=1, wanted=2, reason=""), Retire)

    def test_work_that_is_added_comes_last(self):
        work = ledger()
        work.add(["late"])
        assert take(work, 0, 9)[-1] == "late"
        work.finished(0, 7)
        assert work.complete
        work.add(["later"])
        assert not work.complete

    def test_nothing_is_kept_of_what_is_done(self):
        import gc
        import weakref

        class Unit:
            pass

        units = [Unit() for _ in range(100)]
        watched = [weakref.ref(unit) for unit in units]
        work: Ledger[Unit] = Ledger(units, max_attempts=3, max_replacements=3)
        del units
        while work.assign(0, 7):
            work.finished(0, min(7, work.in_flight))
        gc.collect()
        assert work.done == 100
        assert [ref() for ref in watched] == [None] * 100


class TestPlacement:
    def test_the_refusal_states_the_sum(self):
        with pytest.raises(
            ResourceError,
            match=r"5 actors x 0.5 CPU = 2.5 CPU asked for, but 1 machine with 2 CPU .* hold 4",
        ) as caught:
            check_placement([{"CPU": 2.0}], actors=5, cpus=0.5, gpus=0)
        assert "at most 4 actors" in caught.value.remedy

    def test_an_actor_is_not_split_over_two_machines(self):
        two_small = [{"CPU": 1.0}, {"CPU": 1.0}]
        with pytest.raises(ResourceError, match=r"1 actor x 2 CPU .*hold 0 such actors"):
            check_placement(two_small, actors=1, cpus=2.0, gpus=0)
        check_placement(two_small, actors=2, cpus=1.0, gpus=0)

    def test_gpus_count_too(self):
        with pytest.raises(
            ResourceError, match=r"3 x 0.5 GPU = 1.5 GPU asked for.* and 1 GPU in all hold 2"
        ):
            check_placement([{"CPU": 8.0, "GPU": 1.0}], actors=3, cpus=1.0, gpus=0.5)

    def test_actors_that_need_nothing_fit_anywhere(self):
        check_placement([{"CPU": 1.0}], actors=1000, cpus=0, gpus=0)

    @pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
    def test_fractions_add_up_exactly(self, share: float):
        fit = round(1 / share - 0.5) if share == 0.3 else round(1 / share)
        check_placement([{"CPU": 1.0}], actors=fit, cpus=share, gpus=0)
        with pytest.raises(ResourceError):
            check_placement([{"CPU": 1.0}], actors=fit + 1, cpus=share, gpus=0)
