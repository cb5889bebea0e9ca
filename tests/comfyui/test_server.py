"""The pack in a real server: it is loaded from a folder of any name, reports, previews, stops, and forgets nothing."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image
from support.comfy_server import Rejected, running
from support.comfy_workflows import LONG, of_class, small
from support.comfyui import import_pack

STEPS, WINDOWS = 3, 2


@pytest.fixture(scope="module")
def server(request):
    return running(request.config.getoption("comfyui"))


def clip(seed: int = 0, length: int = LONG, **sampler) -> dict:
    """Image to video without references, in two windows; every seed is a run of its own."""
    workflow = small("lcm_fast")
    workflow[of_class(workflow, "MuseV_ImageToVideo")]["inputs"]["length"] = length
    workflow[of_class(workflow, "MuseV_Sampler")]["inputs"].update(
        {"seed": seed, "steps": STEPS, "cfg": 1.0, "cfg_end": 1.0, **sampler}
    )
    return workflow


def test_every_node_is_offered(server):
    offered = server.get("/object_info")
    nodes = asyncio.run(asyncio.run(import_pack().comfy_entrypoint()).get_node_list())
    assert len(nodes) > 15
    for node in nodes:
        info = offered[node.define_schema().node_id]
        assert info["category"].split("/")[0] == "MuseV"
        assert info["python_module"].startswith("custom_nodes.")


def test_progress_counts_windows_and_never_goes_back(server):
    workflow = clip(seed=1)
    run = server.run(workflow)
    assert run.end == "execution_success", run.error
    parts = run.progress()[of_class(workflow, "MuseV_Sampler")]
    assert parts == sorted(parts)
    assert set(np.round(np.arange(1, STEPS * WINDOWS + 1) / (STEPS * WINDOWS), 6)) <= set(np.round(parts, 6))


def test_every_step_is_previewed(server):
    run = server.run(clip(seed=2))
    assert len(run.previews) >= STEPS
    with Image.open(io.BytesIO(run.previews[-1])) as picture:
        assert np.asarray(picture).std() > 0


def test_an_interrupt_between_windows_ends_the_run_and_the_next_one_is_good(server):
    workflow = clip(seed=3)
    sampler = of_class(workflow, "MuseV_Sampler")
    run = server.run(workflow, interrupt=lambda run: len(run.progress().get(sampler, [])) == 1)
    assert run.end == "execution_interrupted"
    assert run.progress()[sampler][-1] < 1
    again = server.run(workflow)
    assert again.end == "execution_success", again.error
    assert len(server.video_frames(again.outputs()[of_class(workflow, "SaveVideo")])) == LONG


def _apply_twice(workflow):
    first = of_class(workflow, "MuseV_ApplyMotion")
    workflow["twice"] = {
        "class_type": "MuseV_ApplyMotion",
        "inputs": workflow[first]["inputs"] | {"model": [first, 0]},
    }
    workflow[of_class(workflow, "MuseV_Sampler")]["inputs"]["model"] = ["twice", 0]


def _overlap_as_long_as_the_window(workflow):
    sampler = workflow[of_class(workflow, "MuseV_Sampler")]["inputs"]
    inputs = {"context_length": 4, "context_overlap": 4, "schedule": "uniform_v2", "fuse": "linear", "shift": 0}
    workflow["windows"] = {"class_type": "MuseV_ContextWindows", "inputs": inputs | {"model": sampler["model"]}}
    sampler["model"] = ["windows", 0]


def _condition_frame_behind_the_end(workflow):
    workflow[of_class(workflow, "MuseV_ImageToVideo")]["inputs"]["condition_indices"] = "99"


def _length_through_a_link(workflow):
    workflow["number"] = {"class_type": "PrimitiveInt", "inputs": {"value": 2**31}}
    workflow[of_class(workflow, "MuseV_ImageToVideo")]["inputs"]["length"] = ["number", 0]


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_length_through_a_link, ("length must be a whole number from 2 to 100000, got 2147483648",)),
        (_overlap_as_long_as_the_window, ("overlap", "4")),
        (_condition_frame_behind_the_end, ("99", str(LONG))),
        (_apply_twice, ("one motion model",)),
    ],
)
def test_a_wrong_input_is_explained_and_the_next_run_works(server, spoil, words):
    workflow = clip(seed=4)
    spoil(workflow)
    run = server.run(workflow)
    assert run.end == "execution_error"
    assert all(word in run.error for word in words), run.error
    assert "Traceback" not in run.error
    good = server.run(clip(seed=5))
    assert good.end == "execution_success", good.error


def test_a_model_file_that_is_not_there_is_explained_before_anything_runs(server):
    workflow = clip()
    loader = of_class(workflow, "MuseV_LoadMotion")
    workflow[loader]["inputs"]["motion_name"] = "motion/musev_v2/unet/diffusion_pytorch_model.bin"
    with pytest.raises(Rejected) as rejected:
        server.run(workflow)
    (error,) = rejected.value.node_errors[loader]["errors"]
    assert "musev_v2" in error["details"]
    assert "motion/musev/unet/diffusion_pytorch_model.bin" in error["details"]


@pytest.mark.parametrize("sampler", ["MuseV_Sampler", "KSampler"])
def test_a_clip_without_a_condition_frame_gets_a_warning_on_the_sampler(server, sampler):
    workflow = clip(seed=6, steps=1)
    node = of_class(workflow, "MuseV_Sampler")
    empty = {"width": 64, "height": 64, "batch_size": 3}
    workflow["empty"] = {"class_type": "EmptyLatentImage", "inputs": empty}
    given = workflow[node]["inputs"]
    kept = {name: given[name] for name in ("model", "positive", "negative", "seed", "steps", "cfg", "denoise")}
    kept |= {"sampler_name": "euler", "scheduler": "normal"}
    if sampler == "MuseV_Sampler":
        kept |= {"latent": ["empty", 0], "cfg_end": 0.0, "guidance_curve": "linear"}
    else:
        kept |= {"latent_image": ["empty", 0]}
    workflow[node] = {"class_type": sampler, "inputs": kept}
    run = server.run(workflow)
    assert run.end == "execution_success", run.error
    assert [where for where, _ in run.texts] == [node]
    assert "no condition frame" in run.texts[0][1] and "Use Image to Video" in run.texts[0][1]
    assert server.run(clip(seed=7, steps=1)).texts == []


def test_after_an_error_of_another_pack_comfyui_finds_no_leak(server):
    """It looks for networks which outlive their MODEL whenever it loads something."""
    workflow = clip(seed=8, steps=1)
    sampler = workflow[of_class(workflow, "MuseV_Sampler")]["inputs"]
    workflow["broken"] = {"class_type": "Test_Broken", "inputs": {"model": sampler["model"]}}
    sampler["model"] = ["broken", 0]
    run = server.run(workflow)
    assert run.end == "execution_error" and "an error of another pack" in run.error
    server.post("/free", {"unload_models": True, "free_memory": True})
    for seed in (9, 10):
        again = server.run(clip(seed=seed, steps=1))
        assert again.end == "execution_success", again.error
    assert "memory leak" not in server.log_end(10**9)


@pytest.mark.slow
def test_runs_leave_no_memory_behind(server):
    memory = []
    for seed in range(100, 130):
        run = server.run(clip(seed=seed, steps=1))
        assert run.end == "execution_success", run.error
        memory.append(server.memory())
    settled = memory[3:]
    megabytes = [m["rss"] / 2**20 for m in settled]
    slope = np.polyfit(range(len(settled)), megabytes, 1)[0]
    assert slope < 0.5
    assert settled[-1]["tensors"] <= settled[0]["tensors"]
