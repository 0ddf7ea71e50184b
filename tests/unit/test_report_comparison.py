import pickle
from dataclasses import replace
from typing import Any

import pytest

from fleetstep.errors import ComparisonError
from fleetstep.reporting.answer import grounds, headline, sentences
from fleetstep.reporting.comparison import compare
from fleetstep.reporting.figures import loss_figure, sweep_figure
from fleetstep.reporting.records import RunRecord, Score
from fleetstep.reporting.tables import sweep_table
from fleetstep.reporting.wording import (
    duration_text,
    images_text,
    metric_card,
    metric_text,
    number,
    with_interval,
)
from synthetic_records import curve, demo_records, score


def run(
    name: str = "edm", scores: tuple[Score, ...] = (), run_id: str = "", **fields: Any
) -> RunRecord:
    return RunRecord(
        name=name, run_id=run_id or f"id-{name}", status="FINISHED", scores=scores, **fields
    )


def test_the_headline_cell_is_the_baselines_best_not_the_challengers():
    """The challenger shines at NFE 5; the baseline is best at NFE 9, and there they tie."""
    edm = run(scores=(score(nfe=5, pseudo_values=(9, 9.1)), score(nfe=9, pseudo_values=(1, 1.1))))
    fdm = run(
        "fdm",
        (
            score("fdm", nfe=5, pseudo_values=(0.1, 0.2)),
            score("fdm", nfe=9, pseudo_values=(1.1, 1.0)),
        ),
    )

    standing = compare([edm, fdm], "edm").standings[1]

    assert standing.headline is not None
    assert standing.headline.cell.nfe == 9
    assert standing.headline.verdict == "no difference"
    assert standing.best is not None
    assert standing.best.nfe == 5


def test_runs_meet_in_an_adaptive_cell_however_many_calls_each_took():
    def adaptive(name: str, nfe: float, *values: float) -> Score:
        found = score(name, solver="rk45", pseudo_values=values)
        return replace(found, schedule="adaptive", nfe=nfe, adaptive=True)

    edm = run(scores=(adaptive("edm", 113.4, 2.0, 2.1), score(nfe=9, pseudo_values=(3.0, 3.1))))
    fdm = run(
        "fdm",
        (adaptive("fdm", 98.0, 1.0, 1.2), score("fdm", nfe=9, pseudo_values=(3.1, 3.0))),
    )
    comparison = compare([edm, fdm], "edm")
    standing = comparison.standings[1]
    assert standing.headline is not None
    assert standing.headline.cell.title == "rk45, NFE adaptive"
    assert standing.headline.value == pytest.approx(-0.95)
    assert "rk45 with adaptive network calls" in " ".join(sentences(comparison))
    figure = sweep_figure(comparison)
    assert figure is not None
    assert {text for _, text in figure.panels[0].x.ticks} == {"9", "98"}  # 113.4 would touch
    rows = sweep_table(comparison.sweeps[0]).columns[1].cells
    assert sorted(rows) == ["9", "adaptive"]


def test_scores_of_another_n_are_never_ranked_and_the_reason_is_given():
    edm = run(scores=(score(n=2000),))
    fdm = run("fdm", (score("fdm", n=500, pseudo_values=(0, 0, 0, 0.1)),))

    comparison = compare([edm, fdm], "edm")

    assert len(comparison.sweeps) == 2
    assert all(not sweep.differences for sweep in comparison.sweeps)
    assert comparison.standings[1].headline is None
    assert comparison.standings[1].best is None
    assert "the number of samples n: 500 against 2000" in comparison.refusals[0]
    assert headline(comparison) == "No verdict on sample quality"
    assert sentences(comparison) == ("fdm: not compared with edm.",)


def test_scores_of_another_extractor_stand_in_another_sweep():
    edm = run(scores=(score(),))
    fdm = run("fdm", (score("fdm", extractor_sha256="beef" * 16),))

    assert {sweep.runs for sweep in compare([edm, fdm], "edm").sweeps} == {("edm",), ("fdm",)}


def test_the_last_checkpoint_counts_and_different_budgets_are_noted():
    early = score(images_seen=1000, pseudo_values=(0.1, 0.2, 0.1, 0.2))
    edm = run(scores=(early, score(images_seen=200_000)))
    fdm = run("fdm", (score("fdm", images_seen=100_000),))

    comparison = compare([edm, fdm], "edm")

    assert comparison.sweep is not None
    assert [s.images_seen for s in comparison.sweep.of("edm")] == [200_000]
    assert any("edm after 200 kimg, fdm after 100 kimg" in note for note in comparison.notes)
    assert "1 earlier checkpoint of edm was scored and is not shown here." in comparison.notes
    assert not any("checkpoint of fdm" in note for note in comparison.notes)


def test_earlier_checkpoints_are_counted_once_whatever_their_metrics_and_cells():
    scores = tuple(
        score(images_seen=seen, nfe=nfe, kind=kind)
        for seen in (1000, 2000, 3000)
        for nfe in (5, 9)
        for kind in ("fd", "fd_z")
    )

    notes = compare([run(scores=scores)], "edm").notes

    assert notes == (
        "edm has no held-out loss.",
        "2 earlier checkpoints of edm were scored and are not shown here.",
    )


def test_two_checkpoints_of_one_place_are_noted_and_the_last_given_is_shown():
    old = replace(score(pseudo_values=(5, 6)), checkpoint="aa" * 32)
    new = replace(score(pseudo_values=(1, 2)), checkpoint="bb" * 32)
    other_track = replace(old, ema="long")

    comparison = compare([run(scores=(old, other_track, new))], "edm")

    assert comparison.sweep is not None
    assert comparison.sweep.scores["edm", new.cell].checkpoint == new.checkpoint
    (note,) = [note for note in comparison.notes if "different checkpoints" in note]
    assert note.startswith("Scores of 2 different checkpoints of edm after 200 kimg (EMA ema)")
    assert "of each cell the last one given is shown" in note


def test_held_out_losses_on_other_data_or_another_grid_are_not_compared():
    curves = {"held_out/loss": curve([2.0, 1.0])}
    edm = run(curves=curves, tags={"dataset.fingerprint": "a"}, params={"process.kind": "edm"})
    other = run("b", curves=curves, tags={"dataset.fingerprint": "b"}, params=edm.params)
    vp = run("c", curves=curves, tags=edm.tags, params={"process.kind": "vp"})
    same = run("d", curves=curves, tags=edm.tags, params=edm.params)

    assert compare([edm, other], "edm").standings[1].time_to_quality is None
    assert compare([edm, vp], "edm").standings[1].time_to_quality is None
    assert "process.kind" in compare([edm, vp], "edm").notes[0]
    assert compare([edm, same], "edm").standings[1].time_to_quality is not None


@pytest.mark.parametrize(
    ("key", "compared"),
    [
        ("process.sigma_data", False),
        ("process.prediction", True),
        ("process.learned_variance", True),
        ("data.heldout", False),
        ("training.heldout.bins", False),
        ("training.heldout.images", False),
        ("training.heldout.batch", True),
        ("data.window", True),
    ],
)
def test_what_changes_the_held_out_measurement_forbids_to_compare_it(key: str, compared: bool):
    curves = {"held_out/loss": curve([2.0, 1.0])}
    runs = [run(name, curves=curves, params={key: name}) for name in ("a", "b")]

    comparison = compare(runs, "a")
    figure = loss_figure(comparison)

    assert comparison.losses_compared is compared
    assert any(key in note for note in comparison.notes) is not compared
    assert (comparison.standings[1].time_to_quality is not None) is compared
    assert figure is not None
    assert ("on the same held-out images" in figure.caption) is compared
    assert all(bool(panel.rules) is compared for panel in figure.panels)


def test_the_baseline_stands_first_and_is_found_by_name_or_id():
    runs = [run("a"), run("b"), run("c")]

    assert [r.name for r in compare(runs, "b").runs] == ["b", "a", "c"]
    assert compare(runs, "id-c").baseline == "c"


def test_an_unknown_baseline_is_refused_with_the_names():
    with pytest.raises(ComparisonError, match="got 'x'") as caught:
        compare([run("a"), run("b")], "x")
    assert "a, b" in caught.value.remedy
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_runs_of_one_name_are_told_apart_by_id():
    twins = [run("edm", run_id="aaaaaaaa1"), run("edm", run_id="bbbbbbbb2")]

    assert [r.name for r in compare(twins, "bbbbbbbb2").runs] == [
        "edm (bbbbbbbb)",
        "edm (aaaaaaaa)",
    ]
    with pytest.raises(ComparisonError, match="2 runs are called 'edm'"):
        compare(twins, "edm")


def test_config_differences_leave_out_what_is_the_same():
    a = run("a", params={"x": "1", "same": "s", "only": "here"})
    b = run("b", params={"x": "2", "same": "s"})

    assert compare([a, b], "a").config == (("only", ("here", None)), ("x", ("1", "2")))


def test_runs_that_differ_in_their_seed_alone_are_called_noise():
    a = run("a", params={"training.seed": "0"})
    b = run("b", params={"training.seed": "1"})

    assert any("noise between training seeds" in note for note in compare([a, b], "a").notes)


def test_a_run_that_did_not_finish_is_noted():
    failed = replace(run("b"), status="FAILED")

    assert "b is FAILED, not FINISHED." in compare([run("a"), failed], "a").notes


def test_the_words_claim_no_more_than_the_interval():
    comparison = compare(demo_records(), "edm")

    assert headline(comparison) == "Of 2 runs, edm-fdm-speed alone is better than edm at 95 %"
    better, same = sentences(comparison)
    assert "better than edm at 95 % at ipndm with 19 network calls (n = 1,000, 10 blocks" in better
    assert same.startswith("edm-warmup and edm: no difference at 95 %")
    assert "One training seed each: the intervals cover the sampling of images only" in grounds(
        comparison
    )


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ((0.1, 0.2, 0.1, 0.2), "fdm is better than edm at 95 %"),
        ((9.1, 9.2, 9.1, 9.2), "fdm is worse than edm at 95 %"),
        ((1.2, 1.0, 0.9, 1.1), "No difference between fdm and edm at 95 %"),
    ],
)
def test_the_headline_of_two_runs(scores: tuple[float, ...], words: str):
    fdm = run("fdm", (score("fdm", pseudo_values=scores),))

    assert headline(compare([run(scores=(score(),)), fdm], "edm")) == words


def test_numbers_show_the_digits_that_their_interval_allows():
    assert with_interval(0.56789, 0.4179, 0.7179) == "0.57 ± 0.15"
    assert with_interval(1234.5, 1200.0, 1269.0) == "1,234 ± 34"
    assert with_interval(-0.0123, -0.0133, -0.0113) == "−0.0123 ± 0.0010"
    assert number(float("nan")) == "not finite"
    assert number(0.000123456) == "0.000123"


def test_units_of_progress_and_time():
    assert [images_text(x) for x in (640, 12_800, 999_900, 1_250_000)] == [
        "640 images",
        "12.8 kimg",
        "1,000 kimg",
        "1.25 Mimg",
    ]
    assert [duration_text(x) for x in (42, 200, 7500)] == ["42 s", "3 min 20 s", "2 h 05 min"]


def test_only_a_full_fid_is_called_one():
    full = replace(score().protocol, metric="fid50k.clean.unbiased", n=50_000)
    small = replace(full, metric="fid10k.clean.unbiased", n=10_000)

    assert "Not FID" in metric_card(score().protocol, "fs-rn20.multi112")
    unbiased = "bias removed by the jackknife; published FIDs are the raw value, shown as raw"
    assert metric_card(full, "inception") == f"Fréchet Inception distance, {unbiased}."
    assert f"only 10,000 images, {unbiased}" in metric_card(small, "inception")
    assert metric_text(full) == "FID50k (clean, unbiased)"
    assert metric_text(small) == "FID10k (clean, unbiased)"
