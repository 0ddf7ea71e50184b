"""What a run reads: the `data` section of an experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from fleetstep.spec import Spec


class ExpectsSpec(Spec):
    """The images that a preset was written for.

    Attributes:
        resolution: height and width, in pixels.
        channels: of an image.
        classes: number of classes; 0 for unlabelled images.
        latents: the images are latents of a VAE, which cannot be packed yet.
    """

    resolution: PositiveInt
    channels: PositiveInt
    classes: NonNegativeInt = 0
    latents: bool = False


class DataSpec(Spec):
    """A packed dataset and the way it is streamed.

    `split`, `window`, `flip` and `augment` decide what a run sees; `path` and `prefetch` only how
    it gets there, and `expects` is checked against what is there.
    """

    path: Annotated[
        str, Field(min_length=1, description="Dataset folder made by `fleetstep data pack`.")
    ]
    split: Annotated[str, Field(description="Split to train on.")] = "train"
    heldout: Annotated[str, Field(description="Split that is never trained on.")] = "heldout"
    window: Annotated[
        PositiveInt,
        Field(description="Samples shuffled together; see Order for how far a sample travels."),
    ] = 16_384
    flip: Annotated[
        bool | None,
        Field(
            description="Mirror half of the images; null follows the dataset's manifest, or "
            "mirrors none with `augment`, which mirrors half itself and so excludes true."
        ),
    ] = None
    augment: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Probability of each change of the non-leaky augmentation, of which the "
            "network is told (Karras et al. 2022, table 6); 0 switches it off.",
        ),
    ] = 0.0
    prefetch: Annotated[PositiveInt, Field(description="Batches prepared ahead of the step.")] = 2
    expects: Annotated[
        ExpectsSpec | None, Field(description="What the rest of the file was written for.")
    ] = None

    def mirrors(self, flip_allowed: bool) -> bool:
        """Whether half of the images are mirrored, given what the dataset's manifest allows."""
        if self.flip is None:
            return flip_allowed and self.augment == 0
        return self.flip
