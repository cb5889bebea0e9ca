"""Where a file says that its tensors lie, and the tensors themselves, mapped from there."""

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import shown

MAX_AXES = 64  # of torch
_NUMBER_TYPES = {
    *("float64", "float32", "float16", "bfloat16", "complex64", "int64", "int32", "int16", "int8", "bool"),
    *("uint64", "uint32", "uint16", "uint8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
}
_NAME_LENGTH = 500
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_SURPLUS = 1 << 29  # bytes that tensors may take beyond their file's size, where several share their data


@dataclass(frozen=True)
class Place:
    """A piece of a file, in bytes."""

    start: int
    size: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor in a file: element i is number `offset + sum(i * stride)` of those in `place`."""

    place: Place
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0


def checked_record(place: Place, dtype: torch.dtype, shape: Any, stride: Any = None, offset: Any = 0) -> TensorRecord:
    """The record of what a file says, whatever that is; without `stride` the tensor is contiguous.

    Raises:
        ValueError: it is no tensor, or reaches beyond its place.
    """
    if not is_shape(shape):
        raise ValueError(f"a tensor has the shape {shown(shape)}")
    if stride is None:
        stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if not is_shape(stride) or len(stride) != len(shape) or type(offset) is not int or offset < 0:
        raise ValueError(
            f"a tensor of the shape {shown(shape)} has the strides {shown(stride)} from {shown(offset)} on"
        )
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) and last >= place.size // dtype.itemsize:
        raise ValueError(f"a tensor of the shape {shown(shape)} does not fit its {place.size} bytes")
    return TensorRecord(place, dtype, tuple(shape), tuple(stride), offset)


def number_type(name: str) -> torch.dtype | None:
    """The type of plain numbers which torch calls so; None if this torch has none."""
    return getattr(torch, name, None) if name in _NUMBER_TYPES else None


def is_shape(numbers: Any) -> bool:
    """Whether these are the sizes of a tensor's axes."""
    return (
        isinstance(numbers, list | tuple)
        and len(numbers) <= MAX_AXES
        and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    )


def is_name(name: str) -> bool:
    """Whether a tensor can be called so: not endlessly, and without halves of characters, which nothing can print."""
    return len(name) <= _NAME_LENGTH and not _HALF_CHARACTER.search(name)


def claim_too_much(records: Mapping[str, TensorRecord], size: int) -> bool:
    """Whether the tensors together would take far more memory than their file of `size` bytes."""
    return sum(math.prod(record.shape) * record.dtype.itemsize for record in records.values()) > size + _SURPLUS


def mapped_tensors(path: Path, records: Mapping[str, TensorRecord]) -> dict[str, Tensor]:
    """The tensors on the CPU; their data are read when they are used, and changes do not reach the file."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = torch.frombuffer(mapped, dtype=torch.uint8)
    storages: dict[tuple[Place, torch.dtype], Tensor] = {}  # tensors that share their data go on to do so
    for record in records.values():
        place, width = record.place, record.dtype.itemsize
        if (place, record.dtype) not in storages:
            flat = data[place.start : place.start + place.size // width * width]
            storages[place, record.dtype] = (flat.clone() if place.start % width else flat).view(record.dtype)
    return {name: _tensor(storages[record.place, record.dtype], record) for name, record in records.items()}


def _tensor(storage: Tensor, record: TensorRecord) -> Tensor:
    return storage.as_strided(record.shape, record.stride, storage.storage_offset() + record.offset)
