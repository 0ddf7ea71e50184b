"""The pieces of an experiment that training and sampling must build alike."""

from __future__ import annotations

from torch import nn

from fleetstep.config import Experiment
from fleetstep.data.augmentation import CONDITIONS
from fleetstep.diffusion.objective import Objective, build_objective
from fleetstep.diffusion.spec import output_channels
from fleetstep.networks.build import build_network


def network_of(experiment: Experiment, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network F as it starts, on the CPU.

    Args:
        experiment: its network, process (a learned variance doubles the output) and augmentation
            (which the network is told of).
        shape: (C, H, W) of an image.
        classes: number of classes, 0 for an unconditional network.
    """
    channels, resolution, _ = shape
    return build_network(
        experiment.network,
        resolution=resolution,
        channels=channels,
        classes=classes,
        seed=experiment.training.seed,
        channels_out=output_channels(experiment.process, channels),
        augment_dim=len(CONDITIONS) if experiment.data.augment > 0 else 0,
    )


def objective_of(experiment: Experiment) -> Objective:
    """What the experiment trains."""
    return build_objective(
        experiment.process,
        experiment.strategies,
        budget_images=experiment.training.images,
        global_batch=experiment.training.global_batch,
    )
