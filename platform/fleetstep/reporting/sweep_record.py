"""What a sweep measured, as its file `scores.json` tells it, and what of it may be ranked.

Cells are ranked only within a contest: one metric, one protocol, one reference. A sweep over two
datasets has two contests; cells of which fewer images are there so far stand in none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleetstep.errors import ComparisonError
from fleetstep.reporting.records import Protocol, Score
from fleetstep.reporting.wording import images_text


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell and seed block of a sweep.

    Args:
        key: name of the cell's folder.
        seed_block: which block of sample ids.
        calls_made: network calls per image that were made; fewer than counted where cells shared
            their first call.
        network: run, and what tells it from the sweep's other networks.
        scores: one a feature space and metric.
    """

    key: str
    seed_block: int
    calls_made: float
    network: str
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class LeftOut:
    """A point of the grid without a score, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class MinimumOf:
    """The lowest of several seed blocks' plain values, under its own name."""

    what: str
    metric: str
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep, finished or not.

    Args:
        name: of the sweep.
        complete: whether every score is there.
        entries: in the order of the sweep's cells.
        skipped: points that cannot be run.
        dropped: cells that screening left out.
        minima: lowest values over seed blocks.
        waiting: cells and seed blocks without enough images for a score so far.
    """

    name: str
    complete: bool
    entries: tuple[Entry, ...]
    skipped: tuple[LeftOut, ...] = ()
    dropped: tuple[LeftOut, ...] = ()
    minima: tuple[MinimumOf, ...] = ()
    waiting: int = 0

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks, in order."""
        return tuple(dict.fromkeys(entry.network for entry in self.entries))

    @property
    def scores(self) -> tuple[Score, ...]:
        """Every score."""
        return tuple(score for entry in self.entries for score in entry.scores)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> SweepRecord:
        """From the content of `scores.json`, which may be of a sweep that is not done.

        Raises:
            ComparisonError: it is damaged, or of another version.
        """
        try:
            scores = [
                tuple(Score.from_dict(score) for score in cell["scores"])
                for cell in record["cells"]
            ]
            names = _network_names(score for of_cell in scores for score in of_cell)
            entries = tuple(
                Entry(
                    key=str(cell["key"]),
                    seed_block=int(cell["seed_block"]),
                    calls_made=float(cell["calls_made"]),
                    network=names[_network(of_cell[0])],
                    scores=of_cell,
                )
                for cell, of_cell in zip(record["cells"], scores, strict=True)
                if of_cell
            )
            return cls(
                name=str(record["sweep"]["name"]),
                complete=bool(record["complete"]),
                entries=entries,
                skipped=tuple(map(_left_out, record["skipped"])),
                dropped=tuple(map(_left_out, record["dropped"])),
                minima=tuple(_minimum(one, entries) for one in record["minima"]),
                waiting=len(record.get("waiting", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ComparisonError(
                f"this is not the record of a sweep that this version writes: {error!r}",
                "sweep again; finished units are not computed again",
            ) from error


_Network = tuple[str, int, str, str]


def _network(score: Score) -> _Network:
    return (score.run, score.images_seen, score.ema, score.checkpoint)


def _network_names(scores: Iterable[Score]) -> dict[_Network, str]:
    """The run's name, with only those facts that tell networks of one name apart."""
    networks = list(dict.fromkeys(map(_network, scores)))
    names = {network: network[0] for network in networks}
    facts: tuple[Callable[[_Network], str], ...] = (
        lambda network: f" at {images_text(network[1])}",
        lambda network: f" ({network[2]})",
        lambda network: f" {network[3][:6]}",
    )
    for place, fact in enumerate(facts, start=1):
        count = Counter(names.values())
        for name in [name for name, times in count.items() if times > 1]:
            alike = [network for network in networks if names[network] == name]
            if len({network[place] for network in alike}) > 1:
                names.update({network: name + fact(network) for network in alike})
    return names


def _left_out(point: Mapping[str, Any]) -> LeftOut:
    calls = point.get("nfe")
    parts = (
        point.get("run"),
        point["solver"],
        None if calls is None else f"NFE {calls}",
        point.get("guidance"),
    )
    return LeftOut(", ".join(str(part) for part in parts if part), str(point["reason"]))


def _minimum(record: Mapping[str, Any], entries: Sequence[Entry]) -> MinimumOf:
    place = (str(record["key"]), str(record["run"]))
    found = next((one for one in entries if (one.key, one.scores[0].run) == place), None)
    what = str(record["key"])
    if found is not None:
        what = f"{found.network}: {found.scores[0].cell.title}"
    return MinimumOf(what, str(record["metric"]), tuple(float(v) for v in record["values"]))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A cell with the score that it is ranked by.

    Args:
        score: of the headline metric.
        others: its further scores.
    """

    key: str
    network: str
    calls_made: float
    score: Score
    others: tuple[Score, ...]


@dataclass(frozen=True)
class Contest:
    """Cells that may be ranked against each other: all were measured in one way."""

    protocol: Protocol
    candidates: tuple[Candidate, ...]

    def __post_init__(self) -> None:
        strangers = [c for c in self.candidates if c.score.protocol != self.protocol]
        if strangers:
            raise ComparisonError(
                f"cells are ranked within one protocol, but {strangers[0].score.cell.title} of "
                f"{strangers[0].network} was measured in another way",
                "rank each protocol apart",
            )

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks, in order."""
        return tuple(dict.fromkeys(candidate.network for candidate in self.candidates))

    @property
    def reference(self) -> str:
        """What the images are compared with."""
        return self.candidates[0].score.reference


def contests(record: SweepRecord) -> tuple[Contest, ...]:
    """One contest for every reference: in the headline metric, on the first seed block, among the
    cells that share a number of images; of several such groups the one of most cells.
    """
    candidates = headline_candidates(record)
    groups: dict[str, dict[Protocol, list[Candidate]]] = {}
    for one in candidates:
        protocol = one.score.protocol
        groups.setdefault(protocol.reference_sha256, {}).setdefault(protocol, []).append(one)
    return tuple(map(_largest, groups.values()))


def _largest(groups: Mapping[Protocol, Sequence[Candidate]]) -> Contest:
    protocol = max(groups, key=lambda one: (len(groups[one]), one.n))
    return Contest(protocol, tuple(groups[protocol]))


def headline_candidates(record: SweepRecord) -> tuple[Candidate, ...]:
    """Every cell by its score of the headline metric, of its first seed block."""
    if not record.scores:
        return ()
    chosen = min(record.scores, key=lambda score: score.protocol.precedence)
    first = min(entry.seed_block for entry in record.entries)
    found = []
    for entry in record.entries:
        mine = [s for s in entry.scores if metric_of(s) == metric_of(chosen)]
        if entry.seed_block == first and mine:
            found.append(
                Candidate(
                    key=entry.key,
                    network=entry.network,
                    calls_made=entry.calls_made,
                    score=mine[0],
                    others=tuple(s for s in entry.scores if s is not mine[0]),
                )
            )
    return tuple(found)


def metric_of(score: Score | Protocol) -> tuple[str, str, str]:
    """A metric in a feature space, whatever n and reference."""
    return (score.kind, score.extractor_sha256, score.preprocess)


def metrics_of(candidates: Iterable[Candidate]) -> list[Protocol]:
    """One protocol for each metric in each feature space, the headline first."""
    found: dict[tuple[str, str, str], Protocol] = {}
    for one in candidates:
        for score in (one.score, *one.others):
            found.setdefault(metric_of(score), score.protocol)
    return list(found.values())


def several_spaces(protocols: Iterable[Protocol]) -> bool:
    """Whether metrics are of more than one feature space, so that their names must say which."""
    return len({metric_of(protocol)[1:] for protocol in protocols}) > 1
