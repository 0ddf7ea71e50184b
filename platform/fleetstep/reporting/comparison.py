"""From the records of several runs to one comparison: the pure entry point of this package.

Two rules decide what stands beside what. Scores of different protocols (metric, n, extractor,
reference...) live in different sweeps and are never ranked against each other. Of each run the
last scored checkpoint counts, and where runs stopped at different places the comparison says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fleetstep.errors import ComparisonError
from fleetstep.reporting.arms import ArmComparison, compare_arms
from fleetstep.reporting.comparison_notes import (
    checkpoint_notes,
    held_out_notes,
    run_notes,
    sweep_notes,
)
from fleetstep.reporting.records import HELD_OUT_LOSS, Cell, Protocol, RunRecord, Score
from fleetstep.reporting.seeds import Arm, arms_of, pairs_of
from fleetstep.reporting.statistics import (
    Difference,
    TimeToQuality,
    check_comparable,
    final_value,
    paired_difference,
    time_to_quality,
)


@dataclass(frozen=True)
class Sweep:
    """All scores of one protocol, last checkpoint of each run, and their differences to the
    baseline.

    Args:
        partners: run name -> the baseline's run that it is paired with: of its own seed, where the
            baseline was trained with several.
        scores: (run name, cell) -> score.
        differences: (run name, cell) -> run minus partner, for every cell that both have.
    """

    protocol: Protocol
    baseline: str
    partners: Mapping[str, str]
    scores: Mapping[tuple[str, Cell], Score]
    differences: Mapping[tuple[str, Cell], Difference]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell that any run has, by solver, schedule and NFE."""
        return tuple(sorted({cell for _, cell in self.scores}))

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs with scores here, in the order of the comparison."""
        return tuple(dict.fromkeys(name for name, _ in self.scores))

    def of(self, run: str) -> tuple[Score, ...]:
        """The scores of one run, by cell."""
        return tuple(self.scores[run, cell] for cell in self.cells if (run, cell) in self.scores)

    def best(self, run: str) -> Score | None:
        """The best score of a run; chosen by looking, so a little optimistic."""
        return min(self.of(run), key=lambda score: score.shortfall, default=None)

    def paired(self, run: str) -> tuple[Difference, ...]:
        """All differences of one run to its partner, by cell."""
        return tuple(
            self.differences[run, cell] for cell in self.cells if (run, cell) in self.differences
        )

    def headline(self, run: str) -> Difference | None:
        """The difference in the shared cell where the *partner* scores best.

        The baseline chooses the cell, not the challenger: the choice cannot flatter the run that
        is judged, and there is one test a run, not one a cell.
        """
        return min(
            self.paired(run),
            key=lambda d: self.scores[self.partners[run], d.cell].shortfall,
            default=None,
        )


@dataclass(frozen=True)
class Standing:
    """One run's row in the answer.

    Args:
        headline: its difference to its partner in the headline cell; None for the baseline's runs
            and without scores.
        best: its best score of the headline protocol.
        final_loss: last held-out loss.
        time_to_quality: None where the curves cannot be compared.
    """

    run: RunRecord
    headline: Difference | None
    best: Score | None
    final_loss: float | None
    time_to_quality: TimeToQuality | None


@dataclass(frozen=True)
class Comparison:
    """Everything a table, a plot or the page shows.

    Args:
        standings: baseline first, then the runs as they were given.
        arms: the same runs by setting, over their training seeds.
        partners: run name -> the baseline's run that it is paired with, as in `Sweep`.
        losses_compared: whether the held-out losses were measured in one way; `notes` say why not.
        sweeps: one a protocol, the headline first; empty where nothing was scored.
        config: (key, value of each standing's run or None) for every parameter that differs.
        refusals: why scores stand apart, in words.
        notes: what a careful reader must know, in words.
    """

    baseline: str
    standings: tuple[Standing, ...]
    arms: ArmComparison
    partners: Mapping[str, str]
    losses_compared: bool
    sweeps: tuple[Sweep, ...]
    config: tuple[tuple[str, tuple[str | None, ...]], ...]
    refusals: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """The runs, baseline first."""
        return tuple(standing.run for standing in self.standings)

    @property
    def looks(self) -> Mapping[str, tuple[str, int]]:
        """Run name -> name and slot it is drawn with: those of its arm."""
        return {
            run.name: (standing.arm.name, slot)
            for slot, standing in enumerate(self.arms.standings)
            for run in standing.arm.runs
        }

    @property
    def sweep(self) -> Sweep | None:
        """The headline sweep."""
        return self.sweeps[0] if self.sweeps else None

    @property
    def by_samples(self) -> tuple[tuple[Sweep, ...], ...]:
        """The sweeps in groups: all metrics of the same images in the same features."""
        groups: dict[Protocol, list[Sweep]] = {}
        for sweep in self.sweeps:
            groups.setdefault(sweep.protocol.of_samples, []).append(sweep)
        return tuple(
            tuple(sorted(group, key=lambda s: s.protocol.precedence)) for group in groups.values()
        )


def compare(records: Sequence[RunRecord], baseline: str) -> Comparison:
    """Compare runs with one of them.

    Args:
        records: at least one run. Runs of one name are told apart by the start of their ids.
        baseline: name or id of the run, or name of the arm, that the others are measured against.

    Raises:
        ComparisonError: no records, or no single run is called `baseline`.
    """
    chosen = _find(records, baseline)
    runs = _named_apart([records[chosen], *records[:chosen], *records[chosen + 1 :]])
    name = runs[0].name
    arms = arms_of(runs)
    partners = _partners(arms, runs)
    sweeps, refusals = _sweeps(runs, partners)
    config = config_differences(runs)
    loss_notes = held_out_notes(runs, config)
    known = {run.name: run for run in runs}
    standings = tuple(
        Standing(
            run=run,
            headline=sweeps[0].headline(run.name) if sweeps else None,
            best=sweeps[0].best(run.name) if sweeps else None,
            final_loss=final_value(run.curves.get(HELD_OUT_LOSS)),
            time_to_quality=None
            if loss_notes
            else _time_to_quality(run, known[partners.get(run.name, run.name)]),
        )
        for run in runs
    )
    shown = {run.name: {s.images_seen for w in sweeps for s in w.of(run.name)} for run in runs}
    judged = compare_arms(arms, sweeps[0].scores if sweeps else {}, losses_compared=not loss_notes)
    notes = (
        *loss_notes,
        *run_notes(runs, config),
        *sweep_notes(tuple(sweeps[0].scores.values()) if sweeps else ()),
        *checkpoint_notes(runs, shown),
    )
    return Comparison(
        name, standings, judged, partners, not loss_notes, sweeps, config, refusals, notes
    )


def config_differences(
    runs: Sequence[RunRecord],
) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """Every flattened parameter that is not the same in all runs, sorted by key; None where a run
    has no such key.
    """
    keys = sorted({key for run in runs for key in run.params})
    rows = ((key, tuple(run.params.get(key) for run in runs)) for key in keys)
    return tuple((key, values) for key, values in rows if len(set(values)) > 1)


def _find(records: Sequence[RunRecord], baseline: str) -> int:
    found = [i for i, run in enumerate(records) if baseline in (run.name, run.run_id)]
    if not found:
        first = {arm.runs[0].run_id for arm in arms_of(records) if arm.name == baseline}
        found = [i for i, run in enumerate(records) if run.run_id in first]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(records[i].run_id for i in found)
        raise ComparisonError(
            f"the baseline must be one run, but {len(found)} runs are called {baseline!r}",
            f"give an id: {ids}",
        )
    names = ", ".join(run.name for run in records) or "none at all"
    raise ComparisonError(
        f"the baseline must be one of the compared runs, but got {baseline!r}",
        f"the runs are: {names}",
    )


def _named_apart(runs: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
    counts = Counter(run.name for run in runs)
    return tuple(
        run if counts[run.name] == 1 else replace(run, name=f"{run.name} ({run.run_id[:8]})")
        for run in runs
    )


def _partners(arms: Sequence[Arm], runs: Sequence[RunRecord]) -> Mapping[str, str]:
    """The baseline's run that each run is paired with.

    Runs of the baseline's own arm have one only where there is no other arm: what differs between
    seeds is then the question.
    """
    paired = {
        pair.run.name: pair.baseline.name
        for arm in arms[1:]
        for pair in pairs_of(arm, arms[0])
        if pair.same_seed
    }
    judged = runs[1:] if len(arms) == 1 else [run for arm in arms[1:] for run in arm.runs]
    return {run.name: paired.get(run.name, runs[0].name) for run in judged}


def _sweeps(
    runs: Sequence[RunRecord], partners: Mapping[str, str]
) -> tuple[tuple[Sweep, ...], tuple[str, ...]]:
    by_protocol: dict[Protocol, dict[str, list[Score]]] = {}
    for run in runs:
        for score in run.scores:
            of_run = by_protocol.setdefault(score.protocol, {}).setdefault(run.name, [])
            of_run.append(replace(score, run=run.name))
    baseline = runs[0].name
    sweeps = [
        _sweep(protocol, baseline, partners, scores) for protocol, scores in by_protocol.items()
    ]
    sweeps.sort(key=lambda sweep: _rank(sweep, baseline))
    return tuple(sweeps), _refusals(runs, sweeps)


def _rank(sweep: Sweep, baseline: str) -> tuple[bool, int, int, int, str, str]:
    """Order of sweeps: with the baseline, most runs, FID and plain distances before others, most
    samples.
    """
    protocol = sweep.protocol
    return (
        baseline not in sweep.runs,
        -len(sweep.runs),
        protocol.precedence,
        -protocol.n,
        protocol.metric,
        protocol.seeds,
    )


def _sweep(
    protocol: Protocol,
    baseline: str,
    partners: Mapping[str, str],
    by_run: Mapping[str, Sequence[Score]],
) -> Sweep:
    scores = {
        (run, score.cell): score
        for run, candidates in by_run.items()
        for score in candidates
        if score.images_seen == max(other.images_seen for other in candidates)
    }
    pairs = {
        key: (score, scores.get((partners[key[0]], key[1])))
        for key, score in scores.items()
        if key[0] in partners
    }
    differences = {
        key: paired_difference(score, other)
        for key, (score, other) in pairs.items()
        if other is not None
        and len(score.pseudo_values) == len(other.pseudo_values) == protocol.blocks > 1
    }
    return Sweep(protocol, baseline, partners, scores, differences)


def _refusals(runs: Sequence[RunRecord], sweeps: Sequence[Sweep]) -> tuple[str, ...]:
    """One sentence for every run whose scores cannot stand beside the baseline's in any sweep."""
    baseline = runs[0].name
    reference = next((score for sweep in sweeps for score in sweep.of(baseline)), None)
    refusals = []
    for run in runs[1:]:
        own = [(sweep, score) for sweep in sweeps for score in sweep.of(run.name)]
        if not own or reference is None or any(sweep.paired(run.name) for sweep, _ in own):
            continue
        nearest = min((score for _, score in own), key=lambda score: _distance(score, reference))
        try:
            check_comparable(nearest, reference)
        except ComparisonError as error:
            refusals.append(f"{error.message[0].upper()}{error.message[1:]}.")
    return tuple(refusals)


def _distance(score: Score, other: Score) -> tuple[bool, bool, bool]:
    """How far a score is from another: by metric, then solver, then NFE."""
    return (score.metric != other.metric, score.solver != other.solver, score.nfe != other.nfe)


def _time_to_quality(run: RunRecord, baseline: RunRecord) -> TimeToQuality | None:
    curve, reference = run.curves.get(HELD_OUT_LOSS), baseline.curves.get(HELD_OUT_LOSS)
    return (
        time_to_quality(curve, reference) if curve is not None and reference is not None else None
    )
