"""PLMS and PNDM against diffusers, and the levels that solvers put between a schedule's."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from fleetstep.errors import SamplingError
from fleetstep.sampling.nodes import nodes, step_orders
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.spec import (
    AcceleratedScheduleSpec,
    DdpmSubsetSpec,
    DpmppSinglestepSpec,
    IddpmSpec,
    LevelsSpec,
    LogSnrSpec,
    PlmsSpec,
    PndmSpec,
    PolynomialSpec,
    ScheduleSpec,
    TimeUniformSpec,
)
from fleetstep.sampling.trajectory import levels_for
from solver_goldens import assert_golden, exact_denoiser, levels_of, reference, run, run_vp

LOW, HIGH = 0.002, 80.0


def rows(solver: str) -> list[Any]:
    found = [row for row in reference("diffusers")["runs"] if row["solver"] == solver]
    assert found
    return [pytest.param(row, id=f"S{row['S']}") for row in found]


@pytest.mark.parametrize("row", rows("plms_skip_prk"))
def test_plms_as_diffusers_has_it(row: dict[str, Any]):
    solver = PlmsSpec(schedule=DdpmSubsetSpec())
    levels = levels_for(exact_denoiser(0.001, 200.0), solver, row["nfe"])
    assert_golden(run_vp(solver, levels), row["x_vp"])


@pytest.mark.parametrize("row", rows("pndm_prk"))
def test_pndm_as_diffusers_has_it(row: dict[str, Any]):
    solver = PndmSpec(schedule=DdpmSubsetSpec())
    levels = levels_for(exact_denoiser(0.001, 200.0), solver, row["nfe"])
    assert len(levels) == row["S"] + 3 + 1
    assert_golden(run_vp(solver, levels), row["x_vp"])


@pytest.mark.parametrize(
    "schedule", [PolynomialSpec(), LogSnrSpec(), TimeUniformSpec(rho=2.0), IddpmSpec()]
)
def test_pndm_has_the_schedules_own_middles(schedule: ScheduleSpec):
    merged = nodes(PndmSpec(schedule=schedule), 11, LOW, HIGH)
    outer = sigmas(schedule, 8, LOW, HIGH)
    assert torch.equal(torch.cat((merged[:6:2], merged[6:])), outer)
    assert torch.equal(merged[1:6:2], sigmas(schedule, 15, LOW, HIGH)[1:6:2])
    assert bool((merged.diff() < 0).all())


def test_the_middle_of_discrete_steps_is_a_step():
    # S = 13 of 1000: stride 76 from step 912.
    every = sigmas(DdpmSubsetSpec(end="none"), 1000, LOW, HIGH)
    merged = nodes(PndmSpec(schedule=DdpmSubsetSpec()), 16, LOW, HIGH)
    steps = [912, 874, 836, 798, 760, 722, 684, 608]
    assert torch.equal(merged[:8], torch.stack([every[999 - t] for t in steps]))
    odd = nodes(PndmSpec(schedule=DdpmSubsetSpec(spacing="trailing")), 11, LOW, HIGH)
    # T / S = 125: the middle of 999 and 874 is 999 - 62.
    assert odd[1] == every[999 - (999 - 62)]


@pytest.mark.parametrize(
    ("schedule", "points", "rule"),
    [
        (AcceleratedScheduleSpec(), 103, "its levels depend on how many there are"),
        (DdpmSubsetSpec(), 703, "has none between two"),
    ],
)
def test_a_schedule_without_middles_is_refused(schedule: ScheduleSpec, points: int, rule: str):
    with pytest.raises(SamplingError, match=rule):
        nodes(PndmSpec(schedule=schedule), points, LOW, HIGH)


def test_too_few_levels_for_pndm_are_refused_before_any_call():
    with pytest.raises(SamplingError, match="at least 7 points, got 6"):
        run(PndmSpec(), [*levels_of("logsnr", 6).tolist(), 0.0])


def test_levels_of_the_user_are_the_nodes():
    levels = (80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5)
    schedule = LevelsSpec(sigmas=levels)
    for solver in (PndmSpec(schedule=schedule), DpmppSinglestepSpec(schedule=schedule)):
        assert tuple(nodes(solver, 8, LOW, HIGH).tolist()) == levels


@pytest.mark.parametrize(
    ("order", "calls", "expected"),
    [
        (3, 1, (1,)),
        (3, 2, (2,)),
        (3, 3, (2, 1)),
        (3, 9, (3, 3, 2, 1)),
        (3, 10, (3, 3, 3, 1)),
        (3, 11, (3, 3, 3, 2)),
        (2, 1, (1,)),
        (2, 8, (2, 2, 2, 2)),
        (2, 9, (2, 2, 2, 2, 1)),
    ],
)
def test_orders_of_single_steps(order: int, calls: int, expected: tuple[int, ...]):
    assert step_orders(order, calls) == expected


@pytest.mark.parametrize("points", [2, 3, 4, 10, 11, 12, 25])
@pytest.mark.parametrize("schedule", [LogSnrSpec(), PolynomialSpec()])
def test_single_steps_cut_the_schedules_in_equal_parts_of_log_sigma(schedule, points: int):
    merged = nodes(DpmppSinglestepSpec(schedule=schedule), points, LOW, HIGH).tolist()
    orders = step_orders(3, points - 1)
    if isinstance(schedule, LogSnrSpec):
        outer = sigmas(schedule, len(orders) + 1, LOW, HIGH).tolist()
    else:  # the levels of one point a call at which a step has made its calls
        fine = sigmas(schedule, points, LOW, HIGH).tolist()
        outer = [fine[sum(orders[:i])] for i in range(len(orders) + 1)]
    assert len(merged) == points
    begin = 0
    for order, (s, t) in zip(orders, pairwise(outer), strict=True):
        within = merged[begin : begin + order + 1]
        assert (within[0], within[-1]) == (s, t)
        ratios = [math.log(after / before) for before, after in pairwise(within)]
        assert ratios == pytest.approx([math.log(t / s) / order] * order, rel=1e-12)
        begin += order
