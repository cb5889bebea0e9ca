"""LoRA files of every form change the weights by strength * block factor * (alpha / rank) * up @ down."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from musev_core.config import UNetConfig
from musev_core.errors import CheckpointError, MuseVError
from musev_core.weights import keymaps
from musev_core.weights.lora import apply_lora, read_faceid_lora, read_lora
from musev_core.weights.lora_blocks import BLOCK_NAMES, LORA_BLOCK_PRESETS

MANIFESTS = Path(__file__).parent / "manifests"
TINY = json.loads((MANIFESTS / "tiny.json").read_text(encoding="utf-8"))
TINY_CONFIG = UNetConfig(
    block_out_channels=(32, 64, 64, 64), layers_per_block=1, num_heads=4, norm_groups=8, context_dim=32, temporal=False
)
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
QUERY = f"{BLOCK}.attn1.to_q"
OUT = f"{BLOCK}.attn2.to_out.0"


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    return {name: noise(*shape, seed=i) for i, (name, shape) in enumerate(TINY["unet/musev_referencenet/tiny"].items())}


def kohya(module, up, down, alpha=None, prefix="lora_unet_", **more):
    key = prefix + module.replace(".", "_")
    tensors = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    if alpha is not None:
        tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
    return tensors | {f"{key}.{name}.weight": tensor for name, tensor in more.items()}


def pair(weight, rank=4, seed=5):
    return noise(weight.shape[0], rank, seed=seed), noise(rank, weight.shape[1], seed=seed + 1)


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


# The merge


@pytest.mark.parametrize(("alpha", "scale"), [(2, 0.5), (4, 1.0), (None, 1.0)])
def test_linear_layer(unet, alpha, scale):
    weight = unet[f"{QUERY}.weight"]
    up, down = pair(weight)
    merged = apply_lora(unet, read_lora(kohya(QUERY, up, down, alpha)), 0.7)
    torch.testing.assert_close(merged[f"{QUERY}.weight"], weight + 0.7 * scale * up @ down)
    assert changed(unet, merged) == {f"{QUERY}.weight"}


def test_convolution_of_kernel_1(unet):
    module = "down_blocks.1.attentions.0.proj_in"
    weight = unet[f"{module}.weight"]
    up, down = pair(weight)
    expected = weight + 0.25 * (up @ down)[:, :, None, None]
    for a, b in ((up, down), (up[:, :, None, None], down[:, :, None, None])):  # as matrices, as convolutions
        merged = apply_lora(unet, read_lora(kohya(module, a, b, alpha=1)))
        torch.testing.assert_close(merged[f"{module}.weight"], expected)


def test_convolution_of_kernel_3(unet):
    module = "down_blocks.1.resnets.0.conv1"
    weight = unet[f"{module}.weight"]
    up, down = noise(weight.shape[0], 4, 1, 1), noise(4, weight.shape[1], 3, 3, seed=1)
    merged = apply_lora(unet, read_lora(kohya(module, up, down, alpha=4)), 0.5)[f"{module}.weight"]
    picture = noise(1, weight.shape[1], 6, 6, seed=2)
    conv = torch.nn.functional.conv2d
    torch.testing.assert_close(
        conv(picture, merged), conv(picture, weight) + 0.5 * conv(conv(picture, down), up), rtol=1e-4, atol=1e-3
    )


def test_locon_with_a_middle_convolution(unet):
    module = "down_blocks.1.resnets.0.conv2"
    weight = unet[f"{module}.weight"]
    up, mid, down = noise(weight.shape[0], 4, 1, 1), noise(4, 4, 3, 3, seed=1), noise(4, weight.shape[1], 1, 1, seed=2)
    lora = read_lora(kohya(module, up, down, 2, lora_mid=mid))
    merged = apply_lora(unet, lora)[f"{module}.weight"]
    picture = noise(1, weight.shape[1], 6, 6, seed=3)
    conv = torch.nn.functional.conv2d
    expected = conv(picture, weight) + 0.5 * conv(conv(conv(picture, down), mid), up)
    torch.testing.assert_close(conv(picture, merged), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_sum_is_made_in_fp32_and_stored_in_the_weights_type(unet, dtype):
    weight = unet[f"{QUERY}.weight"].to(dtype)
    up, down = (t.half() for t in pair(weight))
    merged = apply_lora({f"{QUERY}.weight": weight}, read_lora(kohya(QUERY, up, down)))[f"{QUERY}.weight"]
    assert merged.dtype == dtype
    expected = (weight.float() + up.float() @ down.float()).to(dtype)
    assert torch.equal(merged.float(), expected.float())


def test_double_precision_weights_keep_their_precision():
    weight = torch.eye(4, dtype=torch.float64) * (1 + 1e-12)
    lora = read_lora(kohya(QUERY, torch.zeros(4, 1), torch.zeros(1, 4)))
    assert torch.equal(apply_lora({f"{QUERY}.weight": weight}, lora)[f"{QUERY}.weight"], weight)


def test_strength_zero_changes_nothing_and_inputs_are_never_written(unet):
    before = {name: tensor.clone() for name, tensor in unet.items()}
    lora = read_lora(kohya(QUERY, *pair(unet[f"{QUERY}.weight"])))
    assert not changed(before, apply_lora(unet, lora, 0.0))
    apply_lora(unet, lora, 1.0)
    assert not changed(before, unet)


def test_a_module_is_changed_in_place_and_back():
    net = nn.ModuleDict({"conv_in": nn.Conv2d(4, 8, 3), "conv_out": nn.Conv2d(8, 4, 1)})
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lora = read_lora(kohya("conv_out", noise(4, 2), noise(2, 8)))
    parameter = net["conv_out"].weight
    assert apply_lora(net, lora, 1.0) is net
    assert net["conv_out"].weight is parameter and parameter.requires_grad
    assert changed(before, net.state_dict()) == {"conv_out.weight"}
    apply_lora(net, lora, -1.0)
    torch.testing.assert_close(dict(net.state_dict()), before)


def test_motion_layers_are_never_touched(unet):
    motion = "down_blocks.1.temp_attentions.0.transformer_blocks.0.attn1.to_q"
    image = f"{BLOCK}.attn2.to_k_ip"
    assert f"{motion}.weight" in unet and f"{image}.weight" in unet
    tensors = kohya(motion, *pair(unet[f"{motion}.weight"])) | kohya(image, *pair(unet[f"{image}.weight"]))
    with pytest.raises(CheckpointError, match="None of the 2 layers"):
        apply_lora(unet, read_lora(tensors))


# File forms


def forms(up, down):
    """The same two layers (a query and an output projection) in every spelling."""
    query, out = QUERY.removesuffix(".to_q"), OUT.removesuffix(".to_out.0")
    names = {new.removesuffix(".weight"): old for old, new in keymaps.unet_ldm_to_diffusers(TINY_CONFIG).items()}

    def spelled(template, query_name, out_name):
        return {
            template.format(name, role): tensor
            for name in (query_name, out_name)
            for role, tensor in (("up", up), ("down", down))
        }

    peft = spelled("unet.{}.lora_{}.weight", QUERY, OUT)
    ldm = [names[module].removesuffix(".weight").replace(".", "_") for module in (QUERY, OUT)]
    return {
        "kohya": kohya(QUERY, up, down) | kohya(OUT, up, down),
        "kohya, LDM names": spelled("lora_unet_{}.lora_{}.weight", *ldm),
        "peft": {n.replace("_up.", "_B.").replace("_down.", "_A."): t for n, t in peft.items()},
        "peft, named adapter": {
            n.replace("_up.", "_B.default.").replace("_down.", "_A.default."): t for n, t in peft.items()
        },
        "diffusers, dotted": spelled("unet.{}.lora.{}.weight", QUERY, OUT),
        "diffusers, old": spelled("unet.{}_lora.{}.weight", f"{query}.processor.to_q", f"{out}.processor.to_out"),
        "diffusers, oldest": spelled("{}_lora.{}.weight", f"{query}.processor.to_q", f"{out}.processor.to_out"),
    }


FORMS = list(forms(torch.zeros(1, 1), torch.zeros(1, 1)))


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_means_the_same(unet, form):
    up, down = pair(unet[f"{QUERY}.weight"])
    merged = apply_lora(unet, read_lora(forms(up, down)[form], config=TINY_CONFIG))
    assert changed(unet, merged) == {f"{QUERY}.weight", f"{OUT}.weight"}
    torch.testing.assert_close(merged[f"{QUERY}.weight"], unet[f"{QUERY}.weight"] + up @ down)


LAYER = "encoder.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    "template",
    [
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_{}.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.{}.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.{}.weight",
    ],
)
@pytest.mark.parametrize("prefix", ["text_model.", ""])  # transformers 4 and 5
def test_text_encoder_layers(template, prefix):
    text = {
        prefix + name.removeprefix("text_model."): noise(*shape, seed=i)
        for i, (name, shape) in enumerate(TINY["text_encoder"].items())
    }
    name = f"{prefix}{LAYER}.weight"
    up, down = pair(text[name])
    lora = read_lora({template.format("up"): up, template.format("down"): down})
    merged = apply_lora(text, lora, part="text")
    assert changed(text, merged) == {name}
    torch.testing.assert_close(merged[name], text[name] + up @ down)


def test_each_network_takes_its_own_part(unet):
    up, down = pair(unet[f"{QUERY}.weight"])
    lora = read_lora(kohya(QUERY, up, down))
    text = {f"{LAYER}.weight": noise(32, 32)}
    assert not changed(text, apply_lora(text, lora, part="text"))  # a LoRA without text layers is no error


def test_all_full_size_layers_of_kohya_and_ldm_names_are_matched():
    shapes = json.loads((MANIFESTS / "sd15_unet.json").read_text(encoding="utf-8"))["state_dict"]
    layers = {new: old for old, new in keymaps.unet_ldm_to_diffusers().items() if len(shapes[new]) in (2, 4)}
    layers = {new: old for new, old in layers.items() if new.endswith(".weight")}
    for names in (layers.keys(), layers.values()):
        tensors = {}
        for name, weight in zip(names, layers, strict=True):
            out, width, *kernel = shapes[weight]
            tensors |= kohya(name.removesuffix(".weight"), torch.zeros(out, 1), torch.zeros(1, width, *kernel))
        lora = read_lora(tensors)
        assert set(lora.unet) == {name.removesuffix(".weight").replace(".", "_") for name in layers}
        expected = {n.removesuffix(".weight").replace(".", "_"): tuple(shapes[n]) for n in layers}
        assert {name: layer.shape for name, layer in lora.unet.items()} == expected


# FaceID


def test_faceid_lora_counts_attn1_and_attn2(unet):
    blocks = keymaps.attention_blocks(TINY_CONFIG)
    assert blocks[-1].startswith("mid_block.") and len(blocks) == 10
    targets = {
        "ip_adapter.0.to_q": f"{blocks[0]}.attn1.to_q",
        "3.to_out": f"{blocks[1]}.attn2.to_out.0",
        f"{2 * len(blocks) - 1}.to_k": f"{blocks[-1]}.attn2.to_k",
    }
    tensors, expected = {"ip_adapter.1.to_k_ip.weight": torch.zeros(32, 32)}, {}
    for number, (source, module) in enumerate(targets.items()):
        up, down = pair(unet[f"{module}.weight"], seed=10 * number)
        tensors |= {f"{source}_lora.up.weight": up, f"{source}_lora.down.weight": down}
        expected[f"{module}.weight"] = unet[f"{module}.weight"] + 0.6 * up @ down
    merged = apply_lora(unet, read_faceid_lora(tensors, config=TINY_CONFIG), 0.6)
    assert changed(unet, merged) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight)


def test_faceid_lora_refuses_other_files():
    with pytest.raises(CheckpointError, match="holds no LoRA layers; of the IP-Adapters only the FaceID ones do"):
        read_faceid_lora({"ip_adapter.1.to_k_ip.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="LoRA layers for attention 32; this UNet has 32"):
        read_faceid_lora({"32.to_q_lora.up.weight": torch.zeros(1, 1)})


# Block weights


def test_presets_are_the_documented_ones():
    ones = {
        name: {b for b, f in zip(BLOCK_NAMES, factors, strict=True) if f}
        for name, factors in LORA_BLOCK_PRESETS.items()
    }
    ups = {f"up{i}.{j}" for i in (1, 2, 3) for j in range(3)}
    face = {"up1.0", "up1.1", "up1.2"}
    assert BLOCK_NAMES[:8] == ("text", "down0.0", "down0.1", "down1.0", "down1.1", "down2.0", "down2.1", "mid")
    assert ones["ALL"] == set(BLOCK_NAMES)
    assert ones["FACE"] == {"text"} | face
    assert ones["DEFACE"] == set(BLOCK_NAMES) - face
    assert ones["MIDD"] == {"text", "down1.1", "down2.0", "down2.1", "mid", "up2.0"} | face
    assert ones["OUTALL"] == {"text"} | ups


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("down_blocks.0.attentions.0.proj_in", "down0.0"),
        ("down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q", "down2.1"),
        ("down_blocks.1.resnets.0.conv1", "down1.0"),
        ("down_blocks.1.downsamplers.0.conv", "down1.1"),
        ("down_blocks.3.resnets.0.conv1", "mid"),
        ("mid_block.attentions.0.proj_out", "mid"),
        ("up_blocks.0.resnets.1.conv1", "mid"),
        ("up_blocks.1.attentions.0.proj_in", "up1.0"),
        ("up_blocks.2.upsamplers.0.conv", "up2.2"),
        ("up_blocks.3.attentions.2.proj_in", "up3.2"),
        ("conv_in", "down0.0"),
        ("conv_out", "up3.2"),
        ("time_embedding.linear_1", "text"),
    ],
)
def test_each_layer_takes_the_factor_of_its_block(module, block):
    lora = read_lora(kohya(module, torch.ones(2, 1), torch.ones(1, 2)))
    factors = [float(10 + i) for i in range(17)]
    merged = apply_lora({f"{module}.weight": torch.zeros(2, 2)}, lora, 0.5, factors)
    assert torch.equal(merged[f"{module}.weight"], torch.full((2, 2), 0.5 * factors[BLOCK_NAMES.index(block)]))


def test_text_takes_the_first_factor():
    lora = read_lora(
        kohya("encoder_layers_0_mlp_fc1", torch.ones(2, 1), torch.ones(1, 2), prefix="lora_te_text_model_")
    )
    text = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2)}
    merged = apply_lora(text, lora, 1.0, [0.25, *[9.0] * 16], part="text")
    assert torch.equal(merged["text_model.encoder.layers.0.mlp.fc1.weight"], torch.full((2, 2), 0.25))


def test_a_preset_by_name(unet):
    up_layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    both = kohya(QUERY, *pair(unet[f"{QUERY}.weight"])) | kohya(up_layer, *pair(unet[f"{up_layer}.weight"]))
    assert changed(unet, apply_lora(unet, read_lora(both), 1.0, "FACE")) == {f"{up_layer}.weight"}
    assert changed(unet, apply_lora(unet, read_lora(both), 1.0, "DEFACE")) == {f"{QUERY}.weight"}


# Errors


def test_bad_numbers(unet):
    lora = read_lora(kohya(QUERY, *pair(unet[f"{QUERY}.weight"])))
    with pytest.raises(MuseVError, match="strength must be a finite number, got nan"):
        apply_lora(unet, lora, float("nan"))
    with pytest.raises(MuseVError, match="expected 17 numbers or one of ALL, FACE, .*got 'FACES'. Did you mean 'FACE'"):
        apply_lora(unet, lora, 1.0, "FACES")
    with pytest.raises(MuseVError, match=r"block_weights: expected 17 numbers .*got \[1.0, 1.0\]"):
        apply_lora(unet, lora, 1.0, [1.0, 1.0])
    with pytest.raises(MuseVError, match="block_weights: expected a number, got inf"):
        apply_lora(unet, lora, 1.0, [float("inf")] * 17)


def test_a_lora_that_fits_nowhere(unet):
    wrong_size = read_lora(kohya(QUERY, noise(640, 4), noise(4, 640)))
    with pytest.raises(CheckpointError, match=r"None of the 1 layers.*\[640, 640\]\): is it for SDXL"):
        apply_lora(unet, wrong_size)


def test_layers_that_fit_nowhere_are_one_warning(unet, caplog):
    tensors = kohya(QUERY, *pair(unet[f"{QUERY}.weight"]))
    for i in range(10):
        tensors |= kohya(f"other.{i}", noise(4, 1), noise(1, 4))
    with caplog.at_level(logging.WARNING):
        merged = apply_lora(unet, read_lora(tensors))
    assert changed(unet, merged) == {f"{QUERY}.weight"}
    assert len(caplog.records) == 1
    assert "10 of 11 layers of this LoRA fit no unet layer" in caplog.text and "other_7 and 2 more" in caplog.text


def test_tensors_that_are_no_layers_are_one_warning(caplog):
    tensors = kohya(QUERY, noise(4, 1), noise(1, 4)) | {"lora_unet_x.diff_b": torch.zeros(3)}
    with caplog.at_level(logging.WARNING):
        read_lora(tensors, source="style.safetensors")
    assert "style.safetensors: 1 tensors are no LoRA layers and are ignored: lora_unet_x.diff_b" in caplog.text


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv_in.weight": [4, 4]}, "A LoRA was expected, but f is of an unknown kind"),
        (
            {"lora_unet_input_blocks_4_1_attn2_to_k.lora_down.weight": [4, 2048]},
            r"f is a LoRA \(kohya, for SDXL\)\. MuseV needs a LoRA for SD1\.5",
        ),
        ({"lora_te2_text_model_x.lora_down.weight": [4, 4]}, "for SDXL"),
        ({"lora_unet_x.hada_w1_a": [4, 4]}, r"not supported \(LoHa, LoKr, OFT or DoRA\): lora_unet_x\.hada_w1_a"),
        ({"lora_unet_x.lora_up.weight": [4, 4], "lora_unet_x.dora_scale": [4]}, r"not supported.*dora_scale"),
        ({"lora_unet_x.lora_up.weight": [4, 4]}, "f is incomplete: its layer x has no down matrix"),
        ({"lora_unet_x.lora_down.weight": [4, 4]}, "has no up matrix"),
        (
            {"lora_unet_x.lora_up.weight": [4, 3], "lora_unet_x.lora_down.weight": [4, 4]},
            "f is damaged: the matrices of x do not belong together",
        ),
    ],
)
def test_files_that_are_refused(tensors, message):
    with pytest.raises(CheckpointError, match=message):
        read_lora({name: torch.zeros(shape) for name, shape in tensors.items()}, source="f")


def test_nan_is_refused():
    with pytest.raises(CheckpointError, match="f holds NaN"):
        read_lora(kohya(QUERY, torch.full((2, 1), float("nan")), torch.zeros(1, 2)), source="f")
