"""The report of a search: its record, what mattered, its figures and its page."""

from __future__ import annotations

import io
import json
import math
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from fleetstep import rng
from fleetstep.errors import ComparisonError
from fleetstep.reporting.importance import importance
from fleetstep.reporting.palette import SHADES
from fleetstep.reporting.parallel import parallel_plot
from fleetstep.reporting.parallel_picture import write_parallel
from fleetstep.reporting.search_figures import importance_figure, learning_figure, pareto_figure
from fleetstep.reporting.search_page import SearchReport, search_page
from fleetstep.reporting.search_record import SearchRecord
from fleetstep.reporting.search_tables import importance_table, trials_table
from fleetstep.reporting.search_words import (
    confirmation_text,
    confirmation_verdict,
    search_grounds,
    search_headline,
)
from page_reader import Reader
from synthetic_search import demo_search

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


@pytest.fixture(scope="module")
def record():
    return SearchRecord.from_dict(json.loads(json.dumps(demo_search())))


@pytest.fixture(scope="module")
def report(record: SearchRecord):
    return SearchReport(record, importance(record, resamples=8))


@pytest.fixture(scope="module")
def html(report: SearchReport):
    return search_page([report])


class TestRecord:
    def test_finished_trials_stand_before_stopped_ones_and_what_has_no_value_last(
        self, record: SearchRecord
    ):
        ranked = record.ranked
        states = [trial.status for trial in ranked]
        finished = [t.value(record.objective) for t in ranked if t.status == "finished"]

        assert states == sorted(states, key=["finished", "stopped", "failed"].index)
        assert finished == sorted(finished)
        assert ranked[0].id == record.best[0]
        reached = [t.stopped_at for t in ranked if t.status == "stopped"]
        assert reached == sorted(reached, reverse=True)

    def test_of_stopped_trials_the_one_that_came_further_stands_first(self):
        tree = demo_search()
        early = next(t for t in tree["trials"] if t["stopped_at"] == 3200)
        early["values"]["held_out"] = 0.001
        ranked = [t.id for t in SearchRecord.from_dict(tree).ranked if t.status == "stopped"]
        further = [t["id"] for t in tree["trials"] if t["stopped_at"] == 9600]

        assert set(ranked[: len(further)]) == set(further)
        assert ranked[len(further)] == early["id"]

    def test_more_is_better_where_the_goal_says_so(self):
        tree = demo_search()
        tree["objectives"][0]["goal"] = "max"
        finished = [t for t in SearchRecord.from_dict(tree).ranked if t.status == "finished"]
        values = [trial.values["held_out"] for trial in finished]

        assert values == sorted(values, reverse=True)

    def test_the_front_is_what_no_other_trial_beats(self):
        record = SearchRecord.from_dict(demo_search(several=True))

        assert sorted(trial.id for trial in record.front) == sorted(record.best)
        assert len(record.front) == 2

    def test_a_value_at_a_place_is_the_last_one_before_it(self, record: SearchRecord):
        trial = next(t for t in record.trials if t.stopped_at == 9600)
        curve = dict(trial.curves["held_out"])

        assert trial.value_at(record.objective, 5000) == curve[3200]
        assert trial.value_at(record.objective, 9600) == curve[9600]
        assert math.isnan(trial.value_at(record.objective, 9601))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda r: r.pop("dimensions"), "must hold 'dimensions'"),
            (lambda r: r.update(objectives=[], confirm=None), "at least one objective"),
            (lambda r: r["objectives"][0].update(goal="low"), "held_out must be min or max"),
            (lambda r: r.update(best=["9999"]), "names 9999, which is no trial"),
            (lambda r: r["trials"][0]["assignment"].update(x=1), "0000 is assigned x, no dim"),
            (lambda r: r["trials"][0]["assignment"].update(strategies="z"), "strategies z, no la"),
            (lambda r: r["dimensions"][0].update(low=None), "neither labels nor bounds"),
            (lambda r: r["confirm"].update(objective="fd"), "confirmed is fd, no objective"),
            (lambda r: r["trials"][0].update(values=[1]), "has no attribute 'items'"),
        ],
    )
    def test_a_damaged_record_is_refused_with_what_is_wrong(self, change: Any, words: str):
        tree = demo_search()
        change(tree)
        with pytest.raises(ComparisonError, match=words) as caught:
            SearchRecord.from_dict(tree)
        assert "--resume" in caught.value.remedy


class TestConfirmation:
    def test_the_ratio_is_a_geometric_mean_over_seeds(self, record: SearchRecord):
        confirm = record.confirm
        assert confirm is not None
        logs = -np.log([1.05, 1.06, 1.07])
        half = 4.302652729749464 * logs.std(ddof=1) / math.sqrt(3)
        ratio = confirm.ratio

        assert ratio is not None
        assert ratio.value == pytest.approx(math.exp(logs.mean()))
        assert (ratio.low, ratio.high) == pytest.approx(
            (math.exp(logs.mean() - half), math.exp(logs.mean() + half))
        )
        assert confirmation_verdict(confirm) == "better"
        assert "0.943 times the held_out of plain EDM over 3 seeds, 95 % [0.922, 0.966]" in (
            confirmation_text(confirm)
        )

    @pytest.mark.parametrize(
        ("pairs", "goal", "verdict"),
        [
            ([(1.0, 2.0), (1.1, 2.1)], "max", "worse"),
            ([(1.0, 2.0), (2.0, 1.0)], "min", "no difference"),
            ([(-1.0, 2.0), (-1.1, 2.1)], "min", "better"),
            ([(1.0, 2.0)], "min", "not judged"),
        ],
    )
    def test_the_verdict_follows_the_interval_and_the_goal(
        self, pairs: list[tuple[float, float]], goal: str, verdict: str
    ):
        tree = demo_search()
        tree["objectives"][0]["goal"] = goal
        tree["confirm"]["pairs"] = [
            {"seed": seed, "winner": winner, "baseline": baseline}
            for seed, (winner, baseline) in enumerate(pairs)
        ]
        confirm = SearchRecord.from_dict(tree).confirm

        assert confirm is not None
        assert confirmation_verdict(confirm) == verdict


class TestImportance:
    def test_the_dimension_that_makes_the_objective_is_found(self):
        found = importance(SearchRecord.from_dict(demo_search(60)), resamples=12)
        rate, *others = found.dimensions

        assert rate.key == "training.optimizer.lr"
        assert rate.low > 0.3
        assert found.explained > 0.3
        assert all(one.low <= 0.05 and one.value < 0.1 for one in others)

    def test_noise_explains_nothing(self):
        tree = demo_search(40)
        noise = rng.draw(0, "test/importance", 0, 40)
        for trial, value in zip(tree["trials"], noise, strict=True):
            if trial["values"]["held_out"] is not None:
                trial["curve"]["held_out"] = [[3200, float(value)]]
        found = importance(SearchRecord.from_dict(tree), resamples=8)

        assert found.explained < 0.15
        assert all(one.low < 0.1 for one in found.dimensions)

    def test_stopped_trials_count_where_they_can_be_compared(self, report: SearchReport):
        assert report.importance.images_seen == 9600
        assert report.importance.trials == sum(
            any(seen >= 9600 for seen, _ in trial.curves["held_out"])
            for trial in report.record.trials
        )

    def test_the_same_record_gives_the_same_numbers(self, report: SearchReport):
        assert importance(report.record, resamples=8) == report.importance

    def test_too_few_trials_are_said_to_be_too_few(self):
        few = SearchRecord.from_dict(demo_search(9))
        found = importance(few)

        assert not found.enough
        assert found.needed == 12  # Four dimensions vary.
        assert importance_figure(found) is None
        assert f"Not enough trials to tell: {found.trials} have" in search_page(
            [SearchReport(few, found)]
        )


class TestFigures:
    def test_every_trial_has_its_curve_and_rungs_are_marked(self, record: SearchRecord):
        figure = learning_figure(record)
        assert figure is not None
        (panel,) = figure.panels

        assert len(panel.series) == 23  # One failed before it had a value.
        assert [rule.value for rule in panel.rules] == [3.2, 9.6]
        assert sum(series.faint for series in panel.series) == sum(
            trial.stopped_at is not None for trial in record.trials
        )
        assert panel.series[-1].run.startswith(record.best[0])
        assert panel.series[-1].slot == 1

    def test_the_pareto_figure_joins_the_front_alone(self, record: SearchRecord):
        several = SearchRecord.from_dict(demo_search(several=True))
        figure = pareto_figure(several)
        assert figure is not None
        others, front = figure.panels[0].series

        assert (others.line, front.line) == (False, True)
        assert len(front.points) == 2
        assert len(front.points) + len(others.points) == 8
        assert pareto_figure(record) is None

    def test_parallel_coordinates_keep_scale_order_and_absence(self, record: SearchRecord):
        plot = parallel_plot(record)
        assert plot is not None
        threads = {thread.trial: thread for thread in plot.threads}
        known = [trial for trial in record.trials if trial.id in threads]

        assert [rail.title for rail in plot.rails] == [
            "lr",
            "strategies",
            "multiplier",
            "batch",
            "held_out",
        ]
        for trial in known:
            rate, _, multiplier, *_ = threads[trial.id].places
            share = math.log10(trial.assignment["training.optimizer.lr"] / 1e-4) / 2
            assert rate == pytest.approx(share)
            assert (multiplier == 0) == (trial.assignment["strategies"] != "fdm")
        shades = [threads[t.id].shade for t in record.ranked if t.id in threads]
        assert shades == sorted(shades)
        assert (shades[0], shades[-1]) == (0, len(SHADES) - 1)
        assert plot.threads[-1].trial == record.best[0]
        assert sum(thread.stopped for thread in plot.threads) == 15

    def test_parallel_coordinates_are_a_picture_too(self, record: SearchRecord, tmp_path: Path):
        plot = parallel_plot(record)
        assert plot is not None
        write_parallel(plot, tmp_path / "parallel.png")

        with Image.open(tmp_path / "parallel.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        colours = {"#{:02x}{:02x}{:02x}".format(*pixel) for pixel in np.unique(pixels, axis=0)}
        assert {SHADES[0], SHADES[-1], "#ffffff"} <= colours

    def test_the_page_and_the_pictures_have_the_same_shades(self):
        style = (files("fleetstep.reporting") / "assets" / "page.css").read_text()

        light = style.partition("prefers-color-scheme: dark")[0]
        assert all(f"--q{i}: {shade};" in light for i, shade in enumerate(SHADES))

    def test_what_does_not_vary_has_no_axis(self):
        tree = demo_search()
        for trial in tree["trials"]:
            trial["assignment"]["training.heldout.batch"] = 8
        plot = parallel_plot(SearchRecord.from_dict(tree))

        assert plot is not None
        assert "batch" not in [rail.title for rail in plot.rails]


class TestPage:
    def test_it_is_whole_and_loads_nothing(self, html: str):
        read = Reader(html)

        assert read.open == []
        assert "http://" not in html
        assert "https://" not in html
        assert not [a for _, a in read.tags if any(n == "style" or n[:2] == "on" for n in a)]

    def test_the_answer_and_its_limits_come_first(self, html: str, record: SearchRecord):
        texts = Reader(html).texts

        assert texts.index(search_headline(record)) < texts.index("Every trial over its training")
        assert "chosen by looking, so its value flatters it" in search_grounds(record)
        assert "1 failed, 8 finished, 15 stopped" in search_grounds(record)

    def test_the_table_holds_only_what_differs_and_every_trial(self, html: str):
        tree = demo_search()
        for trial in tree["trials"]:
            trial["assignment"]["training.heldout.batch"] = 8
        record = SearchRecord.from_dict(tree)
        fixed = search_page([SearchReport(record, importance(record, resamples=2))])

        assert ">batch</th>" in html
        assert ">batch</th>" not in fixed
        assert html.count('<th scope="row">00') == 24

    def test_names_never_become_markup(self):
        tree = deepcopy(demo_search())
        tree["name"] = EVIL
        tree["confirm"]["baseline"] = EVIL
        tree["trials"][0] |= {"title": EVIL, "error": EVIL}
        record = SearchRecord.from_dict(tree)
        html = search_page([SearchReport(record, importance(record, resamples=2))])

        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert Reader(html).open == []

    def test_a_search_without_any_value_says_so(self):
        tree = demo_search(8, confirmed=False) | {"best": []}
        for trial in tree["trials"]:
            trial |= {"status": "pending", "values": {}, "curve": {}, "stopped_at": None}
        record = SearchRecord.from_dict(tree)
        html = search_page([SearchReport(record, importance(record))])

        assert "digits-speed: no trial has a value yet" in html
        assert "Not enough trials" in html


class TestTerminal:
    def printed(self, table: Table) -> str:
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(table)
        return console.export_text()

    def test_trials_and_importance(self, report: SearchReport):
        text = self.printed(trials_table(report.record))

        assert "4 more on the page" in text
        assert "0.943 times the held_out of plain EDM" in text
        lines = self.printed(importance_table(report.importance)).splitlines()
        assert "training.optimizer.lr" in lines[4]
