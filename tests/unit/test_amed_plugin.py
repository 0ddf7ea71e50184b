"""AMED-Solver and AMED-Plugin with constants: the golden runs, and what they are when nothing is
learned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amed_problem import FeaturedMixture, featured_mixture, fill, golden_z, student_of
from contracts.exact_denoisers import PointMass, golden_latents, images
from fleetstep.sampling.amed.files import save_predictor
from fleetstep.sampling.amed.plugin import Predict, plugin_step
from fleetstep.sampling.amed.predictor import AmedPredictor, Learned
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.solvers import unipc
from fleetstep.sampling.solvers.exponential import output_of
from fleetstep.sampling.solvers.linear import Weights, combine
from fleetstep.sampling.solvers.rules import rule_of
from fleetstep.sampling.solvers.step import Level, State
from fleetstep.sampling.spec import (
    AmedSpec,
    AmedStudentSpec,
    DeisSpec,
    Dpm2Spec,
    DpmppSpec,
    EulerSpec,
    IpndmSpec,
    IpndmVSpec,
    LevelsSpec,
    PredictorFacts,
    StudentSpec,
    UnipcSpec,
)
from fleetstep.sampling.trajectory import levels_for, sample
from fleetstep.sampling.walk import Walk
from solver_goldens import SCHEDULES, SIGMA_MAX, SIGMA_MIN, reference

LEVELS = sigmas(SCHEDULES["polynomial"], 5, SIGMA_MIN, SIGMA_MAX).tolist()
BIT_EQUAL: list[StudentSpec] = [EulerSpec(), *(IpndmSpec(order=k) for k in (1, 2, 3, 4))]
ROUNDED: list[StudentSpec] = [
    *(DpmppSpec(order=k, prediction=p) for k in (1, 2, 3) for p in ("data", "noise")),
    DpmppSpec(order=3, lower_order_final=False, d2_factor=2),
    *(IpndmVSpec(order=k) for k in (2, 3, 4)),
    *(DeisSpec(order=k) for k in (2, 3, 4)),
]
UNIPC: list[StudentSpec] = [
    UnipcSpec(order=k, prediction=p, variant=v)
    for k in (1, 2, 3)
    for p in ("data", "noise")
    for v in ("bh1", "bh2")
]
EVERY: list[StudentSpec] = [AmedStudentSpec(), Dpm2Spec(), *BIT_EQUAL, *ROUNDED, *UNIPC]


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def label(value: Any) -> str:
    return getattr(value, "label", str(value))


def constant(r: float | Sequence[float], c: float = 1.0, a: float = 1.0) -> Predict:
    """The same r, c and a in every step; r may differ between images."""
    learned = Learned(*(f64(v).view(-1, 1, 1, 1) for v in (r, c, a)))
    return lambda features, t_cur, t_next: learned


def walked(
    student: StudentSpec,
    levels: Sequence[float],
    predict: Predict,
    denoiser: Any,
    x_T: Tensor,
    *,
    afs: bool = False,
) -> Tensor:
    """The end of the plugin's trajectory."""
    lesson = Walk(denoiser, None, starts_analytically=afs)
    step = plugin_step(student, levels, predict)
    state = State(0, x_T)
    for _ in levels[1:]:
        state = step(lesson, state)
    return state.x_BCHW


class Recording(FeaturedMixture):
    """Writes down the level of the first image in every call."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.told: list[float] = []

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        self.told.append(sigma_B[0].item())
        return super().__call__(x_BCHW, sigma_B, labels_B)


def recording() -> Recording:
    mixture = featured_mixture()
    return Recording(mixture.weights_K, mixture.means_KD, mixture.variances_KD)


def golden_rows() -> list[Any]:
    golden = reference("amed")
    rows = golden["constant"] + golden["unipc_plugin_project_defined"]

    def kind(row: dict[str, Any]) -> str:
        return "-".join(map(str, (row["student"], *row["params"].values(), row["schedule"])))

    groups = itertools.groupby(sorted(rows, key=kind), key=kind)
    return [pytest.param(list(group), id=name) for name, group in groups]


@pytest.mark.parametrize("rows", golden_rows())
def test_golden_runs_with_constants(rows: list[dict[str, Any]]):
    assert len(rows) in (18, 24)  # 432 in all
    for row in rows:
        schedule = SCHEDULES[row["schedule"]]
        levels = sigmas(schedule, row["num_steps"], SIGMA_MIN, SIGMA_MAX).tolist()
        student, denoiser = student_of(row["student"], row["params"]), featured_mixture()
        predict = constant(row["r"], row["c"], row["a"])
        found = walked(student, levels, predict, denoiser, golden_latents(), afs=row["afs"])
        torch.testing.assert_close(found, images(row["x"]), rtol=1e-9, atol=1e-9)
        assert denoiser.nfe == row["nfe"]


def test_every_golden_run_was_asked_for():
    assert sum(len(group.values[0]) for group in golden_rows()) == 432


@pytest.mark.parametrize("row", reference("amed")["predictor"]["sampling"], ids=str)
def test_golden_sampling_with_a_predictor(row: dict[str, Any], tmp_path: Path):
    name = row["schedule"]
    schedule = SCHEDULES["time_uniform_rho1" if name == "time_uniform" else name]
    levels = sigmas(schedule, row["num_steps"], SIGMA_MIN, SIGMA_MAX)
    facts = PredictorFacts(
        student=student_of(row["student"], row["params"]),
        schedule=schedule,
        levels=tuple(levels.tolist()),
        afs=row["afs"],
        scale_dir=0.01,
        scale_time=0.2,
        snapshot="s",
        track="ema",
        run="r",
        images_seen=0,
        weights_sha256="",
    )
    save_predictor(tmp_path, fill(AmedPredictor(0.01, 0.2, dtype=torch.float64)), facts)
    solver, denoiser = AmedSpec(predictor=str(tmp_path)), featured_mixture()
    walked_levels = levels_for(denoiser, solver, row["nfe"])
    assert torch.equal(walked_levels, levels)
    result = sample(denoiser, solver, walked_levels, golden_latents())
    torch.testing.assert_close(result.x_BCHW, images(row["x"]), rtol=1e-9, atol=1e-9)
    assert result.nfe == row["nfe"]


def on_merged_levels(
    student: Any, predict: Predict, levels: Sequence[float] = LEVELS, *, afs: bool = False
) -> tuple[Tensor, Tensor]:
    """The plugin's end, and that of its base solver on the levels that the plugin visited."""
    denoiser = recording()
    plugin = walked(student, levels, predict, denoiser, golden_latents(), afs=afs)
    merged = [*([levels[0]] if afs else []), *denoiser.told, levels[-1]]
    assert len(merged) == 2 * len(levels) - 1
    base = student.model_copy(update={"afs": afs})
    end = sample(featured_mixture(), base, f64(merged), golden_latents())
    return plugin, end.x_BCHW


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("student", BIT_EQUAL, ids=label)
def test_the_plugin_with_nothing_learned_is_its_base_solver_bit_for_bit(
    student: StudentSpec, afs: bool
):
    plugin, base = on_merged_levels(student, constant(0.4), afs=afs)
    assert torch.equal(plugin, base)


@pytest.mark.parametrize("student", [*ROUNDED, *UNIPC], ids=label)
def test_the_plugin_with_nothing_learned_is_its_base_solver(student: StudentSpec):
    # Logarithms of the host and of tensors may differ in the last bit.
    plugin, base = on_merged_levels(student, constant(0.4))
    torch.testing.assert_close(plugin, base, rtol=1e-13, atol=1e-13)


def test_dpm2_with_nothing_learned_is_dpm2_bit_for_bit():
    # The levels between are exact: no rounding of a power can tell host and tensor apart.
    levels = [64.0, 16.0, 4.0, 1.0, 0.25]
    schedule = LevelsSpec(sigmas=tuple(levels))
    base = sample(
        featured_mixture(),
        Dpm2Spec(schedule=schedule),
        f64(levels),
        golden_latents(),
    )
    plugin = walked(Dpm2Spec(), levels, constant(0.5), featured_mixture(), golden_latents())
    assert torch.equal(plugin, base.x_BCHW)


@pytest.mark.parametrize("r", [0.3, 0.5, 0.8])
def test_dpm2_with_constant_r_is_dpm2_of_that_r(r: float):
    base = sample(featured_mixture(), Dpm2Spec(r=r), f64(LEVELS), golden_latents())
    plugin = walked(Dpm2Spec(), LEVELS, constant(r), featured_mixture(), golden_latents())
    torch.testing.assert_close(plugin, base.x_BCHW, rtol=1e-13, atol=1e-13)


def test_amed_solver_at_one_half_is_dpm2():
    base = sample(featured_mixture(), Dpm2Spec(), f64(LEVELS), golden_latents())
    plugin = walked(AmedStudentSpec(), LEVELS, constant(0.5), featured_mixture(), golden_latents())
    torch.testing.assert_close(plugin, base.x_BCHW, rtol=1e-12, atol=1e-12)


def merged_per_image(r_B: Sequence[float]) -> list[Level]:
    """Every level between beside the schedule's, one for each image."""
    r_B111 = f64(r_B).view(-1, 1, 1, 1)
    merged: list[Level] = []
    for s, after in itertools.pairwise(LEVELS):
        merged += [s, after**r_B111 * s ** (1 - r_B111)]
    return [*merged, LEVELS[-1]]


R = (0.3, 0.45, 0.6, 0.75)


@pytest.mark.parametrize("student", [*BIT_EQUAL, *ROUNDED], ids=label)
def test_it_is_the_rule_on_levels_of_each_image_bit_for_bit(student: Any):
    levels, rule = merged_per_image(R), rule_of(student, LEVELS)
    lesson = Walk(featured_mixture(), None)
    x_BCHW, outputs, steps = golden_latents(), (), len(levels) - 1
    for i in range(steps):
        outputs = (rule.output(lesson, x_BCHW, levels[i]), *outputs)
        passed = [levels[i - j] for j in range(min(i, rule.memory) + 1)]
        x_BCHW = combine(rule.weights(levels[i + 1], passed, i, steps), x_BCHW, outputs)
    plugin = walked(student, LEVELS, constant(R), featured_mixture(), golden_latents())
    assert torch.equal(plugin, x_BCHW)


@pytest.mark.parametrize("student", UNIPC, ids=label)
def test_it_is_unipc_on_levels_of_each_image_bit_for_bit(student: UnipcSpec):
    levels = merged_per_image(R)
    lesson = Walk(featured_mixture(), None)
    x_BCHW, steps = golden_latents(), len(levels) - 1
    outputs = (output_of(lesson, x_BCHW, levels[0], student.prediction),)

    def weights(part: Callable[..., Weights], i: int) -> Weights:
        passed = [levels[i - j] for j in range(min(i, student.order - 1) + 1)]
        return part(student, levels[i + 1], passed, unipc.order_of(student, len(passed), i, steps))

    for i in range(steps - 1):
        predicted = combine(weights(unipc.predictor, i), x_BCHW, outputs)
        newest = output_of(lesson, predicted, levels[i + 1], student.prediction)
        outputs = (newest, *outputs)
        x_BCHW = combine(weights(unipc.corrector, i), x_BCHW, outputs)
    x_BCHW = combine(weights(unipc.predictor, steps - 1), x_BCHW, outputs)
    plugin = walked(student, LEVELS, constant(R), featured_mixture(), golden_latents())
    assert torch.equal(plugin, x_BCHW)


@pytest.mark.parametrize("student", EVERY, ids=label)
def test_every_image_has_its_own_levels(student: StudentSpec):
    together = walked(
        student, LEVELS, constant(R, 0.97, 1.1), featured_mixture(), golden_latents()
    )
    # Halves of two, not single images: sampling never makes a batch of one, and the sum of a
    # quadrature (DEIS) rounds differently there.
    for half in (slice(0, 2), slice(2, 4)):
        x_T = golden_latents()[half]
        alone = walked(student, LEVELS, constant(R[half], 0.97, 1.1), featured_mixture(), x_T)
        assert torch.equal(alone, together[half])


@pytest.mark.parametrize("student", EVERY, ids=label)
def test_a_scales_what_the_network_is_told_and_nothing_else(student: StudentSpec):
    told = []
    for a in (1.0, 0.8):
        denoiser = recording()
        walked(student, LEVELS, constant(0.4, 1.0, a), denoiser, golden_latents())
        told.append(denoiser.told)
    assert told[1][::2] == told[0][::2] == LEVELS[:-1]
    assert told[1][1::2] == pytest.approx([0.8 * m for m in told[0][1::2]], rel=1e-15)
    # A network that does not look at the level cannot be changed by it.
    point = PointMass(f64([0.3, -0.7])[:, None, None])
    ends = [
        walked(student, LEVELS, constant(0.4, 0.99, a), point, golden_latents())
        for a in (1.0, 0.8)
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize("student", [AmedStudentSpec(), Dpm2Spec()], ids=label)
def test_c_scales_the_whole_step_of_solvers_that_remember_nothing(student: StudentSpec):
    x_T, levels = golden_latents(), LEVELS[:2]
    moved = [
        walked(student, levels, constant(0.4, c), featured_mixture(), x_T) - x_T
        for c in (1.0, 0.9)
    ]
    torch.testing.assert_close(moved[1], 0.9 * moved[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("student", EVERY, ids=label)
def test_a_float32_state_stays_float32(student: StudentSpec):
    x_T = golden_latents().float()
    single = walked(student, LEVELS, constant(0.4, 0.99, 1.1), featured_mixture(), x_T)
    double = walked(student, LEVELS, constant(0.4, 0.99, 1.1), featured_mixture(), x_T.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=2e-3)


def test_the_predictor_is_asked_once_a_step_with_the_features_at_its_start():
    asked: list[tuple[Tensor | None, float, float]] = []

    def predict(features: Tensor | None, t_cur: float, t_next: float) -> Learned:
        asked.append((features, t_cur, t_next))
        return constant(0.4)(features, t_cur, t_next)

    x_T = SIGMA_MAX * golden_z()
    walked(IpndmSpec(), LEVELS, predict, featured_mixture(), x_T, afs=True)
    assert [(s, t) for _, s, t in asked] == list(itertools.pairwise(LEVELS))
    assert [features is None for features, *_ in asked] == [True, False, False, False]
