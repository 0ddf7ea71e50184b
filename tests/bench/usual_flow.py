"""The field's usual way to score a grid, one cell after the other: sample to PNG files with all
cores, then clean-fid on the folder.

It gets what is fair: the network stays loaded, the images are those of the sweep to the bit, and
the reference's statistics are at hand. The features are the packaged ResNet-20's, because
Inception's weights are not.

Legend: n images, B batch, C channels, H W pixels, D features.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.spec import Rn20Spec
from fleetstep.orchestration.cells import Cell
from fleetstep.sampling.denoiser import Denoiser
from fleetstep.sampling.generate import generate
from fleetstep.torchvision_door import import_torchvision

import_torchvision()
from cleanfid.fid import frechet_distance, get_folder_features  # noqa: E402

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

Network = Callable[[Tensor], Tensor]
"""Images 0..255 of a batch to features, as clean-fid calls a network."""


@dataclass
class UsualFlow:
    """Scores cells in this process with as many threads as torch has at the moment.

    Args:
        denoiser: of all cells.
        folder: for the PNG files.
        reference: mean [D] and covariance [D, D] of the real images' features.
        network: images to features.
        seconds: wall seconds of each stage, summed over cells.
    """

    denoiser: Denoiser
    folder: Path
    reference: tuple[Float64, Float64]
    network: Network = field(default_factory=lambda: packaged_network())
    seconds: Counter[str] = field(default_factory=Counter)

    def score(self, cell: Cell, samples: int) -> float:
        """Fréchet distance of the cell's first images, by PNG files."""
        folder = self.folder / cell.key
        with self._timed("sampling"):
            images = generate(
                self.denoiser, cell.solver, cell.nfe, count=samples, shape=cell.snapshot.shape,
                classes=cell.snapshot.classes, batch=cell.batch,
            ).images  # fmt: skip
        with self._timed("PNG files"):
            write_pngs(folder, images)
        with self._timed("reading and features"):
            features_nD = folder_features(folder, self.network)
        with self._timed("distance"):
            return float(frechet_distance(*statistics_of(features_nD), *self.reference))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started


def statistics_of_images(images_nCHW: UInt8, folder: Path) -> tuple[Float64, Float64]:
    """Mean [D] and covariance [D, D] of images' features, by PNG files like everything else."""
    write_pngs(folder, images_nCHW)
    return statistics_of(folder_features(folder, packaged_network()))


def write_pngs(folder: Path, images_nCHW: UInt8) -> None:
    """One grey PNG file an image."""
    folder.mkdir(parents=True)
    for index, image_CHW in enumerate(images_nCHW):
        Image.fromarray(image_CHW[0]).save(folder / f"{index:06d}.png")


def folder_features(folder: Path, network: Network) -> npt.NDArray[np.float32]:
    """Features of a folder of images, [n, D], read and batched by clean-fid."""
    return np.asarray(
        get_folder_features(
            str(folder), network, num_workers=0, device=torch.device("cpu"),
            custom_fn_resize=lambda image: image, verbose=False,
        )
    )  # fmt: skip


def statistics_of(features_nD: npt.NDArray[np.float32]) -> tuple[Float64, Float64]:
    """Mean [D] and covariance [D, D] as clean-fid takes them."""
    return np.mean(features_nD, axis=0), np.cov(features_nD, rowvar=False)


def packaged_network() -> Network:
    """The packaged network, loaded once."""
    extractor = load_extractor(Rn20Spec())

    def features(images_BCHW: Tensor) -> Tensor:
        return extractor.network(extractor.prepare(images_BCHW.to(torch.uint8).numpy()))[0]

    return features
