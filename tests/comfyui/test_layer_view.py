"""Our network runs over the loaded UNet's own layers: every one of them, each once, and nothing of it is copied."""

from collections import Counter

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from support.comfy_clips import CONFIG, PLAIN, REFERENCENET, Nodes, base, faceid, image_projection, motion, prompt
from support.golden_comfy import comfy_unet_config

from musev_core.config import SD15, UNetConfig
from musev_core.models.conditions import ClipConditions
from musev_core.weights.keymaps import is_motion_name
from musev_pack.nodes.host.view import View, base_config, base_leaves, norm_gains


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


def full_size_unet() -> tuple[torch.nn.Module, UNetConfig]:
    """Stable Diffusion 1.5 itself, without memory."""
    with torch.device("meta"):
        model = comfy.model_base.BaseModel(comfy.supported_models.SD15(comfy_unet_config(SD15)), device="meta")
    return model.diffusion_model, base_config(model.model_config.unet_config)


def test_every_tensor_of_stable_diffusion_is_reached_by_one_name():
    unet, config = full_size_unet()
    leaves = base_leaves(unet, config)
    reached = Counter(id(x) for leaf in leaves.values() for x in leaf.parameters())
    assert reached == Counter(id(x) for x in unet.parameters())
    assert len(reached) == 686


def test_the_architecture_is_read_from_the_model():
    _, config = full_size_unet()
    assert (config.block_out_channels, config.num_heads, config.context_dim) == ((320, 640, 1280, 1280), 8, 768)
    assert config.cross_attention_blocks == (True, True, True, False)


def test_the_leaves_are_the_modules_of_the_unet(nodes):
    unet = base().model.diffusion_model
    view = View(unet, CONFIG, motion(REFERENCENET, nodes.folder))
    lent = {id(leaf.layer) for leaf in borrowed(view.net)}
    assert lent == leaf_layers(unet) | leaf_layers(motion(REFERENCENET, nodes.folder).tree)


def borrowed(net: torch.nn.Module) -> list:
    return [x for module in net.modules() for x in vars(module).values() if hasattr(x, "layer")]


def leaf_layers(net: torch.nn.Module) -> set[int]:
    return {id(m) for m in net.modules() if not list(m.children()) and list(m.parameters())}


@pytest.mark.parametrize("arch", [PLAIN, REFERENCENET])
def test_a_hosted_network_owns_nothing_but_motion(arch, nodes):
    loaded = motion(arch, nodes.folder)
    view = View(base().model.diffusion_model, CONFIG, loaded)
    hosted = dict(view.net.named_parameters())
    assert hosted
    assert all(is_motion_name(name) for name in [*hosted, *dict(loaded.tree.named_parameters())])
    assert {id(x) for x in hosted.values()} <= {id(x) for x in loaded.tree.parameters()}


def test_adapters_bring_their_own_attention_layers(nodes):
    face = faceid(nodes.folder)
    view = View(base().model.diffusion_model, CONFIG, motion(REFERENCENET, nodes.folder), None, face)
    assert {id(x) for x in face.layers.values()} <= {id(leaf.layer) for leaf in borrowed(view.net)}
    # MuseV's own projection has none: its layers are the motion model's
    assert not image_projection(nodes.folder).layers


def test_without_time_and_pictures_it_is_stable_diffusion(nodes):
    """Same numbers as ComfyUI's forward, to rounding: groups of a channels-last norm are summed in another order."""
    unet = base().model.diffusion_model
    view = View(unet, CONFIG, motion(REFERENCENET, nodes.folder))
    x, text, steps = torch.randn(2, 4, 8, 8), prompt("positive")[0][0].expand(2, -1, -1), torch.tensor([400.0, 400.0])
    ours = view.net(x[:, :, None], steps, ClipConditions(text), skip_temporal=True)[:, :, 0]
    theirs = unet(x, steps, context=text, transformer_options={})
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_norm_whose_work_is_changed_is_called_instead_of_fused():
    """Fused kernels read gains and biases; what others hang on the norm itself only acts when it is called."""
    norm = torch.nn.LayerNorm(8, device="meta")
    assert norm_gains(norm) is not None
    handle = norm.register_forward_hook(lambda *_: None)
    assert norm_gains(norm) is None
    handle.remove()
    own = norm.forward
    norm.forward = lambda x: own(x)
    assert norm_gains(norm) is None
    norm.forward = own  # what ComfyUI leaves behind where it has taken a patch away
    assert norm_gains(norm) is not None
