"""Arrays as `.npy` bytes (numpy format 1.0), read strictly.

`numpy.load` is not used on files that may be damaged: depending on which byte of a header is wrong
it raises errors of the tokenizer, warns, or takes trailing bytes without a word. Here anything but
the one form we write is a ValueError.
"""

from __future__ import annotations

import ast
import io
import math
import struct

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY\x01\x00"


def write(array: npt.NDArray[np.generic]) -> bytes:
    """The array as the bytes of an `.npy` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def header_of(descr: str, shape: tuple[int, ...]) -> bytes:
    """The bytes that numpy writes before a C-ordered array of this type and shape."""
    file = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def read(data: bytes, descr: str) -> npt.NDArray[np.generic]:
    """The C-ordered array of type `descr` (such as "|u1" or "<i8") in the bytes of an `.npy` file.

    Raises:
        ValueError: if they are anything else, or do not end where the array does.
    """
    if not data.startswith(_MAGIC) or len(data) < 10:
        raise ValueError("it is not a readable npy array: it does not begin like one")
    (length,) = struct.unpack("<H", data[8:10])
    text = data[10 : 10 + length]
    try:
        fields = ast.literal_eval(text.decode("ascii").strip())
        shape = fields["shape"]
        known = fields == {"descr": descr, "fortran_order": False, "shape": shape}
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise ValueError("it is not a readable npy array: its header is damaged") from None
    if (
        not known
        or not isinstance(shape, tuple)
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ValueError(f"it must be an npy array of type {descr} in C order, got {fields}")
    body = data[10 + length :]
    if len(body) != math.prod(shape) * np.dtype(descr).itemsize:
        raise ValueError(f"it is not a readable npy array: {len(body)} bytes for shape {shape}")
    return np.frombuffer(body, descr).reshape(shape)
