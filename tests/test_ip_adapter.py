"""Image projections have the published names and compute what diffusers' own do."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers.models import embeddings as theirs
from support.numbers import det, fill
from torch import Tensor, nn

from musev_core.config import IMAGE_PROJECTIONS, ImageProjectionConfig
from musev_core.models.ip_adapter import image_projection

MANIFESTS = Path(__file__).parent / "manifests"
PLAIN = ImageProjectionConfig(input_dim=24, context_dim=32, num_tokens=4)
FACE = ImageProjectionConfig(kind="faceid", input_dim=16, context_dim=32, num_tokens=4)
PLUS = ImageProjectionConfig(
    kind="plus", input_dim=24, context_dim=32, num_tokens=5, depth=3, num_heads=2, head_dim=8, ff_mult=3
)


@pytest.mark.parametrize(
    "kind, name",
    [("plain", "ip_adapter_image_proj"), ("faceid", "ip_adapter_faceid_proj"), ("plus", "ip_adapter_plus_proj")],
)
def test_full_size_has_the_published_tensors(kind: str, name: str) -> None:
    with torch.device("meta"):
        net = image_projection(IMAGE_PROJECTIONS[kind])
    expected = json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))["state_dict"]
    assert {key: list(x.shape) for key, x in net.state_dict().items()} == expected


def renamed(weights: dict[str, Tensor], rules: dict[str, str]) -> dict[str, Tensor]:
    """Every name with the rules (pattern: replacement) applied in order."""
    out = {}
    for name, x in weights.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        out[name] = x
    return out


def check_same(config: ImageProjectionConfig, other: nn.Module, rules: dict[str, str], *shape: int) -> Tensor:
    """Gives both the same weights and compares what they make of the same input."""
    net = fill(image_projection(config), "", 0).double()
    weights = renamed(net.state_dict(), rules)
    for name in [name for name in weights if name.endswith("to_kv.weight")]:
        key, value = weights.pop(name).chunk(2)
        weights |= {name.replace("to_kv", "to_k"): key, name.replace("to_kv", "to_v"): value}
    other.double().load_state_dict(weights)
    x = det("x", shape).double()
    with torch.no_grad():
        got, expected = net(x), other(x)
    assert got.shape == (shape[0], config.num_tokens, config.context_dim)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    return got


def test_plain_projection_is_that_of_diffusers() -> None:
    other = theirs.ImageProjection(image_embed_dim=24, cross_attention_dim=32, num_image_text_embeds=4)
    check_same(PLAIN, other, {"^proj": "image_embeds"}, 3, 24)


def test_face_projection_is_that_of_diffusers() -> None:
    other = theirs.IPAdapterFaceIDImageProjection(image_embed_dim=16, cross_attention_dim=32, mult=2, num_tokens=4)
    check_same(FACE, other, {r"proj\.0": "ff.net.0.proj", r"proj\.2": "ff.net.2"}, 3, 16)


def test_resampler_is_that_of_diffusers() -> None:
    other = theirs.IPAdapterPlusImageProjection(
        embed_dims=24, output_dims=32, hidden_dims=32, depth=3, dim_head=8, heads=2, num_queries=5, ffn_ratio=3
    )
    rules = {
        r"(layers\.\d)\.0\.norm1": r"\1.ln0",
        r"(layers\.\d)\.0\.norm2": r"\1.ln1",
        r"(layers\.\d)\.0": r"\1.attn",
        r"to_out": "to_out.0",
        r"(layers\.\d)\.1\.0": r"\1.ff.0",
        r"(layers\.\d)\.1\.1": r"\1.ff.1.net.0.proj",
        r"(layers\.\d)\.1\.3": r"\1.ff.1.net.2",
    }
    check_same(PLUS, other, rules, 3, 11, 24)


def test_pictures_are_projected_one_by_one() -> None:
    net = fill(image_projection(PLUS), "", 0).double()
    x = det("x", (3, 11, 24)).double()
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=0, atol=1e-12)
