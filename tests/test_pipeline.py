"""One run of the denoising loop, and the finished video, with the small real networks (musev.md 4 and 9)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import golden_models as models
from support.numbers import det, det_image

from musev_core.denoise.control import Control
from musev_core.denoise.denoiser import DenoiserOptions
from musev_core.denoise.noise import NoiseOptions, VideoNoise
from musev_core.denoise.windows import WindowOptions
from musev_core.encode.pictures import FacePromptEncoder, ImagePromptEncoder
from musev_core.encode.vae import decode_latents
from musev_core.errors import Cancelled, MuseVError
from musev_core.frames.images import match_histograms
from musev_core.frames.video import read_video
from musev_core.pipeline import ClipInputs, MuseVPipeline, Observer, SamplingOptions, StepInfo, VideoResult

PIXELS, LATENT = 32, 4  # height and width
OPTIONS = SamplingOptions(num_steps=2, denoiser=DenoiserOptions(windows=WindowOptions(length=4, overlap=1)))


def make_pipeline(arch: str = "musev", *, face: bool = False, **parts) -> Any:
    """A pipeline of the tiny networks; with `musev_referencenet` the side networks come along."""
    if arch == "musev_referencenet":
        parts.setdefault("reference_net", models.reference_net("tiny", 0))
        parts.setdefault("image_prompt", ImagePromptEncoder(models.image_encoder(0), models.projection("plain", 0)))
    if face:
        parts.setdefault("face_prompt", FacePromptEncoder(models.face_embeddings, models.projection("faceid", 0)))
    return MuseVPipeline(
        unet=parts.pop("unet", None) or models.unet(arch, "tiny", 0, face),
        vae=models.vae(0),
        tokenizer=models.StandInTokenizer(),
        text_encoder=models.text_encoder(0),
        **parts,
    )


def pictures(name: str, n: int = 1) -> torch.Tensor:
    """`(1, n, height, width, 3)` uint8."""
    return det_image(name, (1, 3, n, PIXELS, PIXELS)).permute(0, 2, 3, 4, 1)


def condition(n: int = 1, videos: int = 1) -> torch.Tensor:
    return det("condition", (videos, 4, n, LATENT, LATENT))


def clip(num_frames: int = 5, **changes: Any) -> Any:
    return replace(ClipInputs(["a girl sings"], ["ugly"], num_frames, PIXELS, PIXELS), **changes)


def sample(inputs: ClipInputs, options: SamplingOptions = OPTIONS, pipe: MuseVPipeline | None = None, **given):
    given.setdefault("noise", VideoNoise([0]))
    return (pipe or make_pipeline()).sample(inputs, options, **given)


@contextmanager
def calls(net: Any) -> Iterator[list[tuple]]:
    """The positional arguments of every call of a network inside the block."""
    recorded: list[tuple] = []
    hook = net.register_forward_pre_hook(lambda _, args: recorded.append(args))
    try:
        yield recorded
    finally:
        hook.remove()


def assert_different(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() > 1e-2


# ---- condition frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "places, frames",
    [(None, [0, 1]), ([0, 1], [0, 1]), ([0, -1], [0, 6]), ([-1, 0], [6, 0]), ([3, 4], [3, 4]), ([-2, -1], [5, 6])],
)
def test_condition_frames_leave_as_they_came(places, frames):
    given = condition(2)
    video = sample(clip(condition_latents=given, condition_frames=places))
    assert video.shape == (1, 4, 7, LATENT, LATENT)
    for i, frame in enumerate(frames):
        assert torch.equal(video[:, :, frame], given[:, :, i])
    assert video.isfinite().all()


def test_the_place_of_a_condition_frame_changes_the_video():
    generated = [
        sample(clip(condition_latents=condition(), condition_frames=[place]))[:, :, [i for i in range(6) if i != place]]
        for place in (0, 3, 5)
    ]
    assert_different(generated[0], generated[1])
    assert_different(generated[1], generated[2])


def test_without_condition_every_frame_is_generated():
    assert sample(clip()).shape == (1, 4, 5, LATENT, LATENT)
    assert sample(clip(1)).shape == (1, 4, 1, LATENT, LATENT)


@pytest.mark.parametrize(
    "places, message",
    [
        ([0], r"2 condition frames were given, but 1 frame numbers for them: \[0\]"),
        ([0, 1, 2], "2 condition frames were given, but 3 frame numbers"),
        ([0, 7], r"must lie in 0\.\.6 for a clip of 7 frames"),
        ([0, -7], "a condition frame is given twice"),
        ([0, -8], r"must lie in 0\.\.6 for a clip of 7 frames"),
    ],
)
def test_impossible_places_are_named_before_the_network_runs(places, message):
    pipe = make_pipeline()
    with calls(pipe.unet) as recorded, pytest.raises(MuseVError, match=message):
        sample(clip(condition_latents=condition(2), condition_frames=places), pipe=pipe)
    assert not recorded


def test_windows_at_once_do_not_change_the_video():
    inputs = clip(9, condition_latents=condition())
    at_once = replace(OPTIONS, denoiser=replace(OPTIONS.denoiser, windows_per_call=3, split_guidance=True))
    torch.testing.assert_close(sample(inputs, at_once), sample(inputs), atol=1e-3, rtol=1e-3)


# ---- guidance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("arch", ["musev", "musev_referencenet"])
def test_without_guidance_half_the_work_is_done_with_a_condition_frame_too(arch, scale):
    pipe = make_pipeline(arch)
    inputs = clip(4, condition_latents=condition(), reference_images=pictures("r"), image_prompts=pictures("i"))
    with calls(pipe.unet) as recorded:
        video = sample(inputs, replace(OPTIONS, guidance_scale=scale), pipe)
    assert video.isfinite().all()
    assert [args[0].shape[0] for args in recorded] == [1, 1]
    # the negative prompt plays no part
    other = replace(inputs, negative_prompts=["something else"])
    assert torch.equal(sample(other, replace(OPTIONS, guidance_scale=scale), pipe), video)


def test_the_negative_prompt_matters_with_guidance():
    assert_different(sample(clip()), sample(clip(negative_prompts=["something else"])))


def test_a_ramp_through_one_drops_the_unconditional_branch_on_its_way():
    pipe = make_pipeline()
    with calls(pipe.unet) as recorded:
        video = sample(clip(4), replace(OPTIONS, num_steps=3, guidance_scale=3, guidance_end=0), pipe)
    assert [args[2].rows for args in recorded] == [2, 2, 1]  # 3, 1.5, 0
    assert video.isfinite().all()
    # the last step is that of a run without guidance
    assert torch.equal(recorded[2][2].text, recorded[0][2].text[1:])


def test_no_guidance_is_the_limit_of_guidance():
    close = sample(clip(), replace(OPTIONS, guidance_scale=1.00001))
    torch.testing.assert_close(sample(clip(), replace(OPTIONS, guidance_scale=1.0)), close, atol=1e-3, rtol=1e-3)


# ---- noise, strength, schedulers -----------------------------------------------------------------------------------


def test_the_seed_decides():
    assert torch.equal(sample(clip()), sample(clip()))
    assert_different(sample(clip()), sample(clip(), noise=VideoNoise([1])))


def test_two_videos_at_once_equal_each_alone():
    pipe = make_pipeline("musev_referencenet")
    prompts = ["a girl sings", "a dog runs " * 40]  # two chunks of text, so both get as many
    inputs = clip(
        5,
        prompts=prompts,
        negative_prompts=["ugly " * 80, "blurry " * 80],
        condition_latents=condition(1, 2),
        reference_images=torch.cat([pictures("r0", 2), pictures("r1", 2)]),
        image_prompts=torch.cat([pictures("i0"), pictures("i1")]),
    )
    both = sample(inputs, pipe=pipe, noise=VideoNoise([1, 2]))
    for i in range(2):
        one = slice(i, i + 1)
        alone = replace(
            inputs,
            prompts=prompts[one],
            negative_prompts=inputs.negative_prompts[one],
            condition_latents=inputs.condition_latents[one],
            reference_images=inputs.reference_images[one],
            image_prompts=inputs.image_prompts[one],
        )
        got = sample(alone, pipe=pipe, noise=VideoNoise([i + 1]))
        torch.testing.assert_close(got, both[one], atol=2e-3, rtol=2e-3)
    assert_different(both[:1], both[1:])


@pytest.mark.parametrize("name", ["euler", "euler_leading", "ddim", "lcm"])
def test_every_scheduler_makes_a_video(name):
    steps: list[StepInfo] = []
    options = replace(OPTIONS, scheduler=name, num_steps=3)
    video = sample(clip(condition_latents=condition()), options, observer=Observer(on_step=steps.append))
    assert video.isfinite().all()
    assert len(steps) == 3
    assert [s.timestep for s in steps] == sorted((s.timestep for s in steps), reverse=True)


@pytest.mark.parametrize("strength, used", [(1.0, 5), (0.6, 3), (0.2, 1)])
def test_strength_takes_the_last_steps_of_the_run_and_of_the_guidance(strength, used):
    steps: list[StepInfo] = []
    options = replace(OPTIONS, num_steps=5, strength=strength, guidance_scale=9, guidance_end=0)
    pipe = make_pipeline()
    with calls(pipe.unet) as recorded:
        sample(clip(4, initial_latents=condition(4)), options, pipe, observer=Observer(on_step=steps.append))
    assert [(s.step, s.num_steps) for s in steps] == [(i, used) for i in range(used)]
    assert [args[2].rows for args in recorded] == [2, 2, 2, 2, 1][5 - used :]  # 9, 6.75, 4.5, 2.25, 0


def test_less_strength_stays_closer_to_the_given_video():
    given = condition(5)

    def distance(strength: float) -> float:
        options = replace(OPTIONS, num_steps=5, strength=strength, guidance_scale=1)
        return (sample(clip(initial_latents=given), options) - given).abs().mean().item()

    assert distance(0.2) < distance(0.6) < distance(1.0)


def test_strength_means_nothing_without_a_video_to_start_from():
    assert torch.equal(sample(clip(), replace(OPTIONS, strength=0.3)), sample(clip()))


def test_initial_latents_must_fit():
    with pytest.raises(MuseVError, match=r"shape \(1, 4, 5, 4, 4\), one per generated frame, got \(1, 4, 6, 4, 4\)"):
        sample(clip(initial_latents=condition(6)))


def test_the_picture_tints_the_noise_unless_a_video_is_given():
    def start(weight: float | None, **given) -> torch.Tensor:
        pipe = make_pipeline()
        with calls(pipe.unet) as recorded:
            options = replace(OPTIONS, num_steps=1, scheduler="ddim", noise=NoiseOptions(image_weight=weight))
            sample(clip(3, condition_latents=condition(), **given), options, pipe)
        return recorded[0][0][:1, :, 1:]

    plain, tinted = start(None), start(0.25)
    torch.testing.assert_close(tinted, 0.5 * condition() + 0.75**0.5 * plain)
    video = condition(3) + 1
    assert torch.equal(start(None, initial_latents=video), start(0.25, initial_latents=video))


# ---- prompts and pictures ------------------------------------------------------------------------------------------


def first_call(pipe: MuseVPipeline, inputs: ClipInputs, options: SamplingOptions = OPTIONS):
    """The constant inputs at the first call of the network."""
    with calls(pipe.unet) as recorded:
        sample(inputs, options, pipe)
    return recorded[0][2]


def test_negative_rows_come_first():
    pipe = make_pipeline("musev_referencenet", face=True)
    one = first_call(pipe, clip(2, image_prompts=pictures("i"), face_images=pictures("f")))
    swapped = clip(2, prompts=["ugly"], negative_prompts=["a girl sings"])
    other = first_call(pipe, swapped)
    assert torch.equal(one.text, other.text.flip(0))
    assert torch.equal(one.image_tokens[:1], pipe.image_prompt.unconditional(1))
    assert torch.equal(one.image_tokens[1:], pipe.image_prompt.tokens(pictures("i")[0], PIXELS, PIXELS))
    assert torch.equal(one.face_tokens[:1], pipe.face_prompt.unconditional(1))
    assert torch.equal(one.face_tokens[1:], pipe.face_prompt.tokens(pictures("f")[0]))


def test_several_reference_pictures_and_image_prompts_all_count():
    # more than one reference picture broke the original (musev.md 9.5)
    pipe = make_pipeline("musev_referencenet")
    references, prompts = pictures("r", 2), pictures("i", 3)
    inputs = clip(3, reference_images=references, image_prompts=prompts)
    given = first_call(pipe, inputs)
    assert given.image_tokens.shape == (2, 12, 32)
    assert given.reference.mid.shape[:2] == (2, 2)
    both = sample(inputs, pipe=pipe)
    assert both.isfinite().all()
    assert_different(both, sample(replace(inputs, reference_images=references[:, :1]), pipe=pipe))
    assert_different(both, sample(replace(inputs, image_prompts=prompts[:, :1]), pipe=pipe))


def test_the_reference_network_runs_once_with_image_tokens_or_else_the_text():
    pipe = make_pipeline("musev_referencenet")
    inputs = clip(9, reference_images=pictures("r"), image_prompts=pictures("i"))
    with calls(pipe.reference_net) as recorded:
        tokens = first_call(pipe, inputs).image_tokens
        text = first_call(pipe, replace(inputs, image_prompts=None)).text
    assert len(recorded) == 2  # once per clip, whatever the number of windows and steps
    assert torch.equal(recorded[0][1], tokens)
    assert torch.equal(recorded[1][1], text)
    assert torch.equal(*recorded[0][0])  # the unconditional branch sees the same picture


def test_scale_zero_equals_no_picture():
    pipe = make_pipeline("musev_referencenet", face=True)
    options = replace(OPTIONS, image_scale=0, face_scale=0)
    inputs = clip(3, image_prompts=pictures("i"), face_images=pictures("f"))
    assert torch.equal(sample(inputs, options, pipe), sample(clip(3), OPTIONS, pipe))
    for scales in ({"image_scale": 0.5}, {"face_scale": 0.5}):
        assert_different(sample(inputs, replace(options, **scales), pipe), sample(clip(3), OPTIONS, pipe))


@pytest.mark.parametrize(
    "missing, given, message",
    [
        ("image_prompt", "image_prompts", "an image prompt was given, .* load an image encoder and its projection"),
        ("reference_net", "reference_images", "a reference picture was given, .* load a ReferenceNet, or leave it out"),
        ("face_prompt", "face_images", "a face picture was given, .* load a face extractor and its projection"),
    ],
)
def test_a_picture_without_its_network_is_refused(missing, given, message):
    pipe = replace(make_pipeline("musev_referencenet", face=True), **{missing: None})
    with calls(pipe.unet) as recorded, pytest.raises(MuseVError, match=message):
        sample(clip(**{given: pictures("x")}), pipe=pipe)
    assert not recorded


def test_musev_has_no_use_for_pictures():
    # its attention has no place for them, so nothing needs to be loaded (musev.md 6)
    inputs = clip(3, image_prompts=pictures("i"), reference_images=pictures("r"), face_images=pictures("f"))
    assert torch.equal(sample(inputs), sample(clip(3)))


def test_controls_reach_the_network():
    net, hints = models.controlnet("tiny", 0), det("hints", (6, 3, PIXELS, PIXELS)).sigmoid()
    inputs = clip(condition_latents=condition())
    controlled = sample(replace(inputs, controls=[Control(net, hints)]))
    assert_different(controlled, sample(inputs))
    with calls(net) as recorded:
        options = replace(OPTIONS, num_steps=4)
        sample(replace(inputs, controls=[Control(net, hints, end=0.5)]), options)
    # the condition frame by itself, and two windows, in two of four steps
    assert len(recorded) == 3 * 2


# ---- following and stopping a run ----------------------------------------------------------------------------------


def test_an_observer_hears_of_every_window_and_step_in_order():
    told: list[tuple] = []
    observer = Observer(
        on_step=lambda s: told.append(("step", s.run, s.step, s.num_steps)),
        on_window=lambda *numbers: told.append(numbers),
    )
    sample(clip(7), observer=observer, run="a run")  # windows of 4 frames from 0, 3
    expected = []
    for step in range(2):
        expected += [("a run", step, done, 2) for done in range(3)] + [("step", "a run", step, 2)]
    assert told == expected


def test_the_last_step_is_the_result():
    steps: list[StepInfo] = []
    given = condition()
    video = sample(clip(condition_latents=given, condition_frames=[-1]), observer=Observer(on_step=steps.append))
    assert torch.equal(steps[-1].latents, video[:, :, :5])
    assert all(s.latents.shape == s.predicted.shape == (1, 4, 5, LATENT, LATENT) for s in steps)
    assert steps[0].timestep == 999
    # noise is left after the first step, so its idea of the clean video is something else
    assert_different(steps[0].latents, steps[0].predicted)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelling_stops_within_one_window_and_the_next_run_is_not_disturbed(after):
    pipe, inputs = make_pipeline(), clip(7, condition_latents=condition())
    undisturbed = sample(inputs, pipe=pipe)
    with calls(pipe.unet) as recorded:
        observer = Observer(cancelled=lambda: len(recorded) >= after)
        with pytest.raises(Cancelled):
            sample(inputs, pipe=pipe, observer=observer)
        assert len(recorded) == after
    assert torch.equal(sample(inputs, pipe=pipe), undisturbed)


def test_what_is_given_stays_as_it_was():
    given = condition(2)
    initial, kept = condition(5), (given.clone(), condition(5).clone())
    inputs = clip(condition_latents=given, condition_frames=[0, -1], initial_latents=initial)
    sample(inputs)
    assert torch.equal(given, kept[0])
    assert torch.equal(initial, kept[1])
    assert inputs.condition_frames == [0, -1]


# ---- precision -----------------------------------------------------------------------------------------------------


def test_bfloat16_runs_and_the_vae_keeps_its_precision():
    pipe = make_pipeline("musev_referencenet", face=True)
    low = copy.deepcopy(pipe).to("cpu", torch.bfloat16)
    for net in (low.unet, low.text_encoder, low.reference_net, low.image_prompt.encoder, low.face_prompt.projection):
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert next(low.vae.parameters()).dtype == torch.float32
    inputs = clip(
        condition_latents=condition(),
        reference_images=pictures("r"),
        image_prompts=pictures("i"),
        face_images=pictures("f"),
        controls=[Control(models.controlnet("tiny", 0), det("hints", (6, 3, PIXELS, PIXELS)).sigmoid())],
    )
    got, expected = sample(inputs, pipe=low), sample(inputs, pipe=pipe)
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    assert (got - expected).abs().mean() < 0.2 * expected.abs().mean()


# ---- the finished video --------------------------------------------------------------------------------------------


def test_frames_are_decoded_a_few_at_a_time_as_they_are_asked_for():
    vae, latents = models.vae(0), det("video", (4, 7, 8, 8))
    result = VideoResult(latents, vae)
    assert len(result) == 7
    with calls(vae.decoder) as recorded:
        frames = result.frames(batch=3)
        assert not recorded
        parts = [next(frames)]
        assert len(recorded) == 1
        parts += frames
    assert [args[0].shape[0] for args in recorded] == [3, 3, 1]
    assert [len(part) for part in parts] == [3, 3, 1]
    whole = torch.cat(parts)
    assert whole.shape == (7, 64, 64, 3)
    assert 0 <= whole.min() < whole.max() <= 1
    torch.testing.assert_close(result.video(), whole, atol=1e-5, rtol=1e-5)


def test_colours_are_matched_to_the_first_frame_while_streaming():
    vae, latents = models.vae(0), det("video", (4, 7, 8, 8))
    plain = torch.cat(list(decode_latents(vae, latents, batch=3)))
    parts = list(VideoResult(latents, vae, match_histogram=True).frames(batch=3))
    assert max(len(part) for part in parts) <= 3
    got = torch.cat(parts)
    assert torch.equal(got[:1], plain[:1])
    assert torch.equal(got[1:], match_histograms(plain[1:], plain[:1]).to(got.dtype))
    assert_different(got[1:], plain[1:])


def test_colours_of_a_single_frame():
    result = VideoResult(det("video", (4, 1, 8, 8)), models.vae(0), match_histogram=True)
    assert [len(part) for part in result.frames(batch=1)] == [1]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_a_video_is_written_while_it_is_decoded(tmp_path, name):
    vae, path = models.vae(0), tmp_path / name
    result = VideoResult(det("video", (4, 6, 8, 8)), vae)
    with calls(vae.decoder) as recorded:
        assert result.save(str(path), fps=8) == str(path)
    assert max(args[0].shape[0] for args in recorded) == 4
    if path.is_dir():
        assert len(list(path.iterdir())) == 6
    else:
        assert read_video(path).frames.shape == (6, 64, 64, 3)
    with pytest.raises(MuseVError, match="exists already"):
        result.save(str(path), fps=8)
    result.save(str(path), fps=8, overwrite=True)


@pytest.mark.parametrize("draw", ["frames", "original"])
def test_without_a_seed_torchs_own_decides(draw):
    def made(seed: int | None) -> torch.Tensor:
        options = replace(OPTIONS, num_steps=1, noise=NoiseOptions(draw=draw))
        return make_pipeline()("a girl", seed=seed, height=64, width=64, num_frames=2, sampling=options).latents

    torch.manual_seed(3)
    first, second = made(None), made(None)
    assert_different(first, second)
    torch.manual_seed(3)
    assert torch.equal(made(None), first)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5])
def test_a_seed_is_a_whole_number_of_64_bits(seed):
    with pytest.raises(MuseVError, match=r"a seed is a whole number from 0 to 2\*\*64 - 1"):
        make_pipeline()("a girl", seed=seed, height=64, width=64)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"negative_prompts": "ugly"}, "negative_prompts must be a list with one text per video, got 'ugly'"),
        ({"prompts": ["a", "b"]}, "negative_prompts must be a list with one text per video"),
        ({"height": 60}, "multiples of 8 pixels, got 60 x 64"),
        ({"condition_latents": torch.zeros(1, 4, 1, 4, 8)}, r"condition_latents must have the shape \(1, channels"),
        ({"initial_latents": torch.zeros(2, 4, 3, 8, 8)}, r"initial_latents must have the shape \(1, channels"),
        ({"reference_images": torch.zeros(1, 64, 64, 3)}, r"reference_images must have the shape \(1, pictures"),
        ({"controls": [Control(torch.nn.Identity(), torch.zeros(4, 3, 32, 32))]}, r"hints must have .* 64, 64\)"),
    ],
)
def test_inputs_of_one_run_that_do_not_fit_together_are_named(changes, message):
    given = {"prompts": ["a"], "negative_prompts": [""], "num_frames": 3, "height": 64, "width": 64}
    with pytest.raises(MuseVError, match=message):
        ClipInputs(**(given | changes))
