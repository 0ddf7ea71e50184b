"""Images from seeds: image i depends on (namespace, i) and the network alone.

The batch shape is fixed and the last batch is padded, because kernels choose their algorithm by
shape and would round differently; so the images do not depend on how a range of seeds is split
into calls.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fleetstep import rng
from fleetstep.errors import NonFiniteError, SamplingError
from fleetstep.sampling.guidance import Guided
from fleetstep.sampling.spec import GuidanceSpec, ScheduleSpec, SolverSpec
from fleetstep.sampling.trajectory import Denoiser, levels_for, sample

LabelRule = Literal["random", "balanced"]

# One image alone meets other kernels than a batch does (matrix-vector instead of matrix-matrix
# products).
_SMALLEST_BATCH = 2


@dataclass(frozen=True)
class Generated:
    """Images first ... first+n-1 of a namespace.

    Args:
        images: uint8 [n, C, H, W].
        labels: int64 class ids [n]; None if the network is unconditional.
        nfe: network calls per image, counted; guidance makes two for each of the solver's.
        unquantised: float32 [n, C, H, W], neither rounded nor clipped; None unless asked for.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    nfe: int
    unquantised: npt.NDArray[np.float32] | None = None


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


def quantise(x_BCHW: Tensor) -> Tensor:
    """Pixels in [-1, 1] to uint8: floor(127.5 x + 128), clipped; undoes x = v / 127.5 - 1."""
    return (x_BCHW * 127.5 + 128.0).floor().clamp(0, 255).to(torch.uint8)


def generate(
    denoiser: Denoiser,
    solver: SolverSpec,
    nfe: int,
    *,
    schedule: ScheduleSpec | None = None,
    guidance: GuidanceSpec | None = None,
    namespace: int = 0,
    first: int = 0,
    count: int,
    shape: tuple[int, int, int],
    classes: int,
    batch: int = 100,
    labels: LabelRule = "random",
    unquantised: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Generated:
    """Draw the images of seeds first ... first+count-1.

    Args:
        denoiser: in evaluation mode; it is run where its parameters are.
        solver: which solver.
        nfe: network calls per image, exactly, guidance's included.
        schedule: None is the solver's default.
        guidance: classifier-free guidance to the label of each image; None is none.
        namespace: the seeds' family; two namespaces share nothing.
        first: the first seed.
        count: how many images.
        shape: (C, H, W) of an image.
        classes: K; 0 for an unconditional network.
        batch: images in a call, fixed; values below 2 are run as 2.
        labels: how class ids follow from the seed, see `labels_of`.
        unquantised: also keep the images as float32: the latents of a VAE are no pixels.
        on_batch: called after each batch with the number of images it finished.

    Raises:
        SamplingError: if `nfe` cannot be reached, the count or batch is not positive, the network
            is in training mode, or guidance is asked of an unconditional one.
        NonFiniteError: if an image is not finite; it names the seed.
    """
    _check_request(denoiser, first, count, batch)
    if guidance is not None:
        denoiser = _guided(denoiser, guidance, classes)
    levels, device = levels_for(denoiser, solver, nfe, schedule), _device_of(denoiser)
    batch = max(batch, _SMALLEST_BATCH)
    images = np.empty((count, *shape), np.uint8)
    floats = np.empty((count, *shape), np.float32) if unquantised else None
    counted = 0
    for done in range(0, count, batch):
        # The padding is the seeds that follow: as ordinary as any other image, and thrown away.
        x_T, labels_B = _noise(namespace, first + done, batch, shape, classes, labels, device)
        with torch.inference_mode():
            result = sample(denoiser, solver, levels, x_T * levels[0].item(), labels_B)
            wanted = min(batch, count - done)
            _check_finite(result.x_BCHW[:wanted], first + done)
            images[done : done + wanted] = quantise(result.x_BCHW[:wanted]).cpu().numpy()
            if floats is not None:
                floats[done : done + wanted] = result.x_BCHW[:wanted].float().cpu().numpy()
        counted = result.nfe
        if on_batch is not None:
            on_batch(wanted)
    chosen = labels_of(namespace, first, count, classes, labels) if classes else None
    return Generated(images, chosen, counted, floats)


def _guided(denoiser: Denoiser, guidance: GuidanceSpec, classes: int) -> Guided:
    if not classes:
        raise SamplingError(
            f"guidance of scale {guidance.scale:g} needs class labels, and the network has none",
            "leave guidance out, or sample a class-conditional network",
        )
    return Guided(denoiser, guidance)


def _noise(
    namespace: int,
    first: int,
    count: int,
    shape: tuple[int, int, int],
    classes: int,
    rule: LabelRule,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """Float64 standard normal [count, *shape] and class ids of these seeds, on `device`."""
    z_BCHW = torch.from_numpy(latents(namespace, first, count, shape)).to(device, torch.float64)
    if not classes:
        return z_BCHW, None
    return z_BCHW, torch.from_numpy(labels_of(namespace, first, count, classes, rule)).to(device)


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


def _check_finite(x_BCHW: Tensor, first: int) -> None:
    bad_B = ~torch.isfinite(x_BCHW).flatten(1).all(dim=1)
    if bool(bad_B.any()):
        seed = first + int(bad_B.nonzero()[0, 0])
        raise NonFiniteError(
            f"the image of seed {seed} is not finite, one of {int(bad_B.sum())} such images among "
            f"the {len(x_BCHW)} of its batch",
            "suspect weights or precision: look at the run's losses, or use a float32 network",
        )
