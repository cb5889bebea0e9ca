"""What a change of one input does to a result, for tables with one row per input."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from musev_core.frames.source import FileFrames


@dataclass(frozen=True)
class Result:
    """A video, and how much of it the network was asked for at once."""

    latents: Tensor  # (4, frames, h, w)
    frames: Tensor  # (frames, H, W, 3)
    calls: tuple[int, ...] = ()  # rows of every call of the UNet


# ---- how two results differ


def same(before: Result, after: Result) -> None:
    """To the last bit."""
    assert torch.equal(before.latents, after.latents) and torch.equal(before.frames, after.frames)


def refused(before: Result, after: Result) -> None:
    """There is no other video: the value is an error, whose message holds the row's reason."""
    raise AssertionError("the value was taken")


def latents(before: Result, after: Result) -> None:
    """Another video of as many frames of the same size."""
    assert before.latents.shape == after.latents.shape
    assert _distance(before.latents, after.latents) > 1e-4


def count(before: Result, after: Result) -> None:
    """Another number of frames."""
    assert len(before.frames) != len(after.frames)


def size(before: Result, after: Result) -> None:
    """Frames of another size."""
    assert before.frames.shape[1:] != after.frames.shape[1:]


def frames(before: Result, after: Result) -> None:
    """The same latents, shown in another way."""
    assert torch.equal(before.latents, after.latents)
    assert _distance(before.frames, after.frames) > 1e-4


def speed(before: Result, after: Result) -> None:
    """Equal to rounding, in other calls of the network."""
    assert _distance(before.latents, after.latents) < 1e-4
    assert before.calls != after.calls


def _distance(a: Tensor, b: Tensor) -> float:
    """Relative to the size of the values."""
    return ((a - b).norm() / a.norm()).item()


# ---- values by path


def get(x: Any, path: str) -> Any:
    """The value at a path such as `controls.0.scale`."""
    for name in path.split("."):
        x = x[int(name)] if name.isdecimal() else getattr(x, name)
    return x


def put(x: Any, values: Mapping[str, Any]) -> Any:
    """A copy with other values at some paths, set in their order."""
    for path, value in values.items():
        x = _put(x, path.split("."), value)
    return x


def _put(x: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    if name.isdecimal():
        i = int(name)
        return [*x[:i], _put(x[i], rest, value) if rest else value, *x[i + 1 :]]
    return replace(x, **{name: _put(getattr(x, name), rest, value) if rest else value})


def leaves(x: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all fields below a dataclass; fields which are dataclasses, or lists of them, are gone into."""
    for f in dataclasses.fields(x):
        path, value = prefix + f.name, getattr(x, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{path}.")
        elif isinstance(value, (list, tuple)) and value and is_dataclass(value[0]):
            for i, item in enumerate(value):
                yield from leaves(item, f"{path}.{i}.")
        else:
            yield path


def differences(before: Any, after: Any, path: str = "") -> set[str]:
    """The paths where two dataclasses of a kind are not alike; of lists of different length that of the list."""
    if is_dataclass(before) and type(before) is type(after):
        pairs = [(f.name, getattr(before, f.name), getattr(after, f.name)) for f in dataclasses.fields(before)]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(before, after, strict=True))]
    else:
        return set() if _alike(before, after) else {path}
    return {found for name, a, b in pairs for found in differences(a, b, f"{path}.{name}" if path else name)}


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, FileFrames) and isinstance(b, FileFrames):
        return _alike(a.take(range(len(a))), b.take(range(len(b))))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if callable(a) and callable(b):  # networks and preprocessors say nothing of themselves
        return type(a) is type(b)
    return a is b or (type(a) is type(b) and a == b)


# ---- a row of a table


@dataclass(frozen=True)
class Row:
    """One input: another value for it, what the scene must hold besides, and what the change does.

    Args:
        value: of the input.
        how: one of the functions above.
        scene: which of the table's scenes is changed.
        given: values at other paths, before and after.
        why: the reason, where nothing changes.
    """

    value: Any
    how: Any = latents
    scene: str = "picture"
    given: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
