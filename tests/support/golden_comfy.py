"""The golden set's models as ComfyUI's own objects: the networks of size `comfy` with the weights of FORMAT.md."""

import json
from functools import cache
from pathlib import Path

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch

from musev_core.config import UNetConfig
from musev_core.denoise.noise import NoiseOptions
from musev_core.denoise.windows import WindowOptions
from musev_core.frames.images import clip_pixel_values
from musev_core.weights.keymaps import motion_tensors, unet_ldm_to_diffusers
from musev_pack.nodes.host import networks
from musev_pack.nodes.host.demo import comfy_unet_config
from musev_pack.nodes.host.options import ImagePromptOptions, MotionOptions, ReferenceOptions, options_of
from musev_pack.nodes.host.patching import with_options

from . import golden_models
from .golden_replay import GoldenSet

SIZE = "comfy"
SCALE = 0.18215  # of ComfyUI's latents
CPU = torch.device("cpu")


@cache
def goldens() -> GoldenSet:
    return GoldenSet(Path(__file__).parents[1] / "goldens" / "public")


def base_model(weights: dict[str, torch.Tensor], config: UNetConfig, dtype=torch.float32, cast=None):
    """A MODEL with diffusers-named weights."""
    comfy_config = comfy.supported_models.SD15(comfy_unet_config(config))
    comfy_config.unet_config["num_heads"] = config.num_heads  # SD15 has set its own 8
    comfy_config.set_inference_dtype(dtype, cast)
    model = comfy.model_base.BaseModel(comfy_config)
    names = unet_ldm_to_diffusers(config)
    model.diffusion_model.load_state_dict({theirs: weights[ours].to(dtype) for theirs, ours in names.items()})
    model.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def golden_unet(arch: str, face_layers: bool = False):
    return golden_models.unet(arch, SIZE, 0, face_layers)


def golden_base(dtype=torch.float32, cast=None):
    """The MODEL of the golden set; a new one every time."""
    return base_model(golden_unet("musev").state_dict(), golden_models.size_config(SIZE), dtype, cast)


@cache
def motion_file(arch: str, folder: Path) -> str:
    from safetensors.torch import save_file

    path = folder / f"{arch}.safetensors"
    save_file(motion_tensors(golden_unet(arch).state_dict()), path)
    return str(path)


def golden_motion(arch: str, folder: Path, dtype=torch.float32) -> networks.Motion:
    """A motion model, loaded from a motion-only file."""
    return networks.load_motion(motion_file(arch, folder), dtype)


@cache
def reference_net_file(folder: Path) -> str:
    from safetensors.torch import save_file

    # the number leaves no trace in the tensors
    (folder / "config.json").write_text(json.dumps({"attention_head_dim": 4}), encoding="utf-8")
    path = folder / "referencenet.safetensors"
    save_file(golden_models.reference_net(SIZE, 0).state_dict(), path)
    return str(path)


@cache
def image_projection_file(folder: Path) -> str:
    from safetensors.torch import save_file

    path = folder / "ip_adapter_image_proj.safetensors"
    save_file({f"image_proj.{k}": v for k, v in golden_models.projection("plain", 0).state_dict().items()}, path)
    return str(path)


class GoldenVAE:
    """The golden set's VAE behind the interface of ComfyUI's: its four group norms have no place in ComfyUI's class."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = golden_models.vae(0)
        return vae.encode((pixels * 2 - 1).permute(0, 3, 1, 2)).latent_dist.mean


class GoldenVision:
    """The golden set's image encoder, with its preprocessing, behind the interface of ComfyUI's CLIP Vision."""

    def __init__(self, height: int, width: int):
        self.size = (height, width)

    def encode_image(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        pixels = clip_pixel_values(images, height=self.size[0], width=self.size[1], legacy=True)
        return {"image_embeds": golden_models.image_encoder(0)(pixels).image_embeds}


def golden_pictures(case: dict, name: str) -> torch.Tensor:
    """A golden case's pictures as an IMAGE."""
    return goldens().input(case["inputs"][name])[0].permute(1, 2, 3, 0).float() / 255  # from (3, n, H, W)


def golden_model(case: dict, folder: Path, base=None, **changes):
    """The MODEL of a pipeline case, with all of MuseV's nodes applied."""
    arch = case["model"]["arch"]
    options = {
        "motion": MotionOptions(golden_motion(arch, folder), case["motion_speed"]),
        "windows": WindowOptions(case["window_length"], case["window_overlap"], case["window_schedule"]),
        "noise": NoiseOptions(
            case["noise_type"], case["individual_noise_weight"], case["image_noise_weight"], "original"
        ),
        "original_scaling": True,
    }
    if case["model"]["reference_net"]:
        options["reference"] = ReferenceOptions(
            networks.load_reference_net(reference_net_file(folder), torch.float32),
            GoldenVAE(),
            golden_pictures(case, "reference_image"),
        )
    if case["model"]["image_prompt"]:
        options["image_prompt"] = ImagePromptOptions(
            networks.load_ip_adapter(image_projection_file(folder)),
            GoldenVision(case["height"], case["width"]),
            golden_pictures(case, "image_prompt_image"),
        )
    return with_options(golden_base() if base is None else base, **{**options, **changes})


def with_original_norms(model):
    """The same MODEL; its layer norms have eps 0 as the original's, ComfyUI's have 1e-5."""
    options = options_of(model)
    reference = [options.reference.net.net] if options.reference else []
    for network in (model.model.diffusion_model, options.motion.motion.tree, *reference):
        for name, module in network.named_modules():
            if name.endswith((".norm1", ".norm3")) and isinstance(module, torch.nn.LayerNorm):
                module.eps = 0.0
    return model


def golden_clip(case: dict) -> tuple[torch.Tensor, torch.Tensor, list, list]:
    """Latents and noise mask of a case as Image to Video makes them, positive and negative conditioning."""
    arrays = goldens().arrays(case)
    clean = torch.from_numpy(arrays["condition_latents"])[0].transpose(0, 1) / SCALE  # (n, 4, h, w)
    frames = len(clean) + case["num_frames"]
    latents = torch.zeros(frames, *clean.shape[1:])
    latents[: len(clean)] = clean
    mask = torch.ones(frames, 1, *clean.shape[2:])
    mask[: len(clean)] = 0
    text = torch.from_numpy(arrays["text_context"])
    return latents, mask, [[text[1:], {}]], [[text[:1], {}]]


def ksample(model, case: dict, *, sampler="euler", scheduler="normal", clip=None, **changes) -> torch.Tensor:
    """A case through ComfyUI's KSampler; latents as nodes have them, unscaled."""
    latents, mask, positive, negative = golden_clip(case) if clip is None else clip
    arguments = {
        "noise": comfy.sample.prepare_noise(latents, case["generator_seed"]),
        "steps": case["num_inference_steps"],
        "cfg": case["guidance_start"],
        "noise_mask": mask,
        "seed": case["generator_seed"],
        **changes,
    }
    noise, steps, cfg = (arguments.pop(name) for name in ("noise", "steps", "cfg"))
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, latents, disable_pbar=True, **arguments
    )
