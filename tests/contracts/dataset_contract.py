"""What every dataset that can be packed and streamed must keep."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fleetstep.data.manifest import Manifest, load_manifest
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Batch, Stream, verify


class DatasetContract:
    """Subclasses give `path`, a packed dataset, and get these tests.

    Attributes:
        global_batch: divisible by 1, 2, 3, 4 and 8, and no divisor of the dataset's size, so that
            batches cross the ends of epochs.
    """

    global_batch = 48
    window = 200

    @pytest.fixture
    def path(self) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def manifest(self, path: Path) -> Manifest:
        return load_manifest(path)

    @pytest.fixture
    def stream(self, path: Path) -> Stream:
        return self.open(path)

    def open(self, path: Path, seed: int = 0) -> Stream:
        return Stream(DataSpec(path=str(path), window=self.window), seed=seed)

    def test_it_verifies(self, path: Path, manifest: Manifest):
        report = verify(path)
        assert report.problems == ()
        assert report.samples == sum(manifest.samples(split) for split in manifest.splits)

    def test_each_image_comes_once_an_epoch_for_any_number_of_workers(self, path: Path):
        whole = self.open(path)
        everything = _identities(whole.split("train"))
        for workers in (1, 2, 3, 4, 8):
            streams = [self.open(path) for _ in range(workers)]
            part = self.global_batch // workers
            seen: list[bytes] = []
            for batch in range(-(-2 * whole.size // self.global_batch)):
                for worker, stream in enumerate(streams):
                    first = batch * self.global_batch + worker * part
                    seen += _identities(stream.batch(first, part))
            for epoch in range(2):
                of_epoch = seen[epoch * whole.size : (epoch + 1) * whole.size]
                assert sorted(of_epoch) == sorted(everything), (workers, epoch)

    def test_resume_in_the_middle_gives_the_same_batches(self, path: Path, stream: Stream):
        middle = stream.size + stream.size // 3
        before = [stream.batch(first, 16) for first in range(0, middle, 16)][-1]
        resumed = self.open(path).batch(before.first, 16)
        np.testing.assert_array_equal(resumed.images, before.images)
        np.testing.assert_array_equal(resumed.labels, before.labels)

    def test_another_seed_gives_another_order(self, path: Path, stream: Stream):
        assert _identities(stream.batch(0, 64)) != _identities(
            self.open(path, seed=1).batch(0, 64)
        )

    def test_no_image_is_both_trained_on_and_held_out(self, stream: Stream):
        train, heldout = _pixels(stream.split("train")), _pixels(stream.heldout())
        assert not set(train) & set(heldout)

    def test_histograms_count_the_labels(self, stream: Stream, manifest: Manifest):
        for split, histogram in manifest.class_histogram.items():
            labels = stream.split(split).labels
            assert np.bincount(labels, minlength=manifest.classes).tolist() == list(histogram)

    def test_batches_are_uint8_in_one_piece(self, stream: Stream):
        batch = stream.batch(5, 7)
        assert batch.images.dtype == np.uint8
        assert batch.images.shape == (7, *stream.shape)
        assert batch.images.flags.c_contiguous
        assert batch.labels.dtype == np.int64
        assert batch.first == 5


def _pixels(batch: Batch) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in batch.images]


def _identities(batch: Batch) -> list[bytes]:
    """One value an image and its label; equal images with equal labels are the same."""
    return [
        p + bytes([label]) for p, label in zip(_pixels(batch), batch.labels.tolist(), strict=True)
    ]
