"""MODEL + MuseV's options -> MODEL: the only file that knows ComfyUI's ModelPatcher and its wrappers.

A patched MODEL is a clone of the user's: what was patched before stays, what is patched later works. All wrappers are
stateless; what a node says is in the attachment, what a run finds out in its `RunState` (comfyui.md, part A).
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ...musev_core.denoise.noise import VideoNoise
from ...musev_core.errors import MuseVError
from ...musev_core.values import SEEDS
from . import forwards, notices, references, wrappers
from .foreign import refuse_foreign
from .networks import adapter_layers
from .options import KEY, Options, options_of
from .runstate import RunState
from .view import base_config, check_fit
from .windows import MuseVContextHandler, check_conditioning, run_of


def with_options(model: Any, **changes: Any) -> Any:
    """A clone of a MODEL with changed options, ready to be sampled.

    Raises:
        MuseVError: the MODEL is not a plain Stable Diffusion 1.5 model, or something on it cannot be combined.
    """
    base = base_config(_unet_config(model))
    refuse_foreign(model)
    forwards.check_patches(model.object_patches, base)
    before = options_of(model)
    if before.motion is not None and "motion" in changes:
        raise MuseVError(
            f"this MODEL already moves ({before.motion.motion.name}): apply one motion model only. To use another one, "
            "connect Apply MuseV Motion to the MODEL before the first."
        )
    options = before.with_(**changes)
    if options.motion is not None:
        check_fit(options.motion.motion, base)
        _check_together(options, base)
    new = model.clone()
    new.set_attachments(KEY, options)
    new.set_additional_models(KEY, _patchers(options))
    if new.model_options.get("context_handler") is None:
        new.model_options["context_handler"] = MuseVContextHandler()
    if model.get_attachment(KEY) is not None:
        return new  # the wrappers were cloned with it
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _outer_sample),
        (WrappersMP.PREPARE_SAMPLING, _prepare_sampling),
        (WrappersMP.SAMPLER_SAMPLE, _sampler_sample),
        (WrappersMP.PREDICT_NOISE, _predict_noise),
        (WrappersMP.DIFFUSION_MODEL, _diffusion_model),
    ):
        new.add_wrapper_with_key(kind, KEY, wrapper)
    return new


def _patchers(options: Options) -> list[Any]:
    """What has to be loaded beside the MODEL."""
    if options.motion is None or options.motion.strength == 0:
        return []
    patchers = [options.motion.motion.patcher]
    for prompt in (options.image_prompt, options.face):
        if prompt is not None:
            patchers += prompt.adapter.patchers[1:]  # its attention layers; the projection runs before
    return patchers


def _unet_config(model: Any) -> dict[str, Any]:
    config = getattr(getattr(model.model, "model_config", None), "unet_config", None)
    if not config or "channel_mult" not in config:
        raise MuseVError(
            f"MuseV needs a Stable Diffusion 1.5 model, but this MODEL is a {type(model.model).__name__}. "
            "Load an SD1.5 checkpoint."
        )
    return config


def _check_together(options: Options, base: Any) -> None:
    motion = options.motion
    if motion is None:
        return
    config, name = motion.motion.config, motion.motion.name
    if options.reference is not None and not config.reference_fusion:
        raise MuseVError(
            f"the motion model {name} has no layers for a ReferenceNet (it is the variant musev). Load "
            "musev_referencenet, or remove Apply ReferenceNet."
        )
    if options.reference is not None:
        ours, theirs = options.reference.net.net.config.block_out_channels, base.block_out_channels
        if ours != theirs:
            raise MuseVError(
                f"the ReferenceNet {options.reference.net.name} has the widths {ours}, the MODEL {theirs}: they were "
                "not made for each other"
            )
    prompt = options.image_prompt
    if prompt is not None and prompt.adapter.layers:
        adapter_layers(prompt.adapter, base)
    elif prompt is not None and not config.image_prompt:
        raise MuseVError(
            f"{prompt.adapter.name} is MuseV's own image projection, whose attention layers are part of the "
            f"musev_referencenet motion models; {name} has none. Load such a motion model, or an ip-adapter_sd15 file."
        )
    if options.face is not None:
        adapter_layers(options.face.adapter, base)


# ------------------------------------------------------------------------------------------ wrappers


def _outer_sample(
    executor: Any,
    noise: Any,
    latent_image: Any,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Any = None,
    *args,
    **kwargs,
) -> Any:
    """Finds the condition frames, refuses what cannot work, computes the reference features; afterwards puts the
    condition frames back exactly as they came."""
    guider = executor.class_obj
    model = guider.model_patcher
    options = options_of(model)
    if options.motion is None:
        raise MuseVError(
            "this MODEL has MuseV settings, but no motion model. Put Apply MuseV Motion between the checkpoint and the "
            "sampler; the order of MuseV's nodes does not matter."
        )
    if options.motion.strength == 0:
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
    refuse_foreign(model)
    base = base_config(_unet_config(model))
    forwards.check_patches(model.object_patches, base)
    if options.guidance is not None:
        _check_guider(guider)
    if _is_nested(latent_image) or latent_image.ndim != 4:
        raise MuseVError(
            f"MuseV samples a LATENT of the shape (frames, 4, height/8, width/8), got {_shape(latent_image)}. "
            "Use Image to Video or Empty Latent Image with batch_size = frames."
        )
    frames = latent_image.shape[0]
    if not bool(torch.isfinite(latent_image).all()):
        raise MuseVError(
            "the LATENT holds NaN or infinite values. Encode the picture again, with another VAE or a VAE in fp32."
        )
    conditions = condition_frames(denoise_mask, frames)
    if len(conditions) == frames:
        raise MuseVError(
            f"all {frames} frames of the LATENT are condition frames (their noise mask is 0): nothing is left to "
            "generate. Raise the length."
        )
    _check_lengths(options, frames)
    for conds in guider.conds.values():
        for cond in conds:
            check_conditioning(cond, frames)
    run = RunState(
        options=options,
        num_frames=frames,
        condition_frames=conditions,
        base=base,
        features=references.compute(model, options, latent_image, _texts(guider)),
        source=VideoNoise([(kwargs.get("seed") or _seed(args)) % SEEDS]),
    )
    guider.model_options.setdefault("transformer_options", {})[KEY] = run
    try:
        output = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
    finally:
        guider.model_options["transformer_options"].pop(KEY, None)
    if conditions:
        index = list(conditions)
        output = output.clone()
        output[index] = latent_image[index].to(output)
    return output


def condition_frames(mask: Tensor | None, frames: int) -> tuple[int, ...]:
    """Numbers of the frames which are to stay as they are: their mask is 0 everywhere."""
    if mask is None:
        return ()
    rows = mask.reshape(mask.shape[0], -1).amax(dim=1).tolist() if mask.ndim > 2 else [float(mask.max())]
    rows = [rows[i % len(rows)] for i in range(frames)]  # as ComfyUI repeats a shorter mask
    return tuple(i for i, value in enumerate(rows) if value == 0)


def _prepare_sampling(executor: Any, model: Any, noise_shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
    """Memory is asked for one window instead of the whole clip."""
    run = run_of(kwargs.get("model_options") or {})
    if run is not None:
        window = min(run.num_frames, run.options.windows.length + len(run.condition_frames))
        noise_shape = [window, *noise_shape[1:]]
    return executor(model, noise_shape, *args, **kwargs)


def _sampler_sample(
    executor: Any,
    model_wrap: Any,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Tensor,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """MuseV's noise, at the start and for samplers which add some later; the progress bar."""
    run = run_of(extra_args["model_options"])
    if run is None:
        return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    sampler = executor.class_obj
    run.model_sampling = model_wrap.inner_model.model_sampling
    forwards.check_parts(forwards.bypassed(model_wrap.inner_model.diffusion_model, run.base))
    run.around = wrappers.names(extra_args["model_options"])
    run.conds = model_wrap.conds
    run.sigmas = sigmas.tolist()
    run.bar = comfy.utils.ProgressBar(max(len(run.sigmas) - 1, 1))
    if run.condition_frames and latent_image is not None:
        run.clean = latent_image[list(run.condition_frames)].clone()
    if run.options.noise.type == "video_fusion":
        notices.noise_is_replaced(model_wrap.model_patcher, noise, extra_args.get("seed"), run.around)
    from_noise = sampler.max_denoise(model_wrap, sigmas)
    if from_noise and not run.condition_frames:
        notices.warn(
            "The LATENT has no condition frame: MuseV goes on from a picture, and makes coloured noise of nothing. "
            "Use Image to Video; for a video from words alone make its first picture with the model without motion."
        )
    empty = latent_image is None or not bool(latent_image[run.generated].any())
    noise = run.initial_noise(noise, from_scratch=from_noise and empty)
    if from_noise and run.options.original_scaling:
        # ComfyUI scales by sqrt(1 + sigma^2), the original by sigma
        noise = noise * (sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5)
    function = getattr(sampler, "sampler_function", None)
    if (
        function is not None
        and run.options.noise.type == "video_fusion"
        and "noise_sampler" in inspect.signature(function).parameters
        and "noise_sampler" not in sampler.extra_options
    ):
        # the sampler object may be shared with other nodes
        sampler = copy.copy(sampler)
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": lambda *_: run.fresh_noise(noise)}
        executor = WrapperExecutor.new_class_executor(sampler.sample, sampler, executor.wrappers, executor.idx)
    return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)


def _predict_noise(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The guidance scale of this step, if there is a schedule."""
    guider = executor.class_obj
    run = run_of(guider.model_options)
    scale = None if run is None else run.guidance(float(timestep[0]))
    if scale is None:
        return executor(x, timestep, *args, **kwargs)
    before, guider.cfg = guider.cfg, scale
    try:
        return executor(x, timestep, *args, **kwargs)
    finally:
        guider.cfg = before


@torch.compiler.disable()
def _diffusion_model(
    executor: Any,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor | None = None,
    y: Any = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Our network in place of ComfyUI's forward; wrappers of other packs still run around it."""
    options = {} if transformer_options is None else transformer_options
    run = options.get(KEY)
    sigmas = options.get("sigmas")
    if run is not None and (sigmas is None or run.moves(float(sigmas[0]))):
        unet = executor.class_obj
        forwards.check_forward(executor.original, unet)

        def forward(x, timesteps, context, y=None, control=None, transformer_options=options, **_: Any) -> Tensor:
            return run.forward(unet, x, timesteps, context, control, transformer_options)

        executor.original = forward
    return executor(x, timesteps, context, y, control, options, **kwargs)


# ------------------------------------------------------------------------------------------- details


def _is_nested(x: Any) -> bool:
    return bool(getattr(x, "is_nested", False))


def _shape(x: Any) -> Any:
    return "a nested latent" if _is_nested(x) else tuple(x.shape)


def _seed(args: Sequence[Any]) -> int:
    """The seed among the positional arguments (callback, disable_pbar, seed)."""
    return args[2] if len(args) > 2 and args[2] is not None else 0


def _texts(guider: Any) -> list[Tensor]:
    """Negative and positive prompt, the first of each; only the positive where there is no negative."""
    positive = guider.conds.get("positive") or next(iter(guider.conds.values()), [])
    negative = guider.conds.get("negative") or positive
    found = [conds[0].get("cross_attn") for conds in (negative, positive) if conds]
    if len(found) < 2 or any(text is None for text in found):
        raise MuseVError("the sampler got no text conditioning. Connect CLIP Text Encode to positive and negative.")
    return found


def _check_guider(guider: Any) -> None:
    """A schedule sets `cfg`: a guider may have several of them, or no negative prompt to lead away from."""
    if not hasattr(guider, "cfg") or hasattr(guider, "cfg1") or "negative" not in guider.conds:
        raise MuseVError(
            "Set Guidance Schedule needs a guider with a positive and a negative prompt and one cfg value, such as "
            f"CFGGuider; {type(guider).__name__} is none. Use another guider, or remove the schedule."
        )


def _check_lengths(options: Options, frames: int) -> None:
    for name, x in (
        ("frame_strength of Apply MuseV Motion", options.motion and options.motion.frame_strength),
        ("mask of Apply IP-Adapter", options.image_prompt and options.image_prompt.mask),
    ):
        if x is not None and len(x) not in (1, frames):
            raise MuseVError(
                f"the {name} has {len(x)} frames, the clip has {frames} (condition frames included). Give it {frames}, "
                "or 1 for all."
            )
