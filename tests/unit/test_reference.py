"""References: which images keep features, scales, and what is missing where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from feature_references import reference_of
from fleetstep.errors import ExtractorError
from fleetstep.evaluation.kernel_distance import pair_sum
from fleetstep.evaluation.metrics import Gaussian
from fleetstep.evaluation.pairwise import neighbour_radii
from fleetstep.evaluation.reference import Reference, kept_ids
from lcg_inputs import gauss4


def test_kept_images_are_spread_evenly():
    assert kept_ids(10, 4) == [0, 2, 5, 7]
    assert kept_ids(7) == list(range(7))
    kept = kept_ids(50_000)
    assert (len(kept), kept[1], kept[-1]) == (10_000, 5, 49_995)
    assert set(np.diff(kept_ids(65_000))) == {6, 7}


def test_it_is_named_by_its_content():
    rows = gauss4((50, 3), 1)
    assert reference_of(rows).sha256 == reference_of(rows, "another name").sha256
    assert reference_of(rows).sha256 != reference_of(rows + 0.5).sha256


def test_scales_are_one_over_the_deviations():
    rows = gauss4((500, 3), 1) * [1.0, 4.0, 0.0]
    deviation = rows.std(0, ddof=1)
    assert reference_of(rows).scale_D == pytest.approx(
        [1 / deviation[0], 1 / deviation[1], 1.0], rel=1e-4
    )


def test_a_variance_that_rounding_made_negative_is_none():
    """As sums of squares in floating point leave it of a constant feature."""
    covariance = np.diag([1.0, 4.0, -1e-17])
    reference = Reference("cifar10.npz", Gaussian(np.zeros(3), covariance), "0" * 64, 0)
    assert reference.scale_D.tolist() == [1.0, 0.5, 1.0]


def test_what_does_not_depend_on_the_samples_is_kept():
    reference = reference_of(gauss4((50, 3), 1))
    assert reference.kernel_sum == pair_sum(reference.features())
    expected = neighbour_radii(reference.features(), [3, 5])
    found = reference.radii([3, 5])
    assert {k: radius.tolist() for k, radius in found.items()} == {
        k: radius.tolist() for k, radius in expected.items()
    }
    assert reference.radii([5])[5] is found[5]


def test_only_the_balls_that_are_asked_for_need_their_neighbours():
    reference = reference_of(gauss4((4, 3), 1))
    assert reference.radii([3]).keys() == {3}
    with pytest.raises(ValueError, match="5 neighbours need more"):
        reference.radii([5])


def test_statistics_alone_have_no_features():
    full = reference_of(gauss4((50, 3), 1))
    bare = Reference("cifar10-32x32.npz", full.gaussian, full.sha256, 0)
    with pytest.raises(
        ExtractorError, match=r"cifar10-32x32\.npz holds statistics only"
    ) as caught:
        bare.features()
    assert "packed data set" in caught.value.remedy
