"""ControlNets inside context windows: every frame has its own hint, whatever ComfyUI batches (comfyui.md A5)."""

import comfy.controlnet
import comfy.model_management
import pytest
import torch
from support.small_comfy import (
    HintNet,
    clip,
    comfy_control_net,
    control_net,
    controlled,
    core_control_net,
    core_sample,
    difference,
    ksample,
    numbered,
    prompt,
    recorded,
    sample_sigmas,
    video_model,
)

from musev_core.denoise.control import Control
from musev_core.denoise.windows import WindowOptions
from musev_core.errors import MuseVError
from musev_core.models.conditions import ClipConditions
from musev_pack.nodes.host.control import ControlCache
from musev_pack.nodes.host.options import GuidanceOptions

FRAMES, THREE = 11, WindowOptions(4, 1)  # three windows of ten frames and the condition frame
WINDOWS = [[0, 1, 2, 3, 4], [0, 4, 5, 6, 7], [0, 7, 8, 9, 10]]


def model(memory: str = "enough", **options):
    """A MODEL which evaluates guidance branches together, or, where memory is short, one by one."""
    new = video_model(windows=THREE, **options)
    if memory == "short":
        new.add_object_patch("memory_usage_factor", 1e12)
    return new


def sample(net, model, hints, *, steps=2, cfg=3.5, conditions=(0,), **options):
    conds = controlled(prompt("good"), prompt("bad"), control_net(net), hints)
    return ksample(model, clip(FRAMES, conditions), *conds, steps=steps, cfg=cfg, **options)


@pytest.mark.parametrize("memory", ["enough", "short"])
@pytest.mark.parametrize("cfg", [1.0, 3.5])
def test_every_frame_has_its_hint(cfg, memory):
    net = HintNet()
    sample(net, model(memory), numbered(FRAMES), cfg=cfg)
    chunks = 2 if cfg > 1 else 1
    together = [window * chunks for window in WINDOWS]
    one_by_one = [window for window in WINDOWS for _ in range(chunks)]
    assert net.frames() == (together if memory == "enough" else one_by_one) * 2


def test_hints_of_the_shortest_clip_are_cut_as_well():
    net = HintNet()
    conds = controlled(prompt("good"), prompt("bad"), control_net(net), numbered(2))
    ksample(video_model(windows=WindowOptions(1, 0)), clip(2, ()), *conds, steps=1)
    assert net.frames() == [[0], [1]]


@pytest.mark.parametrize("memory", ["enough", "short"])
def test_chained_controls_have_theirs(memory):
    first, second = HintNet(), HintNet()
    conds = controlled(prompt("good"), prompt("bad"), control_net(first), numbered(FRAMES))
    conds = controlled(*conds, control_net(second), numbered(FRAMES) + 0.5)
    ksample(model(memory), clip(FRAMES), *conds, cfg=3.5)
    assert [[i % 50 for i in frames] for frames in second.frames()] == first.frames()
    assert min(min(frames) for frames in second.frames()) == 50
    assert {tuple(frames[: len(frames) // (2 if memory == "enough" else 1)]) for frames in first.frames()} == {
        tuple(window) for window in WINDOWS
    }


@pytest.mark.parametrize("conditions", [(10,), (5,), (0, 10)])
def test_hints_follow_condition_frames_at_any_place(conditions):
    net = HintNet()
    conds = controlled(prompt("good"), prompt("bad"), control_net(net), numbered(FRAMES))
    with recorded(model()) as (watched, recorder):
        ksample(watched, clip(FRAMES, conditions), *conds)
    assert net.frames() == recorder.windows


def test_one_hint_is_for_all_frames():
    net = HintNet()
    out = sample(net, model(), numbered(8)[7:])
    assert all(set(frames) == {7} for frames in net.frames())
    repeated = sample(HintNet(), model(), numbered(8)[7:].expand(FRAMES, -1, -1, -1))
    assert torch.equal(out, repeated)


@pytest.mark.parametrize("hints", [2, FRAMES - 1, FRAMES + 1])
def test_another_number_of_hints_is_refused_before_anything_runs(hints):
    net = HintNet()
    with recorded(model()) as (watched, recorder), pytest.raises(MuseVError, match=f"{hints} control pictures.*11 fra"):
        sample(net, watched, numbered(hints))
    assert not net.seen and not recorder.inputs
    assert torch.isfinite(sample(net, model(), numbered(FRAMES))).all()


def test_hints_of_a_second_control_are_checked_too():
    conds = controlled(prompt("good"), prompt("bad"), control_net(HintNet()), numbered(3))
    conds = controlled(*conds, control_net(HintNet()), numbered(FRAMES))
    with pytest.raises(MuseVError, match="3 control pictures"):
        ksample(model(), clip(FRAMES), *conds)


@pytest.mark.parametrize("variant", ["musev", "musev_referencenet"])
def test_a_controlled_video_is_the_cores(variant):
    """Two of ComfyUI's ControlNets against diffusers' with the same weights."""
    latent, sigmas = clip(8), [1.0, 0.4, 0.0]
    noise = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    hints = [torch.rand(8, 32, 32, 3, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    conds, controls = (prompt("good"), prompt("bad")), []
    for seed, scale in ((0, 1.0), (1, 0.6)):
        conds = controlled(*conds, control_net(comfy_control_net(seed)), hints[seed], scale)
        controls.append(Control(core_control_net(seed), hints[seed].movedim(-1, 1), scale))
    text = ClipConditions(text=torch.cat([prompt("bad")[0][0], prompt("good")[0][0]]))
    ours = sample_sigmas(video_model(variant=variant, windows=THREE), sigmas, noise, latent, *conds, cfg=3.5)
    options = {"cfg": 3.5, "variant": variant, "windows": THREE}
    core = core_sample(text, sigmas, noise, latent, **options, controls=controls)
    assert difference(ours, core) < 1e-3  # see test_windows.py
    assert difference(core_sample(text, sigmas, noise, latent, **options), core) > 0.1


def counting(net: HintNet) -> tuple[comfy.controlnet.ControlNet, list]:
    """A control which keeps the shapes of the hints it prepared."""
    control, prepared = control_net(net), []

    def preprocess(hint):
        prepared.append(len(hint))
        return hint

    control.preprocess_image = preprocess
    return control, prepared


def test_hints_are_prepared_once_a_window_and_not_at_every_step():
    control, prepared = counting(HintNet())
    conds = controlled(prompt("good"), prompt("bad"), control, numbered(FRAMES))
    ksample(model(), clip(FRAMES), *conds, cfg=3.5, steps=4)
    assert prepared == [len(window) for window in WINDOWS]
    ksample(model(), clip(FRAMES), *conds, cfg=3.5, steps=1)
    assert len(prepared) == 2 * len(WINDOWS)  # for a run: nothing outlives it


def test_large_hints_leave_the_device_between_windows(monkeypatch):
    kept = sample(HintNet(), model(), numbered(FRAMES))
    moves = []
    monkeypatch.setattr(ControlCache, "LIMIT", 0)
    offload = comfy.model_management.unet_offload_device
    monkeypatch.setattr(comfy.model_management, "unet_offload_device", lambda: moves.append(1) or offload())
    net = HintNet()
    assert torch.equal(sample(net, model(), numbered(FRAMES)), kept)
    assert len(moves) >= 2 * len(WINDOWS)
    assert net.frames() == [window * 2 for window in WINDOWS] * 2


class SlicesItself(comfy.controlnet.ControlNet):
    """As Advanced-ControlNet: is told the window, and cuts hints on its own."""

    def __init__(self, net):
        super().__init__(net, load_device=torch.device("cpu"))
        self.sub_idxs = self.full_latent_length = self.context_length = None
        self.told = net.told

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.told.append((self.sub_idxs, self.full_latent_length, self.context_length))
        self.cond_hint, whole = None, self.cond_hint_original
        self.cond_hint_original = whole[self.sub_idxs]
        try:
            return super().get_control(x_noisy, t, cond, batched_number, transformer_options)
        finally:
            self.cond_hint_original = whole

    def copy(self):
        new = SlicesItself(self.control_model)
        self.copy_to(new)
        return new


def test_controls_which_cut_by_themselves_are_told_the_window():
    net = HintNet()
    net.told = []
    conds = controlled(prompt("good"), prompt("bad"), SlicesItself(net), numbered(FRAMES))
    out = ksample(model(), clip(FRAMES), *conds, cfg=3.5)
    assert net.told == [(window, FRAMES, len(window)) for window in WINDOWS] * 2
    assert net.frames() == [window * 2 for window in WINDOWS] * 2
    assert torch.equal(out, sample(HintNet(), model(), numbered(FRAMES)))


def test_masks_beside_the_hints_are_cut_as_well():
    """ControlNets for inpainting take one more channel."""
    net = HintNet()
    control = control_net(net)
    control.concat_mask = True
    masks = [numbered(FRAMES)[..., 0][:, None]]
    conds = []
    for text in ("good", "bad"):
        [[tokens, options]] = prompt(text)
        conds.append([[tokens, {**options, "control": control, "control_apply_to_uncond": False}]])
    control.set_cond_hint(numbered(FRAMES).movedim(-1, 1), 1.0, (0.0, 1.0), extra_concat=masks)
    ksample(model(), clip(FRAMES), *conds, cfg=3.5)
    assert all(call["hint"].shape[1] == 4 for call in net.seen)
    # the mean over all channels is the frame only if the fourth is that frame's too
    assert net.frames() == [window * 2 for window in WINDOWS] * 2


def test_controls_act_between_their_percents():
    net = HintNet()
    conds = controlled(prompt("good"), prompt("bad"), control_net(net), numbered(FRAMES))
    for conditioning in conds:
        conditioning[0][1]["control"].timestep_percent_range = (0.0, 0.4)
    ksample(model(), clip(FRAMES), *conds, steps=4)
    assert net.frames() == WINDOWS * 2  # two of four steps


class FirstLayer(torch.nn.Module):
    """A T2I adapter which acts on the first layer, with the value of its hint."""

    unshuffle_amount = 8

    def forward(self, hint):
        level = hint.mean(dim=(1, 2, 3))[:, None, None, None]
        return {"input": [level.expand(-1, 64, hint.shape[2] // 8, hint.shape[3] // 8).clone()]}


@pytest.mark.parametrize("guidance", [(3.5, 1.0), (1.0, 3.5), (3.5, 3.5)])
@pytest.mark.parametrize("hints", [1, FRAMES])
def test_t2i_adapters_act_on_every_branch(hints, guidance):
    """They keep their answer for the whole run, also when the negative prompt joins in or drops out."""

    def run(memory, images):
        adapter = comfy.controlnet.T2IAdapter(FirstLayer(), 3, 8, "nearest-exact")
        conds = controlled(prompt("good"), prompt("bad"), adapter, images)
        return ksample(model(memory, guidance=GuidanceOptions(*guidance, "linear")), clip(FRAMES), *conds, cfg=3.5)

    out = run("enough", numbered(11)[-hints:])
    assert difference(out, run("short", numbered(11)[-hints:])) < 1e-3
    assert difference(run("enough", torch.zeros(1, 32, 32, 3)), out) > 0.01


def test_prompts_of_the_controlled_frames_reach_the_control():
    net = HintNet()
    travelling = prompt("travelling", rows=FRAMES)
    conds = controlled(travelling, prompt("bad"), control_net(net), numbered(FRAMES))
    ksample(model(), clip(FRAMES), *conds, steps=1)
    for window, call in zip(WINDOWS, net.seen, strict=True):
        assert torch.equal(call["context"], travelling[0][0][window])
