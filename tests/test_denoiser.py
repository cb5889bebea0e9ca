"""One fused model evaluation of a clip, with small real networks (musev.md 4, DESIGN.md "Frames, windows, counts")."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import golden_models as models
from support.numbers import det

from musev_core.denoise.control import ClipControls, Control
from musev_core.denoise.denoiser import ClipDenoiser, DenoiserOptions
from musev_core.denoise.windows import WindowOptions, context_windows, place_condition_frames, take_frames
from musev_core.errors import Cancelled, MuseVError
from musev_core.models.conditions import ClipConditions
from musev_core.models.temporal import TemporalConv, TemporalTransformer

ARCHS = ("musev", "musev_referencenet")
SIZE = 4  # latent pixels
T = torch.tensor(601.5)
WINDOWS = WindowOptions(length=6, overlap=2)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def conditions(branches: int = 1, *, videos: int = 1, arch: str = "musev_referencenet") -> ClipConditions:
    """Prompts and pictures of `videos`, branch outermost."""
    rows = branches * videos
    text, tokens = det("text", (rows, 77, 32)), det("image tokens", (rows, 4, 32))
    reference = None
    if arch == "musev_referencenet":
        reference = models.reference_net("tiny", 0)(det("reference", (rows, 4, 1, SIZE, SIZE)), tokens)
    return ClipConditions(text=text, image_tokens=tokens, reference=reference)


def latents(frames: int, *, videos: int = 1) -> torch.Tensor:
    return det("latents", (videos, 4, frames, SIZE, SIZE))


def predict(num_frames: int, arch: str = "musev", *, branches: int = 1, videos: int = 1, net=None, **settings):
    options = {"windows": WINDOWS} | settings.pop("options", {})
    clip = settings.pop("clip", None) or conditions(branches, videos=videos, arch=arch)
    denoiser = ClipDenoiser(
        net or models.unet(arch, "tiny", 0),
        clip,
        branches=branches,
        num_frames=num_frames,
        options=DenoiserOptions(**options),
        **settings,
    )
    return denoiser(latents(num_frames, videos=videos), T, 0, 10)


@contextmanager
def calls(net: torch.nn.Module) -> Iterator[list[tuple[tuple, dict]]]:
    """The arguments of every call of a network inside the block."""
    recorded: list[tuple[tuple, dict]] = []
    hook = net.register_forward_pre_hook(lambda _, args, kwargs: recorded.append((args, kwargs)), with_kwargs=True)
    try:
        yield recorded
    finally:
        hook.remove()


def assert_same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Equal up to the rounding of another order of the same sums."""
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def assert_different(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() > 1e-2


# ---- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("condition_frames", [(), (0,), (0, 1), (11,), (0, 5, 11)])
def test_the_prediction_is_the_mean_of_plain_network_calls(arch, condition_frames):
    n, net, clip = 12, models.unet(arch, "tiny", 0), conditions(arch=arch)
    x = latents(n)
    generated = [i for i in range(n) if i not in condition_frames]
    total, count = torch.zeros(1, 4, len(generated), SIZE, SIZE), torch.zeros(len(generated))
    for window in context_windows(len(generated), WINDOWS):
        frames = place_condition_frames([generated[i] for i in window], condition_frames)
        places = [i for i, frame in enumerate(frames) if frame in condition_frames]
        out = net(x[:, :, frames], T, clip, condition_frames=places)
        for i, frame in enumerate(frames):
            if frame not in condition_frames:
                total[:, :, generated.index(frame)] += out[:, :, i]
                count[generated.index(frame)] += 1
    assert (count > 1).any()
    assert_same(predict(n, arch, condition_frames=condition_frames, clip=clip), total / count[:, None, None])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("condition_frames", [(), (0, 1), (0, 2, 18)])
@pytest.mark.parametrize("at_once", [2, 100])
def test_windows_at_once_equal_windows_one_by_one(arch, condition_frames, at_once):
    settings = {"branches": 2, "condition_frames": condition_frames}
    one_by_one = predict(19, arch, **settings)
    net = models.unet(arch, "tiny", 0)
    with calls(net) as recorded:
        assert_same(predict(19, arch, **settings, options={"windows_per_call": at_once}), one_by_one)
    shared = 1 if net is models.unet("musev", "tiny", 0) else 2  # rows of both branches, where they share none
    sizes = [args[0].shape[0] // shared for args, _ in recorded]
    assert max(sizes) > 1
    assert max(sizes) <= at_once


def test_windows_at_once_of_two_videos_with_control_and_changing_prompt():
    n = 11
    net, hints = models.controlnet("tiny", 0), det("hints", (n, 3, 8 * SIZE, 8 * SIZE)).sigmoid()
    clip = ClipConditions(text=det("text", (4, n, 77, 32)))
    settings = {"branches": 2, "videos": 2, "condition_frames": (0,), "clip": clip, "controls": [Control(net, hints)]}
    assert_same(predict(n, options={"windows_per_call": 3}, **settings), predict(n, **settings))


def test_two_videos_at_once_equal_each_alone():
    clip = conditions(2, videos=2)
    both = predict(9, "musev_referencenet", branches=2, videos=2, clip=clip, condition_frames=(0,))
    for video in range(2):
        alone = ClipDenoiser(
            models.unet("musev_referencenet", "tiny", 0),
            clip.take([video, 2 + video]),
            branches=2,
            num_frames=9,
            condition_frames=(0,),
            options=DenoiserOptions(windows=WINDOWS),
        )
        assert_same(alone(latents(9, videos=2)[video : video + 1], T, 0, 10), both[video::2])


@pytest.mark.parametrize("fuse", ["linear", "pyramid"])
def test_the_fusion_makes_no_difference_where_windows_do_not_overlap(fuse):
    for windows in (WindowOptions(length=12, overlap=4), WindowOptions(length=3, overlap=0)):
        flat = predict(9, options={"windows": windows})
        fused = predict(9, options={"windows": WindowOptions(windows.length, windows.overlap, fuse=fuse)})
        assert_same(fused, flat, 1e-6)


@pytest.mark.parametrize("fuse", ["linear", "pyramid"])
def test_the_fusion_weighs_each_window_more_in_its_middle(fuse):
    options = WindowOptions(length=6, overlap=2, fuse=fuse)
    x, clip, net = latents(10), conditions(arch="musev"), models.unet("musev", "tiny", 0)
    first, second = net(x[:, :, :6], T, clip), net(x[:, :, 4:], T, clip)
    fused = predict(10, options={"windows": options}, clip=clip)
    # frame 4 is two frames from the end of the first window and the first of the second, and so on: 2 to 1
    assert_same(fused[:, :, 4], (2 * first[:, :, 4] + second[:, :, 0]) / 3)
    assert_same(fused[:, :, 5], (first[:, :, 5] + 2 * second[:, :, 1]) / 3)
    assert_same(fused[:, :, 0], first[:, :, 0])


def test_shifting_windows_change_from_step_to_step():
    net, clip, x = models.unet("musev", "tiny", 0), conditions(arch="musev"), latents(10)
    options = DenoiserOptions(windows=WindowOptions(length=6, overlap=2, shift=2))
    denoiser = ClipDenoiser(net, clip, branches=1, num_frames=10, options=options)
    steps = [denoiser(x, T, step, 10) for step in range(3)]
    assert_different(steps[0], steps[1])
    assert torch.equal(steps[0], steps[2])


def test_a_wrapping_window_of_a_stride_may_hold_a_frame_twice():
    # every second frame of 8, six times: the windows run around the clip more than once (musev.md 9.10)
    windows = WindowOptions(length=6, overlap=2, schedule="uniform", stride=2)
    assert any(max(Counter(window).values()) > 1 for window in context_windows(8, windows))
    for condition_frames in ((), (0,)):
        out = predict(8 + len(condition_frames), condition_frames=condition_frames, options={"windows": windows})
        assert out.shape[2] == 8
        assert out.isfinite().all()


def test_skipping_the_temporal_layers_makes_frames_independent():
    out = predict(9, options={"skip_temporal": True})
    alone = models.unet("musev", "tiny", 0)(latents(9)[:, :, 7:8], T, conditions(arch="musev"), skip_temporal=True)
    assert_same(out[:, :, 7:8], alone)
    assert_different(out, predict(9))


def test_the_motion_speed_reaches_the_network():
    slow, fast = (predict(7, "musev_referencenet", options={"motion_speed": speed}) for speed in (8.0, 16.0))
    assert_different(slow, fast)


# ---- guidance branches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("at_once", [1, 2])
def test_split_guidance_equals_both_branches_at_once(arch, at_once):
    n, net = 11, models.unet(arch, "tiny", 0)  # two windows of six frames
    controls = [Control(models.controlnet("tiny", 0), det("hints", (n, 3, 8 * SIZE, 8 * SIZE)).sigmoid())]
    settings = {"branches": 2, "videos": 2, "condition_frames": (0,), "controls": controls}
    together = predict(n, arch, **settings)
    with calls(net) as recorded:
        options = {"split_guidance": True, "windows_per_call": at_once}
        assert_same(predict(n, arch, **settings, options=options), together)
    assert {args[0].shape[0] % 4 for args, _ in recorded} <= {0, 2}
    assert max(args[0].shape[0] for args, _ in recorded) == 2 * at_once


def test_one_branch_is_half_the_work_and_the_conditional_half_of_two():
    net, clip = models.unet("musev_referencenet", "tiny", 0), conditions(2)
    with calls(net) as recorded:
        two = predict(10, "musev_referencenet", branches=2, clip=clip, condition_frames=(0,))
        one = predict(10, "musev_referencenet", branches=1, clip=clip.take([1]), condition_frames=(0,))
    assert [args[0].shape[0] for args, _ in recorded] == [2, 2, 1, 1]
    assert_same(one, two[1:])
    assert_different(one, two[:1])


@pytest.mark.parametrize("alike", [True, False])
def test_what_comes_before_the_prompt_is_computed_once_where_both_branches_see_the_same_picture(alike):
    net, clip, pictures = models.unet("musev_referencenet", "tiny", 0), conditions(2), det("r", (2, 4, 1, SIZE, SIZE))
    seen = pictures[:1].expand_as(pictures) if alike else pictures
    clip = replace(clip, reference=models.reference_net("tiny", 0)(seen, clip.image_tokens))
    with calls(net) as recorded:
        out = predict(6, "musev_referencenet", branches=2, clip=clip)
    assert [args[0].shape[0] for args, _ in recorded] == [1 if alike else 2]
    alone = [predict(6, "musev_referencenet", branches=1, clip=clip.take([i])) for i in range(2)]
    assert_same(out, torch.cat(alone))


# ---- condition frames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition_frames", [(0,), (9,), (4,), (0, 9), (2, 3, 9), (9, 0)])
def test_the_network_sees_the_condition_frames_as_they_are(condition_frames):
    net, x = models.unet("musev", "tiny", 0), latents(10)
    with calls(net) as recorded:
        out = predict(10, condition_frames=condition_frames)
    assert out.shape[2] == 10 - len(condition_frames)
    for (sample, *_), given in recorded:
        assert len(given["condition_frames"]) == len(condition_frames)
        for place, frame in zip(given["condition_frames"], sorted(condition_frames), strict=True):
            assert torch.equal(sample[:, :, place], x[:, :, frame])


def reversible(arch: str) -> Any:
    """The network without knowledge of frame numbers, in double precision."""
    net = copy.deepcopy(models.unet(arch, "tiny", 0)).double()
    for module in net.modules():
        if isinstance(module, TemporalTransformer):
            module.frame_emb_proj.weight.zero_()
            module.frame_emb_proj.bias.zero_()
    return net


def reversed_in_time(net: Any) -> Any:
    """The same network with the taps of every convolution over time in the opposite order."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, TemporalConv):
            for conv in module.modules():
                if isinstance(conv, torch.nn.Conv3d):
                    conv.weight.copy_(conv.weight.flip(2))
    return net


@pytest.mark.parametrize(
    "arch, condition_frames",
    [("musev", (0,)), ("musev", (0, 3)), *(("musev_referencenet", x) for x in ((0,), (0, 1), (0, 3), (5,)))],
)
def test_a_mirrored_clip_gives_the_mirrored_prediction(arch, condition_frames):
    n = 10 + len(condition_frames)  # the windows over 10 frames are symmetric
    forward = reversible(arch)
    backward = reversed_in_time(forward)
    double = ClipConditions(
        text=det("text", (1, 77, 32)).double(), image_tokens=det("image tokens", (1, 4, 32)).double()
    )
    x, options = latents(n).double(), DenoiserOptions(windows=WINDOWS)
    mirrored_frames = [n - 1 - i for i in condition_frames]

    def evaluate(net: Any, x: torch.Tensor, places) -> torch.Tensor:
        denoiser = ClipDenoiser(
            net, double.take([0]), branches=1, num_frames=n, condition_frames=places, options=options
        )
        return denoiser(x, T, 0, 10)

    head = evaluate(forward, x, condition_frames)
    tail = evaluate(backward, x.flip(2), mirrored_frames)
    torch.testing.assert_close(tail, head.flip(2), atol=1e-9, rtol=1e-9)
    # it would not hold for the same network or the same places
    assert_different(evaluate(forward, x.flip(2), mirrored_frames), head.flip(2))
    if mirrored_frames[::-1] != list(condition_frames):
        assert_different(evaluate(backward, x.flip(2), condition_frames), head.flip(2))


# ---- ControlNet ----------------------------------------------------------------------------------------------------


def hints(n: int) -> torch.Tensor:
    """One flat grey per frame, which names the frame."""
    return ((torch.arange(n) + 1) / 100)[:, None, None, None].expand(n, 3, 8 * SIZE, 8 * SIZE).contiguous()


def frames_of(hint: torch.Tensor) -> list[int]:
    return (hint[:, 0, 0, 0] * 100 - 1).round().int().tolist()


def control_residuals(controls, latents, clip, frames) -> Any:
    """What the ControlNets add for these windows of the clip."""
    clip_controls = ClipControls(controls, clip)
    clip_controls.start_step(0, 1, frames)
    return clip_controls.residuals(latents, T, frames, 1)


@pytest.mark.parametrize("condition_frames", [(), (0,), (10,), (0, 5, 10)])
@pytest.mark.parametrize("at_once", [1, 3])
def test_every_frame_gets_its_own_hint(condition_frames, at_once):
    n, net = 11, models.controlnet("tiny", 0)
    embedding = net.controlnet_cond_embedding
    with calls(net) as recorded, calls(embedding) as embedded:
        predict(
            n,
            branches=2,
            condition_frames=condition_frames,
            controls=[Control(net, hints(n))],
            options={"windows_per_call": at_once},
        )
    once = [frame for (hint,), _ in embedded for frame in frames_of(hint)]
    assert sorted(once) == list(range(n))
    seen = []
    for (sample, _, text, hint), _ in recorded:
        half = hint.shape[0] // 2
        assert torch.equal(hint[:half], hint[half:])  # both branches see the same hints
        assert len(hint) == sample.shape[0] == text.shape[0]
        frames = once[len(seen) : len(seen) + half]
        torch.testing.assert_close(hint[:half], embedding(hints(n)[frames]))
        seen += frames
    assert seen == once


def test_a_ControlNet_runs_once_per_frame_and_step_and_its_hints_are_embedded_once_per_clip():
    n, net = 30, models.controlnet("tiny", 0)
    clip = conditions(2, arch="musev")
    denoiser = ClipDenoiser(
        models.unet("musev", "tiny", 0),
        clip,
        branches=2,
        num_frames=n,
        condition_frames=(0,),
        options=DenoiserOptions(windows=WINDOWS),
        controls=[Control(net, hints(n))],
    )
    with calls(net) as recorded, calls(net.controlnet_cond_embedding) as embedded:
        for step in range(2):
            denoiser(latents(n), T, step, 2)
    assert sum(sample.shape[0] for (sample, *_), _ in recorded) == 2 * 2 * n  # branches, steps
    assert sum(len(hint) for (hint,), _ in embedded) == n


def test_residuals_of_frames_that_no_later_window_holds_are_dropped():
    n = 30
    controls = ClipControls([Control(models.controlnet("tiny", 0), hints(n))], conditions(1, arch="musev"))
    windows = context_windows(n, WINDOWS)
    controls.start_step(0, 1, windows)
    kept = []
    for done, window in enumerate(windows, 1):
        controls.residuals(latents(n), T, [window], done)
        kept.append(len(controls._residuals))
    assert max(kept) == WINDOWS.overlap and kept[-1] == 0


def test_a_ControlNet_sees_the_networks_own_input_and_the_text_of_the_row():
    net, clip = models.controlnet("tiny", 0), conditions(2, arch="musev")
    with calls(net) as recorded, calls(models.unet("musev", "tiny", 0)) as main:
        predict(9, branches=2, clip=clip, condition_frames=(0,), controls=[Control(net, hints(9))])
    window = main[0][0][0].repeat(2, 1, 1, 1, 1)  # the branches share it up to the prompt
    # the condition frame by itself, whatever window it is needed for
    for ((flat, timestep, text, _), _), sample in zip(recorded, (window[:, :, :1], window[:, :, 1:]), strict=False):
        assert torch.equal(flat, sample.transpose(1, 2).flatten(0, 1))
        assert torch.equal(timestep, T)
        t = sample.shape[2]
        assert torch.equal(text, torch.cat([clip.text[:1].expand(t, -1, -1), clip.text[1:].expand(t, -1, -1)]))


@pytest.mark.parametrize("frame", [1, 4, 5, 9])
def test_another_hint_changes_only_the_windows_which_hold_its_frame(frame):
    net, n = models.controlnet("tiny", 0), 10
    given, changed = hints(n), hints(n)
    changed[frame] = 0.9
    before, after = (predict(n, controls=[Control(net, h)]) for h in (given, changed))
    affected = {i for window in context_windows(n, WINDOWS) if frame in window for i in window}
    for i in range(n):
        assert torch.equal(before[:, :, i], after[:, :, i]) == (i not in affected), i


@pytest.mark.parametrize(
    "start, end, active",
    [
        (0.0, 1.0, range(10)),
        (0.0, 0.3, range(3)),
        (0.7, 1.0, range(7, 10)),
        (0.25, 0.75, range(3, 7)),
        (0.0, 0.0, ()),
        (0.0, 0.7, range(7)),
    ],
)
def test_a_ControlNet_takes_part_between_start_and_end(start, end, active):
    control = Control(models.controlnet("tiny", 0), hints(9), start=start, end=end)
    assert [i for i in range(10) if control.active(i, 10)] == list(active)


def test_outside_its_range_and_at_scale_zero_a_ControlNet_is_not_there():
    net = models.controlnet("tiny", 0)
    without, with_control = predict(9), predict(9, controls=[Control(net, hints(9))])
    assert_different(without, with_control)
    with calls(net) as recorded:
        assert torch.equal(predict(9, controls=[Control(net, hints(9), scale=0)]), without)
        assert torch.equal(predict(9, controls=[Control(net, hints(9), start=0.5)]), without)  # this is step 0
    assert not recorded


def test_two_ControlNets_add_up():
    one, two = models.controlnet("tiny", 0), models.controlnet("tiny", 1)
    clip, sample, frames = conditions(2), latents(9), [[2, 3, 4]]
    controls = [Control(one, hints(9), scale=0.5), Control(two, hints(9).flip(0))]
    both = control_residuals(controls, sample, clip, frames)
    alone = [control_residuals([control], sample, clip, frames) for control in controls]
    for got, a, b in zip(both.down, alone[0].down, alone[1].down, strict=True):
        assert_same(got, a + b)
    assert_same(both.mid, alone[0].mid + alone[1].mid)
    unit = control_residuals([Control(one, hints(9))], sample, clip, frames)
    assert_same(alone[0].mid, 0.5 * unit.mid)
    assert control_residuals([], sample, clip, frames) is None


def test_two_ControlNets_in_the_clip():
    controls = [Control(models.controlnet("tiny", seed), hints(9)) for seed in (0, 1)]
    both = predict(9, controls=controls)
    assert_different(both, predict(9, controls=controls[:1]))
    assert_different(both, predict(9, controls=controls[1:]))
    assert_same(both, predict(9, controls=controls[::-1]))


def test_the_residuals_reach_the_networks_call():
    net, clip, x = models.unet("musev", "tiny", 0), conditions(arch="musev"), latents(5)
    controls = [Control(models.controlnet("tiny", 0), hints(5))]
    residuals = control_residuals(controls, x, clip, [list(range(5))])
    assert_same(predict(5, clip=clip, controls=controls), net(x, T, clip, control=residuals))


# ---- progress and stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once, expected", [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (5, [0, 3])])
def test_progress_is_told_before_every_call_and_at_the_end(at_once, expected):
    told: list[tuple[int, int]] = []
    windows = WindowOptions(length=4, overlap=0)  # of 12 frames
    options = {"windows": windows, "windows_per_call": at_once}
    predict(13, condition_frames=(0,), options=options, on_window=lambda *numbers: told.append(numbers))
    assert told == [(done, 3) for done in expected]


def test_stopping_takes_no_further_call_of_the_network():
    net = models.unet("musev", "tiny", 0)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("enough")

    with calls(net) as recorded, pytest.raises(Cancelled, match="enough"):
        predict(24, options={"windows": WindowOptions(length=4, overlap=0)}, on_window=stop)
    assert len(recorded) == 2


# ---- precision, inputs, errors -------------------------------------------------------------------------------------


def test_a_network_in_bfloat16_predicts_in_the_precision_of_the_latents():
    net = copy.deepcopy(models.unet("musev", "tiny", 0)).bfloat16()
    clip = ClipConditions(text=conditions(2, arch="musev").text.bfloat16())
    controls = [Control(models.controlnet("tiny", 0), hints(9))]  # in float32
    got = predict(9, branches=2, net=net, clip=clip, controls=controls, condition_frames=(0,))
    assert got.dtype == torch.float32
    expected = predict(9, branches=2, clip=conditions(2, arch="musev"), controls=controls, condition_frames=(0,))
    assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_what_is_given_stays_as_it_was():
    x, hint, clip = latents(9), hints(9), conditions(2)
    kept = x.clone(), hint.clone(), clip.text.clone()
    denoiser = ClipDenoiser(
        models.unet("musev_referencenet", "tiny", 0),
        clip,
        branches=2,
        num_frames=9,
        condition_frames=(0,),
        options=DenoiserOptions(windows=WINDOWS),
        controls=[Control(models.controlnet("tiny", 0), hint)],
    )
    denoiser(x, T, 0, 10)
    assert all(torch.equal(a, b) for a, b in zip((x, hint, clip.text), kept, strict=True))


@pytest.mark.parametrize("frames", [[0, 1, 2], [3], [0, 2, 4], [4, 3, 2], [5, 6, 0, 1], [1, 1, 2]])
def test_frames_are_gathered_in_the_given_order(frames):
    x = latents(7)
    assert torch.equal(take_frames(x, frames, dim=2), x[:, :, frames])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"condition_frames": (0, 0)}, r"a condition frame is given twice: \[0, 0\]"),
        ({"condition_frames": (0, 9)}, r"must lie in 0\.\.8 for a clip of 9 frames, got \[0, 9\]"),
        ({"condition_frames": (-1,)}, r"must lie in 0\.\.8 for a clip of 9 frames, got \[-1\]"),
        ({"condition_frames": range(9)}, "all 9 frames of the clip are condition frames: nothing is left to generate"),
        ({"controls": [8]}, "one hint per frame of the clip, condition frames included: expected 9, got 8"),
        ({"controls": [9, 10]}, "one hint per frame of the clip, condition frames included: expected 9, got 10"),
    ],
)
def test_a_clip_that_cannot_be_evaluated_says_why(settings, message):
    settings = dict(settings)
    settings["controls"] = [Control(models.controlnet("tiny", 0), hints(n)) for n in settings.get("controls", ())]
    with pytest.raises(MuseVError, match=message):
        predict(9, **settings)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"windows_per_call": 0}, "windows_per_call must be at least 1, got 0"),
        ({"motion_speed": -1}, "motion_speed must be a finite number of at least 0, got -1"),
    ],
)
def test_wrong_options_say_what_is_expected(options, message):
    with pytest.raises(MuseVError, match=message):
        DenoiserOptions(**options)
