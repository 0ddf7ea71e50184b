"""The packaged extractor: its weights are pinned, and an image's features are its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fleetstep import rng
from fleetstep.errors import ExtractorError
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.network_extractor import NetworkExtractor, UInt8
from fleetstep.evaluation.resnet20 import to_canvas
from fleetstep.evaluation.self_tests import known_images
from fleetstep.evaluation.spec import RN20_NAME, RN20_SHA256, Rn20Spec

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/extractor.json").read_text("utf-8"))
WEIGHTS = resources.files("fleetstep.evaluation") / "weights"


@pytest.fixture(scope="module")
def extractor() -> NetworkExtractor:
    return load_extractor(Rn20Spec())


def pictures(count: int, channels: int = 3, side: int = 32) -> UInt8:
    return (rng.uniform(0, "pictures", 0, count, (channels, side, side)) * 256).astype(np.uint8)


def test_the_packaged_weights_are_the_recorded_ones():
    content = (WEIGHTS / "fs-rn20.safetensors").read_bytes()
    record = json.loads((WEIGHTS / "fs-rn20.json").read_text("utf-8"))
    assert hashlib.sha256(content).hexdigest() == RN20_SHA256 == record["sha256"]
    assert record["sha256"] == GOLDEN["weights_sha256"]
    assert record["test_error_percent"] <= 12.5
    assert len(content) < 1_200_000


def test_golden_features(extractor: NetworkExtractor):
    """The four images of the golden: value = (7 row + 3 col + 50 channel + 40 i) mod 256."""
    features = extractor(known_images()).features
    assert features.shape == (4, extractor.dim) == (4, 112)
    np.testing.assert_allclose(features, GOLDEN["features"], rtol=1e-4, atol=1e-5)


def test_the_facts_of_the_extractor(extractor: NetworkExtractor):
    assert (extractor.name, extractor.digest) == (RN20_NAME, RN20_SHA256)
    assert extractor.batch >= 2


def test_features_do_not_depend_on_the_other_images(extractor: NetworkExtractor):
    """Bit for bit: alone, in any company, in any order, and in the padded last batch."""
    images = pictures(2 * extractor.batch + 30)
    features = extractor(images).features
    order = rng.permutation(0, "shuffle", 0, len(images))
    assert np.array_equal(extractor(images[order]).features, features[order])
    for rows in (slice(0, 1), slice(7, 9), slice(95, 105), slice(-1, None)):
        assert np.array_equal(extractor(images[rows]).features, features[rows])


def test_features_do_not_depend_on_the_batch_size(extractor: NetworkExtractor):
    """Bit-equal for 2 and more on most processors; another kernel may move the last bits."""
    images = pictures(60)
    features = extractor(images).features
    for batch in (2, 7, 50):
        again = replace(extractor, batch=batch)(images).features
        np.testing.assert_allclose(again, features, rtol=1e-4)


def test_no_images_have_no_features(extractor: NetworkExtractor):
    extracted = extractor(pictures(0))
    assert extracted.features.shape == (0, 112)
    assert extracted.probabilities is not None
    assert extracted.probabilities.shape == (0, 10)


def test_different_images_have_different_features(extractor: NetworkExtractor):
    images = pictures(1)
    brighter = images.copy()
    brighter[0, 0, 16, 16] ^= 0x80
    assert not np.array_equal(extractor(images).features, extractor(brighter).features)


def test_probabilities_are_the_softmax_of_the_last_stages_logits(extractor: NetworkExtractor):
    """By the weights' file itself: ten rows of 64 weights for the means of the last stage."""
    extracted = extractor(pictures(extractor.batch + 3))
    held = safetensors.numpy.load((WEIGHTS / "fs-rn20.safetensors").read_bytes())
    weight, bias = (held[f"linear.{name}"].astype(np.float64) for name in ("weight", "bias"))
    assert weight.shape == (10, 64)
    logits = extracted.features[:, 48:] @ weight.T + bias
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    assert extracted.probabilities is not None
    assert extracted.probabilities.dtype == np.float32
    np.testing.assert_allclose(extracted.probabilities, expected, rtol=1e-4, atol=1e-6)


class TestCanvas:
    def test_whole_factors(self):
        for side, factor in ((8, 4), (16, 2), (32, 1)):
            images = pictures(2, 3, side)
            canvas = to_canvas(images)
            assert np.array_equal(
                canvas, np.kron(images, np.ones((1, 1, factor, factor), np.uint8))
            )

    def test_28_is_padded_by_two_black_pixels(self):
        images = pictures(2, 1, 28)
        canvas = to_canvas(images)
        assert canvas.shape == (2, 3, 32, 32)
        for channel in range(3):
            assert np.array_equal(canvas[:, channel, 2:30, 2:30], images[:, 0])
        assert canvas.sum(dtype=int) == 3 * images.sum(dtype=int)

    def test_sides_that_are_not_equal(self):
        images = pictures(1, 3, 12)[:, :, :5]
        canvas = to_canvas(images)
        assert canvas.shape == (1, 3, 32, 32)
        assert canvas.sum(dtype=int) == 4 * images.sum(dtype=int)

    def test_larger_images_are_refused(self):
        with pytest.raises(ExtractorError, match=r"up to 32x32, got 64x64\n.*inception"):
            to_canvas(pictures(1, 3, 64))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 32, 32), np.float32),
        np.zeros((2, 2, 32, 32), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((2, 32, 32, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(extractor: NetworkExtractor, images: UInt8):
    with pytest.raises(ExtractorError, match=r"uint8 of shape \(n, 1 or 3"):
        extractor(images)


def test_changed_weights_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fleetstep.evaluation.features.RN20_SHA256", "0" * 64)
    with pytest.raises(ExtractorError, match=r"must have sha256 000000000000.*\n.*reinstall"):
        load_extractor(Rn20Spec())
