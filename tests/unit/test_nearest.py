"""Nearest real images of generated ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from feature_references import on_grid
from fleetstep.evaluation import pairwise
from fleetstep.evaluation.nearest import distinct, nearest
from lcg_inputs import gauss4


@pytest.mark.parametrize("piece", [2**21, 100])
def test_they_are_scikit_learns(piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairwise, "PIECE", piece)
    made, real = gauss4((30, 6), 1), gauss4((50, 6), 2)
    distances, index = NearestNeighbors(n_neighbors=4).fit(real).kneighbors(made)
    found = nearest(made, real, 4)
    assert np.array_equal(found.index_nK, index)
    assert found.distance_nK == pytest.approx(distances, abs=1e-4)


def test_a_copy_is_at_exactly_zero_and_far_nearer_than_the_next():
    real = 100 + gauss4((50, 6), 2)
    found = nearest(real[[7, 31]], real, 2)
    assert found.index_nK[:, 0].tolist() == [7, 31]
    assert found.distance_nK[:, 0].tolist() == [0, 0]
    assert (found.distance_nK[:, 1] > 0.5).all()


def test_of_equal_ones_the_first_is_named():
    real = np.tile([[3.0], [1.0], [-1.0], [1.0]], (100, 1))
    assert nearest(np.zeros((1, 1)), real, 5).index_nK.tolist() == [[1, 2, 3, 5, 6]]


def test_twins_are_one_image():
    rows = on_grid(gauss4((50, 6), 2))
    doubled = np.concatenate([rows, rows[[3, 3, 40]], rows[:5] + 2.0**-18])
    assert np.array_equal(distinct(doubled), rows)
    assert (nearest(rows, distinct(doubled), 2).distance_nK[:, 1] > 0).all()


@pytest.mark.parametrize("count", [0, 51])
def test_impossible_counts(count: int):
    with pytest.raises(ValueError, match=f"between 1 and the 50 reference images, got {count}"):
        nearest(gauss4((3, 6), 1), gauss4((50, 6), 2), count)
