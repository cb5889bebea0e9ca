"""What is constant over a clip is computed once per clip, and never leaks into another clip or into training."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from support import unet_inputs as small
from torch import Tensor

from musev_core.models.conditions import ClipConditions

TEXT_KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT_VALUE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
IMAGE_KEY = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k_ip"
REFERENCE_KEY = "down_blocks.3.refer_emb_attns.1.to_k"
FRAMES = "frame_embedding.linear_1"


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    """How often some leaves of `small.unet()` were called."""
    count: Counter[str] = Counter()
    hooks = [
        small.unet().get_submodule(name).register_forward_hook(lambda *_, name=name: count.update([name]))
        for name in (TEXT_KEY, TEXT_VALUE, IMAGE_KEY, REFERENCE_KEY, FRAMES)
    ]
    yield count
    for hook in hooks:
        hook.remove()


def run(clip: ClipConditions, sample: Tensor | None = None, **options) -> Tensor:
    sample = small.sample() if sample is None else sample
    return small.unet()(sample, 500.0, clip, condition_frames=(0,), **options)


def predict(clip: ClipConditions, sample: Tensor | None = None, **options) -> Tensor:
    with torch.no_grad():
        return run(clip, sample, **options)


def test_constants_are_computed_once_per_clip(calls: Counter[str]) -> None:
    clip = small.full_clip()
    first, second = predict(clip), predict(clip)
    assert torch.equal(first, second)
    # the fusion's key layer also sees the frames themselves, at every call
    assert calls == {TEXT_KEY: 1, TEXT_VALUE: 1, IMAGE_KEY: 1, REFERENCE_KEY: 2 + 1, FRAMES: 1}

    predict(small.full_clip())
    assert calls == {TEXT_KEY: 2, TEXT_VALUE: 2, IMAGE_KEY: 2, REFERENCE_KEY: 3 + 2, FRAMES: 2}


def test_frame_embeddings_are_kept_per_length_and_speed(calls: Counter[str]) -> None:
    clip = small.full_clip()
    short = small.sample(frames=3)
    expected = predict(small.full_clip(), short), predict(small.full_clip(), motion_speed=1.0)
    calls.clear()
    predict(clip)
    assert torch.equal(predict(clip, short), expected[0])
    assert torch.equal(predict(clip, motion_speed=1.0), expected[1])
    predict(clip)
    assert calls[FRAMES] == 3
    assert calls[TEXT_KEY] == 1


def test_clips_share_nothing() -> None:
    expected = [predict(small.full_clip(seed=seed)) for seed in (0, 1)]
    clips = [small.full_clip(seed=seed) for seed in (0, 1)]
    got = [predict(clips[i]) for i in (0, 1, 0, 1)]
    assert small.distance(expected[1], expected[0]) > 1e-4
    for i, x in enumerate(got):
        assert torch.equal(x, expected[i % 2])


def test_nothing_is_kept_while_gradients_are_needed(calls: Counter[str]) -> None:
    clip = small.full_clip()
    with torch.enable_grad():
        run(clip)
        run(clip)
    assert calls == {TEXT_KEY: 2, TEXT_VALUE: 2, IMAGE_KEY: 2, REFERENCE_KEY: 4, FRAMES: 2}


def test_values_kept_from_inference_do_not_cut_gradients() -> None:
    clip = small.full_clip()
    predict(clip)
    leaf = small.unet().get_submodule(TEXT_KEY)
    try:
        leaf.requires_grad_(True)
        (gradient,) = torch.autograd.grad(run(clip).sum(), leaf.weight)
    finally:
        leaf.requires_grad_(False)
    assert gradient.norm() > 1e-4


def test_rows_are_the_prompts() -> None:
    assert small.full_clip(rows=3).rows == 3


def test_take_gives_the_conditions_of_some_rows() -> None:
    clip = ClipConditions(
        small.text(), small.image_tokens(), image_scale=0.5, face_tokens=small.image_tokens(seed=1), face_scale=0.7,
        reference=small.reference(),
    )  # fmt: skip
    x, net = small.sample(), small.unet(face_layers=True)
    with torch.no_grad():
        both = net(x, 500.0, clip)
        for rows in ([1], [1, 0]):  # after the whole clip was used: nothing of it may be reused for other rows
            part = clip.take(rows)
            assert part.rows == len(rows)
            assert small.distance(net(x[rows], 500.0, part), both[rows]) <= small.SAME
        assert torch.equal(net(x, 500.0, clip), both)


def test_take_leaves_out_what_is_not_there() -> None:
    part = ClipConditions(small.text()).take([0])
    assert (part.image_tokens, part.face_tokens, part.reference) == (None, None, None)


def test_at_frames_makes_no_difference_to_a_constant_prompt() -> None:
    clip = small.full_clip()
    assert clip.at_frames([[0, 1], [2, 3]]) is clip


def test_at_frames_picks_the_prompts_of_every_window() -> None:
    changing = torch.stack([small.text(seed=i) for i in range(6)], dim=1)  # (rows, frames of the clip, tokens, dim)
    clip = small.varied(small.full_clip(), text=changing)
    windows = [[0, 1, 2], [0, 3, 4], [0, 2, 5]]
    x = torch.stack([small.sample(frames=3, seed=i) for i in range(3)], dim=1)  # (rows, windows, 4, t, h, w)

    got = predict(clip.at_frames(windows), x.flatten(0, 1)).unflatten(0, (2, 3))
    for j, window in enumerate(windows):
        alone = predict(small.varied(clip, text=changing[:, window]), x[:, j])
        assert small.distance(got[:, j], alone) <= small.SAME
    constant = predict(small.varied(clip, text=changing[:, 0]), x[:, 1])
    assert small.distance(got[:, 1], constant) > 1e-4


def test_what_is_constant_can_be_computed_ahead_and_its_memory_is_told():
    net, clip = small.unet(), small.full_clip()
    with torch.no_grad():
        net.prepare(clip, 4, motion_speed=8.0)
        held = clip.nbytes()
        keys = set(clip._cache)
        net(small.sample(), 500.0, clip, condition_frames=(0,), motion_speed=8.0)
    assert set(clip._cache) == keys and clip.nbytes() == held > 0
    with torch.no_grad():
        fresh = small.full_clip()
        assert fresh.nbytes() == 0
        prepared, plain = (net(small.sample(), 500.0, c, condition_frames=(0,)) for c in (clip, fresh))
    assert torch.equal(prepared, plain)
