"""ControlNets inside context windows: every window gets the hints of its own frames."""

import copy
from collections.abc import Sequence
from typing import Any

import comfy.model_management
from torch import Tensor

from ...musev_core.denoise.windows import take_frames
from ...musev_core.errors import MuseVError


def check_hints(control: Any, num_frames: int) -> None:
    """Raises MuseVError if a control has neither one hint nor one per frame of the clip.

    Advanced-ControlNet cuts by itself, and knows controls with a few key frames.
    """
    while control is not None:
        hint = getattr(control, "cond_hint_original", None)
        if isinstance(hint, Tensor) and hint.shape[0] not in (1, num_frames) and not hasattr(control, "sub_idxs"):
            raise MuseVError(
                f"a ControlNet has {hint.shape[0]} control pictures, but the clip has {num_frames} frames (condition "
                f"frames included). Give it {num_frames} pictures, or 1 for all frames; the first belongs to frame 0."
            )
        control = getattr(control, "previous_controlnet", None)


class ControlCache:
    """The cut copies of a run's controls: what they have made of their hints is kept over the steps.

    It is moved off the device between uses if all windows together are large.
    """

    LIMIT = 256 * 2**20  # bytes of processed hints which may stay on the device

    def __init__(self) -> None:
        self.copies: dict[tuple[int, tuple[int, ...]], tuple[Any, Any]] = {}

    def nbytes(self) -> int:
        """Memory of the processed hints."""
        hints = (copied.cond_hint for _, copied in self.copies.values())
        return sum(h.numel() * h.element_size() for h in hints if isinstance(h, Tensor))


class ControlSlices:
    """The controls of one window. One copy per control and window serves both guidance branches: ComfyUI batches only
    conditionings with the same control object."""

    def __init__(self, cache: ControlCache, frames: Sequence[int], num_frames: int):
        self.cache = cache
        self.frames = frames
        self.num_frames = num_frames
        self.used: list[Any] = []

    def __enter__(self) -> "ControlSlices":
        return self

    def __exit__(self, *_: object) -> None:
        if self.cache.nbytes() > ControlCache.LIMIT:
            for control in self.used:
                if isinstance(control.cond_hint, Tensor):
                    control.cond_hint = control.cond_hint.to(comfy.model_management.unet_offload_device())

    def of(self, control: Any) -> Any:
        """The copy of a control, and of those before it, for this window."""
        if control is None:
            return None
        key = (id(control), tuple(self.frames))
        if key not in self.cache.copies:
            # the original is kept as well: its id must not be given to another object
            self.cache.copies[key] = (control, self._cut(control))
        copied = self.cache.copies[key][1]
        hint = getattr(copied, "cond_hint", None)
        if isinstance(hint, Tensor):
            copied.cond_hint = hint.to(comfy.model_management.get_torch_device())
        # pre_run of the original may have come after the copy
        copied.timestep_range = control.timestep_range
        if hasattr(control, "model_sampling_current"):
            copied.model_sampling_current = control.model_sampling_current
        copied.previous_controlnet = self.of(getattr(control, "previous_controlnet", None))
        self.used.append(copied)
        return copied

    def _cut(self, control: Any) -> Any:
        copied = copy.copy(control)  # .copy() of ComfyUI loses the prepared state
        if hasattr(control, "sub_idxs"):  # Advanced-ControlNet cuts by itself
            copied.sub_idxs = list(self.frames)
            copied.full_latent_length = self.num_frames
            copied.context_length = len(self.frames)
            return copied
        copied.cond_hint = None
        copied.cond_hint_original = self._of_frames(control.cond_hint_original)
        if hasattr(control, "extra_concat_orig"):  # masks of inpainting ControlNets
            copied.extra_concat_orig = [self._of_frames(x) for x in control.extra_concat_orig]
        return copied

    def _of_frames(self, x: Any) -> Any:
        return take_frames(x, self.frames, dim=0) if isinstance(x, Tensor) and x.shape[0] == self.num_frames > 1 else x
