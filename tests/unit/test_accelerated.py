"""The samplers of Li et al. 2024: their reference values, coefficients and special cases."""

from __future__ import annotations

import functools
from typing import Any

import mpmath
import pytest
import torch

from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.solvers.accelerated import (
    EpsRule,
    eps_momentum,
    score_weights,
)
from fleetstep.sampling.spec import (
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    AcceleratedScheduleSpec,
    DdpmSolverSpec,
    EulerSpec,
    SolverSpec,
)
from fleetstep.sampling.trajectory import sample
from solver_goldens import (
    assert_golden,
    exact_denoiser,
    latents,
    levels_of,
    noise,
    reference,
    run,
    run_vp,
)

DETERMINISTIC = {
    "eq8": AcceleratedDdimSpec(equation=8),
    "eq15_accel_2nfe": AcceleratedDdimSpec(equation=15),
    "eq15_first_eq8": AcceleratedDdimSpec(equation=15),
    "eq22_accel_1nfe": AcceleratedDdimSpec(equation=22),
    "eq22_1nfe": AcceleratedDdimSpec(equation=22),
    "eq28_ddim": AcceleratedDdimSpec(equation=28),
    "eq30_accel_ddim": AcceleratedDdimSpec(),
}
STOCHASTIC = {
    "eq10_printed": AcceleratedDdpmSpec(equation=10, noise="printed"),
    "eq10_inside": AcceleratedDdpmSpec(equation=10),
    "reverse_vesde": AcceleratedDdpmSpec(equation=10),
    "eq23_printed": AcceleratedDdpmSpec(noise="printed"),
    "eq23_inside": AcceleratedDdpmSpec(),
    "accel_printed": AcceleratedDdpmSpec(noise="printed"),
    "accel_inside": AcceleratedDdpmSpec(),
}


def rows(key: str, *, on_schedule_13: bool) -> list[Any]:
    found = [
        row
        for row in reference("accelerated")[key]
        if row["schedule"].startswith("eq13") == on_schedule_13
        and not row["sampler"].startswith("ancestral")
    ]
    assert found
    return [
        pytest.param(
            row, id=f"{row['sampler']}-{row['schedule']}-{row.get('T', row.get('steps'))}"
        )
        for row in found
    ]


def schedule_of(row: dict) -> AcceleratedScheduleSpec:
    """ "eq13 c0=2 c1=6" """
    c0, c1 = (float(part.split("=")[1]) for part in row["schedule"].split()[1:])
    return AcceleratedScheduleSpec(c0=c0, c1=c1)


def levels_13(row: dict) -> torch.Tensor:
    return sigmas(schedule_of(row), row["T"], 0.002, 80.0)


# reference values


@pytest.mark.parametrize("row", rows("det", on_schedule_13=False))
def test_deterministic_golden_runs_from_80_to_0_002(row: dict):
    result = run(DETERMINISTIC[row["sampler"]], levels_of(row["schedule"], row["steps"] + 1))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]


@pytest.mark.parametrize("row", rows("det", on_schedule_13=True))
def test_deterministic_golden_runs_on_schedule_13(row: dict):
    solver = DETERMINISTIC.get(row["sampler"])
    if solver is None:
        assert row["sampler"] == "eq15_extend"
        solver = AcceleratedDdimSpec(equation=15, first="extend", schedule=schedule_of(row))
    assert_golden(run_vp(solver, levels_13(row)), row["y"])
    assert solver.nfe_for(row["T"]) == row["nfe"]


@pytest.mark.parametrize("row", rows("sto", on_schedule_13=False))
def test_stochastic_golden_runs_from_80_to_0_002(row: dict):
    seen: list[int] = []
    result = run(
        STOCHASTIC[row["sampler"]],
        levels_of(row["schedule"], row["steps"] + 1),
        noise=lambda k: (seen.append(k), noise(k))[1],
    )
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]
    assert seen == list(range(row["noise_used"]))


@pytest.mark.parametrize("row", rows("sto", on_schedule_13=True))
def test_stochastic_golden_runs_on_schedule_13(row: dict):
    y = run_vp(STOCHASTIC[row["sampler"]], levels_13(row), noise=noise)
    assert_golden(y, row["y"])


@pytest.mark.parametrize("row", reference("accelerated")["coef"])
def test_coefficients_of_eq_30(row: dict):
    levels = levels_of(row["schedule"], 6).tolist()
    before, level, end = levels[row["step"] - 1 : row["step"] + 2]
    newest, last = EpsRule(memory=1).weights(end, (level, before), row["step"], 5).terms
    to_vp = (1 + end**2) ** -0.5
    # The file's VP momentum comes from asin, and its last digits at low noise are lost; see the
    # test in 60 digits below.
    close = functools.partial(pytest.approx, rel=1e-9, abs=1e-9)
    assert -last == close(row["mom_edm"])
    assert last * to_vp == close(row["mom_vp"])
    assert (newest + last) * to_vp == close(row["lead_eps"])


# the weights


def exact_momentum(before: float, level: float, end: float) -> float:
    """w of eq. 30 as printed, in 60 digits."""
    with mpmath.workdps(60):
        p, s, t = (mpmath.mpf(sigma) for sigma in (before, level, end))
        abar, abar_before = 1 / (1 + s**2), 1 / (1 + p**2)
        w = (mpmath.atan(t) - mpmath.atan(s) - abar * (t - s)) / (abar - abar_before)
        return float(w)


@pytest.mark.parametrize(
    ("before", "level", "end"),
    [
        # In float32, through asin sqrt(abar), this one is wrong by a quarter.
        (0.05, 0.02, 0.008),
        (0.0021, 0.00205, 0.002),
        (1e-3, 9.99e-4, 9.98e-4),
        (80.0, 24.4, 5.8),
        (1e6, 80.0, 0.002),
        (0.5, 0.4, 1e-8),
        (1.0, 0.29, 1e-6),
        (2e-3, 1e-3, 1e-9),
        (80.0, 79.999, 79.998),
    ],
)
def test_the_weight_of_eq_30_does_not_cancel(before: float, level: float, end: float):
    assert eps_momentum(before, level, end) == pytest.approx(
        exact_momentum(before, level, end), rel=1e-12, abs=0
    )


def test_the_weights_of_eqs_15_and_22_are_the_papers():
    # In VP, with a = alpha_t and a+ = alpha_{t+1}:
    # sqrt(a) y' = y + (1-a)/2 s + (1-a)^2 / (4 (1 - a+)) (s - sqrt(a+) s+).
    before, level, end = 5.8, 0.96, 0.085
    v_before, v, v_end = (1 + sigma**2 for sigma in (before, level, end))
    a, a_before = v_end / v, v / v_before
    # y = x / sqrt(v), and the score of y is -sqrt(v) eps / sigma.
    extra = (1 - a) ** 2 / (4 * (1 - a_before))
    newest = -((1 - a) / 2 + extra) * v / level
    last = extra * a_before**0.5 * (v * v_before) ** 0.5 / before
    assert score_weights(before, level, end) == pytest.approx((newest, last), rel=1e-13, abs=0)


# what they are elsewhere


@pytest.mark.parametrize("schedule", ["polynomial", "logsnr"])
def test_eq_28_is_ddim_and_eq_10_as_printed_is_ddpm(schedule: str):
    levels = levels_of(schedule, 7)
    ddim = run(EulerSpec(), levels).x_BCHW
    assert torch.equal(run(AcceleratedDdimSpec(equation=28), levels).x_BCHW, ddim)
    large = run(DdpmSolverSpec(variance="fixed_large"), levels, noise=noise).x_BCHW
    assert torch.equal(run(STOCHASTIC["eq10_printed"], levels, noise=noise).x_BCHW, large)


@pytest.mark.parametrize(("accelerated", "plain"), [(30, 28), (22, 8), (15, 8)])
def test_the_first_step_is_the_plain_samplers(accelerated: Any, plain: Any):
    levels = levels_of("polynomial", 4)
    traces = [
        run(AcceleratedDdimSpec(equation=equation), levels, trace=True).trace
        for equation in (accelerated, plain)
    ]
    assert torch.equal(traces[0][1], traces[1][1])
    assert not torch.equal(traces[0][2], traces[1][2])


ALL: list[SolverSpec] = [
    *(AcceleratedDdimSpec(equation=equation) for equation in (8, 15, 22, 28, 30)),
    *(AcceleratedDdpmSpec(equation=equation) for equation in (10, 23)),
]


@pytest.mark.parametrize("solver", ALL, ids=lambda solver: solver.label)
def test_a_step_to_zero_is_the_denoised_image(solver: SolverSpec):
    levels, denoiser = [*levels_of("polynomial", 4).tolist(), 0.0], exact_denoiser()
    trace = run(solver, levels, noise=noise, trace=True).trace
    denoised = denoiser(trace[-2], torch.full((4,), levels[-2], dtype=torch.float64), None)
    torch.testing.assert_close(trace[-1], denoised, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", ALL, ids=lambda solver: solver.label)
@pytest.mark.parametrize("first", [1, 2, 3])
def test_images_do_not_depend_on_their_batch(solver: SolverSpec, first: int):
    levels = levels_of("polynomial", 8)

    def drawn(rows: slice) -> torch.Tensor:
        x_T = 80 * latents()[rows]
        return sample(exact_denoiser(), solver, levels, x_T, noise=lambda k: noise(k)[rows]).x_BCHW

    parts = torch.cat((drawn(slice(0, first)), drawn(slice(first, 4))))
    assert torch.equal(drawn(slice(0, 4)), parts)
