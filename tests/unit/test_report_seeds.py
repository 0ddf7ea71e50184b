"""Runs that differ in their seed alone are one arm, and arms are compared pair by pair."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from fleetstep.config import Experiment, flatten
from fleetstep.reporting.answer import grounds, headline, seed_sentences
from fleetstep.reporting.arm_terminal import arms_table, speedups_table
from fleetstep.reporting.comparison import Comparison, compare
from fleetstep.reporting.figures import figures
from fleetstep.reporting.page import page
from fleetstep.reporting.records import RunRecord, Score
from fleetstep.reporting.seeds import arms_of, decides_nothing, pairs_of, setting_of
from fleetstep.reporting.speedup_figures import speedup_figure
from page_reader import Reader
from synthetic_records import curve, score, seed_records

# 95 % points of Student's t, from its tables: 2 and 1 degrees of freedom.
T2, T1 = 4.302652729749464, 12.706204736174707


def run(name: str, seed: int | None, **params: str) -> RunRecord:
    seeds = {} if seed is None else {"training.seed": str(seed)}
    return RunRecord(name=name, run_id=f"id-{name}", status="FINISHED", params=seeds | params)


def scored(name: str, seed: int, *values: float, **params: str) -> RunRecord:
    """With a score of the mean of these pseudo-values, and a loss that ends at half of it."""
    own: tuple[Score, ...] = (score(name, pseudo_values=values),)
    loss = {"held_out/loss": curve([9.0, own[0].value / 2])}
    return replace(run(name, seed, **params), scores=own, curves=loss)


class TestArms:
    def test_runs_of_one_setting_are_one_arm_by_seed(self):
        runs = [
            run("edm-s10", 10, **{"strategies": "[]"}),
            run("fdm-s2", 2, **{"strategies.0.kind": "fdm"}),
            run("edm-s2", 2, **{"strategies": "[]"}),
            run("edm-s1", 1, **{"strategies": "[]"}),
        ]
        edm, fdm = arms_of(runs)

        assert (edm.name, edm.seeds) == ("edm", ("1", "2", "10"))
        assert [r.name for r in edm.runs] == ["edm-s1", "edm-s2", "edm-s10"]
        assert (fdm.name, fdm.seeds) == ("fdm-s2", ("2",))

    def test_a_repeated_seed_is_no_further_seed(self):
        runs = [run("a", 1), run("b", 1), run("c", 2)]

        assert [[r.name for r in arm.runs] for arm in arms_of(runs)] == [["a", "c"], ["b"]]

    def test_runs_that_do_not_tell_their_seed_stand_alone(self):
        assert len(arms_of([run("a", None), run("b", None)])) == 2

    def test_another_dataset_is_another_setting(self):
        one, two = run("a", 1), replace(run("b", 2), tags={"dataset.fingerprint": "other"})

        assert len(arms_of([one, two])) == 2

    def test_names_that_share_no_word_keep_the_first(self):
        assert arms_of([run("alpha", 1), run("beta", 2)])[0].name == "alpha"

    def test_arms_of_one_name_are_told_apart_by_their_runs(self):
        runs = [run("edm-1", 1), run("edm-2", 2), run("edm-3", 1, x="1"), run("edm-4", 2, x="1")]

        assert [arm.name for arm in arms_of(runs)] == ["edm-1", "edm-3"]

    def test_the_setting_is_what_a_resumed_run_must_share_but_for_seed_and_budget(self):
        """Every parameter of a run: the arms' rule and the checkpoints' agree on what decides."""
        tree: dict[str, Any] = {
            "name": "a",
            "data": {"path": "d"},
            "training": {"images": 640, "global_batch": 64, "lr_ramp": 10},
        }
        flat = flatten(Experiment.model_validate(tree))
        changed = {
            "name": {"name": "b"},
            "storage": {"storage": "elsewhere"},
            "data.path": {"data": {"path": "e"}},
            "data.window": {"data": {"path": "d", "window": 9}},
            "data.flip": {"data": {"path": "d", "flip": True}},
            "data.augment": {"data": {"path": "d", "augment": 0.5}},
            "data.split": {"data": {"path": "d", "split": "other"}},
            "data.heldout": {"data": {"path": "d", "heldout": "other"}},
            "data.prefetch": {"data": {"path": "d", "prefetch": 7}},
            "process": {"process": {"kind": "edm", "sigma_data": 0.7}},
            "strategies": {"strategies": [{"kind": "fdm"}]},
            "network": {"network": {"kind": "ddpmpp", "channels": 16}},
            "grid": {"grid": {"samples": 4}},
            "cluster": {"cluster": {"workers": 2}},
            "tracking": {"tracking": {"experiment": "x"}},
        }
        for key, value in {
            "micro_batch": 8,
            "optimizer": {"lr": 0.1},
            "lr_ramp": 20,
            "ema": {"ema": {"half_life": 77}},
            "label_dropout": 0.1,
            "precision": "bf16",
            "activation_checkpointing": True,
            "compile": "inductor",
            "zero_stage": 1,
            "checkpoint_every": "5%",
            "snapshot_every": "5%",
            "keep_checkpoints": 9,
            "log_every": 3,
            "heldout": {"images": 32},
            "global_batch": 32,
        }.items():
            changed[f"training.{key}"] = {"training": {**tree["training"], key: value}}
        heads = {key.split(".")[0] for key in flat} - {"data", "training", "evaluate"}
        trained = {".".join(key.split(".")[:2]) for key in flat if key.startswith("training.")}
        assert heads | trained <= changed.keys() | {"training.images", "training.seed"}

        first = Experiment.model_validate(tree)
        for key, part in changed.items():
            other = Experiment.model_validate(tree | part)
            alike = setting_of(replace(run("a", None), params=flat)) == setting_of(
                replace(run("b", None), params=flatten(other))
            )
            assert alike == (first.identity("f") == other.identity("f")), key

    def test_what_decides_nothing_is_known_by_whole_words(self):
        assert decides_nothing("data.path")
        assert decides_nothing("cluster.workers")
        assert not decides_nothing("data.pathology")
        assert not decides_nothing("training.seed")


class TestPairs:
    def test_equal_seeds_are_paired_and_the_rest_in_order(self):
        arm, baseline = (
            arms_of([run(f"{name}-{seed}", seed, x=name) for seed in seeds])[0]
            for name, seeds in (("a", (1, 2, 7)), ("b", (2, 5, 6, 1)))
        )
        pairs = pairs_of(arm, baseline)

        assert [(p.run.name, p.baseline.name) for p in pairs] == [
            ("a-1", "b-1"),
            ("a-2", "b-2"),
            ("a-7", "b-5"),
        ]
        assert [p.seed for p in pairs] == ["1", "2", "7 against 5"]
        assert [p.same_seed for p in pairs] == [True, True, False]


class TestDifferenceOverSeeds:
    def arms(self, gains: tuple[float, ...]) -> list[RunRecord]:
        """Seeds differ by far more than the settings do."""
        noise = (5.0, 1.0, 3.0)
        edm = [scored(f"edm-{i}", i, x, x + 0.2) for i, x in enumerate(noise)]
        fdm = [
            scored(f"fdm-{i}", i, x + gain, x + gain + 0.2, **{"strategies.0.kind": "fdm"})
            for i, (x, gain) in enumerate(zip(noise, gains, strict=True))
        ]
        return [*edm, *fdm]

    def test_mean_and_student_interval_of_the_pairs(self):
        comparison = compare(self.arms((-0.4, -0.5, -0.6)), "edm")
        found = comparison.arms.standings[1].score_difference

        assert found is not None
        assert found.pairs == tuple(
            (str(i), pytest.approx(d)) for i, d in enumerate((-0.4, -0.5, -0.6))
        )
        half = T2 * 0.1 / 3**0.5
        assert found.mean.value == pytest.approx(-0.5)
        assert (found.mean.low, found.mean.high) == pytest.approx((-0.5 - half, -0.5 + half))
        assert found.verdict == "better"
        assert found.same_seed

    def test_the_answer_is_over_seeds_and_says_so(self):
        comparison = compare(self.arms((-0.4, -0.5, -0.6)), "edm")

        assert headline(comparison) == "fdm is better than edm over 3 seeds at 95 %"
        assert "what another training run would give" in grounds(comparison)
        assert "sampling of images only" in grounds(comparison)
        (sentence,) = seed_sentences(comparison)
        assert sentence.startswith("fdm against edm: FD (fs-rn20) −0.50 [−0.75, −0.25] (3 pairs)")
        tied = compare(self.arms((-0.9, 0.3, 0.5)), "edm")
        assert headline(tied) == "No difference between fdm and edm over 3 seeds at 95 %"

    def test_each_run_is_paired_with_the_baselines_run_of_its_seed(self):
        sweep = compare(self.arms((-0.4, -0.5, -0.6)), "edm").sweep

        assert sweep is not None
        assert sweep.partners == {f"fdm-{i}": f"edm-{i}" for i in range(3)}
        assert [d.value for (_, _), d in sorted(sweep.differences.items())] == pytest.approx(
            [-0.4, -0.5, -0.6]
        )

    def test_a_score_of_which_more_is_better_turns_the_verdict(self):
        runs = [
            replace(r, scores=tuple(replace(s, kind="is", metric="is1k") for s in r.scores))
            for r in self.arms((-0.4, -0.5, -0.6))
        ]
        found = compare(runs, "edm").arms.standings[1].score_difference

        assert found is not None
        assert found.verdict == "worse"

    def test_one_seed_has_no_interval_over_seeds_and_no_verdict(self):
        edm, fdm = self.arms((-0.4, -0.5, -0.6))[2:4]
        comparison = compare(
            [edm, replace(fdm, params={**fdm.params, "training.seed": "2"})], "edm-2"
        )
        found = comparison.arms.standings[1].score_difference

        assert found is not None
        assert (found.mean.low, found.verdict) == (None, None)
        assert not comparison.arms.over_seeds
        assert seed_sentences(comparison) == ()
        assert "One training seed each" in grounds(comparison)

    def test_several_settings_are_counted(self):
        runs = self.arms((-0.4, -0.5, -0.6))
        runs += [
            scored(f"warm-{i}", i, x, x + 0.2, **{"strategies.0.kind": "warmup"})
            for i, x in enumerate((5.3, 0.5, 3.1))
        ]
        title = "Of 2 settings with several seeds, fdm alone is better than edm at 95 %"

        assert headline(compare(runs, "edm")) == title
        assert headline(compare(runs, "fdm")).startswith("None of 2 settings with several seeds")

    def test_a_setting_with_one_seed_is_judged_by_its_checkpoints_and_that_is_said(self):
        comparison = compare(self.arms((-0.4, -0.5, -0.6))[:4], "edm")

        assert comparison.arms.over_seeds
        assert headline(comparison) == "fdm-0 is better than edm-0 at 95 %"
        assert "One pair of training runs each" in grounds(comparison)

    def test_a_seed_without_a_score_keeps_its_arm_without_a_mean(self):
        runs = self.arms((-0.4, -0.5, -0.6))
        runs[-1] = replace(runs[-1], scores=())
        standing = compare(runs, "edm").arms.standings[1]

        assert standing.score is None
        assert standing.score_difference is not None
        assert standing.score_difference.mean.n == 2
        half = T1 * 0.1 / 2**0.5 / 2**0.5
        assert standing.score_difference.mean.high == pytest.approx(-0.45 + half)

    def test_the_cell_is_the_one_where_the_baselines_mean_is_best(self):
        def cells(name: str, seed: int, at9: float, at19: float, **params: str) -> RunRecord:
            own = tuple(
                score(name, nfe=nfe, pseudo_values=(v, v + 0.1))
                for nfe, v in ((9, at9), (19, at19))
            )
            return replace(run(name, seed, **params), scores=own)

        runs = [
            cells("edm-1", 1, 1.0, 3.0),
            cells("edm-2", 2, 9.0, 3.0),
            cells("fdm-1", 1, 0.0, 5.0, x="1"),
            cells("fdm-2", 2, 0.0, 5.0, x="1"),
        ]
        comparison = compare(runs, "edm")

        assert comparison.arms.cell is not None
        assert comparison.arms.cell.nfe == 19
        assert headline(comparison) == "fdm is worse than edm over 2 seeds at 95 %"

    def test_seeds_of_one_setting_alone_are_noise_between_seeds(self):
        comparison = compare(self.arms((0, 0, 0))[:3], "edm-0")

        assert len(comparison.arms.standings) == 1
        assert any("noise between training seeds" in note for note in comparison.notes)


@pytest.fixture(scope="module")
def comparison():
    return compare(seed_records(), "edm")


class TestWords:
    def test_the_page_tells_the_two_questions_apart(self, comparison: Comparison):
        html = page(comparison)
        texts = Reader(html).texts

        assert "edm-fdm is better than edm over 3 seeds at 95 %" in texts
        assert " comparison against edm" in texts
        assert texts.index("Verdict over seeds") < texts.index("Difference in the same cell")
        assert any(text.startswith("Each run: within one pair of checkpoints") for text in texts)
        assert "3 seeds: 0, 1, 2" in texts

    def test_the_configuration_is_told_by_setting_and_names_are_folded_away(
        self, comparison: Comparison
    ):
        html = page(comparison).partition('id="config"')[2].partition("</section>")[0]
        shown, _, folded = html.partition("<details>")

        assert "strategies.0.kind" in shown
        # Both settings have the same seeds.
        assert "training.seed" not in html
        assert ">name<" not in shown
        assert "1 more differ in name, place or execution" in folded
        assert "edm-s0, edm-s1, edm-s2" in folded

    def test_the_terminal_shows_settings_and_every_level(self, comparison: Comparison):
        text = self.printed(arms_table(comparison))
        assert "3 seeds: 0, 1, 2" in text
        assert "1.49× [1.24, 1.78]" in text
        assert "at 90%; 3 pairs of runs" in text
        levels = self.printed(speedups_table(comparison, "held_out/loss"))
        assert [share in levels for share in ("40%", "60%", "80%", "90%", "100%")] == [True] * 5
        assert "> 1.48×" in levels

    def test_runs_of_a_setting_share_their_look(self, comparison: Comparison):
        assert {look for run, look in comparison.looks.items() if "fdm" in run} == {("edm-fdm", 1)}
        for figure in figures(comparison):
            assert set(figure.runs) <= {("edm", 0), ("edm-fdm", 1)}

    def test_a_bound_is_drawn_hollow(self, comparison: Comparison):
        figure = speedup_figure(comparison)
        assert figure is not None
        (series,) = figure.panels[0].series

        assert [point.hollow for point in series.points] == [False] * 4 + [True]
        assert "1 of the baseline’s never did" in series.points[-1].text

    def printed(self, table: Table) -> str:
        console = Console(width=160, record=True, file=io.StringIO())
        console.print(table)
        return console.export_text()
