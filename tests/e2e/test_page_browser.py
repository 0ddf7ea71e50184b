"""The pages in a real browser: they render, load nothing, and fit a phone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from e2e.devtools import Chromium
from fleetstep.reporting.comparison import compare
from fleetstep.reporting.neighbours import NeighbourCheck
from fleetstep.reporting.page import write_page
from fleetstep.reporting.search_page import SearchReport, write_search_page
from fleetstep.reporting.search_record import SearchRecord
from fleetstep.reporting.seed_grids import SeedGrid
from fleetstep.reporting.sweep_page import SweepReport, write_sweep_page
from fleetstep.reporting.sweep_record import SweepRecord
from synthetic_records import demo_records, seed_records
from synthetic_search import demo_search
from synthetic_sweep import NFE, SOLVERS, demo_sweep

pytestmark = pytest.mark.browser

HEADINGS = [
    "Held-out loss over training",
    "Speed-up over edm",
    "FD (fs-rn20) against network calls",
    "Paired differences to edm",
    "Where on the noise axis the held-out error changes",
    "Samples at the same seeds",
    "What differs in the configuration",
    "How the scores were measured",
    "Environment",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def browser(folder: Path):
    with Chromium(folder / "profile") as browser:
        yield browser


@pytest.fixture(scope="module")
def url(folder: Path):
    path = folder / "comparison.html"
    write_page(compare(demo_records(), "edm"), path)
    return path.as_uri()


@pytest.fixture(scope="module")
def report():
    return SearchReport.of(SearchRecord.from_dict(demo_search(several=True)))


@pytest.fixture(scope="module")
def seeds_url(folder: Path, report: SearchReport):
    """Settings with several seeds, and a search on the same page."""
    path = folder / "seeds.html"
    write_page(compare(seed_records(), "edm"), path, [report])
    return path.as_uri()


@pytest.fixture(scope="module")
def search_url(folder: Path, report: SearchReport):
    path = folder / "search.html"
    write_search_page([report], path)
    return path.as_uri()


@pytest.fixture(scope="module")
def sweep_url(folder: Path):
    rng = np.random.default_rng(0)
    rows = tuple((name, rng.integers(0, 255, (8, 3, 32, 32), np.uint8)) for name in SOLVERS)
    check = NeighbourCheck(
        cell="edm-fdm: dpmpp_2m at 9 calls",
        images_nCHW=rng.integers(0, 255, (16, 3, 32, 32), np.uint8),
        neighbours_nKCHW=rng.integers(0, 255, (16, 3, 3, 32, 32), np.uint8),
        distance_nK=np.sort(rng.uniform(1, 3, (16, 3))),
        generated_n=rng.gamma(9, 0.2, 1000),
        real_m=rng.gamma(9, 0.2, 1500),
        features="fs-rn20.multi112",
    )
    report = SweepReport(
        record=SweepRecord.from_dict(demo_sweep({"edm": 0.2, "edm-fdm": -0.05}.__getitem__)),
        grids=tuple(SeedGrid("edm-fdm", str(nfe), rows) for nfe in NFE),
        checks=(check,),
    )
    path = folder / "sweep.html"
    write_sweep_page(report, path)
    return path.as_uri()


def assert_silent(browser: Chromium):
    """No error, no warning, and no request but the page and its inline images."""
    assert browser.seen("Runtime.exceptionThrown") == []
    assert browser.seen("Log.entryAdded") == []
    assert browser.seen("Runtime.consoleAPICalled") == []
    requests = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert requests
    assert [url for url in requests if not url.startswith(("file://", "data:"))] == []
    assert sum(url.startswith("file://") for url in requests) == 1


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_without_errors_or_network(
    browser: Chromium, url: str, folder: Path, width: int, dark: bool
):
    browser.open(url, width=width, dark=dark)

    assert_silent(browser)
    assert browser.evaluate("document.querySelector('h1').innerText") == (
        "Of 2 runs, edm-fdm-speed alone is better than edm at 95 %"
    )
    headings = browser.evaluate("[...document.querySelectorAll('h2')].map((h) => h.innerText)")
    assert headings == HEADINGS
    widths = browser.evaluate("[...document.images].map((i) => i.naturalWidth)")
    assert len(widths) == 9
    assert min(widths) > 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.screenshot(folder / f"{width}-{'dark' if dark else 'light'}.png")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_sweeps_page_renders_too(
    browser: Chromium, sweep_url: str, folder: Path, width: int, dark: bool
):
    browser.open(sweep_url, width=width, dark=dark)

    assert_silent(browser)
    assert browser.evaluate("document.querySelector('h1').innerText").startswith("Ship edm-fdm: ")
    widths = browser.evaluate("[...document.images].map((i) => i.naturalWidth)")
    assert len(widths) == len(NFE) + 1
    assert min(widths) > 0
    opened = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
    browser.evaluate(opened)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.screenshot(folder / f"sweep-{width}-{'dark' if dark else 'light'}.png")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["seeds", "search"])
def test_seeds_and_searches_render_too(
    browser: Chromium,
    name: str,
    folder: Path,
    width: int,
    dark: bool,
    request: pytest.FixtureRequest,
):
    browser.open(request.getfixturevalue(f"{name}_url"), width=width, dark=dark)

    assert_silent(browser)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('.thread').length") == 23
    browser.screenshot(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")


def column(browser: Chromium, index: int) -> list[str]:
    """The texts of a column of the trials' table, in the order shown."""
    rows = "[...document.querySelectorAll('.trials tbody tr')]"
    return browser.evaluate(f"{rows}.map((r) => r.cells[{index}].innerText)")


def pressed(browser: Chromium, key: str, code: int) -> None:
    for kind in ("rawKeyDown", "char", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            text="\r" if key == "Enter" else key,
            windowsVirtualKeyCode=code,
        )


def test_a_column_is_sorted_by_click_and_by_keyboard(browser: Chromium, search_url: str):
    browser.open(search_url, width=1280)
    head = "document.querySelectorAll('.trials thead th')[3]"
    given = column(browser, 3)

    browser.evaluate(f"{head}.querySelector('button').click()")
    rates = [float(text) for text in column(browser, 3)]
    assert rates == sorted(rates)
    assert len(rates) == 24
    assert browser.evaluate(f"{head}.ariaSort") == "ascending"

    browser.evaluate(f"{head}.querySelector('button').focus()")
    pressed(browser, "Enter", 13)
    assert browser.evaluate(f"{head}.ariaSort") == "descending"
    assert [float(text) for text in column(browser, 3)] == sorted(rates, reverse=True)

    pressed(browser, "Enter", 13)
    assert browser.evaluate(f"{head}.ariaSort") == "none"
    assert column(browser, 3) == given
    assert_silent(browser)


def test_what_has_no_value_is_last_whichever_way_it_is_sorted(browser: Chromium, search_url: str):
    browser.open(search_url, width=1280)
    button = "document.querySelectorAll('.trials thead th')[5].querySelector('button')"

    for _ in range(2):
        browser.evaluate(f"{button}.click()")
        multipliers = column(browser, 5)
        known = [text for text in multipliers if text != "–"]
        assert len(known) == 8
        assert multipliers == [*known, *["–"] * 16]
    assert known == sorted(known, key=float, reverse=True)


def test_words_are_sorted_as_words_and_one_column_at_a_time(browser: Chromium, search_url: str):
    browser.open(search_url, width=1280)
    for index in (3, 4):
        head = f"document.querySelectorAll('.trials thead th')[{index}]"
        browser.evaluate(f"{head}.querySelector('button').click()")

    assert column(browser, 4) == ["fdm"] * 8 + ["plain"] * 8 + ["speed"] * 8
    sorts = browser.evaluate(
        "[...document.querySelectorAll('.trials thead th')].map((th) => th.ariaSort)"
    )
    assert [i for i, sort in enumerate(sorts) if sort != "none"] == [4]


def test_rows_are_filtered_by_all_words(browser: Chromium, search_url: str):
    browser.open(search_url, width=1280)
    field = "document.querySelector('.filter input')"
    shown = "[...document.querySelectorAll('.trials tbody tr')].filter((r) => r.offsetHeight > 0)"

    browser.evaluate(f"{field}.focus()")
    browser.send("Input.insertText", text="FDM finished")
    states = browser.evaluate(f"{shown}.map((r) => [r.cells[4].innerText, r.cells[7].innerText])")
    assert states
    assert {tuple(state) for state in states} == {("fdm", "finished")}
    assert browser.evaluate("document.querySelector('.filter [role=status]').innerText") == (
        f"{len(states)} of 24 rows"
    )
    browser.evaluate(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")
    assert browser.evaluate(f"{shown}.length") == 24


def test_a_legends_name_hides_its_series_and_its_words(browser: Chromium, url: str):
    browser.open(url, width=1280)
    count = (
        "[...document.querySelectorAll('#nfe .series')]"
        ".filter((s) => getComputedStyle(s).display !== 'none').length"
    )
    button = "document.querySelectorAll('#nfe .legend button')[1]"
    before = browser.evaluate(count)

    browser.evaluate(f"{button}.click()")
    assert browser.evaluate(f"{button}.ariaPressed") == "false"
    # One series in each of five panels; other figures keep theirs.
    assert browser.evaluate(count) == before - 5
    assert browser.evaluate("document.querySelectorAll('#loss .series.off').length") == 0
    browser.evaluate(f"{button}.click()")
    assert browser.evaluate(count) == before
    assert_silent(browser)


def test_everything_is_readable_without_the_script(browser: Chromium, seeds_url: str):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(seeds_url, width=1280)
        text = browser.evaluate("document.body.innerText")
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)

    assert "edm-fdm is better than edm over 3 seeds at 95 %" in text
    assert "Filter rows" not in text
    assert "0.943 times the held_out of plain EDM" in text
    assert "0013" in text


def test_the_sweeps_answer_and_front_are_on_the_first_screen(browser: Chromium, sweep_url: str):
    browser.open(sweep_url, width=1280, height=800)
    bottom = browser.evaluate(
        "document.querySelector('.answer table').getBoundingClientRect().bottom"
    )

    assert bottom < 800


def test_it_follows_the_colour_scheme(browser: Chromium, url: str):
    papers = []
    for dark in (False, True):
        browser.open(url, width=1280, dark=dark)
        papers.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert papers == ["rgb(255, 255, 255)", "rgb(15, 19, 24)"]


def test_the_answer_is_on_the_first_screen(browser: Chromium, url: str):
    browser.open(url, width=1280, height=800)
    bottom = browser.evaluate(
        "document.querySelector('.answer table').getBoundingClientRect().bottom"
    )

    assert bottom < 800


@pytest.mark.parametrize("page", ["url", "sweep_url", "seeds_url", "search_url"])
def test_texts_stay_readable_on_a_phone(
    browser: Chromium, page: str, request: pytest.FixtureRequest
):
    browser.open(request.getfixturevalue(page), width=390)
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('.chart text')].map((t) =>"
        " parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"
    )

    assert smallest > 9


@pytest.mark.parametrize("page", ["url", "sweep_url", "seeds_url", "search_url"])
def test_no_text_is_cut_at_the_edge_of_its_chart(
    browser: Chromium, page: str, request: pytest.FixtureRequest
):
    browser.open(request.getfixturevalue(page), width=1280)
    cut = browser.evaluate(
        "[...document.querySelectorAll('.chart text')].filter((t) => {"
        " const b = t.getBBox(), v = t.ownerSVGElement.viewBox.baseVal;"
        " return b.x < -0.5 || b.x + b.width > v.width + 0.5 || b.y < 0"
        " || b.y + b.height > v.height; }).map((t) => t.textContent)"
    )

    assert cut == []


def test_pointing_at_a_mark_tells_its_numbers(browser: Chromium, url: str):
    browser.open(url, width=1280)
    place = browser.evaluate(
        "(() => { const mark = document.querySelector('#nfe .mark');"
        " mark.scrollIntoView({block: 'center', behavior: 'instant'});"
        " const b = mark.lastElementChild.getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])

    assert browser.evaluate("getComputedStyle(document.querySelector('.tip')).visibility") == (
        "visible"
    )
    tip = browser.evaluate("document.querySelector('.tip').textContent")
    assert tip.startswith("edm, dpmpp_2m, NFE 5: FD (fs-rn20) 10.")


def test_a_hostile_name_stays_a_name(browser: Chromium, folder: Path):
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    first, second, _ = demo_records()
    path = folder / "hostile.html"
    write_page(compare([first, replace(second, name=evil, params={evil: evil})], "edm"), path)

    browser.open(path.as_uri(), width=390)

    assert_silent(browser)
    assert evil in browser.evaluate("document.querySelector('h1').innerText")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_policy_stops_what_the_page_might_try(browser: Chromium, url: str):
    """The net under the escaping: even script that ran could not reach out."""
    browser.open(url, width=1280)
    blocked = browser.evaluate(
        "new Promise((resolve) => {"
        " document.addEventListener('securitypolicyviolation',"
        " (e) => resolve(e.effectiveDirective));"
        " fetch('http://192.0.2.1/').catch(() => 0);"
        " setTimeout(() => resolve('nothing'), 5000); })"
    )

    assert blocked == "connect-src"
