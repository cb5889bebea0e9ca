"""What replaces the forward of a block, or of the whole UNet, is refused by name; layers may be replaced in any way."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from support.small_comfy import base, clip, difference, ksample, video_model

from musev_core.errors import MuseVError

BLOCK = "input_blocks.1.1.transformer_blocks.0"
LAYER = f"{BLOCK}.attn1.to_q"


def other(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("not reached")


class OtherAttention(torch.nn.Module):
    """A module of another pack in the place of a block's part."""


def unet(model: Any) -> Any:
    return model.model.diffusion_model


def patched(name: str, value: Any) -> Callable[[Any], Any]:
    def node(model: Any) -> Any:
        new = model.clone()
        new.add_object_patch(f"diffusion_model.{name}", value)
        return new

    return node


# as nodes do it which know of ComfyUI's object patches
PATCHES = {
    "a block's forward": (patched(f"{BLOCK}.forward", other), rf"{BLOCK}\.forward .*test_replaced_forwards\.other"),
    "an attention": (patched(f"{BLOCK}.attn1", OtherAttention()), rf"{BLOCK}\.attn1 .*OtherAttention"),
    "an activation": (patched("out.1.forward", other), r"out\.1\.forward"),
    "the UNet's forward": (patched("_forward", other), r"_forward .*\.other"),
    "the whole forward": (patched("forward", other), r"forward .*\.other"),
    "a function in a block": (patched(f"{BLOCK}.attn1.heads_of", other), r"heads_of .*\.other"),
}


@pytest.mark.parametrize("name", PATCHES)
def test_object_patches(name):
    node, words = PATCHES[name]
    with pytest.raises(MuseVError, match=rf"replaced how parts.*{words}.*Remove the node"):
        video_model(node(base()))
    moving = video_model()
    before = ksample(moving, clip())
    with pytest.raises(MuseVError, match=rf"replaced how parts.*{words}.*Remove the node"):
        ksample(node(moving), clip())
    assert torch.equal(ksample(moving, clip()), before)


def hooked(model: Any) -> Any:
    handle = unet(model).get_submodule(BLOCK).register_forward_hook(other)
    stack = ExitStack()
    stack.callback(handle.remove)
    return stack


# as packs do it which reach into the loaded network, before the run or in the middle of it
REPLACED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "_forward": (lambda model: mock.patch.object(unet(model), "_forward", other), r"the UNet .*\.other"),
    "forward": (lambda model: mock.patch.object(unet(model), "forward", other), r"the UNet .*\.other"),
    "a block": (lambda model: mock.patch.object(unet(model).get_submodule(BLOCK), "forward", other), rf"{BLOCK} "),
    "the class": (lambda model: mock.patch.object(UNetModel, "_forward", other), r"the UNet .*\.other"),
    "a block's class": (lambda model: mock.patch.object(BasicTransformerBlock, "forward", other), rf"{BLOCK} "),
    "an attention": (
        lambda model: mock.patch.object(unet(model).get_submodule(BLOCK), "attn2", OtherAttention()),
        rf"{BLOCK}( .its attn2, |\.attn2 ).*OtherAttention",
    ),
    "a hook": (hooked, rf"{BLOCK} .hook .*\.other"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_networks_changed_before_the_run(name):
    change, words = REPLACED[name]
    moving = video_model()
    before = ksample(moving, clip())
    with change(moving), pytest.raises(MuseVError, match=rf"replaced how parts.*{words}"):
        ksample(moving, clip())
    assert torch.equal(ksample(moving, clip()), before)


@pytest.mark.parametrize("name", REPLACED)
def test_networks_changed_for_the_time_of_a_call(name):
    """First-block caches do it in a function around the network."""
    change, words = REPLACED[name]
    moving, calls = video_model(), []
    before = ksample(moving, clip())

    def around(function, given):
        calls.append(1)
        if len(calls) < 3:
            return function(given["input"], given["timestep"], **given["c"])
        with change(moving):
            return function(given["input"], given["timestep"], **given["c"])

    cached = moving.clone()
    cached.set_model_unet_function_wrapper(around)
    with pytest.raises((MuseVError, AssertionError)) as error:
        ksample(cached, clip())
    if name != "forward":  # that one runs before anybody can look
        assert error.match(rf"replaced how parts.*{words}")
    assert torch.equal(ksample(moving, clip()), before)


def test_a_forward_that_never_reaches_the_network_is_noticed():
    """Whoever replaces the whole forward leaves out everything which hangs on it, us included."""
    moving = video_model()

    def around(function, given):
        with mock.patch.object(unet(moving), "forward", lambda x, *args, **kwargs: torch.zeros_like(x)):
            return function(given["input"], given["timestep"], **given["c"])

    cached = moving.clone()
    cached.set_model_unet_function_wrapper(around)
    with pytest.raises(MuseVError, match=r"model_function_wrapper .*around.* instead of calling the network"):
        ksample(cached, clip())


# ------------------------------------------------------------------------ what works


def test_the_forward_of_a_layer_may_be_replaced():
    moving = video_model()
    before = ksample(moving, clip())
    twice = moving.clone()
    twice.add_patches({f"diffusion_model.{LAYER}.weight": (None,)}, 0.0, 2.0)
    expected = ksample(twice, clip())
    assert difference(expected, before) > 1e-4
    layer = unet(moving).get_submodule(LAYER)
    own = layer.forward
    assert torch.equal(ksample(patched(f"{LAYER}.forward", lambda x: 2 * own(x))(moving), clip()), expected)
    assert torch.equal(ksample(moving, clip()), before)
    with mock.patch.object(layer, "forward", lambda x: 2 * own(x)):
        assert torch.equal(ksample(moving, clip()), expected)
    assert torch.equal(ksample(moving, clip()), before)


def test_a_layer_may_be_replaced():
    moving = video_model()
    layer = unet(moving).get_submodule(LAYER)

    class Quantised(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.linear(x, layer.weight)

    assert torch.allclose(ksample(patched(LAYER, Quantised())(moving), clip()), ksample(moving, clip()))


def test_parts_may_be_compiled():
    """A compiled block computes the same; we go around it as around any other."""
    moving = video_model()
    compiled = torch.compile(unet(moving).get_submodule("input_blocks.1"), backend="eager")
    assert torch.equal(ksample(patched("input_blocks.1", compiled)(moving), clip()), ksample(moving, clip()))


def test_what_comfyui_leaves_behind_of_a_patch_is_no_change():
    """It puts a method back as an attribute of its module."""
    users = base()
    ksample(patched(f"{BLOCK}.forward", unet(users).get_submodule(BLOCK).forward)(users), clip())
    ksample(users, clip())
    moving = video_model(users)
    assert torch.isfinite(ksample(moving, clip())).all()


def test_other_settings_of_the_unet_may_be_patched():
    moving = video_model()
    assert torch.equal(ksample(patched("some_flag", 1)(moving), clip()), ksample(moving, clip()))
