"""Which features a Fréchet distance is measured in, and what the number is called."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fleetstep.spec import Spec

RN20_NAME = "fs-rn20.multi112"
RN20_SHA256 = "4dabd2d8bd113c438e2980ef1fe3af7fd76337ff0a17027b1eefacd6544304df"
"""The packaged weights; `weights/fs-rn20.json` says how they were trained."""

INCEPTION_NAME = "inception.clean"
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""The network of published FIDs as TorchScript (Karras et al. 2020), which clean-fid loads."""

FID_IMAGES = 50_000
"""Fewest images of which a distance may be called FID without saying how many."""


class Rn20Spec(Spec):
    """The packaged ResNet-20, trained on CIFAR-10: for images of up to 32x32 pixels. Not FID."""

    kind: Literal["fs-rn20"] = "fs-rn20"


class InceptionSpec(Spec):
    """The Inception-v3 network of FID, from a file; nothing is ever downloaded.

    Attributes:
        path: the TorchScript file `inception-2015-12-05.pt`; None looks where clean-fid caches it.
        sha256: what the file must be. Another file than the pinned one is never called FID.
    """

    kind: Literal["inception"] = "inception"
    path: str | None = None
    sha256: str = Field(INCEPTION_SHA256, pattern=r"^[0-9a-f]{64}$")


ExtractorSpec = Annotated[Rn20Spec | InceptionSpec, Field(discriminator="kind")]
"""The extractors that a configuration can name."""


def metric_name(extractor: str, sha256: str, n: int, *, standardised: bool = False) -> str:
    """The key under which a Fréchet distance is recorded.

    The word FID is reserved for the verified Inception network with clean-fid's resizing:
    `fid.clean.unbiased` for 50,000 images and more, below that with the number of images,
    `fid10k.clean.unbiased`. "Unbiased", because the recorded value is the jackknifed one;
    published FIDs are the raw value, which a record also holds.
    Everything else says whose features they are: `fd.fs-rn20.multi112@1a2b3c4d`. Distances in
    standardised features begin with `fd_z.`.

    Args:
        extractor: name of the extractor.
        sha256: digest of its weights, 64 hex digits.
        n: generated images.
        standardised: each feature was divided by its standard deviation over the reference.
    """
    if (extractor, sha256) == (INCEPTION_NAME, INCEPTION_SHA256) and not standardised:
        if n >= FID_IMAGES:
            return "fid.clean.unbiased"
        return f"fid{n // 1000}k.clean.unbiased" if n % 1000 == 0 else f"fid{n}.clean.unbiased"
    return f"fd{'_z' if standardised else ''}.{extractor}@{sha256[:8]}"
