"""Which files make up a pipeline, as they are given."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

StrPath = str | Path


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
        vae, text_encoder: others than the base model's, a folder or a file.
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
    text_encoder: StrPath | None = None
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
