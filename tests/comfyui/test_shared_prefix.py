"""Guidance branches see the same latents: what comes before the first look at the prompt is computed once for both,
unless something may tell them apart."""

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from nodes import ConditioningSetArea
from support.comfy_clips import Clip, Nodes, base, prompt, sample

CLIP = Clip(frames=3)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def moving(nodes):
    return nodes.ip_adapter(nodes.reference(nodes.motion(base())))


@pytest.fixture
def rows():
    """How many frames go through the first and the last convolution of the base model, call by call."""
    seen = {"conv_in": [], "conv_out": []}
    unet = base().model.diffusion_model
    layers = {"conv_in": unet.input_blocks[0][0], "conv_out": unet.out[2]}
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].shape[0]))
        for name, layer in layers.items()
    ]
    yield seen
    for handle in handles:
        handle.remove()


def test_both_branches_share_the_first_layers(moving, rows):
    sample(moving, CLIP, steps=1)
    assert rows == {"conv_in": [3], "conv_out": [6]}


def test_a_single_branch_is_computed_as_it_is(moving, rows):
    sample(moving, CLIP, steps=1, cfg=1.0)
    assert rows == {"conv_in": [3], "conv_out": [3]}


def patched(model, kind, patch):
    new = model.clone()
    new.set_model_patch(patch, kind)
    return new


def wrapped(model):
    new = model.clone()
    new.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", lambda executor, *args, **kw: executor(*args, **kw))
    return new


BEFORE = {
    "emb_patch": lambda m: patched(m, "emb_patch", lambda emb, channels, options: emb),
    "input_block_patch": lambda m: patched(m, "input_block_patch", lambda h, options: h),
    "attn1_patch": lambda m: patched(m, "attn1_patch", lambda q, k, v, options: (q, k, v)),
    "middle_patch": lambda m: patched(m, "middle_patch", lambda x, options: x),
    "wrapper": wrapped,
}
AFTER = {
    "attn2_patch": lambda m: patched(m, "attn2_patch", lambda q, k, v, options: (q, k, v)),
    "attn2_output_patch": lambda m: patched(m, "attn2_output_patch", lambda x, options: x),
    "output_block_patch": lambda m: patched(m, "output_block_patch", lambda h, skip, options: (h, skip)),
}


@pytest.mark.parametrize("name", [*BEFORE, *AFTER])
def test_only_patches_in_front_keep_them_apart(name, moving, rows):
    expected = sample(moving, CLIP, steps=1)
    out = sample({**BEFORE, **AFTER}[name](moving), CLIP, steps=1)
    assert rows["conv_in"] == [3, 6 if name in BEFORE else 3]
    assert (out - expected).abs().max() < 1e-4 * expected.std()


def halves() -> list[list]:
    places = (("left", 0), ("right", 32))
    return [ConditioningSetArea().append(prompt(name), 32, 64, x, 0, 1.0)[0] for name, x in places]


def test_prompts_for_areas_beside_one_for_the_whole_picture(moving, rows):
    """That one is evaluated by itself; the halves share nothing all the same."""
    left, right = halves()
    positive = left + right + prompt("a field")
    out = sample(moving, CLIP, steps=1, cfg=1.0, positive=positive)
    assert sorted(rows["conv_in"]) == [3, 6]
    one_by_one = moving.clone()
    one_by_one.add_object_patch("memory_usage_factor", 1e12)
    expected = sample(one_by_one, CLIP, steps=1, cfg=1.0, positive=positive)
    assert (out - expected).abs().max() < 1e-4 * expected.std()


def test_prompts_for_areas_keep_them_apart(moving, rows):
    """Two halves of a picture have the same size, and go through the network side by side."""
    left, right = halves()
    out = sample(moving, CLIP, steps=1, cfg=1.0, positive=left + right)
    assert torch.isfinite(out).all()
    assert rows == {"conv_in": [6], "conv_out": [6]}
    one_by_one = moving.clone()
    one_by_one.add_object_patch("memory_usage_factor", 1e12)
    expected = sample(one_by_one, CLIP, steps=1, cfg=1.0, positive=left + right)
    assert rows["conv_in"] == [6, 3, 3]
    assert (out - expected).abs().max() < 1e-4 * expected.std()
