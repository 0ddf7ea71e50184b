"""A solver's facts are plain data: parsed from config, and known without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import (
    ALIASES,
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    AcceleratedScheduleSpec,
    AmedSpec,
    DdpmSolverSpec,
    DdpmSubsetSpec,
    DeisSpec,
    DiscreteSpec,
    Dpm2Spec,
    DpmppSdeSpec,
    DpmppSinglestepSpec,
    DpmppSpec,
    EdmAblationSpec,
    EulerSpec,
    GuidanceSpec,
    HeunAbSpec,
    HeunSpec,
    IddpmSpec,
    IpndmSpec,
    IpndmVSpec,
    LevelsSpec,
    LogSnrSpec,
    PlmsSpec,
    PndmSpec,
    PolynomialSpec,
    Rk45Spec,
    ScheduleSpec,
    SolverFacts,
    SolverSpec,
    ThresholdingSpec,
    TimeUniformSpec,
    UnipcSpec,
    VpTimeSpec,
)

SOLVER: TypeAdapter[SolverSpec] = TypeAdapter(SolverSpec)
SCHEDULE: TypeAdapter[ScheduleSpec] = TypeAdapter(ScheduleSpec)

SHARED = {"schedule": None, "afs": False, "denoise_to_zero": False, "thresholding": None}
# A label leaves defaults out, so a default is part of a kind's meaning: never change a line.
SOLVER_DEFAULTS: dict[str, dict[str, Any]] = {
    "euler": {},
    "heun": {"s_churn": 0.0, "s_min": 0.0, "s_max": None, "s_noise": 1.0},
    "heun_ab": {},
    "dpm2": {"r": 0.5},
    "edm_ablation": {"method": "heun", "alpha": 1.0, "coordinates": "sigma"},
    "ipndm": {"order": 4},
    "ipndm_v": {"order": 4},
    "deis": {"order": 3, "basis": "time", "lower_order_final": False},
    "plms": {},
    "pndm": {},
    "dpmpp": {
        "order": 2,
        "prediction": "data",
        "lower_order_final": True,
        "d2_factor": 1,
        "variant": "dpmsolver",
    },
    "dpmpp_singlestep": {"order": 3, "prediction": "data"},
    "unipc": {"order": 3, "variant": "bh2", "prediction": "data", "lower_order_final": True},
    "ddpm": {"variance": "fixed_small"},
    "dpmpp_sde": {"order": 2, "eta": 1.0, "variant": "dpmsolver"},
    "accelerated_ddim": {"equation": 30, "first": "plain"},
    "accelerated_ddpm": {"equation": 23, "noise": "inside"},
    "rk45": {"rtol": 1e-5, "atol": 1e-5, "variable": "log_sigma"},
}
SCHEDULE_DEFAULTS: dict[str, dict[str, Any]] = {
    "polynomial": {"rho": 7.0},
    "logsnr": {},
    "time_uniform": {"rho": 1.0},
    "vp_time": {"spacing": "uniform", "beta_min": 0.1, "beta_max": 20.0},
    "discrete": {"rho": 1.0, "betas": "latent", "steps": 1000},
    "iddpm": {"c1": 0.001, "c2": 0.008, "steps": 1000},
    "ddpm_subset": {
        "spacing": "leading",
        "offset": 0,
        "betas": "linear",
        "steps": 1000,
        "end": "zero",
    },
    "accelerated": {"c0": 2.0, "c1": 6.0},
}
# What their authors published with.
DEFAULT_SCHEDULES = dict.fromkeys(SOLVER_DEFAULTS, PolynomialSpec(rho=7.0)) | {
    "dpmpp": LogSnrSpec(),
    "dpmpp_singlestep": LogSnrSpec(),
    "unipc": LogSnrSpec(),
    "deis": TimeUniformSpec(rho=2.0),
}


def kinds_of(union: Any) -> list[str]:
    return [spec.model_fields["kind"].default for spec in get_args(get_args(union)[0])]


class TestConfig:
    def test_the_pinned_kinds_are_all_there_are(self):
        assert kinds_of(SolverSpec) == [*SOLVER_DEFAULTS, "amed"]
        assert kinds_of(ScheduleSpec) == [*SCHEDULE_DEFAULTS, "levels"]

    @pytest.mark.parametrize("kind", SOLVER_DEFAULTS)
    def test_a_solvers_defaults_never_change(self, kind: str):
        solver = SOLVER.validate_python({"kind": kind})
        assert solver.model_dump() == {"kind": kind} | SHARED | SOLVER_DEFAULTS[kind]
        assert solver.chosen_schedule == DEFAULT_SCHEDULES[kind]
        assert SOLVER.validate_json(solver.model_dump_json()) == solver
        assert pickle.loads(pickle.dumps(solver)) == solver
        assert solver.identity == solver.model_dump(mode="json")

    @pytest.mark.parametrize("kind", SCHEDULE_DEFAULTS)
    def test_a_schedules_defaults_never_change(self, kind: str):
        schedule = SCHEDULE.validate_python({"kind": kind})
        assert schedule.model_dump() == {"kind": kind} | SCHEDULE_DEFAULTS[kind]
        assert SCHEDULE.validate_json(schedule.model_dump_json()) == schedule
        assert pickle.loads(pickle.dumps(schedule)) == schedule

    def test_guidance_and_thresholding_defaults_never_change(self):
        assert GuidanceSpec(scale=2).model_dump() == {"scale": 2.0, "channels": "all"}
        assert ThresholdingSpec().model_dump() == {"quantile": 0.995, "maximum": 1.0}

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"kind": "ddim"}, EulerSpec()),
            ({"kind": "ddim", "afs": True}, EulerSpec(afs=True)),
            ({"kind": "dpmpp_2m"}, DpmppSpec(order=2)),
            ({"kind": "dpmpp_3m"}, DpmppSpec(order=3)),
            ({"kind": "dpmpp_2m", "prediction": "noise"}, DpmppSpec(order=2, prediction="noise")),
            ({"kind": "dpm_solver"}, DpmppSpec(order=3, prediction="noise")),
            ({"kind": "lms"}, IpndmVSpec(order=4)),
            ({"kind": "lms", "order": 2}, IpndmVSpec(order=2)),
        ],
    )
    def test_an_alias_stands_for_settings(self, given: dict[str, Any], expected: SolverFacts):
        before = dict(given)
        assert SOLVER.validate_python(given) == expected
        assert given == before

    def test_no_alias_hides_a_kind(self):
        assert not ALIASES.keys() & SOLVER_DEFAULTS.keys()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"kind": "rk4"},
            {},
            {"kind": "euler", "order": 1},
            {"kind": "ipndm", "order": 5},
            {"kind": "ipndm", "order": 0},
            {"kind": "ipndm_v", "order": 5},
            {"kind": "deis", "order": 5},
            {"kind": "dpmpp", "order": 4},
            {"kind": "dpmpp", "d2_factor": 3},
            {"kind": "dpmpp_singlestep", "order": 1},
            {"kind": "unipc", "order": 4},
            {"kind": "dpmpp_sde", "order": 1},
            {"kind": "dpmpp_sde", "eta": -0.1},
            {"kind": "dpm2", "r": 0},
            {"kind": "dpm2", "r": 1.1},
            {"kind": "edm_ablation", "alpha": 0},
            {"kind": "heun", "s_churn": -1},
            {"kind": "heun", "s_min": 2, "s_max": 1},
            {"kind": "accelerated_ddim", "equation": 13},
            {"kind": "accelerated_ddpm", "equation": 30},
            {"kind": "rk45", "rtol": 0},
            {"kind": "amed"},
            {"kind": "euler", "thresholding": {"quantile": 0}},
            {"kind": "euler", "thresholding": {"quantile": 1.01}},
            {"kind": "euler", "schedule": {"kind": "polynomial", "rho": 0}},
        ],
        ids=str,
    )
    def test_what_is_not_a_solver_is_refused(self, wrong: dict[str, Any]):
        with pytest.raises(ValidationError):
            SOLVER.validate_python(wrong)

    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [
            ({"kind": "polynomial", "rho": 0.0}, "greater than 0"),
            ({"kind": "polynomial", "rho": float("inf")}, "finite"),
            ({"kind": "polynomial", "rho": float("nan")}, "finite"),
            ({"kind": "time_uniform", "rho": -1.0}, "greater than 0"),
            ({"kind": "vp_time", "beta_max": 0.1}, "beta_max must be above beta_min"),
            ({"kind": "discrete", "betas": "log"}, "'latent'"),
            ({"kind": "discrete", "steps": 1}, "greater than or equal to 2"),
            ({"kind": "iddpm", "c1": 1.0}, "less than 1"),
            ({"kind": "ddpm_subset", "offset": -1}, "greater than or equal to 0"),
            ({"kind": "accelerated", "c0": 3, "c1": 3}, "c1 must exceed c0"),
            ({"kind": "accelerated", "c0": 7}, r"got c0=7, c1=6"),
            ({"kind": "levels", "sigmas": [1.0]}, "at least 2"),
            ({"kind": "levels", "sigmas": [1.0, 0.0]}, "at least 2 levels must be positive"),
            ({"kind": "levels", "sigmas": [2, 1, 1]}, r"sigmas\[2\] = 1 after 1"),
            ({"kind": "levels", "sigmas": [1, 2]}, r"sigmas\[1\] = 2 after 1"),
            ({"kind": "levels", "sigmas": [2, 1, -1]}, "greater than or equal to 0"),
            ({"kind": "levels", "sigmas": [2, float("nan")]}, "finite"),
        ],
        ids=str,
    )
    def test_what_is_not_a_schedule_is_refused(self, wrong: dict[str, Any], rule: str):
        with pytest.raises(ValidationError, match=rule):
            SCHEDULE.validate_python(wrong)

    @pytest.mark.parametrize(
        ("kind", "settings", "rule"),
        [
            ("heun", {"denoise_to_zero": True}, "already ends at sigma = 0"),
            ("edm_ablation", {"denoise_to_zero": True}, "already ends at sigma = 0"),
            (
                "euler",
                {"denoise_to_zero": True, "schedule": {"kind": "ddpm_subset"}},
                "use denoise_to_zero: false",
            ),
            ("rk45", {"afs": True}, "leave out schedule and afs"),
            ("rk45", {"schedule": {"kind": "logsnr"}}, "leave out schedule and afs"),
            ("accelerated_ddim", {"first": "extend"}, "needs equation 15 and the schedule"),
            (
                "accelerated_ddim",
                {"first": "extend", "schedule": {"kind": "accelerated"}},
                "needs equation 15",
            ),
            ("accelerated_ddim", {"first": "extend", "equation": 15}, "use first: plain"),
            ("amed", {"predictor": "p", "afs": True}, "afs is stored with the predictor"),
            ("amed", {"predictor": "p", "schedule": {"kind": "logsnr"}}, "schedule is stored"),
            ("amed", {"predictor": "p", "thresholding": {}}, "thresholding is stored"),
        ],
    )
    def test_settings_that_contradict_each_other(
        self, kind: str, settings: dict[str, Any], rule: str
    ):
        with pytest.raises(ValidationError, match=rule):
            SOLVER.validate_python({"kind": kind} | settings)

    def test_a_continued_schedule_is_accepted(self):
        solver = AcceleratedDdimSpec(
            equation=15, first="extend", schedule=AcceleratedScheduleSpec()
        )
        assert solver.nfe_for(100) == 2 * 99

    def test_facts_are_known_without_torch(self):
        code = (
            "import sys; from fleetstep.sampling.spec import HeunSpec; HeunSpec().points_for(35); "
            "sys.exit('torch' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


ONE_CALL_A_STEP = [
    EulerSpec(),
    IpndmSpec(),
    IpndmVSpec(),
    DeisSpec(),
    DpmppSpec(),
    DpmppSpec(order=3, prediction="noise"),
    DpmppSinglestepSpec(),
    UnipcSpec(),
    DdpmSolverSpec(),
    DpmppSdeSpec(),
    AcceleratedDdpmSpec(),
    *(AcceleratedDdimSpec(equation=equation) for equation in (8, 22, 28, 30)),
]
TWO_CALLS_A_STEP = [HeunAbSpec, Dpm2Spec]


def with_settings(solver: SolverFacts, **settings: Any) -> SolverFacts:
    return type(solver).model_validate(solver.model_dump() | settings)


class TestBudgets:
    """The table of calls: N points for B calls, the same with AFS and a last denoising."""

    @pytest.mark.parametrize("solver", ONE_CALL_A_STEP, ids=lambda solver: solver.label)
    @pytest.mark.parametrize("nfe", [5, 9, 18, 35])
    def test_one_call_a_step(self, solver: SolverFacts, nfe: int):
        assert solver.points_for(nfe) == nfe + 1
        assert with_settings(solver, afs=True).points_for(nfe) == nfe + 2
        assert with_settings(solver, denoise_to_zero=True).points_for(nfe) == nfe
        assert solver.points_for(2 * nfe, calls=2) == nfe + 1

    @pytest.mark.parametrize("spec", TWO_CALLS_A_STEP)
    @pytest.mark.parametrize(
        ("nfe", "afs", "points"), [(5, True, 4), (9, True, 6), (35, True, 19), (18, False, 10)]
    )
    def test_two_calls_a_step(self, spec: type[SolverFacts], nfe: int, afs: bool, points: int):
        assert spec(afs=afs).points_for(nfe) == points
        with pytest.raises(SamplingError, match=f"exactly {nfe} network calls") as refusal:
            spec(afs=not afs).points_for(nfe)
        assert refusal.value.remedy == f"nearest that works: nfe={nfe - 1} or nfe={nfe + 1}"

    @pytest.mark.parametrize("solver", [HeunSpec(), EdmAblationSpec(), HeunSpec(s_churn=40)])
    @pytest.mark.parametrize(("nfe", "points"), [(5, 3), (9, 5), (17, 9), (35, 18), (79, 40)])
    def test_edm_to_zero(self, solver: SolverFacts, nfe: int, points: int):
        assert solver.points_for(nfe) == points
        assert solver.points_for(2 * nfe, calls=2) == points

    @pytest.mark.parametrize("steps", [25, 49, 79])
    def test_fdms_sampler_counts_its_last_denoising(self, steps: int):
        assert DpmppSinglestepSpec(denoise_to_zero=True).points_for(steps) == steps

    @pytest.mark.parametrize("steps", [5, 10, 20])
    def test_pseudo_methods(self, steps: int):
        assert PlmsSpec().nfe_for(steps + 1) == steps + 1
        # Three of its points are the middles of the first three steps.
        assert PndmSpec().nfe_for(steps + 1 + 3) == steps + 9
        # diffusers goes on to zero, S timesteps in all
        to_zero = DdpmSubsetSpec()
        assert PlmsSpec(schedule=to_zero).points_for(steps + 1) == steps
        assert PndmSpec(schedule=to_zero).points_for(steps + 9) == steps + 3
        with pytest.raises(SamplingError, match="at least 7 points, got 6"):
            PndmSpec().nfe_for(6)

    def test_equation_15(self):
        assert AcceleratedDdimSpec(equation=15).nfe_for(6) == 9
        assert AcceleratedDdimSpec(equation=15, afs=True).nfe_for(6) == 8

    def test_euler_in_edms_form(self):
        assert EdmAblationSpec(method="euler").points_for(9) == 9

    @pytest.mark.parametrize(
        "solver", [*ONE_CALL_A_STEP, HeunAbSpec(), HeunSpec(), PlmsSpec(), PndmSpec()]
    )
    @pytest.mark.parametrize("calls", [1, 2])
    def test_points_and_calls_are_inverses(self, solver: SolverFacts, calls: int):
        for points in range(solver.least_points, solver.least_points + 40):
            assert solver.points_for(solver.nfe_for(points, calls), calls) == points

    @pytest.mark.parametrize("solver", [EulerSpec(), HeunAbSpec(), IpndmSpec(afs=True)])
    def test_a_level_zero_costs_one_call(self, solver: SolverFacts):
        ending = with_settings(solver, schedule=DdpmSubsetSpec())
        assert ending.ends_at_zero
        assert not solver.ends_at_zero
        assert ending.nfe_for(6) == solver.nfe_for(6) + 1
        assert ending.nfe_for(6, to_zero=False) == solver.nfe_for(6)
        assert solver.nfe_for(6, to_zero=True) == ending.nfe_for(6)
        for end in ("first", "none"):
            assert not with_settings(solver, schedule=DdpmSubsetSpec(end=end)).ends_at_zero

    def test_levels_written_down_have_one_cost(self):
        levels = LevelsSpec(sigmas=(80.0, 9.0, 1.0, 0.002))
        for solver, nfe in [
            (EulerSpec(schedule=levels), 3),
            (EulerSpec(schedule=levels, afs=True), 2),
            (EulerSpec(schedule=levels, denoise_to_zero=True), 4),
            (EulerSpec(schedule=LevelsSpec(sigmas=(*levels.sigmas, 0.0))), 4),
            (HeunSpec(schedule=levels), 7),
            (HeunAbSpec(schedule=levels), 6),
        ]:
            assert solver.points_for(nfe) == 4
            assert solver.points_for(2 * nfe, calls=2) == 4
            with pytest.raises(SamplingError, match="has 4 positive levels") as refusal:
                solver.points_for(nfe + 1)
            assert refusal.value.remedy == f"nearest that works: nfe={nfe}"
        with pytest.raises(SamplingError, match="at least 7 points, got 4"):
            PndmSpec(schedule=levels).points_for(9)


class TestRefusals:
    @pytest.mark.parametrize(
        ("solver", "nfe", "cost", "nearest"),
        [
            (HeunSpec(), 18, "2 per step and one call for the last step to zero", (17, 19)),
            (HeunSpec(), 1, None, (3,)),
            (HeunSpec(), 2, None, (3,)),
            (HeunSpec(afs=True), 17, None, (16, 18)),
            (EulerSpec(), 0, "1 per step", (1,)),
            (EulerSpec(afs=True), 0, "1 per step, none at the first evaluation", (1,)),
            (EulerSpec(afs=True), -7, "1 per step, none at the first evaluation", (1,)),
            (HeunAbSpec(), 5, "2 per step", (4, 6)),
            (
                Dpm2Spec(denoise_to_zero=True),
                8,
                "2 per step and one to denoise at the end",
                (7, 9),
            ),
            (
                EdmAblationSpec(),
                18,
                "2 per step and one call for the last step to zero",
                (17, 19),
            ),
            (
                EdmAblationSpec(method="euler"),
                1,
                "1 per step and one call for the last step to zero",
                (2,),
            ),
            (AcceleratedDdimSpec(equation=15), 4, "2 per step and 1 fewer at the start", (3, 5)),
            (PlmsSpec(), 1, "1 per step and 1 more at the start", (2,)),
            (PndmSpec(), 9, "1 per step and 6 more at the start", (12,)),
            (IpndmSpec(order=3), -4, "1 per step", (1,)),
        ],
        ids=lambda value: getattr(value, "label", None),
    )
    def test_an_unreachable_nfe_is_refused_with_what_works(
        self, solver: SolverFacts, nfe: int, cost: str | None, nearest: tuple[int, ...]
    ):
        with pytest.raises(SamplingError) as refusal:
            solver.points_for(nfe)
        begins = f"{solver.label} cannot make exactly {nfe} network calls: it makes "
        assert refusal.value.message.startswith(begins)
        assert cost is None or refusal.value.message == begins + cost
        works = " or ".join(f"nfe={value}" for value in nearest)
        assert refusal.value.remedy == f"nearest that works: {works}"
        for value in nearest:
            assert solver.nfe_for(solver.points_for(value)) == value
        assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)

    @pytest.mark.parametrize(
        ("solver", "nfe", "nearest"),
        [
            (EulerSpec(), 5, "nfe=4 or nfe=6"),
            (HeunSpec(), 16, "nfe=14 or nfe=18"),
            (EulerSpec(afs=True), 1, "nfe=2"),
        ],
    )
    def test_guidance_doubles_what_is_reachable(self, solver: SolverFacts, nfe: int, nearest: str):
        with pytest.raises(SamplingError, match="each 2 times for guidance") as refusal:
            solver.points_for(nfe, calls=2)
        assert refusal.value.remedy == f"nearest that works: {nearest}"

    def test_one_point_is_no_schedule(self):
        with pytest.raises(SamplingError, match="at least 2 points, got 1"):
            EulerSpec().nfe_for(1)

    def test_rk45_takes_no_budget(self):
        for refused in (
            lambda: Rk45Spec().nfe_for(10),
            lambda: Rk45Spec().points_for(35),
            lambda: Rk45Spec().refuse_steps(),
        ):
            with pytest.raises(SamplingError, match="chooses its own number") as refusal:
                refused()
            assert "leave the number of calls out" in refusal.value.remedy
        assert Rk45Spec().adaptive
        assert not any(solver.adaptive for solver in ONE_CALL_A_STEP)


class TestFacts:
    def test_who_draws_noise(self):
        drawing = [
            DdpmSolverSpec(),
            DpmppSdeSpec(),
            AcceleratedDdpmSpec(),
            AcceleratedDdpmSpec(equation=10),
            HeunSpec(s_churn=40),
        ]
        assert all(solver.stochastic for solver in drawing)
        silent = [solver for solver in ONE_CALL_A_STEP if type(solver) not in map(type, drawing)]
        silent += [HeunSpec(), DpmppSdeSpec(eta=0), PlmsSpec(), PndmSpec(), Rk45Spec()]
        assert not any(solver.stochastic for solver in silent)

    def test_who_is_learned(self):
        assert AmedSpec.learned
        assert not any(solver.learned for solver in ONE_CALL_A_STEP)

    @pytest.mark.parametrize(
        ("solver", "order"),
        [
            (EulerSpec(), 1),
            (IpndmSpec(order=1), 1),
            # Weights of equal steps on unequal ones: no more than two.
            (IpndmSpec(order=4), 2),
            (IpndmVSpec(order=4), 4),
            (DeisSpec(order=3), 3),
            (DpmppSpec(order=2), 2),
            # The official third-order update omits a factor.
            (DpmppSpec(order=3), 2),
            (UnipcSpec(order=2), 3),
            (EdmAblationSpec(method="euler"), 1),
            (AcceleratedDdimSpec(equation=8), 1),
            (AcceleratedDdimSpec(equation=28), 1),
            (AcceleratedDdimSpec(equation=15), 2),
            (AcceleratedDdimSpec(equation=22), 2),
            (AcceleratedDdimSpec(equation=30), 2),
            (AcceleratedDdpmSpec(), 2),
            (AcceleratedDdpmSpec(noise="printed"), 1),
            (AcceleratedDdpmSpec(equation=10), 1),
        ],
        ids=lambda value: getattr(value, "label", None),
    )
    def test_declared_orders(self, solver: SolverFacts, order: int):
        assert solver.global_order == order


class TestLabels:
    @pytest.mark.parametrize(
        ("spec", "label"),
        [
            (EulerSpec(), "euler"),
            (EulerSpec(schedule=LogSnrSpec()), "euler"),
            (IpndmSpec(), "ipndm(order=4)"),
            (IpndmSpec(afs=True), "ipndm(order=4, afs=True)"),
            (HeunSpec(s_churn=40, s_max=50), "heun(s_churn=40, s_max=50)"),
            (DpmppSpec(order=3, prediction="noise"), "dpmpp(order=3, prediction=noise)"),
            (
                DpmppSpec(thresholding=ThresholdingSpec(quantile=0.9), denoise_to_zero=True),
                "dpmpp(order=2, denoise_to_zero=True, thresholding={quantile=0.9, maximum=1})",
            ),
            (EdmAblationSpec(), "edm_ablation(method=heun, coordinates=sigma)"),
            (Rk45Spec(), "rk45(rtol=1e-05, atol=1e-05, variable=log_sigma)"),
            (PolynomialSpec(), "polynomial(rho=7)"),
            (PolynomialSpec(rho=7.0000001), "polynomial(rho=7.0000001)"),
            (LogSnrSpec(), "logsnr"),
            (TimeUniformSpec(), "time_uniform(rho=1)"),
            (VpTimeSpec(beta_max=19), "vp_time(spacing=uniform, beta_max=19)"),
            (DiscreteSpec(), "discrete(rho=1, betas=latent)"),
            (IddpmSpec(steps=50), "iddpm(steps=50)"),
            (DdpmSubsetSpec(offset=1), "ddpm_subset(spacing=leading, offset=1)"),
            (AcceleratedScheduleSpec(c1=8), "accelerated(c0=2, c1=8)"),
            (LevelsSpec(sigmas=(80, 0.5, 0)), "levels(sigmas=[80, 0.5, 0])"),
        ],
        ids=str,
    )
    def test_a_label_names_what_tells_settings_apart(self, spec: Any, label: str):
        assert spec.label == label

    @pytest.mark.parametrize("kind", SOLVER_DEFAULTS)
    def test_a_setting_off_its_default_is_named(self, kind: str):
        solver = SOLVER.validate_python({"kind": kind})
        moved = {"thresholding": {"quantile": 0.9}}
        for name, default in SOLVER_DEFAULTS[kind].items():
            if isinstance(default, bool):
                moved[name] = not default
            elif isinstance(default, float):
                moved[name] = default + 0.25 if default < 1 else default / 2
        other = SOLVER.validate_python({"kind": kind} | moved)
        assert all(f"{name}=" in other.label for name in moved)
        assert other.label != solver.label


@pytest.mark.parametrize("kind", [[1], {"a": 1}, 3, None])
def test_a_kind_that_is_no_text_is_refused(kind: Any):
    with pytest.raises(ValidationError):
        SOLVER.validate_python({"kind": kind})


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "quad"])
def test_an_offset_that_would_be_ignored_is_refused(spacing: str):
    with pytest.raises(ValidationError, match="offset: 1 is for spacing leading"):
        SCHEDULE.validate_python({"kind": "ddpm_subset", "spacing": spacing, "offset": 1})
