"""LoRA files before, after and as hooks of MuseV's nodes: exactly what merging them by hand gives."""

import logging

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_extras.nodes_hooks import CreateHookKeyframe, CreateHookLoraModelOnly, SetHookKeyframes, SetModelHooksOnCond
from nodes import LoraLoaderModelOnly
from safetensors.torch import save_file
from support.comfy_clips import CONFIG, PLAIN, Nodes, base, faceid, prompt, sample
from support.golden_comfy import base_model, golden_unet
from support.numbers import det

from musev_core.weights.keymaps import unet_ldm_to_diffusers

RANK, ALPHA, STRENGTH = 4, 2.0, 0.75
# one layer of every kind that LoRA files change
LAYERS = (
    "conv_in",
    "time_embedding.linear_1",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "mid_block.resnets.0.conv1",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.2.attentions.0.proj_in",
    "up_blocks.3.resnets.1.conv_shortcut",
    "up_blocks.2.upsamplers.0.conv",
)
LDM = {ours.removesuffix(".weight"): theirs.removesuffix(".weight") for theirs, ours in
       unet_ldm_to_diffusers(CONFIG).items()}  # fmt: skip
NAMES = {"diffusers": {name: name for name in LAYERS}, "LDM": {name: LDM[name] for name in LAYERS}}


def weights() -> dict[str, torch.Tensor]:
    return golden_unet(PLAIN).state_dict()


def matrices(layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = weights()[f"{layer}.weight"].shape
    kernel = [1] * len(shape[2:])
    up = det(f"up {layer}", (shape[0], RANK, *kernel), scale=0.1)
    return up, det(f"down {layer}", (RANK, *shape[1:]), scale=0.3)


def merged(strength: float = STRENGTH):
    """The base MODEL with the LoRA added to its weights by hand."""
    changed = weights()
    for layer in LAYERS:
        up, down = matrices(layer)
        difference = (up.flatten(1) @ down.flatten(1)).reshape(changed[f"{layer}.weight"].shape)
        changed[f"{layer}.weight"] = changed[f"{layer}.weight"] + (strength * ALPHA / RANK) * difference
    return base_model(changed, CONFIG)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def by_hand(nodes):
    """Clips of merged models, by strength."""
    with torch.inference_mode():
        return {strength: sample(moving(nodes, merged(strength))) for strength in (STRENGTH, STRENGTH / 2)}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The same LoRA under both kinds of names in ComfyUI's folder."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    for kind, names in NAMES.items():
        tensors = {}
        for layer, name in names.items():
            key = "lora_unet_" + name.replace(".", "_")
            up, down = matrices(layer)
            tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
        save_file(tensors, tmp_path / f"{kind}.safetensors")


@pytest.fixture(autouse=True)
def everything_is_loaded(caplog):
    caplog.set_level(logging.INFO)
    yield
    assert "not loaded" not in caplog.text.lower()


def moving(nodes: Nodes, model):
    return nodes.windows(nodes.ip_adapter(nodes.motion(model)))


def with_lora(model, kind: str):
    return LoraLoaderModelOnly().load_lora_model_only(model, f"{kind}.safetensors", STRENGTH)[0]


def hooked(hooks) -> dict:
    attach = SetModelHooksOnCond().attach_hook
    return {name: attach(prompt(name), hooks)[0] for name in ("positive", "negative")}


def lora_hook(kind: str):
    return CreateHookLoraModelOnly().create_hook_model_only(f"{kind}.safetensors", STRENGTH)[0]


def keyframes(*frames: tuple[float, float]):
    made = None
    for strength, start in frames:
        (made,) = CreateHookKeyframe().create_hook_keyframe(strength, start, made)
    return made


@pytest.mark.parametrize("kind", NAMES)
def test_a_lora_before_musev_equals_merged_weights(kind, nodes, by_hand):
    assert torch.equal(sample(moving(nodes, with_lora(base(), kind))), by_hand[STRENGTH])


@pytest.mark.parametrize("kind", NAMES)
def test_a_lora_after_musev_equals_merged_weights(kind, nodes, by_hand):
    assert torch.equal(sample(with_lora(moving(nodes, base()), kind)), by_hand[STRENGTH])


@pytest.mark.parametrize("kind", NAMES)
def test_a_lora_as_hook_equals_merged_weights(kind, nodes, by_hand):
    assert torch.equal(sample(moving(nodes, base()), **hooked(lora_hook(kind))), by_hand[STRENGTH])


def test_a_hook_of_half_strength_equals_half_the_lora(nodes, by_hand):
    (hooks,) = SetHookKeyframes().set_hook_keyframes(lora_hook("diffusers"), keyframes((0.5, 0.0)))
    assert torch.equal(sample(moving(nodes, base()), **hooked(hooks)), by_hand[STRENGTH / 2])


def test_a_hook_that_ends_halfway_equals_two_samplers(nodes):
    """The second sampler gets latents which have been through the scaling of ComfyUI's latents: equal to rounding."""
    (hooks,) = SetHookKeyframes().set_hook_keyframes(lora_hook("diffusers"), keyframes((1.0, 0.0), (0.0, 0.5)))
    first = sample(moving(nodes, merged()), last_step=1)
    second = sample(
        moving(nodes, base()), noise=torch.zeros_like(first), latent_image=first, start_step=1, disable_noise=True
    )
    out = sample(moving(nodes, base()), **hooked(hooks))
    assert (out - second).abs().max() < 1e-4 * second.std()


def test_a_hook_on_one_prompt_leaves_the_other_alone(nodes, by_hand):
    model = moving(nodes, base())
    only_positive = {"positive": hooked(lora_hook("diffusers"))["positive"]}
    out = sample(model, **only_positive)
    assert not torch.equal(out, by_hand[STRENGTH])
    assert not torch.equal(out, sample(model))
    # without guidance only the positive prompt counts
    assert torch.equal(sample(model, cfg=1.0, **only_positive), sample(moving(nodes, merged()), cfg=1.0))


@pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="not in this ComfyUI")
def test_a_lora_beside_the_layers_equals_merged_weights_to_rounding(nodes, by_hand, tmp_path):
    """ComfyUI's bypass: layers answer with what the LoRA adds, their weights stay."""
    file = comfy.utils.load_torch_file(str(tmp_path / "diffusers.safetensors"))
    for model in (moving(nodes, beside(base(), file)), beside(moving(nodes, base()), file)):
        expected = by_hand[STRENGTH]
        assert (sample(model) - expected).abs().max() < 1e-4 * expected.std()


def beside(model, file):
    return comfy.sd.load_bypass_lora_for_models(model, None, file, STRENGTH, 0.0)[0]


def test_a_lora_leaves_nothing_behind(nodes):
    model = moving(nodes, base())
    before = sample(model)
    sample(with_lora(model, "LDM"))
    sample(model, **hooked(lora_hook("LDM")))
    assert torch.equal(sample(model), before)


def test_the_lora_inside_faceid_equals_merged_weights(nodes):
    adapter = faceid(nodes.folder)
    changed = weights()
    names = {name.removesuffix(".weight").replace(".", "_"): name for name in changed if name.endswith(".weight")}
    assert len(adapter.lora.unet) == 16 * 2 * 4  # four layers of both attentions of every block
    for name, layer in adapter.lora.unet.items():
        changed[names[name]] = changed[names[name]] + 0.6 * (layer.up @ layer.down)
    with_file = nodes.face(nodes.motion(base()), lora_strength=0.6)
    by_hand = nodes.face(nodes.motion(base_model(changed, CONFIG)))
    assert torch.equal(sample(with_file), sample(by_hand))
