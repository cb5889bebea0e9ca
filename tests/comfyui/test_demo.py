"""Load MuseV Demo: the model inside the pack, as ComfyUI's own objects."""

import copy
from dataclasses import replace

import comfy.latent_formats
import latent_preview
import numpy as np
import pytest
import torch
from nodes import NODE_CLASS_MAPPINGS, CLIPTextEncode, ControlNetApplyAdvanced, VAEDecode, VAEEncode
from support.comfy_workflows import api, executed, of_class

from musev_core.demo.model import load_networks
from musev_core.demo.showcase import make_film, standard_films
from musev_pack.nodes.conditioning import ImageToVideo
from musev_pack.nodes.loaders import LoadDemo
from musev_pack.nodes.motion import ApplyMotion
from musev_pack.nodes.reference import ApplyIPAdapter, ApplyReferenceNet
from musev_pack.nodes.sampling import SampleVideo

NODES = (LoadDemo, ImageToVideo, ApplyMotion, ApplyReferenceNet, ApplyIPAdapter, SampleVideo)
OURS = {cls.define_schema().node_id: cls for cls in NODES}


@pytest.fixture(scope="module")
def outputs():
    names = ("model", "clip", "vae", "motion", "reference_net", "ip_adapter", "clip_vision", "control_net", "image")
    return dict(zip(names, LoadDemo.execute().result, strict=True))


@pytest.fixture(scope="module")
def networks():
    return load_networks()


def rounded(net: torch.nn.Module) -> torch.nn.Module:
    """With weights that survive half precision: ComfyUI keeps text encoders in it, and the package's are in it."""
    return copy.deepcopy(net).half().float()


def test_the_vae_is_the_pipelines(outputs, networks):
    pixels = outputs["image"]
    (latent,) = VAEEncode().encode(outputs["vae"], pixels)
    ours = networks.vae.encode((pixels * 2 - 1).permute(0, 3, 1, 2)).latent_dist.mean
    assert torch.allclose(latent["samples"], ours, atol=1e-4)
    (decoded,) = VAEDecode().decode(outputs["vae"], latent)
    theirs = networks.vae.decode(ours).sample.permute(0, 2, 3, 1) / 2 + 0.5
    assert torch.allclose(decoded, theirs.clamp(0, 1), atol=1e-4)


def test_the_text_encoder_is_the_pipelines(outputs, networks):
    from musev_core.demo.vocabulary import DemoTokenizer
    from musev_core.encode.text import encode_prompts

    caption = "a red ball moves to the left"
    ((theirs, _),) = CLIPTextEncode().encode(outputs["clip"], caption)[0]
    ours = encode_prompts(DemoTokenizer(), rounded(networks.text_encoder), [caption], [""])
    assert torch.allclose(theirs, ours[1:], atol=1e-4)


def test_a_quick_preview_has_the_colors_of_the_picture(outputs):
    (latent,) = VAEEncode().encode(outputs["vae"], outputs["image"])
    model = outputs["model"].model
    formats = model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(formats.latent_rgb_factors, formats.latent_rgb_factors_bias)
    preview = previewer.decode_latent_to_preview(model.process_latent_in(latent["samples"]))
    seen = torch.from_numpy(np.array(preview.resize((8, 8)))).float() / 255
    wanted = torch.nn.functional.avg_pool2d(outputs["image"].permute(0, 3, 1, 2), 8)[0].permute(1, 2, 0)
    assert (seen - wanted).abs().mean() < 0.1
    assert formats.taesd_decoder_name is None and comfy.latent_formats.SD15().taesd_decoder_name


def test_the_image_encoder_is_the_pipelines(outputs, networks):
    encoded = outputs["clip_vision"].encode_image(outputs["image"])["image_embeds"]
    pixels = torch.from_numpy(np.array([0.48145466, 0.4578275, 0.40821073]))
    deviation = torch.from_numpy(np.array([0.26862954, 0.26130258, 0.27577711]))
    normed = ((outputs["image"] - pixels) / deviation).permute(0, 3, 1, 2).float()
    # ComfyUI embeds the patches in half precision
    assert torch.allclose(encoded, networks.image_encoder(normed).image_embeds, atol=2e-3)


def test_the_unet_is_the_pipelines(outputs, networks):
    from musev_core.models.conditions import ClipConditions

    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 64)
    unet = outputs["model"].model.diffusion_model
    theirs = unet(x, torch.tensor([500.0, 500.0]), context=text)
    ours = networks.unet(x[:, :, None], 500.0, ClipConditions(text), skip_temporal=True)[:, :, 0]
    assert torch.allclose(theirs, ours, atol=1e-4)


def test_a_whole_graph_of_the_demo_runs(outputs):
    encode = CLIPTextEncode()
    (positive,), (negative,) = (encode.encode(outputs["clip"], text) for text in ("a ball moves to the left", ""))
    latent = ImageToVideo.execute(outputs["vae"], outputs["image"], 64, 64, 6, "0", 1.0).result[0]
    hint = outputs["image"].repeat(6, 1, 1, 1)
    positive, negative = ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, outputs["control_net"], hint, 1.0, 0.0, 1.0
    )
    model = ApplyMotion.execute(outputs["model"], outputs["motion"], 8.0, 1.0, 0.0, 1.0).result[0]
    model = ApplyReferenceNet.execute(
        model, outputs["reference_net"], outputs["vae"], outputs["image"], 1.0, 0.0, 1.0, 0, 0
    ).result[0]
    model = ApplyIPAdapter.execute(
        model, outputs["ip_adapter"], outputs["clip_vision"], outputs["image"], 1.0, "concat", 0.0, 1.0
    ).result[0]
    out = SampleVideo.execute(model, positive, negative, latent, 1, 2, 3.5, "euler", "normal", 1.0).result[0]
    assert torch.equal(out["samples"][0], latent["samples"][0])
    (frames,) = VAEDecode().decode(outputs["vae"], out)
    assert frames.shape == (6, 64, 64, 3)
    assert torch.isfinite(frames).all()


def test_the_workflow_makes_the_film_that_the_command_makes(networks):
    """Same picture, caption, seed and numbers (comfyui.md A6: what is left is the order of float32 sums, amplified)."""
    graph = api("demo")
    (frames,) = executed(graph, of_class(graph, "VAEDecode"), NODE_CLASS_MAPPINGS | OURS, {})
    sampler = graph[of_class(graph, "MuseV_Sampler")]["inputs"]
    film = standard_films()[0]
    same_text = replace(networks, text_encoder=rounded(networks.text_encoder))
    made = make_film(same_text.pipeline(), film, seed=sampler["seed"])
    assert frames.shape == made.shape == (13, 64, 64, 3)
    assert torch.allclose(frames, made, atol=1e-2)
