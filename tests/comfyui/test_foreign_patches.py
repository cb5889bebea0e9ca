"""Patches of other packs find their places in our forward: those which ComfyUI's own forward has, in its order."""

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from support.comfy_clips import Nodes, base, sample


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def moving(nodes):
    """A MODEL with everything, in windows of two frames and a condition frame."""
    return nodes.face(nodes.ip_adapter(nodes.reference(nodes.windows(nodes.motion(base())))))


@pytest.fixture(scope="module")
def unpatched(moving):
    with torch.inference_mode():
        return {cfg: sample(moving, steps=1, cfg=cfg) for cfg in (1.0, 3.5)}


class Patch:
    """An identity of the form which ComfyUI's patches have, which notes every call."""

    def __init__(self, form: str):
        self.function = getattr(self, form)
        self.calls: list[tuple] = []  # block, shapes without the frames
        self.known: set[str] = set()  # what the patch is told about the call

    def one(self, x, options):
        return self._seen(options, x)

    def two(self, h, skip, options):
        self._seen(options, h, skip)
        return h, skip

    def three(self, q, k, v, options):
        self._seen(options, q, k, v)
        return q, k, v

    def replacement(self, q, k, v, options):
        self._seen(options, q)
        return optimized_attention(q, k, v, options["n_heads"])

    def embedding(self, emb, model_channels, options):
        return self._seen(options, emb, torch.empty(1, model_channels))

    def after_middle(self, inputs):
        self.known |= set(inputs)
        self._seen(inputs["transformer_options"], inputs["h"], inputs["x"], inputs["emb"], inputs["context"])
        return {"h": inputs["h"]}

    def _seen(self, options, *tensors):
        self.known |= set(options)
        self.calls.append((options.get("block"), options.get("block_index"), *(tuple(x.shape[1:]) for x in tensors)))
        return tensors[0]


KINDS = {
    "emb_patch": "embedding",
    "input_block_patch": "one",
    "input_block_patch_after_skip": "one",
    "attn1_patch": "three",
    "attn1_output_patch": "one",
    "middle_patch": "one",
    "attn2_patch": "three",
    "attn2_output_patch": "one",
    "output_block_patch": "two",
    "middle_block_after_patch": "after_middle",
}
CALLS = {"emb_patch": 1, "input_block_patch": 12, "input_block_patch_after_skip": 12, "output_block_patch": 12}


def with_patch(model, kind: str, patch: Patch):
    if not hasattr(model, f"set_model_{kind}") and kind == "middle_block_after_patch":
        pytest.skip("this ComfyUI has no such place")
    new = model.clone()
    new.set_model_patch(patch.function, kind)
    return new


def with_replacement(model, name: str, function, places):
    new = model.clone()
    for place in places:
        new.set_model_patch_replace(function, name, *place)
    return new


def same(out: torch.Tensor, other: torch.Tensor, *, exact: bool) -> bool:
    """Equal, or to rounding: where a patch may change a frame's prompt, its keys are computed frame by frame."""
    return torch.equal(out, other) if exact else bool((out - other).abs().max() < 1e-4 * other.std())


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_patch_changes_nothing(kind, moving, unpatched):
    model = with_patch(moving, kind, Patch(KINDS[kind]))
    assert same(sample(model, steps=1, cfg=1.0), unpatched[1.0], exact=kind != "attn2_patch")
    # two guidance branches do not share their first layers where a patch may tell them apart
    assert same(sample(model, steps=1), unpatched[3.5], exact=False)


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_called_where_comfyui_calls_them(kind, moving):
    theirs, ours = Patch(KINDS[kind]), Patch(KINDS[kind])
    sample(with_patch(base(), kind, theirs), steps=1, cfg=1.0)
    sample(with_patch(moving, kind, ours), steps=1, cfg=1.0)
    assert len(theirs.calls) == CALLS.get(kind, 1 if kind == "middle_block_after_patch" else 16)
    assert ours.calls == 2 * theirs.calls  # two windows
    assert ours.known >= theirs.known


@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_replaced_attentions_are_called_at_all_blocks(name, moving, unpatched):
    theirs, ours = Patch("replacement"), Patch("replacement")
    places = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 12)]
    sample(with_replacement(base(), name, theirs.function, places), steps=1, cfg=1.0)
    model = with_replacement(moving, name, ours.function, places)
    assert same(sample(model, steps=1, cfg=1.0), unpatched[1.0], exact=name == "attn1")
    assert len(theirs.calls) == 16
    assert ours.calls == 2 * theirs.calls
    assert same(sample(model, steps=1), unpatched[3.5], exact=False)


def test_an_attention_can_be_replaced_by_block_and_transformer(moving):
    patch = Patch("replacement")
    sample(with_replacement(moving, "attn2", patch.function, [("output", 5, 0)]), steps=1, cfg=1.0)
    assert [call[0] for call in patch.calls] == 2 * [("output", 5)]


def test_a_patch_for_every_frame_sees_the_frames_of_the_window(moving):
    """IPAdapter_plus gives frames pictures of their own: it reads `ad_params`."""
    seen = []

    def patch(q, k, v, options):
        seen.append((options["ad_params"]["sub_idxs"], q.shape[0], options["cond_or_uncond"]))
        return q, k, v

    new = moving.clone()
    new.set_model_attn2_patch(patch)
    sample(new, steps=1)
    assert {(tuple(frames), rows, tuple(chunks)) for frames, rows, chunks in seen} == {
        ((0, 1, 2), 6, (1, 0)),
        ((0, 2, 3), 6, (1, 0)),
    }


def test_patches_of_the_attention_act_on_what_musev_adds(moving, unpatched):
    """An attention whose output is taken away still leaves the pictures' own terms, which are added after it."""

    def nothing(q, k, v, options):
        return torch.zeros_like(q)

    silent = with_replacement(moving, "attn2", nothing, [("middle", 0)])
    out = sample(silent, steps=1, cfg=1.0)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, unpatched[1.0])


def test_patches_may_write_into_what_they_are_given(moving):
    """Many do, FreeU among them; nothing that is used again may change by it."""

    def double(h, options):
        h *= 2.0
        return h

    def doubled(h, options):
        return h * 2.0

    for kind in ("input_block_patch", "input_block_patch_after_skip"):
        results = []
        for patch in (double, doubled):
            new = moving.clone()
            new.set_model_patch(patch, kind)
            results.append(sample(new, steps=1, cfg=1.0))
        if kind == "input_block_patch":
            assert torch.equal(*results)
        assert torch.isfinite(results[0]).all()


def test_the_chosen_attention_is_used_everywhere_but_over_time(moving, unpatched):
    calls = []

    def attention(function, *args, **kwargs):
        options = kwargs["transformer_options"]
        calls.append((options["block"], args[0].shape[0]))
        return function(*args, **kwargs)

    new = moving.clone()
    new.model_options["transformer_options"]["optimized_attention_override"] = attention
    assert torch.equal(sample(new, steps=1, cfg=1.0), unpatched[1.0])
    assert {block for block, _ in calls} >= {("input", 1), ("middle", 0), ("output", 11)}
