"""UniPC: a predictor, and a corrector that costs no call of its own (Zhao et al. 2023).

A step predicts x at the next level, evaluates M there, and corrects x with it; that M, not one at
the corrected x, is what the next step starts from. The last step only predicts.

Legend: s levels, M the network's outputs, newest first; q order of a step, K steps of a
trajectory. r_k = (L_k - L_0) / h places M_k within the step in L = -log sigma: negative, and 1 at
the step's end.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleetstep.sampling.solvers.arithmetic import expm1, is_zero
from fleetstep.sampling.solvers.exponential import (
    Crossing,
    crossing,
    log_ratio,
    output_of,
    remainders,
    rising_order,
    to_zero,
)
from fleetstep.sampling.solvers.linear import Weights, combine
from fleetstep.sampling.solvers.step import Level, Levels, Problem, State, Step
from fleetstep.sampling.spec import UnipcSpec


def unipc(levels: Levels, spec: UnipcSpec) -> Step:
    """The steps on host levels: the first evaluates twice, the last not at all."""
    steps, table = len(levels) - 1, []
    for i in range(steps):
        passed = [levels[i - j] for j in range(min(i, spec.order - 1) + 1)]
        order = order_of(spec, len(passed), i, steps)
        corrects = i < steps - 1
        table.append(
            (
                predictor(spec, levels[i + 1], passed, order),
                corrector(spec, levels[i + 1], passed, order) if corrects else None,
            )
        )

    def step(problem: Problem, state: State) -> State:
        predicting, correcting = table[state.i]
        outputs = state.history or (output_of(problem, state.x_BCHW, levels[0], spec.prediction),)
        x_BCHW = combine(predicting, state.x_BCHW, outputs)
        if correcting is None:
            return State(state.i + 1, x_BCHW)
        newest_BCHW = output_of(problem, x_BCHW, levels[state.i + 1], spec.prediction)
        outputs = (newest_BCHW, *outputs)
        x_BCHW = combine(correcting, state.x_BCHW, outputs)
        return State(state.i + 1, x_BCHW, outputs[: spec.order])

    return step


def order_of(spec: UnipcSpec, history: int, position: int, steps: int) -> int:
    """q of the step at `position` of K, with `history` outputs at hand, the newest included."""
    return rising_order(spec.order, history, steps - position if spec.lower_order_final else None)


def predictor(spec: UnipcSpec, after: Level, levels: Sequence[Level], order: int) -> Weights:
    """Weights of x and of M_0, M_1, ... for the image predicted at `after`.

    The terms are the whole bracket expm1(z) M_0 + B (...) with its sign.

    Args:
        spec: the solver.
        after: the level to reach; zero is reached by x' = D.
        levels: of M_0, M_1, ..., at least `order`.
        order: q, from 1 to 3.
    """
    if is_zero(after):
        return to_zero(levels[0], spec.prediction)
    step = crossing(levels[0], after, spec.prediction)
    places = _places(levels, step.h, order)
    # One place is not solved for: 1/2 is the limit for small steps (Zhao et al. 2023).
    rho = [0.5] if order == 2 else _solved(places, _moments(spec, step.z, order - 1))
    return _weights(spec, step, [r / place for r, place in zip(rho, places, strict=True)])


def corrector(spec: UnipcSpec, after: Level, levels: Sequence[Level], order: int) -> Weights:
    """Weights of x and of M at `after`, M_0, M_1, ... for the corrected image; see `predictor`."""
    step = crossing(levels[0], after, spec.prediction)
    places = [*_places(levels, step.h, order), 1.0]
    rho = [0.5] if order == 1 else _solved(places, _moments(spec, step.z, order))
    per_output = [r / place for r, place in zip(rho, places, strict=True)]
    lead, (of_M_0, *of_older, of_new) = _weights(spec, step, per_output)
    return Weights(lead, (of_new, of_M_0, *of_older))


def _places(levels: Sequence[Level], h: Level, order: int) -> list[Level]:
    return [-log_ratio(level, levels[0]) / h for level in levels[1:order]]


def _scale(spec: UnipcSpec, z: Level) -> Level:
    """B(h)."""
    return z if spec.variant == "bh1" else expm1(z)


def _moments(spec: UnipcSpec, z: Level, count: int) -> list[Level]:
    """b_j = j! psi_j / B, j = 1 ... count."""
    found, factorial = [], 1
    for j, psi in enumerate(remainders(z, count), start=1):
        factorial *= j
        found.append(factorial * psi / _scale(spec, z))
    return found


def _solved(places: Sequence[Level], moments: Sequence[Level]) -> list[Level]:
    """rho with sum_k rho_k r_k^(j-1) = b_j, at most three of them, by Lagrange's polynomials."""
    found: list[Level] = []
    for k, place in enumerate(places):
        others = [*places[:k], *places[k + 1 :]]
        if not others:
            found.append(moments[0])
        elif len(others) == 1:
            found.append((moments[1] - others[0] * moments[0]) / (place - others[0]))
        else:
            a, b = others
            above = moments[2] - (a + b) * moments[1] + a * b * moments[0]
            found.append(above / ((place - a) * (place - b)))
    return found


def _weights(spec: UnipcSpec, step: Crossing, per_output: Sequence[Level]) -> Weights:
    """Of M_0 and of the outputs whose differences to M_0 have weights B per_output."""
    spread = [_scale(spec, step.z) * weight for weight in per_output]
    inside = [expm1(step.z) - sum(spread), *spread]
    return Weights(step.lead, tuple(-step.scale * weight for weight in inside))
