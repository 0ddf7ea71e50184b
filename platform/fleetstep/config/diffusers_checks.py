"""What a diffusers network asks of a run: its config fixes channels and classes, and it knows no
image of no class.
"""

from __future__ import annotations

from collections.abc import Iterator

from fleetstep.data.manifest import Manifest
from fleetstep.data.spec import ExpectsSpec
from fleetstep.diffusion.spec import ProcessSpec, output_channels
from fleetstep.networks.spec import DiffusersUnetSpec
from fleetstep.sampling.spec import GuidanceSpec
from fleetstep.training.spec import TrainingSpec


def check_shape(
    network: DiffusersUnetSpec, process: ProcessSpec | None, facts: Manifest | ExpectsSpec
) -> Iterator[str]:
    """Why the network is not one for these images; `process` is None where it is not known."""
    needed = [
        ("in_channels", network.channels_in, facts.channels),
        ("num_class_embeds", network.classes, facts.classes),
    ]
    if process is not None:
        out = output_channels(process, facts.channels)
        needed.append(("out_channels", network.channels_out, out))
    for name, has, needs in needed:
        if has != needs:
            yield (
                f"network.config.{name}: the diffusers network has {has}, and the data and the "
                f"process need {needs}; use {name}: {needs or 'null'}"
            )


def check_training(network: DiffusersUnetSpec, training: TrainingSpec) -> Iterator[str]:
    """What of the training section such a network cannot do."""
    if network.classes and training.label_dropout > 0:
        yield (
            f"training.label_dropout: {training.label_dropout:g}, but a diffusers network with "
            "classes has no entry for no class; use label_dropout: 0"
        )
    if training.activation_checkpointing:
        yield (
            "training.activation_checkpointing: true, but a diffusers network has no blocks that "
            "can be computed again; use activation_checkpointing: false"
        )


def check_guidance(network: DiffusersUnetSpec, guidance: GuidanceSpec | None) -> Iterator[str]:
    """Why the network's grids cannot be guided."""
    if network.classes and guidance is not None and guidance.scale != 1:
        yield (
            f"grid.guidance: scale {guidance.scale:g}, but a diffusers network with classes "
            "knows no image of no class to guide away from; use guidance: null"
        )
