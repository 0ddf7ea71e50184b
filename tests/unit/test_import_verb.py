"""`fleetstep import`, and what sampling and sweeps make of an imported snapshot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fleetstep.data.pack import pack_npz
from fleetstep.durable import sha256_of
from fleetstep.errors import CheckpointError, DataError, ForeignWeightsError
from fleetstep.networks.build import build_network
from fleetstep.networks.dit import position_embedding
from fleetstep.networks.foreign.diffusers_folder import read_diffusers
from fleetstep.networks.foreign.dit import _piece
from fleetstep.networks.foreign.edm import read_edm_pickle
from fleetstep.networks.spec import DitSpec
from fleetstep.orchestration.importing import write_import
from fleetstep.orchestration.snapshots import find_snapshots, load_denoiser, reference_of
from fleetstep.torchvision_door import import_torchvision
from fleetstep.training import snapshot as snapshot_module
from fleetstep.training.snapshot import FACTS, read_snapshot, snapshot_path
from small_run import write_small_run
from song_unet_files import song_unet, write_edm
from training_job import run as run_job
from training_job import toy_job

Run = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    return write_edm(tmp_path / "net.pkl", song_unet("ncsnpp"), "FDM_VEPrecond")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Images of the pickled network's shape."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    pack_npz(tmp_path / "images.npz", tmp_path / "data", heldout=0.5)
    return tmp_path / "data"


def the_snapshot(folder: Path) -> Any:
    (found,) = find_snapshots([str(folder)], which="last", track="ema")
    return found


def test_a_pickle_is_imported_and_sampled_without_any_dataset(
    run: Run, tmp_path: Path, pickled: Path
):
    out = tmp_path / "imported"
    code, text, _ = run("import", "edm", pickled, "--out", out)
    assert code == 0
    assert "imported ncsnpp" in text
    assert "as ve + fdm, images 2 x 8 x 8, 3 classes" in text
    assert "note: map_augment.weight is left out" in text
    facts = json.loads((out / FACTS).read_text())
    assert (facts["step"], facts["images_seen"], facts["dataset"]) == (0, 0, "")
    assert (facts["shape"], facts["classes"]) == ([2, 8, 8], 3)
    assert facts["imported_from"]["file"] == "net.pkl"
    assert facts["imported_from"]["format"] == "edm"
    assert len(facts["imported_from"]["sha256"]) == 64
    # Two channels have no picture: the arrays are what is looked at.
    npz = tmp_path / "images.npz"
    where = ("--npz", npz, "--out", tmp_path / "grid.png", "--json")
    code, text, err = run("sample", out, "--nfe", 5, "--seeds", "0-3", *where)
    assert code == 0, err
    answer = json.loads(text)
    assert (answer["nfe"], answer["grid"], answer["npz"]) == (5, None, str(npz))
    with np.load(npz) as arrays:
        assert arrays["images"].shape == (4, 8, 8, 2)
        assert set(arrays["labels"].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("precond", ["EDMPrecond", "FDM_EDMPrecond"])
def test_the_json_answer_says_what_was_made(run: Run, tmp_path: Path, precond: str):
    file = write_edm(tmp_path / "net.pkl", song_unet("ddpmpp"), precond)
    code, text, _ = run("import", "edm", file, "--out", tmp_path / "made", "--json")
    answer = json.loads(text)
    assert code == 0
    assert (answer["process"], answer["network"]) == ("edm", "ddpmpp")
    assert answer["strategies"] == (["fdm"] if precond.startswith("FDM") else [])
    weights = load_file(tmp_path / "made/ema.safetensors")
    assert answer["numbers"] == sum(tensor.numel() for tensor in weights.values())


def test_a_dit_comes_back_to_the_bit_and_its_latents_are_sampled(run: Run, tmp_path: Path):
    spec = DitSpec(depth=2, width=16, heads=4)
    ours = build_network(spec, resolution=8, channels=4, classes=5, seed=0, channels_out=8)
    weights = {name: tensor + 0.01 for name, tensor in ours.state_dict().items()}
    theirs = {_piece(name).source: tensor for name, tensor in weights.items()}
    theirs["pos_embed"] = position_embedding(4, 4, 16, CPU)[None]
    torch.save(theirs, tmp_path / "dit.pt")
    out = tmp_path / "imported"
    code, text, err = run("import", "dit", tmp_path / "dit.pt", "--heads", 4, "--out", out)
    assert code == 0, err
    assert "as ddpm, images 4 x 8 x 8, 5 classes" in text
    found, facts = read_snapshot(out, "ema")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert facts["config"]["process"]["learned_variance"] is True
    guided = ("--guidance", 1.5, "--guidance-channels", "first_three")
    drawing = ("sample", out, "--nfe", 10, "--seeds", "0-1", *guided, "--out", tmp_path / "g.png")
    code, text, err = run(*drawing, "--npz", tmp_path / "new/latents.npz")
    assert code == 0, err
    assert text.endswith(f", 10 network calls each: {tmp_path}/new/latents.npz\n")
    assert "warning" not in text  # how the file's network was trained is not known
    assert not (tmp_path / "g.png").exists()
    with np.load(tmp_path / "new/latents.npz") as arrays:
        latents_nHWC = arrays["images"]
    assert (latents_nHWC.shape, latents_nHWC.dtype) == ((2, 8, 8, 4), np.float32)
    assert np.abs(latents_nHWC).max() > 1  # not clipped as pixels are


def test_latents_without_a_file_for_them_are_refused_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: Path
):
    write_import(read_edm_pickle(pickled), pickled, tmp_path / "imported")
    monkeypatch.setattr("fleetstep.orchestration.sample.generate", None)
    grid = tmp_path / "new/grid.png"
    code, _, err = run("sample", tmp_path / "imported", "--nfe", 5, "--out", grid)
    assert code == 2
    assert "imported draws 2 x 8 x 8: a picture has 1 or 3 channels" in err
    assert "--npz FILE" in err
    assert not grid.parent.exists()


def test_what_cannot_be_read_ends_with_one_message(run: Run, tmp_path: Path):
    for verb, source in (("dit", "none.pt"), ("diffusers", "none")):
        code, _, err = run("import", verb, tmp_path / source, "--out", tmp_path / "out")
        assert code == 2
        assert "error: " in err
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()


def test_a_diffusers_folder_is_imported_and_sampled(run: Run, tmp_path: Path):
    pytest.importorskip("diffusers", reason="the extra `hub` is not installed")
    import_torchvision()
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    out = tmp_path / "imported"
    code, text, err = run("import", "diffusers", tmp_path / "pipeline", "--out", out)
    assert code == 0, err
    assert "imported diffusers_unet" in text
    code, _, err = run("sample", out, "--nfe", 5, "--seeds", "0-1", "--out", tmp_path / "grid.png")
    assert code == 0, err
    assert (tmp_path / "grid.png").exists()


def test_a_folder_is_known_by_the_files_that_were_read(tmp_path: Path):
    pytest.importorskip("diffusers", reason="the extra `hub` is not installed")
    import_torchvision()
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    folder, names = tmp_path / "pipeline", iter("abcd")
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(folder)

    def imported() -> dict[str, Any]:
        out = tmp_path / next(names)
        write_import(read_diffusers(folder), folder, out)
        facts: dict[str, Any] = json.loads((out / FACTS).read_text())
        assert facts["identity"] == facts["imported_from"]["sha256"]
        return dict(facts["imported_from"])

    first = imported()
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert first["file"] == weights
    assert first["files"] == {
        name: sha256_of(folder / name)
        for name in (weights, "unet/config.json", "scheduler/scheduler_config.json")
    }
    # Sorted before the weights, and not read.
    for other in ("a_vae/x.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"other weights")
    assert imported() == first
    schedule = folder / "scheduler/scheduler_config.json"
    schedule.write_text(schedule.read_text().replace("1000", "500"))
    assert imported()["sha256"] != first["sha256"]


def test_an_import_leaves_the_temporary_folder_of_another_alone(tmp_path: Path, pickled: Path):
    theirs = tmp_path / ".imported.tmp"
    theirs.mkdir()
    write_import(read_edm_pickle(pickled), pickled, tmp_path / "imported")
    assert theirs.exists()
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".imported.tmp"]


def test_an_existing_folder_is_never_written_over(run: Run, tmp_path: Path, pickled: Path):
    out = tmp_path / "imported"
    out.mkdir()
    (out / "mine").touch()
    code, _, err = run("import", "edm", pickled, "--out", out)
    assert code != 0
    assert "exists already" in err
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_an_import_that_stops_half_way_leaves_nothing(
    tmp_path: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    imported = read_edm_pickle(pickled)
    monkeypatch.setattr(snapshot_module, "write_json", full)
    with pytest.raises(CheckpointError, match="no space left"):
        write_import(imported, pickled, tmp_path / "into/imported")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_process_that_is_not_possible_here_is_refused(tmp_path: Path):
    file = write_edm(tmp_path / "net.pkl", song_unet("ddpmpp"), "VEPrecond", sigma_min=200)
    with pytest.raises(ForeignWeightsError, match="sigma_min must lie below sigma_max"):
        write_import(read_edm_pickle(file), file, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


class TestReference:
    """Sweeps compare an imported network with the dataset that `--data` named."""

    def test_without_a_dataset_there_is_none(self, tmp_path: Path, pickled: Path):
        write_import(read_edm_pickle(pickled), pickled, tmp_path / "imported")
        with pytest.raises(DataError, match=r"names no dataset.*\n.*--data"):
            reference_of(the_snapshot(tmp_path / "imported"), "train")

    def test_the_named_one_is_used_and_watched(self, tmp_path: Path, dataset: Path):
        net = song_unet("ddpmpp")
        file = write_edm(tmp_path / "net.pkl", net)
        three = replace(read_edm_pickle(file), shape=(3, 8, 8))
        write_import(three, file, tmp_path / "imported", data=dataset)
        snapshot = the_snapshot(tmp_path / "imported")
        reference = reference_of(snapshot, "train")
        assert reference.data == dataset.resolve()
        assert reference.fingerprint == snapshot.dataset
        shutil.rmtree(dataset)
        np.savez(tmp_path / "other.npz", images=np.zeros((60, 8, 8, 3), np.uint8))
        pack_npz(tmp_path / "other.npz", dataset, heldout=0.5)
        with pytest.raises(DataError, match="was trained on dataset"):
            reference_of(snapshot, "train")

    def test_images_of_another_shape_are_refused(
        self, tmp_path: Path, dataset: Path, pickled: Path
    ):
        with pytest.raises(DataError, match=r"shape \(3, 8, 8\), the network makes \(2, 8, 8\)"):
            write_import(read_edm_pickle(pickled), pickled, tmp_path / "imported", data=dataset)
        assert not (tmp_path / "imported").exists()


class TestOwnSnapshots:
    """Snapshots of runs name their images too, so that sampling needs no dataset."""

    def test_training_writes_shape_and_classes(self, tmp_path: Path):
        job = toy_job(tmp_path)
        job = replace(job, facts=replace(job.facts, shape=(1, 4, 4), classes=3))
        outcome, _ = run_job(tmp_path, job=job)
        path = snapshot_path(tmp_path / "snapshots", outcome.images_seen)
        _, facts = read_snapshot(path, "ema")
        assert (facts["shape"], facts["classes"]) == ([1, 4, 4], 3)

    def test_sampling_needs_no_dataset(self, tmp_path: Path, digits_path: Path):
        folder = write_small_run(tmp_path / "runs", digits_path)
        old = the_snapshot(folder)
        facts = json.loads((old.path / FACTS).read_text())
        facts |= {"shape": [1, 8, 8], "classes": 10}
        facts["config"]["data"]["path"] = str(tmp_path / "gone")
        (old.path / FACTS).write_text(json.dumps(facts))
        new = the_snapshot(folder)
        assert (new.digest, new.shape, new.classes) == (old.digest, old.shape, old.classes)
        load_denoiser(new, "ema", device=CPU)
        with pytest.raises(DataError):
            reference_of(new, "train")

    def test_an_older_snapshot_asks_its_dataset(self, tmp_path: Path, digits_path: Path):
        folder = write_small_run(tmp_path / "runs", digits_path)
        file = the_snapshot(folder).path / FACTS
        facts = json.loads(file.read_text())
        for key in ("shape", "classes"):
            facts.pop(key, None)
        facts["config"]["data"]["path"] = str(tmp_path / "gone")
        file.write_text(json.dumps(facts))
        with pytest.raises(DataError, match="gone"):
            the_snapshot(folder)


class TestGuidance:
    def test_it_changes_the_images_and_counts_its_calls(
        self, run: Run, tmp_path: Path, digits_path: Path
    ):
        folder = write_small_run(tmp_path / "runs", digits_path)
        drawn = {}
        for scale in ("1", "4"):
            npz = tmp_path / f"{scale}.npz"
            nfe = 5 if scale == "1" else 10
            code, text, err = run(
                "sample", folder, "--guidance", scale, "--nfe", nfe, "--seeds", "0-3",
                "--npz", npz, "--out", tmp_path / "g.png", "--json",
            )  # fmt: skip
            assert code == 0, err
            assert json.loads(text)["nfe"] == nfe
            with np.load(npz) as arrays:
                drawn[scale] = arrays["images"]
        assert not np.array_equal(drawn["1"], drawn["4"])

    @pytest.mark.parametrize(
        ("scale", "dropout", "warned"), [(4, 0.0, True), (1, 0.0, False), (4, 0.1, False)]
    )
    def test_a_run_that_dropped_no_label_is_warned_of(
        self, run: Run, tmp_path: Path, digits_path: Path, scale: int, dropout: float, warned: bool
    ):
        folder = write_small_run(tmp_path / "runs", digits_path)
        file = the_snapshot(folder).path / FACTS
        facts = json.loads(file.read_text())
        facts["config"]["training"]["label_dropout"] = dropout
        file.write_text(json.dumps(facts))
        drawing = ("sample", folder, "--guidance", scale, "--nfe", 10, "--seeds", "0-1",
                   "--solver", "euler", "--out", tmp_path / "g.png")  # fmt: skip
        code, text, err = run(*drawing)
        assert code == 0, err
        assert ("warning: small dropped no label in training" in text) == warned
        _, text, _ = run(*drawing, "--json")
        assert len(json.loads(text)["warnings"]) == warned

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--guidance", "-1"), "--guidance must be a finite number from 0 on, got -1"),
            (("--guidance", "nan"), "--guidance must be a finite number"),
            (("--guidance-channels", "first_three"), "without --guidance changes nothing"),
            (("--guidance", "2", "--nfe", "9"), "nfe=10"),
            (("--guidance-channels", "two"), "first_three"),
        ],
    )
    def test_what_cannot_work_is_refused(
        self, run: Run, tmp_path: Path, options: tuple[str, ...], message: str
    ):
        code, out, err = run("sample", tmp_path, *options)
        assert code == 2
        assert message in out + err
