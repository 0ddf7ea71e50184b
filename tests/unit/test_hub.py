"""The adapter of diffusers' U-Nets, on folders that diffusers itself writes."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fleetstep.errors import ConfigError, ForeignWeightsError, SamplingError
from fleetstep.networks import hub
from fleetstep.networks.build import build_network
from fleetstep.networks.foreign.diffusers_folder import read_diffusers
from fleetstep.networks.foreign.fitting import Imported
from fleetstep.networks.spec import DiffusersUnetSpec, check_network, feature_shape
from fleetstep.networks.spec.diffusers_unet import PARAMETERS
from fleetstep.torchvision_door import import_torchvision

pytest.importorskip("diffusers", reason="the extra `hub` is not installed")
STEPS = torch.tensor([0.0, 17.25, 999.0])


def unet(seed: int = 0, **changes: Any) -> Any:
    import_torchvision()
    from diffusers import UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(
            **{
                "sample_size": 8,
                "in_channels": 3,
                "out_channels": 3,
                "layers_per_block": 1,
                "block_out_channels": (8, 16),
                "norm_num_groups": 4,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                "attention_head_dim": 4,
                **changes,
            }
        ).eval()


def pipeline(folder: Path, model: Any, **scheduler: Any) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(model, DDPMScheduler(**scheduler)).save_pretrained(folder)
    return folder


def images(count: int = 3) -> Tensor:
    return torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(5))


def network_of(imported: Imported) -> torch.nn.Module:
    learned = imported.process["learned_variance"]
    network = build_network(
        imported.network,
        resolution=imported.shape[1],
        channels=imported.shape[0],
        classes=imported.classes,
        seed=1,
        channels_out=imported.shape[0] * (1 + learned),
    )
    network.load_state_dict(dict(imported.weights))
    return network.eval()


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("kind", ["pipeline", "unet"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_class_embeds": 4},
        {"out_channels": 6},
        {"freq_shift": 1, "flip_sin_to_cos": False, "center_input_sample": True},
    ],
)
def test_the_network_gives_what_diffusers_gives_to_the_bit(
    kind: str, changes: dict, tmp_path: Path
):
    model = unet(**changes)
    if kind == "pipeline":
        pipeline(
            tmp_path,
            model,
            variance_type="learned_range" if "out_channels" in changes else "fixed_small",
        )
    else:
        model.save_pretrained(tmp_path)
    imported = read_diffusers(tmp_path)
    classes = changes.get("num_class_embeds", 0)
    assert (imported.shape, imported.classes) == ((3, 8, 8), classes)
    assert imported.process["learned_variance"] == ("out_channels" in changes)
    assert bool(imported.notes) == (kind == "unet")
    labels = torch.tensor([3, 0, 1]) if classes else None
    network = network_of(imported)
    with torch.no_grad():
        theirs = model(images(), STEPS, labels).sample
        ours, features = network.forward_with_features(images(), STEPS, labels)
        assert torch.equal(network(images(), STEPS, labels), theirs)
    assert torch.equal(ours, theirs)
    assert features.shape == (3, *feature_shape(imported.network, 8))
    assert theirs.std() > 0.01


def test_the_features_are_what_the_decoder_sees(tmp_path: Path):
    network = build_network(
        DiffusersUnetSpec(config=plain_config()), resolution=8, channels=3, classes=0, seed=0
    ).eval()
    with torch.no_grad():
        _, features = network.forward_with_features(images(), STEPS)
        _, again = network.forward_with_features(images() + 1, STEPS)
    assert features.shape == (3, 16, 4, 4)
    assert not torch.equal(features, again)


def plain_config() -> dict[str, Any]:
    config = {n: v for n, v in unet().config.items() if not n.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


@pytest.mark.parametrize(
    ("scheduler", "process"),
    [
        ({}, ("linear", 1000, "eps")),
        (
            {"beta_schedule": "scaled_linear", "num_train_timesteps": 250},
            ("quadratic", 250, "eps"),
        ),
        ({"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.1}, ("cosine", 1000, "eps")),
        ({"prediction_type": "sample"}, ("linear", 1000, "x0")),
        ({"prediction_type": "v_prediction"}, ("linear", 1000, "v")),
    ],
)
def test_the_scheduler_becomes_the_process(scheduler: dict, process: tuple, tmp_path: Path):
    found = read_diffusers(pipeline(tmp_path, unet(), **scheduler)).process
    assert (found["schedule"], found["steps"], found["prediction"]) == process


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_start": 2e-4}, "'beta_start': 0.0002"),
        ({"beta_end": 0.03}, "'beta_end': 0.03"),
        ({"beta_schedule": "sigmoid"}, "'beta_schedule': 'sigmoid'"),
        ({"rescale_betas_zero_snr": True}, "'rescale_betas_zero_snr': True"),
        ({"trained_betas": [0.1, 0.2]}, "'trained_betas'"),
        ({"prediction_type": "flow"}, "'prediction_type': 'flow'"),
        ({"num_train_timesteps": None}, "'num_train_timesteps': None"),
        ({"num_train_timesteps": 10**6}, "'num_train_timesteps': 1000000"),
        ({"num_train_timesteps": True}, "'num_train_timesteps': True"),
        ({"_class_name": "EDMEulerScheduler"}, "'_class_name': 'EDMEulerScheduler'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatch"),
        ({"_class_name": None}, "'_class_name': None"),
        ({"variance_type": "learned"}, "'variance_type': 'learned'"),
        ({"variance_type": "learned_range"}, "'variance_type': 'learned_range'"),
    ],
)
def test_schedulers_of_other_processes_are_refused(changes: dict, message: str, tmp_path: Path):
    pipeline(tmp_path, unet())
    edit(tmp_path / "scheduler/scheduler_config.json", **changes)
    with pytest.raises(ForeignWeightsError, match=message):
        read_diffusers(tmp_path)


class TestFolders:
    def test_weights_as_pickles_are_refused_with_the_remedy(self, tmp_path: Path):
        unet().save_pretrained(tmp_path, safe_serialization=False)
        assert (tmp_path / "diffusion_pytorch_model.bin").exists()
        with pytest.raises(ForeignWeightsError, match=r"can run programs\n.*save_pretrained"):
            read_diffusers(tmp_path)

    def test_weights_of_another_config_are_refused(self, tmp_path: Path):
        unet().save_pretrained(tmp_path)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        weights["conv_out.gain"] = weights.pop("conv_out.bias")
        save_file(weights, file, {"format": "pt"})
        # diffusers itself would go on with a random bias.
        with pytest.raises(ForeignWeightsError, match=r"conv_out\.bias.*conv_out\.gain"):
            read_diffusers(tmp_path)
        edit(tmp_path / "config.json", layers_per_block=2)
        with pytest.raises(ForeignWeightsError, match="size mismatch"):
            read_diffusers(tmp_path)

    def test_damaged_weights_are_refused(self, tmp_path: Path):
        unet().save_pretrained(tmp_path)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ForeignWeightsError, match="incomplete metadata"):
            read_diffusers(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"_class_name": "UNet2DConditionModel"}, "not a UNet2DModel"),
            ({"sample_size": None}, "sample_size must be the side"),
            ({"sample_size": [8, 16]}, "8 x 16"),
            ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional'"),
        ],
    )
    def test_other_networks_are_refused(self, changes: dict, message: str, tmp_path: Path):
        model = unet(**{n: v for n, v in changes.items() if n == "time_embedding_type"})
        model.save_pretrained(tmp_path)
        edit(tmp_path / "config.json", **changes)
        with pytest.raises(ForeignWeightsError, match=message):
            read_diffusers(tmp_path)

    def test_what_is_no_folder_of_diffusers_is_refused(self, tmp_path: Path):
        with pytest.raises(ForeignWeightsError, match=r"config.json cannot be read"):
            read_diffusers(tmp_path)


class TestNetwork:
    def test_the_start_depends_on_the_seed_alone(self):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        starts = [
            build_network(
                DiffusersUnetSpec(config=plain_config()),
                resolution=8,
                channels=3,
                classes=0,
                seed=seed,
            ).state_dict()["unet.conv_in.weight"]
            for seed in (5, 5, 6)
        ]
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(starts[0], starts[1])
        assert not torch.equal(starts[0], starts[2])

    def test_other_images_are_refused(self):
        spec = DiffusersUnetSpec(config=plain_config())
        assert "8 x 8 pixels, not 16 x 16" in check_network(spec, 16)[0]
        with pytest.raises(ConfigError, match=r"in_channels: the diffusers network has 3"):
            build_network(spec, resolution=8, channels=1, classes=0, seed=0)
        with pytest.raises(ConfigError, match=r"num_class_embeds: .* has 0, the run needs 10"):
            build_network(spec, resolution=8, channels=3, classes=10, seed=0)

    def test_an_image_of_no_class_is_refused_where_there_is_none(self):
        spec = DiffusersUnetSpec(config=plain_config() | {"num_class_embeds": 4})
        network = build_network(spec, resolution=8, channels=3, classes=4, seed=0)
        for labels in (None, torch.tensor([0, -1, 1])):
            with pytest.raises(SamplingError, match="no image of no class"):
                network(images(), STEPS, labels)

    def test_a_config_is_checked_without_diffusers(self):
        with pytest.raises(ValidationError, match="in_channels must be a positive whole number"):
            DiffusersUnetSpec(config=plain_config() | {"in_channels": 0})

    def test_without_the_extra_one_clear_error(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        def missing() -> None:
            raise ModuleNotFoundError("No module named 'diffusers'")

        spec = DiffusersUnetSpec(config=plain_config())
        unet().save_pretrained(tmp_path)
        monkeypatch.setattr(hub, "_diffusers", missing)
        with pytest.raises(ConfigError, match=r"pip install 'fleetstep\[hub\]'"):
            build_network(spec, resolution=8, channels=3, classes=0, seed=0)
        with pytest.raises(ForeignWeightsError, match=r"pip install 'fleetstep\[hub\]'"):
            read_diffusers(tmp_path)

    def test_arguments_that_the_constructor_has_not_are_refused(self):
        noted = plain_config() | {"_diffusers_version": "0.36.0"}
        spec = DiffusersUnetSpec(config=noted | {"num_class_embeds": 7, "out_channels": 6})
        assert (spec.channels_in, spec.channels_out, spec.classes) == (3, 6, 7)
        build_network(DiffusersUnetSpec(config=noted), resolution=8, channels=3, classes=0, seed=0)
        with pytest.raises(ValidationError, match="layers_per_blok is no argument of UNet2DModel"):
            DiffusersUnetSpec(config=noted | {"layers_per_blok": 2})

    def test_the_known_arguments_are_those_of_the_installed_diffusers(self):
        from diffusers import UNet2DModel

        assert inspect.signature(UNet2DModel).parameters.keys() == PARAMETERS

    def test_a_config_that_diffusers_cannot_make_is_a_config_error(self):
        spec = DiffusersUnetSpec(config=plain_config() | {"norm_num_groups": 0})
        with pytest.raises(ConfigError, match="diffusers cannot make the network: ZeroDivision"):
            build_network(spec, resolution=8, channels=3, classes=0, seed=0)


class TestForged:
    """Folders that ask for more than they hold, or whose numbers are no weights."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layers_per_block": 10**9}, "layers_per_block 1000000000, not 1 to 64"),
            ({"block_out_channels": [8] * 500}, "500 block_out_channels, not 1 to 12"),
            ({"block_out_channels": [8, 40_000]}, r"numbers and its file .* bytes"),
            ({"num_class_embeds": 10**9}, r"numbers and its file .* bytes"),
            ({"norm_num_groups": 0}, "ZeroDivisionError"),
            ({"norm_eps": math.nan}, "not JSON compliant"),
            ({"quantization_config": {"quant_method": "x"}}, "are quantised"),
            ({"surprise": 1}, "surprise, which UNet2DModel has not"),
        ],
    )
    def test_configs(self, changes: dict, message: str, tmp_path: Path):
        unet().save_pretrained(tmp_path)
        edit(tmp_path / "config.json", **changes)
        with pytest.raises(ForeignWeightsError, match=message):
            read_diffusers(tmp_path)

    @pytest.mark.parametrize(
        ("bias", "message"),
        [
            (torch.ones(3, dtype=torch.int32), r"conv_out.bias \(I32\)"),
            (torch.ones(3, dtype=torch.complex64), r"conv_out.bias \(C64\)"),
            (torch.ones(3, dtype=torch.bool), r"conv_out.bias \(BOOL\)"),
            (torch.full((3,), math.nan), "conv_out.bias holds numbers that are not finite"),
            (torch.full((3,), 1e300, dtype=torch.float64), "not finite in float32"),
        ],
    )
    def test_weights(self, bias: Tensor, message: str, tmp_path: Path):
        unet().save_pretrained(tmp_path)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | {"conv_out.bias": bias}, file, {"format": "pt"})
        with pytest.raises(ForeignWeightsError, match=message):
            read_diffusers(tmp_path)

    def test_weights_in_several_files_are_refused(self, tmp_path: Path):
        unet().save_pretrained(tmp_path)
        (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
        with pytest.raises(ForeignWeightsError, match="split into several files"):
            read_diffusers(tmp_path)

    def test_refusals_are_short(self, tmp_path: Path):
        unet().save_pretrained(tmp_path)
        file = tmp_path / "diffusion_pytorch_model.safetensors"
        many = {f"{i}{'x' * 100}": torch.ones(1) for i in range(2000)}
        save_file(load_file(file) | many, file, {"format": "pt"})
        with pytest.raises(ForeignWeightsError, match="and 1992 more") as caught:
            read_diffusers(tmp_path)
        assert len(str(caught.value)) < 3_000


def test_images_of_a_pipeline_with_an_encoder_are_noted_as_latents(tmp_path: Path):
    pipeline(tmp_path, unet())
    assert read_diffusers(tmp_path).notes == ()
    edit(tmp_path / "model_index.json", vqvae=["diffusers", "VQModel"])
    (note,) = read_diffusers(tmp_path).notes
    assert "latents: the pipeline's vqvae" in note
