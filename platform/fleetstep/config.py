"""One closed, frozen tree for a run, one for a sweep; everything wrong with a file is reported at
once.

A configuration is a YAML file plus `key.sub=value` overrides. `load` reads it, `check` names every
problem it can see
without importing torch: unknown keys with a suggestion, wrong kinds with the valid ones,
impossible combinations with the numbers and the nearest that works. Cross-checks are plain
functions over the parts that are valid, so one broken section does not hide the problems of
another.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from fleetstep.addresses import ADVICE, SCHEMES, is_tracker, redacted
from fleetstep.data.manifest import Manifest, load_manifest
from fleetstep.data.spec import DataSpec
from fleetstep.diffusion.spec import EdmSpec, ProcessSpec, StrategySpec, check_strategies
from fleetstep.errors import ConfigError, DataError, SamplingError
from fleetstep.evaluation.spec import ExtractorSpec, Rn20Spec
from fleetstep.networks.spec import DdpmppSpec, NetworkSpec, check_network
from fleetstep.sampling.spec import Dpmpp2mSpec, EulerSpec, HeunSpec, IpndmSpec, SolverSpec
from fleetstep.spec import Spec, span_images
from fleetstep.training.spec import TrainingSpec, check_training

SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
# The only fields that may hold a secret; anywhere else `${env:...}` would end up in logs and
# fingerprints.
SECRET_FIELDS = frozenset({"tracking.uri"})


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _data_expanded(data: DataSpec) -> DataSpec:
    return data.model_copy(update={"path": _expanded(data.path)})


# Programs other than a shell do not know "~", and each worker would have a home of its own.
PathText = Annotated[str, AfterValidator(_expanded)]


class ClusterSpec(Spec):
    """Where a job runs and what each of its workers gets.

    Attributes:
        address: Ray address of a running cluster; None starts a local one.
        workers: data-parallel training workers.
        cpus_per_worker: CPUs, and compute threads, of each worker.
        gpus_per_worker: GPUs of each worker; 0 trains on the CPU with gloo.
        max_restarts: how often a job goes on from its last checkpoint after a worker or node was
            lost.
    """

    address: str | None = None
    workers: PositiveInt = 1
    cpus_per_worker: PositiveFloat = 1.0
    gpus_per_worker: NonNegativeFloat = 0.0
    max_restarts: int = Field(3, ge=0)


class TrackingSpec(Spec):
    """The experiment tracker.

    Attributes:
        uri: MLflow tracking URI; None is an SQLite file beside the runs. May hold `${env:NAME}`,
            resolved when used.
        experiment: the MLflow experiment that holds the runs.
    """

    uri: str | None = None
    experiment: str = Field("fleetstep", min_length=1)


class GridSpec(Spec):
    """The sample grid drawn at every snapshot, at seeds 0, 1, 2, ...

    Attributes:
        samples: number of images; 0 draws none.
        solver, nfe: how they are drawn.
    """

    samples: int = Field(64, ge=0)
    solver: SolverSpec = Dpmpp2mSpec()
    nfe: PositiveInt = 16


class Experiment(Spec):
    """One training job: shards, process, strategies, network, engine, and where it all goes.

    Attributes:
        name: the run's name: its folder under `storage` and its name in the tracker.
        storage: folder of all runs; every worker must reach it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: PathText = "runs"
    data: Annotated[DataSpec, AfterValidator(_data_expanded)]
    process: ProcessSpec = EdmSpec()
    strategies: tuple[StrategySpec, ...] = ()
    network: NetworkSpec = DdpmppSpec()
    training: TrainingSpec
    grid: GridSpec = GridSpec()
    cluster: ClusterSpec = ClusterSpec()
    tracking: TrackingSpec = TrackingSpec()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.storage) / self.name

    def identity(self, dataset_fingerprint: str) -> str:
        """Digest of what a resumed run must share with its checkpoint: a difference means another
        experiment.

        Spans given as shares of the budget count as the images they stand for, so extending such a
        run is refused rather than silently given another schedule.
        """
        budget = self.training.images
        tree = self.model_dump(mode="json", include={"process", "strategies", "network"})
        tree["data"] = {
            "fingerprint": dataset_fingerprint,
            **self.data.model_dump(mode="json", include={"split", "window", "flip"}),
        }
        tree["training"] = self.training.model_dump(
            mode="json",
            include={"seed", "global_batch", "optimizer", "lr_ramp", "ema", "precision"},
        )
        return _digest(_spans_resolved(tree, budget))

    def execution(self) -> str:
        """Digest of the whole configuration, including what may change at a resume (workers,
        paths, budget).
        """
        return _digest(self.model_dump(mode="json"))


class SweepSpec(Spec):
    """A grid of snapshots x solvers x NFE, scored by a pool of actors.

    Attributes:
        name: the sweep's name.
        runs: run folders (their last snapshot is taken) or snapshot folders.
        snapshots: which snapshots of a run folder: the last one, or all.
        storage: folder for results, shared by all actors.
        solvers, nfe: the grid; a pair that cannot be reached is skipped with its reason.
        ema: the EMA track that is sampled.
        samples: images per cell, a multiple of 1,000.
        namespace: seeds are (namespace, 0 ... samples-1).
        labels: how class labels follow from the seed.
        reference_split: split of the runs' dataset whose statistics are the reference.
        extractor: the features in which distance is measured.
        actors, cpus_per_actor, gpus_per_actor: the pool.
        batch: fixed batch size inside a unit of 100 images.
        address: Ray address of a running cluster; None starts a local one.
    """

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs: tuple[PathText, ...] = Field(min_length=1)
    snapshots: Literal["last", "all"] = "last"
    storage: PathText = "runs"
    solvers: tuple[SolverSpec, ...] = Field(
        (EulerSpec(), HeunSpec(), IpndmSpec(), Dpmpp2mSpec()), min_length=1
    )
    nfe: tuple[PositiveInt, ...] = Field((5, 9, 17, 35), min_length=1)
    ema: str = "ema"
    samples: PositiveInt = Field(1000, multiple_of=1000)
    namespace: int = Field(0, ge=0)
    labels: Literal["random", "balanced"] = "random"
    reference_split: str = "train"
    extractor: ExtractorSpec = Rn20Spec()
    actors: PositiveInt = 2
    cpus_per_actor: PositiveFloat = 0.5
    gpus_per_actor: NonNegativeFloat = 0.0
    batch: int = Field(100, ge=2)
    address: str | None = None
    tracking: TrackingSpec = TrackingSpec()


S = TypeVar("S", bound=Spec)


def load(model: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read `path`, apply `key.sub=value` overrides, and validate.

    Values of overrides are YAML: `cluster.workers=2`, `strategies=[{kind: fdm}]`,
    `strategies.0.multiplier=2`.

    Raises:
        ConfigError: with every problem found; nothing has been started or written.
    """
    tree = _read(path) if path is not None else {}
    problems = [
        problem for override in overrides if (problem := _apply(tree, override)) is not None
    ]
    problems += _misplaced_secrets(tree)
    try:
        spec = model.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(model, tree, item) for item in error.errors(include_url=False)]
        parts = _valid_parts(model, tree)
    else:
        parts = {name: getattr(spec, name) for name in model.model_fields}
    for cross_check in CROSS_CHECKS.get(model, ()):
        problems += cross_check(parts)
    if problems:
        raise ConfigError(problems)
    return spec


def dump(spec: Spec) -> str:
    """YAML of the resolved configuration; `load` reads it back to an equal one."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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


def flatten(spec: Spec) -> dict[str, str]:
    """Flat parameters for the tracker: `strategies.0.kind` -> "fdm"."""
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

    walk(spec.model_dump(mode="json"), "")
    return flat


# --- cross-checks: each takes the valid parts and returns problems -------------------------------

Parts = Mapping[str, Any]


def _check_training(parts: Parts) -> list[str]:
    if not {"training", "cluster"} <= parts.keys():
        return []
    return check_training(parts["training"], parts["cluster"].workers)


def _check_process(parts: Parts) -> list[str]:
    if not {"process", "strategies"} <= parts.keys():
        return []
    return [
        f"strategies: {line}" for line in check_strategies(parts["process"], parts["strategies"])
    ]


def _check_grid(parts: Parts) -> list[str]:
    if "grid" not in parts or parts["grid"].samples == 0:
        return []
    return [f"grid.nfe: {line}" for line in _unreachable(parts["grid"].solver, parts["grid"].nfe)]


def _check_data(parts: Parts) -> list[str]:
    if "data" not in parts:
        return []
    data: DataSpec = parts["data"]
    try:
        manifest = load_manifest(Path(data.path))
    except DataError as error:
        return [f"data.path: {error.message}; {error.remedy}"]
    problems = [
        f"data.{field}: {split!r} is not a split of {data.path}; it has "
        f"{', '.join(manifest.splits)}"
        for field, split in (("split", data.split), ("heldout", data.heldout))
        if split not in manifest.splits
    ]
    if data.heldout == data.split:
        problems.append(
            f"data.heldout: {data.heldout!r} is the split that is trained on; the held-out error "
            "would be measured on training images: name another split"
        )
    if data.flip and not manifest.flip_allowed:
        problems.append(
            f"data.flip: true, but the manifest of {manifest.name} says mirrored images are "
            f"not valid samples; "
            "use flip: null to follow the manifest"
        )
    if "network" in parts:
        problems += [
            f"network: {line}" for line in check_network(parts["network"], manifest.resolution)
        ]
    return problems


def _unreachable(solver: SolverSpec, nfe: int) -> list[str]:
    try:
        solver.points_for(nfe)
    except SamplingError as error:
        return [f"{error.message}; {error.remedy}"]
    return []


def _check_sweep(parts: Parts) -> list[str]:
    problems: list[str] = []
    if {"solvers", "nfe"} <= parts.keys():
        solvers, nfes = parts["solvers"], parts["nfe"]
        if all(_unreachable(solver, nfe) for solver in solvers for nfe in nfes):
            problems.append(
                f"nfe: no solver reaches any of {list(nfes)}; "
                f"{_unreachable(solvers[0], nfes[0])[0]}"
            )
        names = [json.dumps(solver.model_dump(mode="json")) for solver in solvers]
        problems += [
            f"solvers: {name} is listed twice"
            for name in sorted(set(names))
            if names.count(name) > 1
        ]
    return problems


def _check_tracking(parts: Parts) -> list[str]:
    if "tracking" not in parts or parts["tracking"].uri is None:
        return []
    uri: str = parts["tracking"].uri
    try:
        address = resolve_secrets(uri)
    except ConfigError as error:
        return [f"tracking.uri: {problem}" for problem in error.problems]
    written = SECRET.sub("", uri)
    if redacted(written) != written:
        return [
            f"tracking.uri: {redacted(uri)!r} holds a secret in plain text, which the resolved "
            "configuration and the tracker would keep; write it as ${env:NAME}"
        ]
    if is_tracker(address):
        return []
    # As configured: the resolved one may be a secret as a whole.
    return [
        f"tracking.uri: must begin with one of {', '.join(SCHEMES)}, got {redacted(uri)!r}; "
        f"{ADVICE}"
    ]


def _check_storage(parts: Parts) -> list[str]:
    if "storage" not in parts or "://" not in parts["storage"]:
        return []
    return [
        f"storage: must be a local or mounted path, got {parts['storage']!r}; mount the bucket "
        "or share on every machine and name the mount point"
    ]


CROSS_CHECKS: dict[type[Spec], tuple[Callable[[Parts], list[str]], ...]] = {
    Experiment: (
        _check_training,
        _check_process,
        _check_grid,
        _check_data,
        _check_tracking,
        _check_storage,
    ),
    SweepSpec: (_check_sweep, _check_tracking, _check_storage),
}


def manifest_of(experiment: Experiment) -> Manifest:
    """The manifest of the experiment's dataset."""
    return load_manifest(Path(experiment.data.path))


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """The same experiment wherever it is read: workers and later sweeps run in other folders."""
    data = experiment.data.model_copy(update={"path": _absolute(experiment.data.path)})
    return experiment.model_copy(update={"data": data, "storage": _absolute(experiment.storage)})


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


# --- reading -------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist; presets are in pipelines/presets"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} is not YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{path} must hold a mapping of sections, got {type(tree).__name__}"])
    return tree


def _apply(tree: dict[str, Any], override: str) -> str | None:
    """Set one override in place; returns a problem instead of raising, so that all are
    reported.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        return f"override {override!r} is not of the form key.sub=value"
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
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


def _misplaced_secrets(tree: Any, path: str = "") -> list[str]:
    if isinstance(tree, Mapping):
        return [
            line
            for key, child in tree.items()
            for line in _misplaced_secrets(child, f"{path}.{key}".lstrip("."))
        ]
    if isinstance(tree, list):
        return [
            line
            for i, child in enumerate(tree)
            for line in _misplaced_secrets(child, f"{path}.{i}")
        ]
    if isinstance(tree, str) and SECRET.search(tree) and path not in SECRET_FIELDS:
        allowed = ", ".join(sorted(SECRET_FIELDS))
        return [
            f"{path}: ${{env:NAME}} is for secrets and is only read in {allowed}; write the "
            f"value here"
        ]
    return []


def _valid_parts(model: type[Spec], tree: Mapping[str, Any]) -> dict[str, Any]:
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
        *path, last = _path(item["loc"], section) or (None,)
        node = pruned
        for step in path:
            node = _inside(node, step)
        if isinstance(node, dict):
            node.pop(last, None)
    return pruned


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    annotation: Any = field.annotation
    # pydantic splits an Annotated type into annotation and field info (discriminator, bounds):
    # join them again.
    return TypeAdapter(Annotated[annotation, field])


# --- messages ------------------------------------------------------------------------------------


def _explain(model: type[BaseModel], tree: Any, item: Mapping[str, Any]) -> str:
    location = _path(item["loc"], tree)
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
    return f"{path} = {value!r}: {message[0].lower()}{message[1:]}"


def _path(location: Sequence[Any], tree: Any) -> tuple[Any, ...]:
    """The location in the file: pydantic also names the chosen member of a union, which is not a
    key there.
    """
    path: list[Any] = []
    node = tree
    for position, step in enumerate(location):
        inside = _inside(node, step) is not None or (isinstance(node, Mapping) and step in node)
        is_last = position == len(location) - 1
        if not inside and not is_last and isinstance(node, Mapping) and node.get("kind") == step:
            continue
        path.append(step)
        node = _inside(node, step)
    return tuple(path)


def _inside(node: Any, step: Any) -> Any:
    """The child of a section or list; None if there is none."""
    if isinstance(node, Mapping):
        return node.get(step)
    if isinstance(node, list) and isinstance(step, int) and step < len(node):
        return node[step]
    return None


def _known_keys(model: type[BaseModel], tree: Any, location: Sequence[object]) -> set[str]:
    """Field names of the model that the section at `location` is validated with."""
    current: list[type[BaseModel]] = [model]
    node = tree
    for step in location:
        node = _inside(node, step)
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
                and node["kind"] in get_args(part.model_fields["kind"].annotation)
            ]
            current = tagged or current
    return {name for part in current for name in part.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


# --- fingerprints --------------------------------------------------------------------------------


def _spans_resolved(tree: Any, budget: int) -> Any:
    if isinstance(tree, dict):
        return {key: _spans_resolved(child, budget) for key, child in tree.items()}
    if isinstance(tree, list):
        return [_spans_resolved(child, budget) for child in tree]
    if isinstance(tree, str) and tree.strip().endswith("%"):
        return span_images(tree, budget)
    return tree


def _digest(tree: Any) -> str:
    return hashlib.sha256(
        json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
