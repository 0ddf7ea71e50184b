"""Whether extractors and distances give on this machine what is known of them.

Legend: n images, C channels, H W pixels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from fleetstep import rng
from fleetstep.data.sources import digits
from fleetstep.evaluation.features import Extractor
from fleetstep.evaluation.metrics import Gaussian, gaussian_distance
from fleetstep.evaluation.moments import Moments
from fleetstep.evaluation.network_extractor import Extracted, Float32, UInt8

KNOWN_COLUMNS: Final[tuple[int, ...]] = (0, 16, 48, 111)
"""The first feature of each stage of fs-rn20, and the last."""

_KNOWN = np.array(
    [
        [1.5939573, 0.414155245, 0.929889441, 0.42259869],
        [1.55656505, 0.447805792, 1.06006026, 0.559558511],
        [1.52773106, 0.457548887, 1.40562963, 0.459846437],
        [1.50678563, 0.454904199, 1.48226762, 0.559767187],
    ],
    np.float32,
)
KNOWN_TOLERANCE = 1e-4
"""Relative: between processors and builds of torch they differ by 1e-5."""

HALF = 400
"""Digits in each half."""

HALVES_EXPECTED: Final[tuple[float, float]] = (0.020, 0.072)
"""Between two halves of 400 digits, in features of fs-rn20: 2,000 random splits gave a mean of
0.034 (standard deviation 0.007), 0.022 at least and 0.068 at most. All of it is the bias of few
images; a blur or noise that is hardly seen adds more."""

IDENTITY_LIMIT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Fréchet distances of real images.

    Args:
        halves: of one half of them from the other.
        identity: of all of them from themselves.
    """

    halves: float
    identity: float

    @property
    def sound(self) -> bool:
        """Whether both are what they must be."""
        low, high = HALVES_EXPECTED
        return low <= self.halves <= high and abs(self.identity) <= IDENTITY_LIMIT


def known_images() -> UInt8:
    """Four RGB images of 32x32: (7 row + 3 column + 50 channel + 40 i) mod 256."""
    i, channel, row, column = np.ogrid[:4, :3, :32, :32]
    return np.asarray((7 * row + 3 * column + 50 * channel + 40 * i) % 256, np.uint8)


def known_answer_error(extractor: Extractor) -> float:
    """Largest relative error of fs-rn20's features of `known_images`."""
    features_nD = extractor(known_images()).features[:, KNOWN_COLUMNS]
    return float(np.abs(features_nD / _KNOWN - 1).max())


def real_floor(extractor: Extractor) -> Floor:
    """Distances between real digits in features of fs-rn20."""
    source = digits()
    chosen = rng.permutation(0, "self-test", 0, len(source))[: 2 * HALF]
    images_nHWC = np.stack([source.image(int(index)) for index in chosen])
    features_nD = extractor(images_nHWC.transpose(0, 3, 1, 2)).features
    everything = _gaussian(features_nD)
    return Floor(
        halves=gaussian_distance(_gaussian(features_nD[:HALF]), _gaussian(features_nD[HALF:])),
        identity=gaussian_distance(everything, everything),
    )


def _gaussian(features_nD: Float32) -> Gaussian:
    return Gaussian.of(Moments.of(features_nD))


def fault_of(extractor: Extractor) -> str:
    """What is wrong with a network whose answers nobody has recorded; "" if nothing is seen.

    Features of `known_images` have their shape, are finite, the same twice, not the same for two
    images, and do not depend on the images beside them. Probabilities, if there are any, sum to
    one.
    """
    images = known_images()
    first, second, turned = extractor(images), extractor(images), extractor(images[::-1].copy())
    features_nD = first.features
    if features_nD.shape != (len(images), extractor.dim):
        return f"its features have shape {features_nD.shape}"
    if not np.isfinite(features_nD).all():
        return "its features are not finite"
    if not np.array_equal(features_nD, second.features):
        return "the same images have other features the second time"
    if len(np.unique(features_nD, axis=0)) < len(images):
        return "different images have equal features"
    if not np.allclose(features_nD, turned.features[::-1], rtol=1e-4, atol=1e-5):
        return "features depend on the order of the images"
    return _fault_of_probabilities(first)


def _fault_of_probabilities(extracted: Extracted) -> str:
    if extracted.probabilities is None:
        return ""
    sums_n = extracted.probabilities.sum(1)
    return "" if np.allclose(sums_n, 1, atol=1e-3) else "its probabilities do not sum to one"
