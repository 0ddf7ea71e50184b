import base64
import hashlib
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from fleetstep.reporting.comparison import compare
from fleetstep.reporting.markup import element
from fleetstep.reporting.page import page, write_page
from fleetstep.reporting.records import Grid
from fleetstep.reporting.tables import comparison_table, config_table, sweep_table
from page_reader import Reader
from synthetic_records import demo_records

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}&amp;[bold]'


@pytest.fixture(scope="module")
def html():
    return page(compare(demo_records(), "edm"))


@pytest.fixture(scope="module")
def read(html: str):
    return Reader(html)


def evil_records():
    records = list(demo_records()[:2])
    evil = replace(
        records[1],
        name=EVIL,
        run_id=EVIL,
        status=EVIL,
        params={EVIL: EVIL},
        tags={EVIL: EVIL},
        grids=(Grid(5, records[1].grids[0].png, EVIL), Grid(9, b"<svg onload=alert(3)>", EVIL)),
        scores=tuple(
            replace(s, solver=EVIL, schedule=EVIL, versions={EVIL: EVIL})
            for s in records[1].scores
        ),
    )
    return [records[0], evil]


def test_every_tag_is_closed(read: Reader):
    assert read.open == []


def test_nothing_is_fetched(html: str, read: Reader):
    for tag, attributes in read.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "video", "audio"}
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,")), (tag, name, target)
    assert re.search(r"https?://|//[a-z0-9.-]+\.[a-z]{2,}/|@import|url\(", html) is None


def test_the_policy_forbids_all_but_this_style_and_this_script(html: str, read: Reader):
    policy = next(a["content"] for t, a in read.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag


def test_the_policy_comes_before_what_it_governs(html: str):
    assert html.index("Content-Security-Policy") < html.index("<style>")


@pytest.mark.parametrize("baseline", ["edm", EVIL])
def test_names_and_parameters_never_become_markup(baseline: str):
    html = page(compare(evil_records(), baseline))
    read = Reader(html)

    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert not [a for _, a in read.tags if any(name.startswith("on") for name in a)]
    assert EVIL in read.texts  # shown, as it was written


def test_what_is_not_a_png_is_not_embedded():
    html = page(compare(evil_records(), "edm"))

    assert base64.b64encode(b"<svg onload").decode()[:12] not in html


def test_the_first_thing_read_is_the_answer(read: Reader):
    first = read.texts.index("Of 2 runs, edm-fdm-speed alone is better than edm at 95 %")

    assert first < read.texts.index("Held-out loss over training")
    assert "no difference" in read.texts
    assert any(text.startswith("Judged in one cell, ipndm with 19") for text in read.texts)


def test_the_protocol_says_that_this_is_not_fid(html: str):
    assert (
        "Fréchet distance in ResNet-20/CIFAR-10 features. Not FID: not comparable with any "
        "published FID, nor across extractors or references."
    ) in html


def test_a_fid_is_shown_with_its_raw_value():
    records = [
        replace(r, scores=tuple(replace(s, metric="fid1k.clean.unbiased") for s in r.scores))
        for r in demo_records()[:2]
    ]

    assert "<small>raw " in page(compare(records, "edm"))
    assert "<small>raw " not in page(compare(demo_records(), "edm"))


def test_grids_that_were_drawn_in_other_ways_do_not_show_the_models_alone(html: str):
    records = demo_records()[:2]
    other = replace(records[1], params={**records[1].params, "grid.nfe": "35"})
    changed = page(compare([records[0], other], "edm"))

    assert "so differences come from the models alone" in html
    assert "not drawn in the same way (grid.nfe): differences do not come from" in changed
    assert "so differences come from the models alone" not in changed


def test_every_mark_tells_its_numbers(read: Reader, html: str):
    marks = [a for t, a in read.tags if t == "g" and "mark" in a.get("class", "")]

    assert len(marks) == html.count("<title>") - 1
    assert "edm, heun, NFE 19: FD (fs-rn20)" in html


def test_a_comparison_without_scores_curves_or_grids_still_says_so():
    bare = [replace(r, scores=(), curves={}, grids=()) for r in demo_records()[:2]]
    html = page(compare(bare, "edm"))

    assert "No verdict on sample quality" in html
    assert "No checkpoint was scored" in html
    assert '<svg class="chart"' not in html
    assert Reader(html).open == []


def test_the_same_records_give_the_same_page(tmp_path: Path, html: str):
    write_page(compare(demo_records(), "edm"), tmp_path / "page.html")

    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "page.html").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_page(compare(demo_records(), "edm"), tmp_path / "page.html")

    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


def test_attributes_are_escaped():
    assert element("a", "<b>", title="\"'<") == '<a title="&quot;&#x27;&lt;">&lt;b&gt;</a>'


class TestTables:
    def printed(self, table: Table):
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(table)
        return console.export_text()

    def test_the_answer(self):
        text = self.printed(comparison_table(compare(demo_records(), "edm")))

        assert "−0.251 [−0.314, −0.188]" in text
        assert "better in 19, worse in 1 of 20 cells" in text

    def test_every_cell_and_run(self):
        comparison = compare(demo_records(), "edm")
        assert comparison.sweep is not None
        text = self.printed(sweep_table(comparison.sweep))

        assert all(name in text for name in ("edm-fdm-speed", "dpmpp_2m", "ipndm", "n = 1,000"))
        assert len(re.findall(r"\d ± \d", text)) == 3 * 20

    def test_console_markup_in_names_is_only_text(self):
        comparison = compare(evil_records(), "edm")

        assert "&amp;[bold]" in self.printed(comparison_table(comparison)).replace("\n", "")
        assert "[bold]" in self.printed(config_table(comparison))
