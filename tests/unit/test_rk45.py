"""RK45 on the flow: reference values with their calls, and what happens when it cannot go on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.solvers import rk45
from fleetstep.sampling.spec import Rk45Spec
from fleetstep.sampling.trajectory import sample
from solver_goldens import (
    SIGMA_MAX,
    SIGMA_MIN,
    assert_golden,
    exact_denoiser,
    latents,
    levels_of,
    reference,
    run,
    run_vp,
    truth,
)

ENDS = [SIGMA_MAX, SIGMA_MIN]
# Times 1 and 1e-3 of the process with beta from 0.1 to 20: log(1 + sigma^2) = 0.1 t + 9.95 t^2.
VP_ENDS = [math.sqrt(math.expm1(10.05)), math.sqrt(math.expm1(1e-4 + 9.95e-6))]
VARIABLES = {"sigma": "sigma", "log_sigma": "log_sigma", "vp_t_song": "vp_time"}


def solver_of(row: dict) -> Rk45Spec:
    return Rk45Spec(rtol=row["rtol"], atol=row["atol"], variable=VARIABLES[row["variable"]])


def golden_rows() -> list[Any]:
    rows = reference("rk45")["runs"]
    return [pytest.param(row, id=f"{row['variable']}-{row['rtol']:g}") for row in rows]


# reference values


@pytest.mark.parametrize("row", golden_rows())
def test_golden_runs(row: dict):
    if row["variable"] == "vp_t_song":
        assert_golden(run_vp(solver_of(row), VP_ENDS), row["x"])
        x_T, ends = math.sqrt(1 + VP_ENDS[0] ** 2) * latents(), VP_ENDS
    else:
        assert_golden(run(solver_of(row), ENDS).x_BCHW, row["x"])
        x_T, ends = SIGMA_MAX * latents(), ENDS
    assert calls(solver_of(row), x_T, ends) == row["nfev"]


@pytest.mark.parametrize("row", [row for row in golden_rows() if row.values[0]["rtol"] == 1e-5])
def test_calls_depend_on_what_is_in_the_batch(row: dict):
    scale = math.sqrt(1 + VP_ENDS[0] ** 2) if row["variable"] == "vp_t_song" else SIGMA_MAX
    ends = VP_ENDS if row["variable"] == "vp_t_song" else ENDS
    alone = [calls(solver_of(row), scale * z[None], ends) for z in latents()]
    assert alone == row["nfev_per_sample_alone"]


def calls(solver: Rk45Spec, x_T: Tensor, ends: list[float]) -> int:
    levels = torch.tensor(ends, dtype=torch.float64)
    return sample(exact_denoiser(ends[1], ends[0]), solver, levels, x_T).nfe


# laws


@pytest.mark.parametrize("variable", ["sigma", "log_sigma", "vp_time"])
def test_the_flow_is_followed_to_the_tolerance(variable: Any):
    errors = []
    for tolerance in (1e-5, 1e-7, 1e-9):
        solver = Rk45Spec(rtol=tolerance, atol=tolerance, variable=variable)
        errors.append((run(solver, ENDS).x_BCHW - truth()).abs().max().item())
        assert errors[-1] < 100 * tolerance
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("variable", ["sigma", "log_sigma", "vp_time"])
def test_inner_levels_lie_on_the_path_and_cost_nothing(variable: Any):
    solver, levels = Rk45Spec(variable=variable), levels_of("polynomial", 7)
    traced, ends = run(solver, levels, trace=True), run(solver, ENDS)
    assert traced.trace is not None
    assert traced.nfe == ends.nfe
    torch.testing.assert_close(traced.x_BCHW, ends.x_BCHW, rtol=0, atol=1e-12)
    exact = run(Rk45Spec(rtol=1e-11, atol=1e-11), levels, trace=True).trace
    assert exact is not None
    for x, expected in zip(traced.trace, exact, strict=True):
        # rtol of x, and no more than the interpolant adds to it.
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(traced.trace[0], SIGMA_MAX * latents())


def test_the_network_sees_no_level_beyond_the_ends():
    denoiser, seen = exact_denoiser(), []

    class Watched:
        nfe = property(lambda self: denoiser.nfe)
        sigma_min, sigma_max = SIGMA_MIN, SIGMA_MAX

        def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
            seen.extend(sigma_B.tolist())
            return denoiser(x_BCHW, sigma_B, labels_B)

    for variable in VARIABLES.values():
        levels = torch.tensor(ENDS, dtype=torch.float64)
        sample(Watched(), Rk45Spec(variable=variable), levels, SIGMA_MAX * latents())
    assert (min(seen), max(seen)) == (SIGMA_MIN, SIGMA_MAX)


def test_the_result_has_the_states_dtype_and_the_system_is_float64():
    exact, rounded = run(Rk45Spec(), ENDS), run(Rk45Spec(), ENDS, dtype=torch.float32)
    assert rounded.x_BCHW.dtype == torch.float32
    # x_T is exact in float32, so all that is rounded is the end.
    assert torch.equal(rounded.x_BCHW, exact.x_BCHW.float())


def test_denoising_at_the_end_is_one_more_call():
    plain, denoised = run(Rk45Spec(), ENDS), run(Rk45Spec(denoise_to_zero=True), ENDS)
    assert denoised.nfe == plain.nfe + 1
    at_end = torch.full((4,), SIGMA_MIN, dtype=torch.float64)
    assert torch.equal(denoised.x_BCHW, exact_denoiser()(plain.x_BCHW, at_end, None))


# what it refuses


class Field:
    """A "denoiser" with any slope: x - D = slope(x, sigma)."""

    sigma_min, sigma_max = SIGMA_MIN, SIGMA_MAX

    def __init__(self, slope: Any) -> None:
        self.slope, self.nfe = slope, 0

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        return x_BCHW - self.slope(x_BCHW, sigma_B)


def integrate(slope: Any) -> None:
    levels = torch.tensor(ENDS, dtype=torch.float64)
    sample(Field(slope), Rk45Spec(), levels, torch.ones(1, 1, 1, 1, dtype=torch.float64))


def test_a_tolerance_that_cannot_be_met_is_refused_with_the_remedy():
    # dx/dlog(sigma) = -x^2 from x = 1 at 80 has a pole at sigma = 80 / e.
    with pytest.raises(SamplingError, match=r"tolerance near sigma = 29\.43.* smallest step") as e:
        integrate(lambda x, sigma: -x.square())
    assert "larger rtol and atol" in e.value.remedy


def test_an_integration_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rk45, "MOST_CALLS", 50)
    with pytest.raises(SamplingError, match="it reached 50 network calls"):
        run(Rk45Spec(), ENDS)


@pytest.mark.parametrize("below", [100.0, 1.0])
def test_an_output_that_is_not_finite_is_named(below: float):
    # scipy alone would go on for ever.
    with pytest.raises(NonFiniteError, match="not finite at sigma = "):
        integrate(lambda x, sigma: torch.where(sigma < below, math.nan, x))


def test_it_does_not_go_to_zero():
    with pytest.raises(SamplingError, match="cannot integrate to sigma = 0") as refusal:
        run(Rk45Spec(), [80.0, 0.002, 0.0])
    assert "denoise_to_zero" in refusal.value.remedy


def test_a_tolerance_below_float64_is_a_config_error():
    with pytest.raises(ValidationError):
        Rk45Spec(rtol=1e-14)
