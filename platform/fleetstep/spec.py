"""The leaf of every configuration: a closed, frozen pydantic model.

Packages declare their configs as `Spec`s in plain-Python `spec.py` modules, so that a whole
experiment is checked without importing torch.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Spec(BaseModel):
    """A piece of configuration: unknown keys are refused, values cannot change after
    construction.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def _check_span(value: int | str) -> int | str:
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value.strip())
        if match is None or not 0 <= float(match[1]) <= 100:
            raise ValueError(
                'a span is a number of images (102400) or a share of the budget ("5%")'
            )
    elif value < 0:
        raise ValueError("a span of images must not be negative")
    return value


Span = Annotated[int | str, AfterValidator(_check_span)]
"""A length of training: images, or a share of the run's image budget such as "5%"."""


def span_images(span: int | str, budget: int) -> int:
    """The number of images that `span` means in a run of `budget` images (shares are rounded up).

    Shares keep a schedule's shape when a run is made shorter: an absolute ramp of 10 million
    images would leave a run of 200,000 at 2 % of its learning rate.
    """
    if isinstance(span, int):
        return span
    return math.ceil(float(span.strip().rstrip("%")) / 100 * budget)
