"""What a run reads: the `data` section of an experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from fleetstep.spec import Spec


class DataSpec(Spec):
    """A packed dataset and the way it is streamed.

    `seed`, `split`, `window` and `flip` decide what a run sees; `path` and `prefetch` only how it
    gets there.
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
        Field(description="Mirror half of the images; null follows the dataset's manifest."),
    ] = None
    prefetch: Annotated[PositiveInt, Field(description="Batches prepared ahead of the step.")] = 2
