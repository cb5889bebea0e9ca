"""Arithmetic of windows, condition frames, noise and guidance, for any numbers (hypothesis)."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from musev_core.config import FUSIONS, GUIDANCE_METHODS, NOISE_TYPES, SCHEDULES, UNetConfig
from musev_core.denoise.denoiser import DenoiserOptions
from musev_core.denoise.guidance import guidance_schedule
from musev_core.denoise.noise import NoiseOptions, image_based_noise, video_noise
from musev_core.denoise.windows import WindowOptions, context_windows, fusion_weights, place_condition_frames
from musev_core.errors import MuseVError
from musev_core.pipeline import ClipInputs, MuseVPipeline, SamplingOptions

FRAMES = st.integers(1, 300)
STEPS = st.integers(0, 60)
LARGE = st.integers(1, 2**70)
WEIGHTS = st.floats(0, 1)
ANY = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(2**70), 2**70)


@st.composite
def window_options(draw: Any, schedule: str | None = None) -> WindowOptions:
    length = draw(st.integers(1, 64) | LARGE)
    return WindowOptions(
        length=length,
        overlap=draw(st.integers(0, length - 1)),
        schedule=schedule or draw(st.sampled_from(SCHEDULES)),
        stride=draw(st.integers(1, 4) | LARGE),
        fuse=draw(st.sampled_from(FUSIONS)),
        shift=draw(st.integers(0, 8) | LARGE),
    )


# ---- windows


@given(FRAMES, window_options(), STEPS)
def test_windows_hold_every_frame_and_no_others(frames, options, step):
    windows = context_windows(frames, options, step)
    assert {frame for window in windows for frame in window} == set(range(frames))
    assert all(1 <= len(window) <= options.length for window in windows)
    assert windows == context_windows(frames, options, step)


@given(FRAMES, window_options("uniform_v2"), STEPS)
def test_plain_windows_are_runs_of_frames_one_behind_the_other(frames, options, step):
    windows = context_windows(frames, options, step)
    assert all(window == list(range(window[0], window[-1] + 1)) for window in windows)
    assert all(a[0] < b[0] and a[-1] <= b[-1] for a, b in pairwise(windows))
    # two neighbours share what they are to share, unless the clip ends before
    shared = [a[-1] - b[0] + 1 for a, b in pairwise(windows) if a[-1] + 1 < frames]
    assert all(n == options.overlap for n in shared)


@given(FRAMES, window_options("uniform_v2"))
def test_plain_windows_are_as_many_as_it_takes(frames, options):
    advance = options.length - options.overlap
    assume(options.overlap <= advance)  # beyond that the original computes windows that add nothing
    assert len(context_windows(frames, options)) == 1 + -(-max(frames - options.length, 0) // advance)


@given(FRAMES, window_options("uniform"))
def test_wrapping_windows_are_full_and_go_round_in_equal_steps(frames, options):
    windows = context_windows(frames, options)
    assume(len(windows) > 1)
    for window in windows:
        assert len(window) == options.length
        assert len({(b - a) % frames for a, b in pairwise(window)}) <= 1
    starts = {window[0] for window in windows}
    assert starts == set(range(0, frames, options.length - options.overlap)) | starts


@given(FRAMES, window_options(), STEPS)
def test_a_value_that_all_windows_agree_on_survives_the_fusion(frames, options, step):
    total, coverage = torch.zeros(frames), torch.zeros(frames)
    for window in context_windows(frames, options, step):
        weights = fusion_weights(len(window), options)
        assert weights.isfinite().all() and (weights > 0).all()
        total.index_put_((torch.tensor(window),), 3 * weights, accumulate=True)
        coverage.index_put_((torch.tensor(window),), weights, accumulate=True)
    assert (coverage > 0).all()
    torch.testing.assert_close(total / coverage, torch.full((frames,), 3.0))


@given(st.integers(-3, 40), st.integers(-3, 40), st.integers(-3, 4), st.integers(-3, 4))
def test_impossible_windows_are_refused_and_all_others_work(length, overlap, stride, shift):
    possible = length >= 1 and 0 <= overlap < length and stride >= 1 and shift >= 0
    if possible:
        options = WindowOptions(length, overlap, "uniform", stride, "flat", shift)
        assert context_windows(17, options)
    else:
        with pytest.raises(MuseVError):
            WindowOptions(length, overlap, "uniform", stride, "flat", shift)


# ---- condition frames


@given(FRAMES, st.sets(st.integers(0, 299), max_size=20), window_options("uniform_v2"), STEPS)
def test_condition_frames_of_a_plain_window_stand_in_the_order_of_the_clip(frames, conditions, options, step):
    generated = [i for i in range(frames + len(conditions)) if i not in conditions]
    for window in context_windows(len(generated), options, step):
        members = [generated[i] for i in window]
        assert place_condition_frames(members, sorted(conditions)) == sorted([*members, *conditions])


@given(FRAMES, st.sets(st.integers(0, 299), max_size=20), window_options("uniform"))
def test_condition_frames_of_a_wrapping_window_come_once_and_move_nothing(frames, conditions, options):
    generated = [i for i in range(frames + len(conditions)) if i not in conditions]
    for window in context_windows(len(generated), options):
        members = [generated[i] for i in window]
        placed = place_condition_frames(members, list(conditions))
        assert [i for i in placed if i not in conditions] == members
        assert sorted(i for i in placed if i in conditions) == sorted(conditions)
        first, last = placed.index(members[0]), len(placed) - placed[::-1].index(members[-1])
        assert placed[:first] == sorted(placed[:first]) and all(i < members[0] for i in placed[:first])
        assert placed[last:] == sorted(placed[last:]) and all(i > members[0] for i in placed[last:])
        for before, here, after in zip(placed, placed[1:], placed[2:], strict=False):
            if here in conditions and before not in conditions and after not in conditions:
                inside = placed.index(here) > first and before != placed[-1]
                assert not inside or before < here < after or here == placed[last - 1]


@given(st.data(), st.integers(1, 12), st.integers(0, 6))
def test_condition_frames_leave_at_their_places_as_they_came(data, generated, conditions):
    frames = generated + conditions
    places = data.draw(st.permutations(range(frames)))[:conditions]
    negative = data.draw(st.lists(st.booleans(), min_size=conditions, max_size=conditions))
    numbers = torch.arange(1.0, frames + 1).reshape(1, 1, frames, 1, 1).expand(1, 4, frames, 1, 1)
    given_latents = numbers[:, :, generated:] if conditions else None
    inputs = ClipInputs(
        [""],
        [""],
        generated,
        8,
        8,
        condition_latents=given_latents,
        condition_frames=[i - frames if n else i for i, n in zip(places, negative, strict=True)],
        initial_latents=numbers[:, :, :generated],
    )
    # with strength 0 the given video is the result, and no network runs
    pipeline = MuseVPipeline(unet=torch.nn.Linear(1, 1), vae=None, tokenizer=None, text_encoder=None)
    pipeline.unet.config = UNetConfig()
    clip = pipeline.sample(inputs, SamplingOptions(strength=0))[0, 0, :, 0, 0].int().tolist()
    assert [clip[i] for i in places] == list(range(generated + 1, frames + 1))
    assert [number for i, number in enumerate(clip) if i not in places] == list(range(1, generated + 1))


# ---- noise


@given(WEIGHTS, st.integers(1, 6), st.integers(0, 2**64 - 1))
def test_noise_is_the_common_part_and_each_frames_own(weight, frames, seed):
    shape, options = (2, 4, frames, 3, 5), NoiseOptions(individual_weight=weight)
    noise = video_noise(shape, options, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    common, own = (torch.randn((2, 4, t, 3, 5), generator=generator) for t in (1, frames))
    torch.testing.assert_close(noise, (1 - weight) ** 0.5 * common + weight**0.5 * own)
    assert torch.equal(noise, video_noise(shape, options, torch.Generator().manual_seed(seed)))


@given(WEIGHTS, st.integers(1, 6), st.integers(1, 4))
def test_an_image_in_the_noise_takes_its_share_of_the_variance(weight, frames, pictures):
    noise, given_latents = torch.ones(1, 4, frames, 2, 2), torch.full((1, 4, pictures, 2, 2), 3.0)
    mixed = image_based_noise(noise, given_latents, weight)
    torch.testing.assert_close(mixed, torch.full_like(noise, 3 * weight**0.5 + (1 - weight) ** 0.5))


@given(st.sampled_from(NOISE_TYPES), ANY, ANY | st.none())
def test_noise_weights_outside_of_0_to_1_are_refused(kind, individual, image):
    inside = [0 <= weight <= 1 for weight in (individual, 0 if image is None else image)]
    if all(inside):
        NoiseOptions(kind, individual, image)
    else:
        with pytest.raises(MuseVError, match=r"must lie in 0\.\.1"):
            NoiseOptions(kind, individual, image)


# ---- guidance, and other numbers


@given(st.floats(-100, 100), st.floats(-100, 100), st.sampled_from(GUIDANCE_METHODS), st.integers(1, 100))
def test_guidance_goes_from_its_start_to_its_end(start, end, method, steps):
    scales = guidance_schedule(start, end, method, steps)
    assert len(scales) == steps
    if steps >= 4:
        assert scales[0] == pytest.approx(start) and scales[-1] == pytest.approx(end)
    low, high = min(start, end), max(start, end)
    # the original truncates the mean of three stages, which may then lie below both
    assert all(math.floor(low) <= g <= high + 1e-9 for g in scales)
    if method != "three_stage":
        assert scales == sorted(scales, reverse=end < start)


@given(ANY, ANY | st.none(), st.sampled_from(GUIDANCE_METHODS), st.integers(-2, 5))
def test_guidance_is_finite_or_refused(start, end, method, steps):
    try:
        scales = guidance_schedule(start, end, method, steps)
    except MuseVError:
        return
    assert steps >= 1 and all(math.isfinite(g) for g in scales)


@given(ANY, ANY, ANY, ANY)
def test_strengths_and_speeds_are_finite_or_refused(speed, strength, image, face):
    try:
        options = SamplingOptions(
            strength=strength, image_scale=image, face_scale=face, denoiser=DenoiserOptions(motion_speed=speed)
        )
    except MuseVError:
        return
    numbers = (options.strength, options.image_scale, options.face_scale, options.denoiser.motion_speed)
    assert all(math.isfinite(x) for x in numbers)
