"""Short clips through ComfyUI's sampler, and MuseV's nodes on the golden models, applied as a graph applies them."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sample
import numpy as np
import torch
from safetensors.torch import save_file

from musev_core.weights.keymaps import attention_blocks, ip_attention_key_map
from musev_pack.nodes import motion as motion_nodes
from musev_pack.nodes import reference as reference_nodes
from musev_pack.nodes.host import networks

from . import golden_comfy, golden_models
from .golden_comfy import golden_motion, image_projection_file, reference_net_file
from .numbers import det
from .tiny_comfy import tiny_vae

CONFIG = golden_models.size_config(golden_comfy.SIZE)
REFERENCENET, PLAIN = "musev_referencenet", "musev"


@dataclass(frozen=True)
class Clip:
    """A clip to sample: the first frames are condition frames."""

    frames: int = 4
    condition_frames: int = 1
    size: int = 8
    latents: torch.Tensor = field(init=False)
    mask: torch.Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        latents = torch.zeros(self.frames, 4, self.size, self.size)
        latents[: self.condition_frames] = det("clip", (self.condition_frames, 4, self.size, self.size))
        mask = torch.ones(self.frames, 1, self.size, self.size)
        mask[: self.condition_frames] = 0
        object.__setattr__(self, "latents", latents)
        object.__setattr__(self, "mask", mask if self.condition_frames else None)


def prompt(name: str, **settings: Any) -> list:
    """A conditioning as long as CLIP's."""
    return [[det(f"prompt {name}", (1, 77, CONFIG.context_dim)), settings]]


def sample(model: Any, clip: Clip | None = None, **changes: Any) -> torch.Tensor:
    """Two Euler steps at cfg 3.5; everything ComfyUI's `sample` takes can be changed."""
    clip = clip or Clip()
    arguments: dict[str, Any] = {
        "noise": comfy.sample.prepare_noise(clip.latents, 5),
        "steps": 2,
        "cfg": 3.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "positive": prompt("positive"),
        "negative": prompt("negative"),
        "latent_image": clip.latents,
        "noise_mask": clip.mask,
        "seed": 5,
        "disable_pbar": True,
    }
    return comfy.sample.sample(model, **{**arguments, **changes})


def apply(node: Any, model: Any, *args: Any, **inputs: Any) -> Any:
    """A node's first output."""
    return node.execute(model, *args, **inputs).result[0]


@dataclass(frozen=True)
class Nodes:
    """MuseV's nodes with small networks; `folder` holds their files."""

    folder: Path

    def motion(self, model: Any, arch: str = REFERENCENET, **changes: Any) -> Any:
        inputs = {"motion_speed": 8.0, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **changes}
        loaded = inputs.pop("motion", None) or motion(arch, self.folder)
        return apply(motion_nodes.ApplyMotion, model, loaded, **inputs)

    def windows(self, model: Any, length: int = 2, overlap: int = 1, fuse: str = "linear") -> Any:
        return apply(motion_nodes.ContextWindows, model, length, overlap, "uniform_v2", fuse, 0)

    def noise(self, model: Any, kind: str = "random", image_weight: float = 0.0) -> Any:
        return apply(motion_nodes.Noise, model, kind, 0.5, image_weight, False)

    def guidance(self, model: Any) -> Any:
        return apply(motion_nodes.GuidanceSchedule, model, 3.5, 1.5, "linear")

    def reference(self, model: Any, **changes: Any) -> Any:
        inputs = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "width": 0, "height": 0, **changes}
        net = reference_net(self.folder)
        return apply(reference_nodes.ApplyReferenceNet, model, net, vae(), pictures(), **inputs)

    def ip_adapter(self, model: Any, **changes: Any) -> Any:
        inputs = {"weight": 1.0, "combine": "concat", "start_percent": 0.0, "end_percent": 1.0, **changes}
        adapter = inputs.pop("ip_adapter", None) or image_projection(self.folder)
        vision = inputs.pop("clip_vision", None) or golden_comfy.GoldenVision(64, 64)
        return apply(reference_nodes.ApplyIPAdapter, model, adapter, vision, pictures(), **inputs)

    def face(self, model: Any, **changes: Any) -> Any:
        inputs = {"weight": 1.0, "start_percent": 0.0, "end_percent": 1.0, "lora_strength": 0.0, **changes}
        adapter = inputs.pop("ip_adapter", None) or faceid(self.folder)
        return apply(
            reference_nodes.ApplyFaceID, model, adapter, pictures(), **{"insightface": FaceAnalysis(), **inputs}
        )

    def everything(self, model: Any) -> Any:
        """Every node that hangs something on a MODEL, but Apply MuseV Motion."""
        for node in (self.windows, self.guidance, self.reference, self.ip_adapter, self.face):
            model = node(model)
        return model


class FaceAnalysis:
    """Stands for insightface's analysis, which has no small models: one face in every picture."""

    def prepare(self, **_: Any) -> None:
        pass

    def get(self, image: np.ndarray) -> list:
        embedding = det("face", (16,))
        return [SimpleNamespace(bbox=(0, 0, 9, 9), normed_embedding=(embedding / embedding.norm()).numpy())]


def pictures(count: int = 1) -> torch.Tensor:
    return det("pictures", (count, 64, 64, 3), scale=0.2).add(0.5).clamp(0, 1)


@cache
def base() -> Any:
    """The golden MODEL; shared, as no node changes what it is given."""
    return golden_comfy.golden_base()


@cache
def motion(arch: str, folder: Path, dtype: torch.dtype = torch.float32) -> networks.Motion:
    return golden_motion(arch, folder, dtype)


@cache
def vae() -> Any:
    return tiny_vae()


@cache
def reference_net(folder: Path) -> networks.HostedReferenceNet:
    return networks.load_reference_net(reference_net_file(folder), torch.float32)


@cache
def image_projection(folder: Path) -> networks.HostedIPAdapter:
    return networks.load_ip_adapter(image_projection_file(folder))


@cache
def faceid(folder: Path) -> networks.HostedIPAdapter:
    """Projection, attention layers and LoRA in one file, as ip-adapter-faceid_sd15 has them."""
    tensors = {f"image_proj.{k}": v for k, v in golden_models.projection("faceid", 0).state_dict().items()}
    unet = golden_comfy.golden_unet(PLAIN).state_dict()
    for name, ours in ip_attention_key_map(CONFIG).items():
        width = unet[f"{ours.rpartition('.attn2.')[0]}.attn2.to_q.weight"].shape[0]
        tensors[f"ip_adapter.{name}"] = det(name, (width, CONFIG.context_dim), scale=CONFIG.context_dim**-0.5)
    for number, block in enumerate(attention_blocks(CONFIG)):
        for which in (1, 2):
            for layer, ours in (("to_q", "to_q"), ("to_k", "to_k"), ("to_v", "to_v"), ("to_out", "to_out.0")):
                weight = unet[f"{block}.attn{which}.{ours}.weight"]
                at = f"ip_adapter.{2 * number + which - 1}.{layer}_lora"
                tensors[f"{at}.down.weight"] = det(f"{at}.down", (4, weight.shape[1]), scale=0.1)
                tensors[f"{at}.up.weight"] = det(f"{at}.up", (weight.shape[0], 4), scale=0.1)
    path = folder / "ip-adapter-faceid_sd15.safetensors"
    save_file(tensors, path)
    return networks.load_ip_adapter(str(path))
