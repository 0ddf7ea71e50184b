"""The lower half of the page: samples, configuration, protocol and environment.

Each section is (anchor, short title, markup), or nothing where the records hold nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.document import PNG, picture
from fleetstep.reporting.markup import Markup, element, join
from fleetstep.reporting.records import Grid, Protocol, RunRecord, Score
from fleetstep.reporting.seeds import decides_nothing
from fleetstep.reporting.wording import duration_text, images_text, metric_card

Section = tuple[str, str, Markup]

_EARLIER = 6
"""At most this many earlier grids of a run are shown, evenly spread: the page stays small."""


def samples_section(comparison: Comparison) -> Iterator[Section]:
    """The last grid of every run side by side, and how each run came to it."""
    grids = {run.name: _pictures(run) for run in comparison.runs}
    if not any(grids.values()):
        return
    last = (_picture(grids[run.name][-1], run.name) for run in comparison.runs if grids[run.name])
    earlier = [
        join(
            element("h3", run.name),
            element(
                "div",
                *(_picture(grid, "") for grid in _spread(grids[run.name][:-1])),
                class_="strip",
            ),
        )
        for run in comparison.runs
        if len(grids[run.name]) > 1
    ]
    folded = element("details", element("summary", "Earlier in training"), *earlier)
    content = element(
        "section",
        element("h2", "Samples at the same seeds"),
        element(
            "p",
            _grids_text(comparison),
            class_="quiet",
        ),
        element("div", *last, class_="grids"),
        folded if earlier else "",
        id="samples",
    )
    yield "samples", "Samples", content


def _grids_text(comparison: Comparison) -> str:
    """What differences between the grids may be put down to."""
    differing = [key for key, _ in comparison.config if key.startswith("grid.")]
    same = "Place by place the grids start from the same latents and labels"
    if not differing:
        return f"{same}, so differences come from the models alone."
    return (
        f"{same}, but they were not drawn in the same way ({', '.join(differing)}): differences "
        "do not come from the models alone."
    )


def _pictures(run: RunRecord) -> tuple[Grid, ...]:
    """The run's grids in order; what is not a PNG is not embedded."""
    pictures = (grid for grid in run.grids if grid.png.startswith(PNG))
    return tuple(sorted(pictures, key=lambda grid: grid.images_seen))


def _spread(grids: Sequence[Grid]) -> Sequence[Grid]:
    if len(grids) <= _EARLIER:
        return grids
    return [grids[i * (len(grids) - 1) // (_EARLIER - 1)] for i in range(_EARLIER)]


def _picture(grid: Grid, run: str) -> Markup:
    seen = f"after {images_text(grid.images_seen)}"
    words = ", ".join(part for part in (seen, grid.caption if run else "") if part)
    alternative = f"Samples of {run or 'the run'} {words}"
    return picture(grid.png, alternative, element("strong", run), " " if run else "", words)


def config_section(comparison: Comparison) -> Iterator[Section]:
    """The parameters that differ, first those that decide what is learned; the same ones are
    counted, not listed.
    """
    if len(comparison.runs) < 2:
        return
    names, rows = _config_rows(comparison)
    deciding = [row for row in rows if not decides_nothing(row[0])]
    others = [row for row in rows if decides_nothing(row[0])]
    common = len({key for run in comparison.runs for key in run.params}) - len(comparison.config)
    summary = f"{len(others)} more differ in name, place or execution, which decide nothing"
    content = element(
        "section",
        element("h2", "What differs in the configuration"),
        element("p", f"{common} further parameters are the same in all runs.", class_="quiet"),
        _config_table(names, deciding) if deciding else element("p", "Nothing differs."),
        element("details", element("summary", summary), _config_table(names, others))
        if others
        else "",
        id="config",
    )
    yield "config", "Configuration", content


def _config_rows(
    comparison: Comparison,
) -> tuple[Sequence[str], Sequence[tuple[str, Sequence[str]]]]:
    """(names of the columns, rows of what differs between them); a column is a run, or an arm
    with the values of all its seeds.
    """
    if not comparison.arms.over_seeds:
        rows = [(key, [v or "–" for v in values]) for key, values in comparison.config]
        return [run.name for run in comparison.runs], rows
    places = {run.name: place for place, run in enumerate(comparison.runs)}
    columns = [[places[r.name] for r in s.arm.runs] for s in comparison.arms.standings]
    joined = (
        (key, [_listed_values(values[place] for place in column) for column in columns])
        for key, values in comparison.config
    )
    names = [standing.arm.name for standing in comparison.arms.standings]
    return names, [row for row in joined if len(set(row[1])) > 1]


def _listed_values(values: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(value or "–" for value in values))


def _config_table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    head = element("tr", *(element("th", name, scope="col") for name in ("Parameter", *names)))
    body = (
        element(
            "tr",
            element("th", element("code", key), scope="row"),
            *(
                element("td", value if value == "–" else element("code", value), data_label=name)
                for name, value in zip(names, values, strict=True)
            ),
        )
        for key, values in rows
    )
    return element(
        "table",
        element("thead", head),
        element("tbody", *body),
        class_="cards values sortable filterable",
    )


def protocol_section(scores: Sequence[Score]) -> Iterator[Section]:
    """What the numbers are and are not: one card for all metrics of the same samples."""
    if not scores:
        return
    content = element(
        "section",
        element("h2", "How the scores were measured"),
        element(
            "p",
            "Scores of different protocols are never ranked against each other.",
            class_="quiet",
        ),
        *protocol_cards(scores),
        id="protocol",
    )
    yield "protocol", "Protocol", content


def protocol_cards(scores: Iterable[Score]) -> Iterator[Markup]:
    """A card for each way of measuring, whatever the metric and the seeds."""
    shared: dict[Protocol, list[Score]] = {}
    for score in scores:
        shared.setdefault(replace(score.protocol.of_samples, seeds=""), []).append(score)
    yield from (_card(alike) for alike in shared.values())


def _card(scores: Sequence[Score]) -> Markup:
    """The protocol of scores that differ in metric and seeds alone."""
    score = scores[0]
    facts = {
        "Metrics": _distinct(one.metric for one in scores),
        "Samples": f"n = {score.n:,} in {score.blocks} jackknife blocks",
        "Protocol": score.protocol_name,
        "Seeds": _distinct(one.seeds for one in scores),
        "Extractor": f"{score.extractor} {score.extractor_sha256}".strip(),
        "Reference": f"{score.reference} {score.reference_sha256}".strip(),
        "Reference samples": f"{score.reference_n:,}" if score.reference_n else "",
        "Preprocessing": score.preprocess,
        "Texts": _distinct(one.texts for one in scores),
        "Quantisation": score.quantisation,
        "Solver's dtype": _distinct(one.dtype for one in scores),
        "Labels": _distinct(one.labels for one in scores),
        "EMA": _distinct(one.ema for one in scores),
        "Guidance": _distinct(one.guidance for one in scores),
        "Schedules": _distinct(f"{one.solver}: {one.schedule}" for one in scores),
        "Checkpoints": _distinct(f"{one.run} {one.checkpoint[:16]}" for one in scores),
    }
    cards = dict.fromkeys(metric_card(one.protocol, one.extractor) for one in scores)
    pairs = (
        join(element("dt", name), element("dd", element("code", value)))
        for name, value in facts.items()
        if value
    )
    first, *others = cards
    card = (
        element("p", element("strong", first)),
        element("p", " ".join(others), class_="quiet") if others else "",
        element("dl", *pairs),
    )
    return element("div", *card, class_="card")


def environment_section(comparison: Comparison) -> Iterator[Section]:
    """Where and with what each run was trained and scored: one column a run."""
    facts = [_environment(run) for run in comparison.runs]
    names = [run.name for run in comparison.runs]
    head = element("tr", *(element("th", name, scope="col") for name in ("", *names)))
    rows = (
        _fact_row(key, names, [one.get(key, "") for one in facts])
        for key in dict.fromkeys(key for one in facts for key in one)
    )
    table = element(
        "table", element("thead", head), element("tbody", *rows), class_="cards values"
    )
    scroll = element(
        "div", table, class_="scroll", tabindex=0, role="region", aria_label="Environment"
    )
    content = element("section", element("h2", "Environment"), scroll, id="environment")
    yield "environment", "Environment", content


def _environment(run: RunRecord) -> dict[str, str]:
    seconds = (run.ended - run.started).total_seconds() if run.ended and run.started else 0.0
    facts = {
        "Run": run.run_id,
        "Status": run.status,
        "Started": run.started.strftime("%Y-%m-%d %H:%M %Z").strip() if run.started else "",
        "Duration": duration_text(seconds) if seconds > 0 else "",
        "Scored with": _distinct(_listed(score.versions) for score in run.scores),
        "Scored on": _distinct(_listed(score.hardware) for score in run.scores),
    }
    tags = {key: text for key, text in sorted(run.tags.items()) if not key.startswith("mlflow.")}
    return {key: text for key, text in (facts | tags).items() if text}


def _fact_row(key: str, names: Sequence[str], values: Sequence[str]) -> Markup:
    """One fact of all runs; what all share is said once."""
    if len(values) > 1 and len(set(values)) == 1:
        shared = element("td", element("code", values[0]), colspan=len(values), data_label="all")
        return element("tr", element("th", key, scope="row"), shared)
    cells = (
        element("td", element("code", value) if value else "–", data_label=name)
        for name, value in zip(names, values, strict=True)
    )
    return element("tr", element("th", key, scope="row"), *cells)


def _listed(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(facts.items()))


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))
