"""Everything that is wrong with a tree: what its model refuses, and what its parts disagree on."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fleetstep.config.messages import explain, inside, path_in
from fleetstep.spec import Spec

S = TypeVar("S", bound=Spec)

Parts: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[Parts], list[str]]
"""A cross-check: problems of whichever top-level fields are valid."""


def examined(
    model: type[S], tree: Mapping[str, Any], checks: Iterable[Check]
) -> tuple[S | None, list[str]]:
    """The tree as its model, None if it refuses it; and every problem, the checks' included."""
    problems: list[str] = []
    spec: S | None = None
    try:
        spec = model.model_validate(tree)
    except ValidationError as error:
        problems += [explain(model, tree, item) for item in error.errors(include_url=False)]
        parts = valid_parts(model, tree)
    else:
        parts = {name: getattr(spec, name) for name in model.model_fields}
    for check in checks:
        problems += check(parts)
    return spec, problems


def valid_parts(model: type[Spec], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The top-level fields that validate on their own, without their mistaken keys if need be,
    so that cross-checks can still run.
    """
    parts: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in tree:
            if not field.is_required():
                parts[name] = field.get_default(call_default_factory=True)
            continue
        adapter, section = _adapter(field), tree[name]
        try:
            parts[name] = adapter.validate_python(section)
        except ValidationError as error:
            with contextlib.suppress(ValidationError):
                parts[name] = adapter.validate_python(_without_mistakes(section, error))
    return parts


def _without_mistakes(section: Any, error: ValidationError) -> Any:
    """A section without the keys that an error names. List items stay: the others would move up,
    and a list without one of them is another list.
    """
    pruned = copy.deepcopy(section)
    for item in error.errors(include_url=False):
        *path, last = path_in(item["loc"], section) or (None,)
        node = pruned
        for step in path:
            node = inside(node, step)
        if isinstance(node, dict):
            node.pop(last, None)
    return pruned


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    annotation: Any = field.annotation
    # pydantic splits an Annotated type into annotation and field info (discriminator, bounds):
    # join them again.
    return TypeAdapter(Annotated[annotation, field])
