"""Folders that diffusers' `save_pretrained` writes: a DDPM pipeline, or its U-Net alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import safe_open

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.foreign.fitting import Imported, as_float32, check_numbers, check_size
from fleetstep.networks.foreign.refusals import cut, listed, refusing, shown
from fleetstep.networks.hub import load_unet, shapes_of
from fleetstep.networks.spec import DiffusersUnetSpec
from fleetstep.networks.spec.diffusers_unet import PARAMETERS

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# Samplers of a network that was trained as DDPM trains, with the same settings.
_SCHEDULERS = {
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
}
_MOST_STEPS = 100_000
# Generous for any network: blocks of a level, levels, bytes of a config.
_MOST_LAYERS, _MOST_LEVELS, _MOST_JSON = 64, 12, 2**20
_ENCODERS = ("vqvae", "vae")
# The ends of beta that our linear and quadratic schedules have; cosine has none.
_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
# Settings that would make another process, and the values under which they do not.
_NEUTRAL = {"trained_betas": None, "rescale_betas_zero_snr": False, "use_flow_sigmas": False}
_ASSUMED = {
    "_class_name": "DDPMScheduler",
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
    with refusing(folder):
        return _read(folder)


def _read(folder: Path) -> Imported:
    index = folder / "model_index.json"
    parts = _json(index) if index.is_file() else None
    unet = folder if parts is None else folder / "unet"
    schedule = folder / "scheduler/scheduler_config.json"
    scheduler = _ASSUMED if parts is None else _json(schedule)
    _check_folder(unet)
    _check_sizes(unet)
    arguments, weights = load_unet(unet)
    network = _network(unet, arguments)
    height, width = network.sides
    if height != width:
        raise ForeignWeightsError(
            f"the network in {unet} is for images of {height} x {width}", "only squares are known"
        )
    return Imported(
        format="diffusers",
        files=(
            unet / _WEIGHTS,
            unet / "config.json",
            *([] if parts is None else [schedule]),
        ),
        process=_process(scheduler, network),
        network=network,
        shape=(network.channels_in, height, width),
        classes=network.classes,
        weights={
            f"unet.{name}": as_float32(name, tensor).contiguous()
            for name, tensor in weights.items()
        },
        notes=_notes(parts),
    )


def _notes(parts: Mapping[str, Any] | None) -> tuple[str, ...]:
    if parts is None:
        return (
            "the folder has no scheduler: DDPM with 1000 linear steps and noise prediction is "
            "assumed",
        )
    return tuple(
        f"its images are latents: the pipeline's {part}, which is not imported, decodes them"
        for part in _ENCODERS
        if parts.get(part)
    )


def _network(unet: Path, arguments: Mapping[str, Any]) -> DiffusersUnetSpec:
    try:
        # Through JSON: what is embedded in the config is what a snapshot keeps.
        return DiffusersUnetSpec(config=json.loads(json.dumps(arguments, allow_nan=False)))
    except (ValidationError, TypeError, ValueError) as error:
        raise ForeignWeightsError(
            f"the network in {unet} cannot be represented here: {cut(str(error))}",
            "an unconditional or class-conditional UNet2DModel of a DDPM can be",
        ) from error


def _check_sizes(unet: Path) -> None:
    """Refuse a config that asks for more than its weights hold, and weights that are no floats,
    before diffusers makes anything of them.
    """
    file = unet / _WEIGHTS
    check_size(file)
    with safe_open(file, framework="pt") as tensors:
        wrong = [
            f"{name} ({kind})"
            for name in tensors.keys()
            if not (kind := tensors.get_slice(name).get_dtype()).startswith(("F", "BF"))
        ]
    if wrong:
        raise ForeignWeightsError(
            f"weights are floating-point numbers, and these tensors hold others: {listed(wrong)}",
            "the file is quantised, or holds more than a network: use the original weights",
        )
    check_numbers(shapes_of(_bounded(unet / "config.json")), file.stat().st_size)


def _bounded(file: Path) -> dict[str, Any]:
    """The constructor's arguments in a config, of which none makes more than some layers."""
    config = _json(file)
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    layers, levels = config.get("layers_per_block", 1), len(config.get("block_out_channels", "-"))
    problems = [
        f"{cut(name, 80)}, which UNet2DModel has not" for name in arguments.keys() - PARAMETERS
    ]
    if type(layers) is not int or not 1 <= layers <= _MOST_LAYERS:
        problems.append(f"layers_per_block {shown(layers)}, not 1 to {_MOST_LAYERS}")
    if not 1 <= levels <= _MOST_LEVELS:
        problems.append(f"{levels} block_out_channels, not 1 to {_MOST_LEVELS}")
    if problems:
        raise ForeignWeightsError(
            f"{file} has {listed(sorted(problems))}", "such a network cannot be represented here"
        )
    return arguments


def _check_folder(unet: Path) -> None:
    config = _json(unet / "config.json")
    if (kind := config.get("_class_name")) != "UNet2DModel":
        raise ForeignWeightsError(
            f"{unet} holds a {shown(kind)}, not a UNet2DModel",
            "name a DDPM pipeline or the folder of its unet",
        )
    if config.get("quantization_config") is not None:
        raise ForeignWeightsError(
            f"the weights in {unet} are quantised (quantization_config)",
            "use the original weights",
        )
    if (unet / f"{_WEIGHTS}.index.json").exists():
        raise ForeignWeightsError(
            f"the weights in {unet} are split into several files",
            "write them again into one with diffusers: "
            "UNet2DModel.from_pretrained(folder).save_pretrained(folder, max_shard_size='64GB')",
        )
    if not (unet / _WEIGHTS).is_file():
        pickles = sorted(path.name for path in unet.glob("*.bin"))
        raise ForeignWeightsError(
            f"{unet} has no {_WEIGHTS}"
            + (f", only {listed(pickles)}, which can run programs" if pickles else ""),
            "where you trust its source, write it again with diffusers: "
            "UNet2DModel.from_pretrained(folder).save_pretrained(folder)",
        )


def _process(scheduler: Mapping[str, Any], network: DiffusersUnetSpec) -> dict[str, Any]:
    schedule = _SCHEDULES.get(str(scheduler.get("beta_schedule")))
    prediction = _PREDICTIONS.get(str(scheduler.get("prediction_type", "epsilon")))
    kind = scheduler.get("_class_name")
    wrong = {} if kind in _SCHEDULERS else {"_class_name": kind}
    wrong |= {
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
    steps = scheduler.get("num_train_timesteps")
    if type(steps) is not int or not 1 <= steps <= _MOST_STEPS:
        wrong["num_train_timesteps"] = steps
    learned = network.channels_out == 2 * network.channels_in
    if not learned and network.channels_out != network.channels_in:
        wrong["out_channels"] = network.channels_out
    variance = scheduler.get("variance_type", "learned_range" if learned else None)
    if (variance != "learned_range") if learned else str(variance).startswith("learned"):
        wrong["variance_type"] = variance
    if wrong:
        raise ForeignWeightsError(
            f"the scheduler has {shown(wrong)}, which cannot be represented here",
            f"known are _class_name {', '.join(sorted(_SCHEDULERS))}, "
            f"beta_schedule {', '.join(_SCHEDULES)} with {_BETAS} (cosine without), "
            f"prediction_type {', '.join(_PREDICTIONS)}, {_NEUTRAL}, num_train_timesteps up to "
            f"{_MOST_STEPS}, as many channels out as in, or twice as many with variance_type "
            "learned_range",
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
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"it has more than {_MOST_JSON} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ForeignWeightsError(
            f"{path} cannot be read: {cut(str(error))}",
            "name a DDPM pipeline (unet/ and scheduler/) or the folder of a UNet2DModel",
        ) from error
    if not isinstance(content, dict):
        raise ForeignWeightsError(f"{path} holds no JSON object", "write it again with diffusers")
    return content
