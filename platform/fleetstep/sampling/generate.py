"""Images from seeds: image i depends on (namespace, i), the solver and the network alone.

The batch shape is fixed and the last batch is padded, because kernels choose their algorithm by
shape and would round differently; so the images do not depend on how a range of seeds is split
into calls.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fleetstep import rng
from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.denoiser import Denoiser
from fleetstep.sampling.first_calls import FirstCallKey, FirstCalls, shares_first_call
from fleetstep.sampling.guidance import Guided
from fleetstep.sampling.spec import GuidanceSpec, SolverSpec
from fleetstep.sampling.trajectory import Result, first_call_of, levels_for, sample
from fleetstep.sampling.walk import FirstCall

LabelRule = Literal["random", "balanced"]
StateDtype = Literal["float64", "float32"]
Quantisation = Literal["round", "truncate"]

_DTYPES: dict[StateDtype, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}

# One image alone meets other kernels than a batch does (matrix-vector instead of matrix-matrix
# products).
_SMALLEST_BATCH = 2


@dataclass(frozen=True)
class Generated:
    """Images first ... first+n-1 of a namespace.

    Args:
        images: uint8 [n, C, H, W].
        labels: int64 class ids [n]; None if the network is unconditional.
        counts: network calls per image of each batch, counted; guidance makes two for each of the
            solver's. They differ for an adaptive solver alone.
        made: those that were made for it here; one evaluation fewer where the first was shared.
        unquantised: float32 [n, C, H, W], neither rounded nor clipped; None unless asked for.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    counts: tuple[int, ...]
    made: tuple[int, ...]
    unquantised: npt.NDArray[np.float32] | None = None

    @property
    def nfe(self) -> float:
        """Network calls per image: the mean over batches, whole if all are equal."""
        return mean_calls(self.counts)

    @property
    def calls_made(self) -> float:
        """Network calls per image that were made, the mean over batches."""
        return mean_calls(self.made)


def mean_calls(counts: Sequence[float]) -> float:
    """The mean; the number itself, as it is, where all are equal."""
    return counts[0] if len(set(counts)) == 1 else sum(counts) / len(counts)


def latents(
    namespace: int, first: int, count: int, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Standard normal latents of seeds first ... first+count-1: float32 [count, *shape]."""
    return rng.draw(namespace, "latent", first, count, shape)


def labels_of(
    namespace: int, first: int, count: int, classes: int, rule: LabelRule
) -> npt.NDArray[np.int64]:
    """Class ids of seeds first ... first+count-1, int64 [count] in 0 ... classes-1, keyed by seed.

    "random" draws each on its own. "balanced" deals every class once in each aligned run of
    `classes` seeds, in an order of its own: any K consecutive seeds from a multiple of K hold each
    class once, and a part of such a run is still a fair draw, where counting 0, 1, 2, ... would
    give a unit of 100 seeds the same 100 of 1,000 classes.

    Raises:
        SamplingError: if there is no class.
    """
    if classes < 1:
        raise SamplingError(
            f"labels need at least one class, got {classes}",
            "an unconditional network has no labels",
        )
    if rule == "random":
        u_B = rng.uniform(namespace, "label", first, count)
        return (u_B * classes).astype(np.int64)
    begin, end = first // classes, -(-(first + count) // classes)
    u = rng.uniform(namespace, "label", begin * classes, (end - begin) * classes)
    dealt = np.argsort(u.reshape(-1, classes), axis=1, kind="stable").reshape(-1)
    start = first - begin * classes
    return dealt[start : start + count].astype(np.int64)


def quantise(x_BCHW: Tensor, rule: Quantisation = "round") -> Tensor:
    """Pixels in [-1, 1] to uint8: floor(127.5 x + 128), clipped, undoes x = v / 127.5 - 1.

    "truncate" is floor(127.5 (x + 1)), as the images of Dhariwal & Nichol (2021) were stored.
    """
    shift = 128.0 if rule == "round" else 127.5
    return (x_BCHW * 127.5 + shift).floor().clamp(0, 255).to(torch.uint8)


def generate(
    denoiser: Denoiser,
    solver: SolverSpec,
    nfe: int | None,
    *,
    guidance: GuidanceSpec | None = None,
    namespace: int = 0,
    first: int = 0,
    count: int,
    shape: tuple[int, int, int],
    classes: int,
    batch: int = 100,
    labels: LabelRule = "random",
    dtype: StateDtype = "float64",
    quantisation: Quantisation = "round",
    first_calls: FirstCalls | None = None,
    unquantised: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Generated:
    """Draw the images of seeds first ... first+count-1.

    A stochastic solver's k-th noise of image i follows from (namespace, k, i) alone. An adaptive
    solver carries a batch as one system: its images and its calls depend on which seeds share a
    batch, padding included.

    Args:
        denoiser: in evaluation mode; it is run where its parameters are.
        solver: which solver, with its schedule.
        nfe: network calls per image, exactly, guidance's included; None for an adaptive solver.
        guidance: classifier-free guidance to the label of each image; None is none.
        namespace: the seeds' family; two namespaces share nothing.
        first: the first seed.
        count: how many images.
        shape: (C, H, W) of an image.
        classes: K; 0 for an unconditional network.
        batch: images in a call, fixed; values below 2 are run as 2.
        labels: how class ids follow from the seed, see `labels_of`.
        dtype: of the solver's state; the network's precision is its own affair.
        quantisation: from the sampler's numbers to pixels, see `quantise`.
        first_calls: first evaluations to share, of this denoiser, guidance, namespace, shape and
            rule of labels; it changes no bit.
        unquantised: also keep the images as float32: the latents of a VAE are no pixels.
        on_batch: called after each batch with the number of images it finished.

    Raises:
        SamplingError: if `nfe` cannot be reached, the count or batch is not positive, the network
            is in training mode, or guidance is asked of an unconditional one.
        NonFiniteError: if an image of a batch, padding included, is not finite; it names the seed.
    """
    _check_request(denoiser, first, count, batch)
    if guidance is not None:
        denoiser = _guided(denoiser, guidance, classes)
    drawing = _Drawing(
        denoiser=denoiser,
        solver=solver,
        levels=levels_for(denoiser, solver, nfe),
        namespace=namespace,
        shape=shape,
        classes=classes,
        rule=labels,
        batch=max(batch, _SMALLEST_BATCH),
        dtype=_DTYPES[dtype],
        device=_device_of(denoiser),
        first_calls=first_calls if shares_first_call(solver) else None,
    )
    images = np.empty((count, *shape), np.uint8)
    floats = np.empty((count, *shape), np.float32) if unquantised else None
    counts, made = list[int](), list[int]()
    for done in range(0, count, drawing.batch):
        # The padding is the seeds that follow: as ordinary as any other image, and thrown away.
        with torch.inference_mode():
            result, calls = drawing.draw(first + done)
            wanted = min(drawing.batch, count - done)
            pixels = quantise(result.x_BCHW[:wanted], quantisation)
            images[done : done + wanted] = pixels.cpu().numpy()
            if floats is not None:
                floats[done : done + wanted] = result.x_BCHW[:wanted].float().cpu().numpy()
        counts.append(result.nfe)
        made.append(calls)
        if on_batch is not None:
            on_batch(wanted)
    chosen = labels_of(namespace, first, count, classes, labels) if classes else None
    return Generated(images, chosen, tuple(counts), tuple(made), floats)


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """What the batches of a call have in common."""

    denoiser: Denoiser
    solver: SolverSpec
    levels: Tensor
    namespace: int
    shape: tuple[int, int, int]
    classes: int
    rule: LabelRule
    batch: int
    dtype: torch.dtype
    device: torch.device
    first_calls: FirstCalls | None

    def draw(self, first: int) -> tuple[Result, int]:
        """The batch that begins at seed `first`, and the network calls per image made for it."""
        x_T = self._normal("latent", first) * self.levels[0].item()
        labels_B = self._labels(first)
        before = self.denoiser.nfe
        try:
            result = sample(
                self.denoiser,
                self.solver,
                self.levels,
                x_T,
                labels_B,
                noise=lambda k: self._normal(f"solver-noise-{k}", first).to(self.dtype),
                first_call=self._first_call(first, x_T, labels_B),
                dtype=self.dtype,
            )
        except NonFiniteError as error:
            if error.image is None:
                raise
            raise NonFiniteError(
                f"the image of seed {first + error.image} is not finite: {error.message}",
                error.remedy,
                error.image,
            ) from error
        return result, self.denoiser.nfe - before

    def _normal(self, purpose: str, first: int) -> Tensor:
        """Standard normal numbers of these seeds: float64 [B, C, H, W], on the device."""
        z_BCHW = torch.from_numpy(rng.draw(self.namespace, purpose, first, self.batch, self.shape))
        if self.device.type == "cuda":
            # Copied from pinned memory the host goes on; a solver may ask in every step.
            z_BCHW = z_BCHW.pin_memory()
        return z_BCHW.to(self.device, non_blocking=True).double()

    def _labels(self, first: int) -> Tensor | None:
        if not self.classes:
            return None
        ids = labels_of(self.namespace, first, self.batch, self.classes, self.rule)
        return torch.from_numpy(ids).to(self.device)

    def _first_call(self, first: int, x_T: Tensor, labels_B: Tensor | None) -> FirstCall | None:
        if self.first_calls is None:
            return None
        sigma = self.levels[0].item()
        key = FirstCallKey(first, self.batch, sigma, self.dtype, self.solver.learned)
        return self.first_calls.get(
            key,
            lambda: first_call_of(
                self.denoiser, self.solver, sigma, x_T, labels_B, dtype=self.dtype
            ),
        )


def _guided(denoiser: Denoiser, guidance: GuidanceSpec, classes: int) -> Guided:
    if not classes:
        raise SamplingError(
            f"guidance of scale {guidance.scale:g} needs class labels, and the network has none",
            "leave guidance out, or sample a class-conditional network",
        )
    return Guided(denoiser, guidance)


def _device_of(denoiser: Denoiser) -> torch.device:
    parameter = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _check_request(denoiser: Denoiser, first: int, count: int, batch: int) -> None:
    if first < 0 or count < 1 or batch < 1:
        raise SamplingError(
            f"seeds start at 0, count and batch at 1; got {first=}, {count=}, {batch=}",
            "correct the range of seeds or the batch",
        )
    if isinstance(denoiser, nn.Module) and any(module.training for module in denoiser.modules()):
        raise SamplingError(
            "a network in training mode does not sample: its drop-out ignores the seed",
            "call denoiser.eval() first",
        )
