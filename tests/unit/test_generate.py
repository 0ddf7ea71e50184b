"""Image i depends on (namespace, i) alone; labels, quantisation, padding, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contracts.exact_denoisers import PointMass
from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.catalogue import catalogue
from fleetstep.sampling.first_calls import FirstCalls
from fleetstep.sampling.generate import Generated, generate, labels_of, latents, quantise
from fleetstep.sampling.spec import (
    AcceleratedDdimSpec,
    AcceleratedDdpmSpec,
    DdpmSolverSpec,
    DeisSpec,
    Dpm2Spec,
    DpmppSdeSpec,
    DpmppSinglestepSpec,
    DpmppSpec,
    EdmAblationSpec,
    EulerSpec,
    GuidanceSpec,
    HeunAbSpec,
    HeunSpec,
    IpndmSpec,
    IpndmVSpec,
    LevelsSpec,
    LogSnrSpec,
    PlmsSpec,
    PndmSpec,
    Rk45Spec,
    SolverSpec,
    ThresholdingSpec,
    UnipcSpec,
)

SHAPE = (2, 8, 8)
CLASSES = 5


class SmallNet(nn.Module):
    """A denoiser with convolutions, float32 inside, like a real one; it notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.nfe = 0.002, 80.0, 0
        self.calls: list[tuple[int, bool, bool]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inside = nn.Conv2d(2, 16, 3, padding=1)
            self.outside = nn.Conv2d(16, 2, 3, padding=1)
            self.embedding = nn.Embedding(CLASSES, 16)
            self.dropout = nn.Dropout(0.5)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        self.calls.append((len(x_BCHW), torch.is_inference_mode_enabled(), labels_B is None))
        sigma_B111 = sigma_B[:, None, None, None]
        hidden = self.inside((x_BCHW / (1 + sigma_B111.square()).sqrt()).float())
        if labels_B is not None:
            hidden = hidden + self.embedding(labels_B % CLASSES)[:, :, None, None]
        return self.outside(self.dropout(hidden.tanh())).tanh().to(x_BCHW.dtype)


def drawn(
    first: int, count: int, solver: SolverSpec | None = None, nfe: int = 5, **options: object
) -> Generated:
    given = {"shape": SHAPE, "classes": CLASSES, "batch": 4, **options}
    return generate(
        SmallNet().eval(), solver or EulerSpec(), nfe, first=first, count=count, **given
    )


@pytest.mark.parametrize("solver", [EulerSpec(), HeunSpec(), IpndmSpec(), DpmppSpec()])
def test_an_image_depends_on_its_seed_alone(solver: SolverSpec):
    whole = drawn(0, 11, solver)
    assert whole.images.dtype == np.uint8
    assert whole.images.shape == (11, *SHAPE)
    assert len(np.unique(whole.images.reshape(11, -1), axis=0)) == 11
    for first, count in [(0, 3), (3, 1), (2, 7), (10, 1)]:
        part = drawn(first, count, solver)
        assert np.array_equal(part.images, whole.images[first : first + count])
        assert part.labels is not None
        assert whole.labels is not None
        assert np.array_equal(part.labels, whole.labels[first : first + count])


def test_namespaces_share_nothing():
    here, there = (latents(namespace, 0, 50, SHAPE) for namespace in (0, 1))
    assert not np.isin(here, there).any()
    assert not np.array_equal(drawn(0, 4).images, drawn(0, 4, namespace=1).images)


@pytest.mark.parametrize(("batch", "used"), [(1, 2), (2, 2), (4, 4), (100, 100)])
def test_every_call_has_the_same_batch_and_never_one_image(batch: int, used: int):
    net = SmallNet().eval()
    options = {"shape": SHAPE, "classes": CLASSES, "batch": batch}
    generated = generate(net, EulerSpec(), 3, count=5, **options)
    assert {size for size, _, _ in net.calls} == {used}
    assert generated.images.shape == (5, *SHAPE)


def test_gradients_are_off_and_calls_are_counted_per_image():
    net = SmallNet().eval()
    generated = generate(net, HeunSpec(), 5, count=9, shape=SHAPE, classes=0, batch=4)
    assert all(inference and unlabelled for _, inference, unlabelled in net.calls)
    assert generated.nfe == 5
    assert net.nfe == 15  # three batches
    assert generated.labels is None


def test_the_schedule_is_the_solvers_own_unless_given():
    own, given = drawn(0, 3, EulerSpec()), drawn(0, 3, EulerSpec(schedule=LogSnrSpec()))
    assert not np.array_equal(own.images, given.images)
    default = drawn(0, 3, DpmppSpec())
    assert np.array_equal(default.images, drawn(0, 3, DpmppSpec(schedule=LogSnrSpec())).images)


def test_progress_counts_wanted_images_only():
    finished: list[int] = []
    drawn(0, 10, on_batch=finished.append)
    assert finished == [4, 4, 2]


def test_the_latent_reaches_the_image_at_its_true_scale():
    # The flow to a point mass is x = mu + sigma z: at the network's sigma_min, 0.25 z is left.
    denoiser = PointMass(torch.zeros(1, 1, 1), sigma_min=0.25, sigma_max=40.0)
    generated = generate(denoiser, EulerSpec(), 4, count=6, shape=(1, 4, 4), classes=0, batch=4)
    z = latents(0, 0, 6, (1, 4, 4)).astype(np.float64)
    expected = np.clip(np.floor(127.5 * 0.25 * z + 128), 0, 255)
    difference = np.abs(generated.images.astype(np.float64) - expected)
    assert difference.max() <= 1  # the floor may fall either side of a whole number
    assert (difference == 0).mean() > 0.95


def test_each_image_is_drawn_with_the_label_of_its_seed():
    class Painter(PointMass):
        """Paints the class id: byte 20 * label + 10."""

        def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
            self.nfe += 1
            assert labels_B is not None
            grey_B = (20.0 * labels_B.double() + 10 - 127.5) / 127.5
            return grey_B[:, None, None, None].expand_as(x_BCHW)

    painter = Painter(torch.zeros(1, 1, 1))
    options = {"shape": (1, 2, 2), "classes": 10, "batch": 8, "labels": "balanced"}
    generated = generate(painter, HeunSpec(), 5, namespace=2, first=7, count=30, **options)
    assert np.array_equal(generated.labels, labels_of(2, 7, 30, 10, "balanced"))
    painted = (generated.images.astype(int) - 10) // 20
    assert np.array_equal(
        painted, np.broadcast_to(generated.labels[:, None, None, None], (30, 1, 2, 2))
    )


def test_every_byte_survives_the_trip_through_pixels():
    bytes_in = torch.arange(256)
    assert torch.equal(quantise(bytes_in.double() / 127.5 - 1), bytes_in.to(torch.uint8))
    assert torch.equal(quantise(bytes_in.float() / 127.5 - 1), bytes_in.to(torch.uint8))
    clipped = quantise(torch.tensor([-1.5, -1.0, 0.0, 1.0, 7.0]))
    assert clipped.tolist() == [0, 0, 128, 255, 255]


def test_unquantised_images_are_neither_rounded_nor_clipped():
    # The flow to a point mass scales x - mu with sigma; it starts at x = 40 z. Far beyond white.
    denoiser = PointMass(torch.full((1, 1, 1), 2.0), sigma_min=0.25, sigma_max=40.0)
    options = {"count": 6, "shape": (1, 4, 4), "classes": 0, "batch": 4}
    plain = generate(denoiser, EulerSpec(), 4, **options)
    asked = generate(denoiser, EulerSpec(), 4, unquantised=True, **options)
    assert plain.unquantised is None
    assert asked.unquantised is not None
    assert asked.unquantised.dtype == np.float32
    expected = 2 + 0.25 / 40 * (40 * latents(0, 0, 6, (1, 4, 4)) - 2)
    np.testing.assert_allclose(asked.unquantised, expected, rtol=1e-6)
    assert np.array_equal(asked.images, plain.images)
    assert (quantise(torch.from_numpy(asked.unquantised)).numpy() == asked.images).all()


@pytest.mark.parametrize("rule", ["random", "balanced"])
def test_labels_are_keyed_by_seed(rule: str):
    whole = labels_of(3, 0, 200, 7, rule)
    assert whole.dtype == np.int64
    assert set(whole) == set(range(7))
    for first, count in [(0, 1), (5, 20), (13, 101), (199, 1), (6, 0)]:
        assert np.array_equal(labels_of(3, first, count, 7, rule), whole[first : first + count])
    assert not np.array_equal(labels_of(4, 0, 200, 7, rule), whole)


def test_balanced_labels_hold_every_class_once_a_round_in_changing_order():
    rounds = labels_of(0, 0, 1000, 10, "balanced").reshape(100, 10)
    assert np.array_equal(np.sort(rounds, axis=1), np.tile(np.arange(10), (100, 1)))
    assert len(np.unique(rounds, axis=0)) > 90


def test_random_labels_are_uniform_and_independent_of_latents():
    labels = labels_of(0, 0, 10_000, 10, "random")
    chi_square = ((np.bincount(labels, minlength=10) - 1000.0) ** 2 / 1000).sum()
    assert chi_square < 27.9  # 0.1 % point of chi-square with 9 degrees of freedom
    means = latents(0, 0, 10_000, (4,)).mean(axis=1)
    assert abs(np.corrcoef(labels, means)[0, 1]) < 0.04


def test_labels_need_a_class():
    with pytest.raises(SamplingError, match="at least one class, got 0"):
        labels_of(0, 0, 3, 0, "random")


def test_a_network_in_training_mode_is_refused():
    net = SmallNet().eval()
    net.dropout.train()  # one forgotten layer is enough
    with pytest.raises(SamplingError, match="training mode") as refusal:
        generate(net, EulerSpec(), 3, count=2, shape=SHAPE, classes=CLASSES)
    assert "eval()" in refusal.value.remedy
    assert net.nfe == 0


@pytest.mark.parametrize(
    "wrong",
    [{"first": -1, "count": 3}, {"first": 0, "count": 0}, {"first": 0, "count": 2, "batch": 0}],
)
def test_impossible_requests_are_refused(wrong: dict):
    with pytest.raises(SamplingError, match="seeds start at 0"):
        drawn(**wrong)


def test_an_image_that_is_not_finite_is_named_with_its_step():
    bad = 80.0 * float(latents(0, 25, 1, (1, 2, 2)).flat[0])

    class Poisoned(PointMass):
        """Knows no answer for the latent of seed 25, the second image of the second batch."""

        def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
            denoised_BCHW = super().__call__(x_BCHW, sigma_B, labels_B).clone()
            denoised_BCHW[x_BCHW.flatten(1)[:, 0] == bad] = torch.nan
            return denoised_BCHW

    message = r"the image of seed 25 is not finite: .* sigma = 80, in step 1 of 3 .* for 1 of 4"
    with pytest.raises(NonFiniteError, match=message) as caught:
        generate(
            Poisoned(torch.zeros(1, 1, 1)),
            EulerSpec(),
            3,
            first=20,
            count=8,
            shape=(1, 2, 2),
            classes=0,
            batch=4,
        )
    assert caught.value.image == 1
    assert pickle.loads(pickle.dumps(caught.value)).image == 1


STOCHASTIC = [
    DdpmSolverSpec(),
    DpmppSdeSpec(),
    HeunSpec(s_churn=10),
    AcceleratedDdpmSpec(),
]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda solver: solver.kind)
def test_a_stochastic_solver_is_replayed_whatever_the_split(solver: SolverSpec):
    whole = drawn(0, 11, solver, nfe=7)
    for first, count in [(0, 3), (3, 1), (2, 7), (10, 1)]:
        part = drawn(first, count, solver, nfe=7)
        assert np.array_equal(part.images, whole.images[first : first + count])
    assert not np.array_equal(drawn(0, 4, solver, nfe=7, namespace=1).images, whole.images[:4])


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda solver: solver.kind)
def test_noise_is_of_the_seed_and_not_of_its_place_in_the_batch(solver: SolverSpec):
    """With a denoiser that rounds alike in every batch, batches of any size agree to the bit."""

    def images(batch: int, first: int = 0, count: int = 12) -> np.ndarray:
        options = {"shape": (2, 3, 3), "classes": 0, "unquantised": True}
        drawn = generate(
            Linear(), solver, 9, first=first, count=count, batch=batch, **options
        ).unquantised
        assert drawn is not None
        return drawn

    whole = images(12)
    assert all(np.array_equal(images(batch), whole) for batch in (2, 5, 64))
    assert np.array_equal(images(3, first=4, count=5), whole[4:9])


class Linear(PointMass):
    """D = x / (1 + sigma^2), products and quotients alone: no rounding depends on the batch."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(1, 1, 1))

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        return x_BCHW / (1 + sigma_B * sigma_B).to(x_BCHW.dtype)[:, None, None, None]


def test_noise_changes_what_a_flow_would_draw():
    quiet, loud = drawn(0, 4, DpmppSdeSpec(eta=0), nfe=7), drawn(0, 4, DpmppSdeSpec(), nfe=7)
    assert not np.array_equal(quiet.images, loud.images)


def test_the_state_is_in_the_dtype_asked_for():
    seen: set[torch.dtype] = set()

    class Watched(SmallNet):
        def forward(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
            seen.add(x_BCHW.dtype)
            return super().forward(x_BCHW, sigma_B, labels_B)

    def images(**options: object) -> np.ndarray:
        net = Watched().eval()
        return generate(
            net, IpndmSpec(), 9, count=4, shape=SHAPE, classes=CLASSES, batch=4, **options
        ).images

    double = images()
    assert seen == {torch.float64}
    seen.clear()
    single = images(dtype="float32")
    assert seen == {torch.float32}
    assert (np.abs(single.astype(int) - double.astype(int)) <= 1).all()


DETERMINISTIC = [
    EulerSpec(),
    HeunSpec(),
    HeunAbSpec(),
    Dpm2Spec(r=0.4),
    EdmAblationSpec(coordinates="vp", alpha=0.5),
    EdmAblationSpec(coordinates="ve", method="euler"),
    IpndmSpec(),
    IpndmVSpec(),
    DeisSpec(),
    PlmsSpec(),
    PndmSpec(),
    DpmppSpec(order=3),
    DpmppSpec(prediction="noise"),
    DpmppSinglestepSpec(),
    UnipcSpec(),
    DpmppSdeSpec(eta=0),
    *(AcceleratedDdimSpec(equation=equation) for equation in (8, 15, 22, 28, 30)),
    EulerSpec(denoise_to_zero=True),
    IpndmSpec(thresholding=ThresholdingSpec(quantile=0.9, maximum=0.5)),
]


def test_every_deterministic_solver_is_in_the_list():
    deterministic = {e.kind for e in catalogue() if e.nature == "deterministic"}
    assert {solver.kind for solver in DETERMINISTIC} == deterministic | {"dpmpp_sde"}


@pytest.mark.parametrize("guidance", [None, GuidanceSpec(scale=2)], ids=["plain", "guided"])
def test_a_shared_first_call_changes_no_bit_and_no_count(guidance: GuidanceSpec | None):
    calls = FirstCalls()
    per_evaluation = 1 if guidance is None else 2
    for solver in DETERMINISTIC:
        nfe = solver.nfe_for(solver.least_points + 4, per_evaluation)
        options = {"guidance": guidance, "unquantised": True}
        alone = drawn(0, 6, solver, nfe, **options)
        before = calls.reused
        shared = drawn(0, 6, solver, nfe, first_calls=calls, **options)
        assert shared.unquantised is not None
        assert np.array_equal(shared.unquantised, alone.unquantised), solver.label
        assert shared.nfe == alone.nfe == nfe
        is_first = solver is DETERMINISTIC[0]
        # Two batches; the first solver makes what the others find.
        assert calls.reused - before == (0 if is_first else 2), solver.label
        assert shared.calls_made == nfe - (0 if is_first else per_evaluation)


@pytest.mark.parametrize(
    "solver", [EulerSpec(afs=True), *STOCHASTIC], ids=lambda solver: solver.label
)
def test_a_solver_that_does_not_begin_with_the_network_shares_nothing(solver: SolverSpec):
    calls = FirstCalls()
    drawn(0, 4, EulerSpec(), 5, first_calls=calls)
    alone, shared = drawn(0, 4, solver, 5), drawn(0, 4, solver, 5, first_calls=calls)
    assert calls.reused == 0
    assert np.array_equal(shared.images, alone.images)
    assert shared.calls_made == 5


def test_first_calls_of_other_latents_levels_or_dtypes_are_not_taken():
    calls = FirstCalls()
    drawn(0, 4, EulerSpec(), 5, first_calls=calls)
    drawn(4, 4, EulerSpec(), 5, first_calls=calls)
    drawn(0, 4, EulerSpec(), 5, first_calls=calls, batch=3)
    drawn(0, 4, EulerSpec(), 5, first_calls=calls, dtype="float32")
    drawn(0, 4, EulerSpec(schedule=LevelsSpec(sigmas=(40.0, 3.0))), 1, first_calls=calls)
    assert calls.reused == 0
    drawn(0, 4, IpndmSpec(), 5, first_calls=calls)
    assert calls.reused == 1


def test_first_calls_keep_to_their_limit_and_drop_the_oldest():
    size = 4 * 2 * 8 * 8 * 8
    calls = FirstCalls(limit_bytes=2 * size)
    for first in (0, 4, 8):
        drawn(first, 4, EulerSpec(), 3, first_calls=calls)
    drawn(8, 4, EulerSpec(), 3, first_calls=calls)
    drawn(4, 4, EulerSpec(), 3, first_calls=calls)
    assert calls.reused == 2
    drawn(0, 4, EulerSpec(), 3, first_calls=calls)
    assert calls.reused == 2
    none = FirstCalls(limit_bytes=size - 1)
    for _ in range(2):
        drawn(0, 4, EulerSpec(), 3, first_calls=none)
    assert none.reused == 0


def test_an_adaptive_solver_counts_each_batch_and_reports_the_mean():
    generated = generate(Linear(), Rk45Spec(), None, count=6, shape=(1, 4, 4), classes=0, batch=4)
    assert len(generated.counts) == 2
    assert all(count % 6 == 2 for count in generated.counts)
    assert generated.nfe == sum(generated.counts) / 2
    assert generated.made == generated.counts
    with pytest.raises(SamplingError, match="chooses its own number"):
        drawn(0, 4, Rk45Spec(), 35)
    with pytest.raises(SamplingError, match="euler needs a number of network calls"):
        generate(Linear(), EulerSpec(), None, count=2, shape=(1, 4, 4), classes=0)
