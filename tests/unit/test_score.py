"""All metrics of a sample at once: what is asked for, what is missing, which images."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from contracts.metric_contract import sample_of
from feature_references import on_grid, reference_of
from fleetstep.errors import ExtractorError
from fleetstep.evaluation import score as scoring
from fleetstep.evaluation import spec
from fleetstep.evaluation.moments import Moments, total
from fleetstep.evaluation.reference import Reference
from fleetstep.evaluation.score import Sample, fewest_real, score
from fleetstep.evaluation.spec import MetricKind, images_scored
from lcg_inputs import gauss4


@pytest.fixture(scope="module")
def real():
    return reference_of(on_grid(gauss4((150, 6), 76)))


@pytest.fixture(scope="module")
def made():
    return sample_of(1.125 * gauss4((120, 6), 77) + 0.25)


class TestScore:
    def test_what_is_asked_for_in_that_order(self, made: Sample, real: Reference):
        kinds: list[MetricKind] = list(reversed(get_args(MetricKind)))
        found = score(kinds, made, real)
        assert list(found) == kinds
        assert all(estimate.blocks == 10 for estimate in found.values())
        for kind in kinds:
            assert score([kind], made, real) == {kind: found[kind]}

    def test_moments_of_blocks_name_the_features(self, made: Sample):
        assert made.n == 120
        assert total(list(made.moments)) == Moments.of(np.concatenate(made.features))

    def test_an_unknown_metric(self, made: Sample, real: Reference):
        with pytest.raises(ValueError, match="'fid' is not a metric"):
            score(["fid"], made, real)  # type: ignore[list-item]


class TestManyImages:
    def test_the_first_images_cut_anew(
        self, made: Sample, real: Reference, monkeypatch: pytest.MonkeyPatch
    ):
        for module in (scoring, spec):
            monkeypatch.setattr(module, "PAIRED_IMAGES", 54)
        kinds: list[MetricKind] = ["kid", "precision", "recall", "density", "coverage"]
        few = tuple(np.split(np.concatenate(made.features)[:50], 10))
        assert [len(block) for block in made.first(54)] == [5] * 10
        assert score(kinds, made, real) == score(kinds, Sample(few), real)
        assert {images_scored(kind, 120, 10) for kind in kinds} == {50}
        # Other metrics see all images.
        assert images_scored("fd", 120, 10) == 120
        assert score(["fd"], made, real) != score(["fd"], Sample(few), real)


@pytest.mark.parametrize(
    ("kinds", "images"),
    [
        (["fd"], 2),
        (["kid", "recall"], 2),
        (["precision"], 4),
        (["density"], 6),
        (["fd", "coverage", "precision"], 6),
    ],
)
def test_the_fewest_real_images_are_enough_and_one_less_is_not(
    kinds: list[MetricKind], images: int, made: Sample
):
    assert fewest_real(kinds) == images
    assert score(kinds, made, reference_of(on_grid(gauss4((images, 6), 78)))).keys() == set(kinds)
    if "kid" not in kinds or images > 2:
        with pytest.raises(ValueError, match=r"two|neighbours need"):
            score(kinds, made, reference_of(on_grid(gauss4((images - 1, 6), 78))))


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "missing", "words"),
        [
            ("is", "probabilities", "is needs class probabilities"),
            ("clip_score", "texts", "clip_score needs the embedded text"),
        ],
    )
    def test_what_the_sample_does_not_have(
        self, made: Sample, real: Reference, kind: MetricKind, missing: str, words: str
    ):
        with pytest.raises(ExtractorError, match=words):
            score(["fd", kind], replace(made, **{missing: None}), real)

    @pytest.mark.parametrize("kind", ["kid", "precision", "recall", "density", "coverage"])
    def test_statistics_without_features(self, made: Sample, real: Reference, kind: MetricKind):
        bare = Reference("stats.npz", real.gaussian, real.sha256, real.n)
        with pytest.raises(ExtractorError, match=r"stats\.npz holds statistics only"):
            score([kind], made, bare)
        assert score(["fd", "fd_z", "fd_inf", "is"], made, bare)["fd"].blocks == 10

    def test_features_of_another_extractor(self, made: Sample):
        other = reference_of(gauss4((50, 5), 1), "other")
        with pytest.raises(ExtractorError, match="6 of the generated ones and 5 of the reference"):
            score(["fd"], made, other)

    def test_blocks_that_do_not_belong_together(self, made: Sample):
        with pytest.raises(ValueError, match="one size"):
            Sample((*made.features[:2], made.features[2][:5]))
        with pytest.raises(ValueError, match="row by row"):
            replace(made, texts=made.texts[:9] if made.texts else None)
