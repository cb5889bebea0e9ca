"""The header of a safetensors file, checked as strictly as the library does.

The file is 8 bytes of length, so many bytes of JSON, then the tensors' data one after another without gaps.
"""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import shown
from .records import Place, TensorRecord, checked_record, is_name, number_type

_LIMIT = 8_000_000  # bytes; a thousand tensors take 100 KB, a trainer's notes some MB
_BRACKETS = 300_000  # three for a tensor; Python's memory management takes seconds for millions
_TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}


def safetensors_records(path: Path) -> dict[str, TensorRecord]:
    """Every tensor of the file, by its name.

    Raises:
        ValueError: the header is damaged, or says something else than the file's size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError(f"its header should take {length} bytes, the whole file has {size}")
        if length > _LIMIT:
            raise ValueError(f"its header takes {length} bytes, more than any model needs")
        text = file.read(length)
    if text.count(b"[") + text.count(b"{") > _BRACKETS:
        raise ValueError(f"its header has more than {_BRACKETS} lists and tables, more than any model needs")
    try:
        header = json.loads(text)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no table of tensors")
    header.pop("__metadata__", None)
    start = 8 + length
    records = {name: _record(name, entry, start) for name, entry in header.items()}
    end = start
    for place in sorted((record.place for record in records.values()), key=lambda place: (place.start, place.size)):
        if place.start != end:
            raise ValueError(f"its header has data beginning at byte {place.start} where {end} is next")
        end += place.size
    if size != end:
        raise ValueError(f"its header says {end} bytes, the file has {size} ({size / end:.0%})")
    return records


def _record(name: str, entry: Any, start: int) -> TensorRecord:
    if not is_name(name):
        raise ValueError(f"its header has a tensor of the name {ascii(name):.100}")
    if not isinstance(entry, dict):
        raise ValueError(f"its header has {shown(entry)} in place of the tensor {name!r:.100}")
    number, offsets = entry.get("dtype"), entry.get("data_offsets")
    dtype = number_type(_TYPES.get(number, "")) if isinstance(number, str) else None
    if dtype is None:
        raise ValueError(f"{name!r:.100} is of the number type {shown(number)}, which is unknown here")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
        raise ValueError(f"{name!r:.100} has the offsets {shown(offsets)}")
    place = Place(start + offsets[0], offsets[1] - offsets[0])
    record = checked_record(place, dtype, entry.get("shape"))
    if math.prod(record.shape) * dtype.itemsize != place.size:
        raise ValueError(f"{name!r:.100} of the shape {list(record.shape)} does not take {place.size} bytes")
    return record
