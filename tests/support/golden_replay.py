"""One function per kind of golden case: what we compute for it (goldens/FORMAT.md 4)."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musev_core.denoise.control import ClipControls, Control
from musev_core.denoise.denoiser import DenoiserOptions
from musev_core.denoise.guidance import guidance_schedule
from musev_core.denoise.noise import NoiseOptions, VideoNoise, image_based_noise, video_noise
from musev_core.denoise.schedulers import VideoScheduler
from musev_core.denoise.windows import WindowOptions, context_windows
from musev_core.encode.pictures import FacePromptEncoder, ImagePromptEncoder
from musev_core.encode.text import encode_prompts, parse_weights, weighted_tokens
from musev_core.encode.vae import decode_latents, encode_latents
from musev_core.frames.images import clip_pixel_values, fit_images, fit_video, match_histograms, to_vae_input
from musev_core.models.conditions import ClipConditions, ControlResiduals, ReferenceFeatures
from musev_core.models.embeddings import FrameEmbedding
from musev_core.models.ip_adapter import image_projection
from musev_core.models.layers import Layers, new_layers
from musev_core.models.reference_fusion import ReferenceFusion
from musev_core.models.temporal import TemporalConv, TemporalTransformer
from musev_core.models.transformer import SpatialTransformer
from musev_core.pipeline import ClipInputs, MuseVPipeline, Observer, SamplingOptions, VideoRequest

from . import golden_models as models
from .numbers import det, det_image, fill

Results = dict[str, Any]


@dataclass
class GoldenSet:
    """A folder with `cases.json` and arrays."""

    folder: Path

    @cached_property
    def cases(self) -> list[dict]:
        return json.loads((self.folder / "cases.json").read_text(encoding="utf-8"))

    @cached_property
    def by_id(self) -> dict[str, dict]:
        return {case["id"]: case for case in self.cases}

    def arrays(self, case: dict) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / case["file"])) if case["file"] else {}

    def input(self, spec: Any) -> Any:
        """The tensor (or list of tensors, or reference features) an input specification stands for."""
        if spec is None:
            return None
        if isinstance(spec, list):
            return [self.input(s) for s in spec]
        if "det" in spec:
            return det(*spec["det"])
        if "det_image" in spec:
            return det_image(*spec["det_image"])
        if "zeros" in spec:
            return torch.zeros(spec["zeros"])
        if "concat" in spec:
            return torch.cat([self.input(s) for s in spec["concat"]], dim=spec["axis"])
        if "derived" in spec:
            arrays = self.arrays(self.by_id[spec["case"]])
            down = [channels_last(torch.from_numpy(arrays[k])) for k in sorted(arrays) if k.startswith("down_")]
            return ReferenceFeatures(tuple(down), channels_last(torch.from_numpy(arrays["mid"])))
        raise ValueError(f"unknown input specification {spec}")

    def inputs(self, case: dict) -> dict[str, Any]:
        return {name: self.input(spec) for name, spec in case["inputs"].items()}


def channels_last(x: Tensor) -> Tensor:
    """`(b, c, t, h, w)` to `(b, t, h, w, c)`."""
    return x.permute(0, 2, 3, 4, 1)


def channels_first(x: Tensor) -> Tensor:
    """`(b, t, h, w, c)` to `(b, c, t, h, w)`."""
    return x.permute(0, 4, 1, 2, 3)


def unflatten(x: Tensor, t: int) -> Tensor:
    """`(b t, c, h, w)` to `(b, t, h, w, c)`."""
    return x.unflatten(0, (-1, t)).permute(0, 1, 3, 4, 2)


def flatten(x: Tensor) -> Tensor:
    """`(b, t, h, w, c)` to `(b t, c, h, w)`."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def module(goldens: GoldenSet, case: dict) -> Results:
    config, inputs, kind = case["config"], goldens.inputs(case), case["module"]
    prefix, seed = case["weights"]["prefix"], case["weights"]["seed"]
    layers = Layers(new_layers())
    if kind in ("image_proj", "faceid_proj"):
        plain = "plain" if kind == "image_proj" else "faceid"
        net = fill(image_projection(models.projection_config(plain, config)), prefix, seed)
        return {"output": net(inputs["x"])}
    x = unflatten(inputs["x"], case["num_frames"])
    if kind == "temporal_conv":
        clip = ClipConditions(text=torch.zeros(x.shape[0], 1, 1))
        return {"output": flatten(fill(TemporalConv(layers, config["channels"]), prefix, seed)(x, clip))}
    channels, heads = config["channels"], config["num_heads"]
    if kind == "temporal_transformer":
        net = TemporalTransformer(layers, channels, heads, config["norm_groups"], config["frame_embedding_dim"])
        clip = ClipConditions(text=torch.zeros(x.shape[0], 1, 1))
        return {"output": flatten(fill(net, prefix, seed)(x, FrameEmbedding(inputs["frame_embedding"], None), clip))}
    if kind == "refer_fuse":
        net = fill(ReferenceFusion(layers, channels, heads), prefix, seed)
        clip = ClipConditions(text=torch.zeros(x.shape[0], 1, 1))
        return {"output": flatten(net(x, channels_last(inputs["reference"]), clip))}
    net = SpatialTransformer(
        layers,
        channels,
        heads,
        config["context_dim"],
        config["norm_groups"],
        image_prompt=config["image_prompt_layers"],
        face_prompt=config["face_layers"],
    )
    extra = inputs["extra_self_tokens"]
    output = fill(net, prefix, seed)(
        x,
        ClipConditions(
            text=inputs["context"],
            image_tokens=inputs["image_tokens"],
            image_scale=case["image_scale"],
            face_tokens=inputs["face_tokens"],
            face_scale=case["face_scale"],
        ),
        tuple(range(case["num_condition_frames"])),
        None if extra is None else channels_last(extra).flatten(1, 3),
    )
    return {"output": flatten(output)}


def unet(goldens: GoldenSet, case: dict, *, dtype: torch.dtype = torch.float32) -> Results:
    m, inputs = case["model"], goldens.inputs(case)
    net = models.unet_as(dtype, m["arch"], m["size"], m["seed"], m["face_layers"])
    control = None
    if inputs["control_residuals"] is not None:
        control = ControlResiduals(tuple(inputs["control_residuals"]), inputs["control_mid_residual"])
    clip = ClipConditions(
        text=inputs["context"],
        image_tokens=inputs["image_tokens"],
        image_scale=case["image_scale"],
        face_tokens=inputs["face_tokens"],
        face_scale=case["face_scale"],
        reference=inputs["reference"],
    )
    sample = inputs["sample"]
    if dtype != torch.float32:
        sample, clip, control = to_dtype(sample, dtype), to_dtype(clip, dtype), to_dtype(control, dtype)
    output = net(
        sample,
        case["timestep"],
        clip,
        condition_frames=range(case["num_condition_frames"]),
        motion_speed=case["motion_speed"],
        control=control,
        skip_temporal=case["skip_temporal_layers"],
    )
    return {"output": output}


def to_dtype(x: Any, dtype: torch.dtype) -> Any:
    """Every floating tensor inside, in another precision."""
    if isinstance(x, Tensor):
        return x.to(dtype)
    if isinstance(x, tuple | list):
        return type(x)(to_dtype(y, dtype) for y in x)
    if isinstance(x, ClipConditions | ReferenceFeatures | ControlResiduals):
        fields = {k: to_dtype(v, dtype) for k, v in vars(x).items() if k != "_cache"}
        return type(x)(**fields)
    return x


def unet2d(goldens: GoldenSet, case: dict) -> Results:
    inputs = goldens.inputs(case)
    net = models.unet2d(case["model"]["size"], case["model"]["seed"])
    clip = ClipConditions(text=inputs["context"])
    return {"output": net(inputs["sample"][:, :, None], case["timestep"], clip)[:, :, 0]}


def reference_net(goldens: GoldenSet, case: dict) -> Results:
    inputs = goldens.inputs(case)
    net = models.reference_net(case["model"]["size"], case["model"]["seed"])
    features = net(inputs["sample"][:, :, None], inputs["context"])
    results = {f"down_{i:02}": channels_first(x) for i, x in enumerate(features.down)}
    return results | {"mid": channels_first(features.mid)}


def noise(goldens: GoldenSet, case: dict) -> Results:
    generators = [torch.Generator().manual_seed(seed) for seed in case["generator_seeds"]]
    options = NoiseOptions(case["noise_type"], case["individual_noise_weight"])
    generator = generators if case["generator_per_sample"] else generators[0]
    common = goldens.input(case["inputs"]["common_noise"])
    return {"noise": video_noise(case["shape"], options, generator, common_noise=common)}


def prepare_latents(goldens: GoldenSet, case: dict) -> Results:
    options = NoiseOptions(case["noise_type"], case["individual_noise_weight"])
    latents = video_noise(case["shape"], options, torch.Generator().manual_seed(case["generator_seed"]))
    if case["image_noise_weight"] is not None:
        condition = goldens.input(case["inputs"]["condition_latents"])
        latents = image_based_noise(latents, condition, case["image_noise_weight"])
    scheduler = VideoScheduler(models.scheduler(case["scheduler"]), case["num_inference_steps"])
    return {"latents": latents * scheduler.init_noise_sigma}


def scheduler(goldens: GoldenSet, case: dict) -> Results:
    run = VideoScheduler(models.scheduler(case["scheduler"]), case["num_inference_steps"])
    results: Results = {"timesteps": run.timesteps.double(), "init_noise_sigma": np.float64(run.init_noise_sigma)}
    if run.sigmas is not None:
        results["sigmas"] = run.sigmas
    x, predictions = goldens.input(case["inputs"]["sample"]), goldens.input(case["inputs"]["model_outputs"])
    if x is None:
        return results
    options = NoiseOptions(case["noise_type"], case["individual_noise_weight"])
    generator = torch.Generator().manual_seed(case["generator_seed"])
    x, scaled, trajectory = x * run.init_noise_sigma, [], []
    for i, prediction in enumerate(predictions):
        scaled.append(run.scale(x, i))
        x, _ = run.step(prediction, i, x, lambda shape=x.shape: video_noise(shape, options, generator))
        trajectory.append(x)
    return results | {"scaled_inputs": torch.stack(scaled), "trajectory": torch.stack(trajectory)}


def windows(goldens: GoldenSet, case: dict) -> Results:
    options = WindowOptions(
        length=case["window_length"],
        overlap=case["window_overlap"],
        schedule=case["window_schedule"],
        stride=case["window_stride"],
    )
    return {"expected": context_windows(case["num_frames"], options)}


def guidance(goldens: GoldenSet, case: dict) -> Results:
    return {
        "expected": guidance_schedule(
            case["guidance_start"], case["guidance_end"], case["guidance_method"], case["num_inference_steps"]
        )
    }


def controlnet(goldens: GoldenSet, case: dict) -> Results:
    inputs = goldens.inputs(case)
    sample = inputs["sample"]
    control = Control(
        models.controlnet(case["model"]["size"], case["model"]["seed"]), inputs["control_image"], case["control_scale"]
    )
    b, t = sample.shape[0], sample.shape[2]
    # one clip per row, so that every row of the case may have hints of its own
    parts = []
    for i in range(b):
        control.hints = inputs["control_image"][i * t : (i + 1) * t]
        controls = ClipControls([control], ClipConditions(text=inputs["context"][i : i + 1]))
        frames = [list(range(t))]
        controls.start_step(0, 1, frames)
        parts.append(controls.residuals(sample[i : i + 1], torch.tensor(case["timestep"]), frames, 1))
    results = {f"down_{i:02}": torch.cat(x) for i, x in enumerate(zip(*(p.down for p in parts), strict=True))}
    return results | {"mid": torch.cat([p.mid for p in parts])}


def text_weights(goldens: GoldenSet, case: dict) -> Results:
    tokens, weights = weighted_tokens(models.StandInTokenizer(), case["text"], case["max_tokens"])
    parsed = [list(part) for part in parse_weights(case["text"])]
    return {"expected": {"parsed": parsed, "tokens": tokens, "weights": weights}}


def text_embedding(goldens: GoldenSet, case: dict) -> Results:
    encoder = models.text_encoder(case["model"]["seed"])
    return {"context": encode_prompts(models.StandInTokenizer(), encoder, case["prompt"], case["negative_prompt"])}


def as_frames(x: Tensor) -> Tensor:
    """`(b, 3, t, H, W)` to `(b t, H, W, 3)`."""
    return x.permute(0, 2, 3, 4, 1).flatten(0, 1)


def as_video(x: Tensor, b: int = 1) -> Tensor:
    """`(b t, H, W, 3)` to `(b, 3, t, H, W)`."""
    return x.unflatten(0, (b, -1)).permute(0, 4, 1, 2, 3)


def image_prep(goldens: GoldenSet, case: dict) -> Results:
    image = goldens.input(case["inputs"]["image"])
    frames, b = as_frames(image), image.shape[0]
    if case["method"] == "to_vae_input":
        output = to_vae_input(frames)
    else:
        fit = {"crop_resize_image": fit_images, "crop_resize_video": fit_video}[case["method"]]
        output = as_video(fit(frames, case["target_height"], case["target_width"], legacy=True), b)
    return {"input": image, "output": output}


def clip_image(goldens: GoldenSet, case: dict) -> Results:
    frames = as_frames(goldens.input(case["inputs"]["image"]))
    pixels = clip_pixel_values(frames, height=case["target_height"], width=case["target_width"], legacy=True)
    s = case["pixel_stride"]
    embedding = models.image_encoder(case["model"]["seed"])(pixels).image_embeds
    return {"pixel_values": pixels[..., ::s, ::s], "embedding": embedding}


def hist_match(goldens: GoldenSet, case: dict) -> Results:
    video, target = goldens.input(case["inputs"]["video"]), goldens.input(case["inputs"]["target"])
    videos = [
        match_histograms(as_frames(video[i : i + 1]), as_frames(target[i : i + 1])) for i in range(video.shape[0])
    ]
    return {"output": as_video(torch.cat(videos), video.shape[0])}


class RecordingPipeline(MuseVPipeline):
    """Notes the initial latents; everything else is seen from outside."""

    recorded: Results

    def initial_latents(self, *args):
        latents = super().initial_latents(*args)
        self.recorded = {"initial_latents": latents}
        return latents


def _pipeline(case: dict) -> RecordingPipeline:
    m = case["model"]
    image_prompt = face_prompt = None
    if m["image_prompt"]:
        image_prompt = ImagePromptEncoder(models.image_encoder(m["seed"]), models.projection("plain", m["seed"]))
    if m["face_layers"]:
        face_prompt = FacePromptEncoder(models.face_embeddings, models.projection("faceid", m["seed"]))
    return RecordingPipeline(
        unet=models.unet(m["arch"], m["size"], m["seed"], m["face_layers"]),
        vae=models.vae(m["seed"]),
        tokenizer=models.StandInTokenizer(),
        text_encoder=models.text_encoder(m["seed"]),
        reference_net=models.reference_net(m["size"], m["seed"]) if m["reference_net"] else None,
        image_prompt=image_prompt,
        face_prompt=face_prompt,
    )


def _sampling(case: dict, **changes: Any) -> SamplingOptions:
    """The numbers of a run, shared by pipeline and shots cases."""
    options = SamplingOptions(
        num_steps=case["num_inference_steps"],
        guidance_scale=case["guidance_start"],
        guidance_end=case["guidance_end"],
        guidance_method=case["guidance_method"],
        scheduler=models.scheduler(case["scheduler"]),
        image_scale=case["image_scale"],
        face_scale=case["face_scale"],
        noise=NoiseOptions(case["noise_type"], case["individual_noise_weight"], case["image_noise_weight"], "original"),
        denoiser=DenoiserOptions(
            windows=WindowOptions(
                length=case["window_length"], overlap=case["window_overlap"], schedule=case["window_schedule"]
            ),
            motion_speed=case["motion_speed"],
            skip_temporal=case.get("skip_temporal_layers", False),
        ),
    )
    return replace(options, **changes)


def _pictures(x: Tensor | None) -> Tensor | None:
    """`(b, 3, n, H, W)` to `(b, n, H, W, 3)`."""
    return None if x is None else x.permute(0, 2, 3, 4, 1)


def _encode(pipeline: MuseVPipeline, pictures: Tensor) -> Tensor:
    return torch.stack([encode_latents(pipeline.vae, frames) for frames in _pictures(pictures)])


def _decode(pipeline: MuseVPipeline, latents: Tensor, stride: int) -> Tensor:
    videos = [torch.cat(list(decode_latents(pipeline.vae, video))) for video in latents]
    return torch.stack(videos).permute(0, 4, 1, 2, 3)[..., ::stride, ::stride]


def pipeline(goldens: GoldenSet, case: dict) -> Results:
    inputs, pipe = goldens.inputs(case), _pipeline(case)
    results: Results = {}
    prompts = [case["prompt"]] if isinstance(case["prompt"], str) else case["prompt"]
    negatives = case["negative_prompt"]
    negatives = [negatives] * len(prompts) if isinstance(negatives, str) else negatives
    condition = None if inputs["condition_images"] is None else _encode(pipe, inputs["condition_images"])
    if condition is not None:
        results["condition_latents"] = condition
    controls = []
    if inputs["control_images"] is not None:
        given = [inputs["condition_control_images"], inputs["control_images"]]
        hints = torch.cat([x for x in given if x is not None], dim=2)[0].transpose(0, 1).float() / 255
        net = models.controlnet(case["model"]["size"], case["model"]["seed"])
        controls = [Control(net, hints, case["control_scale"], case["control_start"], case["control_end"])]
    clip_inputs = ClipInputs(
        prompts,
        negatives,
        case["num_frames"],
        case["height"],
        case["width"],
        condition_latents=condition,
        initial_latents=None if inputs["initial_image"] is None else _encode(pipe, inputs["initial_image"]),
        reference_images=_pictures(inputs["reference_image"]),
        image_prompts=_pictures(inputs["image_prompt_image"]),
        face_images=_pictures(inputs["face_image"]),
        controls=controls,
        legacy_fit=True,
    )
    steps: list[Tensor] = []

    def first_call(_, args: tuple, kwargs: dict, output: Tensor) -> None:
        if "unet_input_0" in results:
            return
        sample, timestep, clip = args
        sample = sample.repeat(kwargs["branches"], 1, 1, 1, 1)  # the guidance branches share it
        results.update(unet_input_0=sample, unet_timestep_0=timestep.double(), unet_output_0=output)
        results.update(text_context=clip.text, image_prompt_tokens=clip.image_tokens, face_tokens=clip.face_tokens)

    def reference_call(_, args: tuple) -> None:
        results["reference_latents"] = args[0][:, :, 0]

    hooks = [pipe.unet.register_forward_hook(first_call, with_kwargs=True)]
    if pipe.reference_net is not None:
        hooks.append(pipe.reference_net.register_forward_pre_hook(reference_call))
    try:
        noise = VideoNoise([case["generator_seed"]])
        observer = Observer(on_step=lambda info: steps.append(info.latents))
        final = pipe.sample(clip_inputs, _sampling(case), noise=noise, observer=observer)
    finally:
        for hook in hooks:
            hook.remove()
    results |= pipe.recorded | {"step_latents": torch.stack(steps), "final_latents": final}
    return results | {"video": _decode(pipe, final, case["video_stride"])}


def shots(goldens: GoldenSet, case: dict) -> Results:
    inputs, pipe = goldens.inputs(case), _pipeline(case)
    results: Results = {}
    sample_parts = pipe.sample_parts

    def recording(*args: Any, **kwargs: Any) -> Iterator[Tensor]:
        (latents,) = sample_parts(*args, **kwargs)
        results[f"call_{len(results)}_latents"] = latents
        yield latents

    pipe.sample_parts = recording  # type: ignore[method-assign]
    sampling = _sampling(case)
    first_frame = replace(
        sampling,
        num_steps=case["first_frame_num_inference_steps"],
        guidance_scale=case["first_frame_guidance"],
        guidance_end=None,
        noise=replace(sampling.noise, type="random"),
        denoiser=replace(sampling.denoiser, skip_temporal=True),
    )

    def pictures(name: str) -> Tensor | None:
        x = _pictures(inputs[name])
        return None if x is None else x[0]

    request = VideoRequest(
        prompt=case["prompt"],
        negative_prompt=case["negative_prompt"],
        first_frame_negative_prompt=case["first_frame_negative_prompt"],
        image=pictures("condition_images"),
        num_frames=case["num_frames"],
        num_shots=case["num_shots"],
        height=case["height"],
        width=case["width"],
        reference_image=pictures("reference_image"),
        image_prompt=pictures("image_prompt_image"),
        redraw=case["redraw_condition"],
        num_condition_frames=case["num_condition_frames"],
        fixed_condition=case["fixed_condition"],
        match_histogram=case["histogram_matching"],
        legacy_fit=True,
        sampling=sampling,
        first_frame=first_frame,
        use_face=False,
    )
    result = pipe.generate(request, seed=case["generator_seed"])
    s = case["video_stride"]
    return results | {"video": result.video()[None].permute(0, 4, 1, 2, 3)[..., ::s, ::s]}


KINDS: dict[str, Callable[[GoldenSet, dict], Results]] = {
    "module": module,
    "unet": unet,
    "unet2d": unet2d,
    "reference_net": reference_net,
    "noise": noise,
    "prepare_latents": prepare_latents,
    "scheduler": scheduler,
    "windows": windows,
    "guidance": guidance,
    "controlnet": controlnet,
    "text_weights": text_weights,
    "text_embedding": text_embedding,
    "image_prep": image_prep,
    "clip_image": clip_image,
    "hist_match": hist_match,
    "pipeline": pipeline,
    "shots": shots,
}
