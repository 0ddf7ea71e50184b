"""Inception Score against libraries' figures and its extreme values."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.evaluation.inception_score import inception_score, inception_score_of_splits
from fleetstep.evaluation.moments import Float64
from lcg_inputs import gauss4

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))[
    "inception_score"
]


def softmax(logits: Float64) -> Float64:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def probabilities():
    return softmax(2 * gauss4((200, 10), 51))


class TestSplits:
    def test_torch_fidelity_and_guided_diffusion(self, probabilities: Float64):
        golden = GOLDEN["torch-fidelity splits=10 shuffle=False"]
        scores = inception_score_of_splits(probabilities, 10)
        assert scores.mean == pytest.approx(golden["inception_score_mean"], rel=1e-8)
        assert scores.deviation == pytest.approx(golden["inception_score_std"], rel=1e-8)
        assert scores.mean == pytest.approx(GOLDEN["guided-diffusion split_size=20"], rel=1e-8)

    def test_one_split(self, probabilities: Float64):
        scores = inception_score_of_splits(probabilities, 1)
        assert scores.mean == pytest.approx(GOLDEN["splits=1"]["inception_score_mean"], rel=1e-8)
        assert scores.deviation == 0

    def test_no_image_is_left_over(self, probabilities: Float64):
        """200 images in 7 splits: the parts of 28 and 29 are scored, each once."""
        edges = [0, 28, 57, 85, 114, 142, 171, 200]
        parts = [probabilities[a:b] for a, b in itertools.pairwise(edges)]
        expected = np.mean([inception_score_of_splits(part, 1).mean for part in parts])
        assert inception_score_of_splits(probabilities, 7).mean == pytest.approx(expected)

    @pytest.mark.parametrize("splits", [0, 201])
    def test_impossible_splits(self, probabilities: Float64, splits: int):
        with pytest.raises(ValueError, match=f"between 1 and the 200 images, got {splits}"):
            inception_score_of_splits(probabilities, splits)


class TestScore:
    def test_all_images_together(self, probabilities: Float64):
        for blocks in (2, 10, 20):
            raw = inception_score(np.split(probabilities, blocks)).raw
            assert raw == pytest.approx(GOLDEN["splits=1"]["inception_score_mean"], rel=1e-8)

    def test_sure_and_even_is_the_number_of_classes(self):
        """Probabilities of exactly 0 and 1, which have no logarithm."""
        sure = np.tile(np.eye(5, dtype=np.float32), (4, 1))
        estimate = inception_score(np.split(sure, 4))
        assert estimate.raw == pytest.approx(5, rel=1e-12)
        assert estimate.standard_error == pytest.approx(0, abs=1e-12)

    def test_images_that_all_look_alike_score_one(self, probabilities: Float64):
        alike = np.tile(probabilities[:1], (40, 1))
        assert inception_score(np.split(alike, 4)).value == pytest.approx(1, rel=1e-12)

    def test_the_jackknife_removes_the_bias_of_few_images(self):
        """200 repeats of n=100 against the score of all 20,000 images."""
        logits = 2 * rng.draw(3, "is-test", 0, 200, (100, 8)).astype(np.float64)
        truth = inception_score_of_splits(softmax(logits).reshape(-1, 8), 1).mean
        estimates = [inception_score(np.split(rows, 10)) for rows in softmax(logits)]
        raw_bias = np.mean([estimate.raw for estimate in estimates]) - truth
        bias = np.mean([estimate.value for estimate in estimates]) - truth
        covered = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
        assert raw_bias < -0.02
        assert abs(bias) < abs(raw_bias) / 4
        assert 0.9 <= covered <= 0.99
