"""Context windows inside ComfyUI's sampling: the core's own, one after the other, announced and interruptible."""

import comfy.model_management
import comfy.utils
import pytest
import torch
from support.small_comfy import (
    MUSEV,
    REFERENCENET,
    HintNet,
    clip,
    control_net,
    controlled,
    core_sample,
    difference,
    ksample,
    motion,
    numbered,
    prompt,
    recorded,
    sample_sigmas,
    video_model,
)

from musev_core.denoise.windows import WindowOptions, context_windows, place_condition_frames
from musev_core.models.conditions import ClipConditions
from musev_pack.nodes.host.options import MotionOptions, Span

SIGMAS = [1.0, 0.4, 0.0]


def noise(frames: int) -> torch.Tensor:
    return torch.randn(frames, 4, 4, 4, generator=torch.Generator().manual_seed(5))


def both(frames, conditions, windows, *, cfg=1.0, variant=MUSEV) -> tuple[torch.Tensor, torch.Tensor]:
    """A run inside ComfyUI, and the same by the core alone."""
    latent, drawn, good, bad = clip(frames, conditions), noise(frames), prompt("good"), prompt("bad")
    ours = sample_sigmas(
        video_model(variant=variant, windows=windows, speed=5.0), SIGMAS, drawn, latent, good, bad, cfg=cfg
    )
    text = good[0][0] if cfg == 1 else torch.cat([bad[0][0], good[0][0]])
    options = {"cfg": cfg, "variant": variant, "windows": windows, "speed": 5.0}
    return ours, core_sample(ClipConditions(text=text), SIGMAS, drawn, latent, **options)


@pytest.mark.parametrize("fuse", ["flat", "linear", "pyramid"])
@pytest.mark.parametrize(
    "windows",
    [
        WindowOptions(4, 1),
        WindowOptions(5, 3),
        WindowOptions(4, 2, shift=1),
        WindowOptions(4, 1, "uniform"),
        WindowOptions(3, 1, "uniform", stride=2),
        WindowOptions(1, 0),
        WindowOptions(50, 4),
    ],
    ids=["plain", "overlapping", "shifting", "wrapping", "strided", "single frames", "one window"],
)
def test_windows_and_weights_are_the_cores(windows, fuse):
    windows = WindowOptions(**{**vars(windows), "fuse": fuse})
    ours, core = both(8, (0,), windows)
    assert difference(ours, core) < 1e-4


@pytest.mark.parametrize("variant", [MUSEV, REFERENCENET])
@pytest.mark.parametrize("conditions", [(0,), (7,), (3, 4), ()])
def test_guidance_over_windows_is_the_cores(conditions, variant):
    ours, core = both(8, conditions, WindowOptions(4, 1, fuse="linear"), cfg=3.5, variant=variant)
    # rounding of 2e-5, multiplied by guidance and again by the second step of a network with random weights
    assert difference(ours, core) < 1e-3


def seen_windows(frames, conditions, windows, steps=1) -> list[list[int]]:
    with recorded(video_model(windows=windows)) as (watched, recorder):
        ksample(watched, clip(frames, conditions), steps=steps)
    return recorder.windows


def test_a_window_longer_than_the_clip_is_one_window():
    assert seen_windows(7, (0,), WindowOptions(12, 4), steps=2) == [list(range(7))] * 2


def test_wrapping_windows_join_the_end_to_the_start():
    windows = WindowOptions(4, 1, "uniform")
    generated = list(range(1, 9))
    expected = [place_condition_frames([generated[i] for i in w], [0]) for w in context_windows(8, windows)]
    assert seen_windows(9, (0,), windows) == expected
    assert any(8 in window and 1 in window for window in expected)


def test_shifting_windows_move_their_seams_at_every_step():
    windows = WindowOptions(4, 1, shift=1)
    expected = [[0, *(i + 1 for i in w)] for step in range(3) for w in context_windows(8, windows, step)]
    assert seen_windows(9, (0,), windows, steps=3) == expected
    assert context_windows(8, windows, 0) != context_windows(8, windows, 1)


def test_a_long_clip():
    options = WindowOptions(12, 4, fuse="linear")
    with recorded(video_model(windows=options)) as (watched, recorder):
        out = ksample(watched, clip(40), steps=1, cfg=3.5)
    assert recorder.windows == [[0, *(i + 1 for i in w)] for w in context_windows(39, options)]
    assert torch.isfinite(out).all()
    assert (out[1:].flatten(1).std(dim=1) > 0).all()


def test_the_present_window_is_announced_to_other_packs():
    """The contract of IPAdapter_plus and Advanced-ControlNet (comfyui.md B6), where their patches look."""
    announced = []

    def patch(q, k, v, extra):
        announced.append(extra["ad_params"])
        return q, k, v

    model = video_model()
    model.set_model_attn2_patch(patch)
    ksample(model, clip(7), steps=1, cfg=3.5)
    windows = [[0, 1, 2, 3, 4], [0, 4, 5, 6]]
    expected = [{"sub_idxs": w, "full_length": 7, "context_length": len(w)} for w in windows]
    assert [x for i, x in enumerate(announced) if i == 0 or x != announced[i - 1]] == expected


def progress_of(run) -> list[tuple[int, int]]:
    messages = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: messages.append((value, total)))
    try:
        run()
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    return messages


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "uni_pc"])
def test_progress_rises_window_by_window(sampler, monkeypatch):
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)  # ComfyUI leaves out messages in quick turn
    messages = progress_of(lambda: ksample(video_model(), clip(7), steps=3, sampler=sampler, cfg=3.5))
    shares = [value / total for value, total in messages]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    if sampler == "euler":
        # two windows a step, and ComfyUI's own message with the preview after each step
        assert messages == [(1, 6), (2, 6), (1, 3), (3, 6), (4, 6), (2, 3), (5, 6), (6, 6), (3, 3)]


def test_an_interrupt_between_windows_stops_and_the_next_run_works():
    model, latent = video_model(), clip(12)
    before = ksample(model, latent, cfg=3.5)
    with recorded(model) as (watched, recorder):

        def interrupt(executor, *args, **kwargs):
            out = executor(*args, **kwargs)
            if len(recorder.windows) == 2:
                comfy.model_management.interrupt_current_processing(True)
            return out

        watched.add_wrapper_with_key("calc_cond_batch", "interrupting", interrupt)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            ksample(watched, latent, cfg=3.5)
    assert len(recorder.windows) == 2
    assert not comfy.model_management.processing_interrupted()
    assert torch.equal(ksample(model, latent, cfg=3.5), before)


def test_memory_is_asked_for_one_window(monkeypatch):
    asked = []
    load = comfy.model_management.load_models_gpu

    def recording(models, memory_required=0, **kwargs):
        asked.append((list(models), memory_required))
        return load(models, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", recording)
    model = video_model()
    ksample(model, clip(40), steps=1)
    ((models, memory),) = asked
    frames = 2 * (4 + 1)  # both guidance branches of a window and its condition frame
    assert memory == model.model.memory_required([frames, 4, 4, 4])
    assert [m.model for m in models] == [model.model, motion(MUSEV).tree]


@pytest.mark.parametrize("memory", ["enough", "short"])
def test_where_the_motion_takes_no_part_comfyui_works_on_the_whole_clip_if_memory_allows(memory):
    """And otherwise on parts of it, which get the hints and prompts of their frames."""
    net = HintNet()
    positive, negative = controlled(
        prompt("good", rows=7), prompt("bad"), control_net(net), numbered(7)
    )  # a prompt per frame
    plain = video_model(motion=MotionOptions(motion(MUSEV), span=Span(0.9, 1.0)))
    latent = {"samples": torch.zeros(7, 4, 4, 4)}
    whole = ksample(plain, latent, positive, negative, steps=1, cfg=3.5)
    model = plain.clone()
    if memory == "short":
        model.add_object_patch("memory_usage_factor", 1e12)
    net.seen.clear()
    with recorded(model) as (watched, recorder):
        out = ksample(watched, latent, positive, negative, steps=1, cfg=3.5)
    parts = [list(range(7))] if memory == "enough" else [[0, 1, 2, 3], [4, 5, 6]]
    chunks = 2 if memory == "enough" else 1
    assert net.frames() == [part * chunks for part in parts for _ in range(2 // chunks)]
    assert difference(out, whole) < 1e-5


def test_steps_of_samplers_that_look_between_two_noise_levels():
    """A guidance schedule and moving seams follow the step, not the number of calls."""
    windows = WindowOptions(4, 1, shift=1)
    with recorded(video_model(windows=windows)) as (watched, recorder):
        ksample(watched, clip(9), steps=3, sampler="heun")
    by_sigma = {}
    for sigma, window in zip(recorder.sigmas, recorder.windows, strict=True):
        by_sigma.setdefault(sigma, set()).add(tuple(window))
    expected = [{(0, *(i + 1 for i in w)) for w in context_windows(8, windows, step)} for step in range(3)]
    assert [by_sigma[sigma] for sigma in sorted(by_sigma, reverse=True)] == expected
