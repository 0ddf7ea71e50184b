"""What is measured of images, in which features, by which protocol, and what the number is
called. Plain Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Field

from fleetstep.spec import Spec

RN20_NAME = "fs-rn20.multi112"
RN20_SHA256 = "4dabd2d8bd113c438e2980ef1fe3af7fd76337ff0a17027b1eefacd6544304df"
"""The packaged weights; `weights/fs-rn20.json` says how they were trained."""

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""The network of published FIDs as TorchScript (Karras et al. 2020), which clean-fid loads."""

CLIP_NAME = "clip-vit-b-32"
"""CLIP's image tower, as clean-fid names it."""

MetricKind = Literal[
    "fd",
    "fd_z",
    "fd_inf",
    "kid",
    "is",
    "precision",
    "recall",
    "density",
    "coverage",
    "clip_score",
]
"""fd: Fréchet distance; fd_z: of features over their standard deviation in the reference; fd_inf:
extrapolated to infinitely many images; kid: kernel distance; is: Inception Score; precision and
recall of k-nearest-neighbour manifolds, density and coverage beside them; clip_score: of images
and the texts of their classes."""

HIGHER_IS_BETTER: Final[frozenset[str]] = frozenset(
    {"is", "precision", "recall", "density", "coverage", "clip_score"}
)
NEEDS_PROBABILITIES: Final[frozenset[str]] = frozenset({"is"})
NEEDS_REFERENCE_FEATURES: Final[frozenset[str]] = frozenset(
    {"kid", "precision", "recall", "density", "coverage"}
)

IMAGE_CHANNELS: Final = (1, 3)
"""Of images that extractors read: grey or RGB. The latents of a VAE have other numbers."""

PAIRED_IMAGES = 10_000
"""Most generated images, the first, of a metric that compares every image with every other: its
cost grows with the square of their number.
"""

ResizeMode = Literal["clean", "legacy_tensorflow"]
_MODE_TEXT: Final[Mapping[ResizeMode, str]] = {"clean": "clean", "legacy_tensorflow": "tf"}

UNBIASED: Final = ".unbiased"
"""End of the name of a FID's jackknifed value; without it, the name is the plain value's."""

Quantisation = Literal["round", "truncate"]
"""From the sampler's numbers to uint8: round is floor(127.5 x + 128), as EDM and clean-fid's users
do; truncate is floor(127.5 (x + 1)), as ADM does. Both clip."""


class Rn20Spec(Spec):
    """The packaged ResNet-20, trained on CIFAR-10: for images of up to 32x32 pixels. Not FID."""

    kind: Literal["fs-rn20"] = "fs-rn20"
    largest_side: ClassVar[int] = 32

    @property
    def probabilities(self) -> bool:
        """Whether the network classifies, so that an Inception Score can be computed."""
        return True


class InceptionSpec(Spec):
    """The Inception-v3 network of FID, from a file; nothing is ever downloaded.

    Attributes:
        path: the TorchScript file `inception-2015-12-05.pt`; None looks where clean-fid caches it.
        sha256: what the file must be. Another file than the pinned one is never called FID.
        resize: to 299x299: "clean" by Pillow in float (Parmar et al. 2022), "legacy_tensorflow"
            by the bilinear layer inside the file, as EDM and ADM measure.
    """

    kind: Literal["inception"] = "inception"
    path: str | None = None
    sha256: str = Field(INCEPTION_SHA256, pattern=r"^[0-9a-f]{64}$")
    resize: ResizeMode = "clean"

    @property
    def probabilities(self) -> bool:
        """The file classifies images of its own resizing only."""
        return self.resize == "legacy_tensorflow"


class DinoV2Spec(Spec):
    """A DINOv2 vision transformer (Oquab et al. 2023) from a file; nothing is ever downloaded.

    Attributes:
        path: the published state dict (`dinov2_vitl14_pretrain.pth`), or it as safetensors.
        sha256: what the file must be.
        size: of the transformer; "large" is what FD-DINOv2 is reported with.
    """

    kind: Literal["dinov2"] = "dinov2"
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: Literal["small", "base", "large"] = "large"

    @property
    def probabilities(self) -> bool:
        """It does not classify."""
        return False


class ClipSpec(Spec):
    """The image tower of CLIP ViT-B/32 (Radford et al. 2021) as clean-fid uses it.

    Attributes:
        path: OpenAI's TorchScript file `ViT-B-32.pt`.
        sha256: what the file must be.
        texts: safetensors with `features` [K, D]: CLIP's embedding of the text of every class,
            for `clip_score`.
    """

    kind: Literal["clip"] = "clip"
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    texts: str | None = None

    @property
    def probabilities(self) -> bool:
        """It does not classify."""
        return False


ExtractorSpec = Annotated[
    Rn20Spec | InceptionSpec | DinoV2Spec | ClipSpec, Field(discriminator="kind")
]
"""The extractors that a configuration can name."""

ProtocolName = Literal["clean", "edm", "adm"]

PROTOCOLS: Final[Mapping[ProtocolName, Mapping[str, Any]]] = {
    # Parmar et al. 2022: whoever uses it chooses the images; they are resized by Pillow in float.
    "clean": {"resize": "clean", "quantisation": "round"},
    # Karras et al. 2022: 50,000 images three times, the lowest of the three is reported.
    "edm": {
        "resize": "legacy_tensorflow",
        "quantisation": "round",
        "samples": 50_000,
        "seed_blocks": 3,
        "labels": "random",
    },
    # Dhariwal & Nichol 2021: truncated pixels, 50,000 images, Inception Score beside FID.
    "adm": {
        "resize": "legacy_tensorflow",
        "quantisation": "truncate",
        "samples": 50_000,
        "labels": "random",
    },
}
"""What a named protocol fixes: how images are resized for Inception, and settings of a sweep."""


def unavailable(kind: MetricKind, extractor: ExtractorSpec) -> str | None:
    """Why features of `extractor` cannot give this metric; None if they can."""
    if kind in NEEDS_PROBABILITIES and not extractor.probabilities:
        return (
            "needs class probabilities, which only fs-rn20 and inception with resize "
            "legacy_tensorflow have"
        )
    if kind == "clip_score" and (not isinstance(extractor, ClipSpec) or extractor.texts is None):
        return "needs the extractor clip with `texts`"
    return None


def too_large(shape: tuple[int, int], extractor: ExtractorSpec) -> str | None:
    """Why `extractor` cannot read images of (height, width); None if it can."""
    if isinstance(extractor, Rn20Spec) and max(shape) > extractor.largest_side:
        side = extractor.largest_side
        return (
            f"{extractor.kind} reads images of up to {side}x{side} pixels, and these are "
            f"{shape[0]}x{shape[1]}"
        )
    return None


def images_scored(kind: MetricKind, n: int, blocks: int) -> int:
    """How many of `n` images a metric looks at: as many in each block."""
    return min(n, PAIRED_IMAGES) // blocks * blocks if kind in NEEDS_REFERENCE_FEATURES else n


def inception_name(resize: ResizeMode) -> str:
    """The extractor's name: resizing is part of it."""
    return f"inception.{_MODE_TEXT[resize]}"


def dinov2_name(size: Literal["small", "base", "large"]) -> str:
    """The extractor's name: its size is part of it."""
    return f"dinov2-{size}"


def count_text(n: int) -> str:
    """A number of images inside a name: 50000 is "50k"."""
    return f"{n // 1000}k" if n % 1000 == 0 and n else str(n)


def metric_name(kind: MetricKind, extractor: str, sha256: str, n: int) -> str:
    """The key under which a score is recorded; it always says how many images were scored.

    The word FID is reserved for the verified Inception network: `fid10k.clean` by clean-fid's
    resizing, `fid50k.tf` by the file's own. Everything else says whose features they are:
    `fd1k.fs-rn20.multi112@1a2b3c4d`. Other metrics are named in the same way.
    Records hold jackknifed values, and published FIDs are plain ones: a FID's name therefore ends
    in `.unbiased`, `fid10k.clean.unbiased`; without it, it is the plain value's.

    Args:
        kind: what was measured.
        extractor: name of the extractor.
        sha256: digest of its weights, 64 hex digits.
        n: generated images.
    """
    if kind not in get_args(MetricKind):
        raise ValueError(f"{kind!r} is no metric")
    for mode, text in _MODE_TEXT.items():
        if (extractor, sha256) == (inception_name(mode), INCEPTION_SHA256):
            verified = {"fd": "fid", "fd_z": "fid_z", "fd_inf": "fid_inf"}.get(kind, kind)
            unbiased = UNBIASED if verified == "fid" else ""
            return f"{verified}{count_text(n)}.{text}{unbiased}"
    return f"{kind}{count_text(n)}.{extractor}@{sha256[:8]}"
