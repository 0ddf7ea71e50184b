"""How many actors a pool wants and how many units it hands out at a time: arithmetic only, no Ray,
no clock.

Units go out in leases, several to a task, so that the way to an actor and back does not count
beside them; a lease is short enough for results to flow and for the last ones to end together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEASE_S = 0.75
"""Seconds that a lease shall take: the way there and back, some milliseconds, is no part of it."""

LONGEST_LEASE_S = 2 * LEASE_S
"""Seconds after which an actor gives the rest of a lease back: the next units may be slower."""

MOST_UNITS = 64
"""Units of a lease at most."""

_LATEST = 0.5  # weight of the newest lease in the mean: units of one sweep differ tenfold


@dataclass(frozen=True)
class Pace:
    """How long units take.

    Args:
        unit_s: seconds per unit, a mean that forgets; None while no lease has come back.
    """

    unit_s: float | None = None

    def after(self, units: int, seconds: float) -> Pace:
        """The pace after a lease of which `units` were done in `seconds`."""
        if units == 0:
            return self
        latest = seconds / units
        if self.unit_s is None:
            return Pace(latest)
        return Pace(_LATEST * latest + (1 - _LATEST) * self.unit_s)

    @property
    def full_lease(self) -> int:
        """Units that fill a lease; one while units are unknown, or longer than a lease."""
        if self.unit_s is None:
            return 1
        if self.unit_s * MOST_UNITS <= LEASE_S:
            return MOST_UNITS
        return max(1, int(LEASE_S / self.unit_s))

    @property
    def leases_ahead(self) -> int:
        """Leases that an actor may hold: a second one waits there while short units are done."""
        return 2 if self.unit_s is not None and self.unit_s < LEASE_S else 1

    def lease(self, pending: int, actors: int) -> int:
        """Units of the next lease: no actor of `actors` takes more than its share of `pending`,
        halved, so that near the end there is still something to share.
        """
        return max(1, min(self.full_lease, pending // (2 * max(1, actors))))


def wanted_actors(*, pending: int, busy: int, pace: Pace, least: int, most: int) -> int:
    """How many actors the backlog keeps busy, between `least` and `most`.

    Args:
        pending: units that no actor holds.
        busy: actors that hold a lease.
        pace: of the units.
        least, most: of the pool.
    """
    leases = math.ceil(pending / pace.full_lease)
    return max(least, min(most, busy + leases))
