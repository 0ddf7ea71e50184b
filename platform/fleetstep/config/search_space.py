"""The space of a search: settings laid over a trial, some of whose values are left open."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, ValidationError
from pydantic_core import core_schema as schema

from fleetstep import rng
from fleetstep.config.files import merged
from fleetstep.config.search_dimensions import Choice, Dimension, Open, Value, open_in, opened
from fleetstep.errors import ConfigError

Assignment: TypeAlias = Mapping[str, Value]
"""Dimension key -> label of the chosen option, or the number; of the dimensions that are active
under it. Flat and JSON-able.
"""


@dataclass(frozen=True)
class Space:
    """Settings laid over a trial, with dimensions in place of some values.

    Attributes:
        tree: as the file has it.
        dimensions: in the order of the file, those under an option after their choice.
    """

    tree: dict[str, Any]
    dimensions: tuple[Dimension, ...] = field(compare=False)
    _opened: dict[str, Any] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, tree: object) -> Self:
        """The space that a section of a file describes.

        Raises:
            ConfigError: naming every problem by its path, "space.training.optimizer.lr: ...".
        """
        if not isinstance(tree, dict):
            raise ConfigError([f"space: must be a mapping of sections, got {tree!r}"])
        problems: list[str] = []
        read = opened(tree, problems)
        if problems:
            raise ConfigError(problems)
        return cls(tree, tuple(place.dimension for place in _every(read)), read)

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """Of the dimensions."""
        return tuple(dimension.key for dimension in self.dimensions)

    def sample(self, seed: int, index: int) -> Assignment:
        """Draw of trial `index`: a function of (seed, index) and the dimension alone, so that
        neither the order of trials nor another dimension changes it.
        """

        def drawn(dimension: Dimension) -> Value:
            purpose = f"search|{dimension.key}"
            return dimension.kind.at(float(rng.uniform(seed, purpose, index, 1)[0]))

        return _walk(self._opened, drawn)

    def draws(self, seed: int) -> Iterator[Assignment]:
        """The draws of trials 0, 1, 2, ... without repetitions: a trial trained twice says nothing
        new. Ends where a space without continuous dimensions has no other point left.
        """
        left, seen = self.size(), set[tuple[tuple[str, Value], ...]]()
        for index in itertools.count():
            if len(seen) == left:
                return
            found = self.sample(seed, index)
            known = tuple(found.items())
            if known not in seen:
                seen.add(known)
                yield found

    def first(self) -> Assignment:
        """The first option of every choice and the low end of every range."""
        return _walk(self._opened, _lowest)

    def reaching(self, dimension: Dimension, value: Value) -> Assignment:
        """`first` but for one dimension, and the options that it lives under."""
        fixed: dict[str, Value] = {**dict(dimension.when), dimension.key: value}
        return _walk(self._opened, lambda one: fixed.get(one.key, _lowest(one)))

    def grid(self) -> Iterator[Assignment]:
        """Every assignment, the last dimension changing fastest.

        Raises:
            ConfigError: a dimension is continuous.
        """
        if endless := [one.key for one in self.dimensions if one.kind.values() is None]:
            raise ConfigError(
                [f"space.{key}: is continuous, and has no grid; use choice" for key in endless]
            )
        return _points(tuple(open_in(self._opened)))

    def size(self) -> int | None:
        """Number of points of the grid; None if a dimension is continuous."""
        return _count(self._opened)

    def apply(self, trial_tree: Mapping[str, Any], assignment: Assignment) -> dict[str, Any]:
        """The trial with the assignment laid over it, by the rules that files are merged by.

        Raises:
            ConfigError: the assignment lacks an active dimension, names one that is not, or a
                value that is none of its dimension's.
        """
        problems = list(self._refusals(assignment))
        if problems:
            raise ConfigError(problems)
        return merged(trial_tree, _resolved(self._opened, assignment))

    def deciding(self, trial_tree: Mapping[str, Any], path: str) -> Iterator[Dimension]:
        """Dimensions that change the setting or section at a path, "training.heldout"."""
        for one in self.dimensions:
            trees = [self.apply(trial_tree, self.reaching(one, value)) for value in one.extremes]
            first, *others = (_at(tree, path) for tree in trees)
            if any(other != first for other in others):
                yield one

    def title(self, assignment: Assignment) -> str:
        """Short, for tables: "lr=0.0031 strategies=fdm multiplier=1.8"."""
        return " ".join(
            f"{self._names[key]}={_text(assignment[key])}"
            for key in self.keys
            if key in assignment
        )

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """Last parts of each key, as few as tell it from the others; places in a list only where
        nothing else does.
        """
        whole = {key: re.split(r"[./]", key) for key in self.keys}
        plain = {
            key: [part for part in parts if not part.isdecimal()] for key, parts in whole.items()
        }
        return {key: _shortest(key, plain) or _shortest(key, whole) or key for key in self.keys}

    def _refusals(self, assignment: Assignment) -> Iterator[str]:
        known = {dimension.key: dimension for dimension in self.dimensions}
        for key, value in assignment.items():
            if key not in known:
                yield f"{key}: is no dimension of the space; dimensions: {', '.join(known)}"
            elif not _active(known[key], assignment):
                under = " and ".join(f"{choice} is {label}" for choice, label in known[key].when)
                yield f"{key}: exists only where {under}; leave it out"
            elif refusal := known[key].kind.refusal(value):
                yield f"{key}: {refusal}"
        for key, dimension in known.items():
            if key not in assignment and _active(dimension, assignment):
                yield f"{key}: missing; the assignment must say it"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """In a file it is its tree."""
        return schema.no_info_plain_validator_function(
            cls._validated,
            serialization=schema.plain_serializer_function_ser_schema(lambda space: space.tree),
        )

    @classmethod
    def _validated(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        try:
            return cls.parse(value)
        except ConfigError as error:
            raise _each_of(error.problems) from None


def _each_of(problems: Sequence[str]) -> ValidationError:
    """An error that pydantic reports problem by problem."""
    lines = [
        InitErrorDetails(
            # The text may hold braces, which are no place holders.
            type=PydanticCustomError("space", "{problem}", {"problem": problem}),
            input=None,
        )
        for problem in problems
    ]
    return ValidationError.from_exception_data("Space", lines)


def _every(tree: Any) -> Iterator[Open]:
    for place in open_in(tree):
        yield place
        for option in place.options.values():
            yield from _every(option)


def _walk(tree: Any, value_of: Callable[[Dimension], Value]) -> dict[str, Value]:
    """Values of the active dimensions, each asked of `value_of`."""
    assignment: dict[str, Value] = {}
    for place in open_in(tree):
        value = assignment[place.dimension.key] = value_of(place.dimension)
        if place.options:
            assignment |= _walk(place.options[str(value)], value_of)
    return assignment


def _lowest(dimension: Dimension) -> Value:
    kind = dimension.kind
    return kind.labels[0] if isinstance(kind, Choice) else kind.low


def _points(places: Sequence[Open]) -> Iterator[dict[str, Value]]:
    if not places:
        yield {}
        return
    place, *others = places
    for value in place.dimension.kind.values() or ():
        under = tuple(open_in(place.options.get(str(value))))
        for inner in _points(under):
            for outer in _points(others):
                yield {place.dimension.key: value, **inner, **outer}


def _count(tree: Any) -> int | None:
    total = 1
    for place in open_in(tree):
        values = place.dimension.kind.values()
        if values is None:
            return None
        under = [_count(option) for option in place.options.values()]
        if None in under:
            return None
        total *= sum(count or 0 for count in under) if under else len(values)
    return total


def _resolved(tree: Any, assignment: Assignment) -> Any:
    """An opened tree with values in place of its dimensions."""
    if isinstance(tree, Open):
        value = assignment[tree.dimension.key]
        return _resolved(tree.options[str(value)], assignment) if tree.options else value
    if isinstance(tree, dict):
        return {name: _resolved(child, assignment) for name, child in tree.items()}
    if isinstance(tree, list):
        return [_resolved(child, assignment) for child in tree]
    return tree


def _at(tree: Any, path: str) -> Any:
    """What stands at a path; None if nothing does."""
    for step in path.split("."):
        tree = tree.get(step) if isinstance(tree, Mapping) else None
    return tree


def _active(dimension: Dimension, assignment: Assignment) -> bool:
    return all(assignment.get(key) == label for key, label in dimension.when)


def _shortest(key: str, parts: Mapping[str, list[str]]) -> str | None:
    """The shortest end of the key's parts that no other key ends in; None if there is none."""
    own = parts[key]
    for length in range(1, len(own) + 1):
        tail = own[-length:]
        if sum(other[-length:] == tail for other in parts.values()) == 1:
            return ".".join(tail)
    return None


def _text(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)
