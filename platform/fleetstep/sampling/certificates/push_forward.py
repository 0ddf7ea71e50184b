"""The law at the end of a deterministic sampler in one dimension, exactly.

A sampler maps its start z ~ N(0, 1) to f(z), monotonically. Its law and the data's, P, then differ
on an interval between two z by the change of G(z) = Phi(z) - P(f(z)) over it, and their total
variation is half the variation of G: a sum over a grid that is wrong only where G turns, by the
square of the spacing. No derivative of f is needed.

Legend: G points of the grid in z.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from fleetstep.errors import SamplingError
from fleetstep.sampling.certificates.problems import Line, distribution, on_a_line
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, AcceleratedScheduleSpec, SolverSpec
from fleetstep.sampling.trajectory import sample

_REACH: Final = 7.5
"""Half width of the grid: 6e-14 of N(0, 1) lie beyond it."""

GRID: Final = 4001
"""Points of the grid: twice as many change no total variation here by 2e-4 of itself."""


def total_variation(
    solver: SolverSpec, data: Line, schedule: AcceleratedScheduleSpec, steps: int, grid: int = GRID
) -> float:
    """Of the law that T = `steps` levels of schedule (13) end with, to the data's at sigma_1.

    The start is sqrt(1 + sigma_T^2) times a standard normal: N(0, 1) in the variance-preserving
    form, in which the rates are proved; total variation does not depend on the form.

    Raises:
        SamplingError: the map is not monotone.
    """
    # The schedule's range is its own; the one given is not read.
    levels = sigmas(schedule, steps, SIGMA_MIN, SIGMA_MAX)
    z_G = torch.linspace(-_REACH, _REACH, grid, dtype=torch.float64)
    with torch.inference_mode():
        start_G111 = math.hypot(1.0, float(levels[0])) * z_G[:, None, None, None]
        x_G = sample(on_a_line(data), solver, levels, start_G111).x_BCHW.flatten()
    if not bool((x_G.diff() > 0).all()):
        raise SamplingError(
            f"{solver.label} with T = {steps} does not map the line monotonically",
            "use more steps",
        )
    ahead_G = torch.special.ndtr(z_G) - distribution(data, float(levels[-1]), x_G)
    return 0.5 * float(ahead_G.diff().abs().sum())
