"""The frame of every page: one self-contained file that fetches nothing.

A strict Content-Security-Policy forbids every fetch and allows only the page's own style and
script, by hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files

from fleetstep.reporting import svg
from fleetstep.reporting.charts import Figure
from fleetstep.reporting.markup import Markup, element, raw
from fleetstep.reporting.palette import colour_of, marker_of

PNG = b"\x89PNG\r\n\x1a\n"
"""What the bytes of a PNG start with; nothing else is embedded."""


def document(
    title: str,
    *,
    subject: str,
    anchors: Sequence[tuple[str, str]],
    main: Iterable[Markup],
    footer: str,
) -> str:
    """The whole page as HTML.

    Args:
        title: the answer, for the browser's tab.
        subject: what the page is about, after the product's name.
        anchors: (id, short title) of each section.
        main: the sections.
        footer: the last line.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="generator", content="fleetstep"),
        element("title", f"{title} · Fleetstep"),
        element("style", raw(style)),
    )
    links = (element("a", name, href=f"#{key}") for key, name in anchors)
    body = element(
        "body",
        element(
            "header",
            element("span", element("strong", "Fleetstep"), subject),
            element("nav", *links, aria_label="Sections"),
        ),
        element("main", *main),
        element("footer", footer, class_="quiet"),
        element("script", raw(script)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def folded(summary: str, head: Markup, rows: Iterable[Markup], *, shown: bool = False) -> Markup:
    """A table behind its summary, which scrolls sideways where it is wide."""
    table = element(
        "table", element("thead", head), element("tbody", *rows), class_="sortable filterable"
    )
    region = element("div", table, class_="scroll", tabindex=0, role="region", aria_label=summary)
    return element("details", element("summary", summary), region, open=shown)


def picture(png: bytes, alternative: str, *caption: str) -> Markup:
    """A PNG inside the page, above its caption."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return element(
        "figure",
        element("img", src=source, alt=alternative),
        element("figcaption", *caption),
    )


def legend(figure: Figure) -> Markup:
    """What is drawn, by line and marker; `page.js` makes each name a switch of its series."""
    items = (element("li", swatch(slot), run, data_name=run) for run, slot in figure.runs)
    return element("ul", *items, class_="legend")


def swatch(slot: int) -> Markup:
    """A run's line and marker, to be set before its name."""
    line = element("line", x1=1, x2=17, y1=7, y2=7)
    mark = svg.shape(marker_of(slot), 9, 7, 3.4)
    return element(
        "svg",
        element("g", line, mark, class_=f"series s{colour_of(slot)}"),
        viewBox="0 0 18 14",
        aria_hidden="true",
    )


def _asset(name: str) -> str:
    return (files("fleetstep.reporting") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
