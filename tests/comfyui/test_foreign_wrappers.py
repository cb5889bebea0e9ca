"""Functions of other packs around the network: what they may do, and the sentence about what breaks windows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_extras.nodes_attention_multiply import UNetSelfAttentionMultiply, UNetTemporalAttentionMultiply
from support.small_comfy import base, clip, difference, ksample, prompt, video_model

from musev_core.denoise.noise import NoiseOptions
from musev_core.errors import MuseVError

FRAMES = 7


def call(function: Any, given: dict[str, Any], rows: Any = slice(None)) -> torch.Tensor:
    """The network on some of the rows."""
    inputs = {name: x[rows] if isinstance(x, torch.Tensor) else x for name, x in given["c"].items()}
    return function(given["input"][rows], given["timestep"][rows], **inputs)


def tiles_side_by_side(function, given):
    """As Tiled Diffusion with several tiles in a batch: the upper and the lower half."""
    half = given["input"].shape[2] // 2
    inputs = {name: torch.cat([x, x]) if isinstance(x, torch.Tensor) else x for name, x in given["c"].items()}
    tiles = torch.cat([given["input"][:, :, :half], given["input"][:, :, half:]])
    upper, lower = function(tiles, torch.cat([given["timestep"]] * 2), **inputs).chunk(2)
    return torch.cat([upper, lower], dim=2)


def frame_by_frame(function, given):
    return torch.cat([call(function, given, slice(i, i + 1)) for i in range(len(given["input"]))])


def branches_apart(function, given):
    """Both conditionings one after the other, without a word about it."""
    half = len(given["input"]) // 2
    return torch.cat([call(function, given, slice(half)), call(function, given, slice(half, None))])


def a_prompt_for_all(function, given):
    return function(given["input"], given["timestep"], **{**given["c"], "c_crossattn": given["c"]["c_crossattn"][:1]})


def no_prompt(function, given):
    return function(given["input"], given["timestep"], **{**given["c"], "c_crossattn": None})


def remembered(function, given):
    return torch.zeros_like(given["input"])


def half_of_a_window(executor, model, conds, x, timestep, options):
    """As AnimateDiff-Evolved cuts windows."""
    parts = [executor(model, conds, x[i : i + 2], timestep[i : i + 2], options) for i in range(0, len(x), 2)]
    return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]


def half_of_the_clip(executor, x, timestep, *args, **kwargs):
    return torch.cat([executor(x[i : i + 4], timestep[i : i + 4], *args, **kwargs) for i in (0, 4)])


def past_the_conditionings(executor, x, timestep, model_options, *args, **kwargs):
    guider = executor.class_obj
    (cond,) = guider.conds["positive"]
    text = cond["model_conds"]["c_crossattn"].cond.expand(len(x), -1, -1)
    options = {**model_options["transformer_options"], "cond_or_uncond": [0], "sigmas": timestep}
    return guider.inner_model.apply_model(x, timestep, c_crossattn=text, transformer_options=options)


def around(function: Any) -> Any:
    def node(model: Any) -> Any:
        new = model.clone()
        new.set_model_unet_function_wrapper(function)
        return new

    return node


def wrapped(kind: str, function: Any) -> Any:
    def node(model: Any) -> Any:
        new = model.clone()
        new.add_wrapper_with_key(kind, "another_pack", function)
        return new

    return node


WRONG = "model_function_wrapper .*test_foreign_wrappers.{}.* calls the network with .*Remove it"
OTHERS = {
    "tiles": (around(tiles_side_by_side), WRONG.format("tiles_side_by_side") + ".*tile_batch_size of 1"),
    "frames": (around(frame_by_frame), WRONG.format("frame_by_frame")),
    "branches": (around(branches_apart), WRONG.format("branches_apart")),
    "one prompt": (around(a_prompt_for_all), WRONG.format("a_prompt_for_all")),
    "no prompt": (around(no_prompt), WRONG.format("no_prompt")),
    "cache": (around(remembered), "test_foreign_wrappers.remembered.* instead of calling the network.*Remove it"),
    "windows in windows": (
        wrapped("calc_cond_batch", half_of_a_window),
        "calc_cond_batch 'another_pack' .*half_of_a_window.*Remove it. Context options of AnimateDiff-Evolved",
    ),
    "half of the clip": (
        wrapped("predict_noise", half_of_the_clip),
        "predict_noise 'another_pack' .*with 4 frames, where MuseV needs the 7 of the clip",
    ),
    "no windows": (
        wrapped("predict_noise", past_the_conditionings),
        "predict_noise 'another_pack' .*with 7 frames on its own, where MuseV needs context windows",
    ),
    "own forward": (wrapped("diffusion_model", lambda executor, x, *args, **kwargs: x), "diffusion_model 'another_pa"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_breaks_windows_is_named(name):
    node, words = OTHERS[name]
    moving = video_model()
    before = ksample(moving, clip(FRAMES), cfg=3.5)
    for model in (node(moving), video_model(node(base()))):
        with pytest.raises(MuseVError, match=words):
            ksample(model, clip(FRAMES), cfg=3.5)
    assert torch.equal(ksample(moving, clip(FRAMES), cfg=3.5), before)


def branches_announced(function, given):
    """Both conditionings one after the other, and each call says which it is."""
    outputs, half = [], len(given["input"]) // 2
    for number, rows in enumerate((slice(half), slice(half, None))):
        options = {**given["c"]["transformer_options"], "cond_or_uncond": [given["cond_or_uncond"][number]]}
        options["uuids"] = options["uuids"][number : number + 1]
        one = {**given, "c": {**given["c"], "transformer_options": options}}
        outputs.append(call(function, one, rows))
    return torch.cat(outputs)


def tile_by_tile(function, given):
    half = given["input"].shape[2] // 2
    tiles = (given["input"][:, :, :half], given["input"][:, :, half:])
    return torch.cat([function(tile, given["timestep"], **given["c"]) for tile in tiles], dim=2)


def test_conditionings_may_be_evaluated_one_by_one():
    moving = video_model()
    expected = ksample(moving, clip(FRAMES), cfg=3.5)
    assert difference(ksample(around(branches_announced)(moving), clip(FRAMES), cfg=3.5), expected) < 1e-4


def test_tiles_may_be_evaluated_one_by_one():
    """The network takes any size; tiles see only themselves, so the result is another one."""
    moving = video_model()
    latent = clip(FRAMES, size=8)
    tiled = ksample(around(tile_by_tile)(moving), latent, cfg=3.5)
    assert torch.isfinite(tiled).all() and difference(tiled, ksample(moving, latent, cfg=3.5)) > 0


def test_a_wrapper_may_have_nothing_to_do():
    """No conditioning acts at the noise level: the network is not called, and nobody is to blame."""
    moving = video_model()
    late = [[x, {"start_percent": 0.5, "end_percent": 1.0}] for x, _ in prompt("good")]
    assert torch.isfinite(ksample(moving, clip(FRAMES), late, late, cfg=1.0)).all()


# ------------------------------------------------------------------------ settings of other packs


def with_attachment(model: Any, name: str, value: Any) -> Any:
    new = model.clone()
    new.set_attachments(name, value)
    return new


def test_context_options_of_animatediff_evolved():
    settings = SimpleNamespace(context_options=SimpleNamespace(context_length=16))
    none = SimpleNamespace(context_options=SimpleNamespace(context_length=None))
    words = "AnimateDiff-Evolved has put context options .*ADE_params.*use Set Context Windows"
    with pytest.raises(MuseVError, match=words):
        video_model(with_attachment(base(), "ADE_params", settings))
    with pytest.raises(MuseVError, match=words):
        ksample(with_attachment(video_model(), "ADE_params", settings), clip(FRAMES))
    ksample(with_attachment(video_model(), "ADE_params", none), clip(FRAMES))


def test_a_multiplier_of_temporal_attention_which_cannot_find_ours():
    def node(model: Any) -> Any:
        return UNetTemporalAttentionMultiply.execute(model, 1.0, 2.0, 1.0, 2.0).result[0]

    words = "UNetTemporalAttentionMultiply on this MODEL .*Remove it: the strength of Apply MuseV Motion"
    with pytest.raises(MuseVError, match=words):
        video_model(node(base()))
    with pytest.raises(MuseVError, match=words):
        ksample(node(video_model()), clip(FRAMES))
    spatial = UNetSelfAttentionMultiply.execute(video_model(), 1.1, 1.0, 1.0, 1.2).result[0]
    with pytest.raises(MuseVError, match=words):
        ksample(node(spatial), clip(FRAMES))
    assert difference(ksample(spatial, clip(FRAMES)), ksample(video_model(), clip(FRAMES))) > 1e-4


def shuffled(executor, noise, *args, **kwargs):
    """As FreeNoise: the noise of the first frames again, in another order."""
    return executor(noise[torch.tensor([0, 1, 2, 3, 2, 0, 1])], *args, **kwargs)


@pytest.mark.parametrize("order", ["before", "after"])
def test_noise_of_another_node_makes_room_and_the_log_says_so(order, caplog):
    ours = {"noise": NoiseOptions()}
    node = wrapped("outer_sample", shuffled)
    model = video_model(node(base()), **ours) if order == "before" else node(video_model(**ours))
    out = ksample(model, clip(FRAMES))
    said = [record.getMessage() for record in caplog.records if "noise" in record.getMessage()]
    assert len(said) == 1
    assert "outer_sample 'another_pack'" in said[0] and "set noise_type of Set Video Noise to random" in said[0]
    caplog.clear()
    assert torch.equal(out, ksample(video_model(**ours), clip(FRAMES)))
    kept = ksample(node(video_model()), clip(FRAMES))
    assert difference(kept, ksample(video_model(), clip(FRAMES))) > 1e-3
    assert not caplog.records


def test_ancestral_noise_of_animatediff_evolved(caplog):
    settings = SimpleNamespace(ancestral_opts=object())
    ksample(with_attachment(video_model(noise=NoiseOptions()), "ADE_sample_settings", settings), clip(FRAMES))
    assert ["ADE_sample_settings" in record.getMessage() for record in caplog.records] == [True]


def test_ordinary_noise_is_not_worth_a_word(caplog):
    for sampler in ("euler", "lcm"):
        ksample(video_model(noise=NoiseOptions()), clip(FRAMES), sampler=sampler)
    assert not caplog.records
