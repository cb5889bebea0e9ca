"""Nothing is left behind: not in the user's MODEL, not after an error, not from run to run (comfyui.md A8)."""

import copy
import gc
import weakref

import comfy.samplers
import pytest
import torch
from support.golden_comfy import GoldenVAE
from support.small_comfy import (
    MUSEV,
    REFERENCENET,
    HintNet,
    Vision,
    adapter,
    base,
    clip,
    control_net,
    controlled,
    difference,
    ksample,
    motion,
    numbered,
    pictures,
    prompt,
    reference_net,
    video_model,
)

from musev_core.denoise.noise import NoiseOptions
from musev_core.denoise.windows import WindowOptions
from musev_pack.nodes.host.options import KEY, ImagePromptOptions, ReferenceOptions, options_of
from musev_pack.nodes.host.patching import with_options

PICTURES = {"samples": torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(2))}


def pictured(model=None):
    """A MODEL with everything on it."""
    return video_model(
        model,
        variant=REFERENCENET,
        reference=ReferenceOptions(reference_net(), GoldenVAE(), pictures(1)),
        image_prompt=ImagePromptOptions(adapter("plain", layers=False), Vision(), pictures(1)),
        noise=NoiseOptions(),
    )


def control() -> tuple[list, list]:
    return controlled(prompt("good"), prompt("bad"), control_net(HintNet()), numbered(7))


def test_the_users_model_gives_the_same_pictures_before_and_after():
    users = base()
    before = ksample(users, PICTURES, cfg=3.5)
    options, patches = dict(users.model_options), dict(users.patches)
    moving = pictured(users)
    assert torch.equal(ksample(users, PICTURES, cfg=3.5), before)
    ksample(moving, clip(), *control(), cfg=3.5)
    assert torch.equal(ksample(users, PICTURES, cfg=3.5), before)
    assert (users.model_options, users.patches) == (options, patches)
    assert users.get_attachment(KEY) is None and not users.wrappers


def test_base_weights_exist_once():
    users = base()
    weights = {name: p.data_ptr() for name, p in users.model.named_parameters()}
    moving = pictured(users)
    ksample(moving, clip())
    assert moving.model is users.model
    assert {name: p.data_ptr() for name, p in users.model.named_parameters()} == weights
    # those of the motion model are its own, and none of the base is among them
    assert not set(weights.values()) & {p.data_ptr() for p in motion(REFERENCENET).tree.parameters()}


def test_a_changed_clone_leaves_its_original_alone():
    first = video_model()
    before, options = ksample(first, clip()), options_of(first)
    second = with_options(first, windows=WindowOptions(3, 0), noise=NoiseOptions())
    assert options_of(first) is options
    assert options_of(second).motion is options.motion and options_of(second).windows.length == 3
    assert difference(ksample(second, clip()), before) > 0.1
    assert torch.equal(ksample(first, clip()), before)


def test_two_motion_models_on_one_base_take_turns():
    users = base()
    one, two = video_model(users, variant=MUSEV), video_model(users, variant=REFERENCENET)
    outs = [(ksample(one, clip(), cfg=3.5), ksample(two, clip(), cfg=3.5)) for _ in range(2)]
    assert torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1], outs[1][1])
    assert difference(*outs[0]) > 0.1


class Broken(Exception):
    pass


def breaking(model, at: int):
    """The MODEL with a patch of another pack that fails at its n-th call."""
    calls = []

    def patch(q, k, v, extra):
        calls.append(1)
        if len(calls) == at:
            raise Broken
        return q, k, v

    broken = model.clone()
    broken.set_model_attn2_patch(patch)
    return broken


@pytest.mark.parametrize("at", [1, 4])
def test_an_error_while_sampling_leaves_everything_as_it_was(at):
    users = base()
    moving = pictured(users)
    pictures_before, video_before = ksample(users, PICTURES, cfg=3.5), ksample(moving, clip(), *control(), cfg=3.5)
    broken = breaking(moving, at)
    with pytest.raises(Broken):
        ksample(broken, clip(), *control(), cfg=3.5)
    for model in (users, moving, broken):
        assert KEY not in model.model_options.get("transformer_options", {})
    assert torch.equal(ksample(users, PICTURES, cfg=3.5), pictures_before)
    assert torch.equal(ksample(moving, clip(), *control(), cfg=3.5), video_before)


def test_an_error_in_the_callback_of_a_node_too():
    moving, latent = video_model(), clip()
    before = ksample(moving, latent)
    guider = comfy.samplers.CFGGuider(moving)
    guider.set_conds(prompt("good"), prompt("bad"))

    def fails(*_):
        raise Broken

    sigmas = torch.tensor([2.0, 1.0, 0.0])
    with pytest.raises(Broken):
        guider.sample(
            torch.randn(7, 4, 4, 4), latent["samples"], comfy.samplers.sampler_object("euler"), sigmas, callback=fails
        )
    assert KEY not in guider.model_options.get("transformer_options", {})
    assert torch.equal(ksample(moving, latent), before)


def test_inputs_are_not_written_to():
    latent, (positive, negative) = clip(), control()
    given = [latent["samples"], latent["noise_mask"], positive[0][0], negative[0][0]]
    hints = positive[0][1]["control"].cond_hint_original
    before = [x.clone() for x in (*given, hints)]
    ksample(pictured(), latent, positive, negative, cfg=3.5)
    for x, y in zip((*given, hints), before, strict=True):
        assert torch.equal(x, y)
    assert set(latent) == {"samples", "noise_mask"}
    assert positive[0][1]["control"].cond_hint_original is hints


class Watching:
    """Weak references to what a run holds."""

    def __init__(self, model):
        self.held: dict[str, weakref.ref] = {}
        self.model = model.clone()
        self.model.add_wrapper_with_key("calc_cond_batch", "watching", self)

    def __call__(self, executor, network, conds, x, timestep, model_options):
        out = executor(network, conds, x, timestep, model_options)
        run = model_options["transformer_options"][KEY]
        (view,) = run._views.values()
        clips = next(iter(run._clips.values()))
        for name, held in (("run", run), ("network", view.net), ("constants", clips), ("features", run.features)):
            self.held[name] = weakref.ref(held)
        self.held["hints"] = weakref.ref(next(iter(run.controls.copies.values()))[1])
        return out


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
def test_what_a_run_has_made_is_gone_with_it(sampler):
    watching = Watching(pictured())
    gc.disable()
    try:
        ksample(watching.model, clip(), *control(), cfg=3.5, sampler=sampler)
        left = [name for name, held in watching.held.items() if held() is not None]
    finally:
        gc.enable()
    assert len(watching.held) == 5
    assert left == []  # at once, not only when Python looks for cycles


def alive() -> tuple[int, int]:
    gc.collect()
    objects = gc.get_objects()
    return sum(issubclass(type(x), torch.Tensor) for x in objects), len(objects)


def test_run_after_run_nothing_grows():
    users, counts = base(), []
    for i in range(8):
        ksample(pictured(users), clip(7 + i % 2), cfg=3.5, seed=i)
        ksample(video_model(users), clip(), *control(), seed=i, sampler="lcm")
        counts.append(alive())
    tensors, objects = zip(*counts[2:], strict=True)
    assert len(set(tensors)) == 1
    assert max(objects) - min(objects) < 50


def test_copies_of_a_models_options_copy_no_tensor_of_ours():
    """ComfyUI before 0.30 copies them deeply at every clone."""
    moving = pictured()
    tensors, _ = alive()
    copies = [copy.deepcopy(moving.model_options) for _ in range(3)]
    assert alive()[0] == tensors
    assert all(x["context_handler"] is moving.model_options["context_handler"] for x in copies)
    clones = [moving.clone() for _ in range(3)]
    assert alive()[0] == tensors
    assert all(options_of(x) is options_of(moving) for x in clones)
    assert copy.deepcopy(options_of(moving)) is options_of(moving)
