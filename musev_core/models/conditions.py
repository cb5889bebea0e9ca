"""What stays the same over a whole clip: prompts, pictures, and everything computed from them alone."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ReferenceFeatures:
    """What the ReferenceNet saw: every residual `(rows, pictures, h, w, c)` in order, and the mid block's output."""

    down: tuple[Tensor, ...]
    mid: Tensor


@dataclass(frozen=True)
class ControlResiduals:
    """ControlNet's additions for one call: `(b * t, c, h, w)` per skip connection, and for the mid block (or None)."""

    down: tuple[Tensor, ...]
    mid: Tensor | None = None


@dataclass(frozen=True)
class ClipConditions:
    """The constant inputs of one network for one clip.

    A *row* is one prompt; a call's batch is `rows * windows` with the windows of a row side by side, so keys and values
    are never repeated for windows or frames. The object belongs to one network and is dropped with the clip; what is
    computed from constants only (keys, values, index tensors) is kept in it, unless gradients are needed.

    Args:
        text: `(rows, tokens, dim)`, or `(rows, frames, tokens, dim)` for a prompt that changes over the clip.
        image_tokens, face_tokens: `(rows, tokens, dim)`; a scale <= 0 switches the branch off (musev.md 2.6).
        image_mask: `(1 or frames of the window, H, W)`, 0..1 of any size: where the image tokens act.
        reference_scale: factor of what the ReferenceNet adds; 0 switches it off.
        keep_text: off where a host changes the prompt or its layers from call to call: nothing of the text is kept.
    """

    text: Tensor
    image_tokens: Tensor | None = None
    image_scale: float = 1.0
    face_tokens: Tensor | None = None
    face_scale: float = 1.0
    reference: ReferenceFeatures | None = None
    image_mask: Tensor | None = None
    reference_scale: float = 1.0
    keep_text: bool = True
    _cache: dict[Hashable, object] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """How many prompts there are."""
        return self.text.shape[0]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, computed at the first call for this clip only."""
        if torch.is_grad_enabled():
            return make()
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]  # type: ignore[return-value]

    def nbytes(self) -> int:
        """Memory of what was computed once for this clip, in bytes; shared storages count once."""
        storages: dict[int, int] = {}

        def visit(x: object) -> None:
            if isinstance(x, Tensor):
                storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            elif isinstance(x, tuple | list):
                for y in x:
                    visit(y)

        for value in self._cache.values():
            visit(value)
        return sum(storages.values())

    @property
    def fuses_reference(self) -> bool:
        """Whether there are reference features to look at."""
        return self.reference is not None and self.reference_scale > 0

    def adjusted(
        self,
        *,
        image_scale: float | None = None,
        face_scale: float | None = None,
        reference_scale: float | None = None,
        image_mask: Tensor | None = None,
        changing_text: Tensor | None = None,
    ) -> "ClipConditions":
        """The same conditions and the same cache with other strengths, or a prompt of this call alone."""
        new = replace(
            self,
            image_scale=self.image_scale if image_scale is None else image_scale,
            face_scale=self.face_scale if face_scale is None else face_scale,
            reference_scale=self.reference_scale if reference_scale is None else reference_scale,
            image_mask=self.image_mask if image_mask is None else image_mask,
            text=self.text if changing_text is None else changing_text,
            keep_text=self.keep_text and changing_text is None,
        )
        object.__setattr__(new, "_cache", self._cache)
        return new

    def take(self, rows: Sequence[int]) -> "ClipConditions":
        """The same conditions for some of the rows, with a cache of their own."""
        index = list(rows)

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        reference = self.reference and ReferenceFeatures(
            tuple(x[index] for x in self.reference.down), self.reference.mid[index]
        )
        return replace(
            self,
            text=self.text[index],
            image_tokens=pick(self.image_tokens),
            face_tokens=pick(self.face_tokens),
            reference=reference,
        )

    def at_frames(self, frames: Sequence[Sequence[int]]) -> "ClipConditions":
        """The conditions for windows which hold these frames of the clip; only a changing prompt makes a difference."""
        if self.text.ndim == 3:
            return self
        # windows side by side under their row: (rows * windows, frames, tokens, dim)
        text = torch.stack([self.text[:, list(window)] for window in frames], dim=1)
        text = rearrange(text, "rows windows t n c -> (rows windows) t n c")

        def repeat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(len(frames), 0)

        reference = self.reference and ReferenceFeatures(
            tuple(x.repeat_interleave(len(frames), 0) for x in self.reference.down),
            self.reference.mid.repeat_interleave(len(frames), 0),
        )
        return replace(
            self,
            text=text,
            image_tokens=repeat(self.image_tokens),
            face_tokens=repeat(self.face_tokens),
            reference=reference,
        )
