"""One function per kind of golden case: what we compute for it (goldens/FORMAT.md 4)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musev_core.denoise.guidance import guidance_schedule
from musev_core.denoise.noise import NoiseOptions, image_based_noise, noise_source, video_noise
from musev_core.denoise.schedulers import VideoScheduler
from musev_core.denoise.windows import WindowOptions, context_windows
from musev_core.models.conditions import ClipConditions, ControlResiduals, ReferenceFeatures
from musev_core.models.ip_adapter import image_projection
from musev_core.models.layers import Layers, new_layers
from musev_core.models.reference_fusion import ReferenceFusion
from musev_core.models.temporal import TemporalConv, TemporalTransformer
from musev_core.models.transformer import SpatialTransformer

from . import golden_models as models
from .numbers import det, det_image, fill

Results = dict[str, Any]


@dataclass
class GoldenSet:
    """A folder with `cases.json` and arrays."""

    folder: Path

    @cached_property
    def cases(self) -> list[dict]:
        return json.loads((self.folder / "cases.json").read_text())

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
        return {"output": flatten(fill(TemporalConv(layers, config["channels"]), prefix, seed)(x))}
    channels, heads = config["channels"], config["num_heads"]
    if kind == "temporal_transformer":
        net = TemporalTransformer(layers, channels, heads, config["norm_groups"], config["frame_embedding_dim"])
        return {"output": flatten(fill(net, prefix, seed)(x, inputs["frame_embedding"]))}
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
    net = models.unet(m["arch"], m["size"], m["seed"], m["face_layers"])
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
        import copy

        net = copy.deepcopy(net).to(dtype)
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
    fresh = noise_source(options, torch.Generator().manual_seed(case["generator_seed"]), "cpu", torch.float32)
    x, scaled, trajectory = x * run.init_noise_sigma, [], []
    for i, prediction in enumerate(predictions):
        scaled.append(run.scale(x, i))
        x, _ = run.step(prediction, i, x, fresh)
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
}
