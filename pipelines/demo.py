"""The product's main job on real images, end to end, on a laptop: `make demo`.

Packs scikit-learn's digits into shards, trains three small diffusion models (EDM, EDM with the
loss-weight warm-up alone as the control, EDM with FDM and SpeeD) with two Ray Train workers on
DeepSpeed, scores a solver x NFE grid with Ray actors, and compares the runs on one page.
Everything is resumable: run it again and finished work is not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fleetstep.cli import guarded
from fleetstep.config import Experiment, SweepSpec, load
from fleetstep.data.pack import pack_digits
from fleetstep.orchestration.cell_scores import CellScore
from fleetstep.orchestration.fit import fit
from fleetstep.orchestration.preview import preview_training
from fleetstep.orchestration.report import compare_runs
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.sweep import SweepResult
from fleetstep.orchestration.sweep_job import run_sweep

PRESETS = Path(__file__).parent / "presets"
UNTRAINED = ("solvers=[{kind: dpmpp, order: 2}]", "nfe=[9]")
RUNS = ("digits-edm", "digits-edm-warmup", "digits-edm-fdm-speed")


class Stopwatch:
    """Wall seconds per stage, for the closing table."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announce a stage and time it."""
        print(f"\n=== {title}", flush=True)
        started = time.monotonic()
        yield
        self.stages.append((title, time.monotonic() - started))
        print(f"    ({self.stages[-1][1]:.0f} s)", flush=True)


def against_untrained(trained: SweepResult, untrained: SweepResult) -> str:
    """How far the trained networks are from one at its first step, in the same cell."""
    (start,) = untrained.scores
    where = (start.cell.solver, start.cell.nfe)
    worst = raw_distance(start)
    lines = [f"\nuntrained network ({where[0].label}, {where[1]} calls): raw FD {worst:.3g}"]
    for score in trained.scores:
        if (score.cell.solver, score.cell.nfe) == where:
            ratio = worst / raw_distance(score)
            lines.append(
                f"  {score.cell.snapshot.run}: {raw_distance(score):.3g}, {ratio:.0f}x less"
            )
    return "\n".join(lines)


def raw_distance(score: CellScore) -> float:
    """A cell's plain Fréchet distance: positive, so that ratios make sense."""
    return score.records[0].raw


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workspace", type=Path, default=Path("."), help="folder for data/, runs/ and comparison/"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override of every training run",
    )
    parser.add_argument(
        "--set-sweep",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override of the sweep",
    )
    options = parser.parse_args()
    data, storage = options.workspace / "data" / "digits", options.workspace / "runs"
    watch = Stopwatch()

    with watch.stage("pack: scikit-learn's digits, 1,797 real images"):
        if not (data / "manifest.json").exists():
            pack_digits(data, shard_size=500)
    where = [f"storage={storage}"]
    with connect(None):
        for name in RUNS:
            with watch.stage(f"train: {name}"):
                overrides = [*where, f"data.path={data}", *options.set]
                experiment = load(Experiment, PRESETS / f"{name}.yaml", overrides)
                print(preview_training(experiment).summary(), flush=True)
                print(fit(experiment, resume="auto", say=print).text())
        with watch.stage("sweep: solver x NFE by Ray actors"):
            runs = ", ".join(str(storage / name) for name in RUNS)
            spec = load(
                SweepSpec,
                PRESETS / "digits-sweep.yaml",
                [*where, f"runs=[{runs}]", *options.set_sweep],
            )
            trained = run_sweep(spec, say=print)
            start = storage / RUNS[0] / "snapshots" / "images-000000000"
            overrides = [
                "name=digits-untrained",
                f"runs=[{start}]",
                *UNTRAINED,
                *options.set_sweep,
            ]
            untrained = run_sweep(
                load(SweepSpec, PRESETS / "digits-sweep.yaml", [*where, *overrides])
            )
    with watch.stage("compare"):
        comparison = compare_runs(
            list(RUNS),
            baseline=RUNS[0],
            out=options.workspace / "comparison",
            storage=storage,
            experiment="fleetstep",
        )
    print(against_untrained(trained, untrained))
    console = Console()
    for table in comparison.tables:
        console.print(table)
    total = sum(seconds for _, seconds in watch.stages)
    print(
        f"\nwall time: {total / 60:.1f} min  "
        f"({', '.join(f'{title.split(chr(58))[0]} {s:.0f} s' for title, s in watch.stages)})"
    )
    print(f"page:      {comparison.page}")
    if trained.page is not None:
        print(f"sweep:     {trained.page}")
    mlflow = Path(sys.executable).with_name("mlflow")
    print(f"tracker:   {mlflow} server --backend-store-uri {comparison.uri} --host 127.0.0.1")


if __name__ == "__main__":
    guarded(main)
