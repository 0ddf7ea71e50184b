"""How many actors are wanted, and how long leases are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetstep.orchestration.pool_policy import LEASE_S, MOST_UNITS, Pace, wanted_actors


@pytest.mark.parametrize(
    ("unit_s", "units", "ahead"),
    [(None, 1, 1), (0.0, MOST_UNITS, 2), (0.05, 15, 2), (0.5, 1, 2), (0.75, 1, 1), (40.0, 1, 1)],
)
def test_a_full_lease_lasts_three_quarters_of_a_second(
    unit_s: float | None, units: int, ahead: int
):
    assert Pace(unit_s).full_lease == units
    assert Pace(unit_s).leases_ahead == ahead


@given(st.floats(0, 100), st.integers(1, 10_000), st.integers(1, 1000))
def test_a_lease_is_never_longer_than_a_share_or_than_what_it_should_last(
    unit_s: float, pending: int, actors: int
):
    size = Pace(unit_s).lease(pending, actors)
    assert 1 <= size <= MOST_UNITS
    assert size == 1 or size * unit_s <= LEASE_S
    assert size == 1 or 2 * actors * size <= pending


def test_the_pace_follows_units_that_become_slower():
    pace = Pace().after(64, 0.064)
    assert pace.unit_s == pytest.approx(0.001)
    for _ in range(6):
        pace = pace.after(1, 2.0)
    assert pace.full_lease == 1
    assert Pace(0.3).after(0, 5.0) == Pace(0.3)


@given(
    st.integers(0, 5000), st.integers(0, 50), st.integers(0, 50), st.integers(1, 50),
    st.one_of(st.none(), st.floats(0, 100)),
)  # fmt: skip
def test_wanted_lies_between_least_and_most_and_keeps_no_actor_for_less_than_a_lease(
    pending: int, busy: int, least: int, most: int, unit_s: float | None
):
    least, pace = min(least, most), Pace(unit_s)
    wanted = wanted_actors(pending=pending, busy=busy, pace=pace, least=least, most=most)
    assert least <= wanted <= most
    if least < wanted < most:
        assert (wanted - busy - 1) * pace.full_lease < pending <= (wanted - busy) * pace.full_lease


def test_long_units_want_an_actor_each_and_short_ones_share():
    def wanted(unit_s: float) -> int:
        return wanted_actors(pending=40, busy=2, pace=Pace(unit_s), least=0, most=100)

    assert wanted(3.0) == 42
    assert wanted(0.075) == 6
    assert wanted(0.0) == 3
