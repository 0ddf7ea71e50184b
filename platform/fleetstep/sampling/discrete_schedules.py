"""Schedules made of the levels of processes in discrete steps.

Legend: N points, T steps of a process, abar_t the share of the signal's variance at step t.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

from fleetstep.diffusion.spec import ddpm_betas
from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import AcceleratedScheduleSpec, Betas, DdpmSubsetSpec, IddpmSpec

# expm1 of more than this is beyond float64.
_LARGEST_LOG = 709.0


@dataclass(frozen=True)
class FractionalSteps:
    """A discrete process at fractional steps: log abar is linear between them (Lu et al. 2022,
    appendix D.4; latent diffusion).

    Time is t = (step + 1) / T, from 1/T to 1.

    Args:
        logs: log(1 + sigma^2) = -log abar of every step, ascending [T].
    """

    logs: tuple[float, ...]

    @staticmethod
    @cache
    def of(betas: Betas, steps: int) -> FractionalSteps:
        """The process with these betas."""
        return FractionalSteps(
            tuple(accumulate(-math.log1p(-beta) for beta in _betas(betas, steps)))
        )

    def sigma(self, time: float) -> float:
        """Noise level at a time, which may be between two steps."""
        step = min(max(time * len(self.logs) - 1, 0.0), len(self.logs) - 1.0)
        before = min(int(step), len(self.logs) - 2)
        low, high = self.logs[before : before + 2]
        return _sigma(low + (step - before) * (high - low))

    def time(self, sigma: float) -> float:
        """Time of a noise level of the process."""
        log = math.log1p(sigma**2)
        before = min(max(bisect_right(self.logs, log) - 1, 0), len(self.logs) - 2)
        low, high = self.logs[before : before + 2]
        return (before + (log - low) / (high - low) + 1) / len(self.logs)

    def shared_range(self, sigma_min: float, sigma_max: float) -> tuple[float, float]:
        """The part of a range that the process covers. Latent diffusion's is whole within what
        samplers walk; DDPM's linear one ends at 157 and is cut at 80.

        Raises:
            SamplingError: if there is none.
        """
        first, last = _sigma(self.logs[0]), _sigma(self.logs[-1])
        low, high = max(sigma_min, first), min(sigma_max, last)
        if low < high:
            return low, high
        raise SamplingError(
            f"the schedule's process has levels from {first:g} to {last:g}, and the network and "
            f"the sampler share {sigma_min:g} to {sigma_max:g}: no range is common",
            "use the schedule and betas of the network's process, or the schedule logsnr",
        )


def iddpm(schedule: IddpmSpec, points: int, sigma_min: float, sigma_max: float) -> list[float]:
    """N of the levels u_j that lie in the range, equally spaced in j (Karras et al. 2022, Table 1,
    "iDDPM").

    Raises:
        SamplingError: if fewer than N lie there.
    """
    inside = [u for u in _iddpm_levels(schedule) if sigma_min <= u <= sigma_max]
    if len(inside) < points:
        raise SamplingError(
            f"{schedule.label} has {len(inside)} levels in [{sigma_min:g}, {sigma_max:g}], and "
            f"{points} points were asked for",
            "ask for fewer network calls, or give the schedule more steps",
        )
    stride = (len(inside) - 1) / (points - 1)
    return [inside[round(stride * i)] for i in range(points)]


def ddpm_subset(schedule: DdpmSubsetSpec, points: int) -> list[float]:
    """The levels of a subset of the process's T steps; with end "first", N - 1 of them and step 0.

    Raises:
        SamplingError: if the process has no such steps, or the subset repeats one.
    """
    logs = FractionalSteps.of(schedule.betas, schedule.steps).logs
    if schedule.end != "first":
        steps = _subset(schedule, points)
    else:
        steps = [*_subset(schedule, points - 1), 0]
    _check_subset(schedule, steps)
    return [_sigma(logs[step]) for step in steps]


def accelerated_levels(schedule: AcceleratedScheduleSpec, points: int) -> list[float]:
    """sigma_T ... sigma_1 of schedule (13), T = N.

    Raises:
        SamplingError: if h = c1 ln(T) / T is not below one.
    """
    return [_sigma(log) for log in reversed(_accelerated_logs(schedule, points, points))]


def accelerated_level_beyond(schedule: AcceleratedScheduleSpec, points: int) -> float:
    """sigma_{T+1}: schedule (13) of T = N points continued by one beta, for the first step of
    equation 15.

    Raises:
        SamplingError: see `accelerated_levels`.
    """
    return _sigma(_accelerated_logs(schedule, points, points + 1)[-1])


def _betas(betas: Betas, steps: int) -> tuple[float, ...]:
    if betas != "latent":
        return ddpm_betas(betas, steps)
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    return tuple((low + (high - low) * (i / (steps - 1))) ** 2 for i in range(steps))


def _sigma(log: float) -> float:
    """The level with log(1 + sigma^2) = `log`."""
    return math.sqrt(math.expm1(log)) if log < _LARGEST_LOG else math.inf


@cache
def _iddpm_levels(schedule: IddpmSpec) -> tuple[float, ...]:
    """u_0 > ... > u_{M-1}, from log(1 + u^2), which adds up: u_M = 0."""
    quarter = math.pi / (2 * schedule.steps * (schedule.c2 + 1))
    highest = -math.log(schedule.c1)

    def growth(j: int) -> float:
        """log(abar_j / abar_{j-1}), abar_j = sin^2(quarter j), without cancellation; at most
        -log C_1."""
        if j == 1:
            return highest
        fall = math.sin(quarter) * math.sin(quarter * (2 * j - 1))
        return min(-math.log1p(-fall / math.sin(quarter * j) ** 2), highest)

    logs = list(accumulate(growth(j) for j in range(schedule.steps, 0, -1)))
    return tuple(_sigma(log) for log in reversed(logs))


def _subset(schedule: DdpmSubsetSpec, count: int) -> list[int]:
    """`count` of T steps, descending; halves are rounded to even, as numpy rounds."""
    total, last = schedule.steps, max(count - 1, 1)
    match schedule.spacing:
        case "leading":
            stride = total // count
            rising = [i * stride + schedule.offset for i in range(count)]
        case "trailing":
            # The stride that numpy's arange adds: its last bit decides which way halves go.
            step = (total - total / count) - total
            return [round(total + i * step) - 1 for i in range(count)]
        case "linspace":
            rising = [round(i * ((total - 1) / last)) for i in range(count)]
        case "quad":
            root = math.sqrt(0.8 * total)
            line = [i * (root / last) for i in range(last)]
            rising = [math.floor(value**2) for value in (*line, root)[:count]]
    return rising[::-1]


def _check_subset(schedule: DdpmSubsetSpec, steps: list[int]) -> None:
    if steps[0] >= schedule.steps:
        raise SamplingError(
            f"{schedule.label} with {len(steps)} points begins at step {steps[0]}, and the last "
            f"of {schedule.steps} is {schedule.steps - 1}",
            "use a smaller offset",
        )
    if schedule.end == "first" and steps[-2] == 0:
        raise SamplingError(
            f"{schedule.label}: the subset ends at step 0 already, and would repeat it",
            "use end: none, or an offset with spacing leading",
        )
    for before, after in pairwise(steps):
        if before <= after:
            raise SamplingError(
                f"{schedule.label} with {len(steps)} points comes to step {after} twice: the "
                f"spacing is finer than the {schedule.steps} steps of the process",
                "ask for fewer network calls, or use another spacing",
            )


def _accelerated_logs(schedule: AcceleratedScheduleSpec, points: int, count: int) -> list[float]:
    """-log abar_t of t = 1 ... `count`, with T = `points` (Li et al. 2024, eq. 13)."""

    def growth(steps: int) -> float:
        return schedule.c1 * math.log(steps) / steps

    h = growth(points)
    if h >= 1:
        # h falls from T = 3 on.
        enough = 3 + bisect_left(range(3, 2**62), True, key=lambda steps: growth(steps) < 1)
        raise SamplingError(
            f"schedule (13) with T = {points} points has h = c1 ln(T) / T = {h:.3g}, and needs "
            "h < 1",
            f"at c1 = {schedule.c1:g} it takes T = {enough} or more: ask for more network calls",
        )
    first = math.pow(points, -schedule.c0)
    rise, plateau = math.log1p(h), schedule.c0 * math.log(points)
    betas = (h * math.exp(min(t * rise - plateau, 0.0)) for t in range(2, count + 1))
    return list(accumulate((-math.log1p(-first), *(-math.log1p(-beta) for beta in betas))))
