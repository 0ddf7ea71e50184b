"""A small sweep whose units run in this process: closed-form networks, pixels as features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fleetstep.evaluation.network_extractor import Extracted
from fleetstep.orchestration.cell_scores import CellScore, Measure, score_cell
from fleetstep.orchestration.cells import FeatureSpace, ReferenceSet, SnapshotRef, Unit
from fleetstep.orchestration.measures import Finished, References
from fleetstep.orchestration.sweep_plan import Rules, Subject, SweepPlan, plan_sweep
from fleetstep.orchestration.sweep_solvers import settings_of
from fleetstep.orchestration.sweep_worker import SweepWorker
from fleetstep.orchestration.units import Fault, no_fault
from fleetstep.sampling.spec import DpmppSpec, EulerSpec, SolverSpec

REFERENCE = ReferenceSet(data=Path("digits"), fingerprint="f" * 64, split="train", samples=250)
SPACE = FeatureSpace(name="pixels", sha256="e" * 64, preprocess="none")
MEASURE = Measure(space=SPACE, metrics=("fd", "fd_z"))


class PixelFeatures:
    """An extractor without weights: every pixel of a 4x4 image, and its square."""

    dim = 32

    def __init__(self, space: FeatureSpace = SPACE, *, classifies: bool = False) -> None:
        self.name, self.digest, self.preprocess = space.name, space.sha256, space.preprocess
        self._classifies = classifies

    def __call__(self, images_nCHW: npt.NDArray[np.uint8]) -> Extracted:
        flat = images_nCHW.reshape(len(images_nCHW), -1).astype(np.float32) / 255
        bright = flat.mean(1, keepdims=True)
        probabilities = np.concatenate([bright, 1 - bright], axis=1)
        return Extracted(
            np.concatenate([flat, flat**2], axis=1), probabilities if self._classifies else None
        )


class GaussianDenoiser:
    """E[x0 | x] for data N(mean, 0.3^2): the exact answer of a perfect network."""

    sigma_min, sigma_max = 0.0, float("inf")

    def __init__(self, mean: float) -> None:
        self.mean = mean
        self.nfe = 0

    def __call__(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor | None) -> Tensor:
        self.nfe += 1
        shrink = 0.09 / (0.09 + sigma_B.view(-1, 1, 1, 1) ** 2)
        return self.mean + shrink * (x_BCHW - self.mean)


def real_images(reference: ReferenceSet, first: int, count: int) -> npt.NDArray[np.uint8]:
    """Normal pixels, the same whoever asks."""
    shape = (reference.samples, 1, 4, 4)
    pixels = np.random.Generator(np.random.PCG64(1)).normal(0.0, 0.3, size=shape)
    return np.clip(pixels * 127.5 + 128, 0, 255).astype(np.uint8)[first : first + count]


def snapshot(name: str, digest: str) -> SnapshotRef:
    """A network that is known by its name."""
    return SnapshotRef(
        path=Path("runs") / name / "snapshots" / "images-000001000",
        digest=digest * 64,
        run=name,
        images_seen=1000,
        shape=(1, 4, 4),
        classes=10,
        data=Path("digits"),
        dataset="f" * 64,
    )


NEAR, FAR = snapshot("near", "1"), snapshot("far", "2")


class Sweep:
    """A small sweep whose units run in this process."""

    def __init__(
        self,
        storage: Path,
        samples: int = 1000,
        solvers: Sequence[SolverSpec] = (EulerSpec(), DpmppSpec()),
        *,
        nfe: Sequence[int] = (3,),
        measures: Sequence[Measure] = (MEASURE,),
        extractors: Sequence[PixelFeatures] | None = None,
        networks: Sequence[SnapshotRef] = (NEAR, FAR),
        pictures: int = 0,
        **rules: Any,
    ) -> None:
        self.storage = storage
        self.loaded: list[str] = []
        self.measures = list(measures)
        self._extractors = extractors or [PixelFeatures(m.space) for m in measures]
        settings, skipped = settings_of(solvers, nfe)
        self.plan: SweepPlan = plan_sweep(
            [Subject(snapshot=network, track="ema", reference=REFERENCE) for network in networks],
            settings,
            skipped,
            Rules(samples=samples, namespace=5, labels="balanced", batch=32, **rules),
            finished=Finished(storage, self.measures, pictures),
        )

    def worker(self, fault: Fault = no_fault, pictures: int = 0) -> SweepWorker:
        return SweepWorker(
            self.storage,
            self._extractors,
            self.denoiser_of,
            real_images,
            device=torch.device("cpu"),
            pictures=pictures,
            classified=[m.space.name for m in self.measures if m.probabilities],
            fault=fault,
        )

    def denoiser_of(self, network: SnapshotRef, track: str) -> GaussianDenoiser:
        self.loaded.append(network.run)
        return GaussianDenoiser({"near": 0.1, "far": 0.6}[network.run])

    def references(self) -> References:
        return References(self.storage, None)

    def scores(self, work: SweepPlan | None = None) -> list[CellScore]:
        work = work or self.plan
        references = self.references()
        return [
            score_cell(
                self.storage,
                cell,
                work.units_of(cell, block),
                work.blocks,
                [(m, references.of(REFERENCE, m.space)) for m in self.measures],
                seed_block=block,
            )
            for cell in work.cells
            for block in range(work.seed_blocks)
        ]


def run(units: Sequence[Unit], *workers: SweepWorker) -> None:
    """Each unit by the next worker in turn."""
    for index, unit in enumerate(units):
        workers[index % len(workers)].run(unit)
