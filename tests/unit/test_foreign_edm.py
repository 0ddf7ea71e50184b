"""EDM and FDM pickles: imported networks compute what the file's own description says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.build import build_network
from fleetstep.networks.foreign.edm import read_edm_pickle
from fleetstep.networks.foreign.fitting import Imported
from fleetstep.orchestration.importing import write_import
from fleetstep.orchestration.snapshots import find_snapshots, load_denoiser
from song_unet_files import SongUNet, run, song_unet, with_filters, write_edm

LABELS = torch.tensor([0, 2, 1])


@pytest.fixture(params=["ddpmpp", "ncsnpp"])
def net(request: pytest.FixtureRequest) -> SongUNet:
    return song_unet(request.param)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn((3, 2, 8, 8), generator=generator, dtype=torch.float64)


def network_of(imported: Imported) -> torch.nn.Module:
    channels, resolution, _ = imported.shape
    network = build_network(
        imported.network,
        resolution=resolution,
        channels=channels,
        classes=imported.classes,
        seed=0,
    )
    network.load_state_dict(dict(imported.weights))
    return network.double().eval()


def test_the_network_computes_what_the_files_computes(net: SongUNet, tmp_path: Path):
    imported = read_edm_pickle(write_edm(tmp_path / "net.pkl", net))
    c_noise = torch.tensor([-1.5, 0.0, 0.75])
    with torch.no_grad():
        ours = network_of(imported)(images(), c_noise, LABELS)
    theirs = run(net, images(), c_noise, LABELS)
    assert ours.std() > 0.1
    # Ours embeds the noise level in float32.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_channels_of_queries_keys_and_values_change_places(net: SongUNet, tmp_path: Path):
    imported = read_edm_pickle(write_edm(tmp_path / "net.pkl", net))
    theirs = net.weights["dec.4x4_in0.qkv.weight"]
    ours = imported.weights["bottleneck.0.attention.qkv.weight"]
    for part, third in enumerate(ours.chunk(3)):
        assert torch.equal(third, theirs[part::3])


def test_every_tensor_is_taken_once(net: SongUNet, tmp_path: Path):
    imported = read_edm_pickle(write_edm(tmp_path / "net.pkl", net))
    left = {n: t for n, t in net.weights.items() if n != "map_augment.weight"}
    assert sorted(t.double().sum().item() for t in imported.weights.values()) == pytest.approx(
        sorted(t.double().sum().item() for t in left.values()), rel=1e-12, abs=1e-12
    )
    assert any("map_augment" in note for note in imported.notes)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(
    ("precond", "sigma"),
    [
        ("EDMPrecond", 1.5),
        ("VPPrecond", 1.5),
        ("VEPrecond", 1.5),
        ("FDM_EDMPrecond", 30.0),
        ("FDM_VPPrecond", 70.0),
        ("FDM_VEPrecond", 40.0),
    ],
)
def test_the_denoiser_is_that_of_the_preconditioning(
    precond: str, sigma: float, classes: int, tmp_path: Path
):
    net = song_unet("ddpmpp", classes=classes)
    file = write_edm(tmp_path / "net.pkl", net, precond)
    write_import(read_edm_pickle(file), file, tmp_path / "imported")
    (snapshot,) = find_snapshots([str(tmp_path / "imported")], which="last", track="ema")
    denoiser = load_denoiser(snapshot, "ema", device=torch.device("cpu"))
    assert (snapshot.shape, snapshot.classes) == ((2, 8, 8), classes)

    skip, out, c_in, noise = coefficients(precond.removeprefix("FDM_"), sigma)
    if precond.startswith("FDM_"):
        low, high = {
            "FDM_EDMPrecond": (0.002, 80.0),
            "FDM_VPPrecond": (math.sqrt(math.expm1(1.000995e-6)), math.sqrt(math.expm1(10.05))),
            "FDM_VEPrecond": (0.02, 100.0),
        }[precond]
        t = (sigma - low) / (high - low)
        # VE-FDM carries the multiplier and does not use it.
        decay = (1.0 if precond == "FDM_VEPrecond" else 2.0) * (0.1 * t + 19.9 * t * t / 2)
        c_in = math.exp(-decay) * (1 + decay)
    x = 5 * images()
    with torch.no_grad():
        ours = denoiser(x, sigma, LABELS if classes else None)
    theirs = skip * x + out * run(net, c_in * x, torch.full((3,), noise), LABELS)
    # The network runs in float32.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * abs(out))


def coefficients(kind: str, sigma: float) -> tuple[float, float, float, float]:
    """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022, table 1."""
    total = math.hypot(sigma, 0.5)
    t = (math.sqrt(0.01 + 2 * 19.9 * math.log1p(sigma**2)) - 0.1) / 19.9
    return {
        "EDMPrecond": (0.25 / total**2, sigma * 0.5 / total, 1 / total, math.log(sigma) / 4),
        "VPPrecond": (1.0, -sigma, 1 / math.hypot(1, sigma), 999 * t),
        "VEPrecond": (1.0, sigma, 1.0, math.log(sigma / 2)),
    }[kind]


def test_a_file_without_fdms_multiplier_says_what_was_assumed(tmp_path: Path):
    net = song_unet("ddpmpp")
    file = write_edm(tmp_path / "net.pkl", net, "FDM_EDMPrecond", fdm_multiplier=None)
    imported = read_edm_pickle(file)
    assert imported.strategies[0]["multiplier"] == 2
    assert any("multiplier" in note for note in imported.notes)
    file = write_edm(tmp_path / "net.pkl", net, "FDM_EDMPrecond", fdm_multiplier=1.0)
    assert read_edm_pickle(file).strategies[0]["multiplier"] == 1


@pytest.mark.parametrize(
    ("precond", "attributes", "process"),
    [
        ("EDMPrecond", {}, {"kind": "edm", "sigma_data": 0.5}),
        (
            "EDMPrecond",
            {"sigma_min": 0.01, "sigma_max": 50, "sigma_data": 0.3},
            {"kind": "edm", "sigma_data": 0.3, "sigma_min": 0.01, "sigma_max": 50},
        ),
        (
            "VPPrecond",
            {
                "epsilon_t": 1e-4,
                "beta_min": 0.2,
                "beta_d": 10,
                "sigma_min": 4.4777e-3,
                "sigma_max": 13.425,
            },
            {"kind": "vp", "beta_min": 0.2, "beta_d": 10, "t_min": 1e-4},
        ),
        ("VEPrecond", {"sigma_max": 50}, {"kind": "ve", "sigma_min": 0.02, "sigma_max": 50}),
    ],
)
def test_the_process_is_the_files_own(
    precond: str, attributes: dict, process: dict, tmp_path: Path
):
    file = write_edm(tmp_path / "net.pkl", song_unet("ddpmpp"), precond, **attributes)
    assert read_edm_pickle(file).process == process


def test_half_precision_and_strided_tensors_are_read(tmp_path: Path):
    net = song_unet("ddpmpp")
    weights = with_filters(net)
    name = "enc.8x8_block0.conv0.weight"
    weights[name] = weights[name].transpose(0, 1).contiguous().transpose(0, 1).half()
    imported = read_edm_pickle(write_edm(tmp_path / "net.pkl", net, weights=weights))
    assert torch.equal(imported.weights["encoder.0.conv_0.weight"], weights[name].float())


class TestRefusals:
    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"arguments": {"model_channels": 16}}, r"of another shape.*map_layer0"),
            ({"arguments": {"num_blocks": 2}}, r"missing from the file.*dec.4x4_block2"),
            ({"arguments": {"decoder_type": "skip"}}, "neither DDPM\\+\\+ nor NCSN"),
            ({"arguments": {"num_blocks": 10**9}}, "num_blocks = 1000000000"),
            ({"arguments": {"surprise": 1}}, "surprise"),
            ({"label_dim": 10}, r"classes\) \(2, 8, 10\)"),
            (
                {"sigma_data": "0.5"},
                r"sigma_data should be a finite number from 0 on and is '0\.5'",
            ),
        ],
    )
    def test_what_does_not_fit(self, attributes: dict, message: str, tmp_path: Path):
        file = write_edm(tmp_path / "net.pkl", song_unet("ddpmpp"), **attributes)
        with pytest.raises(ForeignWeightsError, match=message):
            read_edm_pickle(file)

    def test_other_classes(self, tmp_path: Path):
        net = song_unet("ddpmpp")
        file = write_edm(tmp_path / "net.pkl", net, "iDDPMPrecond")
        with pytest.raises(
            ForeignWeightsError, match=r"iDDPMPrecond is not known.*\n.*EDMPrecond"
        ):
            read_edm_pickle(file)
        file = write_edm(tmp_path / "net.pkl", net, "VPPrecond", M=500)
        with pytest.raises(ForeignWeightsError, match="conditioned on 500 steps"):
            read_edm_pickle(file)

    @pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "filter"])
    def test_tensors_that_do_not_match_are_named(self, change: str, tmp_path: Path):
        net = song_unet("ddpmpp")
        weights = with_filters(net)
        name = "dec.8x8_up.conv1.bias"
        match change:
            case "missing":
                del weights[name]
                message = f"missing from the file: {name}"
            case "unexpected":
                weights["dec.8x8_up.conv7.bias"] = torch.zeros(1)
                message = "unexpected in the file: dec.8x8_up.conv7.bias"
            case "shape":
                weights[name] = torch.zeros(5)
                message = rf"{name} is \(5,\), decoder.2.conv_1.bias needs \(16,\)"
            case _:
                weights["dec.8x8_up.conv0.resample_filter"] = torch.zeros(1, 1, 2, 2)
                message = r"resample_filter is not the filter \(1.0, 1.0\)"
        file = write_edm(tmp_path / "net.pkl", net, weights=weights)
        with pytest.raises(ForeignWeightsError, match=message):
            read_edm_pickle(file)

    @pytest.mark.parametrize(
        ("precond", "attributes", "message"),
        [
            ("EDMPrecond", {"sigma_min": math.nan}, "sigma_min should be a finite number"),
            ("EDMPrecond", {"sigma_min": -5.0}, "sigma_min should be a finite number"),
            ("EDMPrecond", {"sigma_max": math.nan}, "sigma_max should be a finite number"),
            ("EDMPrecond", {"sigma_data": math.inf}, "sigma_data should be a finite number"),
            ("VPPrecond", {"sigma_max": 160.0}, "sigma_max is 160, .* make it 152"),
            ("VPPrecond", {"sigma_min": 9.6e-4}, "sigma_min is 0.00096, .* make it 0.0010005"),
            ("VPPrecond", {"beta_d": 2000.0, "sigma_min": 1.0488e-3}, "read: OverflowError"),
            ("VPPrecond", {"M": 10**400}, "a whole number of 1329 bits"),
            (
                "EDMPrecond",
                {"arguments": {"num_blocks": 10**5000}},
                "a whole number of 16610 bits",
            ),
        ],
    )
    def test_settings_that_are_no_levels_of_noise(
        self, precond: str, attributes: dict, message: str, tmp_path: Path
    ):
        file = write_edm(tmp_path / "net.pkl", song_unet("ddpmpp"), precond, **attributes)
        with pytest.raises(ForeignWeightsError, match=message):
            read_edm_pickle(file)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda tensor: tensor.long(), "torch.int64"),
            (lambda tensor: tensor > 0, "torch.bool"),
            (lambda tensor: tensor.fill_(math.inf), "not finite"),
            (lambda tensor: tensor.double() * 1e300, "not finite in float32"),
        ],
    )
    def test_weights_that_are_no_finite_real_numbers(
        self, change: Callable[[Tensor], Tensor], message: str, tmp_path: Path
    ):
        net = song_unet("ddpmpp")
        weights = with_filters(net)
        name = "enc.8x8_block0.conv0.weight"
        weights[name] = change(weights[name].clone())
        with pytest.raises(ForeignWeightsError, match=rf"{name} .*{message}"):
            read_edm_pickle(write_edm(tmp_path / "net.pkl", net, weights=weights))
