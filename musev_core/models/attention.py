"""The one place where attention is computed, with a choice of backends. A host may hand in its own function."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import MuseVError, require

log = logging.getLogger(__name__)

# (q, k, v), each (b, heads, tokens, head_dim) and possibly strided, to (b, heads, tokens of q, head_dim)
AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

# CUDA grids end here in the axes which count heads and batch; temporal attention has a head per pixel and head
GRID_LIMIT = 65535


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, *, limit: int = GRID_LIMIT) -> Tensor:
    """Plain attention without mask, by torch, for any number of heads and rows."""
    for axis in (0, 1):
        if q.shape[axis] > limit:
            parts = zip(*(x.split(limit, axis) for x in (q, k, v)), strict=True)
            return torch.cat([scaled_dot_product(*part, limit=limit) for part in parts], dim=axis)
    return F.scaled_dot_product_attention(q, k, v)


def xformers_attention() -> AttentionFunction:
    """xformers' memory efficient attention.

    Raises:
        MissingPackageError: it is not installed, or does not fit the installed torch.
    """
    ops = require("xformers.ops", install="xformers", purpose="the attention backend xformers")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = ops.memory_efficient_attention(*(rearrange(x, "b heads n d -> b n heads d") for x in (q, k, v)))
        return rearrange(out, "b n heads d -> b heads n d")

    return with_fallback(attend, "xformers")


def with_fallback(backend: AttentionFunction, name: str) -> AttentionFunction:
    """`backend`, and torch's attention for the shapes it refuses; what was refused once is not tried again."""
    refused: set[tuple] = set()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layer = (q.shape[-1], q.shape[1] > GRID_LIMIT or q.shape[0] > GRID_LIMIT, q.dtype, q.device.type)
        if layer not in refused:
            try:
                return backend(q, k, v)
            except (NotImplementedError, RuntimeError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                refused.add(layer)
                log.warning("%s cannot do heads of width %d here (%s); torch does", name, q.shape[-1], error)
        return scaled_dot_product(q, k, v)

    return attend


_BACKENDS: dict[str, Callable[[], AttentionFunction]] = {
    "sdpa": lambda: scaled_dot_product,
    "xformers": xformers_attention,
}


def use_attention(net: nn.Module, backend: str | AttentionFunction) -> None:
    """Lets a network compute its attention with a backend: `sdpa`, `xformers`, or a function of the host."""
    if isinstance(backend, str):
        if backend not in _BACKENDS:
            raise MuseVError(f"unknown attention backend {backend!r}, expected one of {', '.join(_BACKENDS)}")
        backend = _BACKENDS[backend]()
    for module in net.modules():
        if hasattr(module, "attention"):
            module.attention = backend  # type: ignore[assignment]


def heads_first(x: Tensor, heads: int) -> Tensor:
    """`(b, n, heads * d)` as a view `(b, heads, n, d)`."""
    return rearrange(x, "b n (heads d) -> b heads n d", heads=heads)


def heads_last(x: Tensor) -> Tensor:
    """`(b, heads, n, d)` to `(b, n, heads * d)`."""
    return rearrange(x, "b heads n d -> b n (heads d)")


def frames_as_rows(x: Tensor) -> Tensor:
    """`(b, t, n, c)` to `(b t, n, c)`: every frame looks at itself alone."""
    return rearrange(x, "b t n c -> (b t) n c")
