"""ONNX files for tests, written field by field (protobuf wire format), so that no package is needed to make them."""

from pathlib import Path

import numpy as np

_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_VARINT, _BYTES = 0, 2  # wire types


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _field(number: int, value) -> bytes:
    """One field: an integer, a text, a nested message or bytes; a list stands for the field repeated."""
    if isinstance(value, list):
        return b"".join(_field(number, item) for item in value)
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def node(kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> bytes:
    """A NodeProto with one output; attributes are integers or lists of them."""
    parts = []
    for name, value in attributes.items():
        content = _field(8, value) + _field(20, 7) if isinstance(value, list) else _field(3, value) + _field(20, 2)
        parts.append(_field(1, name) + content)
    return _field(1, list(inputs)) + _field(2, output) + _field(4, kind) + _field(5, parts)


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = _INT64 if values.dtype == np.int64 else _FLOAT
    values = values.astype(np.int64 if kind == _INT64 else np.float32)
    return _field(1, list(values.shape)) + _field(2, kind) + _field(8, name) + _field(9, values.tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    sides = _field(1, [_field(1, side) for side in shape])
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, sides)))


def write_model(
    path: Path,
    nodes: list[bytes],
    constants: dict[str, np.ndarray],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
) -> Path:
    """A model of float inputs and outputs of fixed shapes, opset 13."""
    graph = (
        _field(1, nodes)
        + _field(2, "test")
        + _field(5, [_tensor(name, values) for name, values in constants.items()])
        + _field(11, [_value(name, shape) for name, shape in inputs.items()])
        + _field(12, [_value(name, shape) for name, shape in outputs.items()])
    )
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return path
