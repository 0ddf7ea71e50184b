"""Weight warm-up: a growing cap on the base weight, for any process (FDM, table 5: on EDM)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fleetstep.diffusion.spec import WarmupSpec
from fleetstep.diffusion.strategies.context import Context
from fleetstep.diffusion.weighting import WarmupClamp

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective


def apply(spec: WarmupSpec, objective: Objective, context: Context) -> Objective:
    """Add the clamp; its window of images becomes ceil(images / global_batch) optimiser steps."""
    clamp = WarmupClamp(spec.start, spec.stop, context.steps(spec.window), spec.release)
    return dataclasses.replace(objective, clamps=(*objective.clamps, clamp))
