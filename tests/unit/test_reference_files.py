"""Reference statistics of EDM, ADM and clean-fid: round trips, their own readers, refusals."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetstep.errors import DataError
from fleetstep.evaluation import reference_files
from fleetstep.evaluation.metrics import Gaussian, gaussian_distance
from fleetstep.evaluation.moments import Moments
from fleetstep.evaluation.reference_files import (
    Form,
    Statistics,
    read_statistics,
    statistics_of,
    write_statistics,
)
from lcg_inputs import streaming_features, streaming_reference

REFERENCE = streaming_reference().astype(np.float32)
MU, SIGMA = REFERENCE.mean(0, np.float64), np.cov(REFERENCE.astype(np.float64), rowvar=False)

SKEW = 0.1 * (np.triu(np.ones((16, 16))) - np.tril(np.ones((16, 16))))
"""Leaves the symmetric part of a matrix, and so its quadratic form, as it is."""


def spatial() -> tuple[Any, Any]:
    return MU[:7] * 2, SIGMA[:7, :7] * 3


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("form", ["edm", "adm", "clean-fid-kid"])
def test_round_trip(form: Form, tmp_path: Path):
    found = statistics_of(REFERENCE)
    written = Statistics(
        mean_D=found.mean_D,
        covariance_DD=found.covariance_DD,
        n=found.n,
        features_mD=found.features_mD,
        spatial=spatial(),
    )
    path = tmp_path / "reference.npz"
    sha256 = write_statistics(path, written, form)
    read = read_statistics(path)
    assert (read.form, read.n) == (form, 1500)
    assert read.sha256 == sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert np.array_equal(read.mean_D, written.mean_D)
    assert np.array_equal(read.covariance_DD, written.covariance_DD)
    if form == "clean-fid-kid":
        assert read.features_mD is not None
        assert np.array_equal(read.features_mD, REFERENCE)
    else:
        assert read.features_mD is None
    if form == "adm":
        assert read.spatial is not None
        assert all(map(np.array_equal, read.spatial, spatial()))
    else:
        assert read.spatial is None


def test_equal_statistics_give_equal_bytes(tmp_path: Path):
    digests = {
        write_statistics(tmp_path / name, statistics_of(REFERENCE), "edm") for name in ("a", "b")
    }
    assert len(digests) == 1


def test_read_by_the_others_way_the_distance_is_the_same(tmp_path: Path):
    """EDM and clean-fid: `mu` and `sigma` of np.load, and the square root of a product."""
    from scipy.linalg import sqrtm

    path = tmp_path / "reference.npz"
    write_statistics(path, statistics_of(REFERENCE), "edm")
    with np.load(path) as file:
        mu, sigma = file["mu"], file["sigma"]
    sample = streaming_features().astype(np.float64)
    s_mu, s_sigma = sample.mean(0), np.cov(sample, rowvar=False)
    root = np.real(sqrtm(s_sigma @ sigma))
    theirs = np.square(s_mu - mu).sum() + np.trace(s_sigma + sigma - 2 * root)
    read = read_statistics(path)
    ours = gaussian_distance(
        Gaussian(read.mean_D, read.covariance_DD),
        Gaussian.of(Moments.of(streaming_features())),
    )
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours > 0.01


class TestFilesOfOthers:
    def test_edm_and_clean_fid(self, tmp_path: Path):
        """`np.savez(mu=, sigma=)`, and `np.savez_compressed` of the same."""
        path = saved(tmp_path / "cifar10-32x32.npz", mu=MU, sigma=SIGMA)
        read = read_statistics(path)
        assert (read.form, read.n, read.features_mD) == ("edm", 0, None)
        assert np.array_equal(read.mean_D, MU)
        assert np.array_equal(read.covariance_DD, SIGMA)
        np.savez_compressed(tmp_path / "clean.npz", mu=MU, sigma=SIGMA)
        assert np.array_equal(read_statistics(tmp_path / "clean.npz").covariance_DD, SIGMA)

    def test_adm_reference_batches_hold_images_which_are_left_alone(self, tmp_path: Path):
        mu_s, sigma_s = spatial()
        images = np.zeros((4, 8, 8, 3), np.uint8)
        path = tmp_path / "VIRTUAL_imagenet.npz"
        np.savez(path, arr_0=images, mu=MU, sigma=SIGMA, mu_s=mu_s, sigma_s=sigma_s)
        read = read_statistics(path)
        assert read.form == "adm"
        assert read.spatial is not None
        assert np.array_equal(read.spatial[1], sigma_s)

    def test_clean_fids_kid_features_give_the_moments_too(self, tmp_path: Path):
        path = tmp_path / "custom_kid.npz"
        np.savez_compressed(path, feats=REFERENCE)
        read = read_statistics(path)
        assert (read.form, read.n) == ("clean-fid-kid", 1500)
        np.testing.assert_allclose(read.mean_D, MU, atol=1e-6)
        np.testing.assert_allclose(read.covariance_DD, SIGMA, atol=1e-4)

    def test_float32_statistics_pass(self, tmp_path: Path):
        """Of fewer images than features: eigenvalues that are zero but for rounding."""
        few = np.cov(REFERENCE[:9], rowvar=False)
        path = saved(tmp_path / "f.npz", mu=MU.astype(np.float32), sigma=few.astype(np.float32))
        read = read_statistics(path)
        assert read.covariance_DD.dtype == np.float64
        assert np.linalg.eigvalsh(read.covariance_DD).min() < 0


class _Runs:
    """Pickled, it opens a file for writing when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def _packed(path: Path, method: int, shape: tuple[int, ...]) -> Path:
    """mu and sigma by that compression; mu says that it has `shape`."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, array, said in (("mu", MU, shape), ("sigma", SIGMA, SIGMA.shape)):
            buffer = io.BytesIO()
            facts = {"descr": "<f8", "fortran_order": False, "shape": said}
            np.lib.format.write_array_header_1_0(buffer, facts)
            file.writestr(f"{name}.npy", buffer.getvalue() + array.tobytes())
    return path


def _with_field(content: bytes, local: int, central: int, change: Callable[[int], int]) -> bytes:
    """A zip with one byte changed in every member's local and central header."""
    changed = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        start = 0
        while (start := changed.find(mark, start)) >= 0:
            changed[start + offset] = change(changed[start + offset])
            start += 4
    return bytes(changed)


class TestRefusals:
    @pytest.mark.parametrize("name", ["mu", "sigma", "feats", "n"])
    def test_arrays_of_objects_are_not_unpickled(self, name: str, tmp_path: Path):
        evil = np.empty((1,), object)
        evil[0] = _Runs(tmp_path / "ran")
        path = saved(tmp_path / "evil.npz", **{"mu": MU, "sigma": SIGMA, name: evil})
        with pytest.raises(
            DataError, match=r"cannot be read as an \.npz(.|\n)*nothing is unpickled"
        ):
            read_statistics(path)
        assert not (tmp_path / "ran").exists()

    def test_edm2s_pickle(self, tmp_path: Path):
        path = tmp_path / "img512.pkl"
        path.write_bytes(pickle.dumps({"fid": {"mu": MU, "sigma": SIGMA}}))
        with pytest.raises(DataError, match=r"is a pickle(.|\n)*numpy\.savez\(\"ref\.npz\""):
            read_statistics(path)

    def test_a_pickle_by_another_name_is_not_unpickled(self, tmp_path: Path):
        path = tmp_path / "reference.npz"
        path.write_bytes(pickle.dumps(_Runs(tmp_path / "ran")))
        with pytest.raises(DataError, match="cannot be read"):
            read_statistics(path)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, r"but holds arr_0\n.*not one of images"),
            ({"mu": MU}, "must hold mu and sigma"),
            ({"mu": MU, "sigma": SIGMA[:3, :3]}, r"got \(16,\) and \(3, 3\)"),
            ({"mu": MU[:, None], "sigma": SIGMA}, r"got \(16, 1\)"),
            ({"mu": MU, "sigma": SIGMA * np.nan}, "sigma .* must be finite"),
            ({"mu": MU + np.inf, "sigma": SIGMA}, "mu .* must be finite"),
            ({"mu": np.array(["a"] * 16), "sigma": SIGMA}, "must be finite numbers, got <U1"),
            ({"mu": MU, "sigma": SIGMA + SKEW}, r"differs from its transpose by 0\.2"),
            ({"mu": MU, "sigma": SIGMA - np.eye(16)}, "must be a covariance"),
            ({"mu": MU, "sigma": SIGMA, "mu_s": MU}, "mu_s without sigma_s"),
            ({"mu": MU, "sigma": SIGMA, "n": np.array(1.5)}, "must be the number of images"),
            ({"feats": MU}, "two or more images"),
            ({"feats": REFERENCE[:1]}, "two or more images"),
            ({"feats": REFERENCE * np.inf}, "finite"),
        ],
    )
    def test_other_contents(self, arrays: dict[str, Any], message: str, tmp_path: Path):
        with pytest.raises(DataError, match=message):
            read_statistics(saved(tmp_path / "other.npz", **arrays))

    @pytest.mark.parametrize("damage", [lambda c: c[:-200], lambda c: c[:40], lambda _: b""])
    def test_a_damaged_file(self, damage: Callable[[bytes], bytes], tmp_path: Path):
        path = saved(tmp_path / "cut.npz", mu=MU, sigma=SIGMA)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=r"cannot be read as an \.npz"):
            read_statistics(path)

    def test_a_flipped_bit(self, tmp_path: Path):
        path = tmp_path / "flipped.npz"
        write_statistics(path, statistics_of(REFERENCE), "edm")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as an \.npz"):
            read_statistics(path)

    @pytest.mark.parametrize(
        "change",
        [
            (zipfile.ZIP_LZMA, lambda c: c[:70] + bytes(b ^ 0x5A for b in c[70:110]) + c[110:]),
            (zipfile.ZIP_DEFLATED, lambda c: _with_field(c, 6, 8, lambda flags: flags | 1)),
            (zipfile.ZIP_DEFLATED, lambda c: _with_field(c, 8, 10, lambda _: 97)),
        ],
        ids=["lzma", "encrypted", "unknown compression"],
    )
    def test_what_cannot_be_unpacked(
        self, change: tuple[int, Callable[[bytes], bytes]], tmp_path: Path
    ):
        method, damage = change
        path = _packed(tmp_path / "odd.npz", method, MU.shape)
        assert np.array_equal(read_statistics(path).mean_D, MU)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=r"cannot be read as an \.npz"):
            read_statistics(path)

    def test_an_array_that_says_it_is_huge(self, tmp_path: Path):
        path = _packed(tmp_path / "huge.npz", zipfile.ZIP_DEFLATED, (10**13,))
        with pytest.raises(DataError, match=r"cannot be read as an \.npz"):
            read_statistics(path)

    def test_what_would_fill_the_memory_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        path = tmp_path / "bomb.npz"
        np.savez_compressed(path, mu=MU, sigma=SIGMA, feats=np.zeros((100_000, 8)))
        assert path.stat().st_size < 20_000
        monkeypatch.setattr(reference_files, "LARGEST", 100_000)
        with pytest.raises(
            DataError, match=r"may take 100,000 bytes unpacked, and would take 6,4"
        ):
            read_statistics(path)
        # Other arrays are left alone, however large.
        np.savez_compressed(path, mu=MU, sigma=SIGMA, arr_0=np.zeros((100_000, 8)))
        assert read_statistics(path).form == "edm"

    def test_a_single_array(self, tmp_path: Path):
        np.save(tmp_path / "mu.npy", MU)
        with pytest.raises(DataError, match="single array"):
            read_statistics(tmp_path / "mu.npy")

    def test_a_missing_file(self, tmp_path: Path):
        with pytest.raises(DataError, match=r"no reference statistics at .*nowhere"):
            read_statistics(tmp_path / "nowhere.npz")

    def test_what_is_not_known_cannot_be_written(self, tmp_path: Path):
        bare = Statistics(mean_D=MU, covariance_DD=SIGMA)
        with pytest.raises(DataError, match="features themselves"):
            write_statistics(tmp_path / "a.npz", bare, "clean-fid-kid")
        with pytest.raises(DataError, match="mu_s and sigma_s"):
            write_statistics(tmp_path / "a.npz", bare, "adm")
        assert list(tmp_path.iterdir()) == []
