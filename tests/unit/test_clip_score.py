"""CLIP score: its formula, its sign, and what has no direction."""

from __future__ import annotations

import numpy as np
import pytest

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.clip_score import clip_score
from lcg_inputs import gauss4


def test_the_formula_image_by_image():
    images, texts = gauss4((40, 6), 81), gauss4((40, 6), 82)
    values = [
        max(100 * (x @ y) / np.sqrt((x @ x) * (y @ y)), 0)
        for x, y in zip(images, texts, strict=True)
    ]
    estimate = clip_score(np.split(images, 4), np.split(texts, 4))
    assert estimate.raw == pytest.approx(np.mean(values), rel=1e-12)
    assert estimate.pseudo_values == pytest.approx(np.mean(np.reshape(values, (4, 10)), 1))
    assert 0 < estimate.raw < 100


def test_length_does_not_matter_and_opposite_counts_nothing():
    images = gauss4((40, 6), 81).astype(np.float32)
    same = clip_score(np.split(images, 4), np.split(3 * images, 4))
    assert same.value == pytest.approx(100, rel=1e-12)
    opposite = clip_score(np.split(images, 4), np.split(-images, 4))
    assert opposite.value == 0


def test_texts_of_another_model_are_refused():
    with pytest.raises(ExtractorError, match=r"one shape, got \(5, 6\) and \(5, 4\)"):
        clip_score([np.ones((5, 6))] * 2, [np.ones((5, 4))] * 2)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_what_has_no_direction_is_refused(bad: float):
    images, texts = np.ones((4, 6)), np.ones((4, 6))
    texts[2] = bad
    with pytest.raises(ExtractorError, match="finite and not zero"):
        clip_score(np.split(images, 2), np.split(texts, 2))
