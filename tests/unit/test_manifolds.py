"""Precision, recall, density and coverage against libraries' figures, ties and collapse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fleetstep.errors import ExtractorError
from fleetstep.evaluation import pairwise
from fleetstep.evaluation.jackknife import Estimate
from fleetstep.evaluation.manifolds import NEIGHBOURS, ManifoldKind, manifold_metrics
from fleetstep.evaluation.moments import Float64, quantise
from fleetstep.evaluation.pairwise import neighbour_radii, squared_distances
from lcg_inputs import gauss4

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/evaluation.json").read_text("utf-8"))[
    "precision_recall"
]
KINDS: list[ManifoldKind] = ["precision", "recall", "density", "coverage"]


def measured(
    made: Float64, real: Float64, *, blocks: int = 10, k: int = 3
) -> dict[ManifoldKind, Estimate]:
    return manifold_metrics(
        KINDS,
        np.split(made, blocks),
        real,
        neighbour_radii(real, [k]),
        neighbours=dict.fromkeys(KINDS, k),
    )


def by_definition(made: Float64, real: Float64, k: int) -> dict[ManifoldKind, float]:
    """All pairs at once, for few rows, of the features as they are rounded."""

    def squared(a: Float64, b: Float64) -> Float64:
        return ((quantise(a)[:, None] - quantise(b)[None]) ** 2).sum(-1)

    across = squared(made, real)
    real_radius = np.sort(squared(real, real), 1)[:, k]
    made_radius = np.sort(squared(made, made), 1)[:, k]
    inside = across <= real_radius
    return {
        "precision": inside.any(1).mean(),
        "recall": (across <= made_radius[:, None]).any(0).mean(),
        "density": inside.sum(1).mean() / k,
        "coverage": inside.any(0).mean(),
    }


@pytest.fixture(scope="module")
def golden_inputs():
    return 1.3 * gauss4((50, 3), 987654321) + [1.2, 0, -0.4], gauss4((60, 3), 61)


class TestGolden:
    @pytest.mark.parametrize("library", list(GOLDEN)[1:3])
    def test_two_libraries(self, golden_inputs: tuple[Float64, Float64], library: str):
        found = measured(*golden_inputs)
        for kind, value in GOLDEN[library].items():
            # torch-fidelity's are float32.
            assert found[kind].raw == pytest.approx(value, rel=1e-7)

    def test_a_collapsed_generator_is_precise_and_recalls_little(self):
        """Never swapped, as one library had them."""
        made, real = 0.05 * gauss4((100, 3), 62), gauss4((100, 3), 61)
        found = measured(made, real)
        assert found["precision"].value == 1
        assert found["recall"].value < 0.1
        assert found["coverage"].value < 0.3

    def test_the_papers_neighbours_are_the_default(self):
        assert NEIGHBOURS == {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
        made, real = 1.1 * gauss4((60, 3), 63), gauss4((70, 3), 61)
        found = manifold_metrics(KINDS, np.split(made, 6), real, neighbour_radii(real, [3, 5]))
        three, five = by_definition(made, real, 3), by_definition(made, real, 5)
        assert found["precision"].raw == pytest.approx(three["precision"], rel=1e-12)
        assert found["recall"].raw == pytest.approx(three["recall"], rel=1e-12)
        assert found["density"].raw == pytest.approx(five["density"], rel=1e-12)
        assert found["coverage"].raw == pytest.approx(five["coverage"], rel=1e-12)


class TestTies:
    def test_an_image_on_the_edge_is_inside(self):
        """On a lattice, generated images at exactly the radius: all in with <=, none with <."""
        line = np.arange(40.0)
        real = np.stack([line, np.zeros(40)], 1)
        made = np.stack([line[:10] + 12, np.ones(10)], 1)
        assert measured(made, real, blocks=2, k=1)["precision"].value == 1
        assert measured(real, made, blocks=2, k=1)["recall"].value == 1
        open_balls = ((made[:, None] - real[None]) ** 2).sum(-1) < 1
        assert not open_balls.any()

    @pytest.mark.parametrize("offset", [0.0, 7.3])
    def test_copies_are_on_equal_edges_whatever_the_piece(
        self, offset: float, monkeypatch: pytest.MonkeyPatch
    ):
        """Ties of copied images are exact in whole numbers; products of floats break them."""
        real = gauss4((60, 5), 64) + offset
        expected = by_definition(real[::-1], real, 3)
        for piece in (2**21, 64):
            monkeypatch.setattr(pairwise, "PIECE", piece)
            found = measured(real[::-1], real)
            for kind in KINDS:
                assert found[kind].raw == pytest.approx(expected[kind], rel=1e-14)
        assert expected["precision"] == expected["recall"] == expected["coverage"] == 1


class TestLeavingBlocksOut:
    @pytest.mark.parametrize("scale", [0.4, 1.0, 1.6])
    @pytest.mark.parametrize("blocks", [4, 30])
    @pytest.mark.parametrize("is_tied", [False, True])
    def test_every_pseudo_value_is_that_of_the_images_left(
        self, scale: float, blocks: int, is_tied: bool
    ):
        """Also with blocks of two images, fewer than neighbours, and on a coarse lattice."""
        made, real = scale * gauss4((60, 4), 65) + 0.5, gauss4((70, 4), 66)
        if is_tied:
            made, real = np.rint(made), np.rint(real)
            real[:, 3] += 1
        found, whole = measured(made, real, blocks=blocks), by_definition(made, real, 3)
        left = [
            by_definition(np.concatenate(parts[:i] + parts[i + 1 :]), real, 3)
            for parts in [np.split(made, blocks)]
            for i in range(blocks)
        ]
        for kind in KINDS:
            pseudo = np.array([blocks * whole[kind] - (blocks - 1) * one[kind] for one in left])
            shift = whole[kind] - pseudo.mean()
            assert found[kind].pseudo_values == pytest.approx(pseudo + shift, abs=1e-11)
            assert found[kind].value == pytest.approx(whole[kind], rel=1e-12)

    def test_the_grown_balls_matter(self):
        """Without following them, leaving a block out could only lose recall."""
        made, real = 0.4 * gauss4((60, 4), 65) + 0.5, gauss4((70, 4), 66)
        whole = by_definition(made, real, 3)["recall"]
        left = [by_definition(np.delete(made, [2 * i, 2 * i + 1], 0), real, 3) for i in range(30)]
        assert max(one["recall"] for one in left) > whole


class TestDistances:
    def test_they_are_those_of_all_pairs(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(pairwise, "PIECE", 100)
        x, y = quantise(gauss4((23, 4), 67)), quantise(gauss4((11, 4), 68))
        pieces = list(squared_distances(x, y))
        assert len(pieces) == 3
        assert [rows for rows, _ in pieces] == [slice(0, 9), slice(9, 18), slice(18, 23)]
        together = np.concatenate([piece for _, piece in pieces])
        # Exact: whole numbers below 2^53.
        assert np.array_equal(together, ((x[:, None] - y[None]) ** 2).sum(-1))

    def test_radii_leave_out_the_row_itself_and_no_copy_of_it(self):
        rows = np.array([[0.0], [0.0], [1.0], [3.0]])
        radii = neighbour_radii(rows, [1, 2])
        assert (radii[1] / 2.0**32).tolist() == [0, 0, 1, 4]
        assert (radii[2] / 2.0**32).tolist() == [1, 1, 1, 9]


class TestRefusals:
    def test_too_few_images_for_the_neighbours(self):
        with pytest.raises(ValueError, match="5 neighbours need more than that many rows, got 5"):
            neighbour_radii(gauss4((5, 3), 61), [3, 5])
        real = gauss4((20, 3), 61)
        with pytest.raises(ValueError, match="3 neighbours need more than that many rows, got 3"):
            measured(gauss4((6, 3), 61), real, blocks=2)

    def test_features_that_are_not_finite(self):
        real = gauss4((20, 3), 61)
        made = real.copy()
        made[3, 1] = np.nan
        with pytest.raises(ExtractorError, match="finite"):
            measured(made, real)
