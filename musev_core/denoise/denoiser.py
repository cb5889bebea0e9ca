"""One model evaluation for a whole clip: every window sees the clean condition frames, and the predictions are fused.

This is MuseV's visual-conditioned parallel denoising (musev.md 4): windows do not depend on each other within a step,
so a video may be as long as one likes, and errors do not pile up from window to window.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from ..errors import MuseVError
from ..models.conditions import ClipConditions
from ..models.unet import MuseVUNet
from .control import ClipControls, Control
from .parts import ClipWindows, Part, Prediction, PredictionCache
from .windows import Window, WindowOptions, take_frames


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
        self.windows = ClipWindows(num_frames, condition_frames, self.options.windows, self.options.windows_per_call)
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

    @property
    def generated(self) -> list[int]:
        """Numbers of the frames which are no condition frames."""
        return self.windows.generated

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        step: int,
        num_steps: int,
        *,
        part: Part | None = None,
        cache: PredictionCache | None = None,
    ) -> Tensor:
        """Predictions `(branches * b, c, generated frames, h, w)` for `latents (b, 4, frames, h, w)`.

        The generated frames of `latents` are scaled for the network, the condition frames are clean. Overlapping
        predictions are averaged before guidance, which is linear, so the order does not matter.

        Args:
            part: which frames `latents` are, `ClipWindows.held` says; default: the whole clip. The predictions are of
                the generated ones among them; beyond the frames which the part needs at this step they mean nothing.
            cache: what earlier parts have evaluated, and what this one evaluates for later ones.
        """
        call = self.windows.call(step)
        numbers: Sequence[int] = range(len(call.jobs)) if part is None else part.jobs[step]
        start, held = (0, None) if part is None else (part.start, self.windows.held(part))
        places = None if held is None else {frame: i for i, frame in enumerate(held)}
        known = {} if cache is None else {n: x for n in numbers if (x := cache.get(step, n)) is not None}
        b, _, _, h, w = latents.shape
        length = len(self.generated) if part is None else len(part)
        total = latents.new_zeros(self.branches * b, self.unet.config.out_channels, length, h, w)
        coverage = [0.0] * length
        windows = [window.frames for n in numbers if n not in known for window in call.jobs[n]]
        for _, controls in self._calls:
            # no reference to this object, or both would live on until Python looks for circles
            controls.start_step(step, num_steps, windows, partial(self.windows.group_of, call))
        done = 0
        for number in numbers:
            if number not in known:
                job = call.jobs[number]
                if self.on_window is not None:
                    self.on_window(done, len(windows))
                done += len(job)
                values = self._evaluate(latents, timestep, job, done, places)
                prediction = Prediction(*self.windows.weights(job), values)
                if part is not None and cache is not None:
                    cache.keep(step, number, prediction, part.keep_from)
            else:
                prediction = known[number]
            prediction.add(total, coverage, start)
        if self.on_window is not None:
            self.on_window(done, len(windows))
        if any(x != 1.0 for x in coverage):
            # what no window of the part's cone holds is not needed
            total = total / total.new_tensor([x or 1.0 for x in coverage])[:, None, None]
        return total

    def forget_before(self, frame: int) -> None:
        """Drops what is kept of the generated frames before this one."""
        first = self.generated[frame] if frame < len(self.generated) else self.windows.num_frames
        for _, controls in self._calls:
            controls.keep(lambda i: i >= first or i in self.windows.condition_frames)

    def _prepare(self, num_frames: int) -> None:
        """Constants for windows of a length not seen before in this clip."""
        if num_frames not in self._prepared and not torch.is_grad_enabled():
            self._prepared.add(num_frames)
            for clip, _ in self._calls:
                self.unet.prepare(clip, num_frames, motion_speed=self.options.motion_speed, branches=self._shared)

    def _evaluate(
        self, latents: Tensor, timestep: Tensor, job: Sequence[Window], done: int, places: Mapping[int, int] | None
    ) -> Tensor:
        """Predictions `(branches * b, c, frames, h, w)` for the generated frames of a job's windows, one after the
        other; `done` counts the windows of this step up to its last."""
        dtype = next(self.unet.parameters()).dtype
        frames = [window.frames for window in job]
        held = frames if places is None else [[places[frame] for frame in window] for window in frames]
        sample = torch.stack([take_frames(latents, window, dim=2) for window in held], dim=1)
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
                condition_frames=job[0].condition_positions,
                motion_speed=self.options.motion_speed,
                control=controls.residuals(latents, timestep, frames, done, places),
                skip_temporal=self.options.skip_temporal,
                branches=self._shared,
            )
            out = rearrange(out, "(b windows) c t h w -> b windows c t h w", b=clip.rows)
            outputs.append(out.to(sample.dtype))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        generated = [take_frames(out[:, i], window.generated_positions, dim=2) for i, window in enumerate(job)]
        return generated[0] if len(generated) == 1 else torch.cat(generated, dim=2)


def _branches_start_alike(clip: ClipConditions, branches: int) -> bool:
    """Whether the first reference feature, the only one before the prompt, is the same in all branches."""
    if branches == 1 or clip.reference is None:
        return True
    first, *others = clip.reference.down[0].chunk(branches)
    return all(torch.equal(first, other) for other in others)
