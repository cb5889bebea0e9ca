"""ControlNets over a clip: every frame evaluated once a step, every hint embedded once a clip.

A ControlNet looks at single frames, so the residuals of a frame are the same in every window that holds it.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ..models.conditions import ClipConditions, ControlResiduals


class HintFrames(Protocol):
    """What gives the hints of a clip when they are needed, as a tensor `(frames, 3, H, W)` does."""

    @property
    def shape(self) -> Sequence[int]:
        """`(frames, 3, H, W)`"""
        ...

    @property
    def device(self) -> torch.device:
        """Where embeddings are kept."""
        ...

    def __getitem__(self, frames: list[int], /) -> Tensor:
        """`(k, 3, H, W)` in 0..1."""
        ...


@dataclass
class Control:
    """One ControlNet over a clip.

    Args:
        net: a diffusers `ControlNetModel`.
        hints: `(frames of the clip, 3, H, W)` in 0..1, one per frame, condition frames included; a tensor, or what
            reads them when they are needed.
        scale: strength, 1 is full; start, end: active between these fractions of the steps.
    """

    net: nn.Module
    hints: Tensor | HintFrames
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def active(self, step: int, num_steps: int) -> bool:
        """Whether it takes part in this step (musev.md 3)."""
        return self.scale != 0 and not (step / num_steps < self.start or (step + 1) / num_steps > self.end)


class _EmbeddedHints:
    """A ControlNet behind its hint embedding, and the embeddings of the hints, where the hints are."""

    def __init__(self, control: Control):
        self.control = control
        self.embed: nn.Module = control.net.controlnet_cond_embedding  # type: ignore[assignment]
        # a shallow copy which shares all weights: the caller's network stays as it is
        self.net = copy.copy(control.net)
        self.net._modules = {**control.net._modules, "controlnet_cond_embedding": nn.Identity()}
        self._embedded: dict[int, Tensor] = {}

    def hints(self, frames: Sequence[int]) -> Tensor:
        """`(frames, c, h, w)` on the network's device."""
        parameter = next(self.net.parameters())
        new = [i for i in frames if i not in self._embedded]
        if new:
            hints = self.control.hints[new].to(parameter.device, parameter.dtype)
            embedded = self.embed(hints).to(self.control.hints.device)
            self._embedded |= dict(zip(new, embedded, strict=True))
        return torch.stack([self._embedded[i] for i in frames]).to(parameter.device)

    def keep(self, needed: Callable[[int], bool]) -> None:
        """Drops the embeddings of all other frames' hints."""
        self._embedded = {i: x for i, x in self._embedded.items() if needed(i)}


class ClipControls:
    """The ControlNets of a clip, for the rows of one `ClipConditions`.

    They see exactly what the UNet sees: condition frames clean, the others scaled, one time step for all, and the
    text of each row. A step's residuals are kept until the last window that holds their frame is done.
    """

    def __init__(self, controls: Sequence[Control], clip: ClipConditions):
        self.clip = clip
        self._nets = [_EmbeddedHints(control) for control in controls]
        self._active: list[_EmbeddedHints] = []
        self._last_use: dict[int, int] = {}
        self._group_of: Callable[[int], Sequence[int]] | None = None
        self._residuals: dict[int, list[Tensor]] = {}  # frame -> level -> (rows, c, h, w); the mid block comes last

    def start_step(
        self,
        step: int,
        num_steps: int,
        windows: Sequence[Sequence[int]],
        group_of: Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        """Forgets the step before; `windows` are the frames of this step's windows in their order.

        Args:
            group_of: the frames which are evaluated together with a frame: the last bits of an answer depend on the
                batch it is computed in. Default: all that a call is the first to hold.
        """
        self._group_of = group_of
        self._active = [net for net in self._nets if net.control.active(step, num_steps)]
        self._last_use = {frame: i for i, window in enumerate(windows) for frame in window}
        self._residuals = {}

    def keep(self, needed: Callable[[int], bool]) -> None:
        """Drops what is kept over the steps of all other frames."""
        for net in self._nets:
            net.keep(needed)

    def residuals(
        self,
        latents: Tensor,
        timestep: Tensor,
        windows: Sequence[Sequence[int]],
        done: int,
        places: Mapping[int, int] | None = None,
    ) -> ControlResiduals | None:
        """Residuals `(rows * windows * t, c, h, w)` for windows of `latents (b, c, frames, h, w)`.

        Args:
            done: counts the windows of this step up to and including these: frames which no later one holds are
                dropped.
            places: where a frame stands in `latents`; default: these hold the whole clip.
        """
        if not self._active:
            return None
        frames = list(dict.fromkeys(frame for window in windows for frame in window))
        new = [frame for frame in frames if frame not in self._residuals]
        while new:
            group = list(new if self._group_of is None else self._group_of(new[0]))
            self._evaluate(latents, timestep, group, places)
            new = [frame for frame in new if frame not in self._residuals]
        levels = []
        for level in range(len(self._residuals[frames[0]])):
            x = torch.stack([self._residuals[frame][level] for window in windows for frame in window], dim=1)
            levels.append(rearrange(x, "b t c h w -> (b t) c h w"))  # a row's windows side by side
        self._residuals = {frame: x for frame, x in self._residuals.items() if self._last_use.get(frame, -1) >= done}
        return ControlResiduals(tuple(levels[:-1]), levels[-1])

    def _evaluate(self, latents: Tensor, timestep: Tensor, frames: list[int], places: Mapping[int, int] | None) -> None:
        rows, m = self.clip.rows, len(frames)
        held = frames if places is None else [places[frame] for frame in frames]
        sample = torch.stack([latents[:, :, place] for place in held], dim=1)  # (b, frames, c, h, w)
        sample = sample.repeat(rows // latents.shape[0], 1, 1, 1, 1)
        sample = rearrange(sample, "b t c h w -> (b t) c h w")
        text = self.clip.text
        if text.ndim == 4:  # a prompt per frame
            text = torch.stack([text[:, frame] for frame in frames], dim=1)
            text = rearrange(text, "b t n c -> (b t) n c")
        else:
            text = text.repeat_interleave(m, 0)
        total: list[Tensor] = []
        for net in self._active:
            dtype = next(net.net.parameters()).dtype
            down, mid = net.net(
                sample.to(dtype),
                timestep,
                text.to(dtype),
                net.hints(frames).repeat(rows, 1, 1, 1),
                conditioning_scale=net.control.scale,
                return_dict=False,
            )
            levels = [x.to(self.clip.text.dtype) for x in (*down, mid)]
            total = [a + b for a, b in zip(total, levels, strict=True)] if total else levels
        per_frame = [rearrange(x, "(b t) c h w -> b t c h w", b=rows).unbind(1) for x in total]
        for i, frame in enumerate(frames):
            self._residuals[frame] = [level[i] for level in per_frame]
