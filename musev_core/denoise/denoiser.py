"""One model evaluation for a whole clip: every window sees the clean condition frames, and the predictions are fused.

This is MuseV's visual-conditioned parallel denoising (musev.md 4): windows do not depend on each other within a step,
so a video may be as long as one likes, and errors do not pile up from window to window.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from ..errors import MuseVError
from ..models.conditions import ClipConditions
from ..models.unet import MuseVUNet
from .control import ClipControls, Control
from .windows import WindowOptions, context_windows, fusion_weights, place_condition_frames


@dataclass(frozen=True)
class DenoiserOptions:
    """How a clip is evaluated; neither of the last two changes the result beyond rounding.

    Args:
        windows: see `WindowOptions`.
        motion_speed: see `MuseVUNet`; 8 is slow, 16 fast.
        skip_temporal: treat every frame as a picture of its own.
        windows_per_call: how many windows go through the network at once: faster, needs more memory.
        split_guidance: evaluate the guidance branches one after another: half the memory.
    """

    windows: WindowOptions = field(default_factory=WindowOptions)
    motion_speed: float = 8.0
    skip_temporal: bool = False
    windows_per_call: int = 1
    split_guidance: bool = False

    def __post_init__(self) -> None:
        if self.windows_per_call < 1:
            raise MuseVError(f"windows_per_call must be at least 1, got {self.windows_per_call}")
        if not 0 <= self.motion_speed < math.inf:
            raise MuseVError(f"motion_speed must be a finite number of at least 0, got {self.motion_speed}")


@dataclass(frozen=True)
class _Window:
    generated: list[int]  # numbers among the generated frames
    frames: list[int]  # numbers in the clip, condition frames placed
    condition_positions: tuple[int, ...]  # where the condition frames stand in `frames`
    generated_positions: list[int]  # where the generated frames stand in `frames`


class ClipDenoiser:
    """Evaluates the network for all frames of a clip.

    Args:
        unet: the motion network.
        clip: prompts and pictures; `rows = branches * videos`, branch outermost (unconditional first).
        branches: 2 with guidance, otherwise 1.
        num_frames: frames of the clip, condition frames included.
        condition_frames: numbers of the condition frames in the clip.
        controls: ControlNets.
        on_window: called with (windows done, windows in all) before every call of the network; may raise to stop.
    """

    def __init__(
        self,
        unet: MuseVUNet,
        clip: ClipConditions,
        *,
        branches: int,
        num_frames: int,
        condition_frames: Sequence[int] = (),
        options: DenoiserOptions | None = None,
        controls: Sequence[Control] = (),
        on_window: Callable[[int, int], None] | None = None,
    ):
        self.unet = unet
        self.branches = branches
        self.options = options or DenoiserOptions()
        self.on_window = on_window
        self.condition_frames = sorted(condition_frames)
        if len(set(self.condition_frames)) != len(condition_frames):
            raise MuseVError(f"a condition frame is given twice: {list(condition_frames)}")
        if any(not 0 <= i < num_frames for i in self.condition_frames):
            raise MuseVError(
                f"condition frame numbers must lie in 0..{num_frames - 1} for a clip of {num_frames} frames, "
                f"got {list(condition_frames)}"
            )
        self.generated = [i for i in range(num_frames) if i not in set(self.condition_frames)]
        if not self.generated:
            raise MuseVError(f"all {num_frames} frames of the clip are condition frames: nothing is left to generate")
        for control in controls:
            if control.hints.shape[0] != num_frames:
                raise MuseVError(
                    f"a ControlNet needs one hint per frame of the clip, condition frames included: expected "
                    f"{num_frames}, got {control.hints.shape[0]}"
                )
        rows = clip.rows // branches
        split = self.options.split_guidance and branches > 1
        clips = [clip.take(range(i * rows, (i + 1) * rows)) for i in range(branches)] if split else [clip]
        self._calls = [(clip, ClipControls(controls, clip)) for clip in clips]
        # with all branches in one call, what comes before the prompt is computed once for all of them
        self._shared = branches if not split and _branches_start_alike(clip, branches) else 1
        self._prepared: set[int] = set()
        self._shifting = self.options.windows.shift > 0
        self._plan: list[_Window] | None = None

    def __call__(self, latents: Tensor, timestep: Tensor, step: int, num_steps: int) -> Tensor:
        """Predictions `(branches * b, c, generated frames, h, w)` for `latents (b, 4, frames, h, w)`.

        The generated frames of `latents` are scaled for the network, the condition frames are clean. Overlapping
        predictions are averaged before guidance, which is linear, so the order does not matter.
        """
        plan = self._windows(step)
        b, _, _, h, w = latents.shape
        total = latents.new_zeros(self.branches * b, self.unet.config.out_channels, len(self.generated), h, w)
        coverage = [0.0] * len(self.generated)
        for _, controls in self._calls:
            controls.start_step(step, num_steps, [window.frames for window in plan])
        done = 0
        for group in self._batches(plan):
            if self.on_window is not None:
                self.on_window(done, len(plan))
            predictions = self._evaluate(latents, timestep, group, done + len(group))
            for j, window in enumerate(group):
                weights = fusion_weights(len(window.generated), self.options.windows).tolist()
                _accumulate(total, coverage, predictions[:, j], window, weights)
            done += len(group)
        if self.on_window is not None:
            self.on_window(done, len(plan))
        if any(x != 1.0 for x in coverage):
            total = total / total.new_tensor(coverage)[:, None, None]
        return total

    def _prepare(self, num_frames: int) -> None:
        """Constants for windows of a length not seen before in this clip."""
        if num_frames not in self._prepared and not torch.is_grad_enabled():
            self._prepared.add(num_frames)
            for clip, _ in self._calls:
                self.unet.prepare(clip, num_frames, motion_speed=self.options.motion_speed, branches=self._shared)

    def _windows(self, step: int) -> list[_Window]:
        if self._plan is None or self._shifting:
            windows = context_windows(len(self.generated), self.options.windows, step)
            self._plan = [self._placed(window) for window in windows]
        return self._plan

    def _placed(self, window: list[int]) -> _Window:
        frames = place_condition_frames([self.generated[i] for i in window], self.condition_frames)
        conditions = set(self.condition_frames)
        return _Window(
            window,
            frames,
            tuple(i for i, frame in enumerate(frames) if frame in conditions),
            [i for i, frame in enumerate(frames) if frame not in conditions],
        )

    def _batches(self, plan: list[_Window]) -> Iterator[list[_Window]]:
        """Neighbouring windows of the same layout, up to `windows_per_call` at a time."""
        group: list[_Window] = []
        for window in plan:
            same = group and (len(group[0].frames), group[0].condition_positions) == (
                len(window.frames),
                window.condition_positions,
            )
            if group and (not same or len(group) == self.options.windows_per_call):
                yield group
                group = []
            group.append(window)
        yield group

    def _evaluate(self, latents: Tensor, timestep: Tensor, group: list[_Window], done: int) -> Tensor:
        """Predictions `(branches * b, windows, c, t, h, w)` for a group of windows, `done` with it in this step."""
        dtype = next(self.unet.parameters()).dtype
        frames = [window.frames for window in group]
        sample = torch.stack([gather_frames(latents, window) for window in frames], dim=1)  # (b, windows, c, t, h, w)
        outputs = []
        self._prepare(len(frames[0]))
        for clip, controls in self._calls:
            # row outermost, its windows side by side
            repeats = clip.rows // sample.shape[0] // self._shared
            batch = sample if repeats == 1 else sample.repeat(repeats, 1, 1, 1, 1, 1)
            out = self.unet(
                rearrange(batch, "b windows c t h w -> (b windows) c t h w").to(dtype),
                timestep,
                clip.at_frames(frames),
                condition_frames=group[0].condition_positions,
                motion_speed=self.options.motion_speed,
                control=controls.residuals(latents, timestep, frames, done),
                skip_temporal=self.options.skip_temporal,
                branches=self._shared,
            )
            out = rearrange(out, "(b windows) c t h w -> b windows c t h w", b=clip.rows)
            outputs.append(out.to(sample.dtype))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _branches_start_alike(clip: ClipConditions, branches: int) -> bool:
    """Whether the first reference feature, the only one before the prompt, is the same in all branches."""
    if branches == 1 or clip.reference is None:
        return True
    first, *others = clip.reference.down[0].chunk(branches)
    return all(torch.equal(first, other) for other in others)


def _accumulate(
    total: Tensor, coverage: list[float], prediction: Tensor, window: _Window, weights: Sequence[float]
) -> None:
    """Adds a window's weighted prediction `(rows, c, t, h, w)` to the frames it belongs to."""
    for position, frame, weight in zip(window.generated_positions, window.generated, weights, strict=True):
        total[:, :, frame].add_(prediction[:, :, position], alpha=weight)
        coverage[frame] += weight


def gather_frames(x: Tensor, frames: Sequence[int]) -> Tensor:
    """Frames of `x (b, c, t, h, w)` in the given order, by slices of neighbours instead of index tensors."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][-1] + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    parts = [x[:, :, run[0] : run[-1] + 1] for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
