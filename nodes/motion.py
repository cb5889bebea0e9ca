"""Nodes that make a MODEL move: the motion model, its windows, noise and guidance."""

import torch
from comfy_api.latest import io

from ..musev_core.config import GUIDANCE_METHODS, NOISE_DRAWS, NOISE_TYPES
from ..musev_core.denoise.noise import NoiseOptions
from ..musev_core.denoise.windows import WindowOptions
from .host.options import GuidanceOptions, MotionOptions, Span
from .host.patching import with_options
from .sockets import CATEGORY, Motion, Node, span_inputs, window_inputs

_MODEL = CATEGORY + "/model"
_ANY_ORDER = "A Stable Diffusion 1.5 model. Apply MuseV Motion may come before or after this node."


class ApplyMotion(Node):
    """MODEL + motion model -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_ApplyMotion",
            display_name="Apply MuseV Motion",
            category=_MODEL,
            description="Lets a Stable Diffusion 1.5 model make videos: frames of a LATENT batch become frames of one "
            "clip. Works with every sampler; brings context windows of 12 frames with an overlap of 4.",
            inputs=[
                io.Model.Input("model", tooltip="Any Stable Diffusion 1.5 model, with or without LoRA."),
                Motion.Input("motion", tooltip="The motion model, from Load MuseV Motion."),
                io.Float.Input(
                    "motion_speed",
                    default=8.0,
                    min=0.0,
                    max=64.0,
                    step=0.5,
                    tooltip="How far apart in time neighbouring frames are. Trained from 8 (slow) to 16 (fast); "
                    "outside of that the model guesses. The motion model musev ignores it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Factor of everything the temporal layers add. 1 is as trained; less holds the frames "
                    "together less, so they flicker; 0 is as if this node were not there.",
                ),
                *span_inputs("the motion model takes part"),
                io.Mask.Input(
                    "frame_strength",
                    optional=True,
                    tooltip="One mask per frame of the clip (condition frames included), or one for all: its mean, "
                    "0..1, multiplies the strength for that frame.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model, now sampling videos.")],
        )

    @classmethod
    def execute(
        cls, model, motion, motion_speed, strength, start_percent, end_percent, frame_strength=None
    ) -> io.NodeOutput:
        """Attaches the motion model."""
        weights = None
        if frame_strength is not None:
            weights = frame_strength.reshape(frame_strength.shape[0], -1).mean(dim=1).to(torch.float32)
        return io.NodeOutput(
            with_options(
                model, motion=MotionOptions(motion, motion_speed, strength, Span(start_percent, end_percent), weights)
            )
        )


class ContextWindows(Node):
    """How the clip is cut into windows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_ContextWindows",
            display_name="Set Context Windows",
            category=_MODEL,
            description="Cuts a long clip into windows which are denoised side by side and fused, so that length is "
            "unlimited. Apply MuseV Motion alone uses 12 frames, overlap 4, linear.",
            inputs=[
                io.Model.Input("model", tooltip=_ANY_ORDER),
                *window_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with these windows.")],
        )

    @classmethod
    def execute(cls, model, context_length, context_overlap, schedule, fuse, shift) -> io.NodeOutput:
        """Attaches the windows."""
        windows = WindowOptions(context_length, context_overlap, schedule, fuse=fuse, shift=shift)
        return io.NodeOutput(with_options(model, windows=windows))


class Noise(Node):
    """How the noise of the frames is related."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_Noise",
            display_name="Set Video Noise",
            category=_MODEL,
            description="Chooses how alike the noise of the frames is. Apply MuseV Motion alone uses video_fusion with "
            "0.5 and an image weight of 0.001.",
            inputs=[
                io.Model.Input("model", tooltip=_ANY_ORDER),
                io.Combo.Input(
                    "noise_type",
                    options=list(NOISE_TYPES),
                    default="video_fusion",
                    tooltip="video_fusion: all frames share a part of their noise, which keeps them alike. random: the "
                    "sampler's own noise, every frame for itself.",
                ),
                io.Float.Input(
                    "individual_weight",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="video_fusion: share 0..1 of a frame's own noise. More means more motion and less "
                    "consistency; 0 gives every frame the same noise.",
                ),
                io.Float.Input(
                    "image_weight",
                    default=0.001,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=0.0001,
                    tooltip="Share 0..1 of the condition picture in the initial noise: pulls colours towards the "
                    "picture. Above 0.01 the picture shows through; 0 is off.",
                ),
                io.Boolean.Input(
                    "original_scaling",
                    default=False,
                    tooltip="Scales the initial noise by sigma as the original does, instead of ComfyUI's "
                    "sqrt(1 + sigma^2). 0.2 % less noise; only for comparing with the original.",
                ),
                io.Combo.Input(
                    "draw",
                    options=list(NOISE_DRAWS),
                    default="frames",
                    optional=True,
                    tooltip="frames: noise by frame number, so a longer video begins like a shorter one with the same "
                    "seed. original: the whole clip at once, as the original draws it; only for comparing with it.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with this noise.")],
        )

    @classmethod
    def execute(
        cls, model, noise_type, individual_weight, image_weight, original_scaling, draw="frames"
    ) -> io.NodeOutput:
        """Attaches the noise."""
        noise = NoiseOptions(noise_type, individual_weight, image_weight or None, draw)
        return io.NodeOutput(with_options(model, noise=noise, original_scaling=original_scaling))


class GuidanceSchedule(Node):
    """Guidance that changes over the steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_GuidanceSchedule",
            display_name="Set Guidance Schedule",
            category=_MODEL,
            description="Changes the guidance scale (cfg) over the steps and overrides the sampler's own cfg value. "
            "Steps at 1 need half the time.",
            inputs=[
                io.Model.Input("model", tooltip=_ANY_ORDER),
                io.Float.Input(
                    "start",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance scale of the first step. More follows the prompt harder; 1 ignores the negative "
                    "prompt and halves the time.",
                ),
                io.Float.Input(
                    "end",
                    default=1.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance scale of the last step. Lower than start gives softer pictures with less burnt "
                    "colours.",
                ),
                io.Combo.Input(
                    "curve",
                    options=list(GUIDANCE_METHODS),
                    default="linear",
                    tooltip="linear: even steps from start to end. two_stage: half and half. three_stage: thirds, the "
                    "middle one at the mean, rounded down. fix_two_stage: three steps at start, the rest at end.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with this guidance.")],
        )

    @classmethod
    def execute(cls, model, start, end, curve) -> io.NodeOutput:
        """Attaches the schedule."""
        return io.NodeOutput(with_options(model, guidance=GuidanceOptions(start, end, curve)))


NODES = [ApplyMotion, ContextWindows, Noise, GuidanceSchedule]
