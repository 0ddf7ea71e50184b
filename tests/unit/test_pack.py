from __future__ import annotations

import gzip
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from fleetstep.data import sources
from fleetstep.data.image_files import decode_image
from fleetstep.data.manifest import Manifest, load_manifest
from fleetstep.data.pack import pack_digits, pack_idx, pack_images, pack_npz
from fleetstep.data.spec import DataSpec
from fleetstep.data.stream import Stream, verify
from fleetstep.errors import DataError, UsageError

Labels = list[int]


def opened(path: Path) -> Stream:
    return Stream(DataSpec(path=str(path)), seed=0)


def coloured(value: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of six images whose red channel tells them apart: cats 0..5, dogs 100..105."""
    for name, start in (("dogs", 100), ("cats", 0)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for k in range(6):
            (tmp_path / "pets" / name / f"{k}.png").write_bytes(coloured(start + k))
    return tmp_path / "pets"


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


class TestDigits:
    def test_1500_are_trained_on_and_297_held_out(self, digits_path: Path):
        manifest = load_manifest(digits_path)
        assert (manifest.samples("train"), manifest.samples("heldout")) == (1500, 297)
        assert manifest.shape == (1, 8, 8)
        assert not manifest.flip_allowed
        counts = np.add(*(manifest.class_histogram[split] for split in ("train", "heldout")))
        assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    def test_pixels_and_labels_are_scikit_learns(self, digits_path: Path):
        stream, bunch = opened(digits_path), load_digits()
        packed = [stream.split("train"), stream.heldout()]
        images = np.concatenate([batch.images for batch in packed])[:, 0].reshape(-1, 64)
        labels = np.concatenate([batch.labels for batch in packed])
        raw = np.rint(bunch.data * 255 / 16).astype(np.uint8)
        assert sorted(map(bytes, np.c_[images, labels].astype(np.uint8))) == sorted(
            map(bytes, np.c_[raw, bunch.target].astype(np.uint8))
        )
        assert (images.min(), images.max()) == (0, 255)

    def test_packing_twice_gives_the_same_bytes(self, digits_path: Path, tmp_path: Path):
        pack_digits(tmp_path / "again", shard_size=100)
        assert files_of(tmp_path / "again") == files_of(digits_path)

    def test_webdataset_itself_reads_the_shards(self, digits_path: Path):
        shards = sorted(str(path) for path in digits_path.glob("train-*.tar"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
        ours = opened(digits_path).split("train")
        assert [sample["cls"] for sample in read] == ours.labels.tolist()
        theirs = np.stack([sample["npy"] for sample in read]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(theirs, ours.images)
        assert len({sample["__key__"] for sample in read}) == 1500

    def test_progress_counts_to_the_end(self, tmp_path: Path):
        calls: list[tuple[int, int]] = []
        pack_digits(tmp_path / "d", progress=lambda done, total: calls.append((done, total)))
        assert calls == [(500, 1797), (1000, 1797), (1500, 1797), (1797, 1797)]


class TestShards:
    def test_sizes_are_balanced(self, tmp_path: Path):
        manifest = pack_digits(tmp_path / "d", shard_size=400)
        assert [shard.samples for shard in manifest.splits["train"]] == [375] * 4

    def test_fingerprint_knows_shard_sizes_but_not_the_encoding(self, tmp_path: Path):
        """Another shard size is another order; png holds the same pixels."""
        plain, small, png = (
            pack_digits(tmp_path / "plain"),
            pack_digits(tmp_path / "small", shard_size=100),
            pack_digits(tmp_path / "png", encoding="png"),
        )
        assert plain.fingerprint == png.fingerprint != small.fingerprint
        streams = [opened(tmp_path / name) for name in ("plain", "png")]
        np.testing.assert_array_equal(*(stream.batch(7, 50).images for stream in streams))

    def test_fingerprint_changes_with_one_pixel_or_label(self, tmp_path: Path):
        images, labels = np.zeros((10, 4, 4), np.uint8), np.arange(10) % 2
        pixel, label = images.copy(), labels.copy()
        pixel[3, 1, 1], label[3] = 1, 0
        prints = set()
        for k, (x, y) in enumerate([(images, labels), (pixel, labels), (images, label)]):
            np.savez(tmp_path / f"{k}.npz", images=x, labels=y)
            prints.add(pack_npz(tmp_path / f"{k}.npz", tmp_path / f"out{k}").fingerprint)
        assert len(prints) == 3


class TestRefusals:
    def test_an_existing_folder_is_not_touched(self, tmp_path: Path):
        (tmp_path / "d").mkdir()
        with pytest.raises(UsageError, match="exists already"):
            pack_digits(tmp_path / "d")
        assert list((tmp_path / "d").iterdir()) == []

    def test_nothing_is_left_after_an_error(self, tmp_path: Path, folder: Path):
        (folder / "cats" / "9.png").write_bytes(b"not an image")
        with pytest.raises(DataError, match=r"cats/9\.png cannot be decoded"):
            pack_images(folder, tmp_path / "out", size=8, heldout=0)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]

    @pytest.mark.parametrize("heldout", [1.0, 1.5, -0.1, -1, 1797, 5000])
    def test_a_held_out_part_must_leave_something(self, tmp_path: Path, heldout: float):
        with pytest.raises(UsageError, match=f"got {heldout} of 1797"):
            pack_digits(tmp_path / "d", heldout=heldout)

    def test_shards_must_hold_something(self, tmp_path: Path):
        with pytest.raises(UsageError, match="shard_size >= 1"):
            pack_digits(tmp_path / "d", shard_size=0)


class TestHeldOut:
    @pytest.mark.parametrize(("heldout", "count"), [(0, 0), (0.25, 449), (1, 1), (1e-9, 1)])
    def test_a_share_or_a_count(self, tmp_path: Path, heldout: float, count: int):
        manifest = pack_digits(tmp_path / "d", heldout=heldout)
        assert manifest.samples("train") == 1797 - count
        assert ("heldout" in manifest.splits) == (count > 0)

    def test_membership_depends_on_content_not_on_place(self, tmp_path: Path):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 4, 4), dtype=np.uint8)
        held = []
        for k, order in enumerate((np.arange(40), rng.permutation(40))):
            np.savez(tmp_path / f"{k}.npz", x=images[order])
            pack_npz(tmp_path / f"{k}.npz", tmp_path / f"d{k}", heldout=10)
            held.append(sorted(map(bytes, opened(tmp_path / f"d{k}").heldout().images)))
        assert held[0] == held[1]


class TestImages:
    def test_classes_are_the_sorted_folders(self, tmp_path: Path, folder: Path):
        manifest = pack_images(folder, tmp_path / "out", size=8, heldout=2)
        assert manifest.class_names == ("cats", "dogs")
        assert manifest.name == "pets"
        stream = opened(tmp_path / "out")
        for batch in (stream.split("train"), stream.heldout()):
            assert ((batch.images[:, 0, 0, 0] >= 100) == batch.labels).all()

    def test_a_zip_packs_to_the_same_bytes_as_its_folder(self, tmp_path: Path, folder: Path):
        members = {f"wrap/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*.png")}
        extra = {"wrap/README.txt": b"hello", "__MACOSX/wrap/cats/0.png": b"resource fork"}
        archive = zipped(tmp_path / "pets.zip", {**members, **extra})
        pack_images(folder, tmp_path / "a", size=8)
        pack_images(archive, tmp_path / "b", size=8)
        assert files_of(tmp_path / "a") == files_of(tmp_path / "b")

    def test_without_folders_images_are_unlabelled(self, tmp_path: Path):
        archive = zipped(tmp_path / "x.zip", {f"{k}.png": coloured(k) for k in range(4)})
        manifest = pack_images(archive, tmp_path / "out", size=8, heldout=0)
        assert (manifest.classes, manifest.class_histogram) == (0, {"train": ()})
        assert opened(tmp_path / "out").split("train").labels.tolist() == [-1] * 4
        assert verify(tmp_path / "out").ok

    def test_a_mixed_layout_is_refused(self, tmp_path: Path, folder: Path):
        (folder / "stray.png").write_bytes(coloured(1))
        with pytest.raises(DataError, match=r"got stray\.png beside the folder cats"):
            pack_images(folder, tmp_path / "out", size=8)

    @pytest.mark.parametrize("source", ["missing", "empty", "text.txt"])
    def test_a_source_without_images_is_refused(self, tmp_path: Path, source: str):
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.txt").write_text("hello")
        with pytest.raises(DataError, match=source):
            pack_images(tmp_path / source, tmp_path / "out", size=8)

    @pytest.mark.parametrize(
        "name", ["/etc/x.png", "../x.png", "a/../../x.png", "a\\..\\x.png", "C:/x.png"]
    )
    def test_members_that_leave_the_archive_are_refused(self, tmp_path: Path, name: str):
        archive = zipped(tmp_path / "bad.zip", {"a/0.png": coloured(0), name: coloured(1)})
        with pytest.raises(DataError, match="paths must stay inside the archive"):
            pack_images(archive, tmp_path / "out", size=8)

    def test_a_damaged_member_is_named(self, tmp_path: Path):
        archive = zipped(
            tmp_path / "x.zip", {"0.bmp": coloured(0, kind="BMP"), "1.png": coloured(1)}
        )
        damaged = bytearray(archive.read_bytes())
        damaged[100] ^= 1
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=r"0\.bmp cannot be read: Bad CRC-32"):
            pack_images(archive, tmp_path / "out", size=8)

    def test_flips_are_off_unless_asked_for(self, tmp_path: Path, folder: Path):
        assert not pack_images(folder, tmp_path / "a", size=8).flip_allowed
        assert pack_images(folder, tmp_path / "b", size=8, flip=True).flip_allowed


def png_claiming(width: int, height: int) -> bytes:
    data = bytearray(coloured(0))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


class TestDecoding:
    def test_the_centre_is_kept(self):
        pixels = np.zeros((8, 24, 3), np.uint8)
        pixels[:, 8:16] = 200
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        assert (decode_image(file.getvalue(), 8, "center", 3) == 200).all()
        assert (decode_image(file.getvalue(), 4, "center", 1) == 200).all()
        assert 0 < decode_image(file.getvalue(), 8, "stretch", 3).mean() < 200

    def test_halving_averages(self):
        pixels = np.tile(np.array([[0, 100], [200, 100]], np.uint8), (4, 4))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        assert (decode_image(file.getvalue(), 4, "center", 1) == 100).all()

    def test_grey_becomes_three_equal_channels(self):
        file = io.BytesIO()
        Image.new("L", (4, 4), 77).save(file, "PNG")
        assert (decode_image(file.getvalue(), 4, "center", 3) == 77).all()

    def test_exif_rotation_is_ignored(self):
        image = Image.fromarray(np.repeat(np.uint8([[0], [255]]), 16, axis=0).repeat(32, axis=1))
        exif = image.getexif()
        exif[0x0112] = 3
        file = io.BytesIO()
        image.save(file, "PNG", exif=exif)
        assert decode_image(file.getvalue(), 32, "center", 1)[0, 0, 0] == 0

    @pytest.mark.parametrize("pixels", [(12_000, 12_000), (60_000, 60_000)])
    def test_bombs_are_refused(self, pixels: tuple[int, int]):
        """The smaller is one for which Pillow only warns."""
        with pytest.raises(ValueError, match="decompression bomb"):
            decode_image(png_claiming(*pixels), 8, "center", 3)

    def test_sixteen_bits_are_refused(self):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "PNG")
        with pytest.raises(ValueError, match="8 bits a channel, got mode I;16"):
            decode_image(file.getvalue(), 4, "center", 1)

    def test_a_truncated_image_is_refused(self):
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode_image(coloured(3, (64, 64), "JPEG")[:-200], 8, "center", 3)


class TestArrays:
    @pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y")])
    def test_npz(self, tmp_path: Path, keys: tuple[str, str]):
        images = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = labels = np.arange(30) % 3
        np.savez(tmp_path / "rgb.npz", **{keys[0]: images, keys[1]: labels[:, None]})
        manifest = pack_npz(tmp_path / "rgb.npz", tmp_path / "out", heldout=6)
        assert (manifest.shape, manifest.classes) == ((3, 6, 6), 3)
        batch = opened(tmp_path / "out").split("train")
        assert (batch.images[:, 0, 0, 0] == batch.labels).all()
        assert set(map(bytes, batch.images)) <= set(map(bytes, images.transpose(0, 3, 1, 2)))

    def test_a_test_file_is_held_out_whole(self, tmp_path: Path):
        for name, count in (("train", 20), ("test", 7)):
            images = np.full((count, 4, 4), len(name), np.uint8)
            np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(count) % 2)
        manifest = pack_npz(
            tmp_path / "train.npz", tmp_path / "out", heldout_source=tmp_path / "test.npz"
        )
        assert (manifest.samples("train"), manifest.samples("heldout")) == (20, 7)
        assert (opened(tmp_path / "out").heldout().images == 4).all()

    def test_a_test_file_of_another_shape_is_refused(self, tmp_path: Path):
        for name, size in (("train", 4), ("test", 5)):
            np.savez(tmp_path / f"{name}.npz", x=np.zeros((3, size, size), np.uint8))
        with pytest.raises(DataError, match="both files must agree"):
            pack_npz(
                tmp_path / "train.npz", tmp_path / "out", heldout_source=tmp_path / "test.npz"
            )

    BAD: tuple[tuple[dict[str, Any], str], ...] = (
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "got pictures"),
        ({"x": np.zeros((2, 4, 4), np.float32)}, "got float32"),
        ({"x": np.zeros((2, 4, 5), np.uint8)}, "square"),
        ({"x": np.zeros((0, 4, 4), np.uint8)}, "square"),
        ({"x": np.zeros((2, 3, 4, 4), np.uint8)}, "channels must come last"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8)}, r"\(2, 4, 4, 2\)"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3, int)}, "2 integers"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(2)}, "got float64"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([0, -1])}, "got -1 to 0"),
        ({"x": np.array([{}, {}], object)}, "not a readable npz"),
    )

    @pytest.mark.parametrize(("arrays", "message"), BAD)
    def test_other_arrays_are_refused(self, tmp_path: Path, arrays: dict[str, Any], message: str):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(DataError, match=message):
            sources.npz(tmp_path / "bad.npz")

    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04 junk", b"\x80\x04K\x01."])
    def test_other_files_are_refused(self, tmp_path: Path, data: bytes):
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(DataError, match=r"bad\.npz"):
            sources.npz(tmp_path / "bad.npz")


class TestIdx:
    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[..., Path]:
        def write(name: str, magic: int, shape: tuple[int, ...], body: bytes) -> Path:
            data = struct.pack(f">{1 + len(shape)}I", magic, *shape) + body
            path = tmp_path / name
            path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
            return path

        return write

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_mnists_format(self, tmp_path: Path, write: Callable[..., Path], suffix: str):
        pixels = np.repeat(np.arange(20, dtype=np.uint8), 36)
        images = write(f"images{suffix}", 0x803, (20, 6, 6), pixels.tobytes())
        labels = write(f"labels{suffix}", 0x801, (20,), bytes(k % 10 for k in range(20)))
        manifest: Manifest = pack_idx(
            images, labels, tmp_path / "out", heldout_images=images, heldout_labels=labels
        )
        assert (manifest.shape, manifest.classes, manifest.name) == ((1, 6, 6), 10, "out")
        batch = opened(tmp_path / "out").heldout()
        assert (batch.images[:, 0, 3, 3] % 10 == batch.labels).all()
        assert sorted(batch.images[:, 0, 0, 0].tolist()) == list(range(20))

    @pytest.mark.parametrize(
        ("magic", "shape", "size", "message"),
        [
            (0x801, (2, 4, 4), 32, "starting with 00000803, got 00000801"),
            (0x803, (2, 4, 4), 31, "must hold"),
            (0x803, (2, 4, 4), 33, "must hold"),
            (0x803, (2**32 - 1,) * 3, 33, "bytes|cannot be read"),
        ],
    )
    def test_other_files_are_refused(
        self,
        write: Callable[..., Path],
        magic: int,
        shape: tuple[int, ...],
        size: int,
        message: str,
    ):
        with pytest.raises(DataError, match=message):
            sources.idx(write("bad", magic, shape, bytes(size)), None)

    def test_a_truncated_gzip_is_refused(self, tmp_path: Path, write: Callable[..., Path]):
        path = write("bad.gz", 0x803, (2, 4, 4), bytes(32))
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DataError, match="cannot be read"):
            sources.idx(path, None)


def test_everything_is_on_the_disk_before_a_dataset_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, synced = tmp_path / "d", []

    def note(path: Path) -> None:
        synced.append((path.name, out.exists()))

    monkeypatch.setattr("fleetstep.data.pack.sync", note)
    pack_digits(out)
    files = {path.name for path in out.iterdir()} - {"manifest.json"}
    before = [name for name, named in synced if not named]
    assert files < set(before)
    assert before[-1].startswith(".d.partial-")
    assert synced[-1] == (tmp_path.name, True)


def test_held_out_labels_without_images_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="without images"):
        pack_idx(tmp_path / "i", None, tmp_path / "o", heldout_labels=tmp_path / "l")
