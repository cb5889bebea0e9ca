"""Features of the reference pictures, computed once at the start of a run, when sizes, text and tokens are known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...musev_core.errors import MuseVError
from ...musev_core.frames.images import fit_images, to_uint8
from ...musev_core.models.conditions import ClipConditions, ReferenceFeatures
from .networks import HostedIPAdapter
from .options import FaceOptions, ImagePromptOptions, Options, ReferenceOptions

# what CLIP subtracts: a picture of this colour is the resampler's empty picture (extra.md 6.2)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


@dataclass(frozen=True)
class Features:
    """Everything has two rows: unconditional, conditional."""

    reference: ReferenceFeatures | None = None
    image_tokens: Tensor | None = None
    face_tokens: Tensor | None = None

    def conditions(self, text: Tensor, rows: Sequence[int], like: Tensor) -> ClipConditions:
        """For a call with these rows (0 unconditional, 1 conditional); `text (rows, tokens, dim)`."""
        index = list(rows)

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.stack([x[i] for i in index]).to(like)

        reference = self.reference
        if reference is not None:
            picked = [pick(x) for x in (*reference.down, reference.mid)]
            reference = ReferenceFeatures(tuple(picked[:-1]), picked[-1])  # type: ignore[arg-type]
        return ClipConditions(
            text=text, image_tokens=pick(self.image_tokens), face_tokens=pick(self.face_tokens), reference=reference
        )


def compute(model: Any, options: Options, latents: Tensor, texts: Sequence[Tensor]) -> Features:
    """Runs the encoders and the ReferenceNet.

    Args:
        model: the MODEL.
        latents: of the clip, `(frames, 4, h, w)`, for their size.
        texts: negative and positive prompt `(1, tokens, dim)`, used where there is no image prompt (musev.md 3).
    """
    image_tokens = face_tokens = reference = None
    if options.image_prompt is not None and options.image_prompt.weight > 0:
        image_tokens = _image_tokens(options.image_prompt)
    if options.face is not None and options.face.weight > 0:
        face_tokens = _face_tokens(options.face)
    if options.reference is not None and options.reference.strength > 0:
        context = image_tokens if image_tokens is not None else _same_length(texts)
        reference = _reference(model, options.reference, latents, context)
    return Features(reference, image_tokens, face_tokens)


def _same_length(texts: Sequence[Tensor]) -> Tensor:
    """Prompts of different length in one batch: repeating all tokens equally often changes no attention."""
    tokens = math.lcm(*(text.shape[1] for text in texts))
    return torch.cat([text[:1].repeat(1, tokens // text.shape[1], 1) for text in texts])


def _loaded(patchers: Sequence[Any]) -> torch.device:
    comfy.model_management.load_models_gpu(list(patchers))
    return patchers[0].load_device


def _projected(adapter: HostedIPAdapter, encoded: Sequence[Tensor]) -> list[Tensor]:
    device = _loaded(adapter.patchers[:1])
    return [adapter.projection(x.to(device, torch.float32)) for x in encoded]


def _image_tokens(options: ImagePromptOptions) -> Tensor:
    """`(2, tokens, dim)`: tokens of all pictures side by side, or their mean (extra.md 6.2)."""
    config, pictures = options.adapter.config, options.images[..., :3]
    output = options.clip_vision.encode_image(pictures)
    if config.kind == "plus":
        encoded = output["penultimate_hidden_states"]
        grey = pictures.new_tensor(_CLIP_MEAN).expand(1, 224, 224, 3)
        empty = options.clip_vision.encode_image(grey)["penultimate_hidden_states"].expand_as(encoded)
    else:
        encoded = output["image_embeds"]
        empty = torch.zeros_like(encoded)
    if encoded.shape[-1] != config.input_dim:
        raise MuseVError(
            f"{options.adapter.name} was made for an image encoder of width {config.input_dim}, but this CLIP Vision "
            f"gives {encoded.shape[-1]}. Load CLIP ViT-H/14 (IP-Adapter/models/image_encoder)."
        )
    if options.combine == "average":
        encoded, empty = encoded.mean(dim=0, keepdim=True), empty[:1]
    none, some = _projected(options.adapter, (empty, encoded))
    return torch.stack([none.flatten(0, 1), some.flatten(0, 1)])


def _face_tokens(options: FaceOptions) -> Tensor:
    """`(2, tokens, dim)`."""
    embeddings = options.embeddings
    none, some = _projected(options.adapter, (torch.zeros_like(embeddings), embeddings))
    return torch.stack([none.flatten(0, 1), some.flatten(0, 1)])


def _reference(model: Any, options: ReferenceOptions, latents: Tensor, context: Tensor) -> ReferenceFeatures:
    height = options.height or 8 * latents.shape[-2]
    width = options.width or 8 * latents.shape[-1]
    pictures = fit_images(to_uint8(options.images[..., :3].cpu()), height, width).float() / 255
    encoded = model.model.process_latent_in(options.vae.encode(pictures))  # (n, 4, h, w)
    if encoded.ndim != 4 or encoded.shape[1] != 4:
        raise MuseVError(
            f"the VAE of Apply ReferenceNet gives latents of the shape {tuple(encoded.shape[1:])}; a Stable Diffusion "
            "1.5 VAE with 4 channels is needed"
        )
    net = options.net
    comfy.model_management.load_models_gpu(
        [net.patcher], memory_required=model.model.memory_required([2 * len(encoded), *encoded.shape[1:]])
    )
    device, dtype = net.patcher.load_device, model.model.get_dtype_inference()
    rows = encoded.transpose(0, 1)[None].expand(2, -1, -1, -1, -1)  # (2, 4, n, h, w)
    return net.net(rows.to(device, dtype), context.to(device, dtype))
