"""Counts what a call costs, without running it on any particular hardware.

Under `FakeTensorMode` (device "cpu") nothing is computed or allocated, but shapes and memory layouts are right, so that
the network of full size is counted within seconds on any machine. Plain meta tensors would not do: convolution and
group norm report other layouts there, which charges copies that a real device does not make.

What counts:
    kernels  every dispatched aten operator that is neither a view nor a plain allocation
    flops    2 per multiply-add of matrix products, convolutions and attention
    bytes    all tensors that go into those kernels and come out of them; a gather or a copy moves its result twice
    peak     the most bytes alive at once in storages made during the call: no weights, no inputs
    syncs    operators for which a CUDA stream waits for the host
"""

import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

REST = "rest"
# (path of a submodule, current part) to the part its calls belong to
PartOf = Callable[[str, str], str]

_SHAPE_ONLY = frozenset(
    [
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "diagonal",
        "expand",
        "expand_as",
        "is_same_size",
        "lift_fresh",
        "movedim",
        "narrow",
        "numel",
        "permute",
        "reshape",
        "_reshape_alias",
        "select",
        "size",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "stride",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "_unsafe_view",
        "view",
        "view_as",
    ]
)
_ALLOCATION = frozenset(["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"])
_HOST_SYNC = frozenset(
    ["is_nonzero", "item", "lift_fresh", "lift_fresh_copy", "_local_scalar_dense", "masked_select", "nonzero"]
)
_FILL = frozenset(["fill_", "ones", "ones_like", "zero_", "zeros", "zeros_like"])
_GATHER = frozenset(["gather", "index", "index_select"])
_SCATTER = frozenset(["index_copy_", "index_put_"])


@dataclass
class Cost:
    """Floating point operations, kernel launches, bytes moved, most bytes alive, waits for the host."""

    flops: int = 0
    kernels: int = 0
    bytes: int = 0
    peak: int = 0
    syncs: int = 0

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


@dataclass
class Counts:
    """The cost of a call: in all, per part of the network, and per operator."""

    total: Cost = field(default_factory=Cost)
    parts: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    operators: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))


def count(call: Callable[[], Any], module: nn.Module | None = None, part_of: PartOf | None = None) -> Counts:
    """What one `call()` costs.

    Args:
        call: what to count; normally made of fake tensors.
        module: its submodules' calls are told apart into parts.
        part_of: names the part a submodule belongs to; needed with `module`.
    """
    meter = _Meter()
    with torch.no_grad(), _parts(meter, module, part_of), _FusedAttention(), meter:
        call()
    return meter.counts


# ------------------------------------------------------------------------------------------ attention as one kernel

_library = torch.library.Library("musev_bench", "DEF")
_library.define("attention(Tensor q, Tensor k, Tensor v) -> Tensor")


def _attention_result(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused kernels write `(b, n, heads, d)` and hand it out as a view `(b, heads, n, d)`."""
    if q.ndim != 4:
        return q.new_empty(*q.shape[:-1], v.shape[-1])
    b, heads, n, _ = q.shape
    return q.new_empty(b, n, heads, v.shape[-1]).transpose(1, 2)


for _key in ("Meta", "CPU", "CUDA"):
    _library.impl("attention", _attention_result, _key)


class _FusedAttention(TorchFunctionMode):
    """Puts one operator in the place of torch's attention, whose parts depend on the device."""

    _functions = (F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)  # type: ignore

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in self._functions:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        return torch.ops.musev_bench.attention(given["query"], given["key"], given["value"])


# ------------------------------------------------------------------------------------------ counting


class _Meter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.part = REST
        self._alive = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        namespace, name = func._schema.name.split("::")
        if namespace == "prim":
            return out
        records = (self.counts.total, self.counts.parts[self.part], self.counts.operators[name])
        if name in _HOST_SYNC:
            for cost in records:
                cost.syncs += 1
        if name in _SHAPE_ONLY or name in _ALLOCATION:
            return out
        results = _tensors([out])
        flops = _flops(name, args, results)
        moved = _bytes_moved(name, _tensors([*args, *kwargs.values()]), results)
        for tensor in results:
            self._watch(tensor)
        for cost in records:
            cost.kernels += 1
            cost.flops += flops
            cost.bytes += moved
            cost.peak = max(cost.peak, self._alive)
        return out

    def _watch(self, tensor: Tensor) -> None:
        """Adds the tensor's storage to what is alive, until it goes."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if size == 0 or key in self._storages:
            return
        self._storages.add(key)
        self._alive += size
        weakref.finalize(storage, self._released, key, size).atexit = False

    def _released(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._alive -= size


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among values and in lists of one level."""
    flat = [x for value in values for x in (value if isinstance(value, (tuple, list)) else [value])]
    return [x for x in flat if isinstance(x, Tensor)]


def _size(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _bytes_moved(name: str, inputs: list[Tensor], results: list[Tensor]) -> int:
    if name == "copy_":  # the target is written, not read
        return _size(inputs[:2])
    if name in _FILL:
        return _size(results)
    if name in _GATHER:
        return 2 * _size(results)
    if name in _SCATTER:
        return 2 * _size([x for x in inputs[1:] if x.dtype.is_floating_point])
    return _size(inputs) + _size(results)


def _flops(name: str, args: Any, results: list[Tensor]) -> int:
    if name in ("addmm", "baddbmm"):  # the first argument is added to the product of the others
        args = args[1:]
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        return 2 * math.prod(args[0].shape) * args[1].shape[-1]
    if name in ("convolution", "_convolution"):
        return 2 * results[0].numel() * math.prod(args[1].shape[1:])
    if name == "attention":
        q, k, v = args[:3]
        return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    if name == "temporal_attention":  # our own kernel, on (b, frames, pixels, 3 channels)
        return 4 * args[0].shape[1] * results[0].numel()
    return 0


# ------------------------------------------------------------------------------------------ parts


@contextmanager
def _parts(meter: _Meter, module: nn.Module | None, part_of: PartOf | None) -> Iterator[None]:
    """Tells the meter which part of the network is running."""
    outer: list[str] = []

    def enter(path: str) -> Any:
        def hook(*_: Any) -> None:
            outer.append(meter.part)
            meter.part = part_of(path, meter.part) if part_of else REST

        return hook

    def leave(*_: Any) -> None:
        meter.part = outer.pop()

    handles = []
    for path, submodule in module.named_modules() if module is not None else ():
        handles.append(submodule.register_forward_pre_hook(enter(path)))
        handles.append(submodule.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
