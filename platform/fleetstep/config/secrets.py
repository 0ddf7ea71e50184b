"""`${env:NAME}`: secrets are named in a configuration, and resolved where they are used."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from fleetstep.errors import ConfigError

SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
# The only fields that may hold a secret; anywhere else `${env:...}` would end up in logs and
# fingerprints.
SECRET_FIELDS = frozenset({"tracking.uri"})


def resolve_secrets(text: str) -> str:
    """Replace `${env:NAME}` by the variable's value. Call at the moment of use; never store or
    print the result.

    Raises:
        ConfigError: if a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if (found := os.environ.get(match[1])) is None:
            raise ConfigError(
                [f"the environment variable {match[1]} is not set, but the configuration names it"]
            )
        return found

    return SECRET.sub(value, text)


def misplaced_secrets(tree: Any, path: str = "") -> list[str]:
    """A problem for each secret outside the fields that may hold one."""
    if isinstance(tree, Mapping):
        return [
            line
            for key, child in tree.items()
            for line in misplaced_secrets(child, f"{path}.{key}".lstrip("."))
        ]
    if isinstance(tree, list):
        return [
            line
            for i, child in enumerate(tree)
            for line in misplaced_secrets(child, f"{path}.{i}")
        ]
    if isinstance(tree, str) and SECRET.search(tree) and path not in SECRET_FIELDS:
        allowed = ", ".join(sorted(SECRET_FIELDS))
        return [
            f"{path}: ${{env:NAME}} is for secrets and is only read in {allowed}; write the "
            f"value here"
        ]
    return []
