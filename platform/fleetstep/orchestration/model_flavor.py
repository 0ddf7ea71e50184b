"""A snapshot as an MLflow model: what `mlflow.pyfunc.load_model(...)` gives back and samples with.

    MLmodel  requirements.txt  ...    MLflow's own; they name this module as the model's loader
    data/images-000012800/            the snapshot as it was: safetensors and JSON

Nothing in a model is code or is unpickled: whoever loads one runs the installed package alone.

Legend: n images, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fleetstep.config.solver_text import parse_solver
from fleetstep.diffusion.precondition import Denoiser as TrainedDenoiser
from fleetstep.errors import UsageError
from fleetstep.exactness import exact_on_cuda
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.sample import chosen_nfe, parse_guidance
from fleetstep.orchestration.snapshots import find_snapshots, load_trained
from fleetstep.orchestration.sweep_solvers import state_dtype
from fleetstep.sampling.generate import LabelRule, generate
from fleetstep.sampling.spec import AmedSpec, GuidanceSpec, SolverSpec

PARAMETERS: Mapping[str, tuple[str, Any]] = {
    "solver": ("string", "heun"),
    "nfe": ("long", None),
    "schedule": ("string", None),
    "guidance": ("double", None),
    "labels": ("string", "balanced"),
    "ema": ("string", "ema"),
}
"""Of `predict`, as MLflow's types and defaults: the options of `fleetstep sample`."""

_LARGEST_BATCH, _SMALLEST_BATCH = 100, 2

_Drawn = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]


def _load_pyfunc(path: str) -> SnapshotModel:
    """MLflow's entry point, by this name: the model of a snapshot's folder."""
    return SnapshotModel(Path(path))


@dataclass(frozen=True)
class _Settings:
    """How to draw, checked."""

    solver: SolverSpec
    nfe: int | None
    guidance: GuidanceSpec | None
    rule: LabelRule
    track: str

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> _Settings:
        """From the parameters of `predict`; what is missing takes its default."""
        given = {name: default for name, (_, default) in PARAMETERS.items()} | dict(params)
        solver = parse_solver(given["solver"], schedule=given["schedule"])
        guidance = parse_guidance(given["guidance"], "all")
        nfe = chosen_nfe(solver, given["nfe"], guidance)
        rule = given["labels"]
        if rule not in ("random", "balanced"):
            raise UsageError(f"labels must be random or balanced, got {rule!r}")
        return cls(solver, nfe, guidance, rule, given["ema"])


class SnapshotModel:
    """Draws images of seeds.

    Args:
        path: the snapshot's folder.

    Raises:
        CheckpointError: it is damaged; raised when a track is first asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tracks: dict[str, tuple[SnapshotRef, TrainedDenoiser]] = {}

    def predict(
        self, model_input: Any, params: Mapping[str, Any] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """The images of seeds, as `fleetstep sample --npz` writes them.

        Consecutive seeds are drawn together, with the very bits of `fleetstep sample --seeds a-b`.

        Args:
            model_input: a table with a column `seed`, and perhaps one `label`: class ids in place
                of those that follow from the seeds.
            params: see `PARAMETERS`; what is missing takes its default.

        Returns:
            "images": uint8 [n, H, W, C], or float32 for latents; "labels": int64 [n], -1 for an
            unconditional network.

        Raises:
            UsageError: there is no seed, or a label is no class of the network.
            SamplingError, CheckpointError: as for `fleetstep sample`.
        """
        settings = _Settings.of(params or {})
        seeds_n = np.asarray(model_input["seed"], dtype=np.int64)
        if not len(seeds_n):
            raise UsageError("images are drawn from seeds, got none", "add a row with a seed")
        own = _labels_in(model_input)
        drawn = [
            self._draw(
                settings,
                int(seeds_n[part.start]),
                part.stop - part.start,
                None if own is None else own[part],
            )
            for part in _consecutive(seeds_n)
        ]
        return {
            "images": np.concatenate([images for images, _ in drawn]),
            "labels": np.concatenate([labels for _, labels in drawn]),
        }

    def _draw(
        self, settings: _Settings, first: int, count: int, own: Sequence[int] | None
    ) -> _Drawn:
        """Images and labels of consecutive seeds."""
        batch = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, count))
        if own is None:
            return self._generate(settings, first, count, batch)
        pieces = []
        for done in range(0, count, batch):
            # Labels of one's own belong to a batch: one at a time.
            labels = own[done : done + batch]
            pieces.append(self._generate(settings, first + done, len(labels), batch, labels))
        return np.concatenate([images for images, _ in pieces]), np.array(own)

    def _generate(
        self,
        settings: _Settings,
        first: int,
        count: int,
        batch: int,
        own: Sequence[int] | None = None,
    ) -> _Drawn:
        snapshot, network = self._network(settings.track)
        denoiser: TrainedDenoiser | _OwnLabels = network
        if isinstance(settings.solver, AmedSpec):
            settings.solver.check_network(snapshot.digest, settings.track, settings.guidance)
        if own is not None:
            _check_labels(own, snapshot.classes)
            denoiser = _OwnLabels(network, own, batch).eval()
        exact_on_cuda(self._device)
        generated = generate(
            denoiser,
            settings.solver,
            settings.nfe,
            guidance=settings.guidance,
            first=first,
            count=count,
            shape=snapshot.shape,
            classes=snapshot.classes,
            batch=batch,
            labels=settings.rule,
            dtype=state_dtype(settings.solver, "float64"),
            unquantised=not snapshot.draws_pictures,
        )
        images = generated.images if generated.unquantised is None else generated.unquantised
        labels = generated.labels if generated.labels is not None else np.full(count, -1)
        return images.transpose(0, 2, 3, 1), labels

    def _network(self, track: str) -> tuple[SnapshotRef, TrainedDenoiser]:
        """The denoiser of an EMA track, loaded once."""
        if track not in self._tracks:
            (snapshot,) = find_snapshots([str(self._path)], which="last", track=track)
            self._tracks[track] = snapshot, load_trained(snapshot, track, device=self._device)
        return self._tracks[track]


class _OwnLabels(nn.Module):
    """A denoiser that gives the first images of a batch labels of their own.

    Args:
        denoiser: conditional.
        labels: class ids of the first images; those that follow, padding, keep theirs.
        batch: images in a batch. Guidance asks for it twice, the second time without labels.
    """

    def __init__(self, denoiser: TrainedDenoiser, labels: Sequence[int], batch: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._own, self._batch = torch.tensor(labels), batch

    @property
    def nfe(self) -> int:
        """Network calls per image made so far."""
        return self.denoiser.nfe

    @property
    def sigma_min(self) -> float:
        """Lowest noise level the network knows."""
        return self.denoiser.sigma_min

    @property
    def sigma_max(self) -> float:
        """Highest noise level the network knows."""
        return self.denoiser.sigma_max

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
        """D at these labels."""
        image_BCHW: Tensor = self.denoiser(x_BCHW, sigma_B, self._with_own(labels_B))
        return image_BCHW

    def with_features(
        self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """D at these labels, and the features of the same call."""
        return self.denoiser.with_features(x_BCHW, sigma_B, self._with_own(labels_B))

    def _with_own(self, labels_B: Tensor) -> Tensor:
        halves = labels_B.reshape(-1, self._batch).clone()
        own = self._own.to(halves.device)
        first = halves[:, : len(own)]
        halves[:, : len(own)] = torch.where(first < 0, first, own)
        return halves.reshape(-1)


def _consecutive(seeds_n: npt.NDArray[np.int64]) -> Iterator[slice]:
    """Stretches of seeds that count up by one, in order."""
    ends = [*(np.flatnonzero(np.diff(seeds_n) != 1) + 1).tolist(), len(seeds_n)]
    start = 0
    for end in ends:
        yield slice(start, end)
        start = end


def _labels_in(model_input: Any) -> list[int] | None:
    if "label" not in model_input:
        return None
    return [int(label) for label in model_input["label"]]


def _check_labels(labels: Sequence[int], classes: int) -> None:
    if not classes:
        raise UsageError(
            "an unconditional network takes no labels", "leave out the column `label`"
        )
    for label in labels:
        if not 0 <= label < classes:
            raise UsageError(
                f"a label must be a class from 0 to {classes - 1}, got {label}",
                "correct the column `label`, or leave it out",
            )
