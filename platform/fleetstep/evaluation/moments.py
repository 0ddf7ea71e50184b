"""First and second moments of features as exact integers, which add to the same bits in any order.

Features are rounded to multiples of 2^-16, k = rint(f * 2^16), and sums of k and k k^T are kept as
64-bit integers. Integer addition is associative, so neither the number of workers nor the order of
their results can change a digit of a distance. The rounding moves one by about 1e-8.

The products are taken by float64 matrix multiplication, which is exact as long as every partial
sum stays below 2^53: blocks of at most 2,048 rows of |f| < 32 give 2^(21 + 21 + 11) = 2^53; larger
features get shorter blocks.

Legend: n rows, D features.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fleetstep.durable import write_bytes
from fleetstep.errors import DataError, ExtractorError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

FRACTION_BITS = 16
BLOCK_ROWS = 2048
FORMAT = "fleetstep-moments-1"
_EXACT = 2.0**53


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum and sum of outer products of quantised features.

    Args:
        n: rows.
        s_D: sum of k, int64 [D].
        s_DD: sum of k k^T, int64 [D, D].
    """

    n: int
    s_D: Int64
    s_DD: Int64

    @classmethod
    def zero(cls, dim: int) -> Moments:
        """The moments of no rows of `dim` features: the start of a sum."""
        return cls(0, np.zeros(dim, np.int64), np.zeros((dim, dim), np.int64))

    @classmethod
    def of(cls, features_nD: Float32) -> Moments:
        """Moments of the rows of `features_nD`, float32 or float64 [n, D].

        Raises:
            ExtractorError: a feature is not finite, or so large that its square is not exact.
        """
        k_nD = quantise(features_nD)
        total = cls.zero(k_nD.shape[1])
        rows = _rows_of_exact_blocks(k_nD)
        for start in range(0, len(k_nD), rows):
            block = k_nD[start : start + rows]
            outer_DD = (block.T @ block).astype(np.int64)
            total = total + cls(len(block), block.sum(0).astype(np.int64), outer_DD)
        return total

    @property
    def dim(self) -> int:
        """Number of features."""
        return len(self.s_D)

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        self._check_dim(other)
        total = Moments(self.n + other.n, self.s_D + other.s_D, self.s_DD + other.s_DD)
        # No entry exceeds the largest on the diagonal, where overflow turns a sum negative.
        if (total.s_DD.diagonal() < 0).any():
            raise OverflowError(
                f"second moments of {total.n:,} rows exceed 64 bits; score fewer images"
            )
        return total

    def __sub__(self, part: Moments) -> Moments:
        """Moments of the rows that are left when those of `part` are taken out.

        Raises:
            ValueError: `part` is not a part of these rows.
        """
        self._check_dim(part)
        rest = Moments(self.n - part.n, self.s_D - part.s_D, self.s_DD - part.s_DD)
        if rest.n < 0 or (rest.s_DD.diagonal() < 0).any():
            raise ValueError(
                f"cannot take {part.n} rows out of {self.n}: they are not a part of them"
            )
        return rest

    def __eq__(self, other: object) -> bool:
        """Equal integers."""
        if not isinstance(other, Moments):
            return NotImplemented
        return (
            self.n == other.n
            and np.array_equal(self.s_D, other.s_D)
            and np.array_equal(self.s_DD, other.s_DD)
        )

    def __hash__(self) -> int:
        return hash(self.digest())

    def _check_dim(self, other: Moments) -> None:
        if self.dim != other.dim:
            raise ValueError(
                f"moments of {self.dim} and of {other.dim} features cannot be combined"
            )

    def digest(self) -> str:
        """SHA-256 of n, sum and sum of outer products as little-endian int64, row-major."""
        numbers = np.concatenate([[self.n], self.s_D, self.s_DD.ravel()])
        return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()

    def mean(self) -> Float64:
        """Mean features [D].

        Raises:
            ValueError: there are no rows.
        """
        if self.n < 1:
            raise ValueError("the mean needs at least one row")
        return self.s_D / (self.n * 2.0**FRACTION_BITS)

    def covariance(self) -> Float64:
        """Unbiased covariance (divisor n - 1) [D, D].

        Raises:
            ValueError: there are fewer than two rows.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two rows, got {self.n}")
        # Centred at the nearest integers m first. Products may leave the 64 bits, but integers
        # that wrap around are exact modulo 2^64 and the centred sum fits again: nothing cancels in
        # floating point.
        m_D = np.rint(self.s_D / self.n).astype(np.int64)
        rest_D = self.s_D - self.n * m_D
        centred_DD = self.s_DD - np.multiply.outer(m_D, self.s_D)
        centred_DD -= np.multiply.outer(rest_D, m_D)
        # |rest| <= n / 2, so its products are exact, and the covariance is exactly symmetric.
        drift_DD = np.multiply.outer(rest_D, rest_D) / self.n
        return np.asarray((centred_DD - drift_DD) / ((self.n - 1) * 4.0**FRACTION_BITS))

    def save(self, path: Path, facts: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file at once: a reader sees the old file, the new one, or none.

        Args:
            path: the file; its folder must exist.
            facts: what the moments are of, kept in the file's header beside the digest.
        """
        header = {**(facts or {}), "format": FORMAT, "n": str(self.n), "digest": self.digest()}
        content = safetensors.numpy.save({"s_D": self.s_D, "s_DD": self.s_DD}, header)
        write_bytes(path, content)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote and check it against the digest in it.

        Raises:
            DataError: the file is missing, damaged, or not one of moments.
        """
        return load_with_facts(path)[0]


def load_with_facts(path: Path) -> tuple[Moments, dict[str, str]]:
    """Moments and the facts that were saved with them.

    Raises:
        DataError: the file is missing, damaged, or not one of moments.
    """
    remedy = "delete the file; it is computed again from the images"
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header: dict[str, str] = file.metadata() or {}
            moments = Moments(int(header["n"]), file.get_tensor("s_D"), file.get_tensor("s_DD"))
    except FileNotFoundError as error:
        raise DataError(f"there are no moments at {path}") from error
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise DataError(f"{path} does not hold moments: {error}", remedy) from error
    if header.get("format") != FORMAT or header.get("digest") != moments.digest():
        raise DataError(
            f"{path} is damaged: its content does not have the digest that it names", remedy
        )
    return moments, {key: header[key] for key in header.keys() - {"format", "n", "digest"}}


def quantise(features_nD: Float32) -> Float64:
    """Features in units of 2^-16, as whole numbers in float64 [n, D].

    Raises:
        ExtractorError: a feature is not finite, or so large that its square is not exact in
            float64.
    """
    if features_nD.ndim != 2:
        raise ValueError(f"features have shape (n, D), got {features_nD.shape}")
    k_nD: Float64 = np.rint(features_nD.astype(np.float64) * 2.0**FRACTION_BITS)
    largest = float(np.abs(k_nD).max(initial=0.0))
    if not largest**2 < _EXACT:  # also true of NaN
        raise ExtractorError(
            f"features must be finite and smaller than {2.0 ** (26.5 - FRACTION_BITS):.0f}, "
            f"got {largest / 2.0**FRACTION_BITS}",
            "look at the scored images; a network of larger features needs scaling",
        )
    return k_nD


def _rows_of_exact_blocks(k_nD: Float64) -> int:
    """Rows of a block, halved from 2,048 until max |k|^2 * rows < 2^53."""
    square = float(np.abs(k_nD).max(initial=0.0)) ** 2
    rows = BLOCK_ROWS
    while square * rows >= _EXACT:
        rows //= 2
    return rows


def total(parts: list[Moments]) -> Moments:
    """The sum of one or more moments."""
    return functools.reduce(Moments.__add__, parts)
