"""DPM-Solver(++): multistep, single steps and the SDE form, by its references and its laws.

Legend: L = -log sigma, M the network's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fleetstep.errors import SamplingError
from fleetstep.sampling.nodes import nodes
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.solvers.build import build_step
from fleetstep.sampling.solvers.dpmpp import DpmppRule
from fleetstep.sampling.solvers.step import State
from fleetstep.sampling.spec import (
    DdpmSubsetSpec,
    DpmppSdeSpec,
    DpmppSinglestepSpec,
    DpmppSpec,
    LevelsSpec,
    SolverSpec,
)
from polynomial_outputs import UNEVEN, Polynomial, walked
from solver_goldens import (
    SIGMA_MAX,
    SIGMA_MIN,
    assert_golden,
    described,
    exact_denoiser,
    levels_of,
    noise,
    reference,
    rows,
    run,
    run_vp,
    truth,
    vp_levels,
)


def prediction_of(row: dict[str, Any]) -> str:
    return {"dpmsolver++": "data", "dpmsolver": "noise"}[row["params"]["algorithm_type"]]


@pytest.mark.parametrize("row", rows("diff_sampler", "dpmpp"), ids=described)
def test_multistep_is_diff_samplers(row: dict[str, Any]):
    settings = row["params"]
    solver = DpmppSpec(
        order=settings["max_order"],
        prediction="data" if settings["predict_x0"] else "noise",
        lower_order_final=settings["lower_order_final"],
        afs=row["afs"],
        denoise_to_zero=row["denoise_to_zero"],
    )
    result = run(solver, levels_of(row["schedule"], row["num_steps"]))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"] == solver.nfe_for(row["num_steps"])


TRAJECTORIES = [
    row for row in reference("diff_sampler")["trajectories_nfe5"] if row["solver"] == "dpmpp"
]


@pytest.mark.parametrize("row", TRAJECTORIES, ids=described)
def test_every_point_of_the_golden_trajectories(row: dict[str, Any]):
    settings = row["params"]
    solver = DpmppSpec(
        order=settings["max_order"], prediction="data" if settings["predict_x0"] else "noise"
    )
    trace = run(solver, levels_of(row["schedule"], row["num_steps"]), trace=True).trace
    assert trace is not None
    for x, expected in zip(trace, row["x"], strict=True):
        assert_golden(x, expected)


@pytest.mark.parametrize("row", rows("others", "dpm_official", method="multistep"), ids=described)
def test_multistep_is_the_authors(row: dict[str, Any]):
    # Their code lowers the last orders below ten steps only.
    solver = DpmppSpec(
        order=row["params"]["order"],
        prediction=prediction_of(row),
        lower_order_final=row["steps"] < 10,
    )
    assert_golden(run(solver, levels_of("logsnr", row["steps"] + 1)).x_BCHW, row["x"])


@pytest.mark.parametrize("row", rows("others", "dpm_official", method="singlestep"), ids=described)
def test_single_steps_are_the_authors(row: dict[str, Any]):
    solver = DpmppSinglestepSpec(order=row["params"]["order"], prediction=prediction_of(row))
    result = run(solver, nodes(solver, solver.points_for(row["nfe"]), SIGMA_MIN, SIGMA_MAX))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]


FIXED = rows("others", "dpm_official", method="singlestep_fixed")


@pytest.mark.parametrize("row", FIXED, ids=described)
def test_full_steps_alone_are_the_authors_fixed_method(row: dict[str, Any]):
    # It drops the calls that do not fill a step: on as many calls, every step of ours is full.
    solver = DpmppSinglestepSpec(order=row["params"]["order"], prediction=prediction_of(row))
    assert row["nfe"] == row["steps"] - row["steps"] % solver.order
    result = run(solver, nodes(solver, row["nfe"] + 1, SIGMA_MIN, SIGMA_MAX))
    assert_golden(result.x_BCHW, row["x"])


@pytest.mark.parametrize("row", rows("others", "fdm_dpmpp_singlestep3"), ids=described)
def test_order_three_denoised_at_the_end_is_fdms_sampler(row: dict[str, Any]):
    solver = DpmppSinglestepSpec(denoise_to_zero=True)
    points = solver.points_for(row["nfe"])
    assert points == row["num_steps"]
    result = run(solver, nodes(solver, points, SIGMA_MIN, SIGMA_MAX))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"] == row["num_steps"]


@pytest.mark.parametrize("row", rows("others", "dpmpp_vp"), ids=described)
def test_the_vp_form_is_the_same_solver(row: dict[str, Any]):
    settings = row["params"]
    solver = DpmppSpec(order=settings["order"], lower_order_final=row["steps"] < 10)
    levels = vp_levels(settings["skip_type"], row["steps"])
    assert_golden(run_vp(solver, levels), row["x_vp"])


def to_zero(points: int) -> Tensor:
    return torch.cat((levels_of("polynomial", points), torch.zeros(1, dtype=torch.float64)))


@pytest.mark.parametrize("row", rows("others", "kd_sample_dpmpp_2m"), ids=described)
def test_k_diffusions_2m(row: dict[str, Any]):
    result = run(DpmppSpec(order=2), to_zero(row["n"]))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]


SDE_ROWS = [*rows("others", "kd_sample_dpmpp_2m_sde"), *rows("others", "kd_sample_dpmpp_3m_sde")]


@pytest.mark.parametrize("row", SDE_ROWS, ids=described)
def test_k_diffusions_sde(row: dict[str, Any]):
    settings = row["params"]
    solver = DpmppSdeSpec(
        order=3 if "3m" in row["solver"] else 2,
        eta=settings["eta"],
        variant="taylor" if settings.get("solver_type") == "heun" else "dpmsolver",
    )
    drawn: list[int] = []

    def listed(k: int) -> Tensor:
        drawn.append(k)
        return noise(k)

    result = run(solver, to_zero(row["n"]), noise=listed)
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]
    assert drawn == list(range(row["noise_used"]))  # none in the step to zero, none at eta = 0


@pytest.mark.parametrize(
    "row", [r for r in reference("diffusers")["runs"] if "dpmpp" in r["solver"]], ids=described
)
def test_diffusers_2m(row: dict[str, Any]):
    levels = sigmas(DdpmSubsetSpec(spacing="linspace", end="none"), row["S"] + 1, 0.0, 0.0)
    levels[-1] = 0
    solver = DpmppSpec(order=2)
    # It keeps its levels in float32.
    assert_golden(run_vp(solver, levels), row["x_vp"], tolerance=1e-5)


def error(solver: SolverSpec, schedule: str, steps: int) -> float:
    return (run(solver, levels_of(schedule, steps + 1)).x_BCHW - truth()).abs().max().item()


ORDERS = [
    row
    for row in reference("convergence")["fixed_range_orders"]["rows"]
    if row["solver"] == "dpmpp"
]


@pytest.mark.parametrize("row", ORDERS, ids=described)
def test_errors_are_those_of_the_reference(row: dict[str, Any]):
    settings = row["params"]
    solver = DpmppSpec(
        order=settings["max_order"],
        prediction="data" if settings["predict_x0"] else "noise",
        lower_order_final=settings["lower_order_final"],
    )
    for steps, expected in list(zip(row["steps"], row["max_abs_err"], strict=True))[:2]:
        # The truth itself is known to about 1e-12.
        assert error(solver, row["schedule"], steps) == pytest.approx(
            expected, rel=1e-6, abs=1e-11
        )


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("schedule", ["polynomial", "logsnr"])
def test_the_second_difference_decides_the_order_of_3m(schedule: str, factor: int):
    table = reference("convergence")["dpmpp3m_d2_factor"]
    expected = table[f"{schedule[:4] if schedule == 'polynomial' else schedule}_x0_fac{factor}"]
    solver = DpmppSpec(order=3, d2_factor=factor, lower_order_final=False)
    steps = [9, 18, 35, 64, 128, 256]
    errors = [error(solver, schedule, n) for n in steps]
    # The table has three digits.
    assert errors == pytest.approx(expected[: len(steps)], rel=5e-3)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(solver.global_order, abs=0.3)


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3])
def test_single_steps_have_their_order(order: int, prediction: str):
    solver = DpmppSinglestepSpec(order=order, prediction=prediction)

    def missed(steps: int) -> float:
        levels = nodes(solver, steps * order + 1, SIGMA_MIN, SIGMA_MAX)
        return (run(solver, levels).x_BCHW - truth()).abs().max().item()

    observed = math.log2(missed(64) / missed(128))
    assert observed == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize(
    ("solver", "degree"),
    [
        (DpmppSpec(order=1), 0),
        (DpmppSpec(order=2, variant="taylor", lower_order_final=False), 1),
        (DpmppSpec(order=3, d2_factor=2, lower_order_final=False), 2),
        (DpmppSinglestepSpec(order=3), 1),
    ],
    ids=lambda value: value if isinstance(value, int) else value.label,
)
def test_a_polynomial_output_is_integrated_exactly(
    solver: SolverSpec, degree: int, prediction: str
):
    solver = solver.model_copy(update={"prediction": prediction})
    problem = Polynomial((0.4, -0.9, 0.3)[: degree + 1], prediction)
    passed = walked(build_step(solver, UNEVEN), problem, len(UNEVEN) - 1)
    begun = degree if isinstance(solver, DpmppSpec) else 0  # the start has fewer outputs
    every = 1 if isinstance(solver, DpmppSpec) else 3  # between, the image is not the solution
    last = len(UNEVEN) - 1 if isinstance(solver, DpmppSpec) else 3
    for i in range(begun, last, every):
        exact = problem.flow(passed[i], UNEVEN[i], UNEVEN[i + every])
        assert passed[i + every] == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_the_official_second_difference_is_not_exact_on_a_parabola():
    problem = Polynomial((0.4, -0.9, 0.3), "data")
    passed = walked(build_step(DpmppSpec(order=3, lower_order_final=False), UNEVEN), problem, 4)
    exact = problem.flow(passed[3], UNEVEN[3], UNEVEN[4])
    assert abs(passed[4] - exact) > 1e-4  # to d2_factor 2 it is exact to 1e-12


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_levels_of_images_have_the_weights_of_each(order: int, prediction: str):
    rule = DpmppRule(DpmppSpec(order=order, prediction=prediction))
    hosts = [(0.6, (1.1, 2.6, 3.1)), (0.002, (0.01, 0.3, 80.0)), (20.0, (30.0, 33.0, 60.0))]

    def stacked(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).requires_grad_()

    after = stacked([after for after, _ in hosts])
    levels = [stacked([passed[j] for _, passed in hosts]) for j in range(order)]
    together = rule.weights(after, levels, position=2, steps=9)
    for image, (host_after, host_levels) in enumerate(hosts):
        alone = rule.weights(host_after, list(host_levels[:order]), position=2, steps=9)
        pairs = [*zip(together.terms, alone.terms, strict=True)]
        if alone.lead is not None:
            pairs.append((together.lead, alone.lead))
        for many, one in pairs:
            assert isinstance(many, Tensor)
            assert many[image].item() == pytest.approx(one, rel=1e-9)
    (slope,) = torch.autograd.grad(sum(term.sum() for term in together.terms), after)
    assert bool(slope.isfinite().all())
    assert bool((slope != 0).all())


def test_the_order_rises_with_history_and_falls_at_the_end():
    rule = DpmppRule(DpmppSpec(order=3))
    taken = [len(rule.weights(1.0, [2.0, 3.0, 4.0][: i + 1], i, 6).terms) for i in range(6)]
    assert taken == [1, 2, 3, 3, 2, 1]


def test_two_steps_rise_to_order_two_while_history_grows():
    rule = DpmppRule(DpmppSpec(order=3))
    assert [len(rule.weights(1.0, [2.0, 3.0][: i + 1], i, 2).terms) for i in range(2)] == [1, 2]
    second = DpmppRule(DpmppSpec(order=2))
    assert [len(second.weights(1.0, [2.0, 3.0][: i + 1], i, 2).terms) for i in range(2)] == [1, 1]


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("kind", [DpmppSpec, DpmppSinglestepSpec])
def test_a_step_to_zero_takes_the_denoised_image(kind: Callable[..., SolverSpec], prediction: str):
    solver = kind(order=3, prediction=prediction)
    positive = [80.0, 20.0, 5.0, 1.0, 0.1]
    trace = run(solver, [*positive, 0.0], trace=True).trace
    assert trace is not None
    sigma_B = torch.full((4,), 0.1, dtype=torch.float64)
    denoised = exact_denoiser()(trace[-2], sigma_B, None)
    torch.testing.assert_close(trace[-1], denoised, rtol=1e-12, atol=1e-12)


def test_a_zero_stands_only_at_the_end():
    with pytest.raises(SamplingError, match="strictly descending"):
        run(DpmppSpec(), torch.tensor([1.0, 0.0, 0.5]))


def test_the_sde_without_noise_is_2m():
    flow = DpmppSpec(order=2, lower_order_final=False)
    plain = run(flow, to_zero(9)).x_BCHW
    quiet = run(DpmppSdeSpec(order=2, eta=0.0), to_zero(9)).x_BCHW
    torch.testing.assert_close(quiet, plain, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_the_sde_keeps_the_law_of_a_point_mass(eta: float, order: int):
    # Of data that are all zero the law at sigma is N(0, sigma^2), and D = 0: a step scales x and
    # adds noise, and its variance must add up to the next level's.
    class Nothing(Polynomial):
        def noise(self, k: int) -> Tensor:
            return torch.ones(1, 1, 1, 1, dtype=torch.float64)

    problem = Nothing((0.0,), "data")
    step = build_step(DpmppSdeSpec(order=order, eta=eta), UNEVEN)
    for i, (before, after) in enumerate(pairwise(UNEVEN)):
        outputs = (torch.zeros(1, 1, 1, 1).double(),) * min(i, order - 1)
        noise_only = step(problem, State(i, torch.zeros(1, 1, 1, 1).double(), outputs)).x_BCHW
        kept = (
            step(problem, State(i, torch.ones(1, 1, 1, 1).double(), outputs)).x_BCHW - noise_only
        )
        assert (kept * before) ** 2 + noise_only**2 == pytest.approx(after**2, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("order", [2, 3])
def test_the_drift_of_the_sde_is_exact_on_a_line(order: int, eta: float):
    # The mean of dx = (1 + eta) (D - x) dL + eta x dL + noise, for D = a + b L in closed form.
    class Still(Polynomial):
        def noise(self, k: int) -> Tensor:
            return torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    a, b, rate = 0.4, -0.9, 1 + eta
    problem = Still((a, b), "data")
    solver = DpmppSdeSpec(order=order, eta=eta, variant="taylor")
    passed = walked(build_step(solver, UNEVEN), problem, len(UNEVEN) - 1)
    for i, (before, after) in list(enumerate(pairwise(UNEVEN)))[1:]:
        kept = (after / before) ** rate
        line = problem.value(after) - kept * problem.value(before) - b * (1 - kept) / rate
        assert passed[i + 1] == pytest.approx(kept * passed[i] + line, rel=1e-12)


def test_levels_written_down_are_taken_as_nodes():
    levels = LevelsSpec(sigmas=(80.0, 9.0, 2.0, 0.5, 0.01))
    solver = DpmppSinglestepSpec(order=2, schedule=levels)
    assert nodes(solver, 5, SIGMA_MIN, SIGMA_MAX).tolist() == list(levels.sigmas)
    assert run(solver, list(levels.sigmas)).nfe == 4
