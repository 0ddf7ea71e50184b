"""A grid scored by `fleetstep sweep` beside the field's usual flow, and two actors beside one.

The same network, solvers, seeds and images: the demo's DDPM++ on digits, whose weights cost the
same trained or not, over four solvers x two numbers of calls, 1,000 images each. Ray is running
before either starts, as torch and clean-fid are imported; a sweep's actors start inside its time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from family import Took, timed
from pairs import Ratio
from usual_flow import UsualFlow, statistics_of_images

from fleetstep.config import Experiment, SweepSpec, load
from fleetstep.config.measure import PoolSpec
from fleetstep.data.manifest import load_manifest
from fleetstep.data.pack import pack_digits
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.spec import ExtractorSpec
from fleetstep.orchestration.cells import Cell, Unit, space_of
from fleetstep.orchestration.pieces import network_of
from fleetstep.orchestration.pool import run_units
from fleetstep.orchestration.references import read_units
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.snapshots import load_denoiser, reference_images
from fleetstep.orchestration.sweep import SweepResult, plan, sweep
from fleetstep.orchestration.sweep_plan import SweepPlan, network_calls
from fleetstep.orchestration.sweep_worker import SweepWorker, UnitSummary, build_worker
from fleetstep.sampling.spec import DpmppSpec, EulerSpec, HeunSpec, IpndmSpec, SolverSpec
from fleetstep.training.snapshot import write_imported

PRESET = Path(__file__).parents[2] / "pipelines" / "presets" / "digits-edm.yaml"
SAMPLES = 1000
SOLVERS: tuple[SolverSpec, ...] = (EulerSpec(), HeunSpec(), IpndmSpec(), DpmppSpec())
NFE = (5, 9)
ACTORS = 2
ROUNDS = 2
"""Pairs of the grid: each costs a minute, and seconds of a minute vary less than those of a
millisecond."""

USUAL_COMMAND = "import usual_flow"
SWEEP_COMMAND = """
from fleetstep.orchestration import sweep_job
from fleetstep.orchestration.session import connect
with connect(None): pass
"""
"""What a command does before it begins: imports, and Ray's start and end. The published scripts
are two commands a cell, one that samples and one that scores; a sweep is one."""

_POOLS = ((1, 2), (1, 1), (2, 1))
"""Actors, and threads of each."""

TOLERANCE = 1e-3
"""Relative, between the two ways' distances."""


@dataclass(frozen=True)
class _Turn:
    """The grid scored both ways, and the actors' seconds on units, added up."""

    usual: Took[list[float]]
    swept: Took[SweepResult]
    seconds_of_units: float


@dataclass(frozen=True)
class Bench:
    """What both ways are given.

    Args:
        folder: for all that they write; gone afterwards.
        snapshot: the network.
    """

    folder: Path
    snapshot: Path

    def spec(self, name: str, **fields: object) -> SweepSpec:
        """A sweep of the grid with results of its own, the reference's excepted."""
        storage = self.folder / name
        known = self.folder / "known" / "references"
        if known.is_dir() and not storage.exists():
            shutil.copytree(known, storage / "references")
        values = {
            "runs": [str(self.snapshot)], "storage": str(storage), "samples": SAMPLES,
            "solvers": SOLVERS, "nfe": NFE, "metrics": ["fd"], "pictures": 0,
            "pool": PoolSpec(max=ACTORS, cpus_per_actor=1.0),
        }  # fmt: skip
        return SweepSpec.model_validate({**values, **fields})


def evaluation() -> list[Ratio]:
    """Both comparisons, on one Ray and one set of files."""
    with _bench() as bench, connect(None):
        _warm(bench)
        return [*grid(bench), *actors(bench)]


@contextlib.contextmanager
def _bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="fs-bench-"))
    try:
        pack_digits(folder / "digits")
        yield Bench(folder, _untrained(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _untrained(folder: Path) -> Path:
    """The demo's network as a snapshot, with random weights."""
    data = folder / "digits"
    experiment = load(Experiment, PRESET, [f"data.path={data}", "name=untrained"])
    manifest = load_manifest(data)
    network = network_of(experiment, manifest.shape, manifest.classes)
    facts = {
        "step": 0, "images_seen": 0, "identity": "bench", "dataset": manifest.fingerprint,
        "shape": list(manifest.shape), "classes": manifest.classes,
        "config": experiment.model_dump(mode="json"),
    }  # fmt: skip
    write_imported(folder / "untrained", network.state_dict(), facts)
    return folder / "untrained"


def _warm(bench: Bench) -> None:
    """One small sweep: the reference is known from then on."""
    spec = bench.spec("known", solvers=[EulerSpec()], nfe=[5])
    sweep(spec, plan(spec))


def grid(bench: Bench) -> list[Ratio]:
    """Total seconds of the grid, by PNG files and by a sweep, in turn; wall and CPU."""
    usual, cells = _usual_flow(bench)
    threads = _better_threads(bench, usual, cells[0])
    turns = [_turn(bench, usual, cells, number, threads) for number in range(ROUNDS)]
    claim = f"{len(cells)} cells x {SAMPLES:,} digits, fleetstep sweep over PNG and clean-fid"
    names = (f"usual flow, threads: {threads}", f"sweep, {ACTORS} actors of 1 thread")
    wall = tuple((turn.usual.wall, turn.swept.wall) for turn in turns)
    cpu = tuple((turn.usual.cpu, turn.swept.cpu) for turn in turns)
    starts, our_start = 2 * len(cells) * _seconds_of(USUAL_COMMAND), _seconds_of(SWEEP_COMMAND)
    commands = tuple((usual_s + starts, swept_s + our_start) for usual_s, swept_s in wall)
    details = (*_stages(usual, turns), *_rates(turns, len(cells) * SAMPLES))
    started = f"starts: {starts:.0f} s for {2 * len(cells)} commands, {our_start:.0f} s for one"
    return [
        Ratio(f"{claim}, wall", *names, wall, details),
        Ratio(f"{claim}, CPU", *names, cpu),
        Ratio(f"{claim}, wall, as commands", *names, commands, (started,)),
    ]


def _seconds_of(program: str) -> float:
    """Wall seconds of a Python process."""
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", program]
    return timed(
        lambda: subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": here}
        )
    ).wall


def _usual_flow(bench: Bench) -> tuple[UsualFlow, tuple[Cell, ...]]:
    work = plan(bench.spec("planned"))
    (reference,) = work.references
    real_nCHW = reference_images(reference, 0, reference.samples)
    statistics = statistics_of_images(real_nCHW, bench.folder / "real")
    cell = work.cells[0]
    denoiser = load_denoiser(cell.snapshot, cell.track, device=torch.device("cpu"))
    return UsualFlow(denoiser, bench.folder, statistics), work.cells


def _better_threads(bench: Bench, usual: UsualFlow, cell: Cell) -> int:
    """As many threads as the usual flow is faster with: on busy cores, that is one."""
    seconds = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        usual.folder = bench.folder / f"png-of-{threads}-threads"
        with _threads(threads):
            seconds[threads] = timed(lambda: usual.score(cell, SAMPLES // 5)).wall
    usual.seconds.clear()
    return min(seconds, key=seconds.__getitem__)


def _turn(
    bench: Bench, usual: UsualFlow, cells: tuple[Cell, ...], number: int, threads: int
) -> _Turn:
    usual.folder = bench.folder / f"png-{number}"
    with _threads(threads):
        by_files = timed(lambda: [usual.score(cell, SAMPLES) for cell in cells])
    spec = bench.spec(f"grid-{number}")
    swept = timed(lambda: sweep(spec, plan(spec)))
    values = [score.records[0].raw for score in swept.value.scores]
    np.testing.assert_allclose(values, by_files.value, rtol=TOLERANCE)
    return _Turn(by_files, swept, _seconds_of_units(spec, swept.value.plan))


def _seconds_of_units(spec: SweepSpec, work: SweepPlan) -> float:
    (extractor,) = map(load_extractor, spec.extractors)
    space, storage = space_of(extractor), Path(spec.storage)
    units = [unit for cell in work.cells for unit in work.units_of(cell)]
    return sum(unit.seconds for unit in read_units(storage, units, space))


def _stages(usual: UsualFlow, turns: Sequence[_Turn]) -> Iterator[str]:
    total = sum(usual.seconds.values())
    stages = ", ".join(f"{name} {s / total:.0%}" for name, s in usual.seconds.items())
    yield f"usual flow, wall: {stages}"
    busy = sum(turn.seconds_of_units for turn in turns) / ACTORS
    wall = sum(turn.swept.wall for turn in turns)
    rest = "starting actors, planning and distances"
    yield f"sweep, wall: sampling and features {busy / wall:.0%}, {rest} {1 - busy / wall:.0%}"
    result = turns[0].swept.value
    shared = 1 - result.calls_made / result.calls_counted
    yield f"of the sweep's network calls {shared:.0%} were shared first ones, not made again"


def _rates(turns: Sequence[_Turn], images: int) -> Iterator[str]:
    usual, swept = (
        statistics.median(images / wall for wall in walls)
        for walls in zip(*((turn.usual.wall, turn.swept.wall) for turn in turns), strict=True)
    )
    yield f"images/s, median: usual flow {usual:.0f}, sweep {swept:.0f}"


def actors(bench: Bench) -> list[Ratio]:
    """Seconds of a network call by two actors over those by one actor, which has as many threads
    as both of them, or as many as each.
    """
    spec = bench.spec("actors", solvers=[EulerSpec(), DpmppSpec()], nfe=[NFE[-1]])
    turns = [[_seconds_per_call(spec, *pool) for pool in _POOLS] for _ in range(ROUNDS)]
    claim = "seconds of a network call of a sweep, two actors over one, wall"
    return [
        Ratio(claim, one, "2 of 1 thread", tuple((turn[index], turn[-1]) for turn in turns))
        for index, one in enumerate(("1 of 2 threads", "1 of 1 thread"))
    ]


def _seconds_per_call(spec: SweepSpec, actors: int, threads: int) -> float:
    """Of steady work: each actor from the end of its first unit to the end of its last."""
    storage = Path(spec.storage)
    shutil.rmtree(storage / "cells", ignore_errors=True)
    space = space_of(load_extractor(spec.extractors[0]))
    ends: dict[int, list[tuple[float, int]]] = defaultdict(list)

    def finished(unit: Unit, summary: UnitSummary) -> None:
        ended = unit.path(storage, space).stat().st_mtime
        ends[summary.pid].append((ended, network_calls([unit])))

    run_units(
        plan(spec).remaining,
        functools.partial(_worker, storage, spec.extractors, threads),
        pool=PoolSpec(max=actors, cpus_per_actor=1.0),
        on_result=finished,
    )
    return 1 / sum(_calls_per_second(sorted(of_one)) for of_one in ends.values())


def _calls_per_second(ends: Sequence[tuple[float, int]]) -> float:
    (first, _), *others = ends
    return sum(calls for _, calls in others) / (others[-1][0] - first)


def _worker(storage: Path, extractors: Sequence[ExtractorSpec], threads: int) -> SweepWorker:
    torch.set_num_threads(threads)  # an actor of a sweep has one
    return build_worker(storage, extractors)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
