"""The lowest of several FIDs and its name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fleetstep import rng
from fleetstep.errors import DataError
from fleetstep.evaluation.minimum import Minimum


def test_the_lowest_is_reported_beside_all():
    lowest = Minimum("fid50k.tf.min3", (2.1, 1.97, 2.04))
    assert lowest.minimum == 1.97
    assert lowest.as_dict() == {
        "metric": "fid50k.tf.min3",
        "values": [2.1, 1.97, 2.04],
        "minimum": 1.97,
    }


def test_its_optimism_is_the_one_that_is_stated():
    triples = rng.draw(0, "minimum-test", 0, 20_000, (3,)).astype(np.float64)
    lowest = [Minimum("fid50k.tf.min3", tuple(triple)).minimum for triple in triples]
    assert np.mean(lowest) == pytest.approx(-0.85, abs=0.02)


@pytest.mark.parametrize(
    ("metric", "values"),
    [("fid50k.tf.min3", (1.0, 2.0)), ("fid50k.tf", (1.0, 2.0)), ("fid50k.tf.min1", (1.0,))],
)
def test_the_name_says_how_many(metric: str, values: tuple[float, ...]):
    with pytest.raises(DataError, match="named by their number"):
        Minimum(metric, values)


def test_nothing_that_is_not_finite():
    with pytest.raises(DataError, match="finite"):
        Minimum("fid50k.tf.min2", (1.0, math.nan))
