"""The reference values of tests/golden/solvers, and how a golden run is repeated.

Legend: B batch, C channels, H W pixels; images are [4, 2, 1, 1].
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracts.exact_denoisers import Mixture, images
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    LogSnrSpec,
    PolynomialSpec,
    ScheduleSpec,
    SolverSpec,
    TimeUniformSpec,
    VpTimeSpec,
)
from fleetstep.sampling.trajectory import Result, sample

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SCHEDULES: dict[str, ScheduleSpec] = {
    "polynomial": PolynomialSpec(),
    "polynomial_rho7": PolynomialSpec(),
    "logsnr": LogSnrSpec(),
    "time_uniform_rho1": TimeUniformSpec(),
    "time_uniform_rho2": TimeUniformSpec(rho=2.0),
}
VP_SCHEDULES: dict[str, ScheduleSpec] = {
    "time_uniform": VpTimeSpec(),
    "time_quadratic": VpTimeSpec(spacing="quadratic"),
    "logSNR": LogSnrSpec(),
}


@functools.cache
def reference(section: str) -> dict[str, Any]:
    """One file of tests/golden/solvers."""
    path = Path(__file__).parent / "golden" / "solvers" / f"{section}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rows(section: str, solver: str, **wanted: Any) -> list[dict[str, Any]]:
    """The 2-D golden runs of a solver whose parameters have these values; at least one."""
    found = [
        run
        for run in reference(section)["runs"]
        if run["d"] == 2
        and run["solver"] == solver
        and all(run["params"].get(name) == value for name, value in wanted.items())
    ]
    assert found
    return found


def described(row: dict[str, Any]) -> str:
    """Its settings, as the id of a test."""
    settings = {**row["params"], **{k: v for k, v in row.items() if isinstance(v, str | int)}}
    return "-".join(str(value) for name, value in settings.items() if name not in ("src", "d"))


def exact_denoiser(sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Mixture:
    """The 2-D mixture of every golden run, on any range of levels."""
    facts = reference("problem")["gmm"]["d2"]
    named = (facts[name] for name in ("weights", "means", "variances"))
    denoiser = Mixture(*(torch.tensor(values, dtype=torch.float64) for values in named))
    denoiser.sigma_min, denoiser.sigma_max = sigma_min, sigma_max
    return denoiser


def latents() -> Tensor:
    """z of every golden run, standard normal in scale."""
    return images(reference("problem")["gmm"]["latents"]["2"])


def noise(k: int) -> Tensor:
    """The k-th noise tensor that a golden run consumed."""
    return images(reference("problem")["noise"]["2"][k])


def truth() -> Tensor:
    """The flow's end at sigma = 0.002, integrated to 1e-13."""
    return images(reference("problem")["truth"]["2"]["x_at_sigma_min"])


def levels_of(schedule: str, points: int) -> Tensor:
    """Levels of a named schedule on [0.002, 80]."""
    return sigmas(SCHEDULES[schedule], points, SIGMA_MIN, SIGMA_MAX)


def vp_levels(spacing: str, steps: int) -> Tensor:
    """Levels of the VP process with beta from 0.1 to 20 between t = 1 and 1e-3, by the name that
    DPM-Solver's library gives their spacing.
    """
    low, high = (math.sqrt(math.expm1(t * t * (20 - 0.1) / 2 + 0.1 * t)) for t in (1e-3, 1.0))
    return sigmas(VP_SCHEDULES[spacing], steps + 1, low, high)


def run(solver: SolverSpec, levels: Tensor | Sequence[float], **options: Any) -> Result:
    """The golden problem from levels[0] z."""
    levels = torch.as_tensor(levels, dtype=torch.float64)
    low, high = float(levels[levels > 0].min()), float(levels.max())
    return sample(exact_denoiser(low, high), solver, levels, levels[0] * latents(), **options)


def run_vp(solver: SolverSpec, levels: Tensor | Sequence[float], **options: Any) -> Tensor:
    """The golden problem as VP libraries state it: from z in their scale, to their scale."""
    levels = torch.as_tensor(levels, dtype=torch.float64)
    low, high = float(levels[levels > 0].min()), float(levels.max())
    x_T = math.sqrt(1 + high**2) * latents()
    result = sample(exact_denoiser(low, high), solver, levels, x_T, **options)
    return result.x_BCHW / math.sqrt(1 + float(result.sigmas[-1]) ** 2)


def assert_golden(x_BCHW: Tensor, expected: list[list[float]], tolerance: float = 1e-9) -> None:
    """Equal within `tolerance`, relative and absolute."""
    torch.testing.assert_close(x_BCHW, images(expected), rtol=tolerance, atol=tolerance)
