"""From images to features: the packaged ResNet-20, or Inception as clean-fid runs it (its door).

Features of an image must not depend on the images beside it: batches have one fixed size, the last
one is padded, batch size 1 (another convolution kernel, other last bits) never occurs, and TF32 is
off.

Legend: n images, B batch, C channels, H W pixels, D features.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from fleetstep.errors import ExtractorError
from fleetstep.evaluation import resnet20
from fleetstep.evaluation.spec import (
    INCEPTION_FILE,
    INCEPTION_NAME,
    INCEPTION_SHA256,
    RN20_NAME,
    RN20_SHA256,
    ExtractorSpec,
    InceptionSpec,
)
from fleetstep.torchvision_door import import_torchvision

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

RN20_BATCH = 100
INCEPTION_BATCH = 25
INCEPTION_FEATURES = 2048
INCEPTION_PREPROCESS = (
    "clean-fid clean: PIL bicubic in float32 to 299x299, clipped, not rounded; (x-128)/128"
)


class Extractor(Protocol):
    """Anything that turns images into features."""

    @property
    def name(self) -> str:
        """Short name, part of the metric's."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, 64 hex digits; the metric's name holds the first eight."""

    @property
    def dim(self) -> int:
        """Number of features."""

    @property
    def preprocess(self) -> str:
        """What is done to an image before the network sees it."""

    def __call__(self, images_nCHW: UInt8) -> Float32:
        """Features [n, D] of uint8 images; row i depends on image i alone."""


@dataclass(frozen=True, eq=False)
class NetworkExtractor:
    """A torch network as an `Extractor`.

    Args:
        name: short name.
        digest: SHA-256 of the weights.
        dim: number of features.
        preprocess: description of `prepare`.
        prepare: uint8 [b, C, H, W] to the network's input on the CPU, image by image.
        network: batch of inputs to features [B, D].
        device: where the network is.
        batch: fixed batch size, at least 2.
    """

    name: str
    digest: str
    dim: int
    preprocess: str
    prepare: Callable[[UInt8], Tensor]
    network: Callable[[Tensor], Tensor]
    device: str
    batch: int

    @torch.inference_mode()
    def __call__(self, images_nCHW: UInt8) -> Float32:
        """Features [n, D], float32.

        Raises:
            ExtractorError: images that the extractor cannot read.
        """
        _check_images(images_nCHW)
        features_nD = np.empty((len(images_nCHW), self.dim), np.float32)
        for start in range(0, len(images_nCHW), self.batch):
            x_bCHW = self.prepare(images_nCHW[start : start + self.batch])
            count = len(x_bCHW)
            x_BCHW = x_bCHW.new_zeros((self.batch, *x_bCHW.shape[1:]))
            x_BCHW[:count] = x_bCHW
            with torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ):
                y_BD = self.network(x_BCHW.to(self.device))
            features_nD[start : start + count] = y_BD[:count].float().cpu().numpy()
        return features_nD


def _check_images(images_nCHW: UInt8) -> None:
    shape = images_nCHW.shape
    if images_nCHW.dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
        raise ExtractorError(
            "images to score are uint8 of shape (n, 1 or 3, height, width), "
            f"got {images_nCHW.dtype} {shape}",
            "round samples to 0..255 and put channels before pixels",
        )


def load_extractor(spec: ExtractorSpec, device: str = "cpu") -> NetworkExtractor:
    """The extractor of `spec`, its weights checked against their digest.

    Raises:
        ExtractorError: the weights are missing, or are not the file they should be.
    """
    return _inception(spec, device) if isinstance(spec, InceptionSpec) else _rn20(device)


def _rn20(device: str) -> NetworkExtractor:
    weights = resources.files("fleetstep.evaluation") / "weights" / "fs-rn20.safetensors"
    content = weights.read_bytes() if weights.is_file() else b""
    digest = hashlib.sha256(content).hexdigest()
    if digest != RN20_SHA256:
        raise ExtractorError(
            f"the packaged extractor weights {weights} must have sha256 {RN20_SHA256[:12]}..., "
            + (f"got {digest[:12]}..." if content else "but the file is missing"),
            "reinstall fleetstep; other weights would give another metric",
        )
    network = resnet20.ResNet20()
    _load_weights(network, content, str(weights))
    network.eval().to(device)
    return NetworkExtractor(
        name=RN20_NAME,
        digest=digest,
        dim=resnet20.FEATURES,
        preprocess=resnet20.PREPROCESS,
        prepare=lambda images: torch.from_numpy(resnet20.to_canvas(images)),
        network=lambda canvas_B3HW: network.features(resnet20.normalise(canvas_B3HW)),
        device=device,
        batch=RN20_BATCH,
    )


def _load_weights(network: resnet20.ResNet20, content: bytes, where: str) -> None:
    """Fill the network from safetensors, which leave out the normalisation's step counters alone.

    Raises:
        ExtractorError: a tensor is missing or belongs to another network; it would stay random.
    """
    keys = network.load_state_dict(safetensors.torch.load(content), strict=False)
    missing = [key for key in keys.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or keys.unexpected_keys:
        raise ExtractorError(
            f"the extractor weights {where} must hold the network's tensors and no others, but "
            f"{', '.join(missing) or 'none'} are missing and "
            f"{', '.join(keys.unexpected_keys) or 'none'} are unknown",
            "reinstall fleetstep, or train the weights again with pipelines/train_extractor.py",
        )


def _inception(spec: InceptionSpec, device: str) -> NetworkExtractor:
    path = Path(spec.path) if spec.path is not None else cached_inception()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExtractorError(
            f"the Inception weights are not at {path}",
            f"nothing is downloaded: get {INCEPTION_FILE} (sha256 {INCEPTION_SHA256}) yourself "
            "and give its path, extractor={kind: inception, path: ...}, or use "
            "extractor={kind: fs-rn20}",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != spec.sha256:
        raise ExtractorError(
            f"{path} must have sha256 {spec.sha256}, got {digest}",
            "fetch the file again; or, to measure with another network, give its own sha256 "
            "beside its path (the distance is then not called FID)",
        )
    # TorchScript executes code, so only the very bytes that were hashed are loaded.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        script = torch.jit.load(io.BytesIO(content), map_location=device).eval()  # type: ignore[no-untyped-call]

    def network(x_B3HW: Tensor) -> Tensor:
        # As clean-fid's InceptionV3W: the body alone, because resizing has been done outside.
        features: Tensor = script.layers.forward((x_B3HW - 128) / 128)
        return features.view(len(x_B3HW), INCEPTION_FEATURES)

    return NetworkExtractor(
        name=INCEPTION_NAME,
        digest=digest,
        dim=INCEPTION_FEATURES,
        preprocess=INCEPTION_PREPROCESS,
        prepare=_inception_input,
        network=network,
        device=device,
        batch=INCEPTION_BATCH,
    )


@functools.cache
def _clean_resizer() -> Callable[[UInt8], Float32]:
    # Of clean-fid, `resize` alone is needed: it reaches neither torchvision nor a downloader's
    # call.
    from cleanfid.resize import build_resizer

    resizer: Callable[[UInt8], Float32] = build_resizer("clean")
    return resizer


def _inception_input(images_nCHW: UInt8) -> Tensor:
    """uint8 [n, 1 or 3, H, W] to float32 [n, 3, 299, 299] in 0..255."""
    rgb_nHW3 = np.broadcast_to(
        images_nCHW, (len(images_nCHW), 3, *images_nCHW.shape[2:])
    ).transpose(0, 2, 3, 1)
    resized = [_clean_resizer()(image_HW3) for image_HW3 in rgb_nHW3]
    return torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2))


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


def torchvision_status() -> str:
    """For `doctor`: "" where torch and torchvision match, else what does not."""
    try:
        return import_torchvision()
    except (ImportError, RuntimeError, OSError) as error:
        return f"torchvision cannot be imported: {error}"
