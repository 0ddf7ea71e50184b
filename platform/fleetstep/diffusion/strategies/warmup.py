"""Weight warm-up: a growing cap on the base weight, for any process (FDM, table 5: on EDM)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fleetstep.diffusion.spec import WarmupSpec
from fleetstep.diffusion.weighting import WarmupClamp
from fleetstep.spec import span_images

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective


def apply(
    spec: WarmupSpec, objective: Objective, *, budget_images: int, global_batch: int
) -> Objective:
    """Add the clamp; its window of images becomes ceil(images / global_batch) optimiser steps."""
    steps = -(-span_images(spec.window, budget_images) // global_batch)
    clamp = WarmupClamp(spec.start, spec.stop, steps, spec.release)
    return dataclasses.replace(objective, clamps=(*objective.clamps, clamp))
