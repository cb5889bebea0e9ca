"""What comes into a node, by whichever way, checked against the node's own schema before anything is computed.

ComfyUI checks what is typed into a node. What comes through a link or from another pack it hands on as it is.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...musev_core.errors import MuseVError, nearest
from ...musev_core.weights.files import shorten
from .networks import HostedIPAdapter, HostedReferenceNet, Motion

LATENT_CHANNELS = 4  # of Stable Diffusion 1.5
_LONGEST_BATCH = 100_000  # ComfyUI draws noise up to the highest number of a batch
_AT_A_TIME = 64  # frames looked at for NaN


def check_inputs(inputs: Sequence[Any], values: Mapping[str, Any], own: Collection[str] = ()) -> dict[str, Any]:
    """The values as a node works with them: whole numbers as int, masks as `(n, H, W)`, None of an optional widget as
    its default.

    Args:
        inputs: of the node's schema.
        values: what came, by name; `execute` may have a default for what did not.
        own: names of lists whose node looks for the chosen entry by itself.

    Raises:
        MuseVError: a value of another kind, beyond its limits, or None; the message begins with the input's name.
    """
    checked = dict(values)
    for each in inputs:
        value = values.get(each.id)
        if each.id not in values:
            continue
        if value is None and each.optional:
            checked[each.id] = getattr(each, "default", None)
            continue
        check = _CHECKS.get(each.get_io_type())
        if check is not None:
            checked[each.id] = check(value, each.id, None if each.id in own else each)
    return checked


def check_memory(what: str, *shape: int) -> None:
    """Raises MuseVError if float32 numbers of this shape do not fit into the free memory."""
    needed = 4 * math.prod(shape)
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if needed > free:
        raise MuseVError(
            f"{what} would need {needed / 2**30:,.1f} GB of memory, and {free / 2**30:,.1f} GB are free. Ask for fewer "
            "frames or a smaller size."
        )


def describe(value: Any) -> str:
    """A value for a message: short, and never its whole content."""
    if value is None:
        return "nothing"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, (bool, Integral, Real)):
        return repr(value)
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


# ------------------------------------------------------------------------------------------ widgets


def _whole(value: Any, name: str, schema: Any) -> int:
    # a comparison with NaN is false; text and tensors are not asked
    within = isinstance(value, Real) and not isinstance(value, bool) and schema.min <= value <= schema.max
    if not within or value != int(value):
        raise MuseVError(f"{name} must be a whole number from {schema.min} to {schema.max}, got {describe(value)}.")
    return int(value)


def _number(value: Any, name: str, schema: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not schema.min <= value <= schema.max:
        raise MuseVError(f"{name} must be a number from {schema.min} to {schema.max}, got {describe(value)}.")
    return float(value)


def _switch(value: Any, name: str, _: Any) -> bool:
    if isinstance(value, (bool, Integral)) and value in (0, 1):
        return bool(value)
    raise MuseVError(f"{name} must be true or false, got {describe(value)}.")


def _text(value: Any, name: str, _: Any) -> str:
    if not isinstance(value, str):
        raise MuseVError(f"{name} must be text, got {describe(value)}.")
    return value


def _choice(value: Any, name: str, schema: Any) -> str:
    text = _text(value, name, schema)
    if schema is not None and text not in schema.options:
        raise MuseVError(
            f"{name} must be one of {shorten(schema.options)}, got {describe(text)}.{nearest(text, schema.options)}"
        )
    return text


# ------------------------------------------------------------------------------------------ pictures


def _images(value: Any, name: str, _: Any) -> Tensor:
    fits = isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] in (3, 4) and value.is_floating_point()
    if not fits or value.numel() == 0:
        raise MuseVError(
            f"{name} must be pictures of shape (frames, height, width, 3) with values 0..1, got {describe(value)}."
        )
    return _finite(value, name, "Make the pictures again, for example with a VAE in fp32.")


def _mask(value: Any, name: str, _: Any) -> Tensor:
    fits = isinstance(value, Tensor) and value.ndim in (2, 3, 4) and value.is_floating_point() and value.numel() > 0
    if not fits or (value.ndim == 4 and value.shape[1] != 1):
        raise MuseVError(
            f"{name} must be masks of shape (frames, height, width) with values 0..1, got {describe(value)}."
        )
    return _finite(value, name, "Make the mask again.").reshape(-1, *value.shape[-2:])


def _latent(value: Any, name: str, _: Any) -> dict[str, Any]:
    samples = value.get("samples") if isinstance(value, Mapping) else None
    nested = bool(getattr(samples, "is_nested", False))
    fits = isinstance(samples, Tensor) and not nested and samples.ndim == 4 and samples.is_floating_point()
    if not fits or samples.shape[1] != LATENT_CHANNELS or samples.numel() == 0:
        got = "several tensors" if nested else describe(value if samples is None else samples)
        raise MuseVError(
            f"{name} must be the latents of a Stable Diffusion 1.5 video, (frames, {LATENT_CHANNELS}, height, width), "
            f"got {got}."
        )
    _finite(samples, name, "Encode the picture again, with another VAE or a VAE in fp32.")
    mask, numbers = value.get("noise_mask"), value.get("batch_index")
    if mask is not None:
        mask = _mask(mask, f"the noise mask of {name}", None)
        if mask.shape[0] not in (1, samples.shape[0]):
            raise MuseVError(
                f"the {name} has {samples.shape[0]} frames, but its noise mask {mask.shape[0]}; give the mask as many, "
                "or 1"
            )
    if numbers is not None and not _are_numbers(numbers, len(samples)):
        raise MuseVError(
            f"the batch_index of {name} must hold {len(samples)} whole numbers below {_LONGEST_BATCH}, one per frame, "
            f"got {describe(numbers)}."
        )
    return dict(value)


def _are_numbers(numbers: Any, frames: int) -> bool:
    return (
        isinstance(numbers, Sequence)
        and len(numbers) == frames
        and all(isinstance(number, Integral) and 0 <= number < _LONGEST_BATCH for number in numbers)
    )


def _finite(x: Tensor, name: str, advice: str) -> Tensor:
    for part in x.split(_AT_A_TIME):
        if not bool(torch.isfinite(part).all()):
            raise MuseVError(f"{name} holds NaN or infinite values. {advice}")
    return x


# ------------------------------------------------------------------------------------------ networks and the rest


def _made_of(kind: type, what: str) -> Callable[[Any, str, Any], Any]:
    def check(value: Any, name: str, _: Any) -> Any:
        if not isinstance(value, kind):
            raise MuseVError(f"{name} must be {what}, got {describe(value)}.")
        return value

    return check


def _able_to(methods: Sequence[str], what: str) -> Callable[[Any, str, Any], Any]:
    """Other packs have classes of their own."""

    def check(value: Any, name: str, _: Any) -> Any:
        # text can be encoded, too
        if isinstance(value, str) or not all(callable(getattr(value, method, None)) for method in methods):
            raise MuseVError(f"{name} must be {what}, got {describe(value)}.")
        return value

    return check


def _conditioning(value: Any, name: str, _: Any) -> Any:
    fits = isinstance(value, (list, tuple)) and len(value) > 0
    fits = fits and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value)
    if not fits or not all(isinstance(x, Tensor) and x.ndim == 3 and isinstance(more, dict) for x, more in value):
        raise MuseVError(f"{name} must be a prompt, from CLIP Text Encode, got {describe(value)}.")
    return value


_CHECKS: dict[str, Callable[[Any, str, Any], Any]] = {
    "INT": _whole,
    "FLOAT": _number,
    "BOOLEAN": _switch,
    "STRING": _text,
    "COMBO": _choice,
    "IMAGE": _images,
    "MASK": _mask,
    "LATENT": _latent,
    "CONDITIONING": _conditioning,
    "MODEL": _made_of(comfy.model_patcher.ModelPatcher, "a model, from Load Checkpoint"),
    "MUSEV_MOTION": _made_of(Motion, "a motion model, from Load MuseV Motion"),
    "MUSEV_REFERENCENET": _made_of(HostedReferenceNet, "a ReferenceNet, from Load MuseV ReferenceNet"),
    "MUSEV_IPADAPTER": _made_of(HostedIPAdapter, "an IP-Adapter, from Load MuseV IP-Adapter"),
    "VAE": _able_to(("encode",), "a VAE; where a checkpoint holds none, load one with Load VAE"),
    "CLIP_VISION": _able_to(("encode_image",), "an image encoder, from Load CLIP Vision"),
    "INSIGHTFACE": _able_to(("prepare", "get"), "a face analysis of insightface"),
}
