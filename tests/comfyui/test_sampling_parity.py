"""KSampler with MuseV's nodes gives the numbers of the original's loop (comfyui.md A6)."""

import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from musev_pack.nodes.host.options import MotionOptions
from musev_pack.nodes.host.patching import with_options
from support.golden_comfy import conditioning, golden_base, golden_motion, goldens

from musev_core.denoise.noise import NoiseOptions
from musev_core.denoise.windows import WindowOptions

SCALE = 0.18215


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("motion")


def run(model, case, arrays, *, sampler="euler", scheduler="normal", seed=None):
    """The case through ComfyUI's KSampler; latents as the nodes have them, unscaled."""
    clean = torch.from_numpy(arrays["condition_latents"])[0].transpose(0, 1) / SCALE  # (n, 4, h, w)
    frames = clean.shape[0] + case["num_frames"]
    latents = torch.zeros(frames, *clean.shape[1:])
    latents[: len(clean)] = clean
    mask = torch.ones(frames, 1, *clean.shape[2:])
    mask[: len(clean)] = 0
    text = torch.from_numpy(arrays["text_context"])
    out = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latents, case["generator_seed"]),
        case["num_inference_steps"],
        case["guidance_start"],
        sampler,
        scheduler,
        conditioning(text[1:]),
        conditioning(text[:1]),
        latents,
        noise_mask=mask,
        seed=case["generator_seed"],
    )
    return latents, out


def test_ksampler_with_euler_equals_the_original(folder):
    case = goldens().by_id["pipeline_musev_comfy_euler"]
    arrays = goldens().arrays(case)
    model = with_options(
        golden_base(),
        motion=MotionOptions(golden_motion("musev", folder), case["motion_speed"]),
        windows=WindowOptions(case["window_length"], case["window_overlap"], case["window_schedule"]),
        noise=NoiseOptions(case["noise_type"], case["individual_noise_weight"], case["image_noise_weight"]),
        original_scaling=True,
    )
    latents, out = run(model, case, arrays)
    expected = torch.from_numpy(arrays["final_latents"])[0].transpose(0, 1)
    assert torch.equal(out[:1], latents[:1])
    difference = (out * SCALE - expected).abs().max().item()
    print(difference, expected.std().item())
    assert difference < 1e-2
