"""Whether the operators or plain torch run."""

import importlib.util
import logging
import os
from typing import Any

import torch
from torch import Tensor

from ..errors import MuseVError

logger = logging.getLogger(__name__)

MODES = ("auto", "off", "on")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# plain globals, so that torch.compile guards on them instead of breaking the graph
_mode = "auto"
_auto_is_fused = importlib.util.find_spec("triton") is not None and os.environ.get("MUSEV_KERNELS", "").lower() != "off"
_proven: tuple[int | None, ...] = ()  # CUDA devices where a kernel was compiled and launched
_unfit: tuple[int | None, ...] = ()  # CUDA devices where that failed


class use:  # noqa: N801 - reads as a verb, like torch.no_grad
    """Chooses for the whole process, until changed again or, in a `with` block, until its end.

    `auto`: the operators on CUDA tensors where Triton is installed, plain torch otherwise; the environment variable
    `MUSEV_KERNELS=off`, read at import, makes it plain torch always. `off`: plain torch. `on`: the operators on every
    device, e.g. to count them.

    Raises:
        MuseVError: for any other mode.
    """

    def __init__(self, mode: str):
        """Sets the mode."""
        global _mode
        if mode not in MODES:
            raise MuseVError(f"kernels can be {', '.join(MODES)}, but {mode!r} was asked for")
        self._before = _mode
        _mode = mode

    def __enter__(self) -> "use":
        """The mode is set already."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Back to the mode from before."""
        global _mode
        _mode = self._before


def active(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the operators would run on these tensors: `x` decides, and no input may need a gradient.

    The operators have no backward; with gradients plain torch runs instead. Pass the weights too where gradients may
    be recorded.
    """
    if _mode == "off":
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *others)):
        return False
    if _mode == "on":
        return True
    return _auto_is_fused and x.is_cuda and x.dtype in DTYPES and x.device.index not in _unfit


def launchable(x: Tensor) -> bool:
    """Whether a Triton kernel can run on `x`; tried out once per device.

    Raises:
        torch.OutOfMemoryError: there was no memory to try it; the next call tries again.
    """
    if not x.is_cuda or x.dtype not in DTYPES:
        return False
    if x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False  # Triton has no bfloat16 matrix product there
    return x.device.index in _proven or (x.device.index not in _unfit and _prove(x.device))


def _prove(device: torch.device) -> bool:
    """Runs the smallest kernel: Triton may be missing, lack a C compiler, or not support this GPU."""
    global _proven, _unfit
    try:
        from .fused.gating import geglu

        geglu(torch.ones(1, 2, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what Triton raises has no common class, and all of it means the same here
        if "out of memory" in str(error):  # but this, by which it says that it could not load the kernel
            raise torch.OutOfMemoryError(str(error)) from error
        _unfit += (device.index,)
        logger.warning("no fused kernels on %s: Triton cannot run there (%s: %s)", device, type(error).__name__, error)
        return False
    _proven += (device.index,)
    return True


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type the references compute in: at least float32."""
    return torch.promote_types(dtype, torch.float32)
