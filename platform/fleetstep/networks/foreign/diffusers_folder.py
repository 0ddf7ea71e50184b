"""Folders that diffusers' `save_pretrained` writes: a DDPM pipeline, or its U-Net alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.foreign.fitting import Imported
from fleetstep.networks.hub import load_unet
from fleetstep.networks.spec import DiffusersUnetSpec

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# The ends of beta that our linear and quadratic schedules have; cosine has none.
_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
# Settings that would make another process, and the values under which they do not.
_NEUTRAL = {"trained_betas": None, "rescale_betas_zero_snr": False}
_ASSUMED = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    **_BETAS,
}


def read_diffusers(folder: Path) -> Imported:
    """The network of a diffusers folder, and the process of its scheduler.

    Args:
        folder: a pipeline (unet/ and scheduler/) or a `UNet2DModel` (config.json and safetensors).

    Raises:
        ForeignWeightsError: it is neither, its weights are pickles, or its network or scheduler
            cannot be represented here.
    """
    pipeline = (folder / "model_index.json").is_file()
    unet = folder / "unet" if pipeline else folder
    _check_folder(unet)
    arguments, weights = load_unet(unet)
    try:
        # Through JSON: what is embedded in the config is what a snapshot keeps.
        network = DiffusersUnetSpec(config=json.loads(json.dumps(arguments)))
    except (ValidationError, TypeError) as error:
        raise ForeignWeightsError(
            f"the network in {unet} cannot be represented here: {error}",
            "an unconditional or class-conditional UNet2DModel of a DDPM can be",
        ) from error
    height, width = network.sides
    if height != width:
        raise ForeignWeightsError(
            f"the network in {unet} is for images of {height} x {width}", "only squares are known"
        )
    scheduler = _json(folder / "scheduler/scheduler_config.json") if pipeline else _ASSUMED
    return Imported(
        format="diffusers",
        process=_process(scheduler, network),
        network=network,
        shape=(network.channels, height, width),
        classes=network.classes,
        weights={f"unet.{name}": tensor.contiguous() for name, tensor in weights.items()},
        notes=()
        if pipeline
        else (
            "the folder has no scheduler: DDPM with 1000 linear steps and noise prediction is "
            "assumed",
        ),
    )


def _check_folder(unet: Path) -> None:
    if (kind := _json(unet / "config.json").get("_class_name")) != "UNet2DModel":
        raise ForeignWeightsError(
            f"{unet} holds a {kind}, not a UNet2DModel",
            "name a DDPM pipeline or the folder of its unet",
        )
    if not (unet / _WEIGHTS).is_file():
        pickles = sorted(path.name for path in unet.glob("*.bin"))
        raise ForeignWeightsError(
            f"{unet} has no {_WEIGHTS}"
            + (f", only {', '.join(pickles)}, which can run programs" if pickles else ""),
            "where you trust its source, write it again with diffusers: "
            "UNet2DModel.from_pretrained(folder).save_pretrained(folder)",
        )


def _process(scheduler: Mapping[str, Any], network: DiffusersUnetSpec) -> dict[str, Any]:
    schedule = _SCHEDULES.get(str(scheduler.get("beta_schedule")))
    prediction = _PREDICTIONS.get(str(scheduler.get("prediction_type", "epsilon")))
    wrong = {
        name: scheduler[name]
        for name, value in _NEUTRAL.items()
        if scheduler.get(name, value) != value
    }
    if schedule != "cosine":
        wrong |= {
            name: scheduler.get(name)
            for name, value in _BETAS.items()
            if scheduler.get(name) != value
        }
    if schedule is None:
        wrong["beta_schedule"] = scheduler.get("beta_schedule")
    if prediction is None:
        wrong["prediction_type"] = scheduler.get("prediction_type")
    if not isinstance(steps := scheduler.get("num_train_timesteps"), int):
        wrong["num_train_timesteps"] = steps
    learned = network.channels_out == 2 * network.channels
    if not learned and network.channels_out != network.channels:
        wrong["out_channels"] = network.channels_out
    if learned and scheduler.get("variance_type", "learned_range") != "learned_range":
        wrong["variance_type"] = scheduler["variance_type"]
    if wrong:
        raise ForeignWeightsError(
            f"the scheduler has {wrong}, which cannot be represented here",
            f"known are beta_schedule {', '.join(_SCHEDULES)} with {_BETAS} (cosine without), "
            f"prediction_type {', '.join(_PREDICTIONS)}, {_NEUTRAL}, as many channels out as in, "
            "or twice as many with variance_type learned_range",
        )
    return {
        "kind": "ddpm",
        "schedule": schedule,
        "steps": steps,
        "prediction": prediction,
        "learned_variance": learned,
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForeignWeightsError(
            f"{path} cannot be read: {error}",
            "name a DDPM pipeline (unet/ and scheduler/) or the folder of a UNet2DModel",
        ) from error
    if not isinstance(content, dict):
        raise ForeignWeightsError(f"{path} holds no JSON object", "write it again with diffusers")
    return content
