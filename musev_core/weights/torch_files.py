"""Torch's own files: the zip archive of today, and the row of pickles from before torch 1.6.

Both hold a pickle that says what the tensors are (`torch_pickle`), and their data beside it.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .records import Place, TensorRecord, checked_record, is_name, number_type
from .torch_pickle import PICKLE_LIMIT, Call, Name, Stored, load

_DEPTH = 6  # {"ip_adapter": {"1": {...}}} is the deepest seen
_ENTRIES = 100_000  # of all dictionaries, each counted as often as it is met
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    **{"DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16},
    **{"BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32},
    **{"ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8},
    **{"BoolStorage": torch.bool, "UntypedStorage": torch.uint8},
}
_PARAMETERS = {
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    "torch.nn.parameter.Parameter",
}
_TENSORS = {f"torch._utils._rebuild_{form}" for form in ("tensor", "tensor_v2", "tensor_v3")}
_NOT_PLAIN = {"torch._utils._rebuild_sparse_tensor": "sparse", "torch._utils._rebuild_qtensor": "quantized"}

Places = Mapping[Any, Place]  # a storage's key -> its data


def torch_records(path: Path) -> dict[str, TensorRecord]:
    """Every tensor of the file, by its dotted name.

    Raises:
        UnknownName: it refers to something that is no part of tensors.
        ValueError: it is damaged, or holds something else than plain tensors.
    """
    size = path.stat().st_size
    with _ShortReads(path) as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        content, places = _read_zip(file, size) if is_zip else _read_legacy(file, size)
    records = {}
    for name, call in _leaves(content):
        if call.name in _NOT_PLAIN:
            raise ValueError(f"its tensor {name!r} is {_NOT_PLAIN[call.name]}, and only plain (dense) ones can be used")
        if call.name in _TENSORS:
            records[name] = _record(call, places)
    return records


# ------------------------------------------------------------------------------------------ the two formats


class _ShortReads(io.FileIO):
    """A file without a buffer, which does not hand zipfile a directory of millions of records."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > PICKLE_LIMIT:
            raise ValueError(f"a piece of it takes {size} bytes, more than any model needs")
        return super().read(-1 if size is None else size)


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, Places]:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            folder = next(iter(infos), "").split("/")[0]
            pickle = infos.get(f"{folder}/data.pkl")
            if pickle is None:
                raise ValueError("it is a zip archive, but none of torch's")
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
                raise ValueError("its content is compressed, which torch never does")
            if pickle.file_size > PICKLE_LIMIT:
                raise ValueError(f"its data.pkl takes {pickle.file_size} bytes, more than any model needs")
            order = infos.get(f"{folder}/byteorder")
            if order is not None and (order.file_size > len("little") or archive.read(order) != b"little"):
                raise ValueError("its numbers are in the byte order of another kind of machine")
            content, _ = load(io.BytesIO(archive.read(pickle)))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # RuntimeError: encrypted
        raise ValueError(str(error) or type(error).__name__) from error
    data = f"{folder}/data/"
    return content, {
        name.removeprefix(data): _record_place(file, info, size)
        for name, info in infos.items()
        if name.startswith(data)
    }


def _record_place(file: BinaryIO, info: zipfile.ZipInfo, size: int) -> Place:
    """Behind the record's own header, whose length the directory does not tell."""
    file.seek(info.header_offset)
    header = file.read(30)
    start = info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    if not header.startswith(b"PK\3\4") or start + info.file_size > size:
        raise ValueError(f"its record {info.filename!r:.100} is not where the directory says")
    return Place(start, info.file_size)


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, Places]:
    head = io.BytesIO(file.read(PICKLE_LIMIT))
    magic, _ = load(head)
    protocol, _ = load(head)
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("it is a pickle, but none of torch's")
    system, _ = load(head)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are in the byte order of another kind of machine")
    content, storages = load(head)
    keys, _ = load(head)
    widths = {key: dtype.itemsize for key, dtype in map(_storage, storages)}
    places, start = {}, head.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in widths:
            raise ValueError(f"it lists a storage {key!r:.50} that no tensor is in")
        file.seek(start)
        count = int.from_bytes(file.read(8), "little", signed=True)
        places[key] = Place(start + 8, count * widths[key])
        start += 8 + count * widths[key]
        if count < 0 or start > size:
            raise ValueError(f"the data of its storage {key!r:.50} end behind the end of the file")
    return content, places


# ------------------------------------------------------------------------------------------ the tensors


def _leaves(content: Any) -> Iterator[tuple[str, Call]]:
    """The calls in nested dictionaries with dotted names; a `state_dict` level is dropped (musev.md 7)."""
    met = 0

    def walk(value: Any, name: str, depth: int) -> Iterator[tuple[str, Call]]:
        nonlocal met
        value = _unwrapped(value)
        if not isinstance(value, Call | dict) or depth > _DEPTH:
            return
        if not is_name(name):
            raise ValueError(f"it has a tensor of the name {ascii(name):.100}")
        if isinstance(value, Call):
            yield name or "tensor", value
            return
        for key, child in value.items():
            met += 1
            if met > _ENTRIES:
                raise ValueError(f"its dictionaries have more than {_ENTRIES} entries, more than any model needs")
            dropped = key == "state_dict" and isinstance(child, dict)
            yield from walk(child, name if dropped else f"{name}.{key}" if name else str(key), depth + 1)

    return walk(content, "", 0)


def _unwrapped(value: Any) -> Any:
    """What is inside parameters, subclasses and parameter dictionaries."""
    for _ in range(_DEPTH):
        match value:
            case Call("torch.nn.modules.container.ParameterDict", _, {"_parameters": inside}):
                value = inside
            case Call(name, (inside, *_)) if name in _PARAMETERS:
                value = inside
            case Call("torch._tensor._rebuild_from_type_v2", (Name(name), _, tuple(arguments), *_)):
                value = Call(name, arguments)
            case _:
                break
    return value


def _record(call: Call, places: Places) -> TensorRecord:
    match call.arguments:
        case (Stored() as stored, offset, shape, stride, _, _, Name(name), *_) if call.name.endswith("_v3"):
            key, dtype = _storage(stored)[0], number_type(name.removeprefix("torch."))
        case (Stored() as stored, offset, shape, stride, *_):
            key, dtype = _storage(stored)
        case _:
            raise ValueError("a tensor of it has no data")
    if dtype is None:
        raise ValueError("a tensor of it is of a number type that is unknown here")
    if isinstance(shape, Call) and shape.name == "torch.Size":
        shape = shape.arguments[0] if shape.arguments else ()
    place = places.get(key)
    if place is None:
        raise ValueError(f"the data of its storage {key!r:.50} are missing")
    return checked_record(place, dtype, shape, stride, offset)


def _storage(stored: Stored) -> tuple[str, torch.dtype]:
    """Key and type of a persistent id `("storage", type, key, device, count)`; the count is the file's to tell."""
    match stored.id:
        case ("storage", Name(kind), str(key), *rest) if all(view is None for view in rest[2:]):
            if (dtype := _STORAGES.get(kind.rpartition(".")[2])) is not None:
                return key, dtype
            raise ValueError(f"it has numbers of the type {kind}, and MuseV needs plain ones")
    raise ValueError("it has data stored in a way that torch never writes")
