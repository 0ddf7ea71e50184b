"""`make bench`: what things cost, as ratios of two ways measured in turn (A B A B ...) in one run.

Absolute times of a shared machine say little; the median of per-pair ratios does. `--save` writes
the pairs as JSON beside this file, dated, so that a claim can be traced to the run it came from.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from pairs import Ratio, cpu_seconds, interleaved
from rich.console import Console
from rich.table import Table


def randomness() -> Ratio:
    """Share of a training step that the keyed draws would take if they were not made ahead."""
    from fleetstep.diffusion.loss import noise_at, noise_levels_at

    step, objective, shape, batch = _bare_step()

    def draw() -> None:
        noise_levels_at(objective, 0, 6400, batch)
        noise_at(0, 6400, batch, shape)

    return interleaved("keyed randomness, share of a step (digits)", "step", step, "draws", draw)


def engine() -> Ratio:
    """A DeepSpeed step at world size 1 against a bare PyTorch step on the same network and
    batch.
    """
    from fleetstep.training.engine import DeepSpeedEngine
    from fleetstep.training.spec import BatchPlan, OptimizerSpec

    step, objective, shape, batch = _bare_step()
    wrapped = DeepSpeedEngine(_network(), OptimizerSpec(), BatchPlan(1, batch, batch, 1), stage=0)
    loss_of, denoise = _loss(objective, wrapped.network, shape, batch)

    def with_engine() -> None:
        wrapped.backward(loss_of(denoise))
        wrapped.step(1e-3)

    return interleaved(
        "engine: DeepSpeed stage 0 over a bare step", "bare", step, "engine", with_engine
    )


def stream(samples: int = 4000) -> Ratio:
    """Random reads through the index against plain webdataset reading the same shards in order."""
    import webdataset

    from fleetstep.data.pack import pack_npz
    from fleetstep.data.spec import DataSpec
    from fleetstep.data.stream import Stream

    folder = Path(tempfile.mkdtemp(prefix="fs-bench-"))
    images = np.random.default_rng(0).integers(0, 256, (samples, 32, 32, 3), np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(samples) % 10)
    pack_npz(folder / "images.npz", folder / "data", heldout=0, shard_size=1000, name="bench")
    shards = [str(path) for path in sorted((folder / "data").glob("*.tar"))]
    ours = Stream(DataSpec(path=str(folder / "data")), seed=0)

    def plain() -> None:
        for _ in webdataset.WebDataset(shards, shardshuffle=False).decode():
            pass

    def indexed() -> None:
        for first in range(0, samples, 64):
            ours.batch(first, 64)

    return interleaved(
        "stream: random npy reads over plain webdataset", "webdataset", plain, "ours", indexed
    )


def frechet(dimensions: int = 2048, rows: int = 8192) -> Ratio:
    """The eigenvalue route with a cached reference against scipy's matrix square root, as
    clean-fid and EDM take it; at Inception's size.
    """
    from scipy.linalg import sqrtm

    from fleetstep.evaluation.metrics import Gaussian
    from fleetstep.evaluation.metrics import frechet as ours
    from fleetstep.evaluation.moments import Moments
    from fleetstep.evaluation.reference import Reference

    generator = np.random.default_rng(0)
    # Variances 1, 1/2, 1/3, ... along directions that are not the axes.
    turned, _ = np.linalg.qr(generator.normal(size=(dimensions, dimensions)))
    mix = np.arange(1, dimensions + 1)[:, None] ** -0.5 * turned
    real, made = (
        Moments.of((generator.normal(size=(rows, dimensions)) @ mix + shift).astype(np.float32))
        for shift in (0.0, 0.1)
    )
    reference = Reference("bench", Gaussian.of(real), real.digest(), rows)
    ours(reference, made)  # the reference's root is computed once
    mu_a, sigma_a, mu_b, sigma_b = real.mean(), real.covariance(), made.mean(), made.covariance()

    found: dict[str, float] = {}

    def scipy_route() -> None:
        root = sqrtm(sigma_a @ sigma_b).real
        gap = mu_a - mu_b
        found["theirs"] = float(gap @ gap + np.trace(sigma_a + sigma_b - 2 * root))

    def our_route() -> None:
        found["ours"] = ours(reference, made)

    pairs = tuple((cpu_seconds(scipy_route), cpu_seconds(our_route)) for _ in range(2))
    np.testing.assert_allclose(found["ours"], found["theirs"], rtol=1e-8)
    return Ratio(f"Fréchet distance, {dimensions}-d, over scipy's sqrtm", "sqrtm", "ours", pairs)


def _network() -> torch.nn.Module:
    from fleetstep.networks.build import build_network
    from fleetstep.networks.spec import DdpmppSpec

    spec = DdpmppSpec(channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(4,))
    return build_network(spec, resolution=8, channels=1, classes=10, seed=0)


def _bare_step() -> tuple[Callable[[], None], Any, tuple[int, int, int], int]:
    from fleetstep.diffusion.objective import build_objective
    from fleetstep.diffusion.spec import EdmSpec

    shape, batch = (1, 8, 8), 64
    network = _network()
    objective = build_objective(EdmSpec(), [], budget_images=10_000, global_batch=batch)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    loss_of, denoise = _loss(objective, network, shape, batch)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(denoise).backward()
        optimizer.step()

    return step, objective, shape, batch


def _loss(
    objective: Any, network: Any, shape: tuple[int, int, int], batch: int
) -> tuple[Any, Any]:
    from fleetstep.diffusion.loss import DiffusionLoss, noise_at, noise_levels_at

    sigma_B, eps_BCHW = noise_levels_at(objective, 0, 0, batch), noise_at(0, 0, batch, shape)
    x0_BCHW = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels_B = torch.arange(batch) % 10
    loss = DiffusionLoss(objective)

    def loss_of(denoise: Any) -> torch.Tensor:
        return loss(denoise, x0_BCHW, labels_B, sigma_B, eps_BCHW, 0).mean()

    return loss_of, objective.denoiser(network)


def strategies() -> list[Ratio]:
    """What each training strategy adds to a step."""
    from strategies import strategies as measured

    return measured()


def solvers() -> list[Ratio]:
    """What a solver's own arithmetic costs beside diffusers' scheduler of the same steps."""
    from solvers import solvers as measured

    return measured()


def certificates() -> Ratio:
    """The quick certificate, in units of drawing 1,000 digits with nine network calls each."""
    from fleetstep.diffusion.objective import build_objective
    from fleetstep.diffusion.spec import EdmSpec
    from fleetstep.orchestration.certify import certify
    from fleetstep.sampling.generate import generate
    from fleetstep.sampling.spec import DpmppSpec

    objective = build_objective(EdmSpec(), [], budget_images=1, global_batch=1)
    denoiser = objective.denoiser(_network()).eval()

    def draw() -> None:
        generate(denoiser, DpmppSpec(), 9, count=1000, shape=(1, 8, 8), classes=10)

    return interleaved(
        "fleetstep certify --quick, over drawing 1,000 digits at 9 calls",
        "images", draw, "certificates", lambda: certify(out=None, quick=True),
    )  # fmt: skip


def evaluation() -> list[Ratio]:
    """A grid by sweep and by the field's usual flow, and two actors beside one."""
    from evaluation import evaluation as measured

    return measured()


def tracking() -> list[Ratio]:
    """What logging metrics costs training."""
    from tracking import tracking as measured

    step, *_ = _bare_step()
    return measured(step)


def control_plane() -> dict[str, Any]:
    """What the pool costs by itself: figures, not ratios."""
    from control_plane import control_plane as measured

    return measured()


_MEASURES: tuple[Callable[[], Ratio | list[Ratio]], ...] = (
    randomness, engine, stream, tracking, frechet, strategies, certificates, solvers, evaluation,
)  # fmt: skip


def main() -> None:
    """Measure and print; exit 0 whatever the numbers are: a bench informs, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--save", action="store_true", help="write the pairs beside this file, dated"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    table = Table(
        title="ratios B / A of interleaved pairs, in CPU time unless wall is said",
        title_justify="left",
    )
    for heading in ("what", "A", "B", "median", "range"):
        table.add_column(heading)
    results, details = [], []
    for measure in _MEASURES:
        print(f"measuring {measure.__name__} ...", file=sys.stderr, flush=True)
        measured = measure()
        for found in measured if isinstance(measured, list) else [measured]:
            ratios = found.ratios
            middle, span = statistics.median(ratios), f"{min(ratios):.5g} - {max(ratios):.5g}"
            table.add_row(found.claim, found.a, found.b, f"{middle:.5g}", span)
            details += found.details
            results.append(asdict(found))
    print("measuring control_plane ...", file=sys.stderr, flush=True)
    pool = control_plane()
    Console(width=140).print(table, *details, _lines_of(pool), sep="\n")
    if options.save:
        facts = {
            "cpu": platform.processor() or platform.machine(),
            "load": os.getloadavg(),
            "torch": torch.__version__,
        }
        path = Path(__file__).with_name(f"{datetime.date.today().isoformat()}.json")
        content = {"facts": facts, "results": results, "control_plane": pool}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"saved {path.name}")


def _lines_of(pool: dict[str, Any]) -> str:
    lines = []
    for found in pool["throughput"]:
        memory = ", ".join(f"{found[f'mib_at_{when}']:.0f}" for when in ("first", "half", "last"))
        lines.append(
            f"{found['actors']} actor(s), {pool['units']:,} empty units: "
            f"{found['units_per_s']:.0f} units/s, {found['driver_us_per_unit']:.0f} us of the "
            f"driver each, whose memory is {memory} MiB at the first, half and last"
        )
    return "\n".join([*lines, pool["estimate"]])


if __name__ == "__main__":
    main()
