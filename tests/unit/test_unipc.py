"""UniPC against its references and by its laws.

Legend: L = -log sigma, M the network's outputs, q order of a step.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fleetstep.sampling.solvers.build import build_step
from fleetstep.sampling.solvers.step import Level
from fleetstep.sampling.solvers.unipc import corrector, predictor
from fleetstep.sampling.spec import UnipcSpec
from polynomial_outputs import UNEVEN, Polynomial, walked
from solver_goldens import (
    assert_golden,
    described,
    levels_of,
    reference,
    rows,
    run,
    run_vp,
    truth,
    vp_levels,
)


def spec_of(row: dict[str, Any]) -> UnipcSpec:
    settings = row["params"]
    return UnipcSpec(
        order=settings["max_order"],
        prediction="data" if settings["predict_x0"] else "noise",
        variant=settings["variant"],
        lower_order_final=settings.get("lower_order_final", True),
        afs=row.get("afs", False),
        denoise_to_zero=row.get("denoise_to_zero", False),
    )


@pytest.mark.parametrize("row", rows("diff_sampler", "unipc"), ids=described)
def test_it_is_diff_samplers(row: dict[str, Any]):
    solver = spec_of(row)
    result = run(solver, levels_of(row["schedule"], row["num_steps"]))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"] == solver.nfe_for(row["num_steps"])


@pytest.mark.parametrize("row", rows("others", "unipc_official"), ids=described)
def test_it_is_the_authors(row: dict[str, Any]):
    settings = row["params"]
    solver = UnipcSpec(
        order=settings["order"],
        variant=settings["variant"],
        prediction=settings["algorithm_type"].split("_")[0],
    )
    result = run(solver, levels_of("logsnr", row["steps"] + 1))
    assert_golden(result.x_BCHW, row["x"])
    assert result.nfe == row["nfe"]


@pytest.mark.parametrize("row", rows("others", "unipc_vp"), ids=described)
def test_the_vp_form_is_the_same_solver(row: dict[str, Any]):
    solver = UnipcSpec(order=row["params"]["order"])
    levels = vp_levels(row["params"]["skip_type"], row["steps"])
    assert_golden(run_vp(solver, levels), row["x_vp"])


TRAJECTORIES = [
    row for row in reference("diff_sampler")["trajectories_nfe5"] if row["solver"] == "unipc"
]


@pytest.mark.parametrize("row", TRAJECTORIES, ids=described)
def test_the_trace_holds_the_corrected_images(row: dict[str, Any]):
    levels = levels_of(row["schedule"], row["num_steps"])
    trace = run(spec_of(row), levels, trace=True).trace
    assert trace is not None
    for x, expected in zip(trace, row["x"], strict=True):
        assert_golden(x, expected)


@pytest.mark.parametrize(("points", "theirs"), reference("diff_sampler")["unipc_num_steps_vs_nfe"])
def test_no_call_is_spent_after_the_last_prediction(points: int, theirs: int):
    # diff-sampler corrects the last step too, with one more call, where it never reaches order 3.
    ours = run(UnipcSpec(order=3), levels_of("polynomial", points)).nfe
    assert ours == points - 1 == theirs - (points - 1 < 3)


ORDERS = [
    row
    for row in reference("convergence")["fixed_range_orders"]["rows"]
    if row["solver"] == "unipc"
]


def error(solver: UnipcSpec, schedule: str, steps: int) -> float:
    return (run(solver, levels_of(schedule, steps + 1)).x_BCHW - truth()).abs().max().item()


@pytest.mark.parametrize("row", ORDERS, ids=described)
def test_errors_are_those_of_the_reference(row: dict[str, Any]):
    solver = spec_of(row)
    for steps, expected in list(zip(row["steps"], row["max_abs_err"], strict=True))[:2]:
        # The truth itself is known to about 1e-12.
        assert error(solver, row["schedule"], steps) == pytest.approx(
            expected, rel=1e-6, abs=1e-11
        )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_adds_an_order(order: int):
    solver = UnipcSpec(order=order, lower_order_final=False)
    observed = math.log2(error(solver, "logsnr", 256) / error(solver, "logsnr", 512))
    assert observed == pytest.approx(solver.global_order, abs=0.06)


def test_every_level_but_the_last_is_evaluated_once():
    for levels in (UNEVEN, (*UNEVEN, 0.0)):
        problem = Polynomial((0.4, -0.9), "data")
        walked(build_step(UnipcSpec(order=3), levels), problem, len(levels) - 1)
        assert problem.seen == list(levels[:-1])


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("order", [2, 3])
def test_a_polynomial_of_degree_q_is_corrected_to_the_exact_image(
    order: int, prediction: str, variant: str
):
    # q + 1 outputs carry a polynomial of degree q: M at the step's end included.
    solver = UnipcSpec(
        order=order, prediction=prediction, variant=variant, lower_order_final=False
    )
    problem = Polynomial((0.4, -0.9, 0.3, 0.2)[: order + 1], prediction)
    steps = len(UNEVEN) - 1
    passed = walked(build_step(solver, UNEVEN), problem, steps)
    for i in range(order - 1, steps - 1):
        exact = problem.flow(passed[i], UNEVEN[i], UNEVEN[i + 1])
        assert passed[i + 1] == pytest.approx(exact, rel=1e-11, abs=1e-11)
    # The last step only predicts: one degree less.
    exact = problem.flow(passed[-2], *UNEVEN[-2:])
    assert abs(passed[-1] - exact) > 1e-7


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 3])
def test_the_prediction_of_order_q_is_exact_to_degree_q_less_one(order: int, prediction: str):
    # Order 2 takes 1/2 for its one weight, and is not.
    solver = UnipcSpec(order=order, prediction=prediction, lower_order_final=False)
    problem = Polynomial((0.4, -0.9, 0.3)[:order], prediction)
    passed = walked(build_step(solver, UNEVEN), problem, len(UNEVEN) - 1)
    exact = problem.flow(passed[-2], *UNEVEN[-2:])
    assert passed[-1] == pytest.approx(exact, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_levels_of_images_have_the_weights_of_each(order: int, prediction: str, variant: str):
    solver = UnipcSpec(order=order, prediction=prediction, variant=variant)
    hosts = [(0.6, (1.1, 2.6, 3.1)), (0.002, (0.01, 0.3, 80.0)), (20.0, (30.0, 33.0, 60.0))]

    def stacked(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).requires_grad_()

    after = stacked([after for after, _ in hosts])
    levels = [stacked([passed[j] for _, passed in hosts]) for j in range(order)]
    for part in (predictor, corrector):
        together = part(solver, after, levels, order)
        for image, (host_after, host_levels) in enumerate(hosts):
            alone = part(solver, host_after, host_levels, order)
            pairs = [*zip(together.terms, alone.terms, strict=True)]
            if alone.lead is not None:
                pairs.append((together.lead, alone.lead))
            for many, one in pairs:
                assert isinstance(many, Tensor)
                assert many[image].item() == pytest.approx(one, rel=1e-9)
        (slope,) = torch.autograd.grad(sum(term.sum() for term in together.terms), after)
        assert bool(slope.isfinite().all())
        assert bool((slope != 0).all())


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_a_step_to_zero_takes_the_last_output_alone(prediction: str):
    levels = (*UNEVEN, 0.0)
    problem = Polynomial((0.4, -0.9), prediction)
    passed = walked(build_step(UnipcSpec(prediction=prediction), levels), problem, len(UNEVEN))
    newest = problem.value(UNEVEN[-1])
    denoised = newest if prediction == "data" else passed[-2] - UNEVEN[-1] * newest
    assert passed[-1] == pytest.approx(denoised, rel=1e-14)
    assert run(UnipcSpec(prediction=prediction), [80.0, 20.0, 5.0, 0.1, 0.0]).nfe == 4


def test_each_call_is_made_at_a_prediction():
    # Correcting moves the image, and the network is not called again there.
    class Noting(Polynomial):
        def denoise(self, x_BCHW: Tensor, sigma: Level) -> Tensor:
            called.append(x_BCHW.item())
            return super().denoise(x_BCHW, sigma)

    called: list[float] = []
    solver, steps = UnipcSpec(lower_order_final=False), len(UNEVEN) - 1
    passed = walked(build_step(solver, UNEVEN), Noting((0.4, -0.9, 0.3, 0.2), "data"), steps)
    assert called[0] == passed[0]
    assert len(called) == steps
    for predicted, corrected in zip(called[1:], passed[1:], strict=False):
        assert abs(predicted - corrected) > 1e-6
