"""The door to diffusers: its `UNet2DModel` as one of our networks, and its folders of weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fleetstep.errors import ConfigError, ForeignWeightsError, SamplingError
from fleetstep.networks.foreign.refusals import listed
from fleetstep.networks.spec import DiffusersUnetSpec
from fleetstep.torchvision_door import import_torchvision

_REMEDY = "install the extra: pip install 'fleetstep[hub]'"


class DiffusersUnet(nn.Module):
    """A `UNet2DModel` with our networks' interface.

    Args:
        unet: the model.
        classes: number of its classes; 0 for an unconditional one, which ignores labels.
    """

    def __init__(self, unet: nn.Module, classes: int) -> None:
        super().__init__()
        self.unet = unet
        self.classes = classes

    def forward(
        self,
        x_BCHW: Tensor,
        c_noise_B: Tensor,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> Tensor:
        """F_BCHW of scaled images x at step indices c_noise.

        Args:
            x_BCHW: c_in times the noisy image.
            c_noise_B: the step index 0 .. T-1, whole or fractional, float32.
            labels_B: class ids (int64); needed, and not negative, if the network has classes.
            augment_BA: must be None: this network cannot be told of augmentations.

        Raises:
            SamplingError: a network with classes is asked for an image of none.
        """
        f_BCHW: Tensor
        (f_BCHW,) = self.unet(x_BCHW, c_noise_B, self._labels(labels_B), return_dict=False)
        return f_BCHW

    def forward_with_features(
        self,
        x_BCHW: Tensor,
        c_noise_B: Tensor,
        labels_B: Tensor | None = None,
        augment_BA: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """F_BCHW, and the output of the middle block, at the lowest resolution."""
        seen: list[Tensor] = []
        middle: nn.Module = self.unet.mid_block  # type: ignore[assignment]
        handle = middle.register_forward_hook(lambda _module, _inputs, h: seen.append(h))
        try:
            f_BCHW = self.forward(x_BCHW, c_noise_B, labels_B, augment_BA)
        finally:
            handle.remove()
        return f_BCHW, seen[0]

    def _labels(self, labels_B: Tensor | None) -> Tensor | None:
        if not self.classes:
            return None
        if labels_B is None or bool((labels_B < 0).any()):
            raise SamplingError(
                "a diffusers network with classes knows no image of no class",
                "give every image a label, and leave guidance out",
            )
        return labels_B


def build_diffusers_unet(
    spec: DiffusersUnetSpec, *, channels: int, classes: int, seed: int, channels_out: int | None
) -> DiffusersUnet:
    """The network of a config with diffusers' own start, in float32 on the CPU.

    torch's generator draws the start from `seed` and is put back: unlike our own networks', it is
    the same for one version of torch and diffusers only.

    Raises:
        ConfigError: diffusers is missing, the network is for other images, or the installed
            diffusers cannot make it.
    """
    problems = [
        f"network.config.{name}: the diffusers network has {has}, the run needs {needs}"
        for name, has, needs in (
            ("in_channels", spec.channels_in, channels),
            ("out_channels", spec.channels_out, channels_out or channels),
            ("num_class_embeds", spec.classes, classes),
        )
        if has != needs
    ]
    if problems:
        raise ConfigError(problems)
    try:
        diffusers = _diffusers()
    except ImportError as error:
        raise ConfigError([f"network.kind: diffusers_unet needs diffusers: {_REMEDY}"]) from error
    arguments = {name: value for name, value in spec.config.items() if not name.startswith("_")}
    known = inspect.signature(diffusers.UNet2DModel).parameters
    if unknown := sorted(arguments.keys() - known.keys()):
        raise ConfigError(
            [f"network.config.{name}: diffusers {diffusers.__version__} has no such argument"
             for name in unknown]
        )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet: nn.Module = diffusers.UNet2DModel(**arguments)
        except Exception as error:
            # Its constructor divides, multiplies and looks up whatever it is given.
            raise ConfigError(
                [f"network.config: diffusers cannot make the network: {error!r}"]
            ) from error
    return DiffusersUnet(unet, classes)


def shapes_of(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a `UNet2DModel`, by its constructor's arguments; takes no memory.

    Raises:
        ForeignWeightsError: diffusers is missing.
        Exception: whatever diffusers raises at arguments that it cannot use.
    """
    diffusers = _needed_diffusers()
    with torch.device("meta"):
        empty: nn.Module = diffusers.UNet2DModel(**arguments)
    return {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}


def load_unet(folder: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """(constructor arguments, state dict in float32) of a `UNet2DModel` folder with safetensors.

    Raises:
        ForeignWeightsError: diffusers is missing, or the folder cannot be read, or its weights are
            not those of its config.
    """
    diffusers = _needed_diffusers()
    try:
        unet, report = diffusers.UNet2DModel.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
    except Exception as error:
        # Of a damaged folder diffusers and what it calls raise almost anything.
        raise ForeignWeightsError(
            f"diffusers cannot load {folder}: {error}", "use a folder that save_pretrained wrote"
        ) from error
    if wrong := [f"{what}: {listed(names)}" for what, names in report.items() if names]:
        raise ForeignWeightsError(
            f"the weights in {folder} are not those of its config.json: {'; '.join(wrong)}",
            "use a folder that save_pretrained wrote",
        )
    arguments = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    return arguments, unet.state_dict()


def _needed_diffusers() -> Any:
    try:
        return _diffusers()
    except ImportError as error:
        raise ForeignWeightsError(
            "a diffusers folder needs diffusers to read it", _REMEDY
        ) from error


def _diffusers() -> Any:
    # diffusers reaches torchvision as soon as a model is named.
    import_torchvision()
    import diffusers

    return diffusers
