"""Every metric of one set of generated images: from features in blocks to estimates.

Legend: b images of a block, D features, K classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.clip_score import clip_score
from fleetstep.evaluation.extrapolation import frechet_at_infinity
from fleetstep.evaluation.inception_score import inception_score
from fleetstep.evaluation.jackknife import Estimate, check_sizes, jackknife
from fleetstep.evaluation.kernel_distance import kernel_distance
from fleetstep.evaluation.manifolds import ManifoldKind, manifold_metrics, real_neighbours
from fleetstep.evaluation.metrics import frechet, standardised
from fleetstep.evaluation.moments import Float32, Moments
from fleetstep.evaluation.reference import Reference
from fleetstep.evaluation.spec import (
    NEEDS_PROBABILITIES,
    NEEDS_REFERENCE_FEATURES,
    PAIRED_IMAGES,
    MetricKind,
)


@dataclass(frozen=True, eq=False)
class Sample:
    """Generated images as metrics see them, cut into the jackknife's blocks of one size.

    Args:
        features: of each block, float32 [b, D].
        probabilities: of each block, float32 [b, K]; None where the extractor does not classify.
        texts: of each block, the embedding of the text that each image belongs to, float32 [b, D];
            None without texts.

    Raises:
        ValueError: blocks of different sizes, or of different numbers of images.
    """

    features: tuple[Float32, ...]
    probabilities: tuple[Float32, ...] | None = None
    texts: tuple[Float32, ...] | None = None

    def __post_init__(self) -> None:
        sizes = [len(block) for block in self.features]
        check_sizes(sizes)
        for name in ("probabilities", "texts"):
            parts = getattr(self, name)
            if parts is not None and [len(part) for part in parts] != sizes:
                raise ValueError(
                    f"{name} belong to images row by row: blocks of features have sizes {sizes}, "
                    f"of {name} {[len(part) for part in parts]}"
                )

    @property
    def n(self) -> int:
        """Images."""
        return sum(len(block) for block in self.features)

    @functools.cached_property
    def moments(self) -> tuple[Moments, ...]:
        """Exact moments of each block; their digest names the features."""
        return tuple(Moments.of(block) for block in self.features)

    def paired(self) -> tuple[Float32, ...]:
        """What metrics of all pairs of images look at."""
        return self.features if self.n <= PAIRED_IMAGES else self.first(PAIRED_IMAGES)

    def first(self, most: int) -> tuple[Float32, ...]:
        """The first images, at most `most`, cut anew into as many blocks of one size."""
        blocks = len(self.features)
        size = min(self.n, most) // blocks
        needed = math.ceil(size * blocks / len(self.features[0]))
        rows_nD = np.concatenate(self.features[:needed])[: size * blocks]
        return tuple(np.split(rows_nD, blocks))


def score(
    kinds: Sequence[MetricKind], sample: Sample, reference: Reference
) -> Mapping[MetricKind, Estimate]:
    """The metrics asked for, in that order; what they share is computed once.

    Of very many images some metrics see the first alone: `spec.images_scored`.

    Raises:
        ExtractorError: a metric needs what sample or reference do not have (`spec.unavailable`
            says so before anything runs), or features of the two differ in number.
    """
    _check(kinds, sample, reference)
    manifolds = _manifolds(kinds, sample, reference)
    found: dict[MetricKind, Estimate] = {kind: manifolds[kind] for kind in manifolds}
    for kind in kinds:
        if kind not in found:
            found[kind] = _one(kind, sample, reference)
    return {kind: found[kind] for kind in kinds}


def fewest_real(kinds: Iterable[MetricKind]) -> int:
    """Real images that a reference needs for these metrics."""
    asked = set(kinds)
    neighbours = real_neighbours(kind for kind in get_args(ManifoldKind) if kind in asked)
    # A covariance, and a pair, need two; a neighbourhood all of its neighbours.
    return max((2, *(k + 1 for k in neighbours)))


def _check(kinds: Sequence[MetricKind], sample: Sample, reference: Reference) -> None:
    made, real = sample.features[0].shape[1], len(reference.gaussian.mean_D)
    if made != real:
        raise ExtractorError(
            f"images that are compared have equally many features, got {made} of the generated "
            f"ones and {real} of the reference {reference.name}",
            "compute both with one extractor",
        )
    for kind in kinds:
        if kind in NEEDS_PROBABILITIES and sample.probabilities is None:
            raise ExtractorError(
                f"the metric {kind} needs class probabilities, which this extractor does not give",
                "use fs-rn20, or inception with resize legacy_tensorflow",
            )
        if kind == "clip_score" and sample.texts is None:
            raise ExtractorError(
                f"the metric {kind} needs the embedded text of every class",
                "give the extractor clip a file of `texts`",
            )
        if kind in NEEDS_REFERENCE_FEATURES:
            reference.features()


def _manifolds(
    kinds: Sequence[MetricKind], sample: Sample, reference: Reference
) -> Mapping[ManifoldKind, Estimate]:
    """Precision, recall, density and coverage as far as they are asked for, from one pass."""
    asked: list[ManifoldKind] = [kind for kind in get_args(ManifoldKind) if kind in kinds]
    if not asked:
        return {}
    radii = reference.radii(real_neighbours(asked))
    return manifold_metrics(asked, sample.paired(), reference.features(), radii)


def _one(kind: MetricKind, sample: Sample, reference: Reference) -> Estimate:
    match kind:
        case "fd":
            return jackknife(sample.moments, functools.partial(frechet, reference))
        case "fd_z":
            return jackknife(sample.moments, functools.partial(standardised, reference))
        case "fd_inf":
            return frechet_at_infinity(reference.gaussian, sample.features)
        case "kid":
            return kernel_distance(sample.paired(), reference.features(), reference.kernel_sum)
        case "is":
            assert sample.probabilities is not None  # _check
            return inception_score(sample.probabilities)
        case "clip_score":
            assert sample.texts is not None  # _check
            return clip_score(sample.features, sample.texts)
        case _:
            raise ValueError(f"{kind!r} is not a metric")
