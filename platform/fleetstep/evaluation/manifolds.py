"""Precision, recall, density and coverage: whether generated images look real, and all real ones
are made.

Around every image lies a ball that reaches to its k-th nearest neighbour of the same set.

    precision  share of generated images in a ball of a real one (Kynkäänniemi et al. 2019, eq. 2)
    recall     share of real images in a ball of a generated one
    density    mean number of real balls a generated image is in, over k (Naeem et al. 2020, eq. 4)
    coverage   share of real images with a generated one in their ball (Naeem et al. 2020, eq. 5)

A generator that has collapsed onto good images has high precision and low recall. Balls are
closed: an image on the edge is inside, as Kynkäänniemi et al. define it (with open balls, copies
of tied images would be outside all of them). Precision and recall take k = 3, density and coverage
k = 5, the values of their papers.

The jackknife leaves blocks of generated images out. Precision and density are means over them. For
recall the balls of the remaining images grow when a neighbour is left out, which is followed
exactly. Recall and coverage mean something else with other numbers of images (balls shrink, and
more images cover more), so their values are the plain ones, with the jackknife's interval, which
for these two is too wide rather than too narrow (1.2 to 1.6 times, 8 features, 500 and 1,000
images).

Legend: n generated images, m real ones, b of a block, r rows of a piece, B blocks, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fleetstep.evaluation.jackknife import (
    CONFIDENCE,
    Estimate,
    check_sizes,
    jackknife_interval,
    mean_estimate,
)
from fleetstep.evaluation.moments import Float32, Float64, quantise
from fleetstep.evaluation.pairwise import hide_self, squared_distances

Bool = npt.NDArray[np.bool_]
ManifoldKind = Literal["precision", "recall", "density", "coverage"]

PRECISION_RECALL_NEIGHBOURS = 3
DENSITY_COVERAGE_NEIGHBOURS = 5
NEIGHBOURS: Final[Mapping[ManifoldKind, int]] = {
    "precision": PRECISION_RECALL_NEIGHBOURS,
    "recall": PRECISION_RECALL_NEIGHBOURS,
    "density": DENSITY_COVERAGE_NEIGHBOURS,
    "coverage": DENSITY_COVERAGE_NEIGHBOURS,
}
"""k of each metric."""


@dataclass(eq=False)
class _RealBalls:
    """Which generated images are in balls of real ones, filled piece by piece.

    Args:
        radius_m: squared radii of the real balls.
        hits: number of real balls each generated image is in, by block.
        inside_Bm: whether a ball holds a generated image of the block.
    """

    radius_m: Float64
    hits: list[list[npt.NDArray[np.intp]]]
    inside_Bm: Bool

    @classmethod
    def of(cls, radius_m: Float64, blocks: int) -> _RealBalls:
        return cls(radius_m, [[] for _ in range(blocks)], np.zeros((blocks, len(radius_m)), bool))

    def add(self, block: int, squared_rm: Float64) -> None:
        inside_rm = squared_rm <= self.radius_m
        self.hits[block].append(np.count_nonzero(inside_rm, axis=1))
        self.inside_Bm[block] |= inside_rm.any(0)

    def precision(self, confidence: float) -> Estimate:
        means = [float(np.mean(np.concatenate(parts) > 0)) for parts in self.hits]
        return mean_estimate(means, confidence=confidence)

    def density(self, neighbours: int, confidence: float) -> Estimate:
        means = [float(np.mean(np.concatenate(parts))) / neighbours for parts in self.hits]
        return mean_estimate(means, confidence=confidence)

    def coverage(self, confidence: float) -> Estimate:
        return _share_estimate(
            _any_other(self.inside_Bm), np.any(self.inside_Bm, axis=0), confidence
        )


@dataclass(eq=False)
class _GeneratedBalls:
    """Which real images are in balls of generated ones, filled piece by piece.

    Args:
        radius_n: squared radii with all generated images.
        without_Bn: squared radii when a block is left out; they are never smaller.
        inside_Bm: whether a real image is in a ball of the block, with all images.
        grown_Bm: whether it is in a ball that grew because the block was left out.
    """

    radius_n: Float64
    without_Bn: Float64
    inside_Bm: Bool
    grown_Bm: Bool = field(init=False)

    def __post_init__(self) -> None:
        self.grown_Bm = np.zeros_like(self.inside_Bm)

    @classmethod
    def of(cls, k_nD: Float64, blocks: int, neighbours: int, m: int) -> _GeneratedBalls:
        radius_n, without_Bn = _radii_without_blocks(k_nD, blocks, neighbours)
        return cls(radius_n, without_Bn, np.zeros((blocks, m), bool))

    def add(self, block: int, rows: slice, squared_rm: Float64) -> None:
        radius_r, without_Br = self.radius_n[rows], self.without_Bn[:, rows]
        self.inside_Bm[block] |= (squared_rm <= radius_r[:, None]).any(0)
        for left_out, without_r in enumerate(without_Br):
            grown = np.flatnonzero(without_r > radius_r)
            if left_out != block and grown.size:
                bound_g1 = without_r[grown, None]
                self.grown_Bm[left_out] |= (squared_rm[grown] <= bound_g1).any(0)

    def recall(self, confidence: float) -> Estimate:
        without_Bm = _any_other(self.inside_Bm) | self.grown_Bm
        return _share_estimate(without_Bm, np.any(self.inside_Bm, axis=0), confidence)


def manifold_metrics(
    kinds: Sequence[ManifoldKind],
    blocks: Sequence[Float32],
    reference_mD: Float32,
    radii: Mapping[int, Float64],
    *,
    neighbours: Mapping[ManifoldKind, int] = NEIGHBOURS,
    confidence: float = CONFIDENCE,
) -> dict[ManifoldKind, Estimate]:
    """The metrics asked for, from one pass over the distances of generated to real images.

    Args:
        kinds: which.
        blocks: features of generated images in two or more blocks of one size, [b, D].
        reference_mD: features of real images [m, D].
        radii: `neighbour_radii` of the real images, for every k of `real_neighbours`.
        neighbours: k of each metric.
        confidence: of the intervals.

    Raises:
        ExtractorError: a feature is not finite or too large.
        ValueError: blocks of different sizes, or fewer images than neighbours.
    """
    check_sizes([len(block) for block in blocks])
    count, m = len(blocks), len(reference_mD)
    k_nD, k_mD = quantise(np.concatenate(blocks)), quantise(reference_mD)
    real = {k: _RealBalls.of(radii[k], count) for k in real_neighbours(kinds, neighbours)}
    generated = (
        _GeneratedBalls.of(k_nD, count, neighbours["recall"], m) if "recall" in kinds else None
    )
    size = len(blocks[0])
    for block in range(count):
        first = block * size
        for rows, squared_rm in squared_distances(k_nD[first : first + size], k_mD):
            for balls in real.values():
                balls.add(block, squared_rm)
            if generated is not None:
                generated.add(block, slice(first + rows.start, first + rows.stop), squared_rm)
    return {kind: _estimate(kind, real, generated, neighbours[kind], confidence) for kind in kinds}


def real_neighbours(
    kinds: Iterable[ManifoldKind], neighbours: Mapping[ManifoldKind, int] = NEIGHBOURS
) -> list[int]:
    """Every k whose balls of real images these metrics look at; those of recall are of generated
    ones.
    """
    return sorted({neighbours[kind] for kind in kinds if kind != "recall"})


def _estimate(
    kind: ManifoldKind,
    real: Mapping[int, _RealBalls],
    generated: _GeneratedBalls | None,
    neighbours: int,
    confidence: float,
) -> Estimate:
    match kind:
        case "precision":
            return real[neighbours].precision(confidence)
        case "density":
            return real[neighbours].density(neighbours, confidence)
        case "coverage":
            return real[neighbours].coverage(confidence)
        case "recall":
            assert generated is not None
            return generated.recall(confidence)


def _radii_without_blocks(k_nD: Float64, blocks: int, neighbours: int) -> tuple[Float64, Float64]:
    """Squared radii [n] with all rows, and [B, n] with the rows of one block left out."""
    n = len(k_nD)
    size = n // blocks
    if n - size <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than that many rows, got {n - size}")
    kept = min(neighbours, size)
    near_nBk = np.empty((n, blocks, kept))
    for rows, squared_rn in squared_distances(k_nD, k_nD):
        hide_self(squared_rn, rows)
        by_block = squared_rn.reshape(-1, blocks, size)
        by_block.partition(kept - 1, axis=2)
        near_nBk[rows] = by_block[:, :, :kept]

    def radius(near: Float64) -> Float64:
        return np.asarray(np.partition(near.reshape(n, -1), neighbours - 1)[:, neighbours - 1])

    without = [radius(np.delete(near_nBk, block, axis=1)) for block in range(blocks)]
    return radius(near_nBk), np.stack(without)


def _any_other(inside_Bm: Bool) -> Bool:
    """Whether any block but this one is true."""
    return np.asarray(inside_Bm.sum(0) - inside_Bm > 0)


def _share_estimate(without_Bm: Bool, inside_m: Bool, confidence: float) -> Estimate:
    left_out = [float(share) for share in without_Bm.mean(1)]
    return jackknife_interval(float(inside_m.mean()), left_out, confidence=confidence)
