"""A run folder with a snapshot, written without training: for tests of what happens after it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from fleetstep.config import Experiment
from fleetstep.data.manifest import load_manifest
from fleetstep.durable import entry_of, write_json
from fleetstep.networks.build import build_network
from fleetstep.networks.spec import DdpmppSpec
from fleetstep.training.snapshot import FACTS, FORMAT, snapshot_path
from fleetstep.training.spec import TrainingSpec


def small_experiment(storage: Path, data: Path, name: str = "small") -> Experiment:
    """An experiment on `data` whose network has a few thousand parameters."""
    return Experiment.model_validate(
        {
            "name": name,
            "storage": str(storage),
            "data": {"path": str(data)},
            "network": DdpmppSpec(
                channels=8, multipliers=(1, 1), blocks=1, attention_resolutions=(), embedding=2
            ).model_dump(),
            "training": TrainingSpec(images=3200, global_batch=32).model_dump(),
        }
    )


def write_small_run(
    storage: Path, data: Path, *, name: str = "small", seed: int = 0, images_seen: int = 3200
) -> Path:
    """The folder of a run whose only snapshot holds the network at its start, shaken by `seed`."""
    experiment = small_experiment(storage, data, name)
    manifest = load_manifest(data)
    network = build_network(
        experiment.network,
        resolution=manifest.resolution,
        channels=manifest.channels,
        classes=manifest.classes,
        seed=seed,
    )
    # A new network's last layer is zero: without a shake its images would not depend on the rest.
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: value + 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in network.state_dict().items()
    }
    path = snapshot_path(experiment.folder / "snapshots", images_seen)
    path.mkdir(parents=True)
    save_file(weights, path / "ema.safetensors")
    write_json(
        path / FACTS,
        {
            "format": FORMAT,
            "step": images_seen // experiment.training.global_batch,
            "images_seen": images_seen,
            "tracks": {"ema": entry_of(path / "ema.safetensors")},
            "identity": experiment.identity(manifest.fingerprint),
            "dataset": manifest.fingerprint,
            "config": experiment.model_dump(mode="json"),
        },
    )
    return experiment.folder
