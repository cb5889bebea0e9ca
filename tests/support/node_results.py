"""What the table of node inputs is made of: how results of nodes are seen, and what nodes are given.

Models are the small ones of `small_comfy`. What a MODEL is like shows in the latents that a sampler makes of it, with
the first frame as a condition frame, which nothing but the LATENT may change.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from musev_core.pose.keypoint_json import write_keypoints
from musev_core.weights.keymaps import attention_blocks
from musev_core.weights.lora import Lora, LoraLayer
from musev_pack.nodes.host.networks import HostedIPAdapter

from . import golden_models, published
from .node_texts import node_classes
from .numbers import det
from .poses import frame, person, without
from .sensitivity import Results, weights_of
from .small_comfy import (
    REFERENCENET,
    SMALL,
    adapter,
    base,
    clip,
    ksample,
    pictures,
    video_model,
)

NODES = {node.define_schema().node_id: node for node in node_classes()}
GENERATED = "generated"


def write_files(models: Path) -> None:
    """What the loaders choose from: everything twice, with other weights."""
    published.write_musev(models / "motion", arch=REFERENCENET)
    for folder, net in (
        ("referencenet", golden_models.reference_net(published.SIZE, 1)),
        ("unet", golden_models.unet(REFERENCENET, published.SIZE, 1)),
    ):
        published.save(net.state_dict(), models / "motion" / "other" / folder / "diffusion_pytorch_model.bin")
        (models / "motion" / "other" / folder / "config.json").write_text(
            json.dumps(published.UNET_CONFIG), encoding="utf-8"
        )
    for seed in (0, 1):
        tensors = {f"image_proj.{k}": v for k, v in golden_models.projection("plain", seed).state_dict().items()}
        tensors |= {f"ip_adapter.1.to_{key}_ip.weight": det(f"{key} {seed}", (32, 32)) for key in "kv"}
        published.save(tensors, models / "adapters" / f"adapter_{seed}.safetensors")


# ----------------------------------------------------------------------------------- how results are seen


def sampled(model: Any, *, latent: dict | None = None, steps: int = 2) -> Results:
    """What KSampler makes of a MODEL; with two steps the second begins in the middle of the noise levels."""
    out = ksample(model, latent or clip(5), steps=steps, cfg=3.5, scheduler="sgm_uniform")
    return {"condition": out[:1], GENERATED: out[1:]}


def latent_of(latent: dict) -> Results:
    return {"latents": latent["samples"], "mask": latent.get("noise_mask")}


def executed(node: str) -> Callable[..., Any]:
    """The outputs of a node."""
    return lambda **inputs: NODES[node].execute(**inputs).args


def model_node(node: str, **how: Any) -> dict[str, Any]:
    """How a node from MODEL to MODEL is run, and what there is without it."""
    return {
        "run": lambda **inputs: sampled(executed(node)(**inputs)[0], **how),
        "absent": lambda model, **_: sampled(model, **how),
    }


def named(node: str, *names: str) -> Callable[..., Results]:
    """A node's outputs as they are."""
    return lambda **inputs: dict(zip(names, executed(node)(**inputs), strict=True))


def latent_outputs(node: str) -> Callable[..., Results]:
    def run(**inputs: Any) -> Results:
        latent, *others = executed(node)(**inputs)
        return latent_of(latent) | dict(zip(("fitted", "width", "height"), others, strict=False))

    return run


def loaded(node: str, networks: Callable[[Any], list[torch.nn.Module]]) -> Callable[..., Results]:
    def run(**inputs: Any) -> Results:
        nets = networks(executed(node)(**inputs)[0])
        return {"weights": weights_of(*nets), "dtype": str({p.dtype for p in nets[-1].parameters()})}

    return run


# ------------------------------------------------------------------------------------------ what is given


def moving(**seed: int) -> Any:
    """A MODEL that pictures can be shown to; windows and noise as other tests have them."""
    return video_model(base(**seed), variant=REFERENCENET)


def face_adapter(*, seed: int = 0) -> HostedIPAdapter:
    """With a LoRA, as the published file has one."""
    width = SMALL.block_out_channels[0]
    layers = {}
    for block in attention_blocks(SMALL):
        for which in (1, 2):
            name = f"{block}.attn{which}.to_q".replace(".", "_")
            up, down = (
                det(f"{name} {end}", shape, scale=0.3) for end, shape in (("up", (width, 4)), ("down", (4, width)))
            )
            layers[name] = LoraLayer(up, down)
    return replace(adapter("faceid", seed=seed), lora=Lora(layers))


class Faces:
    """Stands for insightface's analysis, which has no small models: a face that depends on the picture."""

    def __init__(self, kind: str = "one") -> None:
        self.kind = kind

    def prepare(self, **_: Any) -> None:
        pass

    def get(self, image: Any) -> list:
        face = det(f"face {self.kind}", (16,)) + image.mean() / 255
        return [SimpleNamespace(bbox=(0, 0, 9, 9), normed_embedding=(face / face.norm()).numpy())]


def masks(frames: int = 1) -> torch.Tensor:
    """Half of every picture, and another half in every other frame."""
    mask = torch.zeros(frames, 32, 32)
    mask[::2, :16], mask[1::2, 16:] = 1.0, 1.0
    return mask


def noisy(frames: int = 5, seed: int = 0) -> dict:
    """A finished clip."""
    return {"samples": det("a clip", (frames, 4, 4, 4), seed) * (1 + torch.arange(frames).view(-1, 1, 1, 1))}


def poses(size: float = 0.8, frames: int = 5) -> list:
    """Somebody who trembles."""
    return write_keypoints([frame(person(at=(4 * (i % 2), i), size=size)) for i in range(frames)])


def one_handed() -> list:
    """The hand of the first frame is gone in the second."""
    hidden = without(person(size=0.8), 4)
    return write_keypoints([frame(person(size=0.8)), frame(hidden)])


def film(seed: int = 0) -> torch.Tensor:
    """40 frames that drift and flicker."""
    frames = pictures(1, 32, seed).expand(40, -1, -1, -1)
    return (
        frames * (0.5 + 0.01 * torch.arange(40).view(-1, 1, 1, 1)) + det("flicker", (40, 32, 32, 3), scale=0.02)
    ).clamp(0, 1)


def sampled_by_ours(**inputs: Any) -> Results:
    out = executed("MuseV_Sampler")(**inputs)[0]["samples"]
    return {"condition": out[:1], GENERATED: out[1:]}


def started(**seed: int) -> dict:
    """A clip with something to start from."""
    return {**clip(4), "samples": noisy(4, **seed)["samples"]}
