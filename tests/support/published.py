"""Small models on disk, in the layout of the published files (extra.md 8.2)."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from musev_core.weights.keymaps import ip_attention_key_map, is_motion_name, unet_ldm_to_diffusers, vae_ldm_to_diffusers

from . import golden_models as models
from .letters import letters_tokenizer
from .numbers import det

SIZE, SEED = "tiny2", 0
_LORA_LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
UNET_CONFIG = {"attention_head_dim": 4, "norm_num_groups": 8}


def save(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """As .safetensors or .bin, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.to(dtype).contiguous() for name, x in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def _config(path: Path, config: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")


def write_musev(
    root: Path,
    *,
    arch: str = "musev_referencenet",
    suffix: str = ".bin",
    motion_only: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = SEED,
) -> Path:
    """`root/<arch>/...`: UNet, and ReferenceNet and projection where the variant has them; returns the model folder."""
    folder = root / arch
    state = models.unet(arch, SIZE, seed).state_dict()
    if motion_only:
        state = {name: x for name, x in state.items() if is_motion_name(name)}
    save(state, folder / "unet" / f"diffusion_pytorch_model{suffix}", dtype)
    _config(folder / "unet" / "config.json", UNET_CONFIG)
    if arch != "musev":
        reference_net = models.reference_net(SIZE, seed).state_dict()
        save(reference_net, folder / "referencenet" / f"diffusion_pytorch_model{suffix}")
        # the published file has the sizes of another network in it
        _config(folder / "referencenet" / "config.json", {"cross_attention_dim": 1280})
        projection = {f"image_proj.{k}": v for k, v in models.projection("plain", seed).state_dict().items()}
        save(projection, folder / f"ip_adapter_image_proj{suffix}")
    return folder


def text_state(seed: int = SEED) -> dict[str, Tensor]:
    """The text encoder under the published names, with the vocabulary of the letters tokenizer."""
    prefix = "text_model."
    state = models.text_encoder(seed).state_dict()
    return {(name if name.startswith(prefix) else prefix + name): x for name, x in state.items()}


def write_base(root: Path, *, seed: int = SEED) -> Path:
    """A Stable Diffusion 1.5 model in miniature, as a diffusers folder."""
    save(models.unet2d(SIZE, seed).state_dict(), root / "unet" / "diffusion_pytorch_model.safetensors")
    _config(root / "unet" / "config.json", UNET_CONFIG)
    save(models.vae(seed).state_dict(), root / "vae" / "diffusion_pytorch_model.safetensors")
    _config(root / "vae" / "config.json", {"norm_num_groups": 4, "scaling_factor": 0.18215})
    save(text_state(seed), root / "text_encoder" / "model.safetensors")
    _config(root / "text_encoder" / "config.json", {"num_attention_heads": 4})
    write_tokenizer(root / "tokenizer")
    return root


def write_tokenizer(folder: Path, *, backwards: bool = False) -> Path:
    tokenizer = letters_tokenizer(backwards=backwards)
    tokenizer.save_pretrained(folder)
    if not (folder / "vocab.json").is_file():  # transformers 5 writes one file only
        vocabulary = tokenizer.get_vocab()
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def single_file(path: Path) -> Path:
    """The same model as one checkpoint with LDM names."""
    config = models.size_config(SIZE)
    unet = models.unet2d(SIZE, SEED).state_dict()
    vae = models.vae(SEED).state_dict()
    names = {new: f"model.diffusion_model.{old}" for old, new in unet_ldm_to_diffusers(config).items()}
    vae_names = {new: f"first_stage_model.{old}" for old, new in vae_ldm_to_diffusers(4, 1).items()}
    tensors = {names[name]: x for name, x in unet.items()}
    for name, x in vae.items():
        old = vae_names[name]
        # in these files attention is a 1x1 convolution
        tensors[old] = x[:, :, None, None] if ".attn_1." in old and x.ndim == 2 else x
    tensors |= {f"cond_stage_model.transformer.{name}": x for name, x in text_state().items()}
    return save(tensors, path)


def write_image_encoder(folder: Path, *, seed: int = SEED) -> Path:
    encoder = models.image_encoder(seed)
    save(encoder.state_dict(), folder / "model.safetensors")
    _config(folder / "config.json", models.CONFIG["clip_vision"])
    return folder


def write_controlnet(folder: Path, *, seed: int = SEED) -> Path:
    models.controlnet(SIZE, seed).save_pretrained(folder)
    return folder


def write_adapter(path: Path, kind: str, seed: int) -> None:
    """An IP-Adapter in miniature: its projection, and key and value layers for every attention to the prompt."""
    unet = models.unet("musev_referencenet", SIZE, 0).state_dict()
    layers = ip_attention_key_map(models.size_config(SIZE))
    tensors = {f"ip_adapter.{n}": det(f"{kind} {n}", unet[name].shape, seed, 0.1) for n, name in layers.items()}
    tensors |= {f"image_proj.{k}": v for k, v in models.projection(kind, seed).state_dict().items()}
    save(tensors, path)


def write_lora(path: Path, seed: int) -> None:
    """A LoRA of one layer in kohya's names."""
    names = {f"lora_unet_{_LORA_LAYER}.lora_down.weight": (2, 32), f"lora_unet_{_LORA_LAYER}.lora_up.weight": (32, 2)}
    save({name: det(name, shape, seed) for name, shape in names.items()}, path)
