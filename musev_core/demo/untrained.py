"""Every network of the pipeline in miniature, with random weights: it shows that everything runs, not how it looks."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import MUSEV_REFERENCENET, ImageProjectionConfig, UNetConfig, resized
from ..encoders import ImagePromptEncoder
from ..models.ip_adapter import image_projection
from ..models.reference_net import ReferenceNet
from ..models.unet import MuseVUNet
from ..pipeline import MuseVPipeline

SIZE = UNetConfig(block_out_channels=(32, 64, 64, 64), norm_groups=32, num_heads=4, context_dim=32)


def untrained_pipeline(seed: int = 0) -> MuseVPipeline:
    """A pipeline of the musev_referencenet kind; the same weights for the same seed."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    make_vae: Any = AutoencoderKL
    tokenizer = letters_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (16, 32, 32, 32)
        pipeline = MuseVPipeline(
            unet=MuseVUNet(resized(MUSEV_REFERENCENET, SIZE)),
            vae=make_vae(
                block_out_channels=widths,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=1,
                norm_num_groups=16,
            ),
            tokenizer=tokenizer,
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    bos_token_id=len(tokenizer) - 2,
                    eos_token_id=len(tokenizer) - 1,
                )
            ),
            reference_net=ReferenceNet(SIZE),
            image_prompt=ImagePromptEncoder(
                CLIPVisionModelWithProjection(
                    CLIPVisionConfig(
                        hidden_size=32,
                        intermediate_size=64,
                        num_hidden_layers=2,
                        num_attention_heads=4,
                        patch_size=32,
                        projection_dim=32,
                    )
                ),
                image_projection(ImageProjectionConfig(input_dim=32, context_dim=32)),
            ),
        )
    for net in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.reference_net):
        _freeze(net)
    for part in (pipeline.image_prompt.encoder, pipeline.image_prompt.projection):  # type: ignore[union-attr]
        _freeze(part)
    return pipeline


def _freeze(net: nn.Module) -> None:
    net.eval().requires_grad_(False)


def letters_tokenizer() -> Any:
    """CLIP's tokenizer with single letters as its words."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges))
