"""The page of a sweep: what must be on it, whatever the record holds."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fleetstep.reporting.neighbours import NeighbourCheck
from fleetstep.reporting.seed_grids import SeedGrid
from fleetstep.reporting.shipping import choose, ship_text
from fleetstep.reporting.sweep_page import SweepReport, sweep_page
from fleetstep.reporting.sweep_record import SweepRecord, contests
from page_reader import Reader
from synthetic_sweep import NFE, SOLVERS, cell, demo_sweep, record, sweep

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def grids() -> tuple[SeedGrid, ...]:
    rng = np.random.default_rng(0)
    rows = tuple((name, rng.integers(0, 255, (8, 1, 8, 8), np.uint8)) for name in SOLVERS)
    return tuple(SeedGrid(net, str(n), rows) for net in ("edm", "edm-fdm") for n in NFE)


def check(generated: float = 1.0) -> NeighbourCheck:
    rng = np.random.default_rng(0)
    return NeighbourCheck(
        cell="edm: heun at 9 calls",
        images_nCHW=rng.integers(0, 255, (16, 1, 8, 8), np.uint8),
        neighbours_nKCHW=rng.integers(0, 255, (16, 3, 1, 8, 8), np.uint8),
        distance_nK=np.sort(rng.uniform(1, 3, (16, 3))),
        generated_n=generated * rng.gamma(9, 0.2, 1000),
        real_m=rng.gamma(9, 0.2, 1500),
        features="fs-rn20.multi112",
    )


def page_of(content: dict[str, Any], **parts: Any) -> str:
    return sweep_page(SweepReport(record=SweepRecord.from_dict(content), **parts))


@pytest.fixture(scope="module")
def html() -> str:
    return page_of(demo_sweep(), grids=grids(), checks=(check(),))


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    return Reader(html)


def test_the_answer_is_the_first_thing_read(read: Reader):
    (contest,) = contests(SweepRecord.from_dict(demo_sweep()))
    words = ship_text(choose(contest), contest)

    assert words.startswith("Ship edm-fdm: ")
    first = read.texts.index(words)
    assert first < read.texts.index("What FD (fs-rn20) each number of calls buys")


def test_every_part_is_there(read: Reader):
    for heading in (
        "What FD (fs-rn20) each number of calls buys",
        "FD (fs-rn20) against network calls",
        "Samples at the same seeds",
        "Are samples copies of real images?",
        "Every cell",
        "How the scores were measured",
    ):
        assert heading in read.texts
    assert read.open == []
    assert (
        read.texts.count(
            "Framed: generated. Beside it: the nearest real images, nearest first, "
            "with their distances in fs-rn20.multi112 features."
        )
        == 1
    )
    assert sum(tag == "img" for tag, _ in read.tags) == len(grids()) + 1


def test_every_cell_stands_in_the_table_with_all_metrics(html: str):
    table = html[html.index('id="cells"') :]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", table)

    assert len([row for row in rows if "<td>" in row and "±" in row]) == 70
    assert all(row.count("<td>") == 9 for row in rows if "±" in row)
    for name in ("FD ↓", "standardised FD ↓", "KID ↓", "precision ↑", "recall ↑", "Plain", "n"):
        assert f'<th scope="col">{name}</th>' in table


def test_what_is_not_fid_is_said_not_to_be(html: str):
    words = "FID not run: features are fs-rn20.multi112, not comparable with any published FID."

    assert words in html
    fid = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    verified = record(extractor="inception.clean", extractor_sha256=fid)
    with_fid = page_of(sweep(cell("1", record(), verified)))
    assert "FID not run" not in with_fid
    assert "FID1k (clean, unbiased)" in with_fid


def test_nothing_is_fetched_and_names_never_become_markup():
    hostile = record(EVIL, solver=EVIL, guidance=EVIL, schedule=EVIL, reference=EVIL, ema=EVIL)
    left_out = [{"run": EVIL, "solver": EVIL, "nfe": 3, "guidance": EVIL, "reason": EVIL}]
    other = record("b", solver=EVIL, nfe=18)
    html = page_of(
        sweep(cell(EVIL, hostile), cell("2", other), dropped=left_out, skipped=left_out),
        missing=(EVIL,),
    )
    found = Reader(html)

    assert found.open == []
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    for tag, attributes in found.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,"))
    assert EVIL in found.texts


def test_a_sweep_that_goes_on_says_so():
    early = record(nfe=5, blocks=[1.0, 1.1, 1.2], n=300)
    html = page_of(sweep(cell("1", record()), cell("2", early), complete=False, waiting=[{}, {}]))

    assert "The sweep is not done: values and ranks may change, and 2 scores have no" in html
    assert "1 cell was measured with another number of images" in html
    assert "not ranked: other images" in html


def test_a_sweep_that_has_not_begun_has_a_page():
    html = page_of(sweep(complete=False, waiting=[{}]))

    assert "Nothing is scored yet" in html
    assert "No cell has enough images for an interval yet." in html
    assert Reader(html).open == []


def test_what_is_missing_is_said_in_a_sentence():
    html = page_of(demo_sweep(), missing=("No pictures of samples were kept.",))

    assert "<li>No pictures of samples were kept.</li>" in html
    assert "Samples at the same seeds" not in html


def test_what_was_left_out_stands_there_with_its_reason():
    dropped = [
        {"run": "edm", "solver": "euler", "nfe": n, "guidance": "", "reason": f"farther {n}"}
        for n in (3, 5)
    ]
    skipped = [{"solver": "heun", "nfe": 18, "reason": "an odd number of calls"}]
    html = page_of(sweep(cell("1", record()), dropped=dropped, skipped=skipped))

    assert "2 points of the grid left out by screening" in html
    assert "1 point of the grid that cannot be run" in html
    assert "edm, euler, NFE 5" in html
    assert "farther 5" in html
    assert "an odd number of calls" in html


def test_a_minimum_stands_apart_and_is_never_ranked():
    lowest = {"key": "1", "run": "edm", "metric": "fd1k.x.min3", "values": [0.5, 0.25, 0.75]}
    html = page_of(sweep(cell("1", record()), minima=[lowest]))

    assert "fd1k.x.min3" in html
    assert "0.500, 0.250, 0.750" in html
    assert "lower than a single one by construction" in html
    assert "0.250" not in html[: html.index('id="cells"')]


def test_mixed_hardware_is_flagged_at_the_cell_and_at_the_top():
    mixed = record(hardware={"device": "a | b", "mixed": "5 units on a; 5 units on b"})
    html = page_of(sweep(cell("1", mixed), cell("2", record(nfe=5))))

    assert "more than one kind of hardware" in html
    assert html.count("<small>mixed hardware</small>") == 1
    assert "mixed hardware" not in page_of(demo_sweep())


def test_each_reference_has_an_answer_of_its_own():
    other = record("b", reference="cifar/train", reference_sha256="00" * 32)
    html = page_of(sweep(cell("1", record("a")), cell("2", other)))

    assert "2 references, each with an answer of its own" in html
    assert "Against digits/train" in html
    assert "Against cifar/train" in html
    assert "never ranked against each other: each reference has its own answer" in html
    assert 'id="pareto1"' in html
    assert 'id="pareto2"' in html


def test_a_page_of_a_thousand_cells_stays_readable():
    """What grows with the grid is folded away; panels and grids are capped."""
    cells = [
        cell(f"{run}-{nfe}", record(f"net{run}", nfe=nfe, blocks=[nfe, nfe + run / 9, nfe + 0.5]))
        for run in range(40)
        for nfe in range(3, 28)
    ]
    html = page_of(sweep(*cells))

    assert html.count('class="chart"') <= 10
    assert html.count("<details>") == html.count("<details")  # the table is folded
    assert len(html) < 4_000_000


@pytest.mark.parametrize(("scale", "words"), [(1.0, "no sign of"), (0.3, "look for copies")])
def test_the_check_against_memorisation_says_what_it_found(scale: float, words: str):
    html = page_of(demo_sweep(), checks=(check(scale),))

    assert words in html
    assert "images of edm: heun at 9 calls (" in html


def test_the_same_record_gives_the_same_page(html: str):
    assert page_of(demo_sweep(), grids=grids(), checks=(check(),)) == html
