"""Pictures of a sweep: axes through zero, same-seed grids, neighbours and histograms."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fleetstep.reporting import svg
from fleetstep.reporting.axes import through_zero
from fleetstep.reporting.charts import Axis, Panel, Point, Series
from fleetstep.reporting.neighbours import (
    NeighbourCheck,
    distances_figure,
    draw_neighbours,
    memory_text,
)
from fleetstep.reporting.seed_grids import SeedGrid, draw_seeds, spread
from fleetstep.reporting.shipping import choose
from fleetstep.reporting.sweep_figures import curves_figure, pareto_figure
from fleetstep.reporting.sweep_page import SweepReport
from fleetstep.reporting.sweep_pictures import write_sweep_pictures
from fleetstep.reporting.sweep_record import Contest, SweepRecord, contests
from synthetic_sweep import cell, demo_sweep, record, sweep


def only_contest(content: dict[str, Any]) -> Contest:
    (contest,) = contests(SweepRecord.from_dict(content))
    return contest


def check(**parts: Any) -> NeighbourCheck:
    facts: dict[str, Any] = {
        "cell": "heun at 9 calls",
        "images_nCHW": np.zeros((0, 1, 8, 8), np.uint8),
        "neighbours_nKCHW": np.zeros((0, 3, 1, 8, 8), np.uint8),
        "distance_nK": np.zeros((0, 3)),
        "generated_n": np.linspace(0.5, 2, 1000),
        "real_m": np.linspace(0.5, 2, 1000),
        "features": "x",
    }
    return NeighbourCheck(**{**facts, **parts})


class TestAxisThroughZero:
    def test_order_and_zero_are_kept(self):
        axis = through_zero("", [-0.3, 0.0, 0.1, 150.0], 0.1)
        places = [axis.place(v) for v in (-0.3, -0.05, 0.0, 0.05, 1.0, 150.0)]

        assert places == sorted(places)
        assert 0 < places[0] < places[-1] < 1
        assert [text for value, text in axis.ticks if value == 0] == ["0"]

    def test_it_is_linear_about_zero_and_logarithmic_far_from_it(self):
        axis = through_zero("", [-0.01, 1000.0], 1.0)
        zero, hundredth, fiftieth = (axis.place(v) for v in (0, 0.01, 0.02))
        assert fiftieth - zero == pytest.approx(2 * (hundredth - zero), rel=1e-3)
        steps = [axis.place(10.0**k) for k in (1, 2, 3)]
        assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0], rel=1e-2)

    @pytest.mark.parametrize("values", [[-5e-4, 0.66], [0.0, 1e6], [-3.0, 40.0], [math.nan, -1.0]])
    def test_ticks_lie_inside_and_do_not_touch(self, values: list[float]):
        axis = through_zero("", values, 0.004)

        assert len(axis.ticks) >= 2
        assert all(axis.low <= tick <= axis.high for tick, _ in axis.ticks)
        places = [axis.place(tick) for tick, _ in axis.ticks]
        assert min(b - a for a, b in pairwise(places)) > 0.08


class TestFigures:
    def test_one_panel_a_network_one_line_a_solver(self):
        figure = curves_figure(only_contest(demo_sweep()))

        assert [panel.title for panel in figure.panels] == ["edm", "edm-fdm"]
        for panel in figure.panels:
            assert len(panel.series) == 6
            assert len({(series.slot, series.run) for series in panel.series}) == 6
            assert all(series.slot > 0 for series in panel.series)
            assert all(point.low is not None for s in panel.series for point in s.points)
        assert len({(panel.x, panel.y) for panel in figure.panels}) == 1

    def test_the_best_at_each_number_of_calls_is_filled(self):
        contest = only_contest(demo_sweep())
        for panel in curves_figure(contest).panels:
            mine = [one.score for one in contest.candidates if one.network == panel.title]
            filled = [p.y for series in panel.series for p in series.points if not p.hollow]
            best = [min(s.value for s in mine if s.nfe == nfe) for nfe in {s.nfe for s in mine}]
            assert sorted(filled) == sorted(best)

    def test_of_scores_that_rise_the_highest_is_filled(self):
        cells = [
            cell(str(v), record(solver=f"s{v}", kind="recall", blocks=[v, v + 0.01, v - 0.01]))
            for v in (0.2, 0.6)
        ]
        contest = only_contest(sweep(*cells))
        (panel,) = curves_figure(contest).panels
        assert {series.run: series.points[0].hollow for series in panel.series} == {
            "s0.2": True,
            "s0.6": False,
        }
        assert "higher is better" in panel.y.title

    def test_marks_of_the_front_tell_front_tied_and_beaten_apart(self):
        def at(solver: str, nfe: float, value: float, wobble: float) -> dict[str, Any]:
            blocks = value + wobble * np.array([1.0, -1, 1, -1])
            return cell(solver, record(solver=solver, nfe=nfe, blocks=blocks))

        contest = only_contest(
            sweep(at("a", 5, 1, 0), at("b", 5, 1.1, 0.5), at("c", 9, 3, 0), at("d", 9, 99, 0))
        )
        (panel,) = pareto_figure(contest, choose(contest)).panels
        front, cells = panel.series
        assert [(p.x, p.y) for p in front.points] == [(5, 1)]
        assert not front.marks
        looks = {p.y: (p.hollow, p.faint, p.label) for p in cells.points}
        assert looks == {1: (False, False, "a"), 1.1: (True, False, ""), 3: (False, True, "")}

    def test_the_front_names_a_solver_where_it_changes(self):
        points = (("a", 3, 9), ("b(order=2)", 7, 3), ("b(order=2)", 9, 2), ("a", 20, 1))
        cells = [
            cell(f"{nfe}", record(solver=solver, nfe=nfe, blocks=[value, value + 0.01]))
            for solver, nfe, value in points
        ]
        contest = only_contest(sweep(*cells))
        (panel,) = pareto_figure(contest, choose(contest)).panels
        marks = sorted(panel.series[1].points, key=lambda point: point.x)
        assert [point.label for point in marks] == ["a", "b", "", "a"]

    def test_the_words_of_a_rule_stand_on_what_is_drawn(self):
        (panel,) = distances_figure(check()).panels
        drawn = svg.draw(panel, 400)
        assert drawn.index("closest 1 % of real") > drawn.rindex("<polyline")

    def test_values_below_zero_are_shown_beside_large_ones(self):
        content = demo_sweep({"edm": -0.02, "edm-fdm": -0.05}.__getitem__)
        y = curves_figure(only_contest(content)).panels[0].y

        assert y.linear_to > 0
        assert y.low < -0.05
        assert y.place(100) - y.place(10) > 0.05

    def test_a_mark_beside_the_left_edge_has_its_words_inside(self):
        axis = Axis("", 0, 1, ())
        points = (Point(0.0, 0.5, label="dpmpp"), Point(1.0, 0.5, label="dpmpp"))
        drawn = svg.draw(Panel("", axis, axis, (Series("", 1, points),)), 400)

        assert drawn.count('class="point-label"') == 1
        assert drawn.count('class="point-label end"') == 1


class TestSeedGrids:
    def test_rows_are_cells_and_columns_are_seeds(self):
        shades = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
        rows = tuple(
            (name, np.broadcast_to(shade[:, None, None, None], (3, 1, 28, 28)).copy())
            for name, shade in zip(("euler", "heun"), shades, strict=True)
        )

        sheet = np.asarray(draw_seeds(SeedGrid("edm", "9", rows)).convert("L"))

        side = 2 * 28
        for row in range(2):
            for column in range(3):
                y = 13 + 8 + row * (side + 8) + side // 2
                x = 170 + column * (side + 2) + side // 2
                assert sheet[y, x] == shades[row, column]

    def test_rows_of_other_seeds_are_refused(self):
        rows = (("a", np.zeros((2, 1, 8, 8), np.uint8)), ("b", np.zeros((3, 1, 8, 8), np.uint8)))
        with pytest.raises(ValueError, match="the same seeds"):
            draw_seeds(SeedGrid("edm", "9", rows))

    def test_a_spread_keeps_both_ends(self):
        assert spread(list("abcdefgh"), 3) == ["a", "d", "h"]
        assert spread(["a", "b"], 3) == ["a", "b"]


class TestNeighbours:
    def test_the_share_is_counted_below_the_one_percent_quantile(self):
        same = check()
        assert same.threshold == pytest.approx(0.515, rel=1e-3)
        assert same.close == 10
        assert "(1.0 %)" in memory_text(same)
        assert "no sign of copying" in memory_text(same)

    def test_copies_are_called_out(self):
        copied = np.concatenate([np.zeros(40), np.linspace(0.6, 2, 960)])
        text = memory_text(check(generated_n=copied))

        assert "40 of 1,000 images of heun at 9 calls (4.0 %)" in text
        assert "look for copies" in text

    @pytest.mark.parametrize("twins", [0, 5, 20, 900])
    def test_a_memoriser_is_called_out_whatever_twins_the_real_images_have(self, twins: int):
        real = np.concatenate([np.zeros(twins), np.linspace(0.5, 2, 1000 - twins)])
        assert "look for copies" in memory_text(check(generated_n=np.zeros(2000), real_m=real))
        assert "no sign" in memory_text(check(generated_n=np.linspace(0.6, 2, 2000), real_m=real))

    def test_histograms_hold_all_images_in_percent(self):
        (panel,) = distances_figure(check()).panels
        for series in panel.series:
            bars = series.points[::2]
            assert sum(point.y for point in bars) == pytest.approx(100, abs=1.0)
        assert panel.rules[0].value == check().threshold

    def test_each_image_stands_framed_before_its_neighbours(self):
        images = np.full((2, 1, 56, 56), 10, np.uint8)
        neighbours = np.stack([np.full((2, 1, 56, 56), v, np.uint8) for v in (60, 110, 160)], 1)
        picture = draw_neighbours(
            check(images_nCHW=images, neighbours_nKCHW=neighbours, distance_nK=np.ones((2, 3)))
        )
        row = np.asarray(picture.convert("RGB"))[3 + 28]

        assert tuple(row[0]) == (0, 114, 178)
        assert [int(row[k * 62 + 31, 0]) for k in range(4)] == [10, 60, 110, 160]

    def test_without_images_there_is_no_picture(self):
        with pytest.raises(ValueError, match="at least one generated image"):
            draw_neighbours(check())


def test_names_are_shown_as_they_are(tmp_path: Path):
    """Neither mathematics nor a file name that no file system takes is made of them."""
    name = r"cost $x_$ and $\foo$ " + "x" * 400
    rows = (("heun", np.zeros((8, 1, 8, 8), np.uint8)),)
    report = SweepReport(
        record=SweepRecord.from_dict(sweep(cell("a", record(name, reference=name)))),
        grids=(SeedGrid(name, "9", rows),),
        checks=(check(cell=name, features="$x_$"),),
    )
    paths = write_sweep_pictures(report, tmp_path)
    assert len(paths) == 4
    assert all(path.stat().st_size > 1000 and len(path.name) < 100 for path in paths)


def test_every_picture_is_a_file_and_their_names_are_safe(tmp_path: Path):
    rows = (("heun", np.zeros((8, 1, 8, 8), np.uint8)),)
    report = SweepReport(
        record=SweepRecord.from_dict(demo_sweep()),
        grids=(SeedGrid("../edm at 3 kimg (x)", "9", rows), SeedGrid("b", "adaptive", rows)),
        checks=(check(),),
    )

    paths = write_sweep_pictures(report, tmp_path)

    assert [path.name for path in paths] == [
        "pareto.png",
        "curves.png",
        "seeds01-edm-at-3-kimg-x-9.png",
        "seeds02-b-adaptive.png",
        "distances.png",
    ]
    assert {path.parent for path in paths} == {tmp_path}
    for path in paths:
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).min() < 120
