"""Several metrics, directions and guidance in one comparison: what leads, what stands apart."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fleetstep.reporting.comparison import Comparison, compare
from fleetstep.reporting.difference_figures import difference_figure
from fleetstep.reporting.figures import sweep_figure
from fleetstep.reporting.page import page
from fleetstep.reporting.records import RunRecord, Score
from fleetstep.reporting.statistics import paired_difference
from fleetstep.reporting.tables import metrics_table, sweep_table
from fleetstep.reporting.wording import metric_card, metric_text
from page_reader import Reader
from synthetic_records import score

LOW, HIGH = (0.2, 0.21, 0.19), (0.8, 0.81, 0.79)


def two_runs(*kinds: str, **facts: object) -> Comparison:
    """The baseline has the low values, the challenger the high ones."""
    runs = [
        RunRecord(
            name=name,
            run_id=name,
            status="FINISHED",
            scores=tuple(
                score(name, kind=kind, nfe=nfe, pseudo_values=values, **facts)  # type: ignore[arg-type]
                for kind in kinds
                for nfe in (5, 9)
            ),
        )
        for name, values in (("edm", LOW), ("fdm", HIGH))
    ]
    return compare(runs, "edm")


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("fd", "worse"), ("kid", "worse"), ("recall", "better"), ("is", "better")],
)
def test_verdicts_go_by_the_direction_of_the_metric(kind: str, verdict: str):
    found = two_runs(kind)

    assert found.standings[1].headline is not None
    assert found.standings[1].headline.verdict == verdict
    assert found.sweep is not None
    titles = sweep_table(found.sweep).title
    assert ("higher" if verdict == "better" else "lower") in str(titles)


def test_the_best_cell_of_a_run_goes_by_the_direction():
    scores = tuple(
        score(kind="recall", nfe=nfe, pseudo_values=values)
        for nfe, values in ((5, LOW), (9, HIGH))
    )
    found = compare([RunRecord(name="a", run_id="a", status="FINISHED", scores=scores)], "a")

    assert found.standings[0].best is not None
    assert found.standings[0].best.nfe == 9


def test_a_rising_metrics_front_rises():
    scores = tuple(
        score(kind="recall", nfe=nfe, pseudo_values=(v, v + 0.01))
        for nfe, v in ((3, 0.2), (5, 0.6), (7, 0.4), (9, 0.8))
    )
    found = compare([RunRecord(name="a", run_id="a", status="FINISHED", scores=scores)], "a")
    figure = sweep_figure(found)
    assert figure is not None

    front = figure.panels[0].series[0].points
    assert [round(point.y, 3) for point in front] == [0.205, 0.605, 0.805]
    assert "higher is better" in figure.panels[0].y.title


def test_plain_distances_lead_and_others_stand_in_one_brief_table():
    found = two_runs("recall", "kid", "fd_z", "fd", "precision")
    html = page(found)

    assert found.sweep is not None
    assert found.sweep.protocol.kind == "fd"
    assert [sweep.protocol.kind for sweep in found.by_samples[0]] == [
        "fd",
        "fd_z",
        "kid",
        "precision",
        "recall",
    ]
    assert html.count("<details>") == 2
    assert "All values: FD (fs-rn20), n = 2,000" in html
    assert "All metrics: fs-rn20.multi112, n = 2,000, seeds 0:0-1999" in html
    for name in ("FD ↓", "KID ↓", "precision ↑", "recall ↑"):
        assert f'<th scope="col">{name}</th>' in html
    assert Reader(html).open == []


def test_other_samples_have_a_table_of_their_own():
    runs = two_runs("fd", "kid").runs
    other = tuple(replace(s, seeds="0:5000-6999") for s in runs[0].scores)
    found = compare([replace(runs[0], scores=(*runs[0].scores, *other)), runs[1]], "edm")

    assert [len(group) for group in found.by_samples] == [2, 2]
    html = page(found)
    assert "seeds 0:0-1999" in html
    assert "seeds 0:5000-6999" in html


def test_guidance_makes_another_cell_and_is_named():
    plain, guided = (score("edm", guidance=g, nfe=18) for g in ("", "cfg 1.5"))
    other = score("fdm", guidance="cfg 1.5", nfe=18)
    runs = [
        RunRecord(name=name, run_id=name, status="FINISHED", scores=scores)
        for name, scores in (("edm", (plain, guided)), ("fdm", (other,)))
    ]
    found = compare(runs, "edm")

    assert found.sweep is not None
    assert [cell.title for cell in found.sweep.cells] == ["heun, NFE 18", "heun, NFE 18, cfg 1.5"]
    assert [d.cell.guidance for d in found.sweep.paired("fdm")] == ["cfg 1.5"]
    figure = sweep_figure(found)
    assert figure is not None
    assert [panel.title for panel in figure.panels[1:]] == ["heun", "heun, cfg 1.5"]
    assert "heun with 18 network calls and cfg 1.5" in page(found)


def test_the_metrics_table_fits_a_terminal():
    found = two_runs("fd", "fd_z", "kid", "precision", "recall", "density", "coverage", "is")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(metrics_table(found.by_samples[0]))
    text = console.export_text()

    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    assert text.count("heun") == 4


def test_many_cells_do_not_make_a_page_without_end():
    def many(name: str, shift: float) -> RunRecord:
        scores = tuple(
            score(name, solver=f"s{i:02d}", nfe=nfe, pseudo_values=(nfe, nfe + shift, nfe - 1))
            for i in range(30)
            for nfe in range(3, 9)
        )
        return RunRecord(name=name, run_id=name, status="FINISHED", scores=scores)

    found = compare([many("edm", 1), many("fdm", 2)], "edm")
    curves, forest = sweep_figure(found), difference_figure(found)
    assert curves is not None
    assert forest is not None

    assert len(curves.panels) == 12
    assert "19 more are in the table." in curves.caption
    assert forest.panels[0].rows == 48
    kept = {text.rpartition(" ")[2] for _, text in forest.panels[0].y.ticks}
    assert kept == {"3", "4"}  # where the baseline is best
    assert "The 48 cells where the baseline is best are shown." in forest.caption


@pytest.mark.parametrize(
    ("kind", "name"),
    [("kid", "KID (fs-rn20)"), ("is", "IS (fs-rn20)"), ("fd_inf", "FD∞ (fs-rn20)")],
)
def test_metrics_are_named_with_their_features(kind: str, name: str):
    protocol = score(kind=kind).protocol

    assert metric_text(protocol) == name
    assert metric_card(protocol, "fs-rn20.multi112")


def test_a_named_protocol_is_compared_with_its_like_alone():
    def of(name: str, protocol: str) -> RunRecord:
        scores: tuple[Score, ...] = (replace(score(name), protocol_name=protocol),)
        return RunRecord(name=name, run_id=name, status="FINISHED", scores=scores)

    refused = compare([of("edm", "clean"), of("fdm", "adm")], "edm")
    assert "the named protocol: adm against clean" in refused.refusals[0]
    assert refused.standings[1].headline is None
    same = compare([of("edm", "adm"), of("fdm", "adm")], "edm")
    assert same.standings[1].headline is not None


def test_a_difference_knows_its_direction():
    low, high = (score(kind="recall", pseudo_values=values) for values in (LOW, HIGH))

    assert paired_difference(high, low).verdict == "better"
    assert paired_difference(low, high).verdict == "worse"
    assert paired_difference(low, low).verdict == "no difference"
