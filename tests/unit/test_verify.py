from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetstep.data.manifest import load_manifest, make_manifest, save_manifest
from fleetstep.data.stream import verify
from fleetstep.data.tar_index import TarIndex, members
from fleetstep.errors import DataError

SHARD = "train-000003.tar"
INDEX = "train-000003.index.npy"


@pytest.fixture
def copy(digits_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_path, tmp_path / "digits"))


def change(path: Path, at: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


def agree(folder: Path, **facts: Any) -> None:
    """Rewrite the manifest so that its hashes are those of the files, as a forger would."""
    manifest = load_manifest(folder)
    splits = {
        split: tuple(
            shard.model_copy(
                update={
                    "bytes": (folder / shard.file).stat().st_size,
                    "sha256": hashlib.sha256((folder / shard.file).read_bytes()).hexdigest(),
                    "index_sha256": hashlib.sha256(
                        (folder / shard.index_file).read_bytes()
                    ).hexdigest(),
                }
            )
            for shard in shards
        )
        for split, shards in manifest.splits.items()
    }
    save_manifest(make_manifest(**dict(manifest) | {"splits": splits} | facts), folder)


def problems(folder: Path) -> list[str]:
    return [str(problem) for problem in verify(folder).problems]


def offset_of(folder: Path, row: int) -> int:
    return int(np.load(folder / INDEX)[row, 0])


def test_a_good_dataset_has_no_problems(digits_path: Path):
    calls: list[tuple[int, int]] = []
    report = verify(digits_path, lambda done, total: calls.append((done, total)))
    assert (report.ok, report.shards, report.samples) == (True, 18, 1797)
    assert calls == [(k, 18) for k in range(1, 19)]


def test_a_missing_shard(copy: Path):
    (copy / SHARD).unlink()
    assert problems(copy) == [f"{SHARD}: cannot be read: No such file or directory"]


def test_a_missing_index(copy: Path):
    (copy / INDEX).unlink()
    assert problems(copy) == [
        f"{SHARD}: its index {INDEX} cannot be read: No such file or directory"
    ]


def test_an_empty_shard(copy: Path):
    (copy / SHARD).write_bytes(b"")
    assert problems(copy) == [f"{SHARD}: must be 215,040 bytes, got 0"]


def test_a_folder_in_place_of_a_shard(copy: Path):
    (copy / SHARD).unlink()
    (copy / SHARD).mkdir()
    assert problems(copy)[-1] == f"{SHARD}: cannot be read: Is a directory"


def test_a_shard_that_cannot_be_mapped(copy: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fleetstep.data.verify.mmap.mmap", fail)
    assert f"{SHARD}: cannot be read: Input/output error" in problems(copy)


def test_a_truncated_shard(copy: Path):
    data = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(data[:100_000])
    assert problems(copy) == [
        f"{SHARD}: must be 215,040 bytes, got 100,000",
        f"{SHARD}: the archive is truncated in 000000348.npy, at 100000 of at least 100032 bytes",
    ]


def test_one_changed_pixel(copy: Path):
    change(copy / SHARD, offset_of(copy, 17) + 150, b"\xee")
    assert problems(copy) == [
        f"{SHARD}: its sha256 is not the one in the manifest: the file was changed or damaged"
    ]


def test_one_changed_pixel_behind_a_right_hash(copy: Path):
    change(copy / SHARD, offset_of(copy, 17) + 150, b"\xee")
    agree(copy)
    assert problems(copy) == [
        f"{SHARD}: its pixels or labels are not those of the manifest's content_sha256"
    ]


def test_a_header_overwritten_with_zeros(copy: Path):
    """tarfile takes it for the end of the archive and says nothing."""
    change(copy / SHARD, offset_of(copy, 17) - 512, bytes(512))
    agree(copy)
    with tarfile.open(copy / SHARD) as archive:
        assert len(archive.getnames()) == 2 * 17 + 1
    [problem] = problems(copy)
    assert "goes on after its end-of-archive marker" in problem


def test_a_damaged_header(copy: Path):
    header = offset_of(copy, 17) - 512
    change(copy / SHARD, header + 3, b"x")
    agree(copy)
    assert problems(copy) == [
        f"{SHARD}: the archive has a damaged header at byte {header}: its checksum does not match"
    ]


def test_all_damaged_samples_are_listed_with_their_keys(copy: Path):
    for row in (17, 40):
        change(copy / SHARD, offset_of(copy, row), b"junk")
    agree(copy)
    report = verify(copy)
    assert [(p.shard, p.key) for p in report.problems] == [
        (SHARD, "000000317"),
        (SHARD, "000000340"),
    ]
    assert all("not a readable npy array" in p.reason for p in report.problems)
    assert report.samples == 1795


def test_an_index_that_is_not_the_archives(copy: Path):
    rows = np.load(copy / INDEX)
    rows[[3, 4]] = rows[[4, 3]]
    np.save(copy / INDEX, rows)
    assert problems(copy) == [
        f"{SHARD}: the sha256 of its index {INDEX} is not the one in the manifest",
        f"{SHARD}: its index does not match the archive",
    ]


def test_a_label_outside_the_classes(copy: Path):
    row = int(np.flatnonzero(np.load(copy / INDEX)[:, 2] == 9)[0])
    manifest = load_manifest(copy)
    histogram = {
        split: (sum(h[:1]) + h[9], *h[1:9]) for split, h in manifest.class_histogram.items()
    }
    agree(copy, classes=9, class_names=manifest.class_names[:9], class_histogram=histogram)
    nines = sum(h[9] for h in manifest.class_histogram.values())
    found = problems(copy)
    assert f"{SHARD}, sample {300 + row:09d}: its label must be in [0, 9), got 9" in found
    assert len([line for line in found if "got 9" in line]) == nines


def test_a_wrong_histogram(copy: Path):
    raw = json.loads((copy / "manifest.json").read_text())
    histogram = raw["class_histogram"]["heldout"]
    right = str(histogram)
    histogram[0], histogram[1] = histogram[0] + 1, histogram[1] - 1
    (copy / "manifest.json").write_text(json.dumps(raw))
    assert problems(copy) == [
        f"manifest, split heldout: class_histogram must be {right}, got {histogram}"
    ]


def test_problems_of_several_shards_come_together(copy: Path):
    (copy / SHARD).unlink()
    change(copy / "train-000005.tar", 9000, b"\x01\x02\x03")
    (copy / "heldout-000000.tar").write_bytes(b"")
    assert len({problem.split(":")[0] for problem in problems(copy)}) == 3


def test_a_folder_without_manifest_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="not a packed dataset"):
        verify(tmp_path)


def tar(entries: list[tuple[str, bytes]], **header: Any) -> memoryview:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in header.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return memoryview(file.getvalue())


class TestTarIndex:
    def test_it_finds_what_tarfile_finds(self, digits_path: Path):
        data = (digits_path / SHARD).read_bytes()
        with tarfile.open(digits_path / SHARD) as archive:
            expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
        assert list(members(memoryview(data), SHARD)) == expected

    def test_members_may_come_in_any_order(self):
        view = tar([("a.npy", b"xy"), ("a.cls", b"3"), ("b.cls", b"12"), ("b.npy", b"")])
        assert TarIndex.scan(view, "npy", "s").rows.tolist() == [[512, 2, 3], [3072 + 512, 0, 12]]

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([("a.npy", b""), ("a.cls", b"1"), ("b.npy", b"")], "sample b has no label"),
            ([("a.npy", b""), ("a.cls", b"1"), ("b.cls", b"1")], "sample b has no image"),
            ([("a.npy", b""), ("a.npy", b"")], "holds a.npy twice"),
            ([("a.npy", b""), ("a.cls", b"1"), ("a.cls", b"1")], "holds a.cls twice"),
            ([("a.jpg", b"")], "got a.jpg"),
            ([("a.npy", b""), ("a.cls", b"-1")], "decimal number, got b'-1'"),
            ([("a.npy", b""), ("a.cls", b"")], "decimal number"),
            ([("a.npy", b""), ("a.cls", b"9" * 30)], "decimal number"),
            ([("d" * 120 + "/a.npy", b"")], "names up to 100 characters"),
        ],
    )
    def test_other_contents_are_refused(self, entries: list[tuple[str, bytes]], message: str):
        with pytest.raises(DataError, match=message):
            TarIndex.scan(tar(entries), "npy", "s.tar")

    def test_links_are_refused(self):
        view = tar([("a.npy", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")
        with pytest.raises(DataError, match="only plain members"):
            TarIndex.scan(view, "npy", "s.tar")

    @pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024, 1300])
    def test_every_truncation_is_noticed(self, keep: int):
        view = tar([("a.npy", b"x" * 300), ("b.npy", b"y" * 300)])
        with pytest.raises(DataError, match="truncated"):
            TarIndex.scan(view[:keep], "npy", "s.tar")

    @pytest.mark.parametrize(
        "data", [b"", b"junk", np.zeros(3).tobytes()], ids=["empty", "junk", "raw"]
    )
    def test_an_index_that_is_no_npy_is_refused(self, data: bytes):
        with pytest.raises(DataError, match=r"the index of s\.tar is damaged"):
            TarIndex.from_bytes(data, "s.tar")

    @pytest.mark.parametrize("rows", [np.zeros((2, 4), int), np.int64(3)])
    def test_an_index_of_another_form_is_refused(self, rows: np.ndarray):
        file = io.BytesIO()
        np.save(file, rows)
        with pytest.raises(DataError, match=r"must be int64 \[n, 3\]"):
            TarIndex.from_bytes(file.getvalue(), "s.tar")

    def test_bytes_and_back(self):
        index = TarIndex(np.arange(12, dtype=np.int64).reshape(4, 3))
        np.testing.assert_array_equal(TarIndex.from_bytes(index.to_bytes(), "s").rows, index.rows)


Change = Callable[[Path], None]


@pytest.mark.parametrize("seed", range(20))
def test_no_flipped_bit_goes_unnoticed(copy: Path, seed: int):
    """Whichever of the dataset's files it is in, and wherever."""
    rng = np.random.default_rng(seed)
    path = sorted(copy.iterdir())[rng.integers(len(list(copy.iterdir())))]
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    if path.name == "manifest.json":
        return
    assert any(path.name.split(".")[0] in problem for problem in problems(copy))
