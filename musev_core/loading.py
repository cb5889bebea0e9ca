"""From weight files to a pipeline: networks built for what the tensors are, every file checked before the next."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import UNetConfig
from .devices import find_device
from .encoders import FacePromptEncoder, ImagePromptEncoder, insightface_extractor
from .errors import CheckpointError, MuseVError
from .models.ip_adapter import image_projection
from .models.owned import lay_out_weights
from .models.reference_net import ReferenceNet
from .models.unet import MuseVUNet
from .pipeline import MuseVPipeline
from .text import add_textual_inversions, read_textual_inversion
from .weights.files import check_finite, read_shapes, read_tensors, select
from .weights.keymaps import fit_text_names, ip_attention_names, motion_tensors, split_ip_adapter
from .weights.kinds import Family, describe, image_projection_config, recognise, unet_config_from_shapes
from .weights.layout import MuseVFiles, find_musev_files, read_base
from .weights.lora import apply_lora, read_lora

log = logging.getLogger(__name__)

StrPath = str | Path
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"  # what every Stable Diffusion 1.5 model uses
_ALIGNMENT = 64  # bytes, of torch's own memory


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to merge into the base model: `strength` 1 is full; `block_weights` as `apply_lora` takes them."""

    path: StrPath
    strength: float = 1.0
    block_weights: str | Sequence[float] | None = None


@dataclass(frozen=True)
class ModelFiles:
    """Which files make up a pipeline; everything but the first two is optional.

    Args:
        musev: MuseV's folder or UNet file, see `find_musev_files`.
        base: a Stable Diffusion 1.5 model, a diffusers folder or a single file.
        variant: which MuseV model in a folder of several.
        vae: another VAE, a folder or a file; default: the base model's.
        tokenizer: a folder; default: the base model's, else CLIP's from the local hub cache.
        reference_net, image_projection: default: found beside the UNet.
        image_encoder: folder of CLIP ViT-H; without it no image prompt is possible.
        ip_adapter: an original IP-Adapter (plain, plus, plus-face), replacing MuseV's image prompt layers.
        face_adapter: IP-Adapter FaceID; face_models: folder with insightface's `models/buffalo_l`.
        loras: merged in order. embeddings: textual inversion files, or folders of them.
        use_reference_net, use_image_prompt: off saves their memory.
    """

    musev: StrPath
    base: StrPath
    variant: str | None = None
    vae: StrPath | None = None
    tokenizer: StrPath | None = None
    reference_net: StrPath | None = None
    image_projection: StrPath | None = None
    image_encoder: StrPath | None = None
    ip_adapter: StrPath | None = None
    face_adapter: StrPath | None = None
    face_models: StrPath | None = None
    loras: Sequence[LoraFile] = ()
    embeddings: Sequence[StrPath] = field(default=())
    use_reference_net: bool = True
    use_image_prompt: bool = True


def default_dtype(device: torch.device) -> torch.dtype:
    """Half precision on an accelerator, full precision on the CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


def load_pipeline(
    files: ModelFiles,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[str], None] | None = None,
) -> MuseVPipeline:
    """Loads a pipeline.

    Args:
        device, dtype: default: `devices.default_device()`, `default_dtype()`; the VAE stays in float32.
        progress: called with the name of each network before it is loaded.

    Raises:
        MuseVError: no such device.
        CheckpointError: a file is missing, damaged, or not what is asked for; all are recognised before any is loaded.
        MissingPackageError: FaceID without insightface.
    """
    say = progress or (lambda name: None)
    device = find_device(device)
    dtype = dtype or default_dtype(device)
    found = _checked(files)

    say("UNet")
    unet = load_unet(files, found, dtype)
    say("text encoder")
    tokenizer = load_tokenizer(files)
    text_encoder = load_text_encoder(files.base, dtype)
    for lora_file in files.loras:
        say(f"LoRA {Path(lora_file.path).stem}")
        lora = read_lora(read_tensors(lora_file.path), source=str(lora_file.path), config=unet.config.spatial())
        if lora.unet:
            apply_lora(unet, lora, lora_file.strength, lora_file.block_weights, part="unet")
        if lora.text:
            apply_lora(text_encoder, lora, lora_file.strength, lora_file.block_weights, part="text")
    if files.embeddings:
        say("embeddings")
        _add_embeddings(tokenizer, text_encoder, files.embeddings)
    say("VAE")
    vae = load_vae(files.vae or files.base)
    reference_net = image_prompt = face_prompt = None
    if found.referencenet is not None and files.use_reference_net:
        say("ReferenceNet")
        reference_net = load_reference_net(found.referencenet, unet.config, dtype)
    if files.image_encoder is not None and files.use_image_prompt and unet.config.image_prompt:
        say("image encoder")
        source = files.ip_adapter or found.image_proj
        if source is None:
            raise CheckpointError(
                f"no ip_adapter_image_proj file lies beside {found.unet.parent}; give it as image_projection, or leave "
                "the image encoder out"
            )
        image_prompt = ImagePromptEncoder(
            load_image_encoder(files.image_encoder, dtype), load_projection(source, dtype)
        )
    if files.face_adapter is not None:
        say("FaceID")
        face_prompt = FacePromptEncoder(
            insightface_extractor(_given(files.face_models, "face_models", "FaceID")),
            load_projection(files.face_adapter, dtype),
        )
    pipeline = MuseVPipeline(unet, vae, tokenizer, text_encoder, reference_net, image_prompt, face_prompt)
    return pipeline.to(device)


def _given(value: StrPath | None, name: str, purpose: str) -> StrPath:
    if value is None:
        raise MuseVError(f"{purpose} needs {name} as well")
    return value


def _checked(files: ModelFiles) -> MuseVFiles:
    """The MuseV files, with every other file recognised by its tensors before anything long starts."""
    found = find_musev_files(files.musev, files.variant)
    referencenet = Path(files.reference_net) if files.reference_net is not None else found.referencenet
    if referencenet is not None and referencenet.is_dir():
        referencenet = _weights_in(referencenet)
    projection = Path(files.image_projection) if files.image_projection is not None else found.image_proj
    for path, families, what in (
        (referencenet, (Family.REFERENCENET, Family.UNET), "a ReferenceNet"),
        (projection, (Family.IMAGE_PROJECTION, Family.IP_ADAPTER), "MuseV's image projection"),
        (files.ip_adapter, (Family.IP_ADAPTER,), "an IP-Adapter"),
        (files.face_adapter, (Family.IP_ADAPTER,), "an IP-Adapter FaceID"),
        *((lora.path, (Family.LORA,), "a LoRA") for lora in files.loras),
    ):
        if path is not None:
            _expect(Path(path), families, what)
    if files.face_adapter is not None and found.kind.family is not Family.MUSEV_REFERENCENET_UNET:
        raise CheckpointError(
            f"FaceID works with the musev_referencenet models, but {found.unet} is {describe(found.kind)}"
        )
    return replace(found, referencenet=referencenet, image_proj=projection)


def _expect(path: Path, families: Sequence[Family], what: str) -> None:
    kind = recognise(read_shapes(path))
    if kind.family not in families:
        raise CheckpointError(f"{what} was expected, but {path} is {describe(kind)}")


def _weights_in(folder: Path) -> Path:
    """The one weight file of a component's folder."""
    candidates = [
        p for suffix in ("safetensors", "bin", "pth") for p in sorted(folder.glob(f"*.{suffix}")) if p.is_file()
    ]
    if not candidates:
        raise CheckpointError(f"the folder {folder} holds no .safetensors, .bin or .pth file")
    return candidates[0]


def _config_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable JSON: {error}") from error


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> nn.Module:
    """Gives a network made on the meta device its weights; it is ready for inference."""
    tensors = {name: _aligned(x if dtype is None else x.to(dtype)) for name, x in tensors.items()}
    net.load_state_dict(tensors, assign=True)
    return net.eval().requires_grad_(False)


def _aligned(x: Tensor) -> Tensor:
    """Tensors of a mapped file lie anywhere; matrix products of the CPU then run slower, and round differently."""
    return x if x.data_ptr() % _ALIGNMENT == 0 else x.clone()


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in net.state_dict().items()}


def load_unet(files: ModelFiles, found: MuseVFiles, dtype: torch.dtype) -> MuseVUNet:
    """MuseV's motion layers around the base model's own weights (musev.md 7)."""
    shapes = read_shapes(found.unet)
    config = unet_config_from_shapes(shapes, _config_json(found.unet.parent))
    config = replace(config, face_prompt=config.face_prompt or files.face_adapter is not None)
    with torch.device("meta"):
        unet = MuseVUNet(config)
        base_names = set(MuseVUNet(config.spatial()).state_dict())
    expected = _shapes(unet)
    motion = motion_tensors(read_tensors(found.unet))
    if files.ip_adapter is not None:
        motion |= _ip_attention(files.ip_adapter, config, face=False)
    if files.face_adapter is not None:
        motion |= _ip_attention(files.face_adapter, config, face=True)
    base = select(
        read_base(files.base, "unet", config=config.spatial()),
        {name: shape for name, shape in expected.items() if name in base_names},
        source=str(files.base),
    )
    motion = select(
        motion,
        {name: shape for name, shape in expected.items() if name not in base_names},
        source=str(found.unet),
        tolerate=("*.ip_adapter_face_to_*",),
    )
    check_finite(motion, found.unet)
    _fill(unet, base | motion, dtype)
    lay_out_weights(unet)
    return unet


def _ip_attention(path: StrPath, config: UNetConfig, *, face: bool) -> dict[str, Tensor]:
    _, attention = split_ip_adapter(read_tensors(path))
    if not config.image_prompt:
        raise CheckpointError(f"{path} cannot be used: this MuseV model has no image prompt layers")
    return ip_attention_names(attention, face=face, config=config.spatial())


def load_reference_net(path: StrPath, unet: UNetConfig, dtype: torch.dtype) -> ReferenceNet:
    """The ReferenceNet of a UNet; the sizes in its published config.json are wrong and not looked at (musev.md 7)."""
    with torch.device("meta"):
        net = ReferenceNet(unet)
    tensors = select(
        read_tensors(path), _shapes(net), source=path, tolerate=("up_blocks.*", "conv_norm_out.*", "conv_out.*")
    )
    check_finite(tensors, path)
    _fill(net, tensors, dtype)
    lay_out_weights(net)
    return net


def load_projection(path: StrPath, dtype: torch.dtype) -> nn.Module:
    """The image projection of MuseV or of any IP-Adapter file."""
    tensors = read_tensors(path)
    tensors, _ = split_ip_adapter(tensors)
    with torch.device("meta"):
        net = image_projection(image_projection_config({k: tuple(v.shape) for k, v in tensors.items()}))
    return _fill(net, select(tensors, _shapes(net), source=path), dtype)


def load_vae(path: StrPath) -> Any:
    """A diffusers `AutoencoderKL` in float32, from a diffusers folder, its `vae` folder, or a single file."""
    from diffusers import AutoencoderKL

    tensors = read_base(path, "vae")
    root = Path(path)
    config = _config_json(root / "vae") or _config_json(root if root.is_dir() else root.parent)
    blocks = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.down_blocks."))
    widths = [tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(blocks)]
    layers = len({name.split(".")[4] for name in tensors if name.startswith("encoder.down_blocks.0.resnets.")})
    make: Any = AutoencoderKL
    with torch.device("meta"):
        vae = make(
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            latent_channels=tensors["decoder.conv_in.weight"].shape[1],
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            norm_num_groups=config.get("norm_num_groups", 32),
            scaling_factor=config.get("scaling_factor", 0.18215),
        )
    return _fill(vae, select(tensors, _shapes(vae), source=path), torch.float32)


def load_text_encoder(base: StrPath, dtype: torch.dtype) -> Any:
    """The base model's CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tensors = read_base(base, "text_encoder")
    config = _config_json(Path(base) / "text_encoder")
    vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    prefix = "text_model.encoder.layers."
    depth = len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
    with torch.device("meta"):
        model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=tensors[f"{prefix}0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=depth,
                num_attention_heads=config.get("num_attention_heads", max(1, width // 64)),
                max_position_embeddings=tensors["text_model.embeddings.position_embedding.weight"].shape[0],
                hidden_act=config.get("hidden_act", "quick_gelu"),
                layer_norm_eps=config.get("layer_norm_eps", 1e-5),
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
            )
        )
    expected = {name: shape for name, shape in _shapes(model).items() if not name.endswith("position_ids")}
    tensors = select(fit_text_names(tensors, expected), expected, source=base, tolerate=("text_projection.*",))
    model = model.to_empty(device="cpu")
    _restore_positions(model)
    model.load_state_dict({name: x.to(dtype) for name, x in tensors.items()}, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def load_image_encoder(folder: StrPath, dtype: torch.dtype) -> Any:
    """A transformers `CLIPVisionModelWithProjection` from a folder with config.json and weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"the image encoder is a folder with config.json and weights, but {folder} is none")
    config = _config_json(folder)
    if not config:
        raise CheckpointError(f"{folder} holds no config.json; the image encoder of IP-Adapter has one")
    path = _weights_in(folder)
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    expected = {name: shape for name, shape in _shapes(model).items() if not name.endswith("position_ids")}
    tensors = select(read_tensors(path), expected, source=path, tolerate=("*position_ids", "text_*", "logit_scale"))
    model = model.to_empty(device="cpu")
    _restore_positions(model)
    model.load_state_dict({name: x.to(dtype) for name, x in tensors.items()}, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def _restore_positions(model: nn.Module) -> None:
    """CLIP's position numbers are not in the files and have no values on the meta device."""
    for module in model.modules():
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, Tensor):
            positions.copy_(torch.arange(positions.shape[-1]).expand(positions.shape))


def load_tokenizer(files: ModelFiles) -> Any:
    """CLIP's tokenizer: given, the base model's, or from the local hub cache; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import CLIPTokenizer

    cached = try_to_load_from_cache(CLIP_TOKENIZER, "vocab.json")
    given = [] if files.tokenizer is None else [Path(files.tokenizer)]
    local = [Path(cached).parent] if isinstance(cached, str) else []
    for folder in given or [Path(files.base) / "tokenizer", *local]:
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    if given:
        raise CheckpointError(f"the tokenizer folder {files.tokenizer} holds no vocab.json and merges.txt")
    raise CheckpointError(
        f"{files.base} brings no tokenizer. Give the tokenizer folder (vocab.json, merges.txt) of any Stable Diffusion "
        f"1.5 model in diffusers form, or fetch it once: hf download {CLIP_TOKENIZER} vocab.json merges.txt "
        "tokenizer_config.json special_tokens_map.json"
    )


def _add_embeddings(tokenizer: Any, text_encoder: Any, paths: Sequence[StrPath]) -> None:
    files: list[Path] = []
    for path in map(Path, paths):
        files += (
            sorted(p for p in path.iterdir() if p.suffix in (".pt", ".safetensors", ".bin"))
            if path.is_dir()
            else [path]
        )
    embeddings = [read_textual_inversion(read_tensors(path), path.stem) for path in files]
    add_textual_inversions(tokenizer, text_encoder, embeddings)


def load_controlnet(path: StrPath, *, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers `ControlNetModel` from a diffusers folder, its weight file, or a single file with LDM names."""
    from diffusers import ControlNetModel
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    root = Path(path)
    file = _weights_in(root) if root.is_dir() else root
    _expect(file, (Family.CONTROLNET,), "a ControlNet")
    tensors = read_tensors(file)
    config = _config_json(file.parent)
    make: Any = ControlNetModel
    with torch.device("meta"):
        if config.get("_class_name") == "ControlNetModel":
            net = make.from_config(config)
        else:
            net = make(cross_attention_dim=768, attention_head_dim=8)
    if not any(name.startswith("controlnet_cond_embedding.") for name in tensors):
        tensors = convert_controlnet_checkpoint(dict(tensors), dict(net.config))
    return _fill(net, select(tensors, _shapes(net), source=file), dtype)
