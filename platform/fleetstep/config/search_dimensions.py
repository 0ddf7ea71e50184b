"""The values that a search leaves open, as a file writes them: choices and ranges, each with the
path of the setting that it stands for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias

Value: TypeAlias = str | int | float | bool
"""Of a dimension in an assignment: the label of the chosen option, or the number."""

# Digits that a drawn number keeps: a logarithm's last ones differ between machines.
_DIGITS = 9
# A key is a parameter's name in the tracker, which takes these and the "/" that joins them.
_STEP = re.compile(r"[A-Za-z0-9_-]+")
_LABEL = re.compile(r"[A-Za-z0-9_. :-]+")
_LONGEST_LABEL = 40


@dataclass(frozen=True)
class Choice:
    """One of several options, by their labels in the order of the file.

    Attributes:
        labels: what an assignment says.
        numbers: whether all options are numbers, so that one lies next to another.
    """

    name: ClassVar[str] = "choice"
    labels: tuple[str, ...]
    numbers: bool = False

    def at(self, u: float) -> str:
        """The option that the share `u` in (0, 1) of them falls on: all are equally likely."""
        return self.labels[int(u * len(self.labels))]

    def values(self) -> tuple[str, ...]:
        """All of them."""
        return self.labels

    def refusal(self, value: object) -> str | None:
        """Why it is no value of this dimension; None if it is one."""
        if isinstance(value, str) and value in self.labels:
            return None
        return f"{value!r} is not an option; options: {', '.join(self.labels)}"


@dataclass(frozen=True)
class _Range:
    """Numbers between two bounds, both included."""

    name: ClassVar[str]
    low: float
    high: float

    def values(self) -> None:
        """Too many to list."""
        return None

    def refusal(self, value: object) -> str | None:
        """Why it is no value of this dimension; None if it is one."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            if self.low <= value <= self.high:
                return None
        return f"must be a number in [{self.low:g}, {self.high:g}], got {value!r}"

    def _rounded(self, value: float) -> float:
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Uniform(_Range):
    """A number of [low, high], each as likely as another."""

    name: ClassVar[str] = "uniform"

    def at(self, u: float) -> float:
        """The number below which the share `u` of them lies."""
        return self._rounded(self.low + u * (self.high - self.low))


@dataclass(frozen=True)
class LogUniform(_Range):
    """A number of [low, high] whose logarithm is uniform; 0 < low."""

    name: ClassVar[str] = "log_uniform"

    def at(self, u: float) -> float:
        """The number below which the share `u` of them lies."""
        low, high = math.log(self.low), math.log(self.high)
        return self._rounded(math.exp(low + u * (high - low)))


@dataclass(frozen=True)
class Integers:
    """A whole number of low ... high, both included."""

    name: ClassVar[str] = "integers"
    low: int
    high: int

    def at(self, u: float) -> int:
        """The number that the share `u` in (0, 1) of them falls on: all are equally likely."""
        return self.low + int(u * (self.high - self.low + 1))

    def values(self) -> range:
        """All of them."""
        return range(self.low, self.high + 1)

    def refusal(self, value: object) -> str | None:
        """Why it is no value of this dimension; None if it is one."""
        if isinstance(value, int) and not isinstance(value, bool):
            if self.low <= value <= self.high:
                return None
        return f"must be a whole number in [{self.low}, {self.high}], got {value!r}"


Kind: TypeAlias = Choice | Uniform | LogUniform | Integers
KINDS: Final = tuple(kind.name for kind in (Choice, Uniform, LogUniform, Integers))
"""A mapping with exactly one of these keys is a dimension; no section has a field of that name."""


@dataclass(frozen=True)
class Dimension:
    """One value that a search leaves open.

    Attributes:
        key: path of the setting, "training.optimizer.lr"; below an option "path/label/subpath",
            "strategies/fdm/0.multiplier". Unique, and a name that the tracker takes.
        kind: which values it has.
        when: the (key, label) of the options that it lives under, outermost first; it exists only
            while all of them are chosen.
    """

    key: str
    kind: Kind
    when: tuple[tuple[str, str], ...] = ()

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Every option of a choice, both ends of a range."""
        kind = self.kind
        return kind.labels if isinstance(kind, Choice) else (kind.low, kind.high)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: bounds of a range, labels of a choice."""
        return {
            "key": self.key,
            "kind": self.kind.name,
            "low": None if isinstance(self.kind, Choice) else self.kind.low,
            "high": None if isinstance(self.kind, Choice) else self.kind.high,
            "labels": list(self.kind.labels) if isinstance(self.kind, Choice) else None,
            "when": [list(option) for option in self.when],
        }


@dataclass(frozen=True)
class Open:
    """A dimension where it stands in a tree.

    Attributes:
        dimension: what it is.
        options: of a choice, what each label stands for, which may hold further ones.
    """

    dimension: Dimension
    options: Mapping[str, Any] = field(default_factory=dict)


def opened(tree: Any, problems: list[str]) -> Any:
    """The tree with `Open` in place of each mapping that is a dimension; what is wrong with one is
    added to `problems`, each with its path, "space.training.optimizer.lr: ...".
    """
    return _Reader(problems).read(tree, "", ())


def open_in(tree: Any) -> Iterator[Open]:
    """Dimensions of an opened tree in the order of the file, without those under options."""
    if isinstance(tree, Open):
        yield tree
    elif isinstance(tree, dict):
        for child in tree.values():
            yield from open_in(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from open_in(child)


class _Mistake(Exception):
    """Why a mapping that should be a dimension is none."""


class _Reader:
    """Reads a tree; what cannot be read is a problem, and is left out."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def read(self, tree: Any, key: str, when: tuple[tuple[str, str], ...]) -> Any:
        """The tree at `key`, opened."""
        if isinstance(tree, list):
            return [self.read(child, _below(key, i), when) for i, child in enumerate(tree)]
        if not isinstance(tree, Mapping):
            return tree
        try:
            if any(kind in tree for kind in KINDS):
                return self._dimension(tree, key.removesuffix("/"), when)
            _check_names(tree)
        except _Mistake as mistake:
            path = key.removesuffix("/")
            self._problems.append(f"space.{path}: {mistake}" if path else f"space: {mistake}")
            return None
        return {name: self.read(child, _below(key, name), when) for name, child in tree.items()}

    def _dimension(
        self, tree: Mapping[str, Any], key: str, when: tuple[tuple[str, str], ...]
    ) -> Open:
        if len(tree) > 1:
            raise _Mistake(
                f"a dimension is one of {', '.join(KINDS)} and nothing beside it, got "
                f"{', '.join(map(str, tree))}"
            )
        if not key:
            raise _Mistake("holds the sections whose values are open, and is no dimension itself")
        ((kind, value),) = tree.items()
        if kind != Choice.name:
            return Open(Dimension(key, _range(kind, value), when))
        labels, values = _options(value)
        read = {
            label: self.read(option, f"{key}/{label}/", (*when, (key, label)))
            for label, option in zip(labels, values, strict=True)
        }
        numbers = all(_number(option) is not None for option in values)
        return Open(Dimension(key, Choice(tuple(labels), numbers), when), read)


def _check_names(tree: Mapping[Any, Any]) -> None:
    for name in tree:
        if not isinstance(name, str) or not _STEP.fullmatch(name):
            raise _Mistake(
                f"{name!r} is no name of a field; sections are written one within the other, "
                "lists as a whole"
            )


def _range(kind: str, bounds: object) -> Kind:
    numbers = [_number(value) for value in bounds] if isinstance(bounds, list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise _Mistake(f"{kind} takes two numbers, [low, high], got {bounds!r}")
    low, high = numbers[0], numbers[1]
    if not low < high:
        raise _Mistake(f"{kind}: low must lie below high, got [{low:g}, {high:g}]")
    if kind == Integers.name:
        if low != int(low) or high != int(high):
            raise _Mistake(f"integers takes whole numbers, got [{low:g}, {high:g}]; use uniform")
        return Integers(int(low), int(high))
    if kind == Uniform.name:
        return Uniform(float(low), float(high))
    if low <= 0:
        raise _Mistake(f"log_uniform: low must be positive, got {low:g}")
    return LogUniform(float(low), float(high))


def _options(written: object) -> tuple[list[str], list[Any]]:
    """Labels of a choice, and what they stand for."""
    if isinstance(written, Mapping):
        labels, values = [_label(label) for label in written], list(written.values())
    elif isinstance(written, list):
        labels, values = _generated(written), written
    else:
        raise _Mistake(f"choice takes a list, or a mapping of labels to values, got {written!r}")
    if not labels:
        raise _Mistake("choice takes at least one option")
    for label, times in Counter(labels).items():
        if times > 1:
            raise _Mistake(f"choice: {label} is listed twice")
    return labels, values


def _label(label: object) -> str:
    if isinstance(label, bool):
        raise _Mistake(f"choice: YAML reads a label as {label}; put it in quotes, or name it anew")
    if not _LABEL.fullmatch(str(label)):
        raise _Mistake(
            f"choice: the label {label!r} may hold letters, digits, spaces and _ - . : only"
        )
    return str(label)


def _below(key: str, step: object) -> str:
    """The key of a child; that of an option ends in "/"."""
    return f"{key}{step}" if not key or key.endswith("/") else f"{key}.{step}"


def _number(value: object) -> float | int | None:
    """A finite number, or one that YAML takes for text ("1e-4"); None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _generated(options: Sequence[Any]) -> list[str]:
    """Labels of a list's options: a scalar's own text, what a section or list is short for."""
    labels = []
    for place, option in enumerate(options):
        label = _short(option) or f"option {place + 1}"
        scalar = not isinstance(option, Mapping | list)
        labels.append(label if scalar or label not in labels else f"{label}-{place + 1}")
    return labels


def _short(option: Any) -> str | None:
    """What stands for an option in tables; None if nothing short does."""
    if isinstance(option, Mapping):
        kind = option.get("kind")
        label = kind if isinstance(kind, str) else None
    elif isinstance(option, list):
        parts = [_short(part) for part in option]
        label = "-".join(str(part) for part in parts) if None not in parts else None
        label = label if option else "none"
    else:
        return _scalar(option)
    return label if label and len(label) <= _LONGEST_LABEL and _LABEL.fullmatch(label) else None


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
