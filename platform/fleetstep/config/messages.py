"""What a validation error says about a file: the path there, the value, the rule, the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from fleetstep.sampling.spec import ALIASES


def explain(model: type[BaseModel], tree: Any, item: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors in a tree read from a file."""
    location = path_in(item["loc"], tree)
    path = ".".join(str(step) for step in location)
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = sorted(_known_keys(model, tree, location[:-1]))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if kind == "union_tag_invalid":
        context = item["ctx"]
        tag, expected = (
            str(context["tag"]),
            [name.strip(" '") for name in context["expected_tags"].split(",")],
        )
        close = difflib.get_close_matches(tag, expected, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{path}.kind: {tag!r} is not a kind; valid kinds: {', '.join(expected)}{hint}"
    if kind == "union_tag_not_found":
        return f"{path}: a section with alternatives needs `kind`"
    if kind == "missing":
        return f"{path}: missing; this field is required"
    message = item["msg"].removeprefix("Value error, ")
    if not path or message.startswith((f"{path}.", f"{path}:")):
        return str(message)  # of a whole file or section: it names the fields itself
    return f"{path} = {value!r}: {message[0].lower()}{message[1:]}"


def path_in(location: Sequence[Any], tree: Any) -> tuple[Any, ...]:
    """The location in the file: pydantic also names the chosen member of a union, which is not a
    key there.
    """
    path: list[Any] = []
    node = tree
    for step in location:
        found = inside(node, step) is not None or (isinstance(node, Mapping) and step in node)
        if not found and isinstance(node, Mapping) and _kind(node) == step:
            continue
        path.append(step)
        node = inside(node, step)
    return tuple(path)


def inside(node: Any, step: Any) -> Any:
    """The child of a section or list; None if there is none."""
    if isinstance(node, Mapping):
        return node.get(step)
    if isinstance(node, list) and isinstance(step, int) and step < len(node):
        return node[step]
    return None


def _kind(section: Mapping[str, Any]) -> Any:
    """The kind that a section is validated as: a solver may be named by an alias."""
    kind = section.get("kind")
    return ALIASES[kind]["kind"] if isinstance(kind, str) and kind in ALIASES else kind


def _known_keys(model: type[BaseModel], tree: Any, location: Sequence[object]) -> set[str]:
    """Field names of the model that the section at `location` is validated with."""
    current: list[type[BaseModel]] = [model]
    node = tree
    for step in location:
        node = inside(node, step)
        annotations = (
            [part.model_fields[step].annotation for part in current if step in part.model_fields]
            if isinstance(step, str)
            else list(current)
        )
        current = [found for annotation in annotations for found in _models_in(annotation)]
        if isinstance(node, Mapping) and "kind" in node:
            tagged = [
                part
                for part in current
                if part.model_fields.get("kind")
                and _kind(node) in get_args(part.model_fields["kind"].annotation)
            ]
            current = tagged or current
    return {name for part in current for name in part.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
