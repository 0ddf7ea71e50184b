"""A trial as Ray Tune runs it: an actor without a CPU of its own, whose workers are placed beside
it.

What it tells Ray at each point: images seen, the deciding objective in a form that can be sorted,
every objective as it is, and how it ended, if it did. It keeps no checkpoint in Ray's sense: the
run's folder has them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray import tune

from fleetstep.errors import FleetstepError
from fleetstep.orchestration.search_records import Goal
from fleetstep.orchestration.search_schedule import ENDED, IMAGES, OBJECTIVE, TrialJob
from fleetstep.orchestration.search_trial import Point, text_of

VALUES = "values"
WHY = "why"
# Between two answers of a trial that was asked to stop and is asked to go on.
_IDLE_S = 0.5


class Trial(Protocol):
    """What the actor runs."""

    def next(self, after: int) -> Point:
        """The first point after so many images."""

    def stop(self) -> bool:
        """Leave, with all resources."""


class SearchTrial(tune.Trainable):  # type: ignore[misc]
    """The actor. Its configuration is a `TrialJob`'s; `make` and `goal` come from the search."""

    def setup(
        self, config: Mapping[str, Any], *, make: Callable[[TrialJob], Trial], goal: Goal
    ) -> None:
        """Make the trial; an error of ours is told as its result, for it would come again."""
        job = TrialJob.of(config)
        self._goal, self._after = goal, job.after
        self._trial: Trial | None = None
        self._refusal: FleetstepError | None = None
        try:
            self._trial = make(job)
        except FleetstepError as error:
            self._refusal = error

    def step(self) -> dict[str, Any]:
        """The next point, once it is reached."""
        if self._trial is None:
            assert self._refusal is not None
            point = Point(self._after, {}, "failed", text_of(self._refusal))
        else:
            point = self._trial.next(self._after)
        self._after = point.images_seen
        if point.ended == "stopped":
            time.sleep(_IDLE_S)
        return result_of(point, self._goal)

    def cleanup(self) -> None:
        """Stop the workers in order, so that their placement group goes with them."""
        if self._trial is not None:
            self._trial.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Where it is: the run's folder has the rest."""
        return {IMAGES: self._after}

    def load_checkpoint(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Go on after a pause without repeating what was reported."""
        if checkpoint is not None:
            self._after = max(self._after, int(checkpoint[IMAGES]))


def result_of(point: Point, goal: Goal) -> dict[str, Any]:
    """What Ray Tune is told of a point."""
    return {
        IMAGES: point.images_seen,
        OBJECTIVE: goal.sortable(point.values.get(goal.name)),
        VALUES: dict(point.values),
        ENDED: point.ended,
        WHY: point.why,
        "done": point.ended in ("finished", "failed"),
    }
