"""MODELs in every precision that ComfyUI loads, and with layers of which only the answer is known."""

import pytest
import torch
from support.comfy_clips import REFERENCENET, Nodes, base, motion, sample
from support.golden_comfy import golden_base

FP32, FP16, BF16, FP8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


def moved(nodes: Nodes, model, dtype=FP32):
    moving = nodes.motion(model, motion=motion(REFERENCENET, nodes.folder, dtype))
    return nodes.ip_adapter(nodes.reference(nodes.windows(moving)))


@pytest.fixture(scope="module")
def exact(nodes):
    """The clip after a single evaluation: over steps a network of random weights magnifies every rounding."""
    with torch.inference_mode():
        return sample(moved(nodes, base()), steps=1, cfg=1.0)


# (base, what ComfyUI computes it in, motion, relative error): three times the rounding of one number and more, as there
# are many layers
KINDS = {
    "fp16": (FP16, None, FP16, 0.003),
    "bf16": (BF16, None, BF16, 0.03),
    "fp8": (FP8, FP32, FP32, 0.2),
    "fp8 in bf16": (FP8, BF16, BF16, 0.2),
    "fp16 in fp32": (FP16, FP32, FP32, 0.003),
    "fp32, motion in fp16": (FP32, None, FP16, 0.003),
    "fp16, motion in fp32": (FP16, None, FP32, 0.003),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_precision_gives_the_clip_to_its_rounding(name, nodes, exact):
    dtype, cast, of_motion, error = KINDS[name]
    out = sample(moved(nodes, golden_base(dtype, cast), of_motion), steps=1, cfg=1.0)
    assert torch.isfinite(out).all()
    assert torch.equal(out[:1], exact[:1])  # the condition frame
    assert (out[1:] - exact[1:]).std() < error * exact[1:].std()


class Opaque(torch.nn.Module):
    """A layer without weights to look at, as quantised files bring them."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.compute = lambda x: layer(x)

    def forward(self, x):
        return self.compute(x)


def test_layers_need_only_be_called(nodes, exact):
    model = golden_base()
    unet = model.model.diffusion_model
    for name, layer in list(unet.named_modules()):
        if not list(layer.children()) and list(layer.parameters()):
            parent, _, own = name.rpartition(".")
            setattr(unet.get_submodule(parent), own, Opaque(layer))
    assert not list(unet.parameters())
    assert torch.equal(sample(moved(nodes, model), steps=1, cfg=1.0), exact)
