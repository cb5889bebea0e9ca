"""Prompts of a clip: one per frame, masked, in turn, combined, of different length (comfyui.md A5)."""

import nodes
import pytest
import torch
from support.golden_comfy import GoldenVAE
from support.small_comfy import (
    MUSEV,
    REFERENCENET,
    WINDOWS,
    clip,
    core_sample,
    difference,
    ksample,
    prompt,
    recorded,
    reference_net,
    sample_sigmas,
    video_model,
)

from musev_core.errors import MuseVError
from musev_core.models.conditions import ClipConditions
from musev_pack.nodes.host.options import ReferenceOptions

FRAMES = 8
SIGMAS = [1.0, 0.4, 0.0]
A, B = prompt("a red fox"), prompt("a blue whale")


def once(positive, *, cfg=1.0, model=None, negative=None) -> torch.Tensor:
    """One step, in which frames and prompts do not yet mix."""
    return ksample(model or video_model(), clip(FRAMES), positive, negative, steps=1, cfg=cfg)


def masked(conditioning, mask: torch.Tensor, strength: float = 1.0):
    return nodes.ConditioningSetMask().append(conditioning, mask, "default", strength)[0]


def per_frame(values) -> torch.Tensor:
    """One MASK per frame, in pixels."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 32, 32)


@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("variant", [MUSEV, REFERENCENET])
def test_a_prompt_per_frame_reaches_its_frame(variant, cfg):
    travelling, bad = prompt("travelling", rows=FRAMES), prompt("bad")
    latent = clip(FRAMES, (0,))
    noise = torch.randn(FRAMES, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    ours = sample_sigmas(video_model(variant=variant), SIGMAS, noise, latent, travelling, bad, cfg=cfg)
    rows = [bad[0][0].expand(FRAMES, -1, -1), travelling[0][0]][0 if cfg > 1 else 1 :]
    core = core_sample(
        ClipConditions(text=torch.stack(rows)), SIGMAS, noise, latent, cfg=cfg, variant=variant, windows=WINDOWS
    )
    assert difference(ours, core) < 1e-3  # see test_windows.py


def test_the_same_prompt_for_every_frame_is_a_prompt_for_all():
    [[tokens, _]] = A
    repeated = [[tokens.expand(FRAMES, -1, -1).clone(), {}]]
    assert difference(ksample(video_model(), clip(FRAMES), repeated), ksample(video_model(), clip(FRAMES), A)) < 1e-4


@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_masks_over_the_frames_lead_from_one_prompt_to_the_next(cfg):
    """Core nodes alone: SetMask with a mask per frame, twice, then Combine."""
    weights = [1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    both = masked(A, per_frame(weights)) + masked(B, 1 - per_frame(weights))
    first, second = once(A, cfg=cfg), once(B, cfg=cfg)
    share = torch.tensor(weights)[:, None, None, None]
    assert difference(once(both, cfg=cfg), share * first + (1 - share) * second) < 1e-4
    assert difference(first, second) > 0.1


def test_one_mask_is_for_all_frames():
    left = torch.zeros(1, 32, 32)
    left[..., :16] = 1
    out = once(masked(A, left) + masked(B, 1 - left))
    assert difference(out[..., :2], once(A)[..., :2]) < 1e-4
    assert difference(out[..., 2:], once(B)[..., 2:]) < 1e-4


@pytest.mark.parametrize("count", [2, FRAMES - 1, FRAMES + 1])
@pytest.mark.parametrize("what", ["prompt", "mask", "negative prompt"])
def test_neither_one_nor_one_per_frame_is_refused_before_anything_runs(what, count):
    several = masked(A, per_frame([1.0] * count)) if what == "mask" else prompt("several", rows=count)
    positive, negative = (A, several) if what == "negative prompt" else (several, prompt("bad"))
    with recorded(video_model()) as (watched, recorder), pytest.raises(MuseVError, match=f"{count} versions.*8 frames"):
        once(positive, model=watched, negative=negative)
    assert not recorder.inputs


def test_prompts_in_turn_equal_two_stages():
    timed = nodes.ConditioningSetTimestepRange()
    in_turn = timed.set_range(A, 0.0, 0.5)[0] + timed.set_range(B, 0.5, 1.0)[0]
    latent, model = clip(FRAMES), video_model()
    whole = ksample(model, latent, in_turn, steps=4, cfg=3.5)
    first = ksample(model, latent, A, steps=4, cfg=3.5, start_step=0, last_step=2)
    second = ksample(
        model, {**latent, "samples": first}, B, steps=4, cfg=3.5, start_step=2, last_step=4, disable_noise=True
    )
    assert difference(whole, second) < 1e-3
    assert difference(whole, ksample(model, latent, A, steps=4, cfg=3.5)) > 0.01


def test_combined_prompts_give_the_mean_of_both():
    (both,) = nodes.ConditioningCombine().combine(A, B)
    assert difference(once(both), (once(A) + once(B)) / 2) < 1e-4


@pytest.mark.parametrize("pictured", [False, True])
@pytest.mark.parametrize("tokens", [(7, 14), (14, 7), (14, 21)])
def test_positive_and_negative_prompts_of_different_length(tokens, pictured):
    """ComfyUI repeats tokens to evaluate them together; one by one it does not, and the ReferenceNet sees both."""
    options = {}
    if pictured:
        picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(2))
        options["reference"] = ReferenceOptions(reference_net(), GoldenVAE(), picture)
    model = video_model(variant=REFERENCENET, **options)
    positive, negative = (prompt(text, tokens=n) for text, n in zip(("good", "bad"), tokens, strict=True))
    together = once(positive, negative=negative, cfg=3.5, model=model)
    model = model.clone()
    model.add_object_patch("memory_usage_factor", 1e12)
    assert difference(together, once(positive, negative=negative, cfg=3.5, model=model)) < 1e-4


def test_clips_with_different_prompts_share_nothing():
    model, latent = video_model(), clip(FRAMES)
    first, second = ksample(model, latent, A, cfg=3.5), ksample(model, latent, B, cfg=3.5)
    assert difference(first, second) > 0.1
    assert torch.equal(ksample(model, latent, A, cfg=3.5), first)
    assert torch.equal(ksample(video_model(), latent, B, cfg=3.5), second)


def test_a_conditioning_without_text_is_refused():
    with pytest.raises(MuseVError, match="no text conditioning"):
        once([[None, {}]])
