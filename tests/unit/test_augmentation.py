"""Augmentation by stream position: what is drawn, told and left alone, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fleetstep.data.augmentation import CONDITIONS, Augmentation, Draws, dropped_labels
from fleetstep.data.warp import SYM6, warped
from fleetstep.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "augmentation.json").read_text())


def images_of(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, height, width, generator=generator) * 2 - 1


def test_golden_filter():
    assert GOLDEN["sym6"] == pytest.approx(SYM6, rel=1e-15)


def test_golden_draws():
    golden = GOLDEN["draws"]
    draws = Augmentation(golden["probability"]).draws(
        golden["seed"], golden["first"], golden["count"]
    )
    assert golden["names"] == list(CONDITIONS)
    assert draws.conditions.shape == (golden["count"], len(CONDITIONS))
    np.testing.assert_allclose(draws.conditions, golden["conditions"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(draws.inverse(32, 24), golden["inverse"], rtol=1e-12, atol=1e-14)


def test_draws_belong_to_positions():
    pipeline = Augmentation(0.5)
    whole = pipeline.draws(3, 0, 100)
    for first, count in [(0, 1), (31, 2), (40, 60), (99, 1), (50, 0)]:
        part = pipeline.draws(3, first, count)
        rows = slice(first, first + count)
        assert np.array_equal(part.conditions, whole.conditions[rows])
        assert np.array_equal(part.inverse(32, 32), whole.inverse(32, 32)[rows])
    assert not np.isin(pipeline.draws(4, 0, 100).scale, whole.scale[whole.scale != 0]).all()


def test_a_larger_probability_only_opens_more_gates():
    # The numbers behind a gate do not move with it, so runs of two probabilities share changes.
    rare, often = (Augmentation(p).draws(0, 0, 500) for p in (0.1, 0.4))
    assert np.array_equal(rare.xflip, often.xflip)
    for name in ("scale", "angle", "stretch", "move_x", "move_y"):
        few, many = getattr(rare, name), getattr(often, name)
        assert np.array_equal(few[few != 0], many[few != 0])
        assert (many != 0).sum() > (few != 0).sum()


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 32, 32), (4, 16, 24)])
def test_an_image_does_not_depend_on_its_batch(channels: int, height: int, width: int):
    pipeline, images = Augmentation(0.3), images_of(21, channels, height, width)
    draws = pipeline.draws(0, 0, 21)
    assert 5 < draws.warps.sum() < 21
    whole, told = Augmentation.apply(images, draws)
    for sizes in [(1,) * 21, (2, 19), (10, 11), (16, 4, 1)]:
        first = 0
        for size in sizes:
            rows = slice(first, first + size)
            out, conditions = Augmentation.apply(images[rows], pipeline.draws(0, first, size))
            assert torch.equal(out, whole[rows])
            assert torch.equal(conditions, told[rows])
            first += size


def test_64_pixels_and_a_slice_of_a_larger_tensor():
    images = images_of(3, 3, 64, 64)
    draws = Augmentation(1.0).draws(0, 0, 3)
    apart = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last in memory
    assert torch.equal(Augmentation.apply(apart, draws)[0], Augmentation.apply(images, draws)[0])


def test_probability_zero_changes_nothing():
    images = images_of(40, 3, 8, 8)
    out, told = Augmentation.apply(images, Augmentation(0.0).draws(0, 0, 40))
    assert torch.equal(out, images)
    assert torch.equal(told, torch.zeros(40, 9))


def test_images_with_closed_gates_are_exact_mirror_images_or_untouched():
    images = images_of(60, 2, 8, 8)
    before = images.clone()
    draws = Augmentation(0.12).draws(0, 0, 60)
    out, told = Augmentation.apply(images, draws)
    assert torch.equal(images, before)  # the caller's stay as they are
    assert told.dtype == out.dtype == torch.float32
    seen = set()
    for i in np.flatnonzero(~draws.warps):
        flips = [dim for dim, flip in ((2, draws.xflip[i]), (1, draws.yflip[i])) if flip]
        assert torch.equal(out[i], images[i].flip(flips))
        assert told[i].tolist() == [draws.xflip[i], draws.yflip[i], 0, 0, 0, 0, 0, 0, 0]
        seen.add(tuple(flips))
    assert seen == {(), (1,), (2,), (2, 1)}
    for i in np.flatnonzero(draws.warps):
        assert told[i, 2:].any()
        assert not torch.equal(out[i], images[i])


def test_zero_is_told_exactly_of_images_left_alone():
    draws = Augmentation(0.12).draws(0, 0, 4000)
    unchanged = ~draws.warps & (draws.xflip == 0) & (draws.yflip == 0)
    assert np.array_equal(~draws.conditions.any(axis=1), unchanged)
    assert 0.2 < unchanged.mean() < 0.35


def test_what_is_told_is_what_is_done():
    z = np.array([0.7])
    none = np.zeros(1)
    draws = Draws(none, none + 1, z, none + 0.5, -2 * z, none - 1.1, 3 * z, -4 * z)
    expected = [0, 1, 0.7, np.cos(0.5) - 1, np.sin(0.5)]
    expected += [-1.4 * np.cos(-1.1), -1.4 * np.sin(-1.1), 2.1, -2.8]
    assert draws.conditions.tolist() == [pytest.approx(expected, rel=1e-14)]


def test_every_image_stays_finite_however_far_it_is_moved():
    far = np.array([1e3])
    none = np.zeros(1)
    draws = Draws(none, none, none - 10, none + 1, none + 8, none, far, -far)
    images = images_of(1, 3, 16, 16)
    out, _ = Augmentation.apply(images, draws)
    assert out.isfinite().all()
    assert 0.05 < out.std() < 1  # the continued image, not a constant


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_an_accelerator_gives_the_same_images_and_is_as_independent_of_the_batch():
    pipeline, images = Augmentation(0.3), images_of(64, 3, 32, 32)
    draws = pipeline.draws(0, 0, 64)
    whole, told = Augmentation.apply(images.cuda(), draws)
    here, told_here = Augmentation.apply(images, draws)
    assert whole.is_cuda
    assert torch.equal(told.cpu(), told_here)
    torch.testing.assert_close(whole.cpu(), here, rtol=0, atol=1e-4)
    for first in (0, 5, 63):
        part, _ = Augmentation.apply(images[first:].cuda(), pipeline.draws(0, first, 64 - first))
        assert torch.equal(part, whole[first:])


@pytest.mark.parametrize("probability", [-0.1, 1.01, float("nan")])
def test_an_impossible_probability_is_refused(probability: float):
    with pytest.raises(ConfigError, match=r"data.augment: must be in \[0, 1\]"):
        Augmentation(probability)


def test_draws_of_other_images_are_refused():
    with pytest.raises(ValueError, match="3 images cannot take 1 draws"):
        Augmentation.apply(images_of(3, 1, 8, 8), Augmentation(1.0).draws(0, 0, 1))


def test_a_single_pixel_cannot_be_warped():
    with pytest.raises(ValueError, match=r"from 2 x 2 pixels on, got \(1, 8\)"):
        warped(images_of(1, 1, 1, 8), torch.eye(2, 3, dtype=torch.float64)[None])


def test_golden_dropped_labels():
    golden = GOLDEN["dropped_labels"]
    labels = torch.arange(golden["count"])
    out = dropped_labels(labels, golden["seed"], golden["first"], golden["probability"])
    assert (out == -1).nonzero()[:, 0].tolist() == golden["dropped"]
    assert torch.equal(out[out != -1], labels[out != -1])
    assert torch.equal(labels, torch.arange(golden["count"]))  # the caller's stay as they are


def test_labels_are_dropped_by_position_at_the_asked_rate():
    labels = torch.arange(20_000) % 10
    whole = dropped_labels(labels, 0, 0, 0.1)
    assert whole.dtype == torch.int64
    parts = [dropped_labels(part, 0, 6_667 * i, 0.1) for i, part in enumerate(labels.split(6_667))]
    assert torch.equal(torch.cat(parts), whole)
    dropped = whole == -1
    assert abs(dropped.double().mean() - 0.1) < 0.007  # 3.3 standard deviations
    # Whether a label is dropped has nothing to do with which it is.
    expected = dropped.sum() / 10
    chi_square = ((labels[dropped].bincount(minlength=10) - expected) ** 2 / expected).sum()
    assert chi_square < 27.9  # 0.1 % point of chi-square with 9 degrees of freedom


@pytest.mark.parametrize(("probability", "left"), [(0.0, 1000), (1.0, 0)])
def test_no_label_or_every_label_is_dropped(probability: float, left: int):
    assert (dropped_labels(torch.arange(1000), 0, 0, probability) != -1).sum() == left
