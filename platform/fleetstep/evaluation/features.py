"""From images to features: the extractor that a configuration names.

Legend: n images, C channels, H W pixels, D features, K classes.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor

from fleetstep.errors import ExtractorError
from fleetstep.evaluation import resnet20
from fleetstep.evaluation.clip import clip
from fleetstep.evaluation.dinov2 import dinov2
from fleetstep.evaluation.inception import inception
from fleetstep.evaluation.network_extractor import Extracted, NetworkExtractor, UInt8
from fleetstep.evaluation.spec import (
    RN20_NAME,
    RN20_SHA256,
    ClipSpec,
    DinoV2Spec,
    ExtractorSpec,
    InceptionSpec,
    Rn20Spec,
)
from fleetstep.evaluation.weight_files import fill

RN20_BATCH = 100


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

    def __call__(self, images_nCHW: UInt8) -> Extracted:
        """Features [n, D] of uint8 images, and class probabilities [n, K] or None; row i depends
        on image i alone.
        """


def load_extractor(
    spec: ExtractorSpec, device: str = "cpu", *, with_probabilities: bool = False
) -> NetworkExtractor:
    """The extractor of `spec`, its weights checked against their digest.

    Args:
        spec: which, and where its weights are.
        device: where it runs.
        with_probabilities: of classes also where they take a second pass (Inception); fs-rn20
            gives them always.

    Raises:
        ExtractorError: the weights are missing or are not the file they should be, or the network
            cannot classify.
    """
    match spec:
        case Rn20Spec():
            return _rn20(device)
        case InceptionSpec():
            return inception(spec, device, with_probabilities=with_probabilities)
        case DinoV2Spec() | ClipSpec() if with_probabilities:
            raise ExtractorError(f"{spec.kind} does not classify images", "do not ask it to")
        case DinoV2Spec():
            return dinov2(spec, device)
        case ClipSpec():
            return clip(spec, device)


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
    fill(
        network,
        safetensors.torch.load(content),
        str(weights),
        "reinstall fleetstep, or train the weights again with pipelines/train_extractor.py",
    )
    network.to(device)
    return NetworkExtractor(
        name=RN20_NAME,
        digest=digest,
        dim=resnet20.FEATURES,
        classes=resnet20.CLASSES,
        preprocess=resnet20.PREPROCESS,
        prepare=lambda images: torch.from_numpy(resnet20.to_canvas(images)),
        network=functools.partial(_features_and_probabilities, network),
        device=device,
        batch=RN20_BATCH,
    )


def _features_and_probabilities(
    network: resnet20.ResNet20, canvas_B3HW: Tensor
) -> tuple[Tensor, Tensor]:
    features_BD = network.features(resnet20.normalise(canvas_B3HW))
    return features_BD, network.classify(features_BD).softmax(1)
