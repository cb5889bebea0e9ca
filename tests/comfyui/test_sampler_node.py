"""Sample MuseV Video is KSampler with MuseV's defaults, and the original's schedule."""

import comfy.sample
import pytest
import torch
from support.golden_comfy import goldens
from support.small_comfy import base, clip, core_sample, difference, ksample, prompt, recorded, video_model

from musev_core.denoise.noise import NoiseOptions
from musev_core.denoise.schedulers import VideoScheduler
from musev_core.errors import MuseVError
from musev_core.models.conditions import ClipConditions
from musev_pack.nodes.host.options import GuidanceOptions
from musev_pack.nodes.host.schedules import ORIGINAL, fractional_time, sigmas_of
from musev_pack.nodes.sampling import SampleVideo


def sample(model, latent, **changes) -> torch.Tensor:
    arguments = {
        "positive": prompt("good"),
        "negative": prompt("bad"),
        "seed": 1,
        "steps": 2,
        "cfg": 3.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        "cfg_end": 0.0,
        "guidance_curve": "linear",
        **changes,
    }
    return SampleVideo.execute(model=model, latent=latent, **arguments).args[0]["samples"]


@pytest.mark.parametrize("denoise", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "lcm", "uni_pc", "dpm_2"])
def test_it_equals_ksampler(sampler, denoise):
    latent, model = clip(), video_model(noise=NoiseOptions())
    latent["samples"][1:] = 1.0
    theirs = ksample(model, latent, cfg=3.5, steps=3, sampler=sampler, scheduler="karras", denoise=denoise)
    ours = sample(model, latent, steps=3, sampler_name=sampler, scheduler="karras", denoise=denoise)
    assert torch.equal(ours, theirs)


def test_frames_cut_out_of_a_longer_batch_keep_their_noise():
    latent = {**clip(), "batch_index": [4, 5, 6, 7, 8, 9, 10]}
    assert torch.equal(sample(video_model(), latent), ksample(video_model(), latent, cfg=3.5))
    assert difference(sample(video_model(), latent), sample(video_model(), clip())) > 0.1


def test_its_curve_is_set_guidance_schedule():
    scheduled = video_model(guidance=GuidanceOptions(3.5, 1.5, "linear"))
    out = sample(video_model(), clip(), cfg=3.5, cfg_end=1.5, steps=3)
    assert torch.equal(out, ksample(scheduled, clip(), cfg=3.5, steps=3))


def test_another_cfg_alone_holds_for_all_steps():
    assert torch.equal(sample(video_model(), clip(), cfg=5.0), ksample(video_model(), clip(), cfg=5.0))


def test_the_latent_keeps_what_else_it_says():
    latent = clip()
    (out,) = SampleVideo.execute(
        video_model(), prompt("good"), prompt("bad"), latent, 1, 1, 1.0, "euler", "normal", 1.0, 1.0
    ).args
    assert torch.equal(out["noise_mask"], latent["noise_mask"])
    assert out is not latent and not latent["samples"][1:].any()


def test_nothing_is_done_without_denoising():
    latent = clip()
    assert torch.equal(sample(video_model(), latent, denoise=0.0), latent["samples"])


def test_a_model_without_motion_is_refused():
    with pytest.raises(MuseVError, match="no motion: put Apply MuseV Motion"):
        sample(base(), clip())


def test_a_mask_of_another_length_is_refused():
    latent = {**clip(), "noise_mask": torch.ones(3, 1, 4, 4)}
    with recorded(video_model()) as (watched, recorder), pytest.raises(MuseVError, match="7 frames.*noise mask 3"):
        sample(watched, latent)
    assert not recorder.inputs


@pytest.mark.parametrize("steps", [1, 4, 7, 10, 30])
def test_the_originals_schedule_is_that_of_its_euler_scheduler(steps):
    core = VideoScheduler("euler", steps)
    sigmas = sigmas_of(base(), ORIGINAL, steps, 1.0, "euler")
    torch.testing.assert_close(sigmas, core.sigmas.cpu(), atol=1e-5, rtol=1e-5)
    times = [fractional_time(base().get_model_object("model_sampling"), float(s)) for s in sigmas[:-1]]
    assert times == pytest.approx(core.timesteps.tolist(), abs=1e-3)
    if f"scheduler_euler_{steps}" in goldens().by_id:
        arrays = goldens().arrays(goldens().by_id[f"scheduler_euler_{steps}"])
        torch.testing.assert_close(sigmas, torch.from_numpy(arrays["sigmas"]), atol=3e-5, rtol=1e-5)
        assert times == pytest.approx(arrays["timesteps"].tolist(), abs=1e-3)


@pytest.mark.parametrize("steps", [4, 10])
def test_comfyuis_normal_schedule_equals_it_at_4_and_10_steps(steps):
    ours, normal = (sigmas_of(base(), name, steps, 1.0, "euler") for name in (ORIGINAL, "normal"))
    torch.testing.assert_close(ours, normal, atol=1e-4, rtol=1e-4)


def test_a_part_of_the_originals_schedule():
    assert torch.equal(sigmas_of(base(), ORIGINAL, 5, 0.5, "euler"), sigmas_of(base(), ORIGINAL, 10, 1.0, "euler")[-6:])
    assert len(sigmas_of(base(), ORIGINAL, 5, 0.0, "euler")) == 0


def test_the_network_is_told_the_originals_time_between_two_steps():
    """With 3 steps the middle one is 499.5; ComfyUI would round it."""
    latent, core = clip(), VideoScheduler("euler", 3)
    assert core.timesteps.tolist() == [999, 499.5, 0]
    ours = sample(video_model(original_scaling=True), latent, steps=3, scheduler=ORIGINAL, cfg=1.0)
    noise = comfy.sample.prepare_noise(latent["samples"], 1)
    text = ClipConditions(text=prompt("good")[0][0])
    exact, rounded = (
        core_sample(text, core.sigmas.tolist(), noise, latent, cfg=1.0, times=times)
        for times in (core.timesteps.tolist(), None)
    )
    assert difference(ours, exact) < 0.1 * difference(rounded, exact)
