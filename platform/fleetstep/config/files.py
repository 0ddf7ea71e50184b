"""YAML files, the files they are based on, and overrides, merged into one tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fleetstep.errors import ConfigError

BASE = "base"
# A published number stands for exactly the file it is written in.
_NOT_INHERITED = frozenset({"published"})
# Sections that are trees of their own, based on files of their own; what is said beside them, of
# the whole, is not inherited: a trial's name is the search's affair.
_NESTED = frozenset({"trial"})
_OF_THE_WHOLE = _NOT_INHERITED | {"name", "storage", "tracking"}
# Sections whose kinds are settings of one model: another kind keeps the other settings.
_OF_ONE_MODEL = frozenset({"optimizer"})


def read(path: Path) -> dict[str, Any]:
    """The tree of a file laid over those it is based on.

    `base: other.yaml`, relative to the file, names the file beneath. Sections merge key by key; a
    section whose `kind` is another model (process, network, solver, ...) replaces the one beneath,
    as do lists and values. `published` is not inherited. A search's `trial` may have a base of its
    own.

    Raises:
        ConfigError: if a file is missing, is no YAML mapping, or is based on itself; it names the
            files from the first to the one at fault.
    """
    return _read(path, ())


def _read(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    chain = (*readers, path)
    tree = _parsed(path, chain)
    if any(_same(path, reader) for reader in readers):
        raise ConfigError([f"base: {_arrows(chain)} goes round in a circle; remove one base"])
    for name in _NESTED & tree.keys():
        if isinstance(tree[name], dict):
            tree[name] = _on_its_base(tree[name], f"{name}.{BASE}", _OF_THE_WHOLE, chain)
    return _on_its_base(tree, BASE, _NOT_INHERITED, chain)


def _on_its_base(
    tree: dict[str, Any], place: str, left_out: frozenset[str], chain: tuple[Path, ...]
) -> dict[str, Any]:
    """A tree laid over what it is based on, without the keys that are left out there."""
    if BASE not in tree:
        return tree
    base, path = tree.pop(BASE), chain[-1]
    if not isinstance(base, str) or not base:
        raise ConfigError([f"{place}: must be the path of a file, got {base!r} in {path}"])
    beneath = _read(path.parent / base, chain)
    for key in left_out:
        beneath.pop(key, None)
    return merged(beneath, tree)


def merged(beneath: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One tree laid over another; see `read` for the rule."""
    result = dict(beneath)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _go_on(key, old, value):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _go_on(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a section keeps what the one beneath it says."""
    return key in _OF_ONE_MODEL or "kind" not in new or new["kind"] == old.get("kind")


class _Loader(yaml.SafeLoader):
    """YAML without a section that holds itself through an alias: such a tree has no end."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        # Only deep construction notices: the other leaves containers to be filled in later.
        return super().construct_object(node, deep=True)


def _yaml(text: str) -> Any:
    """Raises YAMLError, or ValueError for what only looks like a date."""
    return yaml.load(text, Loader=_Loader)


def _parsed(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    via = f" (base: {_arrows(chain)})" if len(chain) > 1 else ""
    try:
        tree = _yaml(_text(path, via))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"{path} is not YAML{via}: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            [f"{path} must hold a mapping of sections, got {type(tree).__name__}{via}"]
        )
    return tree


def _text(path: Path, via: str) -> str:
    try:
        file = path.read_bytes()
    except FileNotFoundError:
        advice = "correct base" if via else "presets are in pipelines/presets"
        raise ConfigError([f"{path} does not exist{via}; {advice}"]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be read{via}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{str(path)!r} is no path{via}: {error}; correct base"]) from None
    return file.decode()


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _arrows(chain: tuple[Path, ...]) -> str:
    return " -> ".join(map(str, chain))


def apply_override(tree: dict[str, Any], override: str) -> str | None:
    """Set one `key.sub=value` in place; returns a problem instead of raising, so that all are
    reported.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        return f"override {override!r} is not of the form key.sub=value"
    try:
        value = _yaml(text) if text else None
    except (yaml.YAMLError, ValueError):
        return f"override {override!r}: the value is not YAML"
    node: Any = tree
    *path, last = key.split(".")
    for step in path:
        if isinstance(node, list) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, dict):
            if node.get(step) is None:
                node[step] = {}
            node = node[step]
        else:
            return (
                f"override {override!r}: {step!r} is not inside a section or a list of that length"
            )
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        return f"override {override!r}: {last!r} is not inside a section or a list of that length"
    return None
