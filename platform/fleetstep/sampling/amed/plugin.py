"""AMED-Solver and AMED-Plugin: one interval of the schedule in two evaluations.

The level between, m = s'^r s^(1-r), is learned and differs between images; so do a factor c of the
second sub-step's direction and a factor a of the level that the network is told there (Zhou et al.
2024, sections 3.3 and 3.4). With c = a = 1 the plugin is its base solver on the merged levels.

Legend: s and s' the interval's levels, m the one between; B batch, C channels, H W pixels, N
points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from fleetstep.sampling.amed.predictor import Learned
from fleetstep.sampling.solvers import unipc
from fleetstep.sampling.solvers.exponential import output_of
from fleetstep.sampling.solvers.linear import Rule, Weights, combine
from fleetstep.sampling.solvers.rules import rule_of
from fleetstep.sampling.solvers.step import Level, Levels, Problem, State, Step, slope
from fleetstep.sampling.spec import AmedStudentSpec, Dpm2Spec, StudentSpec, UnipcSpec

Outputs = tuple[Tensor, ...]
Passed = tuple[Level, ...]


class Predict(Protocol):
    """What the plugin asks: `AmedPredictor.predict`, or constants."""

    def __call__(self, features: Tensor | None, t_cur: float, t_next: float, /) -> Learned:
        """r, c and a of the step from t_cur to t_next.

        Args:
            features: the network's [B, c, h, w] at t_cur; None where none was called.
            t_cur, t_next: levels.
        """


def plugin_step(student: StudentSpec, levels: Levels, predict: Predict) -> Step:
    """The steps of `student` with a learned level inside each interval.

    Args:
        student: AMED-Solver, or the solver that the plugin is put into.
        levels: positive.
        predict: what is learned.
    """
    match student:
        case AmedStudentSpec():
            return _two_slopes(levels, predict, _second_alone)
        case Dpm2Spec():
            return _two_slopes(levels, predict, _both)
        case UnipcSpec():
            return _unipc(levels, predict, student)
        case _:
            return _linear(levels, predict, rule_of(student, levels))


SlopeWeights = Callable[[Tensor], tuple[Level, ...]]
"""r -> weights of the slopes, newest first: at m, and at s if it takes part."""


def _second_alone(r: Tensor) -> tuple[Level, ...]:
    """AMED-Solver: at the right level one slope is enough, by the mean value theorem (eq. 9)."""
    return (1.0,)


def _both(r: Tensor) -> tuple[Level, ...]:
    """DPM-Solver-2 with its r learned (Table 1)."""
    second = 1 / (2 * r)
    return (second, 1 - second)


def _two_slopes(levels: Levels, predict: Predict, weights_of: SlopeWeights) -> Step:
    """x_m = x + (m - s) eps; x' = x + c (s' - s) [w_1 eps_m + w_2 eps]."""

    def step(problem: Problem, state: State) -> State:
        s, after = levels[state.i], levels[state.i + 1]
        x_BCHW, first = state.x_BCHW, _First(problem)
        eps_BCHW = slope(first, x_BCHW, s)
        r, c, a = _learned(predict, first, x_BCHW, s, after)
        m = _between(s, after, r)
        x_m_BCHW = combine(Weights(None, (m - s,)), x_BCHW, (eps_BCHW,))
        slopes = (slope(_Told(problem, a), x_m_BCHW, m), eps_BCHW)
        weights = Weights(None, tuple((after - s) * weight for weight in weights_of(r)))
        return State(state.i + 1, combine(_scaled(weights, c), x_BCHW, slopes))

    return step


def _linear(levels: Levels, predict: Predict, rule: Rule) -> Step:
    """Two steps of the rule, from s to m and from m to s', of 2 (N - 1) in all."""
    steps = 2 * (len(levels) - 1)

    def step(problem: Problem, state: State) -> State:
        s, after = levels[state.i], levels[state.i + 1]
        first = _First(problem)
        output_BCHW = rule.output(first, state.x_BCHW, s)
        r, c, a = _learned(predict, first, state.x_BCHW, s, after)
        m = _between(s, after, r)

        outputs, passed = (output_BCHW, *state.history), (s, *state.levels)
        position = 2 * state.i
        weights = rule.weights(m, passed[: rule.memory + 1], position, steps)
        x_m_BCHW = combine(weights, state.x_BCHW, outputs)

        output_BCHW = rule.output(_Told(problem, a), x_m_BCHW, m)
        outputs, passed = (output_BCHW, *outputs), (m, *passed)
        weights = rule.weights(after, passed[: rule.memory + 1], position + 1, steps)
        x_BCHW = combine(_scaled(weights, c), x_m_BCHW, outputs)
        return State(state.i + 1, x_BCHW, outputs[: rule.memory], passed[: rule.memory])

    return step


UnipcPart = Callable[[UnipcSpec, Level, Sequence[Level], int], Weights]
"""`unipc.predictor` or `unipc.corrector`."""


def _unipc(levels: Levels, predict: Predict, spec: UnipcSpec) -> Step:
    """UniPC on the merged levels; c multiplies predictor and corrector of the second sub-step.

    An image at a level of the schedule is predicted, and corrected when the next step has
    evaluated the network there: so a step makes two evaluations, and the end is not corrected.
    Between steps the state holds the image at the last m before the outputs, and the c of that
    step before their levels.
    """
    steps = 2 * (len(levels) - 1)

    def weights_of(part: UnipcPart, after: Level, passed: Sequence[Level], at: int) -> Weights:
        passed = passed[: spec.order]
        return part(spec, after, passed, unipc.order_of(spec, len(passed), at, steps))

    def corrected(state: State, newest_BCHW: Tensor) -> tuple[Tensor, Outputs, Passed]:
        """The image at the step's start, the outputs, newest first, and their levels."""
        s = levels[state.i]
        if not state.history:
            return state.x_BCHW, (newest_BCHW,), (s,)
        (x_m_BCHW, *older), (c, *behind) = state.history, state.levels
        outputs = (newest_BCHW, *older)
        weights = weights_of(unipc.corrector, s, behind, 2 * state.i - 1)
        return combine(_scaled(weights, c), x_m_BCHW, outputs), outputs, (s, *behind)

    def step(problem: Problem, state: State) -> State:
        s, after, at = levels[state.i], levels[state.i + 1], 2 * state.i
        first = _First(problem)
        output_BCHW = output_of(first, state.x_BCHW, s, spec.prediction)
        x_BCHW, outputs, passed = corrected(state, output_BCHW)
        r, c, a = _learned(predict, first, x_BCHW, s, after)
        m = _between(s, after, r)

        x_m_BCHW = combine(weights_of(unipc.predictor, m, passed, at), x_BCHW, outputs)
        output_BCHW = output_of(_Told(problem, a), x_m_BCHW, m, spec.prediction)
        outputs = (output_BCHW, *outputs)
        x_m_BCHW = combine(weights_of(unipc.corrector, m, passed, at), x_BCHW, outputs)

        passed = (m, *passed)
        weights = _scaled(weights_of(unipc.predictor, after, passed, at + 1), c)
        return State(
            state.i + 1,
            combine(weights, x_m_BCHW, outputs),
            (x_m_BCHW, *outputs[: spec.order]),
            (c, *passed[: spec.order]),
        )

    return step


class _First:
    """A problem that keeps the features of its call."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.features: Tensor | None = None

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        denoised_BCHW, self.features = self._problem.denoise_with_features(x_BCHW, sigma)
        return denoised_BCHW

    def denoise_with_features(self, x_BCHW: Tensor, sigma: Level) -> tuple[Tensor, Tensor | None]:
        return self._problem.denoise_with_features(x_BCHW, sigma)

    def noise(self, k: int) -> Tensor:
        return self._problem.noise(k)


class _Told(_First):
    """A problem whose network is told a sigma; eps still divides by sigma."""

    def __init__(self, problem: Problem, a: Tensor) -> None:
        super().__init__(problem)
        self._a = a

    def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
        return self._problem.denoise(x_BCHW, self._a * sigma)


def _learned(predict: Predict, first: _First, x_BCHW: Tensor, s: float, after: float) -> Learned:
    """What is predicted from the features of the first call, a row for each image, float64."""
    found = predict(first.features, s, after)
    rows = (len(x_BCHW), 1, 1, 1)
    return Learned(*(value.double().expand(rows) for value in found))


def _between(s: float, after: float, r: Tensor) -> Tensor:
    """m = s'^r s^(1-r), float64."""
    m: Tensor = after**r * s ** (1 - r)
    return m


def _scaled(weights: Weights, c: Level) -> Weights:
    """c times the direction: the lead stays (with data prediction c is no factor of a slope)."""
    return Weights(weights.lead, tuple(c * weight for weight in weights.terms))
