"""DPM-Solver++: exponential integrators on the denoised image D (Lu et al. 2022b)."""

from __future__ import annotations

import math

from fleetstep.sampling.solvers.step import Denoise, Levels, State, Step, weighted_sum


def _weights(levels: Levels, i: int) -> tuple[float, ...]:
    """Weights of (x, D_i[, D_{i-1}]) in the step from level i (Algorithm 2 with alpha = 1).

    x' = (s'/s) x - expm1(-h) [D_i + (D_i - D_{i-1}) / (2 r)], h = log(s/s'), r = (previous h) / h.
    The first step has no D_{i-1}; the last is first order as well ("lower_order_final"), where
    extrapolation harms.
    """
    before, after = levels[i], levels[i + 1]
    h = math.log(before / after)
    lead, rest = after / before, -math.expm1(-h)
    if i == 0 or i == len(levels) - 2:
        return lead, rest
    r = math.log(levels[i - 1] / before) / h
    return lead, rest * (1 + 0.5 / r), -rest * 0.5 / r


def dpmpp_2m(levels: Levels) -> Step:
    """Multistep of second order with data prediction: one call a step, one remembered D."""
    table = [_weights(levels, i) for i in range(len(levels) - 1)]

    def step(denoise: Denoise, state: State) -> State:
        weights = table[state.i]
        denoised_BCHW = denoise(state.x_BCHW, levels[state.i])
        terms = (state.x_BCHW, denoised_BCHW, *state.history)
        return State(state.i + 1, weighted_sum(weights, terms[: len(weights)]), (denoised_BCHW,))

    return step
