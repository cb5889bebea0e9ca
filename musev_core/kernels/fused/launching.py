"""What all launches share."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's; on the CPU its interpreter runs."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power_of_2(size: int, *, most: int) -> int:
    """The block that holds `size` elements if it may, else the largest that is allowed."""
    return min(1 << (size - 1).bit_length(), most)
