"""EDM's samplers: Heun with churn, and the general form of its ablations (Karras et al. 2022).

Legend: B batch, C channels, H W pixels; s noise level, n number of positive levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from fleetstep.sampling.schedules import VpTime
from fleetstep.sampling.solvers.step import Levels, Problem, State, Step, slope, weighted_sum
from fleetstep.sampling.spec import EdmAblationSpec, HeunSpec

# A step never adds more noise than doubles the variance (Algorithm 2, line 3).
_MOST_CHURN = math.sqrt(2) - 1


def heun(levels: Levels, spec: HeunSpec, sigma_max: float) -> Step:
    """Second order: the mean slope of both ends, a step to zero being x' = D (Algorithm 1).

    With churn, noise first lifts the image to a level s_hat, from which the step is taken
    (Algorithm 2). Step i asks for noise i even where it lifts nothing, as EDM's sampler draws it.
    s_hat stops at `sigma_max`, the highest level that the network knows: a limit of ours.
    """
    positive = sum(level > 0 for level in levels)
    lifted = [_lifted(level, sigma_max, positive, spec) for level in levels[:-1]]

    def step(problem: Problem, state: State) -> State:
        x_BCHW, before, after = state.x_BCHW, lifted[state.i], levels[state.i + 1]
        if spec.stochastic:
            noise_BCHW = problem.noise(state.i)
            x_BCHW = x_BCHW + before.added * noise_BCHW
        width = after - before.level
        eps_BCHW = slope(problem, x_BCHW, before.level)
        guess_BCHW = x_BCHW + width * eps_BCHW
        if after == 0:
            return State(state.i + 1, guess_BCHW)
        mean_BCHW = 0.5 * (eps_BCHW + slope(problem, guess_BCHW, after))
        return State(state.i + 1, x_BCHW + width * mean_BCHW)

    return step


class _Lifted(NamedTuple):
    """The level s_hat that a step starts from, and the standard deviation added to reach it."""

    level: float
    added: float


def _lifted(level: float, highest: float, positive: int, spec: HeunSpec) -> _Lifted:
    """Algorithm 2, lines 3 to 6."""
    highest_churned = math.inf if spec.s_max is None else spec.s_max
    if not (spec.stochastic and spec.s_min <= level <= highest_churned):
        return _Lifted(level, 0.0)
    gamma = min(spec.s_churn / positive, _MOST_CHURN)
    above = max(level, min(level * (1 + gamma), highest))
    # s_hat^2 - s^2 as a product: the difference of squares cancels for little churn.
    return _Lifted(above, spec.s_noise * math.sqrt((above - level) * (above + level)))


def edm_ablation(levels: Levels, spec: EdmAblationSpec) -> Step:
    """Runge-Kutta steps of order one or two, straight in t for y = s(t) x (Algorithm 3, eq. 4).

    The state between steps is x. The last step is Euler's with one call; in "sigma" it is x' = D,
    in the other coordinates the slope at the lowest level, held on to t = 0, ends beside it.

    Raises:
        SamplingError: coordinates "vp", and no VP process spans the levels.
    """
    coordinates = _coordinates(levels, spec)
    table = [_tableau(coordinates, before, after, spec) for before, after in pairwise(levels)]

    def step(problem: Problem, state: State) -> State:
        row, x_BCHW = table[state.i], state.x_BCHW
        eps_BCHW = slope(problem, x_BCHW, levels[state.i])
        guess_BCHW = weighted_sum(row.guess, (x_BCHW, eps_BCHW))
        if row.between is None:
            return State(state.i + 1, guess_BCHW)
        second_BCHW = slope(problem, guess_BCHW, row.between)
        stages = (x_BCHW, eps_BCHW, guess_BCHW, second_BCHW)
        return State(state.i + 1, weighted_sum(row.final, stages))

    return step


class _Tableau(NamedTuple):
    """One step: the guess from (x, eps), the level at which the second slope is taken (None for
    no second slope: the guess is the end), and the end from (x, eps, guess, second eps).
    """

    guess: tuple[float, float]
    between: float | None
    final: tuple[float, ...] = ()


def _tableau(
    coordinates: _Coordinates, before: float, after: float, spec: EdmAblationSpec
) -> _Tableau:
    start, end = coordinates.at_level(before), coordinates.at_level(after)
    width, alpha = end.time - start.time, spec.alpha
    if spec.method == "euler" or after == 0:
        return _Tableau(_towards(start, width, end.scale), None)
    # At alpha = 1 the level itself, not its way through t and back.
    between = end if alpha == 1 else coordinates.at_time(start.time + alpha * width)
    second = width / (2 * alpha)
    lead, first = _towards(start, width - second, end.scale)
    final = (lead, first, second * between.rate / end.scale, second * between.gain / end.scale)
    return _Tableau(_towards(start, alpha * width, between.scale), between.level, final)


def _towards(start: _Place, width: float, scale: float) -> tuple[float, float]:
    """Weights of x and eps in (y + width dy/dt) / scale."""
    return (start.scale + width * start.rate) / scale, width * start.gain / scale


class _Place(NamedTuple):
    """A place on the path: y = scale x, and dy/dt = rate x + gain eps (eq. 4).

    rate is ds/dt, gain is s dsigma/dt. At level zero only time and scale have a meaning: no step
    starts there.
    """

    time: float
    level: float
    scale: float
    rate: float
    gain: float


class _Coordinates(Protocol):
    """A choice of sigma(t) and s(t) (Table 1)."""

    def at_level(self, level: float) -> _Place: ...

    def at_time(self, time: float) -> _Place: ...


class _SigmaCoordinates:
    """EDM's: t = sigma, unscaled."""

    def at_level(self, level: float) -> _Place:
        return _Place(time=level, level=level, scale=1.0, rate=0.0, gain=1.0)

    def at_time(self, time: float) -> _Place:
        return self.at_level(time)


class _VeCoordinates:
    """VE's: t = sigma^2, unscaled."""

    def at_level(self, level: float) -> _Place:
        gain = 0.5 / level if level > 0 else math.inf
        return _Place(time=level * level, level=level, scale=1.0, rate=0.0, gain=gain)

    def at_time(self, time: float) -> _Place:
        return self.at_level(math.sqrt(time))


@dataclass(frozen=True)
class _VpCoordinates:
    """VP's: the time of the process that spans the positive levels, and s = 1 / sqrt(1 + sigma^2).

    With b = beta(t): ds/dt = -b s / 2, and dsigma/dt = b (1 + sigma^2) / (2 sigma).
    """

    process: VpTime

    def at_level(self, level: float) -> _Place:
        # A fitted process can have a second time of level zero: the path ends at t = 0.
        return self._place(self.process.time(level) if level > 0 else 0.0, level)

    def at_time(self, time: float) -> _Place:
        return self._place(time, self.process.sigma(time))

    def _place(self, time: float, level: float) -> _Place:
        half_b = 0.5 * (self.process.beta_d * time + self.process.beta_min)
        variance = 1 + level * level
        scale = 1 / math.sqrt(variance)
        gain = scale * half_b * variance / level if level > 0 else math.inf
        return _Place(time, level, scale, rate=-half_b * scale, gain=gain)


def _coordinates(levels: Levels, spec: EdmAblationSpec) -> _Coordinates:
    match spec.coordinates:
        case "sigma":
            return _SigmaCoordinates()
        case "ve":
            return _VeCoordinates()
        case "vp":
            lowest = levels[-1] if levels[-1] > 0 else levels[-2]
            return _VpCoordinates(VpTime.spanning(lowest, levels[0]))
