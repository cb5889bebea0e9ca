"""Noise of a clip inside ComfyUI's sampling, and guidance over the steps (comfyui.md A6)."""

import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    DisableNoise,
    DualCFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from support.golden_comfy import SCALE, golden_clip, golden_model, goldens, with_original_norms
from support.small_comfy import clip, difference, ksample, prompt, recorded, video_model

from musev_core.denoise.noise import NoiseOptions, VideoNoise, image_based_noise
from musev_core.denoise.windows import WindowOptions
from musev_core.errors import MuseVError
from musev_pack.nodes.host.options import GuidanceOptions

ONE_WINDOW = WindowOptions(12, 4)


def started(noise: NoiseOptions, latent=None, *, seed=1, size=4, **options) -> torch.Tensor:
    """What the network sees first: with nothing else to start from, the noise itself. `(frames, 4, h, w)`."""
    sampling = {name: options.pop(name) for name in list(options) if name in ("denoise", "disable_noise")}
    with recorded(video_model(noise=noise, windows=ONE_WINDOW, **options)) as (watched, recorder):
        ksample(watched, clip(12, size=size) if latent is None else latent, seed=seed, steps=1, **sampling)
    return recorder.inputs[0]


def common_share(noise: torch.Tensor) -> float:
    """The mean correlation of two frames."""
    together = torch.from_numpy(np.corrcoef(noise.flatten(1).numpy()))
    frames = len(noise)
    return float((together.sum() - frames) / (frames * (frames - 1)))


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_frames_share_a_part_of_their_noise(weight):
    noise = started(NoiseOptions("video_fusion", weight, None), size=16)[1:]
    assert common_share(noise) == pytest.approx(1 - weight, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("draw", ["frames", "original"])
def test_the_seed_gives_the_noise_of_the_core(draw):
    options = NoiseOptions("video_fusion", 0.5, None, draw)
    expected = VideoNoise([7]).draw(0, range(1, 12), (4, 4, 4), options)[0].transpose(0, 1)
    torch.testing.assert_close(started(options, seed=7)[1:], expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(started(options, seed=7), started(options, seed=7))
    assert difference(started(options, seed=8), started(options, seed=7)) > 0.1


def test_a_seed_is_any_number_of_the_widget():
    assert torch.isfinite(started(NoiseOptions(), seed=2**64 - 1)).all()


def test_a_longer_video_begins_with_the_noise_of_a_shorter_one():
    """Whole steps: the initial noise, and what a sampler adds later."""
    drawn = []
    for frames in (12, 20):
        listening = Listening(video_model(noise=NoiseOptions("video_fusion", 0.5, None)), "listening")
        ksample(listening.model, clip(frames), sampler="lcm")
        drawn.append([started(NoiseOptions("video_fusion", 0.5, None), clip(frames)), *listening.drawn])
    for short, long in zip(*drawn, strict=True):
        torch.testing.assert_close(long[:12], short, atol=1e-6, rtol=1e-6)


def test_random_noise_is_comfyuis_own():
    own = comfy.sample.prepare_noise(torch.zeros(12, 4, 4, 4), 1)
    torch.testing.assert_close(started(NoiseOptions("random", image_weight=None))[1:], own[1:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["video_fusion", "random"])
def test_a_part_of_the_condition_picture_is_mixed_in_where_nothing_else_is(kind):
    latent = clip(12, (0, 1))
    without = started(NoiseOptions(kind, image_weight=None), latent)[2:]
    clean = latent["samples"][:2] * SCALE
    expected = image_based_noise(without.transpose(0, 1)[None], clean.transpose(0, 1)[None], 0.25)[0].transpose(0, 1)
    torch.testing.assert_close(started(NoiseOptions(kind, image_weight=0.25), latent)[2:], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("denoise", [0.6, 1.0])
def test_a_given_video_gets_no_condition_picture(denoise):
    latent = clip(12)
    latent["samples"][1:] = torch.linspace(-5, 5, 11)[:, None, None, None]
    mixed, pure = (started(NoiseOptions(image_weight=w), latent, denoise=denoise) for w in (0.5, None))
    assert torch.equal(mixed, pure)


def test_the_originals_scaling_is_by_sigma_alone():
    sigma = float(video_model().get_model_object("model_sampling").sigma_max)
    ratio = started(NoiseOptions(), original_scaling=True) / started(NoiseOptions())
    expected = sigma / (1 + sigma**2) ** 0.5
    torch.testing.assert_close(ratio[1:], torch.full_like(ratio[1:], expected), atol=1e-5, rtol=0)


def test_noise_that_is_switched_off_stays_off():
    latent = clip(12)
    for noise in (NoiseOptions(), NoiseOptions("random")):
        assert not started(noise, latent, disable_noise=True)[1:].any()
        with recorded(video_model(noise=noise, windows=ONE_WINDOW)) as (watched, recorder):
            advanced(watched, DisableNoise.execute(), latent)
        assert not recorder.inputs[0][1:].any()


def advanced(model, noise, latent, guider=None):
    """SamplerCustomAdvanced."""
    guider = guider or CFGGuider.execute(model, prompt("good"), prompt("bad"), 1.0)
    sigmas = BasicScheduler.execute(model, "normal", 2, 1.0)
    chosen = KSamplerSelect.execute("euler")
    return SamplerCustomAdvanced.execute(noise.args[0], guider.args[0], chosen.args[0], sigmas.args[0], latent).args[0]


class Listening:
    """A wrapper of another pack: draws from the noise a sampler is to add at its steps."""

    def __init__(self, model, name: str):
        self.drawn: list[torch.Tensor] = []
        self.model = model.clone()
        self.model.add_wrapper_with_key("sampler_sample", name, self)

    def __call__(self, executor, *args, **kwargs):
        source = executor.class_obj.extra_options.get("noise_sampler")
        if source is not None:
            self.drawn += [source(1.0, 0.5) for _ in range(2)]
        return executor(*args, **kwargs)


@pytest.mark.parametrize("sampler", ["lcm", "euler_ancestral", "dpmpp_2m_sde"])
def test_noise_added_later_is_video_noise_too(sampler):
    listening = Listening(video_model(noise=NoiseOptions("video_fusion", 0.25, None)), "listening")
    ksample(listening.model, clip(12, size=16), sampler=sampler)
    for noise in listening.drawn:
        assert common_share(noise[1:]) == pytest.approx(0.75, abs=0.05)
        assert not noise[0].any()
    assert difference(*listening.drawn) > 0.1


def test_samplers_of_the_graph_are_left_alone():
    (sampler,) = KSamplerSelect.execute("lcm").args
    latent, model = clip(), video_model(noise=NoiseOptions())
    comfy.sample.sample_custom(
        model,
        torch.randn(7, 4, 4, 4),
        1.0,
        sampler,
        torch.tensor([2.0, 1.0, 0.0]),
        prompt("good"),
        prompt("bad"),
        latent["samples"],
        noise_mask=latent["noise_mask"],
        disable_pbar=True,
        seed=1,
    )
    assert sampler.extra_options == {}


def test_a_second_stage_does_not_add_the_noise_which_the_first_began_with():
    noise = NoiseOptions("video_fusion", 0.5, None)
    first = started(noise, clip(12))
    listening = Listening(video_model(noise=noise), "listening")
    ksample(
        listening.model, clip(12), sampler="euler_ancestral", steps=4, start_step=2, last_step=4, disable_noise=True
    )
    assert difference(listening.drawn[0][1:], first[1:]) > 0.1


@pytest.mark.parametrize("name", ["pipeline_musev_comfy_lcm", "pipeline_ref_comfy_lcm"])
def test_lcm_equals_the_original_at_its_noise_levels(name, tmp_path):
    """The whole stream: initial noise, and the noise of every step from the same generator.

    The original's LCM steps (999, 759, 499, 259 of 4) are given through SamplerCustom. ComfyUI's own schedulers choose
    slightly others (sgm_uniform: 999, 754, 509, 264), which no random network forgives and no eye sees.
    """
    case = goldens().by_id[name]
    model = with_original_norms(golden_model(case, tmp_path, original_scaling=False))
    (model,) = ModelSamplingDiscrete().patch(model, "lcm", zsnr=False)[:1]
    latents, mask, positive, negative = golden_clip(case)
    sampling = model.get_model_object("model_sampling")
    steps = torch.tensor([999, 759, 499, 259])
    assert sampling.timestep(sampling.sigma(steps)).tolist() == steps.tolist()
    out = comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(latents, case["generator_seed"]),
        case["guidance_start"],
        comfy.samplers.sampler_object("lcm"),
        torch.cat([sampling.sigma(steps), torch.zeros(1)]),
        positive,
        negative,
        latents,
        noise_mask=mask,
        disable_pbar=True,
        seed=case["generator_seed"],
    )
    expected = torch.from_numpy(goldens().arrays(case)["final_latents"])[0].transpose(0, 1)
    assert difference(out * SCALE, expected) < 1e-3


# ---- guidance ------------------------------------------------------------------------------------------------------


def test_guidance_in_two_stages_equals_two_runs():
    latent, model = clip(), video_model()
    scheduled = video_model(guidance=GuidanceOptions(3.5, 1.0, "two_stage"))
    with recorded(scheduled) as (watched, recorder):
        out = ksample(watched, latent, steps=4, cfg=7.0)
    first = ksample(model, latent, steps=4, cfg=3.5, start_step=0, last_step=2)
    second = ksample(
        model, {**latent, "samples": first}, steps=4, cfg=1.0, start_step=2, last_step=4, disable_noise=True
    )
    assert difference(out, second) < 1e-3
    assert recorder.branches == [2] * 4 + [1] * 4  # two windows a step; the negative prompt is not evaluated at 1


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_a_constant_schedule_is_a_cfg(sampler):
    scheduled = video_model(guidance=GuidanceOptions(3.5, 3.5, "linear"))
    out = ksample(scheduled, clip(), steps=3, cfg=1.0, sampler=sampler)
    assert torch.equal(out, ksample(video_model(), clip(), steps=3, cfg=3.5, sampler=sampler))


def test_the_guider_has_its_own_cfg_again_afterwards():
    model = video_model(guidance=GuidanceOptions(3.5, 1.5, "linear"))
    guider = CFGGuider.execute(model, prompt("good"), prompt("bad"), 7.0)
    advanced(model, RandomNoise.execute(1), clip(), guider)
    assert guider.args[0].cfg == 7.0


@pytest.mark.parametrize("guider", ["BasicGuider", "DualCFGGuider"])
def test_a_schedule_is_refused_where_there_is_no_single_cfg(guider):
    model = video_model(guidance=GuidanceOptions(3.5, 1.5, "linear"))
    good, bad = prompt("good"), prompt("bad")
    made = (
        BasicGuider.execute(model, good)
        if guider == "BasicGuider"
        else DualCFGGuider.execute(model, good, good, bad, 3.5, 2.0, "regular")
    )
    with pytest.raises(MuseVError, match="Set Guidance Schedule needs a guider"):
        advanced(model, RandomNoise.execute(1), clip(), made)
    without = video_model()
    made.args[0].model_patcher, made.args[0].model_options = without, without.model_options
    assert torch.isfinite(advanced(without, RandomNoise.execute(1), clip(), made)["samples"]).all()
