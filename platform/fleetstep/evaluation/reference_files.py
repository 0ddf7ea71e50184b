"""Statistics of real images as EDM, ADM and clean-fid keep them: read, checked and written.

| form | arrays | written by |
|---|---|---|
| edm | mu, sigma | EDM's `fid.py ref`; clean-fid's FID statistics are of the same form |
| adm | mu, sigma, and mu_s, sigma_s of spatial features | guided-diffusion's reference batches |
| clean-fid-kid | feats | clean-fid's KID statistics |

Nothing is ever unpickled: an `.npz` that holds objects is refused.

Legend: m images whose features are kept, D features, S spatial features.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from fleetstep.durable import write_bytes
from fleetstep.errors import DataError
from fleetstep.evaluation.moments import Moments

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

Form = Literal["edm", "adm", "clean-fid-kid"]

COUNT_KEY = "n"
"""Number of images: an array that is written beside the others, which other readers pass over."""

TOLERANCE = 1e-6
"""How far a covariance may be from symmetric, and its lowest eigenvalue below zero, over its
largest one: about what statistics kept in float32 need."""

LARGEST = 2 * 2**30
"""Bytes that the arrays of a file may take: a covariance of 16,384 features is as large, and so
are the features of 260,000 images in 2,048 dimensions.
"""

_DAMAGE: Final = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,  # encrypted
    NotImplementedError,  # a compression that is not known
    MemoryError,
    OverflowError,
)
"""What reading a file that nobody can vouch for may raise."""

_PICKLED: Final[frozenset[str]] = frozenset({".pkl", ".pickle", ".pt", ".pth"})


@dataclass(frozen=True, eq=False, kw_only=True)
class Statistics:
    """What is known of real images without them.

    Args:
        mean_D: mean features, float64 [D].
        covariance_DD: their covariance with divisor n - 1, float64 [D, D].
        n: images; 0 where a file does not say.
        features_mD: features of the images themselves, float32 [m, D]; None without.
        spatial: mean [S] and covariance [S, S] of ADM's spatial features, for sFID, which are
            handed on and not used here; None without.
        sha256: digest of the file's bytes; "" for statistics that are in no file.
        form: of the file; None for statistics that are in no file.
    """

    mean_D: Float64
    covariance_DD: Float64
    n: int = 0
    features_mD: Float32 | None = None
    spatial: tuple[Float64, Float64] | None = None
    sha256: str = ""
    form: Form | None = None


def statistics_of(features_nD: Float32) -> Statistics:
    """Mean and covariance of features, which are kept beside them.

    Raises:
        DataError: there are fewer than two rows.
        ExtractorError: a feature is not finite, or huge.
    """
    if features_nD.ndim != 2 or len(features_nD) < 2:
        raise DataError(
            f"statistics need the features of two or more images, got shape {features_nD.shape}",
            "give features of shape (images, features)",
        )
    features_nD = features_nD.astype(np.float32, copy=False)
    moments = Moments.of(features_nD)
    return Statistics(
        mean_D=moments.mean(),
        covariance_DD=moments.covariance(),
        n=len(features_nD),
        features_mD=features_nD,
    )


def read_statistics(path: Path) -> Statistics:
    """Read an `.npz` of EDM, ADM or clean-fid.

    Raises:
        DataError: the file is missing or damaged, would have to be unpickled, holds none of the
            three forms, or numbers that are no mean and covariance.
        ExtractorError: features that are not finite.
    """
    _refuse_pickles(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"there are no reference statistics at {path}",
            "give the path of an .npz with mu and sigma",
        ) from error
    arrays = _arrays(content, path)
    sha256 = hashlib.sha256(content).hexdigest()
    if "feats" in arrays:
        found = statistics_of(_numbers(arrays["feats"], "feats", path))
        return Statistics(
            mean_D=found.mean_D,
            covariance_DD=found.covariance_DD,
            n=found.n,
            features_mD=found.features_mD,
            sha256=sha256,
            form="clean-fid-kid",
        )
    spatial = _gaussian(arrays, "mu_s", "sigma_s", path) if "mu_s" in arrays else None
    mean_D, covariance_DD = _gaussian(arrays, "mu", "sigma", path)
    return Statistics(
        mean_D=mean_D,
        covariance_DD=covariance_DD,
        n=_count(arrays, path),
        spatial=spatial,
        sha256=sha256,
        form="edm" if spatial is None else "adm",
    )


def write_statistics(path: Path, statistics: Statistics, form: Form) -> str:
    """Write an `.npz` that the tools named by `form` read; equal statistics give equal bytes.

    Returns:
        SHA-256 of the file.

    Raises:
        DataError: `form` needs what the statistics do not have.
    """
    arrays: dict[str, npt.NDArray[Any]]
    if form == "clean-fid-kid":
        if statistics.features_mD is None:
            raise DataError(
                "clean-fid's KID statistics are the features themselves, which are not known",
                "write the form edm, or compute the reference from its images",
            )
        arrays = {"feats": statistics.features_mD.astype(np.float32)}
    else:
        arrays = {"mu": statistics.mean_D, "sigma": statistics.covariance_DD}
        if statistics.n:
            arrays[COUNT_KEY] = np.array(statistics.n, np.int64)
        if form == "adm":
            if statistics.spatial is None:
                raise DataError(
                    "ADM's evaluator reads mu_s and sigma_s of its own spatial features, which "
                    "are not known",
                    "write the form edm; ADM's evaluator itself makes the file from images",
                )
            arrays["mu_s"], arrays["sigma_s"] = statistics.spatial
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _refuse_pickles(path: Path) -> None:
    if path.suffix in _PICKLED:
        raise DataError(
            f"{path} is a pickle, which runs whatever is in it when it is read",
            "convert a file that you trust, with EDM2's own code: python -c 'import pickle, numpy;"
            ' r = pickle.load(open("ref.pkl", "rb")); numpy.savez("ref.npz", **r["fid"])\' '
            '(or r["fd_dinov2"])',
        )


def _arrays(content: bytes, path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays that the three forms name, and no others: ADM's files also hold the images."""
    wanted = ("mu", "sigma", "mu_s", "sigma_s", "feats", COUNT_KEY)
    _refuse_large(content, {f"{name}.npy" for name in wanted}, path)
    try:
        file = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"{path} is a single array", "give an .npz with mu and sigma")
        with file:
            arrays = {name: np.asarray(file[name]) for name in wanted if name in file}
            held = sorted(file.files)
    except _DAMAGE as error:
        raise DataError(
            f"{path} cannot be read as an .npz of numbers: {error}",
            "nothing is unpickled: write it again with numpy.savez from arrays of numbers",
        ) from error
    if "feats" not in arrays and not {"mu", "sigma"} <= arrays.keys():
        raise DataError(
            f"{path} must hold mu and sigma (EDM, ADM, clean-fid), or feats (clean-fid's KID), "
            f"but holds {', '.join(held) or 'nothing'}",
            "give the file of reference statistics, not one of images",
        )
    return arrays


def _refuse_large(content: bytes, members: Container[str], path: Path) -> None:
    """Refuse arrays too large for what they should be before one is unpacked.

    The sizes that a zip declares are also the most that is unpacked of it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            size = sum(info.file_size for info in file.infolist() if info.filename in members)
    except _DAMAGE:
        return  # NumPy says what is wrong with it
    if size > LARGEST:
        raise DataError(
            f"the statistics in {path} may take {LARGEST:,} bytes unpacked, and would take "
            f"{size:,}",
            "give features of fewer images, or mu and sigma alone",
        )


def _gaussian(
    arrays: Mapping[str, npt.NDArray[Any]], mean: str, covariance: str, path: Path
) -> tuple[Float64, Float64]:
    """A mean and a covariance that can be ones, in float64."""
    if covariance not in arrays:
        raise DataError(f"{path} holds {mean} without {covariance}", "write it again")
    mean_D = _numbers(arrays[mean], mean, path).astype(np.float64)
    covariance_DD = _numbers(arrays[covariance], covariance, path).astype(np.float64)
    if mean_D.ndim != 1 or covariance_DD.shape != (len(mean_D), len(mean_D)):
        raise DataError(
            f"{path} must hold {mean} of shape (D,) and {covariance} of shape (D, D), got "
            f"{mean_D.shape} and {covariance_DD.shape}",
            "write both from the same features",
        )
    asymmetry = float(np.abs(covariance_DD - covariance_DD.T).max(initial=0.0))
    values_D = np.linalg.eigvalsh((covariance_DD + covariance_DD.T) / 2)
    largest = float(values_D.max(initial=0.0))
    lowest = float(values_D.min(initial=0.0))
    if asymmetry > TOLERANCE * largest or lowest < -TOLERANCE * largest:
        raise DataError(
            f"{covariance} in {path} must be a covariance, but it differs from its transpose by "
            f"{asymmetry:.2g} and its eigenvalues reach from {lowest:.2g} to {largest:.2g}",
            "compute the statistics again; with numpy.cov, give rowvar=False",
        )
    return mean_D, covariance_DD


def _numbers(array: npt.NDArray[Any], name: str, path: Path) -> npt.NDArray[Any]:
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DataError(
            f"{name} in {path} must be finite numbers, got {array.dtype}"
            + (" with NaN or infinity" if array.dtype.kind == "f" else ""),
            "compute the statistics again",
        )
    return array


def _count(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> int:
    if COUNT_KEY not in arrays:
        return 0
    count = _numbers(arrays[COUNT_KEY], COUNT_KEY, path)
    if count.shape != () or count.dtype.kind == "f" or count < 2:
        raise DataError(
            f"{COUNT_KEY} in {path} must be the number of images, got {count}",
            "write the file again",
        )
    return int(count)
