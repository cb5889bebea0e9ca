"""Clips, prompts and the smallest models ComfyUI builds, run through ComfyUI's own nodes: tests of what happens there.

Two resolutions of one layer, 64 channels (with 32 groups a norm of 32 would hide every time embedding), deterministic
weights; a call takes a few hundredths of a second.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import nodes
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from torch import Tensor, nn

from musev_core.config import VARIANTS, ImageProjectionConfig, UNetConfig, resized
from musev_core.denoise.control import Control
from musev_core.denoise.denoiser import ClipDenoiser, DenoiserOptions
from musev_core.denoise.guidance import guide
from musev_core.denoise.noise import NoiseOptions
from musev_core.denoise.windows import WindowOptions
from musev_core.frames.images import clip_pixel_values
from musev_core.models.conditions import ClipConditions
from musev_core.models.ip_adapter import image_projection
from musev_core.models.reference_net import ReferenceNet
from musev_core.models.unet import MuseVUNet
from musev_core.weights.keymaps import ip_attention_key_map, unet_ldm_to_diffusers
from musev_pack.nodes.host import networks
from musev_pack.nodes.host.options import MotionOptions
from musev_pack.nodes.host.patching import with_options

from . import golden_models
from .golden_comfy import CPU, SCALE, base_model, comfy_unet_config
from .numbers import det, det_image, fill

SMALL = UNetConfig(
    block_out_channels=(64, 64),
    cross_attention_blocks=(True, False),
    layers_per_block=1,
    norm_groups=32,
    num_heads=4,
    context_dim=32,
    temporal=False,
)
SIZE = 4  # of the latents
WINDOWS = WindowOptions(4, 1)
MUSEV, REFERENCENET = "musev", "musev_referencenet"


@cache
def unet(variant: str, *, seed: int = 0) -> MuseVUNet:
    """The core's own network; both variants share the weights of Stable Diffusion."""
    return fill(MuseVUNet(resized(VARIANTS[variant], SMALL)), "", seed)


def base(**seed: int):
    """A new MODEL. Its layer norms have the eps of the original, so that it can be compared with `unet` exactly."""
    model = base_model(unet(MUSEV, **seed).state_dict(), SMALL)
    for module in model.model.diffusion_model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    return model


def motion_of(tensors: dict[str, Tensor], variant: str) -> networks.Motion:
    return networks.motion_from(tensors, unet(variant).config, variant, torch.float32)


@cache
def motion(variant: str, **seed: int) -> networks.Motion:
    return motion_of(unet(variant, **seed).state_dict(), variant)


@cache
def core_reference_net(*, seed: int = 0) -> ReferenceNet:
    return fill(ReferenceNet(SMALL), "referencenet.", seed)


@cache
def reference_net(**seed: int) -> networks.HostedReferenceNet:
    net = core_reference_net(**seed)
    return networks.reference_net_from(net.state_dict(), SMALL, "referencenet", torch.float32)


@cache
def adapter(kind: str, *, layers: bool = True, seed: int = 0) -> networks.HostedIPAdapter:
    """An IP-Adapter (plain, plus, faceid); without layers of its own it is MuseV's image projection."""
    config = ImageProjectionConfig(
        kind=kind,
        input_dim={"plain": 24, "plus": 32, "faceid": 16}[kind],  # what `Vision` gives, or a face
        context_dim=SMALL.context_dim,
        num_tokens=4,
        depth=1,
        num_heads=1,
    )
    projection = fill(image_projection(config), f"{kind}.", seed).state_dict()
    return networks.ip_adapter_from(projection, adapter_attention(kind) if layers else {}, kind, torch.float32)


def adapter_attention(kind: str) -> dict[str, Tensor]:
    """Key and value layers under an IP-Adapter file's names."""
    shape = (SMALL.block_out_channels[0], SMALL.context_dim)
    return {name: det(f"{kind} {name}", shape, scale=0.2) for name in ip_attention_key_map(SMALL)}


class Vision:
    """The golden set's image encoder behind the interface of ComfyUI's CLIP Vision; counts the pictures it has seen."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.seen = 0

    def encode_image(self, images: Tensor) -> dict[str, Tensor]:
        self.seen += len(images)
        pixels = clip_pixel_values(images, height=32, width=32, legacy=False)
        out = golden_models.image_encoder(self.seed)(pixels, output_hidden_states=True)
        return {"image_embeds": out.image_embeds, "penultimate_hidden_states": out.hidden_states[-2]}


def pictures(count: int, size: int = 8 * SIZE, seed: int = 0) -> Tensor:
    """An IMAGE batch of different smooth pictures."""
    return det_image(f"pictures {seed}", (count, 3, 1, size, size))[:, :, 0].permute(0, 2, 3, 1).float() / 255


def video_model(model=None, *, variant: str = MUSEV, speed: float = 8.0, strength: float = 1.0, **options):
    """A MODEL with Apply MuseV Motion, independent noise and short windows."""
    return with_options(
        base() if model is None else model,
        **{
            "motion": MotionOptions(motion(variant), speed, strength),
            "windows": WINDOWS,
            "noise": NoiseOptions("random", image_weight=None),
            **options,
        },
    )


def clip(frames: int = 7, conditions: Sequence[int] = (0,), *, size: int = SIZE, scale: float = 1.0) -> dict:
    """A LATENT as Image to Video makes it: the condition frames, zeros elsewhere, and which is which."""
    samples = torch.zeros(frames, 4, size, size)
    mask = torch.ones(frames, 1, size, size)
    for i in conditions:
        samples[i] = det(f"condition frame {i}", (4, size, size), scale=scale) / SCALE
        mask[i] = 0
    return {"samples": samples, "noise_mask": mask}


def prompt(text: str, *, rows: int = 1, tokens: int = 7) -> list:
    """A CONDITIONING; other words, other numbers."""
    return [[det(f"prompt {text}", (rows, tokens, SMALL.context_dim)), {}]]


def ksample(
    model,
    latent: dict,
    positive: list | None = None,
    negative: list | None = None,
    *,
    seed: int = 1,
    steps: int = 2,
    cfg: float = 1.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    **changes,
) -> Tensor:
    """ComfyUI's KSampler (Advanced) as a graph runs it."""
    (out,) = nodes.common_ksampler(
        model,
        seed,
        steps,
        cfg,
        sampler,
        scheduler,
        prompt("good") if positive is None else positive,
        prompt("bad") if negative is None else negative,
        latent,
        **changes,
    )
    return out["samples"]


def ksample_with(noise: Tensor, model, latent: dict, *, steps: int = 2, cfg: float = 1.0, **options) -> Tensor:
    """KSampler with Euler and a given noise."""
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "normal",
        prompt("good"),
        prompt("bad"),
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=1,
        **options,
    )


def custom_sample(
    model,
    latent: dict,
    positive: list | None = None,
    negative: list | None = None,
    *,
    seed: int = 1,
    steps: int = 2,
    cfg: float = 1.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    denoise: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """ComfyUI's SamplerCustomAdvanced with CFGGuider, BasicScheduler and RandomNoise: latents, and denoised latents."""
    (guider,) = CFGGuider.execute(model, positive or prompt("good"), negative or prompt("bad"), cfg).args
    (noise,) = RandomNoise.execute(seed).args
    (sigmas,) = BasicScheduler.execute(model, scheduler, steps, denoise).args
    (chosen,) = KSamplerSelect.execute(sampler).args
    out, denoised = SamplerCustomAdvanced.execute(noise, guider, chosen, sigmas, latent).args
    return out["samples"], denoised["samples"]


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, in standard deviations of `b`."""
    return ((a - b).abs().max() / b.std()).item()


def sample_sigmas(
    model, sigmas: Sequence[float], noise: Tensor, latent: dict, positive: list, negative: list, *, cfg: float, seed=1
) -> Tensor:
    """ComfyUI's SamplerCustom with Euler, at these noise levels."""
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        comfy.samplers.sampler_object("euler"),
        torch.tensor(sigmas),
        positive,
        negative,
        latent["samples"],
        noise_mask=latent.get("noise_mask"),
        disable_pbar=True,
        seed=seed,
    )


def core_sample(
    clip: ClipConditions,
    sigmas: Sequence[float],
    noise: Tensor,
    latent: dict,
    *,
    cfg: float,
    variant: str = MUSEV,
    windows: WindowOptions = WINDOWS,
    speed: float = 8.0,
    controls: Sequence[Control] = (),
    times: Sequence[float] | None = None,
    network: MuseVUNet | None = None,
) -> Tensor:
    """The same by musev_core alone: its evaluation of a clip, and Euler steps; `clip` has a row per guidance branch."""
    branches = clip.rows
    conditions = [i for i, row in enumerate(latent["noise_mask"]) if not row.any()]
    denoiser = ClipDenoiser(
        network or unet(variant),
        clip,
        branches=branches,
        num_frames=len(noise),
        condition_frames=conditions,
        options=DenoiserOptions(windows=windows, motion_speed=speed),
        controls=controls,
    )
    table = base().get_model_object("model_sampling")
    clean = latent["samples"] * SCALE
    x = clean + noise * sigmas[0]
    steps = list(pairwise(sigmas))
    for step, (sigma, following) in enumerate(steps):
        scaled = x / (sigma**2 + 1) ** 0.5
        scaled[conditions] = clean[conditions]
        t = table.timestep(torch.tensor(sigma)) if times is None else torch.tensor(times[step])
        predicted = denoiser(scaled.transpose(0, 1)[None], t, step, len(steps))
        eps = (predicted if branches == 1 else guide(*predicted.chunk(2), cfg))[0].transpose(0, 1)
        x[denoiser.generated] += (following - sigma) * eps
    x[conditions] = clean[conditions]
    return x / SCALE


class HintNet(nn.Module):
    """A ControlNet's network for ComfyUI's class: answers with its hint, and keeps what it was given."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor, **_: Any) -> dict[str, list]:
        self.seen.append({"x": x.clone(), "hint": hint.clone(), "context": context.clone()})
        level = hint.mean(dim=(1, 2, 3)).expand(len(x))[:, None, None, None]
        h, w = x.shape[-2:]
        return {"middle": [level.expand(-1, SMALL.block_out_channels[-1], h // 2, w // 2).clone()], "output": []}

    def frames(self) -> list[list[int]]:
        """The numbers in the hints of every call, see `numbered`."""
        return [(100 * call["hint"].mean(dim=(1, 2, 3))).round().int().tolist() for call in self.seen]


@cache
def core_control_net(seed: int) -> nn.Module:
    """diffusers' ControlNet, as the core takes it."""
    from diffusers import ControlNetModel

    net = ControlNetModel(
        conditioning_embedding_out_channels=(16, 32, 96, 256),
        block_out_channels=SMALL.block_out_channels,
        layers_per_block=SMALL.layers_per_block,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        norm_num_groups=SMALL.norm_groups,
        attention_head_dim=SMALL.num_heads,
        cross_attention_dim=SMALL.context_dim,
    )
    return fill(net, "controlnet.", seed)


def comfy_control_net(seed: int) -> nn.Module:
    """ComfyUI's, with the same weights.

    A new one every time: ComfyUI takes a network which outlives its patcher for a leak, and collects garbage at every
    load from then on.
    """
    config = {name: x for name, x in comfy_unet_config(SMALL).items() if name != "out_channels"}
    net = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, dtype=torch.float32, operations=comfy.ops.manual_cast)
    names = {old: new for old, new in unet_ldm_to_diffusers(SMALL).items() if not old.startswith(("output_", "out."))}
    hint = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
    modules = {f"input_hint_block.{2 * i}": f"controlnet_cond_embedding.{name}" for i, name in enumerate(hint)}
    modules |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(len(net.zero_convs))}
    modules["middle_block_out.0"] = "controlnet_mid_block"
    names |= {f"{old}.{kind}": f"{new}.{kind}" for old, new in modules.items() for kind in ("weight", "bias")}
    weights = core_control_net(seed).state_dict()
    net.load_state_dict({old: weights[new] for old, new in names.items()})
    return net.eval().requires_grad_(False)


def control_net(net: nn.Module) -> comfy.controlnet.ControlNet:
    return comfy.controlnet.ControlNet(net, load_device=CPU)


def numbered(frames: int, size: int = SIZE) -> Tensor:
    """An IMAGE batch whose value is the frame's number / 100."""
    return (torch.arange(frames) / 100)[:, None, None, None].expand(-1, 8 * size, 8 * size, 3).clone()


def controlled(positive: list, negative: list, control, images: Tensor, strength: float = 1.0) -> tuple[list, list]:
    """ComfyUI's Apply ControlNet."""
    return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, images, strength, 0.0, 1.0)


class Recorder:
    """What reaches the first layer of the UNet, call by call, and the window which other packs are told of."""

    def __init__(self) -> None:
        self.windows: list[list[int]] = []
        self.sigmas: list[float] = []
        self.branches: list[int] = []  # conditionings which are evaluated for the window
        self.inputs: list[Tensor] = []

    def rows_of(self, frame: int) -> Iterator[Tensor]:
        """The inputs of a frame, `(4, h, w)`, call by call and chunk by chunk."""
        for window, x in zip(self.windows, self.inputs, strict=True):
            for chunk in x.split(len(window)):
                yield chunk[window.index(frame)]


@contextmanager
def recorded(model) -> Iterator[tuple[Any, Recorder]]:
    """A clone of a MODEL which is watched from outside, where nothing stands in the way of what calls share."""
    recorder, watched, present = Recorder(), model.clone(), []

    def evaluation(executor, network, conds, x, timestep, model_options):
        frames = model_options["transformer_options"].get("ad_params", {}).get("sub_idxs", range(len(x)))
        present[:] = [list(frames), float(timestep[0]), sum(cond is not None for cond in conds)]
        return executor(network, conds, x, timestep, model_options)

    def first_layer(_, args):
        for row, value in zip(("windows", "sigmas", "branches"), present, strict=True):
            getattr(recorder, row).append(value)
        recorder.inputs.append(args[0].clone())

    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "recorder", evaluation)
    handle = watched.model.diffusion_model.input_blocks[0][0].register_forward_pre_hook(first_layer)
    try:
        yield watched, recorder
    finally:
        handle.remove()
