"""ComfyUI's context handler for MuseV: windows with clean condition frames, hints and prompts cut to fit.

ComfyUI's own windows cannot be used: they know no condition frames, and old ones give every window the hints of the
first (comfyui.md B6).
"""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.context_windows import ContextHandlerABC
from torch import Tensor

from ...musev_core.denoise.windows import fusion_weights, take_frames
from ...musev_core.errors import MuseVError
from . import wrappers
from .control import ControlSlices, check_hints
from .options import KEY
from .runstate import RunState


def run_of(model_options: dict[str, Any]) -> RunState | None:
    """The run these options belong to."""
    return model_options.get("transformer_options", {}).get(KEY)


def check_conditioning(cond: dict[str, Any], num_frames: int) -> None:
    """Raises MuseVError if something in a conditioning is there for several frames, but not for every one."""
    check_hints(cond.get("control"), num_frames)
    for name, what in (("cross_attn", "A prompt"), ("mask", "A mask of a prompt")):
        x = cond.get(name)
        # a mask may come without the axis of its batch
        rows = x.shape[0] if isinstance(x, Tensor) and x.ndim == 3 else 1
        if rows not in (1, num_frames):
            raise MuseVError(
                f"{what} comes in {rows} versions, but the clip has {num_frames} frames (condition frames included). "
                f"Give it {num_frames}, one per frame, or 1 for all."
            )


class MuseVContextHandler(ContextHandlerABC):
    """Evaluates a clip window by window; stateless, everything about a run is in its `RunState`."""

    def __deepcopy__(self, memo: dict) -> "MuseVContextHandler":
        return self

    def should_use_context(
        self, model: Any, conds: list[list[dict]], x_in: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> bool:
        """For every evaluation, also of a short clip: condition frames have to be put in."""
        return run_of(model_options) is not None

    def get_resized_cond(self, cond_in: list[dict], x_in: Tensor, window: Any, device: Any = None) -> list[dict]:
        """Conditioning for the frames of a window, a list of numbers."""
        return [_sliced(cond, window, x_in.shape[0]) for cond in cond_in]

    def execute(
        self,
        calc_cond_batch: Callable[..., list[Tensor]],
        model: Any,
        conds: list[list[dict]],
        x_in: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """Denoised latents for every kind of conditioning."""
        run = run_of(model_options)
        if run is None:
            return calc_cond_batch(model, conds, x_in, timestep, model_options)
        sigma = float(timestep[0])
        if not run.moves(sigma):
            return _still(calc_cond_batch, model, conds, x_in, timestep, model_options)
        _look_at(run, conds, model_options)
        if x_in.shape[0] != run.num_frames:
            raise wrappers.wrong_batch(run.around, f"{x_in.shape[0]} frames", f"the {run.num_frames} of the clip")
        jobs = run.windows.call(run.step(sigma)).jobs
        scale = model.model_sampling.calculate_input(timestep[:1], torch.ones_like(x_in[:1, :1, :1, :1]))
        totals = [torch.zeros_like(x_in) for _ in conds]
        coverage = [0.0] * x_in.shape[0]
        try:
            for number, (window,) in enumerate(jobs):
                comfy.model_management.throw_exception_if_processing_interrupted()
                frames, run.window = window.frames, window
                x = take_frames(x_in, frames, dim=0).clone()
                if run.clean is not None:
                    # clean and unscaled once ComfyUI has scaled it, for the UNet and for every ControlNet
                    for i in window.condition_positions:
                        x[i] = (run.clean[run.condition_frames.index(frames[i])] / scale).to(x)
                with ControlSlices(run.controls, frames, run.num_frames) as controls:
                    sliced = [
                        None if cond is None else [_sliced(c, frames, run.num_frames, controls) for c in cond]
                        for cond in conds
                    ]
                    options_here = _announced(model_options, frames, run.num_frames)
                    run.called = False
                    outputs = calc_cond_batch(model, sliced, x, take_frames(timestep, frames, dim=0), options_here)
                    # without anything around it, no conditioning acts at this noise level
                    if run.around and not run.called:
                        raise wrappers.no_call(run.around)
                weights = fusion_weights(len(window.generated), run.options.windows).tolist()
                for total, output in zip(totals, outputs, strict=True):
                    window.add(total, output, weights, dim=0)
                for position, weight in zip(window.generated_positions, weights, strict=True):
                    coverage[frames[position]] += weight
                run.progress(number, len(jobs), sigma)
        finally:
            run.window = None
        for total in totals:
            total /= total.new_tensor([x or 1.0 for x in coverage])[:, None, None, None]
            if run.clean is not None:
                for frame, clean in zip(run.condition_frames, run.clean, strict=True):
                    total[frame] = clean.to(total)
        return totals


def _still(
    calc_cond_batch: Callable[..., list[Tensor]],
    model: Any,
    conds: list[list[dict]],
    x_in: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> list[Tensor]:
    """ComfyUI's own forward, where the motion model takes no part: in one call, or in parts where memory is short."""
    shape = [len(conds) * x_in.shape[0], *x_in.shape[1:]]
    free = comfy.model_management.get_free_memory(x_in.device)
    run = run_of(model_options)
    whole = run is None or x_in.shape[0] != run.num_frames
    if whole or model.memory_required(shape) * 1.5 < free:
        return calc_cond_batch(model, conds, x_in, timestep, model_options)
    outputs: list[list[Tensor]] = []
    for frames in torch.arange(run.num_frames).split(run.options.windows.length):
        part = frames.tolist()
        with ControlSlices(run.controls, part, run.num_frames) as controls:
            sliced = [
                None if cond is None else [_sliced(c, part, run.num_frames, controls) for c in cond] for cond in conds
            ]
            outputs.append(
                calc_cond_batch(
                    model, sliced, x_in[part], timestep[part], _announced(model_options, part, run.num_frames)
                )
            )
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def _look_at(run: RunState, conds: list[list[dict]], model_options: dict[str, Any]) -> None:
    """Which of the conditionings see the pictures, and what allows to share work between rows and windows."""
    run.pictured = [_is_pictured(run, i, some) for i, some in enumerate(conds)]
    everything = [cond for some in conds if some is not None for cond in some]
    run.around = wrappers.names(model_options)
    wrapped = wrappers.change_rows(model_options)
    run.branches_alike = not wrapped and not any("area" in cond for cond in everything)
    texts = [cond.get("model_conds", {}).get("c_crossattn") for cond in everything]
    run.text_per_frame = wrapped or not all(text is not None and text.cond.shape[0] == 1 for text in texts)
    # a hook changes the layers which the text goes through
    run.text_constant = not run.text_per_frame and all(cond.get("hooks") is None for cond in everything)


def _is_pictured(run: RunState, index: int, some: list[dict] | None) -> bool:
    """Guiders name their conditionings, and evaluate them in any order: [positive, negative] is only the usual one."""
    for name, given in run.conds.items():
        if given is some:
            return "negative" not in name
    return index == 0


def _announced(model_options: dict[str, Any], frames: Sequence[int], num_frames: int) -> dict[str, Any]:
    """The window as other packs read it (IPAdapter_plus, Advanced-ControlNet)."""
    window = {"sub_idxs": list(frames), "full_length": num_frames, "context_length": len(frames)}
    options = {**model_options.get("transformer_options", {}), "ad_params": window}
    return {**model_options, "transformer_options": options}


def _sliced(cond: dict[str, Any], frames: Sequence[int], num_frames: int, controls: Any = None) -> dict[str, Any]:
    """A copy of a conditioning for some frames: everything with one row per frame of the clip is cut."""
    new = dict(cond)
    for name, value in cond.items():
        if name == "control":
            new[name] = value if controls is None else controls.of(value)
        elif name == "model_conds":
            new[name] = {key: _cut_cond(entry, frames, num_frames) for key, entry in value.items()}
        elif isinstance(value, Tensor):
            new[name] = _cut(value, frames, num_frames)
    return new


def _cut_cond(entry: Any, frames: Sequence[int], num_frames: int) -> Any:
    tensor = getattr(entry, "cond", None)
    if not isinstance(tensor, Tensor):
        return entry
    cut = _cut(tensor, frames, num_frames)
    return entry if cut is tensor else entry._copy_with(cut)


def _cut(x: Tensor, frames: Sequence[int], num_frames: int) -> Tensor:
    return take_frames(x, frames, dim=0) if x.ndim > 0 and x.shape[0] == num_frames and num_frames > 1 else x
