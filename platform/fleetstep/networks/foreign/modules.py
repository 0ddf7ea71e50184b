"""Modules inside foreign pickles: trees of records, taken apart into tensors and settings."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.foreign.pickles import Global, Record
from fleetstep.networks.foreign.tensors import (
    LOAD_STORAGE,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    Storage,
    StoredTensor,
    stored_tensor,
)

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_DICTS = {"collections.OrderedDict", "dnnlib.util.EasyDict"}
_CONTAINERS = {
    f"torch.nn.modules.container.{kind}" for kind in ("ModuleDict", "ModuleList", "Sequential")
}
_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
_NUMPY_DTYPE = "numpy.dtype"
_NUMBERS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}

ALLOWED = frozenset(
    {PERSISTENT, _NUMPY_DTYPE, REBUILD_PARAMETER, REBUILD_TENSOR, LOAD_STORAGE}
    | _DICTS
    | _CONTAINERS
    | _SCALARS
)
"""All names that a network pickle may refer to: none of them is imported or called."""

# Generous for any network, and a bound for pickles whose parts repeat each other.
_MOST_PARTS, _DEEPEST, _LONGEST_NAME, _MOST_SETTINGS = 100_000, 32, 256, 10_000


@dataclass(frozen=True, eq=False)
class ForeignModule:
    """A torch module as its file describes it.

    Attributes:
        kind: name of its class, such as "SongUNet".
        attributes: its `__dict__`: parameters, buffers and sub-modules under torch's own names,
            and plain settings.
    """

    kind: str
    attributes: Mapping[Any, Any]

    def child(self, name: str) -> ForeignModule:
        """A direct sub-module.

        Raises:
            ForeignWeightsError: there is none of that name.
        """
        found = module_of(mapping(self.attributes.get("_modules"), self.kind).get(name))
        if found is None:
            raise ForeignWeightsError(
                f"{self.kind} has no sub-module {name!r}",
                "use the file that the training program wrote",
            )
        return found

    def setting(self, name: str, default: Any = None) -> Any:
        """A plain attribute: numbers, strings, None, and tuples and dicts of these.

        Raises:
            ForeignWeightsError: it is something else.
        """
        return plain(self.attributes.get(name, default), f"{self.kind}.{name}")

    def tensors(self) -> dict[str, StoredTensor]:
        """Every parameter and buffer, by its name in torch's state dict.

        Raises:
            ForeignWeightsError: one is no tensor, or a sub-module is none, or there are more of
                them than a network has.
        """
        found: dict[str, StoredTensor] = {}
        storages: dict[bytes, Storage] = {}
        parts = 0
        for prefix, module in _walk(self, "", 0):
            groups = [
                mapping(module.attributes.get(group), prefix + group)
                for group in ("_modules", "_parameters", "_buffers")
            ]
            # Before its sub-modules are entered: a module that holds itself often has no end.
            parts += sum(map(len, groups))
            if parts > _MOST_PARTS:
                raise ForeignWeightsError(
                    f"{self.kind} has more than {_MOST_PARTS} modules and tensors",
                    "it is no network",
                )
            for name, value in [item for group in groups[1:] for item in group.items()]:
                if value is not None:
                    full = _full_name(prefix, name)
                    found[full] = _tensor(value, full, storages)
        return found


def _walk(module: ForeignModule, prefix: str, depth: int) -> Iterator[tuple[str, ForeignModule]]:
    if depth > _DEEPEST:
        raise ForeignWeightsError(
            f"modules are nested more than {_DEEPEST} deep at {prefix}", "it is no network"
        )
    yield prefix, module
    for name, value in mapping(module.attributes.get("_modules"), f"{prefix}_modules").items():
        inner = module_of(value)
        if inner is not None:
            yield from _walk(inner, f"{_full_name(prefix, name)}.", depth + 1)
        elif value is not None:
            raise ForeignWeightsError(
                f"{prefix}{name} is no module as training programs pickle one",
                "use the file that the training program wrote",
            )


def _full_name(prefix: str, name: object) -> str:
    full = f"{prefix}{name}"
    if len(full) > _LONGEST_NAME:
        raise ForeignWeightsError(
            f"a module or tensor has a name of {len(full)} characters", "it is no network"
        )
    return full


def _tensor(value: Any, name: str, storages: dict[bytes, Storage]) -> StoredTensor:
    if isinstance(value, Record):
        return stored_tensor(value, name, storages)
    raise ForeignWeightsError(
        f"{name} is not a tensor but of type {type(value).__name__}",
        "use the file that the training program wrote",
    )


def module_of(value: Any) -> ForeignModule | None:
    """The module that a value describes; None if it describes none."""
    match value:
        case Record(name=call, arguments=(meta,)) if call == PERSISTENT:
            facts = mapping(meta, "a persistent object")
            kind, state = facts.get("class_name"), facts.get("state")
            if facts.get("type") == "class" and isinstance(kind, str) and state is not None:
                return ForeignModule(kind, mapping(state, kind))
        case Record(name=name, state=state) if name in _CONTAINERS:
            return ForeignModule(name.rpartition(".")[2], mapping(state, name))
    return None


def mapping(value: Any, name: str) -> Mapping[Any, Any]:
    """The items of a dict of any of the kinds that training programs use; None is empty.

    Raises:
        ForeignWeightsError: it is no dict.
    """
    match value:
        case None:
            return {}
        case dict():
            return value
        case Record(name=call, arguments=()) if call in _DICTS:
            return value.items
    raise ForeignWeightsError(
        f"{name} should be a mapping and is of type {type(value).__name__}",
        "use the file that the training program wrote",
    )


def plain(value: Any, name: str) -> Any:
    """A setting as plain Python: numbers, strings, None, tuples and dicts; nothing of the file's.

    Raises:
        ForeignWeightsError: it holds anything else, or is larger than any network's settings.
    """
    budget = [_MOST_SETTINGS]

    def convert(part: Any, depth: int) -> Any:
        budget[0] -= 1
        if depth > _DEEPEST or budget[0] < 0:
            raise ForeignWeightsError(
                f"{name} is larger than any network's settings", "the file is forged"
            )
        match part:
            case None | bool() | int() | float() | str():
                return part
            case list() | tuple():
                return tuple(convert(inner, depth + 1) for inner in part)
            case Record() if part.name in _SCALARS:
                return _scalar(part, name)
            case dict() | Record() if isinstance(part, dict) or part.name in _DICTS:
                items = mapping(part, name).items()
                return {key: convert(inner, depth + 1) for key, inner in items}
        kind = part.name if isinstance(part, Record | Global) else type(part).__name__
        raise ForeignWeightsError(
            f"{name} holds {kind}, which is no plain setting",
            "use the file that the training program wrote",
        )

    return convert(value, 0)


def _scalar(record: Record, name: str) -> Any:
    match record.arguments:
        case (Record(name=call, arguments=(str() as code, *_)), bytes() as raw):
            layout = _NUMBERS.get(code) if call == _NUMPY_DTYPE else None
            if layout is not None and struct.calcsize(layout) == len(raw):
                return struct.unpack(layout, raw)[0]
    raise ForeignWeightsError(
        f"{name} holds a NumPy scalar of an unknown kind",
        "use the file that the training program wrote",
    )
