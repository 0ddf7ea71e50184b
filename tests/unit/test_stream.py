from __future__ import annotations

import gc
import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fleetstep.data import flips, npy
from fleetstep.data.manifest import load_manifest, make_manifest, save_manifest
from fleetstep.data.pack import pack_digits, pack_npz
from fleetstep.data.shards import ShardReader, decode, encode
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Batch, Stream, prefetched
from fleetstep.errors import DataError


@pytest.fixture
def copy(digits_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_path, tmp_path / "digits"))


@pytest.fixture(scope="module")
def flippable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images with a dark left half and a light right half, each of its own brightness."""
    folder = tmp_path_factory.mktemp("flip")
    images = np.zeros((100, 4, 4), np.uint8)
    images[:, :, 2:] = np.arange(100, 200)[:, None, None]
    np.savez(folder / "x.npz", images=images)
    pack_npz(folder / "x.npz", folder / "packed", flip=True, heldout=10)
    return folder / "packed"


def opened(path: Path, seed: int = 0, window: int = 256, flip: bool | None = None) -> Stream:
    return Stream(DataSpec(path=str(path), window=window, flip=flip), seed=seed)


class TestBatches:
    def test_a_batch_is_what_the_order_says(self, digits_path: Path):
        stream = opened(digits_path)
        train = stream.split("train")
        ids = stream.order.ids(1480, 40)
        batch = stream.batch(1480, 40)
        np.testing.assert_array_equal(batch.images, train.images[ids])
        np.testing.assert_array_equal(batch.labels, train.labels[ids])

    def test_facts(self, digits_path: Path):
        stream = opened(digits_path)
        assert (stream.size, stream.shape, stream.classes, stream.flip) == (
            1500,
            (1, 8, 8),
            10,
            False,
        )
        assert stream.fingerprint == load_manifest(digits_path).fingerprint
        assert len(stream.heldout()) == 297

    def test_a_part_of_a_split(self, digits_path: Path):
        stream = opened(digits_path)
        part, whole = stream.split("heldout", 90, 120), stream.heldout()
        np.testing.assert_array_equal(part.images, whole.images[90:210])
        assert part.first == 90
        assert len(stream.split("heldout", 290, 100)) == 7

    def test_an_empty_batch(self, digits_path: Path):
        assert opened(digits_path).batch(3, 0).images.shape == (0, 1, 8, 8)

    def test_colour_and_png_decode_to_the_same_pixels(self, tmp_path: Path):
        images = np.random.default_rng(0).integers(0, 256, (30, 5, 5, 3), dtype=np.uint8)
        np.savez(tmp_path / "x.npz", images=images)
        for encoding in ("npy", "png"):
            pack_npz(tmp_path / "x.npz", tmp_path / encoding, heldout=0, encoding=encoding)
            got = opened(tmp_path / encoding).split("train").images
            assert sorted(map(bytes, got)) == sorted(map(bytes, images.transpose(0, 3, 1, 2)))

    def test_a_missing_split_names_the_others(self, digits_path: Path):
        with pytest.raises(DataError, match="no split 'test'") as caught:
            Stream(DataSpec(path=str(digits_path), split="test"), seed=0)
        assert caught.value.remedy == "choose one of: train, heldout"


class TestFlips:
    def test_half_of_the_positions_are_mirrored(self, flippable: Path):
        stream = opened(flippable)
        batch = stream.batch(0, 900)
        mirrored = batch.images[:, 0, 0, 0] > 0
        np.testing.assert_array_equal(mirrored, flips.flip_mask(0, 0, 900))
        assert 400 < mirrored.sum() < 500
        plain = opened(flippable, flip=False).batch(0, 900).images
        np.testing.assert_array_equal(batch.images[mirrored], plain[mirrored, :, :, ::-1])
        np.testing.assert_array_equal(batch.images[~mirrored], plain[~mirrored])

    def test_they_depend_on_the_position_alone(self, flippable: Path):
        stream = opened(flippable)
        whole = stream.batch(40, 60).images
        pieces = [stream.batch(40, 7).images, stream.batch(47, 53).images]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)

    def test_an_image_is_not_always_mirrored(self, flippable: Path):
        stream = opened(flippable)
        bright = [
            batch.images.max(axis=(1, 2, 3))
            for batch in (stream.batch(e * 90, 90) for e in range(8))
        ]
        masks = [flips.flip_mask(0, e * 90, 90) for e in range(8)]
        of_one = [mask[b == bright[0][0]][0] for mask, b in zip(masks, bright, strict=True)]
        assert 0 < sum(of_one) < 8

    def test_held_out_images_are_never_mirrored(self, flippable: Path):
        assert (opened(flippable).heldout().images[:, 0, 0, 0] == 0).all()

    def test_datasets_that_forbid_it_refuse(self, digits_path: Path):
        with pytest.raises(DataError, match="mirrored images are not valid"):
            opened(digits_path, flip=True)


class TestReader:
    def test_few_shards_are_open_at_a_time(self, digits_path: Path):
        reader = ShardReader(digits_path, load_manifest(digits_path), "train", max_open=2)
        everything = reader.read(np.arange(1500))
        backwards = reader.read(np.arange(1500)[::-1].copy())
        np.testing.assert_array_equal(everything[0], backwards[0][::-1])
        assert len(reader._open) == 2
        reader.close()
        assert len(reader._open) == 0
        np.testing.assert_array_equal(reader.read(np.array([7]))[0], everything[0][7:8])

    @pytest.mark.parametrize("bad", [-1, 1500])
    def test_foreign_ids_are_refused(self, digits_path: Path, bad: int):
        reader = ShardReader(digits_path, load_manifest(digits_path), "train")
        with pytest.raises(IndexError, match=str(bad)):
            reader.read(np.array([0, bad]))

    def test_threads_may_share_it(self, digits_path: Path):
        reader = ShardReader(digits_path, load_manifest(digits_path), "train", max_open=1)
        images, _ = reader.read(np.arange(1500))
        wrong: list[int] = []

        def work(seed: int) -> None:
            for k in range(40):
                ids = np.random.default_rng([seed, k]).integers(0, 1500, 16)
                if not np.array_equal(reader.read(ids)[0], images[ids]):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_the_header_is_numpys_own(self):
        for shape in [(8, 8, 1), (32, 32, 3), (1024, 1024, 3)]:
            data = encode(np.zeros(shape, np.uint8), "npy")
            assert data == npy.header_of("|u1", shape) + bytes(int(np.prod(shape)))

    def test_another_valid_header_is_read_too(self, copy: Path, monkeypatch: pytest.MonkeyPatch):
        """Shards written by another numpy may pad differently: slower, but the same pixels."""
        expected = opened(copy).split("train").images
        monkeypatch.setattr(npy, "header_of", lambda descr, shape: b"something else")
        np.testing.assert_array_equal(opened(copy).split("train").images, expected)


class TestDamage:
    """A damaged file is an error that names the shard, and the key if there is one."""

    def read(self, path: Path) -> None:
        opened(path).split("train")

    def test_a_missing_shard(self, copy: Path):
        (copy / "train-000003.tar").unlink()
        with pytest.raises(DataError, match=r"train-000003\.tar cannot be read"):
            self.read(copy)

    def test_a_truncated_shard(self, copy: Path):
        shard = copy / "train-000003.tar"
        size = shard.stat().st_size
        shard.write_bytes(shard.read_bytes()[:-512])
        message = (
            rf"train-000003\.tar must be {size:,} bytes as its manifest says, got {size - 512:,}"
        )
        with pytest.raises(DataError, match=message) as caught:
            self.read(copy)
        assert "fleetstep data verify" in caught.value.remedy

    def test_only_the_shards_in_use_are_opened(self, copy: Path):
        (copy / "train-000003.tar").unlink()
        assert len(opened(copy).split("train", 0, 300)) == 300

    def test_a_changed_index(self, copy: Path):
        index = copy / "train-000003.index.npy"
        damaged = bytearray(index.read_bytes())
        damaged[200] ^= 1
        index.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train-000003\.index\.npy does not have the sha256"):
            self.read(copy)

    @pytest.mark.parametrize(("at", "value"), [(0, b"X"), (20, b"X"), (60, b"9")])
    def test_a_damaged_npy_header(self, copy: Path, at: int, value: bytes):
        shard = copy / "train-000003.tar"
        offset = int(np.load(copy / "train-000003.index.npy")[17, 0])
        data = bytearray(shard.read_bytes())
        data[offset + at : offset + at + 1] = value
        shard.write_bytes(data)
        with pytest.raises(
            DataError, match=r"shard train-000003\.tar, sample 000000317 cannot be decoded"
        ):
            self.read(copy)

    def test_a_label_outside_the_classes(self, copy: Path):
        manifest = load_manifest(copy)
        fields = dict(manifest) | {"classes": 9, "class_names": manifest.class_names[:9]}
        fields["class_histogram"] = {"train": (1500, *[0] * 8), "heldout": (297, *[0] * 8)}
        save_manifest(make_manifest(**fields), copy)
        with pytest.raises(
            DataError, match=r"sample 0000000\d\d must have a label below 9, got 9"
        ):
            self.read(copy)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "not a PNG"),
            (b"\x89PNG\r\n\x1a\n" + bytes(30), "8x8 pixels, got 0x0"),
            (encode(np.zeros((9, 8, 1), np.uint8), "png"), "must be 8x8 pixels, got 8x9"),
            (encode(np.zeros((8, 8, 3), np.uint8), "png"), "mode L, got RGB"),
            (encode(np.zeros((8, 8, 1), np.uint8), "png")[:45], "not a readable PNG"),
        ],
    )
    def test_png_that_does_not_decode(self, data: bytes, message: str):
        with pytest.raises(ValueError, match=message):
            decode(data, "png", (8, 8, 1))

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((8, 8), np.uint8), r"must be of shape .*, got \(8, 8\)"),
            (np.zeros((8, 8, 1), np.int8), "descr.: .\\|i1"),
            (np.zeros((8, 9, 1), np.uint8), r"got \(8, 9, 1\)"),
        ],
    )
    def test_npy_of_another_shape(self, array: np.ndarray, message: str):
        with pytest.raises(ValueError, match=message):
            decode(encode(array, "npy"), "npy", (8, 8, 1))


def positions(count: int | None = None) -> Iterator[tuple[int, int]]:
    return ((8 * k, 8) for k in (itertools.count() if count is None else range(count)))


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "fleetstep-prefetch"]


class SlowSource:
    """Notes what was asked for; fails at a chosen position."""

    def __init__(self, seconds: float = 0.0, fails_at: int = -1) -> None:
        self.seconds, self.fails_at, self.asked = seconds, fails_at, 0

    def batch(self, first: int, count: int) -> Batch:
        self.asked += 1
        time.sleep(self.seconds)
        if first == self.fails_at:
            raise DataError(f"sample at {first} is damaged", "repair it")
        return Batch(np.zeros((count, 1, 2, 2), np.uint8), np.zeros(count, np.int64), first)


class TestPrefetch:
    def test_it_gives_the_same_batches_in_order_then_ends(self, digits_path: Path):
        stream = opened(digits_path)
        with prefetched(stream, positions(30), 3, lambda batch: batch.first * 2) as ahead:
            for k, (batch, extra) in enumerate(ahead):
                np.testing.assert_array_equal(batch.images, stream.batch(8 * k, 8).images)
                assert extra == 16 * k
            assert k == 29
            assert next(ahead, None) is None
        assert prefetch_threads() == []

    def test_errors_reach_the_consumer_after_the_good_batches(self):
        ahead = prefetched(SlowSource(fails_at=24), positions(), 2, len)
        assert [next(ahead)[0].first for _ in range(3)] == [0, 8, 16]
        with pytest.raises(DataError, match="sample at 24"):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)
        assert prefetch_threads() == []

    def test_errors_of_the_extra_and_of_the_positions_do_too(self):
        def broken() -> Iterator[tuple[int, int]]:
            yield 0, 8
            raise KeyError("positions")

        with pytest.raises(ZeroDivisionError):
            list(prefetched(SlowSource(), positions(), 2, lambda batch: 1 // 0))
        with pytest.raises(KeyError):
            list(prefetched(SlowSource(), broken(), 2, len))

    def test_no_more_than_depth_is_made_ahead(self):
        source = SlowSource()
        with prefetched(source, positions(), 3, len) as ahead:
            next(ahead)
            time.sleep(0.05)
            # One taken, three in the queue, one waiting to get in.
            assert source.asked == 5

    @pytest.mark.parametrize("taken", [0, 1, 5])
    def test_closing_stops_the_thread(self, taken: int):
        ahead = prefetched(SlowSource(seconds=0.001), positions(), 1, len)
        for _ in range(taken):
            next(ahead)
        ahead.close()
        ahead.close()
        assert prefetch_threads() == []
        assert next(ahead, None) is None

    def test_dropping_it_stops_the_thread(self):
        ahead = prefetched(SlowSource(), positions(), 1, len)
        next(ahead)
        del ahead
        gc.collect()
        deadline = time.monotonic() + 5
        while prefetch_threads() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert prefetch_threads() == []

    def test_waiting_is_measured(self):
        with prefetched(SlowSource(seconds=0.03), positions(3), 1, len) as ahead:
            list(ahead)
        assert 0.06 < ahead.wait_s < 2
        with prefetched(SlowSource(), positions(3), 3, len) as ahead:
            time.sleep(0.05)
            list(ahead)
        assert ahead.wait_s < 0.03

    def test_a_depth_of_zero_is_refused(self):
        with pytest.raises(ValueError, match="depth=0"):
            prefetched(SlowSource(), positions(), 0, len)


def test_streams_share_nothing_but_the_files(digits_path: Path):
    """Two workers' streams give what one gives, batch by batch, across the end of the epoch."""
    alone, workers = opened(digits_path, seed=9), [opened(digits_path, seed=9) for _ in range(2)]
    for first in range(1400, 1700, 32):
        halves = [
            stream.batch(first + 16 * rank, 16).images for rank, stream in enumerate(workers)
        ]
        np.testing.assert_array_equal(np.concatenate(halves), alone.batch(first, 32).images)


def test_the_stream_is_pinned(tmp_path: Path):
    """Golden: labels of the first positions with the default shard size, window and seed 0."""
    golden = json.loads(
        (Path(__file__).parents[1] / "golden" / "digits_manifest.json").read_text()
    )
    pack_digits(tmp_path / "digits")
    batch = Stream(DataSpec(path=str(tmp_path / "digits")), seed=0).batch(0, 32)
    assert batch.labels.tolist() == golden["first_labels"]
