"""What one call of the full-size network costs, counted without hardware: the gates a change must not exceed."""

import math
import statistics

import pytest
import torch
from support import golden_models as models

from musev_core.bench.cases import (
    Case,
    Options,
    guidance_calls,
    random_clip,
    random_unet,
    window_call,
    with_options,
)
from musev_core.bench.command import count_case
from musev_core.denoise.control import ClipControls, Control
from musev_core.denoise.denoiser import ClipDenoiser, DenoiserOptions
from musev_core.models.conditions import ClipConditions

# 512x512, 12 + 1 frames, fp16, any window after the first; (TFLOP, kernels, kernels with fused ones, GB, GB fused)
GATES = {
    "musev_referencenet": (38.9, 1480, 1180, 150, 125),
    "musev": (35.2, 1350, 1080, 150, 125),
}


@pytest.mark.parametrize("variant", ["musev_referencenet", pytest.param("musev", marks=pytest.mark.slow)])
def test_one_window_stays_within_the_gates(variant):
    tflop, kernels, fused_kernels, gigabytes, fused_gigabytes = GATES[variant]
    plain = count_case(Case(variant=variant), Options(kernels="off"))
    fused = count_case(Case(variant=variant), Options(kernels="on"))
    window, with_kernels = plain.window.total, fused.window.total
    assert window.flops <= tflop * 1e12
    assert window.kernels <= kernels
    assert window.bytes <= gigabytes * 1e9
    assert window.peak <= 1.4e9
    assert window.syncs == with_kernels.syncs == plain.first.total.syncs == fused.first.total.syncs == 0
    assert with_kernels.flops <= tflop * 1e12
    assert with_kernels.kernels <= fused_kernels
    assert with_kernels.bytes <= fused_gigabytes * 1e9
    assert with_kernels.peak <= 1.4e9


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["off", "on"])
def test_split_branches_need_half_the_memory(kernels):
    assert count_case(Case(branches="split"), Options(kernels=kernels)).window.total.peak <= 0.75e9


@pytest.mark.slow
def test_the_cost_grows_with_the_number_of_frames_and_no_faster():
    """The slope of a straight line through all lengths, both axes logarithmic."""
    frames = range(100, 1001, 300)
    flops = [count_case(Case(variant="musev", frames=n), Options(kernels="off")).clip.flops for n in frames]
    slope, _ = statistics.linear_regression([math.log(n) for n in frames], [math.log(x) for x in flops])
    assert 0.98 <= slope <= 1.02
    assert 0.98 <= math.log10(flops[-1] / flops[0]) <= 1.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU never waits for its host")
@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_the_gpu_never_waits_for_the_host(kernels):
    case, device = Case(tiny=True), torch.device("cuda")
    unet = random_unet(case, device)
    call = with_options(unet, Options(kernels=kernels))(
        window_call(case, unet, guidance_calls(case, random_clip(case, device)), case.window)
    )
    with torch.inference_mode():
        call()  # kernels are compiled, and what is constant over the clip is computed
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_control_frames_per_output_frame_and_step():
    """Each frame once, the condition frame too, however many windows hold it."""
    import torch

    n, evaluated = 240, []
    net = models.controlnet("tiny", 0)
    hook = net.register_forward_pre_hook(lambda _, args: evaluated.append(args[0].shape[0]))
    try:
        clip = ClipConditions(torch.zeros(1, 7, 32))
        control = Control(net, torch.zeros(1, 3, 8, 8).expand(n + 1, 3, 8, 8))
        denoiser = ClipDenoiser(
            models.unet("musev", "tiny", 0),
            clip,
            branches=1,
            num_frames=n + 1,
            condition_frames=(0,),
            options=DenoiserOptions(),
        )
        controls = ClipControls([control], clip)
        windows = [window.frames for job in denoiser.windows.call(0).jobs for window in job]
        controls.start_step(0, 1, windows)
        with torch.inference_mode():
            for done, window in enumerate(windows, 1):
                controls.residuals(torch.zeros(1, 4, n + 1, 1, 1), torch.tensor(500.0), [window], done)
    finally:
        hook.remove()
    assert sum(evaluated) / n <= 1.01
