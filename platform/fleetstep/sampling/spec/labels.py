"""How a solver or a schedule is written in records, tables and messages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fleetstep.spec import Spec


def label_of(spec: Spec, shown: Collection[str], hidden: Collection[str] = ()) -> str:
    """Kind and settings: those of `shown`, and any that differs from its default; a kind's own
    stand before those that all kinds have.

    A default is part of a kind's meaning and does not change between versions (a test pins them),
    so a setting left out cannot mislead.
    """
    settings = {
        name: value
        for name, value in spec.model_dump().items()
        if name != "kind"
        and name not in hidden
        and (name in shown or value != _default(type(spec), name))
    }
    kind = spec.model_dump()["kind"]
    names = sorted(settings, key=lambda name: name not in type(spec).__annotations__)
    inside = ", ".join(f"{name}={_written(settings[name])}" for name in names)
    return f"{kind}({inside})" if inside else str(kind)


def _default(spec: type[Spec], name: str) -> Any:
    return spec.model_fields[name].get_default(call_default_factory=True)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_written(item)}" for key, item in value.items()) + "}"
    return str(value)
