"""The demo model's networks: made new, or with the weights inside the package."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encode.pictures import ImagePromptEncoder
from ..errors import CheckpointError
from ..models.ip_adapter import image_projection
from ..models.reference_net import ReferenceNet
from ..models.unet import MuseVUNet
from ..pipeline import MuseVPipeline
from . import sizes
from .files import FILES, WEIGHTS, read_weights
from .vocabulary import DemoTokenizer


@dataclass
class DemoNetworks:
    """Every network of the demo model, by the classes the Python pipeline uses."""

    unet: MuseVUNet
    reference_net: ReferenceNet
    image_projection: nn.Module
    vae: Any
    text_encoder: Any
    image_encoder: Any
    controlnet: Any

    def named(self) -> dict[str, nn.Module]:
        """The networks by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def pipeline(self) -> MuseVPipeline:
        """The pipeline they make up."""
        return MuseVPipeline(
            unet=self.unet,
            vae=self.vae,
            tokenizer=DemoTokenizer(),
            text_encoder=self.text_encoder,
            reference_net=self.reference_net,
            image_prompt=ImagePromptEncoder(self.image_encoder, self.image_projection),
        )


def new_networks(vocabulary: int = sizes.TEXT["vocab_size"]) -> DemoNetworks:
    """The networks with random weights, for a text encoder of so many tokens."""
    from diffusers import AutoencoderKL, ControlNetModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    make_vae: Any = AutoencoderKL
    make_controlnet: Any = ControlNetModel
    text: dict[str, Any] = sizes.TEXT | {
        "vocab_size": vocabulary,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    return DemoNetworks(
        unet=MuseVUNet(sizes.UNET),
        reference_net=ReferenceNet(sizes.UNET),
        image_projection=image_projection(sizes.PROJECTION),
        vae=make_vae(**sizes.VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes.VISION)),
        controlnet=make_controlnet(**sizes.CONTROLNET),
    )


def load_networks(folder: Path = WEIGHTS) -> DemoNetworks:
    """The networks with trained weights, in float32, ready for inference.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    with torch.device("meta"):
        networks = new_networks()
    weights = read_weights(folder)
    for name, net in networks.named().items():
        fill(net, weights[name], folder / FILES[name])
    return networks


def demo_pipeline(folder: Path = WEIGHTS) -> MuseVPipeline:
    """The demo model as a pipeline; sample it with `SCHEDULER`."""
    return load_networks(folder).pipeline()


def fill(net: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Gives a network on the meta device its weights in float32."""
    expected = {name for name in net.state_dict() if not name.endswith("position_ids")}
    if "text_model." not in next(iter(expected)):
        tensors = {name.removeprefix("text_model."): x for name, x in tensors.items()}
    if expected != set(tensors):
        different = sorted(expected ^ set(tensors))
        raise CheckpointError(f"{source} does not hold the demo model's weights: {', '.join(different[:3])} differ")
    net.to_empty(device="cpu")
    for module in net.modules():
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, Tensor):  # not in the files, and without values on the meta device
            positions.copy_(torch.arange(positions.shape[-1]).expand(positions.shape))
    net.load_state_dict({name: x.float() for name, x in tensors.items()}, strict=False, assign=True)
    net.eval().requires_grad_(False)
