"""The 17 blocks of a network which a LoRA may be weighed by, and presets of their factors (extra.md 7.3)."""

import re
from collections.abc import Sequence

from ..errors import MuseVError, nearest
from ..values import scalar

BLOCK_NAMES = (
    "text",
    *(f"down{i}.{j}" for i in range(3) for j in range(2)),
    "mid",
    *(f"up{i}.{j}" for i in range(1, 4) for j in range(3)),
)
LORA_BLOCK_PRESETS: dict[str, tuple[float, ...]] = {
    "ALL": (1.0,) * 17,
    "FACE": (1.0, *(0.0,) * 7, *(1.0,) * 3, *(0.0,) * 6),
    "DEFACE": (1.0, *(1.0,) * 7, *(0.0,) * 3, *(1.0,) * 6),
    "MIDD": (1.0, *(0.0,) * 3, *(1.0,) * 8, *(0.0,) * 5),
    "OUTALL": (1.0, *(0.0,) * 7, *(1.0,) * 9),
}
TEXT_BLOCK = 0
_MID, _FIRST_UP = 7, 8


def block_factors(given: str | Sequence[float | str], *, name: str = "block_weights") -> tuple[float, ...]:
    """The factors of `BLOCK_NAMES`, from a preset in capitals or not, a comma list of 17 numbers, or the numbers.

    Args:
        name: what the message calls them.

    Raises:
        MuseVError: an unknown preset, another count, or something that is no finite number.
    """
    hint = ""
    if isinstance(given, str):
        preset = given.strip().upper()
        if preset in LORA_BLOCK_PRESETS:
            return LORA_BLOCK_PRESETS[preset]
        hint = nearest(preset, LORA_BLOCK_PRESETS)
    numbers = given.split(",") if isinstance(given, str) else given
    if not isinstance(numbers, Sequence) or len(numbers) != len(BLOCK_NAMES):
        raise MuseVError(
            f"{name}: expected {len(BLOCK_NAMES)} numbers or one of {', '.join(LORA_BLOCK_PRESETS)}, "
            f"got {given!r}.{hint}"
        )
    return tuple(scalar(name, number, float) for number in numbers)


def block_index(weight_name: str) -> int:
    """Index into `BLOCK_NAMES` of a UNet's weight: its block, or the nearest one where it belongs to none."""
    match = re.match(r"(down|up)_blocks\.(\d+)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)\.", weight_name)
    if match is None:
        if weight_name.startswith("conv_in."):
            return 1
        if weight_name.startswith(("conv_norm_out.", "conv_out.")):
            return len(BLOCK_NAMES) - 1
        return TEXT_BLOCK if weight_name.startswith("time_embedding.") else _MID
    side, block, layer = match[1], int(match[2]), int(match[4])
    if side == "down":
        layer = 1 if match[3] == "downsamplers" else min(layer, 1)
        return 1 + 2 * block + layer if block < 3 else _MID
    layer = 2 if match[3] == "upsamplers" else min(layer, 2)
    return _FIRST_UP + 3 * (block - 1) + layer if block > 0 else _MID
