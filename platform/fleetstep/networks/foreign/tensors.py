"""Tensors inside foreign pickles: described first, read only when their place is known.

A tensor pickled by itself (not by torch.save) carries its storage as a nested file of torch's
older format: five pickles (a magic number, a version, facts about the machine, a reference to the
storage, the storage's key), its length, its bytes. torch.load would allocate what the file claims;
here a storage is a view of bytes that are there.
"""

from __future__ import annotations

import io
import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.foreign.pickles import PERSISTENT_ID, Global, Record, read_pickle
from fleetstep.networks.foreign.refusals import shown

REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
LOAD_STORAGE = "torch.storage._load_from_bytes"
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_LENGTH_BYTES = 8
_MOST_DIMENSIONS = 8
# The five pickles of a storage have some ten each.
_MOST_OPCODES = 1_000

Storage: TypeAlias = tuple[memoryview, torch.dtype]
"""The bytes of a storage, and what they are."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that has not been read yet; every element is known to lie within its storage."""

    data: memoryview
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """A contiguous copy of it, in its own dtype."""
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        size = self.dtype.itemsize
        # NumPy knows not all dtypes, and only moves the elements.
        view: np.ndarray[Any, Any] = np.ndarray(
            self.shape,
            f"u{size}",
            self.data,
            self.offset * size,
            [step * size for step in self.stride],
        )
        return torch.frombuffer(bytearray(view.tobytes()), dtype=self.dtype).view(self.shape)


def stored_tensor(
    record: Record, name: str, storages: MutableMapping[bytes, Storage]
) -> StoredTensor:
    """The tensor that a record describes.

    Args:
        record: what a pickle holds where a tensor is expected.
        name: of the tensor, for messages.
        storages: those of the same file that were read before; many tensors may share one.

    Raises:
        ForeignWeightsError: it is no tensor, or reaches beyond its storage.
    """
    match record:
        case Record(name=call, arguments=(Record() as inner, *_)) if call == REBUILD_PARAMETER:
            return stored_tensor(_leaf(inner, name), name, storages)
        case Record(
            name=call,
            arguments=(
                Record(name=nested, arguments=(bytes() as payload,)),
                int() as offset,
                tuple() as shape,
                tuple() as stride,
                *_,
            ),
        ) if (call, nested) == (REBUILD_TENSOR, LOAD_STORAGE):
            if payload not in storages:
                storages[payload] = _storage(payload, name)
            data, dtype = storages[payload]
            _check_extent(name, len(data) // dtype.itemsize, offset, shape, stride)
            return StoredTensor(data, dtype, offset, shape, stride)
    raise ForeignWeightsError(
        f"{name} is not a tensor as torch pickles one, but a call of {record.name}",
        "use the file that the training program wrote",
    )


def _leaf(inner: Record, name: str) -> Record:
    if inner.name != REBUILD_TENSOR:
        raise ForeignWeightsError(
            f"{name} is a parameter around a call of {inner.name}, not around a tensor",
            "use the file that the training program wrote",
        )
    return inner


def _check_extent(
    name: str, available: int, offset: int, shape: Sequence[Any], stride: Sequence[Any]
) -> None:
    numbers = (offset, *shape, *stride)
    # Each by itself first: a product of whatever the file claims could be of any length.
    sound = (
        len(shape) == len(stride) <= _MOST_DIMENSIONS
        and all(type(number) is int and 0 <= number <= available for number in numbers)
        and math.prod(shape) <= available
    )
    if sound and math.prod(shape):
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        sound = last < available
    if not sound:
        raise ForeignWeightsError(
            f"{name} claims offset {offset}, shape {shown(shape)} and strides {shown(stride)} in "
            f"a storage of {available} elements",
            "the file is damaged or forged: fetch it again from a source you trust",
        )


def _storage(payload: bytes, name: str) -> Storage:
    """A nested storage.

    Raises:
        ForeignWeightsError: it is not of the older torch.save format, or not of the length it
            claims.
    """
    source = io.BytesIO(payload)
    magic, version, machine, reference, keys = (
        read_pickle(source, STORAGES, tensors=True, most_opcodes=_MOST_OPCODES) for _ in range(5)
    )
    match reference:
        case Record(
            name=call,
            arguments=(("storage", Global(name=kind), str() as key, str(), int() as numel, *_),),
        ) if (call, magic, version, keys) == (PERSISTENT_ID, _MAGIC, _VERSION, [key]):
            pass
        case _:
            raise ForeignWeightsError(
                f"the storage of {name} is not of torch's format of nested storages",
                "use the file that the training program wrote",
            )
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ForeignWeightsError(
            f"the storage of {name} was written on a big-endian machine",
            "convert it on such a machine",
        )
    dtype = STORAGES[kind]
    start = source.tell() + _LENGTH_BYTES
    length = int.from_bytes(payload[start - _LENGTH_BYTES : start], "little")
    data = memoryview(payload)[start:]
    if not length == numel == len(data) / dtype.itemsize:
        raise ForeignWeightsError(
            f"the storage of {name} claims {numel} and {length} elements of {dtype}, and holds "
            f"{len(data)} bytes",
            "the file is damaged or forged: fetch it again from a source you trust",
        )
    return data, dtype
