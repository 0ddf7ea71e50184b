"""Inception-v3 of 2015, in whose features FID is measured, as clean-fid runs it.

The only door to clean-fid.

Legend: n images, B batch, C channels, H W pixels.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fleetstep.errors import ExtractorError
from fleetstep.evaluation.network_extractor import (
    Float32,
    Network,
    NetworkExtractor,
    UInt8,
    as_rgb,
)
from fleetstep.evaluation.spec import (
    INCEPTION_FILE,
    INCEPTION_SHA256,
    InceptionSpec,
    inception_name,
)
from fleetstep.evaluation.weight_files import load_script, read_weights

BATCH = 25
FEATURES = 2048
CLASSES = 1008
CLEAN_PREPROCESS = (
    "clean-fid clean: PIL bicubic in float32 to 299x299, clipped, not rounded; (x-128)/128"
)
TENSORFLOW_PREPROCESS = "in the file: TF-1 bilinear to 299x299, (x-128)/128"


def inception(
    spec: InceptionSpec, device: str = "cpu", *, with_probabilities: bool = False
) -> NetworkExtractor:
    """Inception from a file whose digest is checked.

    Args:
        spec: path, digest and resizing.
        device: where it runs.
        with_probabilities: of the file's 1,008 classes, for the Inception Score: a second pass.

    Raises:
        ExtractorError: the weights are missing or not the file they should be; or probabilities
            of cleanly resized images, which the file does not classify.
    """
    path = Path(spec.path) if spec.path is not None else cached_inception()
    if with_probabilities and not spec.probabilities:
        raise ExtractorError(
            f"inception classifies with resize: legacy_tensorflow alone, got {spec.resize!r}",
            "ask for the Inception Score of extractor={kind: inception, "
            "resize: legacy_tensorflow}, or leave it out",
        )
    content = read_weights(
        path,
        spec.sha256,
        "Inception",
        f"get {INCEPTION_FILE} (sha256 {INCEPTION_SHA256}) yourself and give its path, "
        "extractor={kind: inception, path: ...}, or use extractor={kind: fs-rn20}",
    )
    script = load_script(content, path, device)
    if not hasattr(script, "layers"):
        raise ExtractorError(
            f"{path} must hold Inception's body as `layers`, as {INCEPTION_FILE} does",
            "give a file of the same form",
        )
    clean = spec.resize == "clean"
    return NetworkExtractor(
        name=inception_name(spec.resize),
        digest=spec.sha256,
        dim=FEATURES,
        classes=CLASSES if with_probabilities else 0,
        preprocess=CLEAN_PREPROCESS if clean else TENSORFLOW_PREPROCESS,
        prepare=resize_cleanly if clean else _raw,
        network=_body(script) if clean else _whole(script, with_probabilities),
        device=device,
        batch=BATCH,
    )


def _body(script: torch.jit.ScriptModule) -> Network:
    """The network behind the file's resizing, which has been done outside (Parmar et al. 2022)."""

    def network(x_B3HW: Tensor) -> tuple[Tensor, None]:
        with _as_written():
            features: Tensor = script.layers.forward((x_B3HW - 128) / 128)
        return features.flatten(1), None

    return network


def _whole(script: torch.jit.ScriptModule, with_probabilities: bool) -> Network:
    """The whole file, on uint8 images as EDM gives it them (Karras et al. 2022)."""

    def network(x_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        with _as_written():
            features: Tensor = script(x_B3HW, return_features=True)
            # The bias of the classes was left out by the first Inception Scores (Salimans et al.
            # 2016), and so by all that are compared with them.
            probabilities_BK = script(x_B3HW, no_output_bias=True) if with_probabilities else None
        return features.flatten(1), probabilities_BK

    return network


def _as_written() -> AbstractContextManager[None]:
    """TorchScript as the file says it. What it learns in its first calls is not used: joined
    operations would give later batches other last bits.
    """
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


@functools.cache
def _clean_resizer() -> Callable[[UInt8], Float32]:
    # Of clean-fid, `resize` alone is needed: it reaches neither torchvision nor a downloader's
    # call.
    from cleanfid.resize import build_resizer

    resizer: Callable[[UInt8], Float32] = build_resizer("clean")
    return resizer


def resize_cleanly(images_nCHW: UInt8) -> Tensor:
    """uint8 [n, 1 or 3, H, W] to float32 [n, 3, 299, 299] in 0..255."""
    rgb_nHW3 = as_rgb(images_nCHW).transpose(0, 2, 3, 1)
    resized = [_clean_resizer()(image_HW3) for image_HW3 in rgb_nHW3]
    return torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2))


def _raw(images_nCHW: UInt8) -> Tensor:
    return torch.from_numpy(np.array(as_rgb(images_nCHW)))


def cached_inception() -> Path:
    """Where clean-fid keeps the Inception weights that it has downloaded."""
    return (
        Path("/tmp") / INCEPTION_FILE
        if Path("/tmp").is_dir()
        else Path(tempfile.gettempdir()) / INCEPTION_FILE
    )


def inception_status(path: Path | None = None) -> tuple[bool, str]:
    """Whether the Inception weights are present and right, and a line that says what was seen."""
    path = path or cached_inception()
    if not path.is_file():
        return False, f"no file {path}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != INCEPTION_SHA256:
        return False, f"{path} has sha256 {digest[:12]}..., not {INCEPTION_SHA256[:12]}..."
    return True, f"{path}, sha256 {digest[:12]}..."
