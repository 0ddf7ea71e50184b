"""Who runs next and who is stopped: successive halving and populations as Ray Tune's schedulers.

Ray's own forget everything when a search is started again: its rungs and its population's clock
are restored from nowhere. So the rungs are ours, with Ray's rule for the cutoff, and are told the
results on disk first; of Ray's population only the clock and what an exploit does are replaced.

Asynchronous successive halving: Li et al. 2018 (arXiv 1810.05934). Population based training:
Jaderberg et al. 2017 (arXiv 1711.09846), synchronous: all trials of a population are compared at
the same number of images, so an exploit moves weights between equals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler

from fleetstep.orchestration.search_records import (
    Assignment,
    Goal,
    Life,
    Origin,
    TrialRecord,
)

IMAGES = "images_seen"
OBJECTIVE = "objective"
"""Key of the first objective, sortable, in what a trial tells Ray."""
ENDED = "ended"
JOB = "job"


@dataclass(frozen=True)
class TrialJob:
    """What a trial is to do, as its Ray configuration carries it: one line of JSON.

    Attributes:
        trial: its number as text.
        life: assignment and origin of the present life.
        after: images seen at the last point that nobody has to hear again.
    """

    trial: str
    life: Life
    after: int = 0

    def config(self) -> dict[str, Any]:
        """The form Ray Tune passes on."""
        return {JOB: json.dumps(asdict(self))}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TrialJob:
        """The inverse of `config`."""
        fields = json.loads(config[JOB])
        life = fields["life"]
        origin = None if life["origin"] is None else Origin(**life["origin"])
        return cls(
            fields["trial"], Life(life["index"], life["assignment"], origin), fields["after"]
        )


class Rungs:
    """Asynchronous successive halving: at each rung a trial goes on if it is among the best share
    1/reduction of those that got there so far.

    Args:
        milestones: images seen of the rungs.
        reduction: over 1.
    """

    def __init__(self, milestones: Iterable[int], reduction: float) -> None:
        self._reduction = reduction
        self._recorded: dict[int, dict[str, float]] = {
            milestone: {} for milestone in sorted(milestones, reverse=True)
        }

    def stops(self, trial: str, images_seen: int, loss: float) -> bool:
        """Record a loss at the highest rung that the trial newly reached; whether it is worse than
        the cutoff of those before it. A rung decides of each trial once.
        """
        for milestone, recorded in self._recorded.items():
            if images_seen < milestone or trial in recorded:
                continue
            before = list(recorded.values())
            recorded[trial] = loss
            return bool(before) and loss > float(np.percentile(before, 100 / self._reduction))
        return False

    def tell(self, records: Iterable[TrialRecord], goal: Goal) -> None:
        """Record what an earlier start of the search heard."""
        for record in records:
            for report in record.reports:
                loss = goal.loss(report.values.get(goal.name))
                self.stops(record.trial, report.images_seen, loss)


class Halving(FIFOScheduler):  # type: ignore[misc]
    """`Rungs` as Ray Tune's scheduler: trials start in order, and stop where the rungs say so.

    Args:
        rungs: told of earlier results.
        goal: the objective that decides.
    """

    def __init__(self, rungs: Rungs, goal: Goal) -> None:
        super().__init__()
        self._rungs, self._goal = rungs, goal

    def on_trial_result(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """STOP or CONTINUE."""
        return str(TrialScheduler.STOP if self._stops(trial, result) else TrialScheduler.CONTINUE)

    def on_trial_complete(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """The last result of a trial counts for those after it."""
        self._stops(trial, result)

    def _stops(self, trial: Any, result: Mapping[str, Any]) -> bool:
        # A trial that was asked to stop repeats its last point, or has none.
        if result[ENDED] == "stopped":
            return False
        loss = self._goal.loss(result[OBJECTIVE])
        return self._rungs.stops(TrialJob.of(trial.config).trial, result[IMAGES], loss)


Explore = Callable[[str, int, Assignment], Assignment]
"""(trial, its next life, the donor's assignment) -> the assignment that it goes on with."""


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """Ray's synchronous population, whose exploits say what to copy from whom.

    Args:
        every: images between comparisons.
        first: images at the first comparison: of a search that goes on, the one that not all
            trials have passed.
        goal: the objective that decides.
        quantile: share of trials that is replaced, and that is copied.
        explore: changes a donor's assignment.
    """

    def __init__(
        self, *, every: int, first: int, goal: Goal, quantile: float, explore: Explore
    ) -> None:
        super().__init__(
            time_attr=IMAGES,
            metric=OBJECTIVE,
            mode=goal.mode,
            perturbation_interval=every,
            quantile_fraction=quantile,
            custom_explore_fn=dict,
            log_config=False,
            synch=True,
        )
        self._explore = explore
        self._next_perturbation_sync = first

    def on_trial_complete(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """A trial that ends is waited for no longer."""
        self._leave(controller, trial)

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """As one that ends."""
        self._leave(controller, trial)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        """As one that ends."""
        self._leave(controller, trial)

    def _leave(self, controller: Any, trial: Any) -> None:
        """Take it out, and compare the others if they waited for it alone: Ray asks for that only
        when a result comes in, and then never again.
        """
        left = self._trial_state[trial]
        left.last_score, left.last_train_time = None, self._next_perturbation_sync
        others = [t for t in controller.get_live_trials() if t is not trial]
        states = [self._trial_state[other] for other in others]
        if others and all(s.last_train_time >= self._next_perturbation_sync for s in states):
            self.on_trial_result(controller, others[0], states[0].last_result)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        """Ray's hook for what an exploited trial goes on with, as its PB2 uses it."""
        mine, donor = TrialJob.of(trial.config), TrialJob.of(trial_to_clone.config)
        images_seen = int(self._trial_state[trial_to_clone].last_result[IMAGES])
        life = mine.life.index + 1
        assignment = self._explore(mine.trial, life, donor.life.assignment)
        origin = Origin(donor.trial, donor.life.index, images_seen)
        job = TrialJob(mine.trial, Life(life, dict(assignment), origin), images_seen)
        return job.config(), {}


def first_comparison(records: Sequence[TrialRecord], every: int) -> int:
    """Images at the first comparison that not all unfinished trials have passed.

    A life that began at a comparison is past it; a report at one waits for it, because nothing
    says that it was held.
    """
    reached = [
        max(
            record.life.origin.images_seen if record.life.origin else 0,
            (record.images_seen - 1) // every * every,
        )
        for record in records
        if record.open
    ]
    return (min(reached, default=0) // every + 1) * every
