"""Euler, Adams-Bashforth, DEIS and two-slope methods: reference values, and laws of weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deis_reference import use_rectangles
from fleetstep.errors import SamplingError
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.solvers.adams import ADAMS_BASHFORTH
from fleetstep.sampling.solvers.linear import Rule
from fleetstep.sampling.solvers.rules import rule_of
from fleetstep.sampling.spec import (
    DdpmSubsetSpec,
    DeisSpec,
    Dpm2Spec,
    EulerSpec,
    HeunAbSpec,
    IpndmSpec,
    IpndmVSpec,
    SolverSpec,
    ThresholdingSpec,
)
from fleetstep.sampling.trajectory import levels_for
from solver_goldens import assert_golden, exact_denoiser, levels_of, reference, run, run_vp

KINDS: dict[str, type[Any]] = {
    "euler": EulerSpec,
    "heun": HeunAbSpec,
    "dpm2": Dpm2Spec,
    "ipndm": IpndmSpec,
    "ipndm_v": IpndmVSpec,
    "deis": DeisSpec,
}
K_DIFFUSION: dict[str, SolverSpec] = {
    "kd_sample_euler": EulerSpec(),
    "kd_sample_heun": HeunAbSpec(),
    "kd_sample_dpm_2": Dpm2Spec(),
    "kd_sample_lms": IpndmVSpec(),
}
# Here the 6e-5 of the reference's quadrature grow beyond 1e-4: five steps, high order.
AMPLIFIED = {
    ("polynomial_rho7", 3, 6),
    ("polynomial_rho7", 4, 6),
    ("polynomial_rho7", 4, 7),
    ("time_uniform_rho1", 4, 6),
}

HIGH, LOW = 80.0, 0.002
LEVELS = [9.7, 4.1, 1.5, 0.47]
AFTER = 0.12
RULES: dict[str, SolverSpec] = {
    "ipndm": IpndmSpec(),
    "ipndm_v": IpndmVSpec(),
    "deis": DeisSpec(order=4),
    "deis_log_sigma": DeisSpec(order=4, basis="log_sigma"),
}


def spec_of(row: dict[str, Any]) -> SolverSpec:
    settings = {"afs": row["afs"], "denoise_to_zero": row["denoise_to_zero"]}
    settings["thresholding"] = ThresholdingSpec() if row["thresholding"] else None
    if "r" in row["params"]:
        settings["r"] = row["params"]["r"]
    if "max_order" in row["params"]:
        settings["order"] = row["params"]["max_order"]
    spec: SolverSpec = KINDS[row["solver"]](**settings)
    return spec


def rows(section: str, **wanted: Any) -> list[Any]:
    found = reference(section)["runs"]
    found = [row for row in found if all(row.get(k) in v for k, v in wanted.items())]
    assert found
    return [pytest.param(row, id=f"{row.get('solver')}-{i}") for i, row in enumerate(found)]


def is_ours(row: dict[str, Any]) -> bool:
    """Whether the reference's ipndm_v is Adams-Bashforth: it is up to order 2."""
    return row["solver"] != "ipndm_v" or row["params"]["max_order"] <= 2


def diff_sampler(row: dict[str, Any]) -> Tensor:
    result = run(spec_of(row), levels_of(row["schedule"], row["num_steps"]))
    assert result.nfe == row["nfe"]
    return result.x_BCHW


ALL_RUNS = rows("diff_sampler", solver=KINDS)
RUNS = [p for p in ALL_RUNS if is_ours(p.values[0])]
WRONG_RUNS = [p for p in ALL_RUNS if not is_ours(p.values[0])]
DEIS_RUNS = [p for p in ALL_RUNS if p.values[0]["solver"] == "deis"]


@pytest.mark.parametrize("row", RUNS)
def test_diff_samplers_runs(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    use_rectangles(monkeypatch)  # in DEIS
    assert_golden(diff_sampler(row), row["x"])


@pytest.mark.parametrize("row", DEIS_RUNS)
def test_exact_deis_is_near_the_references_quadrature(row: dict[str, Any]):
    amplified = (row["schedule"], row["params"]["max_order"], row["num_steps"]) in AMPLIFIED
    x = diff_sampler(row)
    near = torch.tensor(row["x"], dtype=torch.float64)[:, :, None, None]
    assert torch.allclose(x, near, rtol=1e-4, atol=1e-4) != amplified


@pytest.mark.parametrize("row", WRONG_RUNS)
def test_ipndm_v_is_not_the_references_wrong_weights(row: dict[str, Any]):
    # Its weights of orders 3 and 4 do not even add up to the step.
    there = torch.tensor(row["x"], dtype=torch.float64)[:, :, None, None]
    assert (diff_sampler(row) - there).abs().max() > 1e-3


@pytest.mark.parametrize("row", rows("ipndm_v_exact"))
def test_exact_adams_bashforth_runs(row: dict[str, Any]):
    result = run(IpndmVSpec(order=row["k"]), levels_of(row["schedule"], row["nfe"] + 1))
    assert_golden(result.x_BCHW, row["x"])


@pytest.mark.parametrize("row", rows("others", solver=K_DIFFUSION))
def test_k_diffusions_runs_to_zero(row: dict[str, Any]):
    levels = [*levels_of("polynomial", row["n"]).tolist(), 0.0]
    result = run(K_DIFFUSION[row["solver"]], levels)
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]


def subset(row: dict[str, Any]) -> DdpmSubsetSpec:
    params = row["params"]
    first = params.get("set_alpha_to_one") is False
    return DdpmSubsetSpec(
        spacing=params["timestep_spacing"],
        offset=params.get("steps_offset", 0),
        end="first" if first else "zero",
    )


DDIM_RUNS = rows("diffusers", solver={"ddim", "ddim_final_a0"})


def joins(row: dict[str, Any]) -> bool:
    """Whether its steps end where the next begin: those of linspace do not."""
    spacing: str = row["params"]["timestep_spacing"]
    return spacing != "linspace"


@pytest.mark.parametrize("row", [p for p in DDIM_RUNS if joins(p.values[0])])
def test_diffusers_ddim(row: dict[str, Any]):
    solver = EulerSpec(schedule=subset(row))
    levels = levels_for(exact_denoiser(0.001, 200.0), solver, row["S"])
    assert_golden(run_vp(solver, levels), row["x_vp"])


@pytest.mark.parametrize("row", [p for p in DDIM_RUNS if not joins(p.values[0])])
def test_diffusers_ddim_on_linspace_jumps_between_its_steps(row: dict[str, Any]):
    # It steps from t to t - T/S whatever the next t is, and reads the same latent there: each
    # step is Euler's, and the levels do not join.
    of_step = sigmas(DdpmSubsetSpec(end="none"), 1000, LOW, HIGH).tolist()[::-1]
    begins = [round(i * 999 / (row["S"] - 1)) for i in range(row["S"])][::-1]
    latent = torch.tensor(reference("problem")["gmm"]["latents"]["2"], dtype=torch.float64)
    y = latent[:, :, None, None]
    for t in begins:
        ends = t - 1000 // row["S"]
        before, after = of_step[t], of_step[ends] if ends >= 0 else 0.0
        x = math.sqrt(1 + before**2) * y
        denoiser = exact_denoiser(before, before)
        eps = (x - denoiser(x, torch.full((4,), before, dtype=torch.float64), None)) / before
        y = (x + (after - before) * eps) / math.sqrt(1 + after**2)
    assert_golden(y, row["x_vp"])


@pytest.mark.parametrize("row", rows("diffusers", solver={"deis_logrho"}))
def test_diffusers_deis(row: dict[str, Any]):
    # Its S steps end at step 0; it keeps float32 levels, so 1e-5.
    schedule = DdpmSubsetSpec(spacing="linspace", end="none")
    solver = DeisSpec(
        order=row["params"]["solver_order"],
        basis="log_sigma",
        lower_order_final=row["S"] < 15,
        schedule=schedule,
    )
    levels = sigmas(schedule, row["S"] + 1, LOW, HIGH)
    assert_golden(run_vp(solver, levels), row["x_vp"], 1e-5)


def table(name: str) -> tuple[list[float], int]:
    """Levels and order of a golden table of weights."""
    schedule, points, order = name.split("/")
    return levels_of(schedule, int(points[1:])).tolist(), int(order[5:])


def weights(rule: Rule, levels: list[float], i: int) -> tuple[float, ...]:
    held = [levels[i - j] for j in range(min(i, rule.memory) + 1)]
    found = rule.weights(levels[i + 1], held, i, len(levels) - 1)
    assert found.lead is None
    return found.terms


@pytest.mark.parametrize("name", reference("deis")["exact"])
def test_the_weights_of_deis(name: str):
    levels, order = table(name)
    rule = rule_of(DeisSpec(order=order), levels)
    approximate = reference("deis")["reference"][name]
    for i, expected in enumerate(reference("deis")["exact"][name]):
        assert weights(rule, levels, i) == pytest.approx(expected, rel=1e-9, abs=0)
        if i > 0:
            assert weights(rule, levels, i) == pytest.approx(approximate[i], rel=1e-4, abs=0)


def test_a_polynomial_in_sigma_is_exact_adams_bashforth():
    levels, order = levels_of("polynomial", 6).tolist(), 4
    expected = reference("deis")["reference"]["rhoab_polynomial_rho7/N6/order4"]
    rule = rule_of(IpndmVSpec(order=order), levels)
    for i in (1, 2, 3):  # from there the reference repeats its last row
        assert weights(rule, levels, i) == pytest.approx(expected[i], rel=1e-12)


@pytest.mark.parametrize("power", range(4))
def test_the_weights_integrate_polynomials_in_their_variable(power: int):
    held = LEVELS[::-1]
    exact = rule_of(RULES["ipndm_v"], [HIGH, LOW]).weights(AFTER, held, 3, 9).terms
    summed = sum(w * level**power for w, level in zip(exact, held, strict=True))
    integral = (AFTER ** (power + 1) - held[0] ** (power + 1)) / (power + 1)
    assert summed == pytest.approx(integral, rel=1e-12)

    def antiderivative(s: float) -> float:
        """Of (log s)^power, by parts."""
        terms = (
            (-1) ** j * math.perm(power, j) * math.log(s) ** (power - j) for j in range(power + 1)
        )
        return s * sum(terms)

    deis = rule_of(RULES["deis_log_sigma"], [HIGH, LOW]).weights(AFTER, held, 3, 9).terms
    summed = sum(w * math.log(level) ** power for w, level in zip(deis, held, strict=True))
    expected = antiderivative(AFTER) - antiderivative(held[0])
    assert summed == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_on_equal_steps_the_weights_are_the_classical_ones(order: int):
    held = [3.0, 4.0, 5.0, 6.0][:order]
    found = rule_of(IpndmVSpec(order=order), [HIGH, LOW]).weights(2.0, held, order, 9).terms
    assert found == pytest.approx([-w for w in ADAMS_BASHFORTH[order]], rel=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_levels_of_images_have_the_weights_of_the_host(name: str):
    rule = rule_of(RULES[name], [HIGH, LOW])
    held = LEVELS[::-1]
    factors = torch.linspace(0.9, 1.1, 7, dtype=torch.float64)[:, None, None, None]
    images = rule.weights(AFTER * factors, [level * factors for level in held], 3, 9).terms
    for i, factor in enumerate(factors.flatten().tolist()):
        host = rule.weights(AFTER * factor, [level * factor for level in held], 3, 9).terms
        assert [float(w[i]) for w in images] == pytest.approx(host, rel=1e-13)
        one = factors[i : i + 1]
        alone = rule.weights(AFTER * one, [level * one for level in held], 3, 9).terms
        for w, w_alone in zip(images, alone, strict=True):
            assert torch.equal(w[i : i + 1], w_alone)


@pytest.mark.parametrize("name", RULES)
def test_gradients_pass_through_levels_of_images(name: str):
    rule = rule_of(RULES[name], [HIGH, LOW])

    def of_levels(after: Tensor, newest: Tensor) -> tuple[Tensor, ...]:
        return rule.weights(after, [newest, *LEVELS[-2::-1]], 3, 9).terms

    after, newest = (
        torch.full((2, 1, 1, 1), level, dtype=torch.float64, requires_grad=True)
        for level in (AFTER, LEVELS[-1])
    )
    assert torch.autograd.gradcheck(of_levels, (after, newest))


@pytest.mark.parametrize("basis", ["time", "log_sigma"])
def test_a_step_of_deis_to_zero_is_eulers(basis: Any):
    rule = rule_of(DeisSpec(order=3, basis=basis), [HIGH, LOW, 0.0])
    assert rule.weights(0.0, [LOW, 1.0, HIGH], 5, 6).terms == (-LOW,)


def test_lower_orders_at_the_end_of_deis():
    levels = levels_of("logsnr", 7).tolist()
    rule = rule_of(DeisSpec(order=3, lower_order_final=True), levels)
    assert [len(weights(rule, levels, i)) for i in range(6)] == [1, 2, 3, 3, 2, 1]


def test_a_range_without_vp_time_is_refused():
    with pytest.raises(SamplingError, match="no VP process rises"):
        run(DeisSpec(), [1.0, 0.8, 0.5])


@pytest.mark.parametrize("schedule", ["polynomial", "logsnr"])
def test_dpm2_with_r_one_is_heun_to_the_bit(schedule: str):
    levels = levels_of(schedule, 6)
    assert torch.equal(run(Dpm2Spec(r=1.0), levels).x_BCHW, run(HeunAbSpec(), levels).x_BCHW)
