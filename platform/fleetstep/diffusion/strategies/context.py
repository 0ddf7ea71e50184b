"""What a strategy may know of the run it is applied to."""

from __future__ import annotations

from dataclasses import dataclass

from fleetstep.diffusion.spec import ProcessSpec
from fleetstep.spec import Span, span_images


@dataclass(frozen=True, kw_only=True)
class Context:
    """The process's config and the run's size.

    Attributes:
        process: the process's config.
        budget_images: the run's image budget, of which windows may be shares.
        global_batch: images per optimiser step.
    """

    process: ProcessSpec
    budget_images: int
    global_batch: int

    def steps(self, window: Span) -> int:
        """Optimiser steps that see at least `window`."""
        return -(-span_images(window, self.budget_images) // self.global_batch)
