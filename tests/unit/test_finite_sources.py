"""`exact:FOLDER` where a run can stand: found, described, loaded, sampled, and what refuses it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fleetstep.config import AmedExperiment
from fleetstep.data.manifest import FILE_NAME, load_manifest, make_manifest, save_manifest
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Stream
from fleetstep.errors import CheckpointError, DataError, UsageError
from fleetstep.orchestration.amed_preview import preview_amed
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.sample import guidance_warnings
from fleetstep.orchestration.snapshots import (
    find_snapshots,
    load_denoiser,
    load_trained,
    reference_images,
    reference_of,
    source_of,
    track_of,
    trained_experiment,
)
from fleetstep.orchestration.trajectory_report import report_trajectories
from fleetstep.sampling.finite import FiniteDenoiser
from fleetstep.sampling.spec import GuidanceSpec
from small_run import write_small_run

Run = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")


def found(source: object, track: str = "ema") -> SnapshotRef:
    (snapshot,) = find_snapshots([str(source)], which="last", track=track)
    return snapshot


@pytest.fixture
def few(digits_path: Path) -> SnapshotRef:
    return found(f"exact:{digits_path}#150")


@pytest.fixture
def copied(digits_path: Path, tmp_path: Path) -> Path:
    """A copy of the digits, to change."""
    return Path(shutil.copytree(digits_path, tmp_path / "copied"))


class TestFind:
    def test_it_is_described_as_a_network_is(self, digits_path: Path):
        snapshot = found(f"exact:{digits_path}")
        manifest = load_manifest(digits_path)
        assert snapshot == SnapshotRef(
            path=digits_path.resolve(),
            digest=snapshot.digest,
            run="exact-digits",
            images_seen=0,
            shape=(1, 8, 8),
            classes=10,
            data=digits_path.resolve(),
            dataset=manifest.fingerprint,
            kind="exact",
            images=1500,
        )

    def test_a_part_says_how_many_images(self, few: SnapshotRef):
        assert (few.run, few.images) == ("exact-digits-150", 150)

    def test_runs_and_datasets_may_be_mixed(self, digits_path: Path, tmp_path: Path):
        run = write_small_run(tmp_path, digits_path)
        sources = [f"exact:{digits_path}", str(run), f"exact:{digits_path}#150"]
        kinds = [s.kind for s in find_snapshots(sources, which="all", track="ema")]
        assert kinds == ["exact", "snapshot", "exact"]

    def test_any_track_finds_it_and_none_is_named(self, digits_path: Path, tmp_path: Path):
        exact = found(f"exact:{digits_path}", track="ema-slow")
        assert exact == found(f"exact:{digits_path}")
        assert track_of(exact, "ema-slow") == "exact"
        assert track_of(found(write_small_run(tmp_path, digits_path)), "ema") == "ema"

    def test_the_source_of_a_network_finds_it_again(
        self, few: SnapshotRef, digits_path: Path, tmp_path: Path
    ):
        snapshots = (few, found(write_small_run(tmp_path, digits_path)))
        assert snapshots == tuple(found(source_of(snapshot)) for snapshot in snapshots)

    def test_a_home_folder_is_found(self, copied: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HOME", str(copied.parent))
        assert found("exact:~/copied").data == copied.resolve()


class TestDigest:
    def test_it_follows_the_images_and_nothing_else(self, digits_path: Path, copied: Path):
        here = found(f"exact:{digits_path}")
        assert found(f"exact:{copied}").digest == here.digest
        assert found(f"exact:{digits_path}#1500").digest == here.digest
        assert found(f"exact:{digits_path}#150").digest != here.digest

    def test_another_dataset_has_another(self, digits_path: Path, copied: Path):
        change_fingerprint(copied)
        assert found(f"exact:{copied}").digest != found(f"exact:{digits_path}").digest


def change_fingerprint(folder: Path) -> None:
    """As another dataset of the same files would."""
    fields = dict(load_manifest(folder)) | {"flip_allowed": True}
    save_manifest(make_manifest(**{k: v for k, v in fields.items() if k != "fingerprint"}), folder)


class TestLoad:
    def test_it_is_of_the_training_images(self, digits_path: Path):
        train = Stream(DataSpec(path=str(digits_path)), seed=0).split("train")
        denoiser = load_denoiser(found(f"exact:{digits_path}"), "ema", device=CPU)
        generator = torch.Generator().manual_seed(0)
        x_BCHW = torch.randn((20, 1, 8, 8), dtype=torch.float64, generator=generator)
        sigma_B, labels_B = torch.full((20,), 0.8, dtype=torch.float64), torch.arange(20) % 10
        direct = FiniteDenoiser(train.images, train.labels, 10)
        assert torch.equal(denoiser(x_BCHW, sigma_B, labels_B), direct(x_BCHW, 0.8, labels_B))

    def test_a_part_is_spread_evenly(self, few: SnapshotRef, digits_path: Path):
        train = Stream(DataSpec(path=str(digits_path)), seed=0).split("train")
        denoiser = load_denoiser(few, "ema", device=CPU)
        assert isinstance(denoiser, FiniteDenoiser)
        kept = denoiser.pixels_nD.reshape(150, 1, 8, 8).numpy()
        np.testing.assert_array_equal(kept, train.images[::10])
        np.testing.assert_array_equal(denoiser.labels_n.numpy(), train.labels[::10])

    def test_a_dataset_that_changed_since_is_refused(self, copied: Path):
        planned = found(f"exact:{copied}")
        change_fingerprint(copied)
        with pytest.raises(CheckpointError, match="has changed since it was chosen"):
            load_denoiser(planned, "ema", device=CPU)

    def test_its_samples_are_compared_with_its_own_dataset(self, few: SnapshotRef):
        reference = reference_of(few, "heldout")
        assert reference_images(reference, 0, 297).shape == (297, 1, 8, 8)


class TestRefusals:
    def test_nothing_there_says_how_to_pack(self, tmp_path: Path):
        source = f"exact:{tmp_path / 'none'}"
        with pytest.raises(
            DataError, match=r"none is not there.*\n.*data pack digits --out .*none"
        ):
            found(source)

    def test_a_damaged_manifest_is_said_to_be_damaged(self, copied: Path):
        (copied / FILE_NAME).write_text("{")
        with pytest.raises(DataError, match="is not JSON"):
            found(f"exact:{copied}")

    @pytest.mark.parametrize("end", ["#0", "#-1", "#many", "#", "#1#2"])
    def test_a_number_of_images_that_is_none(self, digits_path: Path, end: str):
        with pytest.raises(UsageError, match=r"N from 1 on, got .*\n.*exact:data/digits#500"):
            found(f"exact:{digits_path}{end}")

    def test_no_folder(self):
        with pytest.raises(UsageError, match="got 'exact:'"):
            found("exact:")

    def test_more_images_than_there_are(self, digits_path: Path):
        with pytest.raises(
            DataError, match=r"#1501 asks for more images than the 1500.*\n.*#1500"
        ):
            found(f"exact:{digits_path}#1501")

    def test_too_few_images_for_the_classes(self, digits_path: Path):
        with pytest.raises(DataError, match=r"with 5 images has none of class '\d'.*\n.*use more"):
            found(f"exact:{digits_path}#5")

    def test_a_dataset_without_the_split(self, copied: Path):
        fields = dict(load_manifest(copied))
        for name in ("splits", "class_histogram"):
            fields[name] = {"heldout": fields[name]["heldout"]}
        save_manifest(
            make_manifest(**{k: v for k, v in fields.items() if k != "fingerprint"}), copied
        )
        with pytest.raises(DataError, match=r"needs split 'train', and the dataset has heldout"):
            found(f"exact:{copied}")

    def test_what_needs_a_trained_network_says_so(self, few: SnapshotRef):
        for refused in (
            lambda: trained_experiment(few),
            lambda: load_trained(few, "ema", device=CPU),
        ):
            with pytest.raises(
                CheckpointError, match=r"exact:.*#150 is an exact denoiser.*\n.*run"
            ):
                refused()


class TestVerbs:
    def test_sample_draws_images_of_the_dataset(self, run: Run, digits_path: Path, tmp_path: Path):
        out, npz = tmp_path / "grid.png", tmp_path / "images.npz"
        options = ("--solver", "heun", "--nfe", "35", "--seeds", "0-19", "--json")
        code, text, _ = run("sample", f"exact:{digits_path}", *options, "--out", out, "--npz", npz)
        assert code == 0
        assert json.loads(text)["snapshot"] == f"exact:{digits_path.resolve()}#1500"
        assert out.is_file()
        train = Stream(DataSpec(path=str(digits_path)), seed=0).split("train")
        with np.load(npz, allow_pickle=False) as drawn:
            for image, label in zip(drawn["images"], drawn["labels"], strict=True):
                (known,) = np.flatnonzero(
                    (train.images == image.transpose(2, 0, 1)).all((1, 2, 3))
                )
                assert train.labels[known] == label

    def test_sample_takes_any_track_and_few_calls(
        self, run: Run, digits_path: Path, tmp_path: Path
    ):
        options = ("--solver", "dpmpp_2m", "--nfe", "9", "--seeds", "0-3", "--ema", "slow")
        code, text, _ = run(
            "sample", f"exact:{digits_path}", *options, "--out", tmp_path / "grid.png"
        )
        assert code == 0
        assert "4 images by dpmpp" in text

    def test_sample_without_the_dataset_is_one_error(self, run: Run, tmp_path: Path):
        code, _, err = run("sample", f"exact:{tmp_path / 'none'}")
        assert code == 1
        assert "fleetstep data pack digits --out" in err
        assert "Traceback" not in err

    def test_guidance_needs_no_warning(self, few: SnapshotRef):
        assert guidance_warnings(few, GuidanceSpec(scale=2.0)) == []

    def test_trajectories_are_measured(self, few: SnapshotRef, tmp_path: Path):
        report = report_trajectories(
            Path(source_of(few)), out=tmp_path / "out", samples=16, batch=16, points=11
        )
        assert (report.record["run"], report.record["track"]) == ("exact-digits-150", "exact")
        # A trajectory lies close to a plane, whoever made the denoiser (Zhou et al. 2024, fig. 4).
        assert max(report.record["views"]["raw"]["error_mean"][1]) < 0.1

    def test_a_predictor_cannot_be_trained_for_it(
        self, run: Run, few: SnapshotRef, tmp_path: Path
    ):
        training = {"points": 3, "batch": 4, "images": 8}
        settings = {"name": "p", "run": source_of(few), "training": training}
        with pytest.raises(CheckpointError, match="no network with bottleneck features"):
            preview_amed(AmedExperiment.model_validate(settings))
        preset = tmp_path / "amed.yaml"
        preset.write_text(json.dumps(settings | {"storage": str(tmp_path / "runs")}))
        for options in ((), ("--dry-run",)):
            code, _, err = run("amed", "train", preset, *options)
            assert code == 2
            assert "is an exact denoiser, which has no bottleneck features" in err
        assert not (tmp_path / "runs").exists()
