"""Weights into a network that was made on the meta device: the one way for the library's networks and a host's."""

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .files import check_finite, is_finite, shorten

_ALIGNMENT = 64  # bytes, of torch's own memory


def fill(
    net: nn.Module, tensors: Mapping[str, Tensor], source: str | PathLike[str], dtype: torch.dtype | None = None
) -> None:
    """Gives a network its weights; it is ready for inference.

    Args:
        tensors: by name, all that `net` has or a part of it (`weights.files.select`).
        source: their file, for messages.
        dtype: what they become; None: as they are stored.

    Raises:
        CheckpointError: they hold NaN or infinity, or `dtype` is too small for them; the message names them.
    """
    weights = {name: _aligned(x if dtype is None else x.to(dtype)) for name, x in tensors.items()}
    if overflowing := [name for name, x in weights.items() if not is_finite(x)]:
        check_finite({name: tensors[name] for name in overflowing}, source)
        raise CheckpointError(
            f"{source} holds numbers too large for {str(dtype).removeprefix('torch.')} in {shorten(overflowing)}. "
            "Load it in bfloat16 or float32 (--dtype, or dtype in the loader node)."
        )
    net.load_state_dict(weights, strict=False, assign=True)
    net.eval().requires_grad_(False)


def _aligned(x: Tensor) -> Tensor:
    """Tensors of a mapped file lie anywhere; matrix products of the CPU then run slower, and round differently."""
    return x if x.data_ptr() % _ALIGNMENT == 0 else x.clone()
