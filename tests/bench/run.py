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
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from pairs import PAIRS, Ratio, interleaved
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


def frechet(dimensions: int = 512) -> Ratio:
    """The eigenvalue route with a cached reference against scipy's matrix square root."""
    from scipy.linalg import sqrtm

    from fleetstep.evaluation.metrics import Reference
    from fleetstep.evaluation.metrics import frechet as ours
    from fleetstep.evaluation.moments import Moments

    generator = np.random.default_rng(0)
    mix = generator.normal(size=(dimensions, dimensions)) / dimensions**0.5
    sets = [
        Moments.of((generator.normal(size=(2000, dimensions)) @ mix + shift).astype(np.float32))
        for shift in (0.0, 0.1)
    ]
    reference = Reference("bench", sets[0])

    def scipy_route() -> float:
        a, b = sets
        gap = a.mean() - b.mean()
        root = sqrtm(a.covariance() @ b.covariance()).real
        return float(gap @ gap + np.trace(a.covariance() + b.covariance() - 2 * root))

    return interleaved(
        f"Fréchet distance, {dimensions}-d, over scipy's sqrtm", "sqrtm", scipy_route, "ours",
        lambda: ours(reference, sets[1]),
    )  # fmt: skip


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


_MEASURES: tuple[Callable[[], Ratio | list[Ratio]], ...] = (
    randomness, engine, stream, frechet, strategies, certificates, solvers,
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
        title=f"CPU-time ratios B / A, median of {PAIRS} interleaved pairs", title_justify="left"
    )
    for heading in ("what", "A", "B", "median", "range"):
        table.add_column(heading)
    results = []
    for measure in _MEASURES:
        print(f"measuring {measure.__name__} ...", file=sys.stderr, flush=True)
        measured = measure()
        for found in measured if isinstance(measured, list) else [measured]:
            ratios = found.ratios
            middle, span = statistics.median(ratios), f"{min(ratios):.5g} - {max(ratios):.5g}"
            table.add_row(found.claim, found.a, found.b, f"{middle:.5g}", span)
            results.append(
                {"claim": found.claim, "a": found.a, "b": found.b, "pairs": found.pairs}
            )
    Console(width=110).print(table)
    if options.save:
        facts = {
            "cpu": platform.processor() or platform.machine(),
            "load": os.getloadavg(),
            "torch": torch.__version__,
        }
        path = Path(__file__).with_name(f"{datetime.date.today().isoformat()}.json")
        path.write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")
        print(f"saved {path.name}")


if __name__ == "__main__":
    main()
