"""From files and overrides to a checked spec, and back to text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fleetstep.config.checks import cross_checks
from fleetstep.config.files import apply_override, read
from fleetstep.config.problems import examined
from fleetstep.config.secrets import misplaced_secrets
from fleetstep.config.specs import Experiment
from fleetstep.data.manifest import Manifest, load_manifest
from fleetstep.errors import ConfigError
from fleetstep.spec import Spec

S = TypeVar("S", bound=Spec)


def load(
    model: type[S],
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    data_required: bool = True,
) -> S:
    """Read `path` and what it is based on, apply `key.sub=value` overrides, and validate.

    Values of overrides are YAML: `cluster.workers=2`, `strategies=[{kind: fdm}]`,
    `strategies.0.multiplier=2`.

    Args:
        model: what the file holds.
        path: the file; None starts from nothing.
        overrides: applied last, in order.
        data_required: whether an experiment's dataset must be there; without it the rest is
            checked against `data.expects`, if the file says what it expects. Of a predictor's
            training, whether the run of its network must be there.

    Raises:
        ConfigError: with every problem found; nothing has been started or written.
    """
    tree = read(path) if path is not None else {}
    problems = [problem for override in overrides if (problem := apply_override(tree, override))]
    problems += misplaced_secrets(tree)
    spec, found = examined(model, tree, cross_checks(model, data_required))
    problems += found
    if spec is None or problems:
        raise ConfigError(problems)
    return spec


def dump(spec: Spec) -> str:
    """YAML of the resolved configuration; `load` reads it back to an equal one."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(spec: Spec) -> dict[str, str]:
    """Flat parameters for the tracker: `strategies.0.kind` -> "fdm".

    Published numbers are no parameters and are left out. A strategy that is a reconstruction is
    marked: `strategies.0.reconstruction` -> "true".
    """
    flat: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, child in value.items():
                walk(child, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list) and any(isinstance(child, dict) for child in value):
            for index, child in enumerate(value):
                walk(child, f"{path}.{index}")
        else:
            flat[path] = json.dumps(value) if isinstance(value, list | dict) else str(value)

    walk(spec.model_dump(mode="json", exclude={"published"}), "")
    if isinstance(spec, Experiment):
        for index, strategy in enumerate(spec.strategies):
            if strategy.reconstruction:
                flat[f"strategies.{index}.reconstruction"] = "true"
    return flat


def manifest_of(experiment: Experiment) -> Manifest:
    """The manifest of the experiment's dataset."""
    return load_manifest(Path(experiment.data.path))


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment wherever it is read: workers and later sweeps run in other folders."""
    data = experiment.data.model_copy(update={"path": _absolute(experiment.data.path)})
    return experiment.model_copy(update={"data": data, "storage": _absolute(experiment.storage)})


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
