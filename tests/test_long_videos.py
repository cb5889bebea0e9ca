"""What a long video costs in memory: nothing that grows with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import published

from musev_core.frames.image_files import save_image

TESTS = Path(__file__).parent
FRAMES = int(os.environ.get("MUSEV_LONG", "800"))
MEASURED = 300  # frames, after which everything is warm

# A video from the command line's own parts, in a process of its own: what it holds after `MEASURED` frames, and more
# than that at any later time, in bytes.
MEASURE = """
import json, sys
from pathlib import Path
import psutil, torch
sys.path.insert(0, sys.argv[1])
from support import golden_models as models
from test_shots import SAMPLING, make_pipeline
from musev_core.frames.images import canny
from musev_core.frames.segments import ResumableVideo
from musev_core.frames.source import FileFrames
from musev_core.frames.video import VideoWriter
from musev_core.pipeline import PART, ControlInput, VideoRequest

folder, frames, measured = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
process = psutil.Process()
driving = folder / "driving.mp4"
request = {"prompt": "a girl sings", "height": 32, "width": 32, "num_frames": frames, "sampling": SAMPLING}
with VideoWriter(driving, fps=25) as writer:
    for first in range(0, frames, 100):
        moving = torch.arange(96)[None, :, None, None] + torch.arange(first, first + 100)[:, None, None, None]
        writer.write(moving.expand(100, 96, 128, 3).remainder(256).to(torch.uint8))
request["controls"] = [ControlInput(models.controlnet("tiny", 0), FileFrames(driving), preprocessor=canny)]

shots = make_pipeline("musev").plan(VideoRequest(**request), seed=0)
done, before, most = 0, 0, 0
with ResumableVideo(folder / "film.mp4", fps=25, facts={}) as film:
    film.begin(shots.num_frames, {}, {})
    for part in shots.stream(PART, checkpoint=film.checkpoint):
        film.write(part)
        done += len(part)
        held = process.memory_info().rss
        if done <= measured:
            before = max(before, held)
        most = max(most, held)
print(json.dumps({"before": before, "growth": most - before, "frames": done}))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    arguments = [str(TESTS), str(tmp_path), str(FRAMES), str(MEASURED)]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=False, cwd=TESTS
    )
    assert result.returncode == 0, result.stderr
    memory = json.loads(result.stdout.splitlines()[-1])
    assert memory["frames"] == FRAMES
    assert memory["growth"] < 8e6, memory  # a frame of the driving video has 37 kB


# Many videos in one process: what it holds after each, in bytes, and how many plans are alive at the end.
ENDLESS = """
import ctypes, gc, json, sys, weakref
import psutil, torch
import musev_core.tasks.making as making
from musev_core.cli import main

torch.set_num_threads(1)
held, plans, process = [], [], psutil.Process()
make, plan = making.make_video, making.MuseVPipeline.plan

def measured(*args, **kwargs):
    path = make(*args, **kwargs)
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but scattered, is not held
    held.append(process.memory_info().rss)
    return path

def watched(*args, **kwargs):
    made = plan(*args, **kwargs)
    plans.append(weakref.ref(made))
    return made

making.make_video, making.MuseVPipeline.plan = measured, watched
status = main(sys.argv[1:])
gc.collect()
print(json.dumps({"status": status, "held": held, "alive": sum(plan() is not None for plan in plans)}))
"""


@pytest.mark.slow
def test_many_videos_in_one_process(tmp_path):
    published.write_musev(tmp_path / "motion")
    published.write_base(tmp_path / "base")
    published.write_image_encoder(tmp_path / "image_encoder")
    save_image(tmp_path / "picture.png", torch.arange(64 * 64 * 3).reshape(1, 64, 64, 3).remainder(251).to(torch.uint8))
    task = (
        f"- name: one\n  prompt: a\n  condition_images: {tmp_path / 'picture.png'}\n  time_size: 2\n  n_repeat: 200\n"
    )
    (tmp_path / "tasks.yaml").write_text(task, encoding="utf-8")
    arguments = ["generate", tmp_path / "tasks.yaml", "--musev", tmp_path / "motion", "--base", tmp_path / "base"]
    arguments += ["--image_encoder", tmp_path / "image_encoder", "--output_dir", tmp_path / "results", "--seed", 1]
    arguments += ["--video_num_inference_steps", 1, "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, "-c", ENDLESS, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    memory = json.loads(result.stdout.splitlines()[-1])
    held = memory["held"]
    assert memory["status"] == 0 and len(held) == 200 and memory["alive"] == 0, result.stderr
    assert max(held[50:]) - max(held[:50]) < 8e6, held[::10]
