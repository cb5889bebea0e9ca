"""What overflows is named where it happens, before a video is made of it."""

import torch
from torch import Tensor

from .errors import MuseVError

HALF = (torch.float16, torch.bfloat16)


def expect_finite(x: Tensor, what: str) -> None:
    """Looks for NaN and infinity in what a network gave.

    Args:
        what: the network, as the beginning of a sentence.

    Raises:
        MuseVError: there are some; it says whether a larger number type would help.
    """
    if x.isfinite().all():
        return
    dtype = str(x.dtype).removeprefix("torch.")
    if x.dtype == torch.float16:
        raise MuseVError(f"{what} overflows in {dtype}: run it in bfloat16 or float32 (--dtype bfloat16).")
    if x.dtype in HALF:
        raise MuseVError(f"{what} overflows in {dtype}: run it in float32 (--dtype float32).")
    raise MuseVError(
        f"{what} gives NaN or infinity in {dtype}: its weights, a LoRA or an embedding are damaged or too strong. Try "
        "without LoRAs and embeddings, then another copy of the model."
    )
