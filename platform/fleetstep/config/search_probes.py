"""Whether a search's trials can be what they are to be: each option, both ends of each range, and
the trials themselves, through their own model and its checks before anything starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

from fleetstep.config.amed import AmedExperiment
from fleetstep.config.files import BASE, merged
from fleetstep.config.problems import Check, Parts, examined
from fleetstep.config.search import (
    MODELS,
    GridSearchSpec,
    RandomSearchSpec,
    SearchSpec,
    TrialSpec,
    trial_tree,
)
from fleetstep.config.search_dimensions import Dimension, Value
from fleetstep.config.search_objectives import ObjectiveSpec, evaluated
from fleetstep.config.search_space import Assignment, Space
from fleetstep.config.search_trial_checks import check_objectives_of
from fleetstep.config.specs import Experiment
from fleetstep.config.sweep import SweepSpec

ChecksOf: TypeAlias = Callable[
    [type[Experiment] | type[SweepSpec] | type[AmedExperiment]], tuple[Check, ...]
]
"""The cross-checks of a model."""

MOST_TRIALS = 2000
"""Trials that are looked at one by one."""

_MOST_LINES = 10


def check_trials(parts: Parts, checks_of: ChecksOf) -> list[str]:
    """Problems of the trial, of each value the space may take, and of whole trials."""
    if not {"trial", "space"} <= parts.keys():
        return []
    probes = Probes(parts["trial"], parts["space"], parts.get("objectives", ()), checks_of)
    problems = [*probes.of_trial(), *probes.of_space()]
    if not problems and "searcher" in parts:
        problems = list(probes.of_trials(_known_trials(parts["space"], parts["searcher"])))
    if (confirm := parts.get("confirm")) is not None and parts["trial"].kind == "train":
        problems += probes.of_baseline(confirm.baseline)
    return problems


def _known_trials(space: Space, searcher: object) -> Iterable[Assignment]:
    if isinstance(searcher, RandomSearchSpec):
        return itertools.islice(space.draws(searcher.seed), searcher.trials)
    if isinstance(searcher, GridSearchSpec) and space.size() is not None:
        return space.grid()
    return ()


@dataclass(frozen=True)
class Probes:
    """Looks at trials, and says of a problem which value makes it.

    Args:
        trial, space, objectives: of the search.
        checks_of: what its trials are checked by.
    """

    trial: TrialSpec
    space: Space
    objectives: tuple[ObjectiveSpec, ...]
    checks_of: ChecksOf

    def of_trial(self) -> list[str]:
        """Problems of the trial that no value of the space is to blame for, or takes away."""
        return [f"trial.{line}" for line in self._bare if line in self._reference]

    def of_space(self) -> list[str]:
        """Problems of the space as a whole, and of single values."""
        found = [self._blamed(line) for line in self._reference if line not in self._bare]
        for (dimension, value), lines in self._probed.items():
            title = self._title(dimension, value)
            own = self._own(dimension, value)
            found += [f"{title}: {line}" for line in lines if line in own]
        return list(dict.fromkeys(found))

    def of_trials(self, assignments: Iterable[Assignment]) -> Iterator[str]:
        """Problems of combinations: each with the first trial that has it."""
        first: dict[str, str] = {}
        more: dict[str, int] = {}
        for assignment in islice(assignments, MOST_TRIALS):
            for line in self._problems(self._tree(assignment)):
                more[line] = more.get(line, -1) + 1
                first.setdefault(line, f"{self.space.title(assignment)}: {line}")
        for line, text in islice(first.items(), _MOST_LINES):
            yield text + (f" (and of {more[line]} more trials)" if more[line] else "")
        if len(first) > _MOST_LINES:
            yield f"space: {len(first) - _MOST_LINES} more problems of single trials"

    def of_baseline(self, baseline: Mapping[str, Any]) -> list[str]:
        """Problems of what the winner is held against, but for those of the trial itself."""
        tree = self._measured(merged(self.trial.tree, baseline))
        told = [line for line in self._bare if line in self._reference]
        return [f"confirm.baseline: {line}" for line in self._problems(tree) if line not in told]

    @cached_property
    def _bare(self) -> list[str]:
        """Problems of the trial without the space."""
        return self._problems(self._measured(self.trial.tree))

    @cached_property
    def _reference(self) -> list[str]:
        """Problems of the first values of all dimensions."""
        return self._problems(self._tree(self.space.first()))

    @cached_property
    def _probed(self) -> dict[tuple[Dimension, Value], list[str]]:
        """Problems with one value changed at a time."""
        values = ((one, value) for one in self.space.dimensions for value in one.extremes)
        return {
            (one, value): self._problems(self._tree(self.space.reaching(one, value)))
            for one, value in islice(values, MOST_TRIALS)
        }

    def _own(self, dimension: Dimension, value: Value) -> set[str]:
        """Problems of a probe but for those of the first values, of an option that it lives under,
        or of a single value under it.
        """
        own = self._lasting((dimension.key, value))
        for option in dimension.when:
            own -= self._lasting(option)
        return own - {*self._reference}

    def _lasting(self, option: tuple[str, Value]) -> set[str]:
        """Problems that a value has whatever is chosen under it."""
        first, *others = (
            set(lines)
            for (one, value), lines in self._probed.items()
            if option in ((one.key, value), *one.when)
        )
        return first.intersection(*others)

    def _tree(self, assignment: Assignment) -> dict[str, Any]:
        return trial_tree(self.trial, self.space, self.objectives, assignment)

    def _measured(self, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        return evaluated(tree, self.objectives) if self.trial.kind == "train" else tree

    def _problems(self, tree: Mapping[str, Any]) -> list[str]:
        model = MODELS[self.trial.kind]
        # What the search says itself is checked with the search.
        kept = {
            name: value for name, value in tree.items() if name not in (*SearchSpec.owned, BASE)
        }
        spec, problems = examined(model, {**kept, "name": "trial"}, self.checks_of(model))
        if spec is not None:
            problems += check_objectives_of(spec, self.objectives)
        return problems

    def _title(self, dimension: Dimension, value: Value) -> str:
        return self.space.title({**dict(dimension.when), dimension.key: value})

    def _blamed(self, line: str) -> str:
        """A problem of the first values, with those of them that another value would mend."""
        first = self.space.first()
        mended = {
            one.key
            for (one, _), lines in self._probed.items()
            if line not in lines and one.key in first
        }
        if mended:
            return f"{self.space.title({key: first[key] for key in mended})}: {line}"
        head = line.partition(":")[0].partition(" ")[0].partition(".")[0]
        if head in self.space.tree:
            return f"space.{line}"
        return f"trial.{line}" if head in self.trial.tree else f"space: {line}"
