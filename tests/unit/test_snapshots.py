"""Snapshots found in run folders, and the denoisers and reference sets that follow from them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fleetstep.errors import CheckpointError, DataError
from fleetstep.networks.build import build_network
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.snapshots import (
    build_denoiser,
    find_snapshots,
    load_denoiser,
    reference_images,
    reference_of,
)
from fleetstep.training.snapshot import FACTS
from small_run import small_experiment, write_small_run

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path, digits_path: Path) -> Path:
    return write_small_run(tmp_path, digits_path)


def change_facts(snapshot: Path, **changes: Any) -> None:
    facts = json.loads((snapshot / FACTS).read_text())
    (snapshot / FACTS).write_text(json.dumps(facts | changes))


def found(run: Path) -> SnapshotRef:
    (snapshot,) = find_snapshots([str(run)], which="last", track="ema")
    return snapshot


class TestFind:
    def test_a_run_gives_its_last_snapshot_or_all_in_order(
        self, tmp_path: Path, digits_path: Path
    ):
        for images in (12_800, 0, 3200):
            run = write_small_run(tmp_path, digits_path, images_seen=images)
        seen = [s.images_seen for s in find_snapshots([str(run)], which="all", track="ema")]
        assert seen == [0, 3200, 12_800]
        assert found(run).images_seen == 12_800

    def test_a_snapshot_folder_is_itself(self, run: Path):
        assert found(run / "snapshots" / "images-000003200") == found(run)

    def test_an_unfinished_snapshot_is_none(self, run: Path):
        shutil.copytree(
            run / "snapshots/images-000003200", run / "snapshots/.images-000006400.tmp"
        )
        assert found(run).images_seen == 3200

    def test_a_folder_without_snapshots_is_refused_with_what_to_name(self, tmp_path: Path):
        with pytest.raises(CheckpointError, match=r"neither a run folder.*\n.*name a folder such"):
            found(tmp_path)

    def test_an_unknown_track_is_refused_with_those_there_are(self, run: Path):
        with pytest.raises(CheckpointError, match=r"no EMA track 'slow'.*\n.*ema"):
            find_snapshots([str(run)], which="last", track="slow")

    def test_another_dataset_under_a_run_is_refused(self, run: Path):
        change_facts(found(run).path, dataset="0" * 64)
        with pytest.raises(DataError, match=r"was trained on dataset 000000000000"):
            found(run)


class TestDigest:
    def test_a_run_that_is_moved_keeps_it(self, run: Path, tmp_path: Path):
        before = found(run)
        after = found(Path(shutil.move(run, tmp_path / "moved")))
        assert after.path != before.path
        assert after.digest == before.digest

    def test_other_weights_or_another_preconditioning_change_it(
        self, run: Path, tmp_path: Path, digits_path: Path
    ):
        digests = {found(run).digest}
        digests.add(found(write_small_run(tmp_path / "b", digits_path, seed=1)).digest)
        path = found(run).path
        config = json.loads((path / FACTS).read_text())["config"]
        change_facts(path, config=config | {"strategies": [{"kind": "fdm"}]})
        digests.add(found(run).digest)
        assert len(digests) == 3


class TestDenoiser:
    def test_it_holds_the_snapshots_weights_and_does_not_train(self, run: Path, digits_path: Path):
        denoiser = load_denoiser(found(run), "ema", device=CPU)
        assert not denoiser.training
        assert not any(p.requires_grad for p in denoiser.parameters())
        experiment = small_experiment(run.parent, digits_path)
        fresh = build_network(experiment.network, resolution=8, channels=1, classes=10, seed=0)
        x_BCHW = torch.linspace(-1, 1, 3 * 64, dtype=torch.float64).view(3, 1, 8, 8)
        labels_B = torch.tensor([0, 1, 2])
        with torch.inference_mode():
            ours = denoiser(x_BCHW, 0.5, labels_B)
            again = load_denoiser(found(run), "ema", device=CPU)(x_BCHW, 0.5, labels_B)
            start = build_denoiser(experiment, (1, 8, 8), 10, fresh.state_dict(), device=CPU)
            untrained = start(x_BCHW, 0.5, labels_B)
        assert torch.equal(ours, again)
        assert not torch.allclose(ours, untrained)

    def test_a_snapshot_that_changed_since_the_plan_is_refused(
        self, run: Path, tmp_path: Path, digits_path: Path
    ):
        planned = found(run)
        other = write_small_run(tmp_path / "other", digits_path, seed=1)
        shutil.rmtree(planned.path)
        shutil.copytree(found(other).path, planned.path)
        with pytest.raises(CheckpointError, match="has changed since it was chosen"):
            load_denoiser(planned, "ema", device=CPU)


class TestReference:
    def test_it_is_the_split_in_manifest_order(self, run: Path):
        reference = reference_of(found(run), "heldout")
        assert reference.samples == 297
        whole = reference_images(reference, 0, 297)
        assert whole.shape == (297, 1, 8, 8)
        np.testing.assert_array_equal(reference_images(reference, 200, 97), whole[200:])

    def test_an_unknown_split_is_refused_with_those_there_are(self, run: Path):
        with pytest.raises(
            DataError, match=r"no split 'test'.*\n.*(train, heldout|heldout, train)"
        ):
            reference_of(found(run), "test")

    def test_a_dataset_that_changed_since_the_plan_is_refused(self, run: Path):
        reference = replace(reference_of(found(run), "train"), fingerprint="0" * 64)
        with pytest.raises(DataError, match="is not the one that the sweep was planned for"):
            reference_images(reference, 0, 1)
