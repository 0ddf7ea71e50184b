"""Cross-checks: plain functions over the valid parts of a tree, each returning problems.

One broken section does not hide the problems of another: a check runs on whatever parts it needs
are valid.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fleetstep.addresses import ADVICE, SCHEMES, is_tracker, redacted
from fleetstep.config import (
    amed,
    diffusers_checks,
    search_checks,
    search_probes,
    sweep_checks,
)
from fleetstep.config.problems import Check, Parts
from fleetstep.config.search import SearchSpec
from fleetstep.config.secrets import SECRET, resolve_secrets
from fleetstep.config.specs import Experiment, GridSpec
from fleetstep.config.sweep import SweepSpec
from fleetstep.data.manifest import Manifest, load_manifest
from fleetstep.data.spec import DataSpec, ExpectsSpec
from fleetstep.diffusion.spec import check_range, check_strategies
from fleetstep.errors import ConfigError, DataError
from fleetstep.evaluation.spec import IMAGE_CHANNELS
from fleetstep.networks.spec import DiffusersUnetSpec, check_network, takes_augmentation
from fleetstep.sampling.spec import SIGMA_MAX, SIGMA_MIN, SolverSpec
from fleetstep.spec import Spec
from fleetstep.training.spec import check_training


def cross_checks(model: type[Spec], data_required: bool) -> tuple[Check, ...]:
    """The checks of a tree; `data_required`: a missing dataset, or the missing run of a network
    to train a predictor for, is a problem in any case.
    """

    def checks_of_trials(kind: type[Spec]) -> tuple[Check, ...]:
        return cross_checks(kind, data_required)

    if model is Experiment:
        return (*_EXPERIMENT, _check_presence) if data_required else _EXPERIMENT
    if model is amed.AmedExperiment:
        return (*_AMED, amed.check_presence) if data_required else _AMED
    if model is SearchSpec:
        return (*_SEARCH, partial(search_probes.check_trials, checks_of=checks_of_trials))
    return _SWEEP if model is SweepSpec else ()


def how_to_pack(data: DataSpec) -> str:
    """What to do about a dataset that is not there, from what the preset expects."""
    expects = data.expects
    if expects is None:
        return (
            "make one, e.g. `fleetstep data pack digits --out data/digits`, or correct data.path"
        )
    if expects.latents:
        return (
            f"it is to hold {_described(expects)}: latents of a VAE, which this version cannot "
            "pack yet"
        )
    labels = ", one sub-folder a class," if expects.classes else ""
    return (
        f"pack {_described(expects)} with `fleetstep data pack images FOLDER --size "
        f"{expects.resolution} --channels {expects.channels} --out {data.path}`{labels} or "
        "correct data.path"
    )


def _described(facts: Manifest | ExpectsSpec) -> str:
    classes = f"in {facts.classes} classes" if facts.classes else "without classes"
    return f"images of {facts.channels} x {facts.resolution} x {facts.resolution} {classes}"


def _check_training(parts: Parts) -> list[str]:
    if not {"training", "cluster"} <= parts.keys():
        return []
    return check_training(parts["training"], parts["cluster"].workers)


def _check_process(parts: Parts) -> list[str]:
    if not {"process", "strategies"} <= parts.keys():
        return []
    global_batch = parts["training"].global_batch if "training" in parts else None
    return [
        f"strategies: {line}"
        for line in check_strategies(parts["process"], parts["strategies"], global_batch)
    ]


def _check_grid(parts: Parts) -> list[str]:
    if "grid" not in parts or parts["grid"].samples == 0:
        return []
    grid = parts["grid"]
    problems = _check_grid_solver(grid)
    if "process" in parts:
        problems += [
            f"process: {line}, or set grid.samples to 0"
            for line in check_range(parts["process"], SIGMA_MIN, SIGMA_MAX)
        ]
    return problems


def _check_grid_solver(grid: GridSpec) -> list[str]:
    if grid.solver.learned:
        return [
            f"grid.solver: a predictor serves the snapshot it was trained for, and kind "
            f"{grid.solver.kind} cannot draw a network in training; use another kind"
        ]
    if grid.solver.adaptive:
        return [
            f"grid.solver: kind {grid.solver.kind} chooses its own number of network calls, so "
            "grids would cost what nobody can plan; use another kind"
        ]
    return [
        f"grid.nfe: {line}"
        for line in sweep_checks.unreachable(grid.solver, grid.nfe, grid.guidance)
    ]


def _check_augmentation(parts: Parts) -> list[str]:
    if "data" not in parts or parts["data"].augment == 0:
        return []
    data: DataSpec = parts["data"]
    problems = []
    if data.flip:
        problems.append(
            f"data.flip: true together with data.augment: {data.augment:g}, which mirrors half of "
            "the images itself and tells the network so; of those that flip mirrors it would be "
            "told nothing: use flip: null"
        )
    if "network" in parts and not takes_augmentation(parts["network"]):
        problems.append(
            f"data.augment: {data.augment:g}, but network kind {parts['network'].kind} cannot be "
            "told how images were augmented, and would learn the augmented images as data; "
            "use augment: 0, or network kind ddpmpp or ncsnpp"
        )
    return problems


def _check_diffusers(parts: Parts) -> list[str]:
    """A diffusers network against everything but the data."""
    network = parts.get("network")
    if not isinstance(network, DiffusersUnetSpec):
        return []
    problems: list[str] = []
    if "training" in parts:
        problems += diffusers_checks.check_training(network, parts["training"])
    if "grid" in parts:
        problems += diffusers_checks.check_guidance(network, parts["grid"].guidance)
    return problems


def _check_presence(parts: Parts) -> list[str]:
    """Without expectations, `_check_data` has said it."""
    if "data" not in parts or parts["data"].expects is None:
        return []
    data: DataSpec = parts["data"]
    if Path(data.path).exists():
        return []
    return [f"data.path: {data.path} does not exist; {how_to_pack(data)}"]


def _check_data(parts: Parts) -> list[str]:
    """The dataset against the rest; if it is not there, what the preset expects of it."""
    if "data" not in parts:
        return []
    data: DataSpec = parts["data"]
    if data.expects is not None and not Path(data.path).exists():
        return [*_check_splits(data), *_check_images(parts, data.expects)]
    try:
        manifest = load_manifest(Path(data.path))
    except DataError as error:
        return [f"data.path: {error.message}; {error.remedy}"]
    return [
        *_check_expected(data, manifest),
        *(
            f"data.{field}: {split!r} is not a split of {data.path}; it has "
            f"{', '.join(manifest.splits)}"
            for field, split in (("split", data.split), ("heldout", data.heldout))
            if split not in manifest.splits
        ),
        *_check_splits(data),
        *_check_flip(data, manifest),
        *_check_images(parts, manifest),
    ]


def _check_expected(data: DataSpec, manifest: Manifest) -> list[str]:
    expects = data.expects
    if expects is None:
        return []
    found = (manifest.resolution, manifest.channels, manifest.classes)
    if found == (expects.resolution, expects.channels, expects.classes):
        return []
    return [
        f"data.expects: the rest of the configuration was written for {_described(expects)}, and "
        f"{data.path} holds {_described(manifest)}; name another dataset, or set "
        "data.expects=null and fit network and training to this one"
    ]


def _check_splits(data: DataSpec) -> list[str]:
    if data.heldout != data.split:
        return []
    return [
        f"data.heldout: {data.heldout!r} is the split that is trained on; the held-out error "
        "would be measured on training images: name another split"
    ]


def _check_flip(data: DataSpec, manifest: Manifest) -> list[str]:
    if not data.flip or manifest.flip_allowed:
        return []
    return [
        f"data.flip: true, but the manifest of {manifest.name} says mirrored images are not valid "
        "samples; use flip: null to follow the manifest"
    ]


def _check_images(parts: Parts, facts: Manifest | ExpectsSpec) -> list[str]:
    """Network, label drop-out and guidance against the images they are for."""
    problems = []
    network = parts.get("network")
    if network is not None:
        problems += [f"network: {line}" for line in check_network(network, facts.resolution)]
    if isinstance(network, DiffusersUnetSpec):
        problems += diffusers_checks.check_shape(network, parts.get("process"), facts)
    if "training" in parts and parts["training"].label_dropout > 0 and facts.classes == 0:
        problems.append(
            f"training.label_dropout: {parts['training'].label_dropout:g} drops class labels, and "
            "the dataset has no classes; use label_dropout: 0"
        )
    if "grid" in parts and facts.channels not in IMAGE_CHANNELS:
        problems += _check_thresholding(parts["grid"].solver, facts)
    if parts.get("evaluate") is not None:
        problems += sweep_checks.check_evaluated_images(
            parts["evaluate"],
            parts["data"],
            facts.classes,
            facts.channels,
            facts.resolution,
            facts.splits if isinstance(facts, Manifest) else (),
        )
    if "grid" in parts and parts["grid"].guidance is not None and facts.classes == 0:
        problems.append(
            f"grid.guidance: scale {parts['grid'].guidance.scale:g} needs class labels, and the "
            "dataset has no classes; use guidance: null"
        )
    return problems


def _check_thresholding(solver: SolverSpec, facts: Manifest | ExpectsSpec) -> list[str]:
    if solver.thresholding is None:
        return []
    return [
        f"grid.solver.thresholding: cuts pixels to their range, and the {facts.channels} channels "
        "of the data are latents, which have none; use thresholding: null"
    ]


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


_EXPERIMENT: tuple[Check, ...] = (
    _check_training,
    _check_process,
    _check_grid,
    sweep_checks.check_evaluation,
    _check_augmentation,
    _check_diffusers,
    _check_data,
    _check_tracking,
    _check_storage,
)
_SEARCH: tuple[Check, ...] = (*search_checks.SEARCH, _check_tracking, _check_storage)
_SWEEP: tuple[Check, ...] = (sweep_checks.check_sweep, _check_tracking, _check_storage)
_AMED: tuple[Check, ...] = (
    amed.check_batch,
    amed.check_teacher,
    amed.check_network,
    _check_tracking,
    _check_storage,
)
