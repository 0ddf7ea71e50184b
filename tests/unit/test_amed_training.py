"""Training of AMED predictors: the reference's losses and gradients, its gains, and resuming."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from amed_problem import (
    CPU,
    FeaturedMixture,
    featured_mixture,
    fill,
    golden_z,
    student_of,
    trainer,
)
from contracts.exact_denoisers import images
from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.amed.latents import training_latents
from fleetstep.sampling.amed.plugin import plugin_step
from fleetstep.sampling.amed.predictor import AmedPredictor
from fleetstep.sampling.amed.teacher import Teacher
from fleetstep.sampling.amed.training import AmedTrainer, LoopReport, Share, TrainerState
from fleetstep.sampling.generate import latents
from fleetstep.sampling.schedules import sigmas
from fleetstep.sampling.solvers.step import State
from fleetstep.sampling.spec import (
    AmedStudentSpec,
    DdpmSubsetSpec,
    Dpm2Spec,
    DpmppSpec,
    EulerSpec,
    GuidanceSpec,
    HeunAbSpec,
    IddpmSpec,
    IpndmSpec,
    LevelsSpec,
    LogSnrSpec,
    PolynomialSpec,
    StudentSpec,
    TimeUniformSpec,
    UnipcSpec,
)
from fleetstep.sampling.spec.amed_training import AmedTrainingSpec
from fleetstep.sampling.trajectory import sample
from fleetstep.sampling.walk import Walk
from small_networks import SMALL, awake, small_network
from solver_goldens import SCHEDULES, reference

STUDENTS: dict[str, StudentSpec] = {
    "amed": AmedStudentSpec(),
    "ipndm4": IpndmSpec(order=4),
    "dpm": Dpm2Spec(),
    "dpmpp3_eps": DpmppSpec(order=3, prediction="noise"),
    "euler": EulerSpec(),
}
TEACHERS = {"heun": HeunAbSpec(), "ipndm": IpndmSpec(), "dpm": Dpm2Spec()}
# 60 loops through an exponential of gradients: rounding grows to 1e-11 at most.
EXACT: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", reference("amed")["training"])
def test_golden_losses_and_gradients(name: str):
    # The golden latents and their negatives take turns.
    golden = reference("amed")["training"][name]
    spec = AmedTrainingSpec(
        student=STUDENTS[name.split("/")[0]], points=4, batch=4, scale_time=0.2
    )
    training = trainer(spec)
    fill(training.predictor)
    reports = [training.learn(i, (-1) ** i * golden_z(), None) for i in range(60)]
    for row in golden["log"]:
        report = reports[row["it"]]
        found = f64([report.losses[row["step"]], report.grad_norms[row["step"]]])
        torch.testing.assert_close(found, f64([row["loss"], row["grad_norm"]]), **EXACT)
    torch.testing.assert_close(
        f64(reports[-1].losses), f64(golden["loss_after_60_iters"]), **EXACT
    )


@pytest.mark.parametrize("name", reference("amed")["training"])
def test_golden_teachers(name: str):
    # The authors' teacher, M and schedule are the defaults of each student.
    spec = AmedTrainingSpec(student=STUDENTS[name.split("/")[0]], points=4)
    teacher = Teacher(featured_mixture(), spec)
    found = teacher.trajectory(80 * golden_z(), None)
    expected = reference("amed")["training"][name]["teacher_first"]
    for x_BCHW, row in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(x_BCHW, images(row), **EXACT)


ACCEPTANCE = reference("amed")["acceptance"]["rows"]
QUICK = [("dpm", "polynomial", 3), ("ipndm", "polynomial", 5), ("amed", "polynomial", 5)]


def acceptance_rows() -> list[Any]:
    def marks(key: tuple[str, str, int]) -> list[Any]:
        return [] if key in QUICK else [pytest.mark.soak]

    keys = [(row["student"], row["schedule"], row["nfe"]) for row in ACCEPTANCE]
    return [
        pytest.param(row, id="-".join(map(str, key)), marks=marks(key))
        for row, key in zip(ACCEPTANCE, keys, strict=True)
    ]


@pytest.mark.parametrize("row", acceptance_rows())
def test_training_brings_the_student_as_close_as_the_reference_does(row: dict[str, Any]):
    name = row["student"]
    params = {"max_order": 3 if name == "dpmpp" else 4, "lower_order_final": True}
    student = student_of(name, params)
    schedule = row["schedule"]
    training = trainer(
        AmedTrainingSpec(
            student=student,
            teacher=TEACHERS.get(row["teacher"], student),
            intermediate=row["M"],
            schedule=SCHEDULES["time_uniform_rho1" if schedule == "time_uniform" else schedule],
            points=row["num_steps"],
            scale_dir=row["scale_dir"],
            scale_time=row["scale_time"],
        )
    )
    fill(training.predictor)
    assert rmse(training) == pytest.approx(row["rmse_before"], rel=0.01)
    random = np.random.RandomState(0)
    for i in range(row["iters"]):
        training.learn(i, as_images(random.standard_normal((128, 2))), None)
    # The band that its authors give: sums of another order end elsewhere after 79 loops.
    assert rmse(training) == pytest.approx(row["rmse_after"], rel=0.15)


def as_images(points: Any) -> Tensor:
    return torch.from_numpy(points)[:, :, None, None]


@torch.no_grad()
def rmse(training: AmedTrainer) -> float:
    """Of the student on 512 latents, against Heun's method with 400 levels."""
    z_BCHW = as_images(np.random.RandomState(1).standard_normal((512, 2)))
    denoiser = featured_mixture()
    step = plugin_step(training.spec.student, training.levels, training.predictor.predict)
    state = State(0, 80 * z_BCHW)
    lesson = Walk(denoiser, None, starts_analytically=training.spec.afs)
    for _ in training.levels[1:]:
        state = step(lesson, state)
    fine = sigmas(PolynomialSpec(), 400, 0.002, 80.0)
    away_BCHW = state.x_BCHW - sample(denoiser, HeunAbSpec(), fine, 80 * z_BCHW).x_BCHW
    return away_BCHW.square().flatten(1).sum(1).mean().sqrt().item()


ANY = AmedTrainingSpec(student=IpndmSpec(), points=4, batch=8)


def through_json(state: TrainerState) -> TrainerState:
    """As a checkpoint keeps it."""
    tensors = {name: value.clone() for name, value in state.tensors.items()}
    return TrainerState(tensors, json.loads(json.dumps(state.numbers)))


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("student", [*STUDENTS.values(), UnipcSpec()], ids=lambda s: s.label)
def test_resuming_changes_nothing(student: StudentSpec, standardise: bool):
    spec = ANY.model_copy(update={"student": student})
    whole = trainer(spec, standardise=standardise)
    reports = [whole.run_loop(i) for i in range(4)]
    first = trainer(spec, standardise=standardise)
    assert [first.run_loop(i) for i in range(2)] == reports[:2]
    second = trainer(spec, standardise=standardise)
    second.load_state_dict(through_json(first.state_dict()))
    assert second.loops_done == 2
    assert [second.run_loop(i) for i in range(2, 4)] == reports[2:]
    for name, value in whole.state_dict().tensors.items():
        assert torch.equal(value, second.state_dict().tensors[name]), name


def test_a_state_from_before_the_first_loop_is_one():
    fresh, started = trainer(ANY), trainer(ANY)
    started.load_state_dict(through_json(fresh.state_dict()))
    assert started.run_loop(0) == fresh.run_loop(0)


def test_the_state_is_a_copy():
    training = trainer(ANY)
    training.run_loop(0)
    state = training.state_dict()
    kept = {name: value.clone() for name, value in state.tensors.items()}
    training.run_loop(1)
    assert all(torch.equal(state.tensors[name], value) for name, value in kept.items())


class Switchboard:
    """Sums what the threads of a group bring, like an all-reduce."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier = world, threading.Barrier(world, timeout=60)
        self.parts: dict[int, Tensor] = {}

    def share(self, rank: int) -> Share:
        def total(values: Tensor) -> Tensor:
            self.parts[rank] = values
            self.barrier.wait()
            result = sum(self.parts[i] for i in range(self.world))
            self.barrier.wait()
            return result

        return Share(rank, self.world, total)


@pytest.mark.parametrize("standardise", [False, True])
def test_workers_together_are_one_worker(standardise: bool):
    alone = trainer(ANY, standardise=standardise)
    expected = [alone.run_loop(i) for i in range(3)]
    board = Switchboard(3)  # 8 latents: shares of 2, 3 and 3
    group = [trainer(ANY, board.share(i), standardise=standardise) for i in range(3)]
    reports: dict[int, list[LoopReport]] = {}

    def work(rank: int) -> None:
        reports[rank] = [group[rank].run_loop(i) for i in range(3)]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports[0] == reports[1] == reports[2]
    for report, wanted in zip(reports[0], expected, strict=True):
        assert report.losses == pytest.approx(wanted.losses, rel=1e-9)
        assert report.images == wanted.images
    for name, value in alone.state_dict().tensors.items():
        for member in group:
            found = member.state_dict().tensors[name]
            torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-10)


class Kinked(FeaturedMixture):
    """A sound D whose derivative in sigma is not a number."""

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        kink_B111 = (sigma_B * 0).sqrt()[:, None, None, None]
        return super().__call__(x_BCHW, sigma_B, labels_B) + 0 * kink_B111


class Blind(FeaturedMixture):
    """Not finite when it is differentiated."""

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        denoised_BCHW = super().__call__(x_BCHW, sigma_B, labels_B)
        return denoised_BCHW * math.nan if sigma_B.requires_grad else denoised_BCHW


def with_denoiser(kind: type[FeaturedMixture], spec: AmedTrainingSpec = ANY) -> AmedTrainer:
    mixture = featured_mixture()
    denoiser = kind(mixture.weights_K, mixture.means_KD, mixture.variances_KD)
    return AmedTrainer(denoiser, spec, shape=(2, 1, 1), classes=0, device=CPU)


def test_a_gradient_that_is_not_a_number_is_replaced_and_counted():
    training = with_denoiser(Kinked)
    before = {name: value.clone() for name, value in training.predictor.state_dict().items()}
    report = training.run_loop(0)
    elements = sum(parameter.numel() for parameter in training.predictor.parameters())
    assert 0 < report.replaced <= 3 * elements
    assert all(math.isfinite(norm) for norm in report.grad_norms)
    for name, value in training.predictor.state_dict().items():
        assert torch.isfinite(value).all()
        # Zero stands in for what was lost; only c reaches the loss by a way around the level.
        assert torch.equal(value, before[name]) != name.startswith("head_c"), name


class Steep(FeaturedMixture):
    """A sound D whose derivative in sigma is infinite."""

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None = None) -> Tensor:
        jump_B111 = (sigma_B - sigma_B.detach()).sqrt()[:, None, None, None]
        return super().__call__(x_BCHW, sigma_B, labels_B) + jump_B111


def test_an_infinite_gradient_is_a_large_one():
    training = with_denoiser(Steep, AmedTrainingSpec(points=2, batch=1))
    report = training.run_loop(0)
    assert report.replaced > 0
    assert 1e5 <= report.grad_norms[0] <= 1e5 * math.sqrt(report.replaced) * 1.001


def test_sound_gradients_are_left_alone():
    assert [trainer(ANY).run_loop(0).replaced for _ in range(2)] == [0, 0]


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteError, match=r"is nan in loop 0, step 1 of 3 \(80 to "):
        with_denoiser(Blind).run_loop(0)


def test_latents_are_keyed_by_position():
    whole, labels = training_latents(5, 0, 10, (2, 3, 3), 4, CPU)
    parts = [training_latents(5, first, 5, (2, 3, 3), 4, CPU) for first in (0, 5)]
    assert torch.equal(whole, torch.cat([z for z, _ in parts]))
    assert torch.equal(labels, torch.cat([y for _, y in parts]))
    assert whole.dtype == torch.float64
    assert set(training_latents(5, 0, 400, (1,), 4, CPU)[1].tolist()) == {0, 1, 2, 3}
    assert training_latents(5, 0, 1, (1,), 0, CPU)[1] is None


def test_training_sees_no_image_that_is_judged():
    # Neither the held-out latents nor those that `generate` draws from the same seed.
    trained, held_out = (
        training_latents(5, 0, 8, (2, 3, 3), 0, CPU, purpose)[0]
        for purpose in ("train", "held out")
    )
    drawn = torch.from_numpy(latents(5, 0, 8, (2, 3, 3))).double()
    for a, b in ((trained, held_out), (trained, drawn), (held_out, drawn)):
        assert not torch.isin(a, b).any()


@pytest.mark.parametrize("kind", ["ddpmpp", "dit"])
def test_a_network_is_trained_through_and_left_as_it_was(kind: str):
    from fleetstep.diffusion.precondition import Denoiser, coefficients_of
    from fleetstep.diffusion.spec import EdmSpec

    network = awake(small_network(SMALL[kind])).eval()
    denoiser = Denoiser(network, coefficients_of(EdmSpec()), 0.002, 80.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    spec = AmedTrainingSpec(points=3, batch=4, guidance=GuidanceSpec(scale=2.0))
    training = AmedTrainer(
        denoiser, spec, shape=(2, 8, 8), classes=3, device=CPU, standardise=kind == "dit"
    )
    start = {name: value.clone() for name, value in training.predictor.named_parameters()}
    report = training.run_loop(0)
    assert report.replaced == 0
    assert all(norm > 0 for norm in report.grad_norms)
    for name, value in training.predictor.named_parameters():
        assert not torch.equal(value, start[name]), name
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    facts = training.facts(snapshot="s", track="ema", run="r", images_seen=3)
    assert facts.standardised == (kind == "dit")
    assert (facts.levels, facts.guidance) == (training.levels, spec.guidance)
    if kind == "dit":
        assert not torch.equal(training.predictor.feature_mean, torch.zeros(64).double())


def test_statistics_are_those_of_the_levels_where_the_network_is_called():
    training = trainer(ANY, standardise=True)
    training.run_loop(0)
    z_BCHW, _ = training_latents(0, 0, 8, (2, 1, 1), 0, CPU)
    denoiser = featured_mixture()
    taught = Teacher(denoiser, ANY).trajectory(80 * z_BCHW, None)
    rows = [
        denoiser.with_features(x, torch.full((8,), level).double())[1].mean(1).flatten(1)
        for x, level in zip(taught[1:-1], training.levels[1:-1], strict=True)
    ]
    torch.testing.assert_close(training.predictor.feature_mean, torch.cat(rows).mean(0))
    deviation = torch.cat(rows).std(0, correction=0)
    torch.testing.assert_close(training.predictor.feature_std, deviation)


def test_a_float32_training_stays_close_to_the_float64_one():
    single = trainer(ANY.model_copy(update={"dtype": "float32"}))
    assert {p.dtype for p in single.predictor.parameters()} == {torch.float32}
    expected = trainer(ANY).run_loop(0).losses
    assert single.run_loop(0).losses == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_the_first_update_is_of_the_size_of_the_learning_rate():
    training = trainer(ANY.model_copy(update={"lr": 1e-3, "afs": False, "points": 2}))
    start = [parameter.clone() for parameter in training.predictor.parameters()]
    training.run_loop(0)
    for old, new in zip(start, training.predictor.parameters(), strict=True):
        moved = (new.detach() - old.detach()).abs()
        assert moved.max().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("student", "schedule", "teacher", "between", "scale_time"),
    [
        (AmedStudentSpec(), TimeUniformSpec(), HeunAbSpec(), 1, 0.0),
        (IpndmSpec(), PolynomialSpec(), IpndmSpec(), 2, 0.2),
        (Dpm2Spec(), PolynomialSpec(), Dpm2Spec(), 1, 0.0),
        (EulerSpec(), PolynomialSpec(), EulerSpec(), 2, 0.0),
        (DpmppSpec(order=3), LogSnrSpec(), DpmppSpec(order=3), 2, 0.0),
        (UnipcSpec(), LogSnrSpec(), UnipcSpec(), 2, 0.0),
    ],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_the_defaults_are_the_authors(
    student: StudentSpec, schedule: Any, teacher: Any, between: int, scale_time: float
):
    spec = AmedTrainingSpec(student=student, nfe=5)
    assert (spec.chosen_schedule, spec.chosen_teacher) == (schedule, teacher)
    assert (spec.chosen_intermediate, spec.chosen_scale_time) == (between, scale_time)
    assert (spec.scale_dir, spec.afs, spec.lr, spec.batch) == (0.01, True, 5e-3, 128)
    assert (spec.chosen_points, spec.chosen_nfe, spec.loops) == (4, 5, 79)


@pytest.mark.parametrize(
    ("settings", "points", "nfe"),
    [
        ({"nfe": 3}, 3, 3),
        ({"nfe": 4, "afs": False}, 3, 4),
        ({"nfe": 6, "guidance": GuidanceSpec(scale=3.0)}, 3, 6),
        ({"nfe": 3, "guidance": GuidanceSpec(scale=1.0)}, 3, 3),
        ({"points": 6}, 6, 9),
        ({"points": 2, "afs": False}, 2, 2),
    ],
    ids=str,
)
def test_points_follow_from_the_calls(settings: dict[str, Any], points: int, nfe: int):
    spec = AmedTrainingSpec(**settings)
    assert (spec.chosen_points, spec.chosen_nfe) == (points, nfe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either points or nfe"),
        ({"points": 4, "nfe": 5}, "give either points or nfe"),
        ({"nfe": 4}, "nearest that works: 3 or 5"),
        ({"nfe": 5, "afs": False}, "nearest that works: 4 or 6"),
        ({"nfe": 1, "afs": False}, "nearest that works: 2,"),
        ({"nfe": 5, "guidance": {"scale": 2}}, "nearest that works: 2 or 6"),
        ({"nfe": 5, "student": {"kind": "heun"}}, "heun"),
        ({"nfe": 5, "teacher": {"kind": "heun"}}, "heun"),
        ({"nfe": 5, "student": {"kind": "ipndm", "afs": True}}, "student.afs: set it for"),
        ({"nfe": 5, "teacher": {"kind": "ipndm", "afs": True}}, "teacher.afs: set it for"),
        ({"nfe": 5, "student": {"kind": "dpm2", "r": 0.4}}, "the predictor learns it"),
        (
            {"nfe": 5, "student": {"kind": "euler", "denoise_to_zero": True}},
            "student.denoise_to_zero: not part of a training",
        ),
        ({"nfe": 5, "schedule": LevelsSpec(sigmas=(80, 5, 1, 0.1))}, "no finer grid"),
        ({"nfe": 5, "schedule": DdpmSubsetSpec()}, "no finer grid"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        AmedTrainingSpec(**settings)


def test_a_schedule_whose_levels_move_is_refused():
    spec = AmedTrainingSpec(points=4, schedule=DdpmSubsetSpec(spacing="leading", end="none"))
    with pytest.raises(SamplingError, match="the teacher would stop elsewhere"):
        Teacher(featured_mixture(), spec)


@pytest.mark.parametrize("schedule", [LogSnrSpec(), TimeUniformSpec(rho=2), IddpmSpec()])
def test_the_teacher_stops_at_the_levels_of_the_student(schedule: Any):
    spec = AmedTrainingSpec(points=5, schedule=schedule, intermediate=3)
    teacher = Teacher(featured_mixture(), spec)
    assert teacher.levels == tuple(sigmas(schedule, 5, 0.002, 80.0).tolist())
    assert len(teacher.trajectory(80 * golden_z(), None)) == 5


def test_the_predictor_starts_from_the_seed():
    first, other = (trainer(ANY.model_copy(update={"seed": seed})) for seed in (0, 1))
    expected = AmedPredictor(0.01, 0.2, seed=0, dtype=torch.float64)
    assert torch.equal(first.predictor.encode_0.weight, expected.encode_0.weight)
    assert not torch.equal(other.predictor.encode_0.weight, expected.encode_0.weight)
    assert first.run_loop(0) != other.run_loop(0)
