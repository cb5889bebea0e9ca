"""Requests for a video in several scenes, and a table of what every field of theirs changes (test_sensitivity.py)."""

import dataclasses
from functools import cache
from typing import Any

import torch

from musev_core.denoise.denoiser import DenoiserOptions
from musev_core.denoise.noise import NoiseOptions
from musev_core.denoise.schedulers import SchedulerConfig
from musev_core.denoise.windows import WindowOptions
from musev_core.encode.pictures import FacePromptEncoder, ImagePromptEncoder
from musev_core.pipeline import ControlInput, MuseVPipeline, SamplingOptions, VideoRequest

from . import golden_models as models
from .effects import Row, count, frames, put, refused, same, size, speed
from .numbers import det_image

PIXELS = 32


def picture(name: str, n: int = 1) -> torch.Tensor:
    """uint8 `(n, H, W, 3)`, a little larger than the video, so that it matters how it is fitted."""
    return det_image(name, (1, 3, n, PIXELS + 4, PIXELS + 9)).permute(0, 2, 3, 4, 1)[0]


def inverted(pictures: torch.Tensor) -> torch.Tensor:
    return 255 - pictures


def brightness(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float().mean(-1, keepdim=True).expand(pictures.shape).to(torch.uint8)


def face_embeddings(pictures: torch.Tensor) -> torch.Tensor:
    """Stand-in extractor whose embeddings do depend on the pictures."""
    e = models.face_embeddings(pictures)
    e = e + pictures.float().mean((1, 2)).repeat(1, e.shape[1])[:, : e.shape[1]] / 255
    return e / e.norm(dim=1, keepdim=True)


@cache
def pipeline() -> Any:
    return MuseVPipeline(
        unet=models.unet("musev_referencenet", "tiny", 0, True),
        vae=models.vae(0),
        tokenizer=models.StandInTokenizer(),
        text_encoder=models.text_encoder(0),
        reference_net=models.reference_net("tiny", 0),
        image_prompt=ImagePromptEncoder(models.image_encoder(0), models.projection("plain", 0)),
        face_prompt=FacePromptEncoder(face_embeddings, models.projection("faceid", 0)),
    )


SAMPLING = SamplingOptions(
    num_steps=1, scheduler=SchedulerConfig(), denoiser=DenoiserOptions(windows=WindowOptions(length=2, overlap=1))
)
FIRST_FRAME = SamplingOptions(
    num_steps=1,
    guidance_scale=7.5,
    noise=NoiseOptions(type="random"),
    denoiser=DenoiserOptions(skip_temporal=True, windows=WindowOptions(length=2, overlap=1)),
)
PICTURE = VideoRequest(
    prompt="a girl sings",
    negative_prompt="ugly",
    image=picture("condition"),
    num_frames=3,
    height=PIXELS,
    width=PIXELS,
    reference_image=picture("reference"),
    image_prompt=picture("prompt"),
    face_image=picture("face"),
    sampling=SAMPLING,
    first_frame=FIRST_FRAME,
)
SHOTS = dataclasses.replace(PICTURE, num_frames=2, num_shots=2)
TEXT = dataclasses.replace(PICTURE, image=None, reference_image=None, image_prompt=None, face_image=None)
# three pictures whose temporal layers see each other
REDRAWN = put(
    dataclasses.replace(PICTURE, image=picture("three", 3), num_frames=1, redraw=True),
    {"first_frame.strength": 0.9, "first_frame.denoiser.skip_temporal": False},
)
DRIVEN = dataclasses.replace(
    PICTURE,
    video=picture("driving", 4),
    controls=[
        ControlInput(models.controlnet("tiny", 0), picture("control", 4), inverted, scale=0.8),
        ControlInput(models.controlnet("tiny", 1), picture("second control", 4)),
    ],
)
SCENES = {"picture": PICTURE, "shots": SHOTS, "text": TEXT, "redrawn": REDRAWN, "driven": DRIVEN}

NO_PICTURE = "a first frame is made of noise alone, or of the picture itself: there is none to mix in"
WINDOWS_OF_3 = {"sampling.denoiser.windows.length": 3, "sampling.denoiser.windows.overlap": 2, "num_frames": 4}
STEPS = {"sampling.num_steps": 3}  # the last one starts where hardly any noise is left
FIRST_STEPS = {"first_frame.num_steps": 3}
LEADING = {"sampling.scheduler.timestep_spacing": "leading", **STEPS}
LCM = {**LEADING, "sampling.scheduler.type": "lcm"}

ROWS = {
    "prompt": Row("a dog runs"),
    "negative_prompt": Row("blurry"),
    "first_frame_negative_prompt": Row("blurry", scene="text"),
    "image": Row(picture("another")),
    "condition_frames": Row([2]),
    "num_frames": Row(2, count),
    "num_shots": Row(2, count),
    "height": Row(PIXELS + 8, size),
    "width": Row(PIXELS + 8, size),
    "video": Row(picture("other driving", 4), scene="driven", given={"video_strength": 0.5, **STEPS}),
    "video_strength": Row(0.5, scene="driven", given=STEPS),
    "video_has_condition": Row(
        False, count, scene="driven", given={"controls.1.condition_map": picture("map")}
    ),
    "reference_image": Row(picture("other reference")),
    "image_prompt": Row(picture("other prompt")),
    "face_image": Row(picture("other face")),
    "use_reference": Row(False),
    "use_image_prompt": Row(False),
    "use_face": Row(False),
    "redraw": Row(True),
    "redraw_with_reference": Row(False, scene="redrawn"),
    "redraw_with_image_prompt": Row(False, scene="redrawn"),
    "redraw_with_face": Row(False, scene="redrawn"),
    "num_condition_frames": Row(2, scene="shots"),
    "fixed_condition": Row(True, scene="shots"),
    "fixed_reference": Row(False, scene="shots"),
    "fixed_image_prompt": Row(False, scene="shots"),
    "fixed_face": Row(False, scene="shots"),
    "match_histogram": Row(True, frames),
    "legacy_fit": Row(True),
    # ---- ControlNets
    "controls.0.net": Row(models.controlnet("tiny", 2), scene="driven"),
    "controls.0.frames": Row(picture("other control", 4), scene="driven"),
    "controls.0.preprocessor": Row(brightness, scene="driven"),
    "controls.0.condition_map": Row(
        picture("other map"),
        scene="driven",
        given={"video_has_condition": False, "num_frames": 2, "controls.1.condition_map": picture("map")},
    ),
    "controls.0.scale": Row(0.4, scene="driven"),
    "controls.0.start": Row(0.5, scene="driven", given=STEPS),
    "controls.0.end": Row(0.5, scene="driven", given=STEPS),
    "controls.1.net": Row(models.controlnet("tiny", 2), scene="driven"),
    "controls.1.frames": Row(picture("other control", 4), scene="driven"),
    "controls.1.preprocessor": Row(brightness, scene="driven"),
    "controls.1.condition_map": Row(
        picture("other map"),
        scene="driven",
        given={"video_has_condition": False, "num_frames": 2, "controls.1.condition_map": picture("map")},
    ),
    "controls.1.scale": Row(0.4, scene="driven"),
    "controls.1.start": Row(0.5, scene="driven", given=STEPS),
    "controls.1.end": Row(0.5, scene="driven", given=STEPS),
    # ---- numbers of the video's run
    "sampling.num_steps": Row(2),
    "sampling.guidance_scale": Row(5.0),
    "sampling.guidance_end": Row(6.0, given=STEPS),
    "sampling.guidance_method": Row("two_stage", given={"sampling.guidance_end": 6.0, **STEPS}),
    "sampling.strength": Row(0.5, refused, why="give video_strength, which says how far"),
    "sampling.image_scale": Row(0.5),
    "sampling.face_scale": Row(0.5),
    "sampling.scheduler.type": Row("ddim"),
    "sampling.scheduler.timestep_spacing": Row("leading"),
    "sampling.scheduler.steps_offset": Row(0, given=LEADING),
    "sampling.scheduler.prediction_type": Row("v_prediction"),
    "sampling.scheduler.num_train_timesteps": Row(500),
    "sampling.scheduler.beta_start": Row(0.002),
    "sampling.scheduler.beta_end": Row(0.02),
    "sampling.scheduler.beta_schedule": Row("linear"),
    "sampling.scheduler.original_inference_steps": Row(20, given=LCM),
    "sampling.noise.type": Row("random"),
    "sampling.noise.individual_weight": Row(0.9),
    "sampling.noise.image_weight": Row(0.3),
    "sampling.noise.draw": Row("original"),
    "sampling.denoiser.windows.length": Row(3),
    "sampling.denoiser.windows.overlap": Row(0),
    "sampling.denoiser.windows.schedule": Row("uniform"),
    "sampling.denoiser.windows.stride": Row(2, given={"sampling.denoiser.windows.schedule": "uniform"}),
    "sampling.denoiser.windows.fuse": Row("pyramid", given=WINDOWS_OF_3),
    "sampling.denoiser.windows.shift": Row(1, given={"sampling.denoiser.windows.overlap": 0, **STEPS}),
    "sampling.denoiser.motion_speed": Row(16.0),
    "sampling.denoiser.skip_temporal": Row(True),
    "sampling.denoiser.windows_per_call": Row(2, speed),
    "sampling.denoiser.split_guidance": Row(True, speed),
    # ---- numbers of the first frame's run
    "first_frame.num_steps": Row(3, scene="redrawn"),
    "first_frame.guidance_scale": Row(5.0, scene="redrawn"),
    "first_frame.guidance_end": Row(3.0, scene="redrawn", given=FIRST_STEPS),
    "first_frame.guidance_method": Row(
        "two_stage", scene="redrawn", given={"first_frame.guidance_end": 3.0, **FIRST_STEPS}
    ),
    "first_frame.scheduler": Row("ddim", scene="redrawn"),
    "first_frame.strength": Row(0.4, scene="redrawn", given=FIRST_STEPS),
    "first_frame.image_scale": Row(0.5, scene="redrawn"),
    "first_frame.face_scale": Row(0.5, scene="redrawn"),
    "first_frame.noise.type": Row("video_fusion", scene="redrawn"),
    "first_frame.noise.individual_weight": Row(0.9, scene="redrawn", given={"first_frame.noise.type": "video_fusion"}),
    "first_frame.noise.draw": Row("original", scene="redrawn"),
    "first_frame.noise.image_weight": Row(0.5, same, scene="redrawn", why=NO_PICTURE),
    "first_frame.denoiser.windows.length": Row(3, scene="redrawn"),
    "first_frame.denoiser.windows.overlap": Row(0, scene="redrawn"),
    "first_frame.denoiser.windows.schedule": Row("uniform", scene="redrawn"),
    "first_frame.denoiser.windows.stride": Row(
        2, scene="redrawn", given={"first_frame.denoiser.windows.schedule": "uniform"}
    ),
    "first_frame.denoiser.windows.fuse": Row(
        "pyramid",
        scene="redrawn",
        given={"first_frame.denoiser.windows.length": 3, "first_frame.denoiser.windows.overlap": 2},
    ),
    "first_frame.denoiser.windows.shift": Row(
        1, scene="redrawn", given={"first_frame.denoiser.windows.overlap": 0, **FIRST_STEPS}
    ),
    "first_frame.denoiser.motion_speed": Row(16.0, scene="redrawn"),
    "first_frame.denoiser.skip_temporal": Row(True, scene="redrawn"),
    "first_frame.denoiser.windows_per_call": Row(2, speed, scene="redrawn"),
    "first_frame.denoiser.split_guidance": Row(True, speed, scene="redrawn"),
}  # fmt: skip
