import io
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from fleetstep.reporting.axes import at_values, fit, linear_ticks, log_ticks
from fleetstep.reporting.comparison import Comparison, compare
from fleetstep.reporting.difference_figures import bins_figure, difference_figure
from fleetstep.reporting.figures import loss_figure, sweep_figure
from fleetstep.reporting.grids import side_by_side, tile, write_grid
from fleetstep.reporting.palette import colour_of, marker_of
from fleetstep.reporting.plots import write_plots
from synthetic_records import demo_records, score


@pytest.fixture(scope="module")
def comparison():
    return compare(demo_records(), "edm")


class TestPlots:
    def test_every_figure_is_a_picture_and_no_setting_changes(
        self, comparison: Comparison, tmp_path: Path
    ):
        before = dict(mpl.rcParams)

        paths = write_plots(comparison, tmp_path)

        assert [path.name for path in paths] == [
            "loss.png",
            "speedup.png",
            "nfe.png",
            "differences.png",
            "bins.png",
        ]
        assert dict(mpl.rcParams) == before
        for path in paths:
            with Image.open(path) as picture:
                assert picture.width > 800
                shades = np.asarray(picture.convert("L"))
                assert shades[0, 0] == 255
                assert shades.min() < 60

    def test_the_users_style_does_not_change_a_plot(self, comparison: Comparison, tmp_path: Path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        two = replace(comparison, sweeps=())
        (plain, *_) = write_plots(two, tmp_path / "a")
        with mpl.rc_context({"axes.facecolor": "black", "font.size": 30}):
            (styled, *_) = write_plots(two, tmp_path / "b")

        assert plain.read_bytes() == styled.read_bytes()

    def test_hollow_means_that_the_interval_includes_zero(self, comparison: Comparison):
        figure = difference_figure(comparison)
        assert figure is not None

        for panel in figure.panels:
            for point in panel.series[0].points:
                assert point.hollow == (point.low < 0 < point.high)

    def test_the_loss_is_drawn_in_the_units_its_axes_name(self, comparison: Comparison):
        figure = loss_figure(comparison)
        assert figure is not None
        by_images, by_wall = figure.panels

        assert by_images.x.title == "images seen, kimg"
        assert by_images.series[0].points[-1].x == 200.0
        assert by_wall.x.title == "time since the run started, min"
        assert by_wall.series[0].points[-1].x == pytest.approx((3 + 200_000 / 760) / 60)

    def test_the_front_falls_and_all_panels_share_their_axes(self, comparison: Comparison):
        figure = sweep_figure(comparison)
        assert figure is not None
        best, *solvers = figure.panels

        assert [panel.title for panel in solvers] == ["dpmpp_2m", "euler", "heun", "ipndm"]
        assert len({(panel.x, panel.y) for panel in figure.panels}) == 1
        for series in best.series:
            values = [point.y for point in series.points]
            assert values == sorted(values, reverse=True)

    def test_a_value_below_zero_is_shown_and_not_clipped(self):
        runs = [
            replace(run, scores=(score(run.name, pseudo_values=values),))
            for run, values in zip(
                demo_records(), [(-0.2, 0.1, -0.3), (2.0, 2.1, 2.3), (9.0, 9.1, 9.2)], strict=True
            )
        ]
        figure = sweep_figure(compare(runs, "edm"))
        assert figure is not None

        assert figure.panels[0].y.low < -0.2
        assert not figure.panels[0].y.log

    def test_bins_are_ratios_to_the_baseline(self, comparison: Comparison):
        figure = bins_figure(comparison)
        assert figure is not None
        run, baseline = comparison.runs[1], comparison.runs[0]
        third = figure.panels[0].series[0].points[2]

        expected = (
            run.curves["held_out/bin2"].values[-1] / baseline.curves["held_out/bin2"].values[-1]
        )
        assert (third.x, third.y) == (3, pytest.approx(expected))

    def test_no_two_runs_look_alike(self):
        looks = [(colour_of(slot), marker_of(slot)) for slot in range(37)]

        assert len(set(looks)) == 37
        assert [colour for colour, _ in looks].count(0) == 1


class TestAxes:
    def test_ticks_are_round_and_inside(self):
        assert linear_ticks(0.0, 10.2) == (
            (0, "0"),
            (2, "2"),
            (4, "4"),
            (6, "6"),
            (8, "8"),
            (10, "10"),
        )
        assert [text for _, text in linear_ticks(-0.5, 0.5, 4)] == [
            "−0.50",
            "−0.25",
            "0.00",
            "0.25",
            "0.50",
        ]
        assert [text for _, text in log_ticks(0.15, 30)] == [
            "0.2",
            "0.5",
            "1",
            "2",
            "5",
            "10",
            "20",
        ]

    @pytest.mark.parametrize(
        "values", [[3.0], [0.0, 0.0], [1e-9, 1e9], [-5.0, 7.0], [], [math.nan]]
    )
    def test_any_values_fit(self, values: list[float]):
        axis = fit("", values)

        assert axis.low < axis.high
        assert len(axis.ticks) >= 2
        assert all(0 <= axis.place(value) <= 1 for value in values if math.isfinite(value))

    def test_a_wide_positive_range_is_logarithmic(self):
        assert fit("", [1.0, 6.0]).log
        assert not fit("", [1.0, 4.0]).log
        assert not fit("", [0.0, 600.0]).log

    def test_ticks_at_values_do_not_touch(self):
        axis = at_values("", range(3, 200))
        places = [axis.place(place) for place, _ in axis.ticks]

        assert min(b - a for a, b in pairwise(places)) > 0.07


class TestGrids:
    def test_pixels_are_enlarged_and_not_smoothed(self, tmp_path: Path):
        images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2) * 20

        write_grid(images, tmp_path / "grid.png", columns=2, scale=3)

        with Image.open(tmp_path / "grid.png") as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (3 * 5, 3 * 5)
        assert (pixels[:3, :3] == images[0, 0, 0, 0]).all()
        assert (pixels[:3, 9:12] == images[1, 0, 0, 0]).all()
        assert (pixels[9:12, :3] == images[2, 0, 0, 0]).all()
        assert (pixels[9:, 9:] == 255).all()

    def test_colours_keep_their_channels(self):
        red = np.zeros((1, 3, 2, 2), dtype=np.uint8)
        red[:, 0] = 200

        assert tile(red, columns=8).getpixel((0, 0)) == (200, 0, 0)

    def test_side_by_side_shows_each_grid_in_order(self, tmp_path: Path):
        dark, light = (np.full((4, 1, 16, 16), v, dtype=np.uint8) for v in (10, 240))

        side_by_side(
            [("edm", dark), ("a name " * 9, light)], tmp_path / "s.png", columns=2, scale=4
        )

        sheet = Image.open(io.BytesIO((tmp_path / "s.png").read_bytes())).convert("L")
        row = [sheet.getpixel((x, sheet.height - 30)) for x in range(sheet.width)]
        assert row.index(10) < row.index(240)

    def test_other_seeds_are_refused(self, tmp_path: Path):
        one, two = (np.zeros((n, 1, 2, 2), dtype=np.uint8) for n in (1, 2))
        with pytest.raises(ValueError, match=r"same seeds, but got \[1, 2\]"):
            side_by_side([("a", one), ("b", two)], tmp_path / "s.png")

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((1, 2, 2, 2), dtype=np.uint8),
            np.zeros((1, 1, 2, 2), dtype=np.float32),
            np.zeros((0, 1, 2, 2), dtype=np.uint8),
        ],
    )
    def test_what_is_no_picture_is_refused(self, images: np.ndarray):
        with pytest.raises(ValueError, match="a grid needs"):
            tile(images, columns=2)
