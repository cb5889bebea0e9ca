"""What cannot work is refused with a sentence that says what to do, and the next run on the same MODEL works."""

import comfy.controlnet
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_sag import SelfAttentionGuidance
from safetensors.torch import save_file
from support import golden_models
from support.comfy_clips import (
    CONFIG,
    PLAIN,
    Clip,
    Nodes,
    base,
    faceid,
    image_projection,
    prompt,
    sample,
)
from support.golden_comfy import CPU

from musev_core.errors import MuseVError
from musev_core.weights.keymaps import motion_tensors
from musev_pack.nodes.host import networks
from musev_pack.nodes.host.demo import comfy_unet_config


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def moving(nodes):
    return nodes.windows(nodes.motion(base()))


@pytest.fixture(scope="module")
def expected(moving):
    with torch.inference_mode():
        return sample(moving, steps=1)


# ------------------------------------------------------------------------ MODELs of other kinds

SD15 = comfy_unet_config(CONFIG)
SDXL = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 2, 4),
    "transformer_depth": [0, 0, 2, 2, 3, 3],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
    "transformer_depth_middle": 3,
    "adm_in_channels": 2816,
    "use_linear_in_transformer": True,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 8,
    "context_in_dim": 8,
    "hidden_size": 32,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}
OTHER_KINDS = {
    "inpainting": ("SD15", {**SD15, "in_channels": 9}),
    "SD2": ("SD20", {**SD15, "use_linear_in_transformer": True, "context_dim": 64}),
    "SDXL": ("SDXL", {**SD15, **SDXL}),
    "Flux": ("Flux", FLUX),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_other_kinds_of_models(name, nodes):
    family, config = OTHER_KINDS[name]
    described = getattr(comfy.supported_models, family)(config)
    described.set_inference_dtype(torch.float32, None)
    model = comfy.model_patcher.ModelPatcher(described.get_model({}, "", device="meta"), CPU, CPU)
    for node in (nodes.motion, nodes.reference, nodes.windows):
        with pytest.raises(MuseVError, match="Load an SD1.5 checkpoint"):
            node(model)


def test_a_motion_model_of_another_size(nodes, tmp_path):
    path = tmp_path / "smaller.safetensors"
    save_file(motion_tensors(golden_models.unet(PLAIN, "tiny", 0).state_dict()), path)
    smaller = networks.load_motion(str(path), torch.float32)
    with pytest.raises(MuseVError, match=r"smaller.safetensors does not fit.*layers per block are 1.*2.*Use an SD1.5"):
        nodes.motion(base(), motion=smaller)


# ------------------------------------------------------------------------ nodes of other packs


def injected(model):
    new = model.clone()
    injection = comfy.patcher_extension.PatcherInjection(inject=lambda _: None, eject=lambda _: None)
    new.set_injections("AnimateDiff", [injection])
    return new


def foreign_windows(model):
    return ContextWindowsManualNode.execute(model, 2, 1, "standard_static", 1, False, "flat", 0, False).result[0]


def batch_function(model):
    new = model.clone()
    new.model_options["sampler_calc_cond_batch_function"] = lambda arguments: None
    return new


def on_several_gpus(model):
    new = model.clone()
    new.set_additional_models("multigpu", [])
    new.model_options["multigpu_clones"] = {CPU: new}
    return new


def layers_replaced(model):
    new = model.clone()
    new.set_model_patch((torch.nn.Module, None), "forward_timestep_embed_patch")
    return new


FOREIGN = {
    "injections": (injected, "modules into this MODEL .AnimateDiff.*use one video method"),
    "context windows": (foreign_windows, "IndexListContextHandler.. Remove it: MuseV brings its own windows"),
    "EasyCache": (lambda m: EasyCacheNode.execute(m, 0.2, 0.0, 1.0, False).result[0], "EasyCache.*use LazyCache"),
    "SAG": (lambda m: SelfAttentionGuidance.execute(m, 0.5, 2.0).result[0], "Self-Attention Guidance.*Remove it, or"),
    "batch function": (batch_function, "sampler_calc_cond_batch_function.*Remove it"),
    "several GPUs": (on_several_gpus, "Remove the multi-GPU node"),
    "layers": (layers_replaced, "forward_timestep_embed_patch.*Remove it"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_nodes_of_others_before_and_after(name, nodes, moving, expected):
    node, words = FOREIGN[name]
    with pytest.raises(MuseVError, match=words):
        nodes.motion(node(base()))
    with pytest.raises(MuseVError, match=words):
        sample(node(moving), steps=1)
    assert torch.equal(sample(moving, steps=1), expected)


def test_where_nothing_moves_nodes_of_others_are_welcome(nodes):
    """Strength 0 is absence."""
    model = foreign_windows(nodes.motion(base(), strength=0.0))
    assert torch.equal(sample(model, steps=1), sample(foreign_windows(base()), steps=1))


# ------------------------------------------------------------------------ nodes that do not belong together


class Vision:
    """An image encoder of another width."""

    def encode_image(self, images):
        return {"image_embeds": torch.zeros(len(images), 17)}


def second(kind):
    return lambda nodes, model: getattr(nodes, kind)(getattr(nodes, kind)(model))


COMBINATIONS = {
    "second motion": (lambda nodes, model: nodes.motion(model), "already moves .*apply one motion model only"),
    "second ReferenceNet": (second("reference"), "already has an Apply ReferenceNet. Give all pictures to one node"),
    "second IP-Adapter": (second("ip_adapter"), "already has an Apply IP-Adapter. Give all pictures to one node"),
    "second FaceID": (second("face"), "already has an Apply FaceID. Give all pictures to one node"),
    "FaceID in the wrong node": (
        lambda nodes, model: nodes.ip_adapter(model, ip_adapter=faceid(nodes.folder)),
        "IP-Adapter FaceID: use Apply FaceID",
    ),
    "no FaceID": (
        lambda nodes, model: nodes.face(model, ip_adapter=image_projection(nodes.folder)),
        "is no IP-Adapter FaceID .*load ip-adapter-faceid_sd15",
    ),
    "ReferenceNet for musev": (
        lambda nodes, model: nodes.reference(nodes.motion(base(), PLAIN)),
        "no layers for a ReferenceNet.*Load musev_referencenet",
    ),
    "musev after a ReferenceNet": (
        lambda nodes, model: nodes.motion(nodes.reference(base()), PLAIN),
        "no layers for a ReferenceNet.*Load musev_referencenet",
    ),
    "MuseV's projection for musev": (
        lambda nodes, model: nodes.ip_adapter(nodes.motion(base(), PLAIN)),
        "MuseV's own image projection.*Load such a motion model, or an ip-adapter_sd15",
    ),
    "musev after MuseV's projection": (
        lambda nodes, model: nodes.motion(nodes.ip_adapter(base()), PLAIN),
        "MuseV's own image projection.*Load such a motion model, or an ip-adapter_sd15",
    ),
    "overlap as long as the window": (lambda nodes, model: nodes.windows(model, 4, 4), "overlap"),
    "end before start": (
        lambda nodes, model: nodes.reference(model, start_percent=0.6, end_percent=0.5),
        "start not after end, got 0.6 and 0.5",
    ),
    "odd size": (lambda nodes, model: nodes.reference(model, width=60), "multiples of 8 pixels or 0, got 60 x 0"),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_does_not_belong_together_is_refused_by_the_node(name, nodes, moving, expected):
    combine, words = COMBINATIONS[name]
    with pytest.raises(MuseVError, match=words):
        combine(nodes, moving)
    assert torch.equal(sample(moving, steps=1), expected)


# ------------------------------------------------------------------------ clips and conditionings


def with_value(clip: Clip, value: float) -> Clip:
    clip.latents[2, 1, 3, 3] = value
    return clip


def all_kept() -> Clip:
    clip = Clip()
    clip.mask[:] = 0
    return clip


class Control(comfy.controlnet.ControlBase):
    """A ControlNet with this many hints; nobody gets as far as asking it."""

    def __init__(self, hints: int):
        super().__init__()
        self.cond_hint_original = torch.zeros(hints, 3, 64, 64)


CLIPS = {
    "NaN": (lambda: {"clip": with_value(Clip(), float("nan"))}, "holds NaN or infinite values. Encode the picture"),
    "infinite": (lambda: {"clip": with_value(Clip(), float("inf"))}, "holds NaN or infinite values. Encode"),
    "nothing to generate": (lambda: {"clip": all_kept()}, "all 4 frames .* condition frames.*Raise the length"),
    "five axes": (
        lambda: {"latent_image": torch.zeros(1, 4, 4, 8, 8), "noise": torch.zeros(1, 4, 4, 8, 8), "noise_mask": None},
        r"got \(1, 4, 4, 8, 8\). Use Image to Video",
    ),
    "three hints": (
        lambda: {"positive": prompt("positive", control=Control(3), control_apply_to_uncond=True)},
        "has 3 control pictures, but the clip has 4 frames.*Give it 4 pictures, or 1",
    ),
    "no prompt": (lambda: {"positive": [[None, {}]]}, "Connect CLIP Text Encode"),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clips_and_conditionings_are_looked_at_before_the_work(name, moving, expected):
    inputs, words = CLIPS[name]
    with pytest.raises(MuseVError, match=words):
        sample(moving, steps=1, **inputs())
    assert torch.equal(sample(moving, steps=1), expected)


SETTINGS = {
    "frame strengths": (
        lambda nodes: nodes.motion(base(), frame_strength=torch.ones(3, 8, 8)),
        "frame_strength of Apply MuseV Motion has 3 frames, the clip has 4 .*Give it 4, or 1 for all",
    ),
    "picture masks": (
        lambda nodes: nodes.ip_adapter(nodes.motion(base()), mask=torch.ones(3, 8, 8)),
        "mask of Apply IP-Adapter has 3 frames, the clip has 4 .*Give it 4, or 1 for all",
    ),
    "nothing moves": (
        lambda nodes: nodes.everything(base()),
        "no motion model. Put Apply MuseV Motion between the checkpoint and the sampler",
    ),
    "another image encoder": (
        lambda nodes: nodes.ip_adapter(nodes.motion(base()), clip_vision=Vision()),
        "encoder of width 24, but this CLIP Vision gives 17. Load CLIP ViT-H/14",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_do_not_fit_the_clip(name, nodes, moving, expected):
    make, words = SETTINGS[name]
    with pytest.raises(MuseVError, match=words):
        sample(make(nodes), steps=1)
    assert torch.equal(sample(moving, steps=1), expected)


def guide(guider) -> torch.Tensor:
    clip = Clip()
    sigmas = comfy.samplers.calculate_sigmas(base().get_model_object("model_sampling"), "normal", 2)
    return guider.sample(
        torch.ones_like(clip.latents), clip.latents, comfy.samplers.sampler_object("euler"), sigmas, clip.mask, seed=5
    )


def test_a_guidance_schedule_needs_a_guider_with_one_scale_and_two_prompts(nodes, moving):
    positive, negative = prompt("positive"), prompt("negative")

    def guiders(model):
        return (
            BasicGuider.execute(model, positive).result[0],
            DualCFGGuider.execute(model, positive, positive, negative, 3.0, 3.0, "regular").result[0],
        )

    for guider in guiders(nodes.guidance(moving)):
        with pytest.raises(MuseVError, match="needs a guider with a positive and a negative prompt and one cfg"):
            guide(guider)
    for guider in guiders(moving):
        assert torch.isfinite(guide(guider)).all()


# ------------------------------------------------------------------------ errors of the machine


def test_running_out_of_memory_reaches_comfyui_as_such(nodes, moving, expected):
    """ComfyUI unloads models then, and says so; nothing of the run is left behind."""
    layer = base().model.diffusion_model.middle_block[1].transformer_blocks[0].ff.net[2]

    def full(*_):
        handle.remove()
        raise torch.OutOfMemoryError("no memory left")

    handle = layer.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        sample(moving, steps=1)
    assert torch.equal(sample(moving, steps=1), expected)


def test_any_other_error_leaves_nothing_behind(moving, expected):
    tree = motion_tree(moving)

    def broken(*_):
        handle.remove()
        raise RuntimeError("an error of another pack")

    handle = tree.down_blocks[0].temp_attentions[0].proj_in.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="an error of another pack"):
        sample(moving, steps=1)
    assert "musev" not in moving.model_options["transformer_options"]
    assert torch.equal(sample(moving, steps=1), expected)


def motion_tree(model):
    (patcher,) = model.get_additional_models_with_key("musev")
    return patcher.model
