"""The quadrature of DEIS's reference implementation: rectangles in VP time on [0.002, 80].

Legend: R rectangles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from fleetstep.sampling.schedules import VpTime
from fleetstep.sampling.solvers import deis
from fleetstep.sampling.solvers.step import Level
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN

REFERENCE, COARSE = 10_000, 2_000
"""Rectangles of the reference's own runs, and of the golden rows of its order."""


def rectangles(
    count: int, functions: Callable[[Level], Sequence[Level]], start: float, end: float
) -> tuple[float, ...]:
    """The integrals of `functions` over sigma, as the reference approximates them."""
    vp = VpTime.spanning(SIGMA_MIN, SIGMA_MAX)
    first, last = vp.time(start), vp.time(end)
    time_R = torch.linspace(first, last, count, dtype=torch.float64)
    log_R = (vp.beta_d * time_R / 2 + vp.beta_min) * time_R
    sigma_R = log_R.expm1().sqrt()
    slope_R = (vp.beta_d * time_R + vp.beta_min) * log_R.exp() / (2 * sigma_R)
    sums = (float((value_R * slope_R).sum()) for value_R in functions(sigma_R))
    return tuple(total * (last - first) / count for total in sums)


def use_rectangles(monkeypatch: pytest.MonkeyPatch, count: int = REFERENCE) -> None:
    """Let the package's DEIS integrate as the reference does."""
    monkeypatch.setattr(deis, "integrals", partial(rectangles, count))
