"""Condition frames reach every network clean at every step, and leave exactly as they came (comfyui.md A4)."""

from itertools import chain

import nodes
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from support.golden_comfy import SCALE
from support.small_comfy import (
    REFERENCENET,
    HintNet,
    clip,
    control_net,
    controlled,
    custom_sample,
    difference,
    ksample,
    ksample_with,
    motion_of,
    numbered,
    prompt,
    recorded,
    unet,
    video_model,
)

from musev_pack.nodes.host.options import MotionOptions

SAMPLERS = {
    "euler": "normal",
    "dpmpp_2m": "karras",
    "euler_ancestral": "normal",
    "lcm": "sgm_uniform",
    "heun": "normal",
    "dpmpp_2m_sde": "normal",
    "ddim": "ddim_uniform",
    "uni_pc": "normal",
}


def check_seen(recorder, net: HintNet, latent: dict, conditions=(0,), area=slice(None)) -> None:
    """Both networks saw the condition frames as ComfyUI keeps them: times 0.18215, not scaled by any sigma."""
    assert recorder.inputs and net.seen
    for frame in conditions:
        clean = latent["samples"][frame][:, area] * SCALE
        for seen in recorder.rows_of(frame):
            torch.testing.assert_close(seen, clean, atol=1e-6, rtol=0)
        for call, numbers in zip(net.seen, net.frames(), strict=True):
            # every chunk of every call holds the frame
            rows = call["x"][torch.tensor(numbers * (len(call["x"]) // len(numbers))) == frame]
            torch.testing.assert_close(rows, clean.expand_as(rows), atol=1e-6, rtol=0)


def run(model, latent, sample=ksample, *, positive=None, conditions=(0,), area=slice(None), **options) -> torch.Tensor:
    net = HintNet()
    conds = controlled(positive or prompt("good"), prompt("bad"), control_net(net), numbered(7, 8))
    with recorded(model) as (watched, recorder):
        out = sample(watched, latent, *conds, **options)
    check_seen(recorder, net, latent, conditions, area)
    return out


@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_every_sampler_through_ksampler(sampler, cfg):
    latent = clip()
    out = run(video_model(), latent, cfg=cfg, sampler=sampler, scheduler=SAMPLERS[sampler])
    assert torch.equal(out[0], latent["samples"][0])
    assert torch.isfinite(out).all() and out[1:].std() > 0


@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_every_sampler_through_sampler_custom_advanced(sampler, cfg):
    latent = clip()
    out, denoised = run(video_model(), latent, custom_sample, cfg=cfg, sampler=sampler, scheduler=SAMPLERS[sampler])
    assert torch.equal(out[0], latent["samples"][0])
    torch.testing.assert_close(denoised[0], latent["samples"][0], atol=1e-5, rtol=0)
    assert torch.isfinite(out).all()


def test_with_a_video_to_start_from():
    latent = clip()
    latent["samples"][1:] = torch.linspace(-5, 5, 6)[:, None, None, None]
    out = run(video_model(), latent, denoise=0.6, cfg=3.5)
    assert torch.equal(out[0], latent["samples"][0])


def test_with_a_mask_in_pixels():
    latent = clip()
    latent["noise_mask"] = latent["noise_mask"].repeat_interleave(8, -1).repeat_interleave(8, -2)
    assert torch.equal(run(video_model(), latent)[0], latent["samples"][0])


def test_a_frame_of_which_a_part_is_kept_is_no_condition_frame():
    latent = clip()
    latent["noise_mask"][3, :, :2] = 0
    with recorded(video_model()) as (watched, recorder):
        out = ksample(watched, latent)
    assert recorder.windows == [[0, 1, 2, 3, 4], [0, 4, 5, 6]] * 2
    # ComfyUI's own way of keeping a region, through scaling and back
    torch.testing.assert_close(out[3, :, :2], latent["samples"][3, :, :2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", ["eps", "lcm", "v_prediction"])
def test_with_another_model_sampling(sampling):
    latent = clip()
    (model,) = ModelSamplingDiscrete().patch(video_model(), sampling, zsnr=sampling == "v_prediction")[:1]
    assert torch.equal(run(model, latent, cfg=3.5)[0], latent["samples"][0])


def test_with_differential_diffusion():
    latent = clip()
    latent["noise_mask"][4:] = 0.5
    (model,) = DifferentialDiffusion.execute(video_model()).args[:1]
    assert torch.equal(run(model, latent)[0], latent["samples"][0])


def test_with_a_prompt_for_a_part_of_the_picture():
    latent = clip(size=8)
    (upper,) = nodes.ConditioningSetArea().append(prompt("sky"), width=64, height=32, x=0, y=0, strength=1.0)
    with recorded(video_model()) as (watched, recorder):
        out = ksample(watched, latent, prompt("good") + upper, prompt("bad"), cfg=3.5)
    clean = latent["samples"][0] * SCALE
    heights = {seen.shape[-2] for seen in recorder.rows_of(0)}
    assert heights == {4, 8}
    for seen in recorder.rows_of(0):
        torch.testing.assert_close(seen, clean[:, : seen.shape[-2]], atol=1e-6, rtol=0)
    assert torch.equal(out[0], latent["samples"][0])


@pytest.mark.parametrize("conditions", [(0,), (3,), (6,), (0, 6), (0, 1), (2, 5)])
def test_at_any_place_in_the_clip(conditions):
    latent = clip(7, conditions)
    out = run(video_model(variant=REFERENCENET), latent, conditions=conditions, cfg=3.5)
    for frame in conditions:
        assert torch.equal(out[frame], latent["samples"][frame])


def test_condition_frames_stand_where_they_belong_in_every_window():
    places = {
        (6,): [[0, 1, 2, 3, 6], [3, 4, 5, 6]],
        (3,): [[0, 1, 2, 3, 4], [3, 4, 5, 6]],
        (0, 6): [[0, 1, 2, 3, 4, 6], [0, 4, 5, 6]],
    }
    for conditions, expected in places.items():
        with recorded(video_model()) as (watched, recorder):
            ksample(watched, clip(7, conditions), steps=1)
        assert recorder.windows == expected


@pytest.mark.parametrize("variant", ["musev", REFERENCENET])
@pytest.mark.parametrize("conditions", [(0,), (0, 2)])
def test_a_clip_played_backwards_gives_the_video_backwards(conditions, variant):
    """As long as the network is told no frame numbers, and its convolutions over time are played backwards too."""
    frames = 7 + len(conditions)  # the windows over 7 frames are symmetric
    unnumbered = {
        name: torch.zeros_like(x) if "frame_emb_proj" in name else x for name, x in unet(variant).state_dict().items()
    }
    backwards = {name: x.flip(2) if x.ndim == 5 else x for name, x in unnumbered.items()}
    noise = torch.randn(frames, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    latent = clip(frames, conditions)
    mirrored = {name: x.flip(0) for name, x in latent.items()}

    def sample(tensors, clip, noise):
        model = video_model(motion=MotionOptions(motion_of(tensors, variant)))
        return ksample_with(noise, model, clip, cfg=3.5)

    out = sample(unnumbered, latent, noise)
    tail = sample(backwards, mirrored, noise.flip(0))
    assert torch.equal(tail[frames - 1], latent["samples"][0])
    assert difference(tail.flip(0), out) < 1e-4
    # the same network, or the frames the other way round, give something else
    assert difference(sample(unnumbered, mirrored, noise.flip(0)).flip(0), out) > 1e-2


def test_two_stages_equal_one_run():
    latent, model = clip(), video_model()
    whole = ksample(model, latent, steps=4, cfg=3.5)
    first = ksample(model, latent, steps=4, cfg=3.5, start_step=0, last_step=2)
    second = ksample(
        model, {**latent, "samples": first}, steps=4, cfg=3.5, start_step=2, last_step=4, disable_noise=True
    )
    assert torch.equal(second[0], latent["samples"][0])
    assert difference(second, whole) < 1e-4


def test_a_clip_without_condition_frames():
    latent = {"samples": torch.zeros(7, 4, 4, 4)}
    with recorded(video_model()) as (watched, recorder):
        out = ksample(watched, latent, cfg=3.5)
    assert recorder.windows == [[0, 1, 2, 3], [3, 4, 5, 6]] * 2
    assert sorted(set(chain(*recorder.windows))) == list(range(7))
    assert out.std() > 0


def test_a_clip_which_starts_from_nothing_gets_a_warning(caplog):
    """MuseV was trained to go on from a picture; the log has it for samplers that run without a node."""

    def said(latent, **options) -> int:
        caplog.clear()
        ksample(video_model(variant=REFERENCENET), latent, **options)
        return sum("The LATENT has no condition frame" in record.getMessage() for record in caplog.records)

    empty = {"samples": torch.zeros(7, 4, 4, 4)}
    assert said(empty) == 1
    assert said(clip()) == 0
    assert said(numbered_latent(), denoise=0.5) == 0  # redraws a video
    assert said(numbered_latent(), start_step=1, last_step=2, disable_noise=True) == 0  # the second of two stages


def numbered_latent() -> dict:
    return {"samples": torch.arange(7.0)[:, None, None, None].expand(-1, 4, 4, 4) / 7}
