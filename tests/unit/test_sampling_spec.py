"""A solver's facts are plain data: parsed from config, and known without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import (
    Dpmpp2mSpec,
    EulerSpec,
    HeunSpec,
    IpndmSpec,
    LogSnrSpec,
    PolynomialSpec,
    ScheduleSpec,
    SolverSpec,
)

SOLVER: TypeAdapter[SolverSpec] = TypeAdapter(SolverSpec)
SCHEDULE: TypeAdapter[ScheduleSpec] = TypeAdapter(ScheduleSpec)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kind": "euler"}, EulerSpec()),
        ({"kind": "heun"}, HeunSpec()),
        ({"kind": "ipndm"}, IpndmSpec(order=4)),
        ({"kind": "ipndm", "order": 2}, IpndmSpec(order=2)),
        ({"kind": "dpmpp_2m"}, Dpmpp2mSpec()),
    ],
)
def test_a_solver_is_chosen_by_its_kind(given: dict, expected: SolverSpec):
    assert SOLVER.validate_python(given) == expected
    assert SOLVER.validate_json(expected.model_dump_json()) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "rk4"},
        {"kind": "ipndm", "order": 5},
        {"kind": "ipndm", "order": 0},
        {"kind": "euler", "order": 1},
        {},
    ],
)
def test_what_is_not_a_solver_is_refused(wrong: dict):
    with pytest.raises(ValidationError):
        SOLVER.validate_python(wrong)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("inf"), float("nan")])
def test_rho_is_positive_and_finite(rho: float):
    with pytest.raises(ValidationError):
        SCHEDULE.validate_python({"kind": "polynomial", "rho": rho})


def test_default_schedules_are_the_authors_own():
    for solver in (EulerSpec(), HeunSpec(), IpndmSpec()):
        assert solver.default_schedule == PolynomialSpec(rho=7.0)
    assert Dpmpp2mSpec().default_schedule == LogSnrSpec()


@pytest.mark.parametrize(
    ("solver", "nfe", "points"),
    [
        (EulerSpec(), 1, 2),
        (EulerSpec(), 5, 6),
        (IpndmSpec(), 18, 19),
        (Dpmpp2mSpec(), 35, 36),
        # sampling.md: 5, 9, 17, 35, 79 calls are 3, 5, 9, 18, 40 levels
        (HeunSpec(), 5, 3),
        (HeunSpec(), 9, 5),
        (HeunSpec(), 17, 9),
        (HeunSpec(), 35, 18),
        (HeunSpec(), 79, 40),
    ],
)
def test_points_for_the_published_budgets(solver: SolverSpec, nfe: int, points: int):
    assert solver.points_for(nfe) == points
    assert solver.nfe_for(points) == nfe


@pytest.mark.parametrize(
    ("solver", "nfe", "message", "remedy"),
    [
        (
            HeunSpec(),
            18,
            "heun cannot make exactly 18 network calls: it makes 2 per step and one call for the "
            "last step to zero",
            "nearest that works: nfe=17 or nfe=19",
        ),
        (HeunSpec(), 1, None, "nearest that works: nfe=3"),
        (HeunSpec(), 2, None, "nearest that works: nfe=3"),
        (EulerSpec(), 0, None, "nearest that works: nfe=1"),
        (
            IpndmSpec(order=3),
            -4,
            "ipndm(order=3) cannot make exactly -4 network calls: it makes 1 per step",
            "nearest that works: nfe=1",
        ),
    ],
)
def test_an_unreachable_nfe_is_refused_with_what_works(
    solver: SolverSpec, nfe: int, message: str | None, remedy: str
):
    with pytest.raises(SamplingError) as refusal:
        solver.points_for(nfe)
    assert message is None or refusal.value.message == message
    assert refusal.value.remedy == remedy
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)


def test_one_point_is_no_schedule():
    with pytest.raises(SamplingError, match="at least 2 points, got 1"):
        EulerSpec().nfe_for(1)


def test_labels_tell_settings_apart():
    assert EulerSpec().label == "euler"
    assert IpndmSpec().label == "ipndm(order=4)"
    assert PolynomialSpec().label == "polynomial(rho=7)"
    assert PolynomialSpec(rho=7.0000001).label == "polynomial(rho=7.0000001)"
    assert LogSnrSpec().label == "logsnr"


def test_facts_are_known_without_torch():
    code = (
        "import sys; from fleetstep.sampling.spec import HeunSpec; HeunSpec().points_for(35); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
