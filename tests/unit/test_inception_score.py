"""Inception Score against libraries' figures and its extreme values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.evaluation.inception_score import inception_score
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


def of_all(probabilities: Float64) -> float:
    """The plain score of these images together."""
    return inception_score(np.split(probabilities, 2)).raw


class TestSplits:
    """Published ones: mean and deviation over splits of the images."""

    def test_torch_fidelity_and_guided_diffusion(self, probabilities: Float64):
        golden = GOLDEN["torch-fidelity splits=10 shuffle=False"]
        scores = [of_all(part) for part in np.split(probabilities, 10)]
        assert np.mean(scores) == pytest.approx(golden["inception_score_mean"], rel=1e-8)
        assert np.std(scores) == pytest.approx(golden["inception_score_std"], rel=1e-8)
        assert np.mean(scores) == pytest.approx(GOLDEN["guided-diffusion split_size=20"], rel=1e-8)


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
        truth = of_all(softmax(logits).reshape(-1, 8))
        estimates = [inception_score(np.split(rows, 10)) for rows in softmax(logits)]
        raw_bias = np.mean([estimate.raw for estimate in estimates]) - truth
        bias = np.mean([estimate.value for estimate in estimates]) - truth
        covered = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
        assert raw_bias < -0.02
        assert abs(bias) < abs(raw_bias) / 4
        assert 0.9 <= covered <= 0.99
