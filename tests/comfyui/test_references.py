"""ReferenceNet, IP-Adapter and FaceID inside ComfyUI: looked at once, at the start of a run (issue 4, point 7)."""

from dataclasses import replace
from itertools import permutations

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    DualCFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_perpneg import PerpNegGuider
from support.golden_comfy import SCALE, GoldenVAE
from support.small_comfy import (
    MUSEV,
    REFERENCENET,
    SIZE,
    Vision,
    adapter,
    adapter_attention,
    base,
    clip,
    core_reference_net,
    core_sample,
    difference,
    ksample,
    motion,
    pictures,
    prompt,
    reference_net,
    sample_sigmas,
    unet,
    video_model,
)

from musev_core.denoise.windows import WindowOptions
from musev_core.errors import MuseVError
from musev_core.models.conditions import ClipConditions
from musev_core.models.unet import MuseVUNet
from musev_core.weights.keymaps import ip_attention_names
from musev_pack.nodes.host.options import FaceOptions, ImagePromptOptions, MotionOptions, ReferenceOptions, Span
from musev_pack.nodes.motion import ApplyMotion, ContextWindows, Noise
from musev_pack.nodes.reference import ApplyIPAdapter, ApplyReferenceNet

SIGMAS = [1.0, 0.4, 0.0]


def reference(images=None, **options) -> ReferenceOptions:
    return ReferenceOptions(reference_net(), GoldenVAE(), pictures(1) if images is None else images, **options)


def image_prompt(images=None, kind="plain", layers=False, vision=None, **options) -> ImagePromptOptions:
    images = pictures(1) if images is None else images
    return ImagePromptOptions(adapter(kind, layers=layers), vision or Vision(), images, **options)


def face(**options) -> FaceOptions:
    embeddings = torch.nn.functional.normalize(pictures(2, 4).flatten(1)[:, :16])
    return FaceOptions(adapter("faceid"), embeddings, **options)


def model(variant=REFERENCENET, **options):
    return video_model(variant=variant, **options)


def run(steps=2, cfg=3.5, **options) -> torch.Tensor:
    return ksample(model(**options), clip(), steps=steps, cfg=cfg)


# ---- once, and under ComfyUI's management ---------------------------------------------------------------------------


def test_pictures_are_looked_at_once_a_run():
    calls, vision = [], Vision()
    handle = reference_net().net.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape))
    try:
        many = model(reference=reference(), image_prompt=image_prompt(vision=vision), windows=WindowOptions(4, 1))
        ksample(many, clip(11), steps=3, cfg=3.5)
        assert calls == [(2, 4, 1, 4, 4)] and vision.seen == 1
        ksample(many, clip(11), steps=1, cfg=1.0)
        assert len(calls) == 2 and vision.seen == 2
    finally:
        handle.remove()


def test_pictures_are_fitted_to_a_wide_clip_and_memory_is_asked_for_all_of_them(monkeypatch):
    calls, shapes = [], []
    latent = {name: x[..., :1].expand(*x.shape[:-1], 2 * SIZE) for name, x in clip().items()}
    pictured = model(reference=reference(pictures(3)))
    needed = pictured.model.memory_required
    monkeypatch.setattr(pictured.model, "memory_required", lambda x, *a, **k: shapes.append(x) or needed(x, *a, **k))
    handle = reference_net().net.register_forward_pre_hook(lambda _, args: calls.append(tuple(args[0].shape)))
    try:
        ksample(pictured, latent, steps=1, cfg=3.5)
    finally:
        handle.remove()
    assert calls == [(2, 4, 3, SIZE, 2 * SIZE)]
    assert list(shapes[0]) == [2 * 3, 4, SIZE, 2 * SIZE]  # the first question is the reference's


def test_the_reference_net_is_loaded_by_comfyui_before_the_model(monkeypatch):
    loaded = []
    load = comfy.model_management.load_models_gpu

    def recording(models, *args, **kwargs):
        loaded.append([patcher.model for patcher in models])
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", recording)
    pictured = model(reference=reference())
    ksample(pictured, clip(), steps=1)
    assert loaded == [[reference_net().net], [pictured.model, motion(REFERENCENET).tree]]


# ---- the core's numbers ----------------------------------------------------------------------------------------------


def tokens_of(given: ImagePromptOptions) -> torch.Tensor:
    """Negative and positive image tokens `(2, tokens, dim)` by the core's projection."""
    embeds = given.clip_vision.encode_image(given.images)["image_embeds"]
    project = given.adapter.projection
    return torch.stack([project(torch.zeros_like(embeds)).flatten(0, 1), project(embeds).flatten(0, 1)])


def features_of(given: ReferenceOptions, context: torch.Tensor, size: int = 32):
    images = torch.nn.functional.interpolate(given.images.movedim(-1, 1), (size, size)).movedim(1, -1)
    latents = (GoldenVAE().encode(images) * SCALE).transpose(0, 1)[None].expand(2, -1, -1, -1, -1)
    return core_reference_net()(latents, context)


def against_core(*, variant=REFERENCENET, network=None, latent=None, conditions, **options) -> float:
    """The difference between a guided run in ComfyUI and the core's with these conditions besides the text."""
    latent = latent or clip()
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(5))
    good, bad = prompt("good"), prompt("bad")
    ours = sample_sigmas(model(variant, **options), SIGMAS, noise, latent, good, bad, cfg=3.5)
    text = torch.cat([bad[0][0], good[0][0]])
    core = core_sample(
        ClipConditions(text=text, **conditions), SIGMAS, noise, latent, cfg=3.5, variant=variant, network=network
    )
    return difference(ours, core)


TEXT = torch.cat([prompt("bad")[0][0], prompt("good")[0][0]])
CLOSE = 1e-3  # see test_windows.py


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_reference_pictures_with_the_text(count, strength):
    given = reference(pictures(count), strength=strength)
    conditions = {"reference": features_of(given, TEXT), "reference_scale": strength}
    assert against_core(reference=given, conditions=conditions) < CLOSE


@pytest.mark.parametrize("count", [1, 2])
def test_reference_pictures_with_image_tokens_in_place_of_the_text(count):
    given, prompted = reference(pictures(2)), image_prompt(pictures(count, seed=1), weight=0.7)
    tokens = tokens_of(prompted)
    conditions = {"reference": features_of(given, tokens), "image_tokens": tokens, "image_scale": 0.7}
    assert against_core(reference=given, image_prompt=prompted, conditions=conditions) < CLOSE


def test_reference_pictures_of_a_size_of_their_own():
    given = reference(pictures(1, 64), width=64, height=64)
    conditions = {"reference": features_of(given, TEXT, 64)}
    assert against_core(reference=given, conditions=conditions) < CLOSE
    assert against_core(reference=replace(given, width=0, height=0), conditions=conditions) > 10 * CLOSE


@pytest.mark.parametrize("variant", [MUSEV, REFERENCENET])
def test_an_adapter_file_brings_its_layers_to_any_motion_model(variant):
    given = image_prompt(pictures(2), layers=True)
    network = MuseVUNet(replace(unet(variant).config, image_prompt=True)).eval().requires_grad_(False)
    own = ip_attention_names(adapter_attention("plain"), config=unet(variant).config)
    network.load_state_dict({**unet(variant).state_dict(), **own})
    conditions = {"image_tokens": tokens_of(given)}
    assert against_core(variant=variant, network=network, image_prompt=given, conditions=conditions) < CLOSE


def test_a_resampler_sees_grey_as_nothing():
    """IP-Adapter plus: the negative prompt's picture is what CLIP subtracts."""
    grey = torch.tensor([0.48145466, 0.4578275, 0.40821073]).expand(1, 32, 32, 3)
    vision, given = Vision(), image_prompt(kind="plus", layers=True)
    tokens = torch.cat(
        [given.adapter.projection(vision.encode_image(x)["penultimate_hidden_states"]) for x in (grey, given.images)]
    )
    network = MuseVUNet(replace(unet(MUSEV).config, image_prompt=True)).eval().requires_grad_(False)
    own = ip_attention_names(adapter_attention("plus"), config=unet(MUSEV).config)
    network.load_state_dict({**unet(MUSEV).state_dict(), **own})
    conditions = {"image_tokens": tokens}
    assert against_core(variant=MUSEV, network=network, image_prompt=given, conditions=conditions) < CLOSE


def test_a_face_beside_an_image_prompt():
    given, faced = image_prompt(), face(weight=0.8)
    project = faced.adapter.projection
    face_tokens = torch.stack(
        [project(x).flatten(0, 1) for x in (torch.zeros_like(faced.embeddings), faced.embeddings)]
    )
    network = MuseVUNet(replace(unet(REFERENCENET).config, face_prompt=True)).eval().requires_grad_(False)
    own = ip_attention_names(adapter_attention("faceid"), face=True, config=unet(REFERENCENET).config)
    network.load_state_dict({**unet(REFERENCENET).state_dict(), **own})
    conditions = {"image_tokens": tokens_of(given), "face_tokens": face_tokens, "face_scale": 0.8}
    assert against_core(network=network, image_prompt=given, face=faced, conditions=conditions) < CLOSE


# ---- strengths, spans, masks -----------------------------------------------------------------------------------------

PICTURES = {
    "reference": lambda **options: {"reference": reference(**options)},
    "image prompt": lambda **options: {"image_prompt": image_prompt(**options)},
    "face": lambda **options: {"face": face(**options)},
}
SCALES = {"reference": "strength", "image prompt": "weight", "face": "weight"}


@pytest.mark.parametrize("what", PICTURES)
def test_without_strength_or_outside_its_steps_a_picture_is_not_there(what):
    without = run(steps=2)
    assert torch.equal(run(steps=2, **PICTURES[what](**{SCALES[what]: 0.0})), without)
    assert torch.equal(run(steps=2, **PICTURES[what](span=Span(0.99, 0.995))), without)
    assert difference(run(steps=2, **PICTURES[what]()), without) > 1e-3


@pytest.mark.parametrize("what", PICTURES)
def test_a_picture_for_the_first_half_equals_two_stages(what):
    latent = clip()
    whole = ksample(model(**PICTURES[what](span=Span(0.0, 0.5))), latent, steps=4, cfg=3.5)
    first = ksample(model(**PICTURES[what]()), latent, steps=4, cfg=3.5, start_step=0, last_step=2)
    rest = {"steps": 4, "cfg": 3.5, "start_step": 2, "last_step": 4, "disable_noise": True}
    assert difference(whole, ksample(model(), {**latent, "samples": first}, **rest)) < CLOSE


def test_a_mask_says_where_an_image_prompt_acts():
    everywhere, nowhere, half = torch.ones(1, 32, 32), torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    half[..., :16] = 1
    full, none = run(image_prompt=image_prompt()), run()
    assert difference(run(image_prompt=image_prompt(mask=everywhere)), full) < 1e-5
    assert difference(run(image_prompt=image_prompt(mask=nowhere)), none) < 1e-5
    some = run(image_prompt=image_prompt(mask=half))
    # the changed half is nearer to the picture everywhere, the other half nearer to none
    left, right = some[1:, ..., :2], some[1:, ..., 2:]
    assert (left - full[1:, ..., :2]).abs().mean() < (left - none[1:, ..., :2]).abs().mean()
    assert (right - none[1:, ..., 2:]).abs().mean() < (right - full[1:, ..., 2:]).abs().mean()


def test_masks_per_frame_follow_the_windows():
    """With windows of one frame and no condition frame, frames know nothing of each other."""
    latent, alone = {"samples": torch.zeros(5, 4, 4, 4)}, WindowOptions(1, 0)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])[:, None, None].expand(-1, 32, 32)

    def sampled(**options):
        return ksample(model(windows=alone, **options), latent, cfg=3.5)

    full, none, some = sampled(image_prompt=image_prompt()), sampled(), sampled(image_prompt=image_prompt(mask=mask))
    for frame, given in enumerate((full, none, full, none, none)):
        assert difference(some[frame], given[frame]) < 1e-5
    assert difference(full, none) > 1e-3


def test_masks_of_another_number_are_refused():
    with pytest.raises(MuseVError, match="mask of Apply IP-Adapter has 3 frames, the clip has 7"):
        run(image_prompt=image_prompt(mask=torch.ones(3, 32, 32)))


# ---- several pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_the_same_picture_twice_is_that_picture(kind):
    one, two = pictures(1), pictures(1).expand(2, -1, -1, -1)
    once = run(image_prompt=image_prompt(one, kind, layers=True))
    for combine in ("average", "concat"):
        assert difference(run(image_prompt=image_prompt(two, kind, layers=True, combine=combine)), once) < 1e-4


@pytest.mark.parametrize("combine", ["average", "concat"])
def test_the_order_of_the_pictures_is_irrelevant(combine):
    images = pictures(3)
    outs = [run(image_prompt=image_prompt(images[list(p)], combine=combine)) for p in list(permutations(range(3)))[:2]]
    assert difference(*outs) < 1e-4
    assert difference(run(image_prompt=image_prompt(images[:2], combine=combine)), outs[0]) > 1e-3


def test_average_and_concat_are_different():
    images = pictures(3)
    outs = [run(image_prompt=image_prompt(images, combine=combine)) for combine in ("average", "concat")]
    assert difference(*outs) > 1e-3


# ---- nodes and guiders -----------------------------------------------------------------------------------------------


def test_the_order_of_the_nodes_is_irrelevant():
    applied = [
        lambda m: ApplyMotion.execute(m, motion(REFERENCENET), 8.0, 1.0, 0.0, 1.0),
        lambda m: ContextWindows.execute(m, 4, 1, "uniform_v2", "linear", 0),
        lambda m: Noise.execute(m, "video_fusion", 0.5, 0.001, False),
        lambda m: ApplyReferenceNet.execute(m, reference_net(), GoldenVAE(), pictures(1), 1.0, 0.0, 1.0, 0, 0),
        lambda m: ApplyIPAdapter.execute(
            m, adapter("plain", layers=False), Vision(), pictures(1), 1.0, "concat", 0.0, 1.0
        ),
    ]
    outs = []
    for order in (applied, applied[::-1], applied[2:] + applied[:2]):
        chained = base()
        for node in order:
            (chained,) = node(chained).args
        outs.append(ksample(chained, clip(), cfg=3.5))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_the_same_node_twice_is_refused():
    pictured = model(reference=reference())
    with pytest.raises(MuseVError, match="already has an Apply ReferenceNet"):
        ApplyReferenceNet.execute(pictured, reference_net(), GoldenVAE(), pictures(1), 1.0, 0.0, 1.0, 0, 0)


def test_pictures_belong_to_the_positive_prompt_whatever_the_guider():
    """PerpNeg evaluates three conditionings, Dual CFG begins with the negative one."""
    pictured, good, bad = model(reference=reference(), image_prompt=image_prompt()), prompt("good"), prompt("bad")
    guiders = {
        "cfg": CFGGuider.execute(pictured, good, bad, 3.5),
        "perp-neg": PerpNegGuider.execute(pictured, good, prompt("other"), bad, 3.5, 0.0),
        "dual cfg": DualCFGGuider.execute(pictured, good, good, bad, 1.0, 3.5, "regular"),
        "dual cfg, nested": DualCFGGuider.execute(pictured, good, good, bad, 1.0, 3.5, "nested"),
    }
    (sigmas,), (sampler,) = (
        BasicScheduler.execute(pictured, "normal", 2, 1.0).args,
        KSamplerSelect.execute("euler").args,
    )
    outs = {}
    for name, guider in guiders.items():
        (noise,) = RandomNoise.execute(1).args
        outs[name] = SamplerCustomAdvanced.execute(noise, guider.args[0], sampler, sigmas, clip()).args[0]["samples"]
    for name in guiders:
        assert difference(outs[name], outs["cfg"]) < CLOSE, name


def test_without_guidance_the_negative_prompt_is_not_needed():
    """Pictures for a BasicGuider, which has a positive prompt alone."""
    from comfy_extras.nodes_custom_sampler import BasicGuider

    pictured = model(reference=reference(), image_prompt=image_prompt())
    (guider,) = BasicGuider.execute(pictured, prompt("good")).args
    (sigmas,) = BasicScheduler.execute(pictured, "normal", 2, 1.0).args
    (sampler,), (noise,) = KSamplerSelect.execute("euler").args, RandomNoise.execute(1).args
    out = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, clip()).args[0]["samples"]
    assert difference(out, ksample(pictured, clip(), cfg=1.0)) < 1e-5


def test_a_motion_model_of_no_strength_leaves_pictures_alone():
    """As if the nodes were not there: nothing is loaded or computed for them."""
    vision = Vision()
    still = model(motion=MotionOptions(motion(REFERENCENET), strength=0.0), image_prompt=image_prompt(vision=vision))
    assert torch.equal(ksample(still, clip(), cfg=3.5), ksample(base(), clip(), cfg=3.5))
    assert vision.seen == 0
