"""Laws of the exact denoiser of a finite dataset: limits, score, classes, and rows that no other
row can change.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling import finite
from fleetstep.sampling.denoiser import FeatureDenoiser
from fleetstep.sampling.exact import GaussianMixture
from fleetstep.sampling.finite import FiniteDenoiser
from fleetstep.sampling.generate import generate
from fleetstep.sampling.spec import DpmppSpec, GuidanceSpec, HeunSpec
from fleetstep.sampling.trajectory import levels_for, sample
from fleetstep.sampling.walk import Walk

SHAPE = (2, 3, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)
LABELS = np.arange(20) % 3
PAIR = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)


def as_floats(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float64)) / 127.5 - 1


A = as_floats(IMAGES)


def noisy(sigma: float, count: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn((count, *SHAPE), dtype=torch.float64, generator=generator)
    return A[torch.arange(count) % 20] + sigma * noise


def double_loop(x_BCHW: Tensor, sigma: float, data: Tensor = A) -> Tensor:
    """The definition, image by image."""
    rows = []
    for x in x_BCHW:
        distances = torch.stack([(x - a).square().sum() for a in data])
        weights = (-distances / (2 * sigma**2)).softmax(0)
        rows.append(sum(w * a for w, a in zip(weights, data, strict=True)))
    return torch.stack(rows)


def distance(x: Tensor, image: np.ndarray) -> Fraction:
    """Squared, in rational numbers."""
    pairs = zip(x.flatten().tolist(), image.flatten().tolist(), strict=True)
    return sum((Fraction(v) - Fraction(2 * k - 255, 255)) ** 2 for v, k in pairs)


def weight_of_second(pair: np.ndarray, x: Tensor, sigma: float) -> float:
    lead = (distance(x, pair[1]) - distance(x, pair[0])) / (2 * Fraction(sigma) ** 2)
    return 1 / (1 + math.exp(float(lead)))


class TestPosteriorMean:
    @pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 5.0, 80.0])
    def test_it_is_the_definition(self, sigma: float):
        x_BCHW = noisy(sigma)
        found = FiniteDenoiser(IMAGES)(x_BCHW, sigma)
        torch.testing.assert_close(found, double_loop(x_BCHW, sigma), rtol=0, atol=1e-13)

    def test_levels_may_differ_from_row_to_row(self):
        sigma_B = torch.tensor([0.02, 0.3, 5.0], dtype=torch.float64)
        x_BCHW, denoiser = noisy(0.3, 3), FiniteDenoiser(IMAGES)
        rows = [denoiser(x[None], float(s)) for x, s in zip(x_BCHW, sigma_B, strict=True)]
        assert torch.equal(denoiser(x_BCHW, sigma_B), torch.cat(rows))

    def test_it_is_the_mixture_of_gaussians_without_width(self):
        means_KD = A.flatten(1)
        mixture = GaussianMixture(torch.ones(20), means_KD, torch.zeros_like(means_KD))
        sigma_B = torch.full((20,), 0.7, dtype=torch.float64)
        x_BCHW = noisy(0.7)
        torch.testing.assert_close(
            FiniteDenoiser(IMAGES)(x_BCHW, sigma_B), mixture(x_BCHW, sigma_B), rtol=0, atol=1e-13
        )

    @pytest.mark.parametrize("lead", [0.0, 1e-7, 1e-6])
    def test_the_lowest_level_does_not_magnify_rounding(self, lead: float):
        """|x|^2 - 2 x a + |a|^2 in float64 misses by 1e-9 here: 0.002 multiplies by 125,000."""
        first, second = as_floats(PAIR)
        away = second - first
        noise = 0.002 * torch.from_numpy(np.random.default_rng(2).standard_normal(away.shape))
        across = noise - (noise * away).sum() / away.square().sum() * away
        x = (first + second) / 2 + across + lead * away / away.norm()
        weight = weight_of_second(PAIR, x, 0.002)
        assert 0.1 < weight < 0.999
        found = FiniteDenoiser(PAIR)(x[None], 0.002)[0]
        assert (found - (first + weight * away)).abs().max() < 1e-10

    def test_nor_does_it_beside_grey(self):
        """A state far smaller than the images, between one and its negative."""
        pair = np.stack((PAIR[0], 255 - PAIR[0]))
        first, second = as_floats(pair)
        x = 1e-6 * second / second.norm()
        weight = weight_of_second(pair, x, 0.002)
        assert 0.7 < weight < 0.999
        found = FiniteDenoiser(pair)(x[None], 0.002)[0]
        assert (found - (first + weight * (second - first))).abs().max() < 1e-13

    def test_a_state_however_far_has_a_nearest_image(self):
        direction = torch.from_numpy(np.random.default_rng(4).standard_normal(SHAPE))
        for x in (1e9 * direction, 0 * direction):
            nearest = min(range(20), key=lambda j: distance(x, IMAGES[j]))
            found = FiniteDenoiser(IMAGES)(x[None], 0.002)[0]
            torch.testing.assert_close(found, A[nearest], rtol=0, atol=1e-15)

    def test_without_noise_it_is_the_nearest_image(self):
        found = FiniteDenoiser(IMAGES)(noisy(0.002), 0.002)
        torch.testing.assert_close(found, A, rtol=0, atol=1e-15)

    def test_under_all_noise_it_is_the_mean_image(self):
        found = FiniteDenoiser(IMAGES)(noisy(1e10), 1e10)
        torch.testing.assert_close(found, A.mean(0).expand_as(found), rtol=0, atol=1e-8)

    @pytest.mark.parametrize("sigma", [0.002, 1.0, 80.0])
    def test_one_image_is_all_it_can_give(self, sigma: float):
        found = FiniteDenoiser(IMAGES[:1])(noisy(sigma), sigma)
        torch.testing.assert_close(found, A[:1].expand_as(found), rtol=0, atol=1e-15)

    @pytest.mark.parametrize("sigma", [0.05, 0.4, 3.0])
    def test_it_is_the_score_of_the_noisy_density(self, sigma: float):
        """(D - x) / sigma^2 = grad log p (Karras et al. 2022, eq. 3)."""
        x_BCHW = noisy(sigma).requires_grad_()
        distances_Bn = (x_BCHW[:, None] - A).flatten(2).square().sum(2)
        log_density = torch.logsumexp(-distances_Bn / (2 * sigma**2), dim=1).sum()
        (score,) = torch.autograd.grad(log_density, x_BCHW)
        denoised = FiniteDenoiser(IMAGES)(x_BCHW.detach(), sigma)
        torch.testing.assert_close(
            (denoised - x_BCHW.detach()) / sigma**2, score, rtol=1e-11, atol=1e-11
        )


class TestClasses:
    def test_a_class_is_the_dataset_of_its_images(self):
        x_BCHW = noisy(0.8)
        denoiser = FiniteDenoiser(IMAGES, LABELS, 3)
        for label in range(3):
            alone = FiniteDenoiser(IMAGES[label == LABELS])
            labels_B = torch.full((20,), label)
            found = denoiser(x_BCHW, 0.8, labels_B)
            torch.testing.assert_close(found, alone(x_BCHW, 0.8), rtol=0, atol=1e-14)

    def test_no_class_is_the_whole_dataset(self):
        x_BCHW, denoiser = noisy(0.8), FiniteDenoiser(IMAGES, LABELS, 3)
        whole = FiniteDenoiser(IMAGES)(x_BCHW, 0.8)
        assert torch.equal(denoiser(x_BCHW, 0.8), whole)
        assert torch.equal(denoiser(x_BCHW, 0.8, torch.full((20,), -1)), whole)

    def test_rows_of_a_batch_may_be_of_any_class(self):
        x_BCHW, denoiser = noisy(0.8), FiniteDenoiser(IMAGES, LABELS, 3)
        labels_B = torch.arange(20) % 4 - 1
        mixed = denoiser(x_BCHW, 0.8, labels_B)
        for label in range(-1, 3):
            alone = denoiser(x_BCHW, 0.8, torch.full((20,), label))
            assert torch.equal(mixed[labels_B == label], alone[labels_B == label])


class TestRows:
    """Bit for bit: plain matrix products fail these, from the row's place in the batch on."""

    DIGITS_LIKE = np.random.default_rng(3).integers(0, 256, (301, 1, 8, 8), dtype=np.uint8)

    def state(self) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return 3 * torch.randn((50, 1, 8, 8), dtype=torch.float64, generator=generator)

    def test_neither_place_nor_neighbours_nor_their_number_matter(self):
        x_BCHW, denoiser = self.state(), FiniteDenoiser(self.DIGITS_LIKE)
        whole = denoiser(x_BCHW, 2.0)
        for rows in (slice(0, 1), slice(1, 3), slice(7, 20), slice(33, 50)):
            assert torch.equal(denoiser(x_BCHW[rows], 2.0), whole[rows])
        order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
        assert torch.equal(denoiser(x_BCHW[order], 2.0), whole[order])

    def test_cuts_through_the_work_do_not_matter(self, monkeypatch: pytest.MonkeyPatch):
        x_BCHW, denoiser = self.state(), FiniteDenoiser(self.DIGITS_LIKE)
        whole = denoiser(x_BCHW, 2.0)
        for images in (1, 7, 300):
            monkeypatch.setattr(finite, "CHUNK_BYTES", images * 64 * 8)
            assert torch.equal(denoiser(x_BCHW, 2.0), whole)

    def test_the_number_of_threads_does_not_matter(self):
        x_BCHW, denoiser = self.state(), FiniteDenoiser(self.DIGITS_LIKE)
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(denoiser(x_BCHW, 2.0))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(*found)

    def test_a_row_that_is_not_finite_stays_alone(self):
        x_BCHW, denoiser = self.state(), FiniteDenoiser(self.DIGITS_LIKE)
        whole = denoiser(x_BCHW, 2.0)
        x_BCHW[3, 0, 0, 0], x_BCHW[4, 0, 1, 1] = torch.nan, torch.inf
        found = denoiser(x_BCHW, 2.0)
        assert found[3:5].isnan().all()
        assert torch.equal(found[5:], whole[5:])


class TestAsADenoiser:
    def test_calls_are_counted_by_batch(self):
        denoiser = FiniteDenoiser(IMAGES)
        denoiser(noisy(1.0), 1.0)
        denoiser(noisy(1.0, 1), 1.0)
        assert denoiser.nfe == 2

    def test_it_neither_trains_nor_passes_gradients_on(self):
        denoiser = FiniteDenoiser(IMAGES)
        assert not denoiser.training
        assert not any(parameter.requires_grad for parameter in denoiser.parameters())
        # A gradient that is zero by rounding would be a silent lie.
        assert not denoiser(noisy(1.0).requires_grad_(), 1.0).requires_grad

    def test_the_state_keeps_its_dtype_and_the_arithmetic_its_own(self):
        x_BCHW = noisy(0.5).float()
        denoiser = FiniteDenoiser(IMAGES)
        found = denoiser(x_BCHW, 0.5)
        assert found.dtype == torch.float32
        assert torch.equal(found, denoiser(x_BCHW.double(), 0.5).float())

    def test_a_solver_that_reads_features_is_refused(self):
        denoiser = FiniteDenoiser(IMAGES)
        assert not isinstance(denoiser, FeatureDenoiser)
        with pytest.raises(SamplingError, match="declares none"):
            Walk(denoiser, None).denoise_with_features(noisy(1.0), 1.0)

    def test_enough_calls_give_back_images_of_the_class_asked_for(self):
        denoiser = FiniteDenoiser(IMAGES, LABELS, 3)
        found = generate(denoiser, HeunSpec(), 79, count=60, shape=SHAPE, classes=3, batch=30)
        of = [np.flatnonzero((IMAGES == image).all((1, 2, 3))) for image in found.images]
        assert [len(ids) for ids in of] == [1] * 60
        assert found.labels is not None
        np.testing.assert_array_equal(LABELS[np.concatenate(of)], found.labels)
        # Every image is as likely as another: 60 draws of 20 images miss fewer than a half.
        assert len(np.unique(np.concatenate(of))) > 10

    @pytest.mark.parametrize("solver", [HeunSpec(), DpmppSpec(order=3)])
    def test_an_image_does_not_depend_on_the_size_of_its_batch(self, solver: HeunSpec | DpmppSpec):
        denoiser = FiniteDenoiser(IMAGES, LABELS, 3)
        drawn = [
            generate(
                denoiser,
                solver,
                9,
                count=20,
                shape=SHAPE,
                classes=3,
                batch=batch,
                unquantised=True,
            ).unquantised
            for batch in (20, 7, 2)
        ]
        assert drawn[0] is not None
        for other in drawn[1:]:
            np.testing.assert_array_equal(other, drawn[0])

    def test_guidance_of_scale_one_changes_nothing(self):
        denoiser = FiniteDenoiser(IMAGES, LABELS, 3)
        plain, guided = (
            generate(
                denoiser, DpmppSpec(), nfe, guidance=scale, count=10, shape=SHAPE, classes=3
            ).images
            for nfe, scale in ((9, None), (9, GuidanceSpec(scale=1.0)))
        )
        np.testing.assert_array_equal(plain, guided)

    def test_a_state_that_is_not_finite_is_reported_as_of_any_network(self):
        denoiser, solver = FiniteDenoiser(IMAGES), HeunSpec()
        x_T = 80 * noisy(1.0)
        x_T[3] = torch.nan
        with pytest.raises(NonFiniteError) as caught:
            sample(denoiser, solver, levels_for(denoiser, solver, 5), x_T)
        assert caught.value.image == 3


class TestRefusals:
    def test_no_image(self):
        with pytest.raises(SamplingError, match="at least one image"):
            FiniteDenoiser(IMAGES[:0])

    def test_a_class_without_an_image(self):
        with pytest.raises(SamplingError, match=r"class 2 of 4 has no image among the 6 used"):
            FiniteDenoiser(IMAGES[:6], np.array([0, 1, 3, 0, 1, 3]), 4)

    def test_images_of_another_shape(self):
        with pytest.raises(SamplingError, match=r"shape \(2, 3, 3\), the state's have \(18, 1, 1"):
            FiniteDenoiser(IMAGES)(noisy(1.0).reshape(20, 18, 1, 1), 1.0)

    @pytest.mark.parametrize(("labels", "classes"), [(LABELS, 3), (None, 0)])
    def test_a_class_that_is_not_there(self, labels: np.ndarray | None, classes: int):
        with pytest.raises(SamplingError, match=rf"must be below {classes}.* got 3"):
            FiniteDenoiser(IMAGES, labels, classes)(noisy(1.0), 1.0, torch.full((20,), 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_to_the_last_digits_and_its_rows_are_as_independent():
    x_BCHW = TestRows().state()
    denoiser = FiniteDenoiser(TestRows.DIGITS_LIKE)
    expected = denoiser(x_BCHW, 2.0)
    found = denoiser.to("cuda")(x_BCHW.cuda(), 2.0)
    assert torch.equal(denoiser(x_BCHW[7:20].cuda(), 2.0), found[7:20])
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-14)
