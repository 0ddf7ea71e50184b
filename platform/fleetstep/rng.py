"""All randomness starts here: a number is addressed by (seed, purpose, position), never carried in
a state.

Format 1 (pinned by `tests/golden/rng.json`; see docs/decisions.md):

* key = blake2b(repr of seed and purpose, 16 bytes), as the two 64-bit key words of Philox 4x64-10;
* positions are grouped into blocks of `BLOCK` = 32; the counter of block b starts at (0, b, 0, 0);
* a block holds its 32 positions one after the other, each with prod(shape) 64-bit words,
row-major;
* a uniform is ((word >> 12) + 1/2) * 2^-52, exact in float64 and strictly inside (0, 1);
* a normal is the inverse normal CDF of a uniform (Wichura 1988, AS 241 PPND16) in float64, rounded
to float32.

Only IEEE additions, multiplications, divisions and square roots are used, each rounded exactly by
every CPU; the one logarithm (in the tails) is built from them too, because libm and vector
libraries differ in the last bit between CPU types. So the values depend on neither torch, nor the
device, nor the processor.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt

FORMAT = 1
BLOCK = 32

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
UInt64 = npt.NDArray[np.uint64]

# The normal transform works on pieces that stay in the cache.
_PIECE = 16_384


@functools.lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}|{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def bits(seed: int, purpose: str, first: int, count: int, shape: tuple[int, ...] = ()) -> UInt64:
    """Random 64-bit words of positions first .. first+count-1, shape (count, *shape).

    Raises:
        ValueError: if `first` or `count` is negative.
    """
    if first < 0 or count < 0:
        raise ValueError(
            f"positions start at 0 and counts are not negative, got {first=}, {count=}"
        )
    words = math.prod(shape)
    if count == 0 or words == 0:
        return np.empty((count, *shape), np.uint64)
    first_block, last_block = first // BLOCK, (first + count - 1) // BLOCK
    key = np.array(_key(seed, purpose), np.uint64)
    blocks = [
        np.random.Philox(key=key, counter=[0, block, 0, 0]).random_raw(BLOCK * words)
        for block in range(first_block, last_block + 1)
    ]
    everything = (blocks[0] if len(blocks) == 1 else np.concatenate(blocks)).reshape(-1, *shape)
    start = first - first_block * BLOCK
    return everything[start : start + count]


def uniform(
    seed: int, purpose: str, first: int, count: int, shape: tuple[int, ...] = ()
) -> Float64:
    """Uniform numbers in (0, 1), float64, shape (count, *shape)."""
    return _uniform_of(bits(seed, purpose, first, count, shape))


def draw(seed: int, purpose: str, first: int, count: int, shape: tuple[int, ...] = ()) -> Float32:
    """Standard normal numbers, float32, shape (count, *shape).

    Row i belongs to position first+i alone: any split of a range into calls gives the same
    numbers.
    """
    words = bits(seed, purpose, first, count, shape).reshape(-1)
    out = np.empty(words.shape, np.float32)
    for start in range(0, words.size, _PIECE):
        out[start : start + _PIECE] = normal_icdf(_uniform_of(words[start : start + _PIECE]))
    return out.reshape(count, *shape)


def _uniform_of(words: UInt64) -> Float64:
    # 52 bits and a half: with 53 the largest word would round up to 1, whose normal is infinite.
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def permutation(seed: int, purpose: str, index: int, size: int) -> npt.NDArray[np.int64]:
    """The `index`-th permutation of range(size) under (seed, purpose): the order of `size` random
    words.
    """
    words = bits(seed, f"{purpose}|{index}", 0, size)
    return np.argsort(words, kind="stable")


# AS 241 (Wichura 1988), coefficients of PPND16: highest power first.
_A = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
    4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
    1.3314166789178437745e2, 3.3871328727963666080e0,
)  # fmt: skip
_B = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
    2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
    4.2313330701600911252e1, 1.0,
)  # fmt: skip
_C = (
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
    1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
    4.63033784615654529590e0, 1.42343711074968357734e0,
)  # fmt: skip
_D = (
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
    1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
    2.05319162663775882187e0, 1.0,
)  # fmt: skip
_E = (
    2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
    2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
    5.46378491116411436990e0, 6.65790464350110377720e0,
)  # fmt: skip
_F = (
    2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
    7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1,
    5.99832206555887937690e-1, 1.0,
)  # fmt: skip


def _horner(coefficients: tuple[float, ...], x: Float64) -> Float64:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


# log(2) in two parts, so that exponent * high is exact.
_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_ATANH = tuple(1.0 / (2 * k + 1) for k in range(11, -1, -1))


def _log(x: Float64) -> Float64:
    """Natural logarithm from exactly rounded operations: log m + e log 2, log m = 2
    atanh((m-1)/(m+1)).
    """
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    power = exponent.astype(np.float64) - small
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return power * _LOG2_HIGH + (power * _LOG2_LOW + 2.0 * s * _horner(_ATANH, s * s))


def normal_icdf(u: Float64) -> Float64:
    """Inverse of the standard normal CDF, float64, relative error about 1e-15 (Wichura 1988, AS
    241).
    """
    q = u - 0.5
    r = 0.180625 - q * q
    z: Float64 = q * _horner(_A, r) / _horner(_B, r)
    tail = np.abs(q) > 0.425
    if tail.any():
        q_tail = q[tail]
        root = np.sqrt(-_log(np.where(q_tail < 0, u[tail], 1.0 - u[tail])))
        near, far = root - 1.6, root - 5.0
        value = np.where(
            root <= 5.0,
            _horner(_C, near) / _horner(_D, near),
            _horner(_E, far) / _horner(_F, far),
        )
        z[tail] = np.where(q_tail < 0, -value, value)
    return z
