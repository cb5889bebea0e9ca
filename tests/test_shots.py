"""Whole videos: first frame, shots, driving videos, references (musev.md 5 and 9, extra.md 2)."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import golden_models as models
from support.numbers import det_image

from musev_core.denoise.control import ClipControls
from musev_core.denoise.denoiser import ClipDenoiser, DenoiserOptions
from musev_core.denoise.noise import NoiseOptions
from musev_core.denoise.windows import WindowOptions
from musev_core.encode.pictures import ImagePromptEncoder
from musev_core.encode.vae import CPU_BATCH, decode_latents, encode_latents
from musev_core.errors import Cancelled, MuseVError
from musev_core.frames.images import canny, fit_images, fit_video, to_uint8
from musev_core.models.conditions import ClipConditions
from musev_core.pipeline import (
    FIRST_FRAME,
    ControlInput,
    MuseVPipeline,
    Observer,
    SamplingOptions,
    VideoRequest,
    VideoResult,
)
from musev_core.pipeline.shots import ShotRunner

WINDOWS = DenoiserOptions(windows=WindowOptions(length=6, overlap=2))
SAMPLING = SamplingOptions(num_steps=2, guidance_scale=1.0, denoiser=WINDOWS)
FIRST = replace(FIRST_FRAME, num_steps=2, guidance_scale=1.0)
PIXELS = 32
SIZE = {"height": PIXELS, "width": PIXELS}


class RecordingPipeline(MuseVPipeline):
    """Notes the inputs and the result of every run."""

    def __init__(self, **parts: Any):
        super().__init__(**parts)
        self.runs: list[Any] = []

    def sample_parts(self, inputs, options, **given):
        parts = []
        for part in super().sample_parts(inputs, options, **given):
            parts.append(part)
            yield part
        self.runs.append(Run(inputs, options, given["run"], torch.cat(parts, dim=2)))


class Run:
    def __init__(self, inputs, options, name, latents):
        self.inputs, self.options, self.name, self.latents = inputs, options, name, latents


def make_pipeline(arch: str = "musev", **parts: Any) -> RecordingPipeline:
    if arch == "musev_referencenet":
        parts.setdefault("reference_net", models.reference_net("tiny", 0))
        parts.setdefault("image_prompt", ImagePromptEncoder(models.image_encoder(0), models.projection("plain", 0)))
    return RecordingPipeline(
        unet=models.unet(arch, "tiny", 0),
        vae=models.vae(0),
        tokenizer=models.StandInTokenizer(),
        text_encoder=models.text_encoder(0),
        **parts,
    )


def picture(name: str = "image", n: int = 1, height: int = PIXELS, width: int = PIXELS) -> torch.Tensor:
    """`(n, height, width, 3)` uint8."""
    return det_image(name, (1, 3, n, height, width))[0].permute(1, 2, 3, 0).contiguous()


def greys(n: int, first: int = 10) -> torch.Tensor:
    """Frames whose grey names them: 10, 11, 12, ..."""
    return (
        torch.arange(first, first + n, dtype=torch.uint8)[:, None, None, None].expand(n, PIXELS, PIXELS, 3).contiguous()
    )


def greys_of(hints: torch.Tensor) -> list[int]:
    """What `greys` were made of, from hints `(n, 3, H, W)`."""
    return (hints[:, 0, 0, 0] * 255).round().int().tolist()


def make(pipe: MuseVPipeline | None = None, *, seed: int | None = 0, **request: Any) -> VideoResult:
    defaults: dict[str, Any] = {"prompt": "a girl sings", "num_frames": 4, "sampling": SAMPLING, "first_frame": FIRST}
    return (pipe or make_pipeline())(**(defaults | request), seed=seed)


def encoded(frames: torch.Tensor) -> torch.Tensor:
    return encode_latents(models.vae(0), frames)


def decoded(latents: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(decode_latents(models.vae(0), latents)))


def control(frames: torch.Tensor, **settings: Any) -> ControlInput:
    return ControlInput(models.controlnet("tiny", 0), frames, **settings)


def assert_different(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() > 1e-2


@contextmanager
def unet_calls(pipe: MuseVPipeline) -> Iterator[list[tuple]]:
    recorded: list[tuple] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: recorded.append(args))
    try:
        yield recorded
    finally:
        hook.remove()


# ---- frame counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_, count",
    [
        ({"image": 1}, 1 + 4),  # a given picture comes on top
        ({"image": 2}, 2 + 4),
        ({}, 4),  # a generated one is counted
        ({"num_shots": 3}, 3 * 4),
        ({"image": 1, "num_shots": 3}, 1 + 3 * 4),
        ({"image": 2, "num_shots": 2, "fixed_condition": True}, 2 + 2 * 4),
        ({"num_condition_frames": 0}, 4),
        ({"num_condition_frames": 0, "image": 1, "num_shots": 2}, 2 * 4),
        ({"num_condition_frames": 2, "num_shots": 2}, 2 * 4),
        ({"num_condition_frames": 2, "image": 1, "num_shots": 2}, 1 + 2 * 4),
        ({"image": 1, "redraw": True}, 1 + 4),
        ({"video": 9}, 4),
        ({"video": 9, "image": 1}, 4),
        ({"video": 9, "image": 2}, 4),
        ({"video": 9, "image": 1, "num_shots": 2}, 8),
        ({"video": 9, "image": 1, "num_shots": 2, "video_has_condition": False}, 1 + 8),
        ({"video": 9, "num_condition_frames": 0, "num_shots": 2}, 8),
        ({"video": 9, "image": 1, "num_frames": None}, 9),
        ({"video": 9, "image": 1, "num_frames": None, "num_shots": 2}, 8),
        ({"video": 9, "image": 1, "num_frames": None, "video_has_condition": False}, 1 + 9),
        ({"image": 1, "num_frames": None}, 1 + 12),
        ({"num_frames": None}, 12),
    ],
    ids=str,
)
def test_number_of_frames(request_, count):
    request_ = dict(request_)
    for name in ("image", "video"):
        if name in request_:
            request_[name] = picture(name, request_[name])
    short = replace(SAMPLING, num_steps=1)
    result = make(**SIZE, **request_, sampling=short, first_frame=replace(FIRST, num_steps=1))
    assert len(result) == count
    assert result.latents.shape == (4, count, PIXELS // 8, PIXELS // 8)
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("has_condition, count", [(True, 6), (False, 7)])
def test_number_of_frames_of_a_control_video(has_condition, count):
    given = control(greys(6), condition_map=greys(1, 99))
    result = make(image=picture(), controls=[given], num_frames=None, video_has_condition=has_condition)
    assert len(result) == count


# ---- one shot ------------------------------------------------------------------------------------------------------


def test_image_to_video_begins_with_the_image_exactly():
    image = picture(n=2)
    result = make(image=image)
    assert torch.equal(result.latents[:, :2], encoded(image))  # nothing was resampled (musev.md 9.9)
    assert_different(make(image=image, legacy_fit=True).latents[:, :2], encoded(image))


def test_condition_pictures_anywhere():
    image = picture(n=2)
    result = make(image=image, condition_frames=[0, -1])
    assert len(result) == 6
    assert torch.equal(result.latents[:, [0, 5]], encoded(image))


@pytest.mark.parametrize(
    "given, size",
    [
        ({"image": (100, 150)}, (64, 128)),
        ({"image": (64, 64)}, (64, 64)),
        ({"image": (44, 70)}, (40, 64)),  # too small for multiples of 64
        ({"video": (70, 130)}, (64, 128)),
        ({"image": (64, 64), "video": (128, 128)}, (64, 64)),
        ({"image": (100, 150), "height": 48, "width": 72}, (48, 72)),
    ],
    ids=str,
)
def test_the_size_comes_from_the_picture(given, size):
    request: dict[str, Any] = {k: picture(k, 4, *v) if isinstance(v, tuple) else v for k, v in given.items()}
    if "image" in request:
        request["image"] = request["image"][:1]
    assert next(make(**request, num_frames=3).frames()).shape[1:3] == size


def test_the_size_of_a_control_video():
    assert next(make(controls=[control(picture("c", 4, 70, 130))], num_frames=3).frames()).shape[1:3] == (64, 128)


def test_pictures_are_fitted_to_the_size():
    pipe, image = make_pipeline("musev_referencenet"), picture("image", 1, 90, 200)
    result = make(pipe, image=image, reference_image=picture("reference", 1, 200, 90), **SIZE)
    assert torch.equal(result.latents[:, :1], encoded(fit_images(image, PIXELS, PIXELS)))
    reference = pipe.runs[0].inputs.reference_images
    assert torch.equal(reference[0], fit_images(picture("reference", 1, 200, 90), PIXELS, PIXELS))


def test_the_first_frame_of_text_to_video_is_a_picture_of_its_own():
    pipe = make_pipeline("musev_referencenet")
    result = make(pipe, **SIZE, negative_prompt="ugly", first_frame_negative_prompt="blurry")
    first, video = pipe.runs
    assert (first.name, video.name) == ("first frame", "video")
    assert (first.inputs.num_frames, video.inputs.num_frames) == (1, 3)
    assert first.options.denoiser.skip_temporal
    assert not video.options.denoiser.skip_temporal
    assert (first.inputs.negative_prompts, video.inputs.negative_prompts) == (["blurry"], ["ugly"])
    # its latents are the condition, and its picture is reference and image prompt of the rest
    assert torch.equal(video.inputs.condition_latents, first.latents)
    assert torch.equal(result.latents[:, :1], first.latents[0])
    frame = decoded(first.latents[0])
    assert first.inputs.reference_images is None
    assert first.inputs.image_prompts is None
    assert torch.equal(video.inputs.reference_images[0], frame)
    assert torch.equal(video.inputs.image_prompts[0], frame)


def test_the_first_frame_takes_the_videos_negative_prompt_by_default():
    pipe = make_pipeline()
    make(pipe, **SIZE, negative_prompt="ugly")
    assert pipe.runs[0].inputs.negative_prompts == ["ugly"]


def test_given_pictures_guide_the_generated_first_frame_and_stay():
    pipe, reference, prompt = make_pipeline("musev_referencenet"), picture("r"), picture("i")
    make(pipe, **SIZE, reference_image=reference, image_prompt=prompt)
    for run in pipe.runs:
        assert torch.equal(run.inputs.reference_images[0], reference)
        assert torch.equal(run.inputs.image_prompts[0], prompt)


def test_the_condition_picture_is_reference_and_image_prompt_unless_switched_off():
    pipe, image = make_pipeline("musev_referencenet"), picture()
    default = make(pipe, image=image)
    assert torch.equal(pipe.runs[0].inputs.reference_images[0], image)
    assert torch.equal(pipe.runs[0].inputs.image_prompts[0], image)
    without = make(pipe, image=image, use_reference=False, use_image_prompt=False)
    assert pipe.runs[1].inputs.reference_images is None
    assert pipe.runs[1].inputs.image_prompts is None
    assert_different(default.latents, without.latents)


def test_several_references_and_image_prompts_of_any_size():
    pipe = make_pipeline("musev_referencenet")
    result = make(pipe, image=picture(), reference_image=picture("r", 2), image_prompt=picture("i", 3, 80, 50))
    assert pipe.runs[0].inputs.reference_images.shape == (1, 2, PIXELS, PIXELS, 3)
    assert pipe.runs[0].inputs.image_prompts.shape[:2] == (1, 3)
    assert result.latents.isfinite().all()


# ---- redraw --------------------------------------------------------------------------------------------------------


def redrawn(strength: float, pipe: RecordingPipeline | None = None, **request: Any) -> torch.Tensor:
    """Latent of the redrawn condition picture."""
    first = replace(FIRST, num_steps=5, strength=strength)
    return make(pipe, image=picture(), redraw=True, first_frame=first, **request).latents[:, :1]


def test_redraw_strength():
    given = encoded(picture())
    assert torch.equal(redrawn(0), given)
    distances = [(redrawn(strength) - given).abs().mean() for strength in (0.2, 0.6, 1.0)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_a_redrawn_picture_replaces_all_given_ones():
    pipe = make_pipeline("musev_referencenet")
    latents = redrawn(1.0, pipe, reference_image=picture("r"), image_prompt=picture("i"))
    first, video = pipe.runs
    assert torch.equal(first.inputs.reference_images[0], picture("r"))
    assert torch.equal(first.inputs.image_prompts[0], picture("i"))
    assert torch.equal(video.inputs.condition_latents[0], latents)
    assert torch.equal(video.inputs.reference_images[0], decoded(latents))
    assert torch.equal(video.inputs.image_prompts[0], decoded(latents))


def test_redraw_without_reference_and_image_prompt():
    pipe = make_pipeline("musev_referencenet")
    redrawn(1.0, pipe, redraw_with_reference=False, redraw_with_image_prompt=False)
    first, video = pipe.runs
    assert first.inputs.reference_images is None
    assert first.inputs.image_prompts is None
    assert video.inputs.reference_images is not None


# ---- several shots -------------------------------------------------------------------------------------------------


def test_shots_continue_each_others_latents():
    pipe = make_pipeline()
    result = make(pipe, image=picture(), num_shots=3)
    one, two, three = pipe.runs
    assert [run.name for run in pipe.runs] == ["shot 1/3", "shot 2/3", "shot 3/3"]
    assert torch.equal(two.inputs.condition_latents, one.latents[:, :, -1:])  # no way through pixels
    assert torch.equal(three.inputs.condition_latents, two.latents[:, :, -1:])
    joined = torch.cat([one.latents, two.latents[:, :, 1:], three.latents[:, :, 1:]], dim=2)
    assert torch.equal(result.latents, joined[0])
    assert_different(two.latents[:, :, 1:], one.latents[:, :, 1:])


def test_shots_may_continue_several_frames():
    pipe = make_pipeline()
    result = make(pipe, image=picture(), num_shots=2, num_condition_frames=2)
    one, two = pipe.runs
    assert torch.equal(two.inputs.condition_latents, one.latents[:, :, -2:])
    assert torch.equal(result.latents, torch.cat([one.latents, two.latents[:, :, 2:]], dim=2)[0])


def test_a_fixed_condition_stays_for_all_shots():
    pipe = make_pipeline()
    make(pipe, image=picture(n=2), num_shots=2, fixed_condition=True, condition_frames=[0, -1])
    one, two = pipe.runs
    assert torch.equal(two.inputs.condition_latents, one.inputs.condition_latents)


def test_shots_without_condition_are_independent():
    pipe = make_pipeline()
    make(pipe, **SIZE, num_shots=2, num_condition_frames=0)
    assert [run.inputs.condition_latents for run in pipe.runs] == [None, None]
    assert_different(pipe.runs[0].latents, pipe.runs[1].latents)


def test_references_stay_or_move_with_the_shots():
    def second_run(**request: Any) -> tuple[Run, torch.Tensor]:
        """The second shot, and the frame it continues."""
        pipe = make_pipeline("musev_referencenet")
        make(pipe, image=picture(), num_shots=2, **request)
        return pipe.runs[1], decoded(pipe.runs[0].latents[0, :, -1:])

    fixed, _ = second_run()
    assert torch.equal(fixed.inputs.reference_images[0], picture())
    assert torch.equal(fixed.inputs.image_prompts[0], picture())
    moving, last = second_run(fixed_reference=False)
    assert torch.equal(moving.inputs.reference_images[0], last)
    assert torch.equal(moving.inputs.image_prompts[0], picture())
    assert_different(moving.latents, fixed.latents)
    moving, last = second_run(fixed_image_prompt=False)
    assert torch.equal(moving.inputs.reference_images[0], picture())
    assert torch.equal(moving.inputs.image_prompts[0], last)
    assert_different(moving.latents, fixed.latents)
    off, _ = second_run(fixed_reference=False, use_reference=False)
    assert off.inputs.reference_images is None


# ---- driving videos ------------------------------------------------------------------------------------------------


def whole_latents(run: Run) -> torch.Tensor:
    given = run.inputs.initial_latents
    return given if isinstance(given, torch.Tensor) else given.take(0, run.inputs.num_frames)


def initial_latents(**request: Any) -> list[tuple[Run, torch.Tensor]]:
    pipe = make_pipeline()
    make(pipe, **request)
    return [(run, whole_latents(run)[0]) for run in pipe.runs]


def assert_shows(latents: torch.Tensor, frames: torch.Tensor) -> None:
    torch.testing.assert_close(latents, encoded(frames), atol=1e-4, rtol=1e-4)


def test_video_to_video_starts_from_the_frames_after_the_condition():
    video = picture("video", 9)
    [(_, one), (_, two)] = initial_latents(image=picture(), video=video, num_shots=2)
    assert_shows(one, video[1:4])
    assert_shows(two, video[4:8])


def test_video_to_video_with_a_picture_that_is_not_in_the_video():
    video = picture("video", 9)
    [(_, one), (_, two)] = initial_latents(image=picture(), video=video, num_shots=2, video_has_condition=False)
    assert_shows(one, video[:4])
    assert_shows(two, video[4:8])


def test_video_to_video_without_condition():
    [(_, one)] = initial_latents(video=picture("video", 5), num_condition_frames=0)
    assert_shows(one, picture("video", 5)[:4])


def test_video_to_video_without_picture_repaints_the_first_frame():
    video = picture("video", 4)
    [(first, start), (run, rest)] = initial_latents(video=video)
    assert first.name == "first frame"
    assert_shows(start, video[:1])
    assert_shows(rest, video[1:])
    assert torch.equal(run.inputs.condition_latents, first.latents)


def test_a_first_frame_of_strength_zero_is_the_videos_and_serves_as_reference():
    video, pipe = picture("video", 4), make_pipeline("musev_referencenet")
    result = make(pipe, video=video, first_frame=replace(FIRST, strength=0))
    torch.testing.assert_close(result.latents[:, :1], encoded(video[:1]), atol=1e-4, rtol=1e-4)
    [run] = pipe.runs
    # as any other condition picture (VideoRequest: "default: the condition picture")
    assert run.inputs.reference_images is not None
    assert run.inputs.image_prompts is not None


def test_less_video_strength_stays_closer_to_the_video():
    video = picture("video", 4)

    def distance(strength: float) -> float:
        sampling = replace(SAMPLING, num_steps=5)
        result = make(image=video[:1], video=video, video_strength=strength, sampling=sampling)
        return (result.latents - encoded(video)).abs().mean().item()

    assert distance(0.2) < distance(0.6) < distance(1.0)


def test_video_strength_zero_keeps_the_video():
    video = picture("video", 4)
    result = make(image=video[:1], video=video, video_strength=0.0)
    torch.testing.assert_close(result.latents, encoded(video), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "places, generated", [([-1], [0, 1, 2, 3, 4]), ([0, -1], [1, 2, 3, 4]), ([2], [0, 1, 3, 4, 5])]
)
def test_every_generated_frame_starts_from_its_own_frame_of_the_video(places, generated):
    video = picture("video", 6)
    [(_, start)] = initial_latents(image=picture(n=len(places)), condition_frames=places, video=video, num_frames=6)
    assert_shows(start, video[generated])


def whole_hints(run: Run) -> torch.Tensor:
    hints = run.inputs.controls[0].hints
    return hints[list(range(hints.shape[0]))]


def hints_of(**request: Any) -> list[list[int]]:
    """Which control frame each frame of each run's clip gets."""
    pipe = make_pipeline()
    make(pipe, **request)
    return [greys_of(whole_hints(run)) for run in pipe.runs]


def test_pose_to_video_gives_every_frame_its_map():
    hints = hints_of(image=picture(), controls=[control(greys(9))], num_shots=2)
    assert hints == [[10, 11, 12, 13], [13, 14, 15, 16, 17]]


def test_a_generated_first_frame_gets_the_first_map():
    hints = hints_of(controls=[control(greys(9))], num_shots=2)
    assert hints == [[10], [10, 11, 12, 13], [13, 14, 15, 16, 17]]


def test_a_picture_that_is_not_in_the_control_video_brings_its_own_map():
    given = control(greys(9), condition_map=greys(1, 99))
    hints = hints_of(image=picture(), controls=[given], num_shots=2, video_has_condition=False)
    assert hints == [[99, 10, 11, 12, 13], [13, 14, 15, 16, 17]]


def test_hints_of_a_fixed_condition_and_of_two_condition_frames():
    given: dict[str, Any] = {"image": picture(), "controls": [control(greys(9))], "num_shots": 2}
    assert hints_of(**given, fixed_condition=True)[1] == [10, 14, 15, 16, 17]
    assert hints_of(**given, num_condition_frames=2)[1] == [12, 13, 14, 15, 16, 17]


def test_hints_without_condition_frames():
    hints = hints_of(controls=[control(greys(9))], num_shots=2, num_condition_frames=0)
    assert hints == [[10, 11, 12, 13], [14, 15, 16, 17]]


def test_the_map_of_a_condition_picture_goes_where_the_picture_goes():
    given = control(greys(4), condition_map=greys(1, 99))
    request: dict[str, Any] = {"image": picture(), "controls": [given], "video_has_condition": False}
    assert hints_of(**request, condition_frames=[-1]) == [[10, 11, 12, 13, 99]]
    # a video which shows the condition frame has its map in place already
    assert hints_of(image=picture(), controls=[control(greys(4))], condition_frames=[-1]) == [[10, 11, 12, 13]]


def test_a_control_video_changes_the_result_in_its_range_only():
    plain = make(image=picture())
    assert_different(make(image=picture(), controls=[control(picture("pose", 5))], num_frames=5).latents, plain.latents)
    off = make(image=picture(), controls=[control(picture("pose", 5), scale=0)], num_frames=5)
    assert torch.equal(off.latents, plain.latents)
    late = make(image=picture(), controls=[control(picture("pose", 5), start=1.0)], num_frames=5)
    assert torch.equal(late.latents, plain.latents)


@pytest.mark.parametrize("has_condition", [True, False])
def test_rgb_frames_go_through_the_preprocessor(has_condition):
    video, image, pipe = picture("video", 4), picture(), make_pipeline()
    make(pipe, image=image, controls=[control(video, preprocessor=canny)], video_has_condition=has_condition)
    hints = whole_hints(pipe.runs[0])
    expected = canny(video) if has_condition else torch.cat([canny(image), canny(video)])
    assert torch.equal(hints, expected.permute(0, 3, 1, 2) / 255)
    assert set(hints.unique().tolist()) == {0.0, 1.0}


def test_a_preprocessor_sees_frames_of_the_videos_size_in_uint8():
    seen: list[torch.Tensor] = []

    def inverted(frames: torch.Tensor) -> torch.Tensor:
        seen.append(frames)
        return 255 - frames

    pipe = make_pipeline()
    video = picture("video", 4, 90, 128)
    make(pipe, image=picture(), controls=[control(video, preprocessor=inverted)])
    assert {frames.shape[1:] for frames in seen} == {(PIXELS, PIXELS, 3)}
    assert {frames.dtype for frames in seen} == {torch.uint8}
    assert sum(map(len, seen)) == 4  # none twice
    hints = whole_hints(pipe.runs[0])
    fitted = to_uint8(fit_video(video, PIXELS, PIXELS) / 255)
    assert torch.equal(hints, (255 - fitted).permute(0, 3, 1, 2) / 255)


def test_several_ControlNets_each_with_its_own_video_and_strength():
    one = control(greys(4), scale=0.5, end=0.5)
    two = ControlInput(models.controlnet("tiny", 1), picture("video", 6), preprocessor=canny, start=0.5)
    pipe = make_pipeline()
    both = make(pipe, image=picture(), controls=[one, two])
    got = pipe.runs[0].inputs.controls
    assert [(c.net, c.scale, c.start, c.end) for c in got] == [(one.net, 0.5, 0.0, 0.5), (two.net, 1.0, 0.5, 1.0)]
    assert [c.hints.shape[0] for c in got] == [4, 4]
    assert_different(both.latents, make(image=picture(), controls=[one]).latents)
    assert_different(both.latents, make(image=picture(), controls=[two]).latents)


def test_video_and_control_together():
    pipe, video = make_pipeline(), picture("video", 4)
    make(pipe, image=video[:1], video=video, controls=[control(video, preprocessor=canny)])
    [run] = pipe.runs
    assert_shows(whole_latents(run)[0], video[1:])
    assert torch.equal(whole_hints(run), canny(video).permute(0, 3, 1, 2) / 255)


# ---- seeds, colours, following and stopping ------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_video():
    request: dict[str, Any] = {"image": picture(), "num_shots": 2}
    one = make(**request, seed=5)
    assert torch.equal(make(**request, seed=5).latents, one.latents)
    assert_different(make(**request, seed=6).latents[:, 1:], one.latents[:, 1:])


STREAMS = pytest.mark.parametrize(
    "request_",
    [
        {"image": picture(), "num_frames": 13},
        {"image": picture(), "num_frames": 7, "num_shots": 3, "num_condition_frames": 2, "match_histogram": True},
        {"image": picture(n=2), "num_frames": 6, "num_shots": 2, "fixed_condition": True, "condition_frames": [3, 0]},
        {"video": picture("video", 14), "video_strength": 0.7},
        {"num_frames": 6, "num_shots": 2, "num_condition_frames": 0, **SIZE},
        {"image": picture(), "num_frames": 5, "num_shots": 2, "fixed_reference": False, "fixed_image_prompt": False},
    ],
    ids=["picture", "shots", "fixed condition frames", "video", "no condition frames", "moving references"],
)


def streamed(request_):
    pipe = make_pipeline("musev_referencenet" if "fixed_reference" in request_ else "musev")
    given = {"prompt": "a girl sings", "num_frames": None, "sampling": SAMPLING, "first_frame": FIRST, **request_}
    return pipe, given


@STREAMS
@pytest.mark.parametrize("length", [3, None])
def test_a_stream_gives_the_frames_of_the_whole_video(request_, length):
    pipe, given = streamed(request_)
    whole = pipe(seed=3, **given).video()
    parts = list(pipe.stream(seed=3, length=length, **given))
    assert torch.equal(torch.cat(parts), whole)
    assert {len(part) for part in parts[1:-1]} <= {CPU_BATCH, CPU_BATCH - 1}  # the first frame may come by itself


@STREAMS
@pytest.mark.parametrize("count", [1, 6, 10])
def test_another_run_goes_on_where_one_was_broken_off(request_, count):
    pipe, given = streamed(request_)
    whole = pipe(seed=3, **given).video()
    kept: dict[str, torch.Tensor] = {}
    broken = pipe.plan(VideoRequest(**given), seed=3).stream(3, checkpoint=kept)
    made = 0
    while made < count:
        made += len(next(broken))
    broken.close()
    frames = range(count, len(whole))
    rest = list(pipe.plan(VideoRequest(**given), seed=3).stream(3, frames=frames, checkpoint=kept))
    assert torch.equal(torch.cat(rest), whole[count:])


@STREAMS
def test_frames_of_the_first_shot_are_made_alone(request_):
    pipe, given = streamed(request_)
    whole = pipe(seed=3, **given).video()
    plan = pipe.plan(VideoRequest(**given), seed=3)
    first_shot = plan.num_first + plan.lengths[0]
    for frames in (range(2, 5), range(3, first_shot), range(4), range(1)):
        assert torch.equal(torch.cat(list(pipe.stream(seed=3, length=3, frames=frames, **given))), whole[frames])


def test_frames_of_a_later_shot_need_the_one_before():
    request = {"image": picture(), "num_frames": 6, "num_shots": 2, "sampling": SAMPLING}
    with pytest.raises(MuseVError, match=r"frame 8 belongs to shot 2.*a frame of the first shot, 0\.\.6"):
        make_pipeline().stream("a girl sings", frames=range(9, 12), **request)
    with pytest.raises(MuseVError, match=r"the video has the frames 0\.\.12, got 5\.\.13"):
        make_pipeline().stream("a girl sings", frames=range(5, 14), **request)


def test_a_finished_run_holds_nothing():
    """What a clip's constants take on the device is free at once, not when Python happens to look for circles."""
    pipe = make_pipeline()
    request = {"image": picture(), "controls": [control(greys(9))], "num_shots": 2, "sampling": SAMPLING}
    gc.collect()
    gc.disable()
    try:
        list(pipe.stream("a girl sings", num_frames=4, length=3, **request))
        pipe.runs.clear()
        kinds = (ClipDenoiser, ClipControls, ClipConditions, ShotRunner)
        assert [type(x).__name__ for x in gc.get_objects() if type(x) in kinds] == []
    finally:
        gc.enable()


def test_the_first_frames_of_a_stream_come_before_the_last_are_begun():
    pipe = make_pipeline()
    request = {"image": picture(), "num_frames": 40, "sampling": SAMPLING}
    with unet_calls(pipe) as calls:
        stream = pipe.stream("a girl sings", seed=3, length=4, **request)
        assert not calls
        next(stream)
        begun = len(calls)
        list(stream)
    assert begun < len(calls) / 2


@pytest.mark.parametrize(
    "given, message",
    [
        ({"length": 0}, "a part must have at least 1 frame, got 0"),
        ({"sampling": replace(SAMPLING, noise=NoiseOptions(draw="original"))}, "the noise of a whole clip at once"),
        ({"num_shots": 0}, "number of shots must be at least 1"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_at_once(given, message):
    with pytest.raises(MuseVError, match=message):
        make_pipeline().stream("a girl sings", **SIZE, **given)


def test_histogram_matching_is_asked_for_in_the_request():
    plain, matched = (make(image=picture(), match_histogram=flag).video() for flag in (False, True))
    assert torch.equal(matched[0], plain[0])
    assert_different(matched[1:], plain[1:])


def test_an_observer_follows_all_runs():
    steps: list[tuple] = []
    windows: list[tuple] = []
    observer = Observer(
        on_step=lambda s: steps.append((s.run, s.step, s.num_steps)), on_window=lambda *numbers: windows.append(numbers)
    )
    make(**SIZE, num_frames=10, num_shots=2, observer=observer)
    names = ("first frame", "shot 1/2", "shot 2/2")
    assert steps == [(name, step, 2) for name in names for step in range(2)]
    counts = {"first frame": 1, "shot 1/2": 2, "shot 2/2": 2}
    assert windows == [
        (name, step, done, counts[name]) for name in names for step in range(2) for done in range(counts[name] + 1)
    ]


@pytest.mark.parametrize("after", [0, 1, 4])
def test_cancelling_stops_and_the_next_run_works(after):
    pipe = make_pipeline()
    request: dict[str, Any] = {**SIZE, "num_shots": 2}
    undisturbed = make(pipe, **request)
    with unet_calls(pipe) as calls:
        with pytest.raises(Cancelled):
            make(pipe, **request, observer=Observer(cancelled=lambda: len(calls) >= after))
        assert len(calls) == after
    assert torch.equal(make(pipe, **request).latents, undisturbed.latents)


def test_given_pictures_stay_as_they_were():
    image, video = picture(), picture("video", 4)
    kept = image.clone(), video.clone()
    make(image=image, video=video, controls=[control(video, preprocessor=canny)], redraw=True)
    assert torch.equal(image, kept[0])
    assert torch.equal(video, kept[1])


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_, message",
    [
        ({}, r"give height and width \(for example 512 x 512\), or a picture to take them from"),
        ({"height": 64}, "give both height and width, or none of them; got 64 x None"),
        ({"height": 60, "width": 64}, "multiples of 8 pixels, got 60 x 64"),
        ({"height": 0, "width": 64}, "multiples of 8 pixels, got 0 x 64"),
        ({**SIZE, "num_shots": 0}, "number of shots must be at least 1, got 0"),
        ({**SIZE, "num_condition_frames": -1}, "number of condition frames cannot be negative, got -1"),
        ({**SIZE, "redraw": True}, "redraw needs a condition image to repaint"),
        ({**SIZE, "num_frames": 1}, "a shot of 1 frames with 1 condition frames leaves nothing to generate"),
        ({"image": picture(), "num_frames": 0}, "a shot of 0 frames with .* leaves nothing to generate"),
        ({"image": picture(n=3), "video": picture("v", 9), "num_frames": 3}, "a shot of 3 frames with 3 condition"),
        ({"video": picture("v", 3)}, "the video has 3 frames, but 4 are needed .* ask for fewer frames or shots"),
        ({"video": picture("v", 9), "num_shots": 3}, "the video has 9 frames, but 12 are needed"),
        ({"controls": [control(greys(3))]}, "a control video has 3 frames, but 4 are needed"),
        (
            {"controls": [control(greys(9))], "video_has_condition": False},
            "the driving video does not show the first frame; give a condition image",
        ),
        (
            {"image": picture(), "controls": [control(greys(9))], "video_has_condition": False},
            "give the control map of the condition image as condition_map",
        ),
        (
            {
                "image": picture(),
                "controls": [control(greys(9), condition_map=greys(2))],
                "video_has_condition": False,
            },
            "expected 1 maps of the condition frames, got 2",
        ),
        (
            {"image": picture(), "controls": [control(greys(9), preprocessor=lambda frames: frames[:, ::2])]},
            r"one picture per frame, \(1, 32, 32, 3\), got \(1, 16, 32, 3\)",
        ),
        ({"image": picture().float()}, "images must be uint8 pictures"),
        ({**SIZE, "image": picture()[0]}, r"shape \(frames, height, width, 3\) .* got \(32, 32, 3\)"),
        ({**SIZE, "video": picture("v", 9).float()}, "frames must be uint8 pictures"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(request_, message):
    pipe = make_pipeline()
    with unet_calls(pipe) as calls, pytest.raises(MuseVError, match=message):
        make(pipe, **request_)
    assert not calls


@pytest.mark.parametrize("name", ["image", "video"])
def test_a_picture_without_its_axis_of_frames_is_named_even_if_it_decides_the_size(name):
    with pytest.raises(MuseVError, match=r"shape \(frames, height, width, 3\)"):
        make(None, seed=0, **{name: picture(height=128, width=128)[0]})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"condition_frames": [0, 1]}, "frame numbers"),
        ({"condition_frames": [4]}, r"must lie in 0\.\.3"),
        ({"sampling": {"guidance_method": "cosine"}}, "unknown guidance method"),
        ({"sampling": {"num_steps": 0}}, "number of steps must be at least 1"),
        ({"sampling": {"scheduler": "heun"}}, "unknown scheduler"),
        ({"sampling": {"scheduler": "lcm", "num_steps": 60}}, "LCM takes at most 50 steps"),
        ({"video": picture("v", 4), "video_strength": 1.5}, "strength must lie in"),
    ],
)
def test_a_mistake_in_the_video_is_found_before_the_first_frame_is_made(changes, message):
    changes, pipe = dict(changes), make_pipeline()
    with unet_calls(pipe) as calls:
        with pytest.raises(MuseVError, match=message):
            sampling = replace(SAMPLING, **changes.pop("sampling", {}))
            make(pipe, **SIZE, **changes, sampling=sampling)
        assert not calls


@pytest.mark.parametrize("setting", ["scale", "start", "end"])
def test_a_controlnets_numbers_are_finite(setting):
    with pytest.raises(MuseVError, match=f"{setting} of a ControlNet must be a finite number, got nan"):
        control(picture("c", 4), **{setting: math.nan})


def test_a_missing_network_is_no_surprise_after_the_first_frame():
    # nobody gave a picture here: either it works without, or it is refused before the long work
    pipe = make_pipeline("musev_referencenet", image_prompt=None)
    with unet_calls(pipe) as calls:
        try:
            make(pipe, **SIZE)
        except MuseVError:
            assert not calls


def test_the_request_can_be_made_beforehand():
    request = VideoRequest("a girl", image=picture(), num_frames=3, sampling=SAMPLING)
    result = make_pipeline().generate(request, seed=0)
    assert torch.equal(result.latents, make(prompt="a girl", image=picture(), num_frames=3).latents)
