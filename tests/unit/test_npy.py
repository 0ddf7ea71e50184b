from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetstep.data import npy


@given(shape=st.lists(st.integers(0, 5), max_size=4).map(tuple), seed=st.integers(0, 99))
def test_it_reads_what_numpy_writes_and_the_other_way_round(shape: tuple[int, ...], seed: int):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    data = npy.write(array)
    np.testing.assert_array_equal(npy.read(data, "|u1"), array)
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), array)
    assert data == npy.header_of("|u1", shape) + array.tobytes()


@given(at=st.integers(0, 10**9), bit=st.integers(0, 7), cut=st.integers(0, 400))
def test_a_damaged_file_is_a_value_error_or_the_same_shape(at: int, bit: int, cut: int):
    """No other exception, no warning; pixels are what the shard's sha256 guards."""
    data = bytearray(npy.write(np.zeros((4, 4, 3), np.uint8)))
    data[at % len(data)] ^= 1 << bit
    data = data[: max(0, len(data) - cut % 4)]
    try:
        array = npy.read(bytes(data), "|u1")
    except ValueError:
        return
    assert array.size == 48
    assert array.dtype == np.uint8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin like one"),
        (npy.write(np.zeros(3, np.int32)), "must be an npy array of type"),
        (npy.write(np.asfortranarray(np.zeros((2, 3), np.uint8))), "in C order"),
        (npy.write(np.zeros(3, np.uint8)) + b"\0", r"4 bytes for shape \(3,\)"),
        (npy.write(np.zeros(3, np.uint8))[:-1], r"2 bytes for shape \(3,\)"),
        (npy.write(np.zeros(3, np.uint8)).replace(b"(3,)", b"(-3)"), "in C order"),
        (npy.write(np.zeros(3, np.uint8)).replace(b"(3,)", b"f(3)"), "header is damaged"),
        (pickle.dumps([1, 2]), "does not begin like one"),
    ],
)
def test_anything_else_is_refused(data: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        npy.read(data, "|u1")
