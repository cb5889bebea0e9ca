"""A clip in parts: which windows each needs, and that together they are bit for bit the whole clip."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support import golden_models as models
from support.numbers import det, det_image

from musev_core.denoise.control import Control
from musev_core.denoise.denoiser import DenoiserOptions
from musev_core.denoise.noise import NoiseOptions, VideoNoise
from musev_core.denoise.parts import ClipWindows, Part, PredictionCache, parts
from musev_core.denoise.windows import WindowOptions
from musev_core.encode.pictures import ImagePromptEncoder
from musev_core.errors import MuseVError
from musev_core.pipeline import ClipInputs, MuseVPipeline, SamplingOptions

# ---- which windows a part needs ------------------------------------------------------------------------------------


def planned(frames: int, length: int | None, steps: int = 10, *, per_frame: bool = False, **windows: Any):
    """The calls and parts of a clip with one condition frame at its head."""
    calls = ClipWindows(frames + 1, [0], WindowOptions(**windows)).calls(steps)
    return calls, list(parts(calls, length, per_frame=per_frame))


def evaluated(parts: list[Part]) -> list[set[tuple[int, int]]]:
    """The jobs (call, number) that each part is the first to need."""
    known: set[tuple[int, int]] = set()
    new = []
    for part in parts:
        needed = {(call, number) for call, jobs in enumerate(part.jobs) for number in jobs}
        new.append(needed - known)
        known |= needed
    return new


@pytest.mark.parametrize("frames", [200, 1000, 2000])
@pytest.mark.parametrize("length, before, held", [(8, 55, 84), (48, 105, 124)])
def test_the_first_frames_do_not_wait_for_the_last(frames, length, before, held):
    calls, planned_parts = planned(frames, length)
    jobs = evaluated(planned_parts)
    assert len(jobs[0]) == before
    assert max(map(len, planned_parts)) == held
    assert sum(map(len, jobs)) == sum(len(call.jobs) for call in calls)  # as many as for the whole clip


SETTINGS = st.fixed_dictionaries(
    {
        "length": st.integers(2, 12),
        "overlap": st.integers(0, 11),
        "schedule": st.sampled_from(["uniform_v2", "uniform"]),
        "stride": st.integers(1, 3),
        "shift": st.integers(0, 5),
    }
).filter(lambda x: x["overlap"] < x["length"])


def check_dependencies(calls, planned_parts, known, per_frame):
    """Every window of the parts has exact latents, or an earlier part has evaluated it."""
    for part in planned_parts:
        exact = set(range(part.start, part.stop))  # the frames whose latents are those of the whole clip
        for number, (call, jobs) in enumerate(zip(calls, part.jobs, strict=True)):
            for job in jobs:
                held = set(call.frames_of(job))
                if (number, job) in known:
                    # kept from the frame on which this part begins with
                    assert known[number, job] <= part.start
                else:
                    assert held <= exact
                    if per_frame:
                        assert all(set(call.group_of(frame)) <= exact for frame in held)
                    known[number, job] = part.keep_from
            exact &= {frame for frame in exact if set(call.holders[frame]) <= set(jobs)}
        assert set(range(part.first, part.last)) <= exact


CLIPS = (SETTINGS, st.integers(1, 60), st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.booleans())


@example({"length": 2, "overlap": 0, "schedule": "uniform", "stride": 2, "shift": 0}, 8, 1, 1, 1, True)
@given(*CLIPS)
def test_a_part_has_all_that_its_frames_depend_on(windows, frames, length, steps, per_call, per_frame):
    calls = ClipWindows(frames, [], WindowOptions(**windows), per_call).calls(steps)
    planned_parts, known = list(parts(calls, length, per_frame=per_frame)), {}
    assert [(part.first, part.last) for part in planned_parts] == [
        (first, min(first + length, frames)) for first in range(0, frames, length)
    ]
    assert all(part.start <= part.first for part in planned_parts)
    check_dependencies(calls, planned_parts, known, per_frame)
    assert len(known) == sum(len(call.jobs) for call in calls)  # every window, and none twice


@given(*CLIPS, st.data())
def test_a_range_of_frames_needs_no_part_before_it(windows, frames, length, steps, per_call, per_frame, data):
    calls = ClipWindows(frames, [], WindowOptions(**windows), per_call).calls(steps)
    first = data.draw(st.integers(0, frames - 1))
    last = data.draw(st.integers(first + 1, frames))
    planned_parts = list(parts(calls, length, per_frame=per_frame, frames=(first, last)))
    assert [frame for part in planned_parts for frame in range(part.first, part.last)] == list(range(first, last))
    check_dependencies(calls, planned_parts, {}, per_frame)


@pytest.mark.parametrize("steps", [4, 10])
def test_beginning_in_the_middle_costs_one_cone(steps):
    calls, unbroken = planned(1000, 48, steps)
    alone = list(parts(calls, 48, frames=(480, 1000)))
    in_all = sum(map(len, evaluated(alone)))
    # one window more for every step that comes after
    assert in_all - sum(len(call.jobs_over(480, 1000)) for call in calls) == steps * (steps - 1) // 2
    # a broken run has also lost what it had run ahead with
    left = sum(len(jobs) for part, jobs in zip(unbroken, evaluated(unbroken), strict=True) if part.first >= 480)
    assert in_all - left == steps**2


def test_groups_are_the_frames_a_job_is_the_first_to_hold():
    (call,) = ClipWindows(20, [3], WindowOptions(length=6, overlap=2)).calls(1)
    assert [len(group) for group in call.groups] == [6, 4, 4, 4, 1]
    assert [frame for group in call.groups for frame in group] == list(range(19))
    windows = ClipWindows(20, [3], WindowOptions(length=6, overlap=2))
    assert list(windows.group_of(call, 3)) == [3]
    assert list(windows.group_of(call, 8)) == [7, 8, 9, 10]  # after the condition frame all numbers are one higher


def test_seams_that_move_come_back():
    windows = ClipWindows(40, [], WindowOptions(length=12, overlap=4, shift=3))
    starts = [windows.call(step).jobs[1][0].frames[0] for step in range(9)]
    assert len(set(starts[:8])) == 8 and windows.call(8) is windows.call(0)


@pytest.mark.parametrize("length", [0, -1])
def test_a_part_has_frames(length):
    with pytest.raises(MuseVError, match=f"a part must have at least 1 frame, got {length}"):
        planned(20, length)


# ---- together they are the whole clip ------------------------------------------------------------------------------

PIXELS, LATENT = 32, 4
WINDOWS = WindowOptions(length=6, overlap=2, fuse="linear")
OPTIONS = SamplingOptions(num_steps=2, denoiser=DenoiserOptions(windows=WINDOWS))


def pipeline(arch: str = "musev") -> Any:
    return MuseVPipeline(
        unet=models.unet(arch, "tiny", 0),
        vae=models.vae(0),
        tokenizer=models.StandInTokenizer(),
        text_encoder=models.text_encoder(0),
        reference_net=models.reference_net("tiny", 0),
        image_prompt=ImagePromptEncoder(models.image_encoder(0), models.projection("plain", 0)),
    )


def clip(frames: int, **changes: Any) -> ClipInputs:
    inputs = ClipInputs(["a girl sings"], ["ugly"], frames, PIXELS, PIXELS, condition_latents=condition(1))
    return replace(inputs, **changes)


def condition(n: int) -> torch.Tensor:
    return det("condition", (1, 4, n, LATENT, LATENT))


def picture(name: str) -> torch.Tensor:
    return det_image(name, (1, 3, 1, PIXELS, PIXELS)).permute(0, 2, 3, 4, 1)


def control(frames: int, seed: int = 0, **settings: Any) -> Control:
    hints = det_image("hints", (1, 3, frames, PIXELS, PIXELS))[0].transpose(0, 1) / 255
    return Control(models.controlnet("tiny", seed), hints, **settings)


def windows(**changes: Any) -> dict[str, Any]:
    return {"denoiser": DenoiserOptions(windows=replace(WINDOWS, **changes))}


def scheduler(name: str) -> dict[str, Any]:
    return {"scheduler": name}


# what STREAMING.md 2 lists: frames, changes of the inputs, changes of the options, network
ROWS: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    **{f"{n} frames": (n, {}, {}, "musev") for n in (13, 20, 21, 23, 29, 44)},
    "flat": (21, {}, windows(fuse="flat"), "musev"),
    "pyramid": (21, {}, windows(fuse="pyramid"), "musev"),
    **{name: (21, {}, scheduler(name), "musev") for name in ("euler_leading", "ddim", "lcm")},
    "moving seams": (29, {}, windows(shift=3), "musev"),
    "moving seams, pyramid": (23, {}, windows(shift=1, fuse="pyramid"), "musev"),
    "overlap 4 of 6": (21, {}, windows(overlap=4), "musev"),
    "overlap 5 of 6": (13, {}, windows(overlap=5), "musev"),
    "uniform": (21, {}, windows(schedule="uniform"), "musev"),
    "uniform with strides": (29, {}, windows(schedule="uniform", stride=2, fuse="pyramid"), "musev"),
    "random noise": (21, {}, {"noise": NoiseOptions("random")}, "musev"),
    "guidance to 1": (21, {}, {"guidance_scale": 6.0, "guidance_end": 1.0}, "musev"),
    "no guidance": (21, {}, {"guidance_scale": 1.0}, "musev"),
    "split guidance": (21, {}, {"denoiser": DenoiserOptions(windows=WINDOWS, split_guidance=True)}, "musev"),
    "three windows a call": (29, {}, {"denoiser": DenoiserOptions(windows=WINDOWS, windows_per_call=3)}, "musev"),
    "every frame a picture": (21, {}, {"denoiser": DenoiserOptions(windows=WINDOWS, skip_temporal=True)}, "musev"),
    "condition frames anywhere": (
        21, {"condition_latents": condition(3), "condition_frames": [20, 0, -1]}, {}, "musev"
    ),
    "no condition frame": (21, {"condition_latents": None}, {}, "musev"),
    "video to video": (
        21, {"initial_latents": det("video", (1, 4, 21, LATENT, LATENT))}, {"strength": 0.7}, "musev"
    ),
    "pictures": (
        21, {"reference_images": picture("reference"), "image_prompts": picture("prompt")}, {}, "musev_referencenet"
    ),
    "ControlNet": (21, {"controls": [control(22)]}, {}, "musev"),
    "ControlNets over some steps": (
        21, {"controls": [control(22, end=0.5), control(22, 1, start=0.3)]}, {}, "musev"
    ),
    "ControlNet, condition frames anywhere, moving seams": (
        21,
        {"controls": [control(23)], "condition_latents": condition(2), "condition_frames": [9, -1]},
        windows(shift=3),
        "musev",
    ),
    "ControlNet, uniform": (21, {"controls": [control(22)]}, windows(schedule="uniform"), "musev"),
    "two videos": (
        21,
        {
            "prompts": ["a girl sings", "a dog runs"],
            "negative_prompts": ["ugly", "blurry"],
            "condition_latents": det("two", (2, 4, 1, LATENT, LATENT)),
        },
        {},
        "musev",
    ),
}  # fmt: skip


# these say most; the others run where there is time
FIRST = {
    "23 frames",
    "lcm",
    "uniform with strides",
    "guidance to 1",
    "three windows a call",
    "video to video",
    "two videos",
}
FIRST |= {"condition frames anywhere", "ControlNet, condition frames anywhere, moving seams", "pictures"}


@pytest.mark.parametrize("name", [x if x in FIRST else pytest.param(x, marks=pytest.mark.slow) for x in ROWS])
def test_parts_are_bit_for_bit_the_whole_clip(name):
    frames, inputs, options, arch = ROWS[name]
    pipe, sampling, inputs = pipeline(arch), replace(OPTIONS, **options), clip(frames, **inputs)
    noise = VideoNoise(range(len(inputs.prompts)))
    calls: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        whole = pipe.sample(inputs, sampling, noise=noise)
        in_all = len(calls)
        for length in (4, 7):
            calls.clear()
            streamed = list(pipe.sample_parts(inputs, sampling, length=length, noise=noise))
            assert len(streamed) == math.ceil(inputs.num_frames / length)
            assert torch.equal(torch.cat(streamed, dim=2), whole), length
            assert len(calls) == in_all  # no window is evaluated twice
        for frames in (range(5, 12), range(9, whole.shape[2]), range(1)):
            alone = list(pipe.sample_parts(inputs, sampling, length=4, frames=frames, noise=noise))
            assert torch.equal(torch.cat(alone, dim=2), whole[:, :, frames.start : frames.stop]), frames
    finally:
        hook.remove()


def test_no_part_depends_on_what_comes_far_behind_it():
    """The driving video's last frames may not even be there yet."""
    video = det("video", (1, 4, 40, LATENT, LATENT))
    later = video.clone()
    later[:, :, 30:] += 1
    made = (
        next(pipeline().sample_parts(clip(40, initial_latents=x), OPTIONS, length=4, noise=VideoNoise([0])))
        for x in (video, later)
    )
    assert torch.equal(*made)


def test_what_is_kept_does_not_grow_with_the_clip(monkeypatch):
    held: list[int] = []
    forget = PredictionCache.forget_before

    def watching(cache: PredictionCache, first: int) -> None:
        held.append(cache.nbytes())
        forget(cache, first)

    monkeypatch.setattr(PredictionCache, "forget_before", watching)
    list(pipeline().sample_parts(clip(60), OPTIONS, length=4, noise=VideoNoise([0])))
    # until the end comes into sight every part leaves as much as the one before
    assert len(held) == 15 and len(set(held[2:12])) == 1
    assert held[-1] < held[2]


def test_the_originals_noise_is_not_drawn_in_parts():
    options = replace(OPTIONS, noise=NoiseOptions(draw="original"))
    with pytest.raises(MuseVError, match="the original draws the noise of a whole clip at once"):
        next(pipeline().sample_parts(clip(21), options, length=4))
    with pytest.raises(MuseVError, match="the original draws the noise of a whole clip at once"):
        next(pipeline().sample_parts(clip(21), options, frames=range(3)))
    pipeline().sample(clip(5), replace(options, num_steps=1))


@pytest.mark.parametrize("frames", [range(23), range(-1, 4), range(5, 5), range(30, 40)])
def test_frames_which_the_clip_does_not_have(frames):
    with pytest.raises(MuseVError, match=r"the clip has the frames 0\.\.21"):
        next(pipeline().sample_parts(clip(21), OPTIONS, frames=frames))
