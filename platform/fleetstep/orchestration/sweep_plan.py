"""What a sweep will do, before anything runs: cells, units, network calls, and what is skipped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fleetstep.errors import SamplingError, UsageError
from fleetstep.evaluation.spec import Quantisation
from fleetstep.orchestration.cells import (
    UNIT,
    Cell,
    LabelRule,
    ReferenceSet,
    SnapshotRef,
    Unit,
    shape_text,
    units_of,
)
from fleetstep.orchestration.dispatch import breadth_first
from fleetstep.orchestration.sweep_solvers import (
    Setting,
    Skipped,
    StateDtype,
    evaluation_calls,
    reason_of,
    solver_text,
    state_dtype,
)
from fleetstep.sampling.spec import AmedSpec

QUICK_BLOCKS, BLOCKS = 10, 20
"""Jackknife blocks of a score: each is a whole number of units."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network of the grid: a snapshot's EMA track, and what its samples are compared with.

    Args:
        reference: None where a file of statistics is the reference of all.
    """

    snapshot: SnapshotRef
    track: str
    reference: ReferenceSet | None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What all cells of a sweep have in common.

    Args:
        samples: sample ids of each cell and seed block.
        seed_blocks: how many times that many.
        namespace: names the stream of latents; cells share it, so that differences are paired.
        labels: the rule that gives sample i its class.
        batch: fixed batch of the network inside a unit.
        dtype: of the solvers' state.
        quantisation: from the sampler's numbers to pixels.
        teacher: what cells are screened by, its calls without guidance; None screens nothing.
    """

    samples: int
    seed_blocks: int = 1
    namespace: int = 0
    labels: LabelRule = "random"
    batch: int = 100
    dtype: StateDtype = "float64"
    quantisation: Quantisation = "round"
    teacher: Setting | None = None


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The work of a sweep.

    Args:
        cells: in the order network, solver, schedule, guidance, NFE.
        references: one for each dataset that the snapshots were trained on.
        reference_of: what each cell is compared with; empty where a file is the reference.
        skipped: points of the grid that cannot be run.
        samples, seed_blocks: see `Rules`.
        units: all units of references, cells and teachers, in the order in which they shall
            start.
        finished: those of `units` whose results were found.
        teacher_of: the teacher of each cell that can be screened; of it one unit is sampled.
        screening: those of `units` that a screening needs, which come first; empty without one.
    """

    cells: tuple[Cell, ...]
    references: tuple[ReferenceSet, ...]
    reference_of: Mapping[Cell, ReferenceSet]
    skipped: tuple[Skipped, ...]
    samples: int
    seed_blocks: int
    units: tuple[Unit, ...]
    finished: frozenset[Unit] = field(default_factory=frozenset)
    teacher_of: Mapping[Cell, Cell] = field(default_factory=dict)
    screening: tuple[Unit, ...] = ()

    @property
    def blocks(self) -> int:
        """Jackknife blocks of each score."""
        return blocks_of(self.samples)

    @property
    def remaining(self) -> tuple[Unit, ...]:
        """The units still to do, in order."""
        return tuple(unit for unit in self.units if unit not in self.finished)

    @property
    def network_calls(self) -> int:
        """Evaluations of a network on one image, over the whole grid."""
        return network_calls(self.units)

    @property
    def remaining_network_calls(self) -> int:
        """Evaluations of a network on one image that are still to do."""
        return network_calls(self.remaining)

    def units_of(self, cell: Cell, seed_block: int = 0) -> list[Unit]:
        """The units of a score, in order of their ids."""
        return units_of(cell, self.samples, seed_block * self.samples)

    def without(self, dropped: Collection[Cell]) -> SweepPlan:
        """The plan that leaves cells out, but for what was sampled to drop them."""
        cells = tuple(cell for cell in self.cells if cell not in dropped)
        keys = {cell.key for cell in cells}
        screening = set(self.screening)
        units = tuple(
            unit
            for unit in self.units
            if unit in screening
            or isinstance(unit.source, ReferenceSet)
            or unit.source.key in keys
        )
        return replace(self, cells=cells, units=units, finished=self.finished.intersection(units))


def network_calls(units: Iterable[Unit]) -> int:
    """Evaluations of a network on one image: the measure of cost, and of progress.

    First calls that cells share are counted for each; an adaptive solver's are a guess.
    """
    return sum(u.count * u.source.expected_calls for u in units if isinstance(u.source, Cell))


def blocks_of(samples: int) -> int:
    """20 blocks where they are whole units, else 10.

    Raises:
        UsageError: `samples` cannot be cut into 10 blocks of whole units.
    """
    quick, full = QUICK_BLOCKS * UNIT, BLOCKS * UNIT
    if samples <= 0 or samples % quick:
        nearest = max(quick, round(samples / quick) * quick)
        raise UsageError(
            f"samples per cell must be a multiple of {quick:,} ({QUICK_BLOCKS} blocks of "
            f"whole units of {UNIT}), got {samples:,}",
            f"use {nearest:,}; multiples of {full:,} give {BLOCKS} blocks",
        )
    return BLOCKS if samples % full == 0 else QUICK_BLOCKS


def refuse_latents(snapshots: Iterable[SnapshotRef]) -> None:
    """Refuse snapshots whose samples are no pictures: an extractor sees nothing else.

    Raises:
        UsageError: it names the first of them.
    """
    for snapshot in snapshots:
        if not snapshot.draws_pictures:
            raise UsageError(
                f"{snapshot.run} cannot be scored: its samples are {shape_text(snapshot.shape)}, "
                "and features are of images with 1 or 3 channels",
                "leave it out; latents can be scored once they can be decoded by their VAE, which "
                "this version cannot do yet",
            )


def nothing_to_score(skipped: Sequence[Skipped]) -> UsageError:
    """The refusal of a grid of which nothing can be run."""
    reasons = "; ".join(f"{s.solver}{s.at}: {s.reason}" for s in skipped)
    return UsageError(
        "nothing to score: no snapshot, solver and NFE fit together "
        f"({reasons or 'no snapshots'})",
        "name at least one snapshot, and a number of calls that a solver can reach",
    )


def plan_sweep(
    subjects: Sequence[Subject],
    settings: Sequence[Setting],
    skipped: Sequence[Skipped],
    rules: Rules,
    *,
    finished: Callable[[Unit], bool],
) -> SweepPlan:
    """The product of networks and settings as cells and units.

    Args:
        subjects: the networks.
        settings, skipped: from `settings_of`.
        rules: what all cells share.
        finished: says whether a unit's results are already there and sound.

    Raises:
        UsageError: `samples` makes no whole blocks, nothing of the grid can be run, or a snapshot
            draws latents.
    """
    blocks_of(rules.samples)
    refuse_latents(subject.snapshot for subject in subjects)
    refused = list(skipped)
    cells: dict[Cell, ReferenceSet | None] = {}
    references: dict[str, ReferenceSet] = {}
    for subject in subjects:
        for setting in settings:
            cell = _cell(subject, setting, rules)
            if (misfit := _misfit(cell)) is not None:
                refused.append(misfit)
                continue
            reference = subject.reference
            if reference is not None:
                # A dataset has one reference, however many copies of its folder there are.
                reference = references.setdefault(reference.key, reference)
            cells[cell] = reference
    if not cells:
        raise nothing_to_score(refused)
    teacher_of = _teachers(cells, rules)
    # References first: with them done, every cell can be scored from its first blocks on.
    first = list(breadth_first([units_of(ref, ref.samples) for ref in references.values()]))
    screening: list[Unit] = []
    if teacher_of:
        judged = _sampled([*cells, *teacher_of.values()])
        screening = [*first, *(units_of(cell, UNIT)[0] for cell in judged)]
    units = tuple(dict.fromkeys([*first, *screening, *_cell_units(_sampled(cells), rules)]))
    return SweepPlan(
        cells=tuple(cells),
        references=tuple(references.values()),
        reference_of={cell: ref for cell, ref in cells.items() if ref is not None},
        skipped=tuple(dict.fromkeys(refused)),
        samples=rules.samples,
        seed_blocks=rules.seed_blocks,
        units=units,
        finished=frozenset(unit for unit in units if finished(unit)),
        teacher_of=teacher_of,
        screening=tuple(screening),
    )


def _sampled(cells: Iterable[Cell]) -> list[Cell]:
    """Runs that start from the same weights share samples: one set of units, a score for each."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.key, cell)
    return list(found.values())


def _cell_units(cells: Sequence[Cell], rules: Rules) -> Iterator[Unit]:
    """Block by block, and breadth first inside each."""
    for block in range(rules.seed_blocks):
        first = block * rules.samples
        yield from breadth_first([units_of(cell, rules.samples, first) for cell in cells])


def _teachers(cells: Iterable[Cell], rules: Rules) -> dict[Cell, Cell]:
    """What stands for the exact solution, for cells whose images follow from their latents."""
    if rules.teacher is None:
        return {}
    solver, calls = rules.teacher.solver, rules.teacher.nfe
    return {
        cell: replace(
            cell,
            solver=solver,
            nfe=None if calls is None else calls * evaluation_calls(cell.guidance),
            dtype=state_dtype(solver, rules.dtype),
        )
        for cell in cells
        if cell.deterministic
    }


def _cell(subject: Subject, setting: Setting, rules: Rules) -> Cell:
    return Cell(
        snapshot=subject.snapshot,
        track=subject.track,
        solver=setting.solver,
        nfe=setting.nfe,
        guidance=setting.guidance,
        labels=rules.labels,
        namespace=rules.namespace,
        batch=rules.batch,
        dtype=state_dtype(setting.solver, rules.dtype),
        quantisation=rules.quantisation,
    )


def _misfit(cell: Cell) -> Skipped | None:
    """Why the cell's setting cannot be used on its network."""
    where = f"{solver_text(cell.solver)} on {cell.snapshot.run}"
    if cell.guidance is not None and not cell.snapshot.classes:
        reason = "guidance needs class labels, and the network has none"
        return Skipped(where, cell.nfe, reason)
    if isinstance(cell.solver, AmedSpec):
        try:
            cell.solver.check_network(cell.snapshot.digest, cell.track, cell.guidance)
        except SamplingError as error:
            return Skipped(where, cell.nfe, reason_of(error))
    return None
