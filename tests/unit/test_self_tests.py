"""The self-tests find what they are for: each kind of broken extractor fails one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.network_extractor import Extracted, Float32, NetworkExtractor, UInt8
from fleetstep.evaluation.self_tests import (
    HALVES_EXPECTED,
    KNOWN_COLUMNS,
    KNOWN_TOLERANCE,
    fault_of,
    known_answer_error,
    known_images,
    real_floor,
)
from fleetstep.evaluation.spec import Rn20Spec

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/extractor.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def own() -> NetworkExtractor:
    return load_extractor(Rn20Spec())


@dataclass(frozen=True)
class Scripted:
    """An extractor whose answers are made from those of another one."""

    inner: NetworkExtractor
    change: Callable[[int, Extracted], Extracted]
    calls: list[int] = field(default_factory=list)
    name: str = "scripted"
    digest: str = "0" * 64
    dim: int = 112
    preprocess: str = ""

    def __call__(self, images_nCHW: UInt8) -> Extracted:
        self.calls.append(len(images_nCHW))
        return self.change(len(self.calls), self.inner(images_nCHW))


def of_features(change: Callable[[Float32], Float32]) -> Callable[[int, Extracted], Extracted]:
    return lambda _, extracted: replace(extracted, features=change(extracted.features))


class TestKnownAnswer:
    def test_the_packaged_extractor_gives_it(self, own: NetworkExtractor):
        assert known_answer_error(own) < KNOWN_TOLERANCE

    def test_it_is_the_recorded_one(self, own: NetworkExtractor):
        """The numbers in the product against the golden file: all 112 of each image there."""
        golden = np.array(GOLDEN["features"], np.float32)

        def recorded(_: int, extracted: Extracted) -> Extracted:
            return replace(extracted, features=golden)

        assert known_answer_error(Scripted(own, recorded)) < 1e-7
        assert golden.shape[1] > max(KNOWN_COLUMNS)

    def test_pixels_in_another_range_are_found(self, own: NetworkExtractor):
        darker = replace(own, prepare=lambda images: own.prepare(images // 2))
        assert known_answer_error(darker) > 100 * KNOWN_TOLERANCE


class TestFloor:
    def test_real_images_are_as_far_apart_as_their_number_makes_them(self, own: NetworkExtractor):
        floor = real_floor(own)
        assert floor.sound
        assert floor.halves == pytest.approx(0.0326, abs=2e-4)
        assert abs(floor.identity) < 1e-7

    @pytest.mark.parametrize(
        "change",
        [
            of_features(lambda f: f * np.float32(1.6)),
            of_features(lambda f: f * 0),
            of_features(lambda f: np.sort(f, 0)),
            of_features(lambda f: np.round(f)),
        ],
        ids=["scale", "nothing", "order", "coarse"],
    )
    def test_broken_features_are_found(
        self, change: Callable[[int, Extracted], Extracted], own: NetworkExtractor
    ):
        assert not real_floor(Scripted(own, change)).sound

    def test_defects_that_are_hardly_seen_leave_the_range(self, own: NetworkExtractor):
        """Half of the digits one grey level in twenty noisier: the range has teeth."""
        noise = np.random.Generator(np.random.PCG64(0)).normal(0, 13, (800, 1, 8, 8))

        def spoiled(images: UInt8) -> torch.Tensor:
            spoiled.first += len(images)  # type: ignore[attr-defined]
            rows = slice(spoiled.first - len(images), spoiled.first)  # type: ignore[attr-defined]
            if rows.start < 400:
                return own.prepare(images)
            return own.prepare(np.clip(images + noise[rows], 0, 255).astype(np.uint8))

        spoiled.first = 0  # type: ignore[attr-defined]
        assert real_floor(replace(own, prepare=spoiled)).halves > HALVES_EXPECTED[1]


class TestUnknownNetwork:
    def test_a_sound_one_has_no_fault(self, own: NetworkExtractor):
        assert fault_of(own) == ""

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (of_features(lambda f: f[:, :7]), "its features have shape (4, 7)"),
            (of_features(lambda f: f + np.float32(np.nan)), "its features are not finite"),
            (
                lambda call, e: replace(e, features=e.features + np.float32(call)),
                "the same images have other features the second time",
            ),
            (of_features(lambda f: f.mean(0, keepdims=True).repeat(4, 0)), "equal features"),
            (
                of_features(lambda f: f * np.arange(1, 5, dtype=np.float32)[:, None]),
                "features depend on the order of the images",
            ),
            (
                lambda _, e: replace(e, probabilities=e.probabilities * np.float32(2)),
                "its probabilities do not sum to one",
            ),
        ],
    )
    def test_each_fault_is_named(
        self, change: Callable[[int, Extracted], Extracted], fault: str, own: NetworkExtractor
    ):
        assert fault in fault_of(Scripted(own, change))


def test_known_images_are_the_goldens_rule():
    images = known_images()
    assert (images.dtype, images.shape) == (np.uint8, (4, 3, 32, 32))
    assert images[3, 2, 31, 30] == (7 * 31 + 3 * 30 + 50 * 2 + 40 * 3) % 256
