"""Clips put together, compared, corrected and measured."""

from collections.abc import Iterator

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..musev_core.denoise.windows import WindowOptions, context_windows
from ..musev_core.errors import MuseVError
from ..musev_core.frames.color import METHODS, match_color
from ..musev_core.measure.metric_chart import metric_chart
from ..musev_core.measure.report import measure
from ..musev_core.measure.window_chart import seams, window_chart
from .host.clips import batches, fit, rgb
from .sockets import CATEGORY, Node, window_inputs

MENU = f"{CATEGORY}/video"


class JoinVideo(Node):
    """Two LATENTs in a row."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_JoinVideo",
            display_name="Join Video",
            category=MENU,
            description="Puts one clip behind another. Frames which both have are kept once.",
            inputs=[
                io.Latent.Input("first", tooltip="The clip that comes first."),
                io.Latent.Input("second", tooltip="The clip that follows, of the same size."),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=0,
                    max=64,
                    tooltip="Leading frames of the second clip which repeat the end of the first and are left out: the "
                    "condition_frames of Continue Video.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Both clips in one, without a mask.")],
        )

    @classmethod
    def execute(cls, first, second, overlap) -> io.NodeOutput:
        """Concatenates the frames."""
        before, after = first["samples"], second["samples"]
        if before.shape[2:] != after.shape[2:]:
            sizes = " and ".join(f"{s.shape[3] * 8} x {s.shape[2] * 8}" for s in (before, after))
            raise MuseVError(f"Both clips must have the same width and height, got {sizes} pixels.")
        if overlap >= len(after):
            raise MuseVError(
                f"With an overlap of {overlap} frames nothing is left of the second clip, which has {len(after)}."
            )
        return io.NodeOutput({"samples": torch.cat([before, after[overlap:].to(before)])})


class MatchColor(Node):
    """IMAGE -> IMAGE with the colours of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_MatchColor",
            display_name="Match Color",
            category=MENU,
            description=(
                "Gives every frame the colours of one picture, against colours which drift over a long video. A fade "
                "in the video goes away as well."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The frames to correct. Each is matched on its own."),
                io.Image.Input("reference", tooltip="One picture with the right colours, for example the first frame."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="histogram",
                    tooltip="What is matched in each channel. histogram: the distribution of values, as MuseV does it; "
                    "the strongest. mean_std: brightness and contrast. mean: brightness alone; keeps most of a frame.",
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the correction, 0..1. 0 leaves the frames as they are, 1 matches fully.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The frames with matched colours.")],
        )

    @classmethod
    def execute(cls, images, reference, method, amount) -> io.NodeOutput:
        """Matches the frames in batches."""
        frames, picture = rgb(images), rgb(reference)
        match_color(frames[:1], picture, method, 0.0)  # the inputs are checked before the work begins
        if amount == 0:
            return io.NodeOutput(images)
        matched = torch.empty_like(frames)
        for start, stop in batches(len(frames)):
            matched[start:stop] = match_color(frames[start:stop], picture, method, amount)
        return io.NodeOutput(matched)


class VisualizeWindows(Node):
    """Numbers -> a picture of the window schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_VisualizeWindows",
            display_name="Visualize Context Windows",
            category=MENU,
            description=(
                "Draws how a clip is cut into windows, how these are blended, and what that costs. It only shows "
                "the schedule; Set Context Windows applies it."
            ),
            inputs=[
                io.Int.Input(
                    "length", default=49, min=2, max=100_000, tooltip="Frames of the clip, condition frames included."
                ),
                io.Int.Input(
                    "condition_frames",
                    default=1,
                    min=0,
                    max=64,
                    tooltip="Condition frames at the head of the clip. They stand before every window.",
                ),
                *window_inputs(),
                io.Int.Input(
                    "steps", default=10, min=1, max=10_000, tooltip="Steps of the sampler; drawn only if windows move."
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The drawing, 1024 pixels wide.")],
        )

    @classmethod
    def execute(
        cls, length, condition_frames, context_length, context_overlap, schedule, fuse, shift, steps
    ) -> io.NodeOutput:
        """Draws the schedule."""
        options = WindowOptions(context_length, context_overlap, schedule, fuse=fuse, shift=shift)
        return io.NodeOutput(window_chart(length, condition_frames, options, steps))


class MeasureVideo(Node):
    """IMAGE -> numbers and curves."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_MeasureVideo",
            display_name="Measure Video",
            category=MENU,
            description=(
                "Measures a finished video: how its colours, contrast and sharpness drift, how much the seams of "
                "windows show, how it flickers, and how true the condition frame stayed."
            ),
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video, in order."),
                io.Int.Input(
                    "context_length",
                    default=12,
                    min=1,
                    max=512,
                    tooltip="Window length the video was made with, in frames. It says where the seams are.",
                ),
                io.Int.Input(
                    "context_overlap",
                    default=4,
                    min=0,
                    max=511,
                    tooltip="Overlap of windows the video was made with, in frames.",
                ),
                io.Int.Input(
                    "condition_frames",
                    default=1,
                    min=0,
                    max=64,
                    tooltip="Condition frames at the head of the video. They do not count for drift, seams and "
                    "flicker.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The condition picture, or one for each condition frame: the first frames are compared "
                    "with it. It is cropped and resized like the video.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="The measurements as text. Drift in percent per 100 frames, best near 0; seam jerk best "
                    "near 1; flicker in grey levels of 255, lower is better; fidelity in dB, higher is better.",
                ),
                io.Image.Output(display_name="plot", tooltip="The curves over the frames, 1024 pixels wide."),
            ],
        )

    @classmethod
    def execute(cls, images, context_length, context_overlap, condition_frames, reference=None) -> io.NodeOutput:
        """Measures frame by frame, and shows text and curves on the node."""
        frames = rgb(images)
        options = WindowOptions(context_length, context_overlap)
        generated = len(frames) - condition_frames
        if generated < 1:
            raise MuseVError(
                f"The video has {len(frames)} frames and condition_frames is {condition_frames}: no generated frame is "
                "left to measure."
            )
        pictures = None if reference is None else fit(rgb(reference), *frames.shape[1:3])
        if pictures is not None and len(pictures) > max(1, condition_frames):
            raise MuseVError(
                f"reference has {len(pictures)} pictures, but condition_frames is {condition_frames}; give one picture "
                "for each condition frame at most."
            )
        report = measure(
            _watched(frames),
            num_condition_frames=condition_frames,
            seams=seams(context_windows(generated, options), generated),
            pictures=pictures,
        )
        plot = metric_chart(report)
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(str(report)).as_dict()
        return io.NodeOutput(str(report), plot, ui=shown)


def _watched(frames: Tensor) -> Iterator[Tensor]:
    """One frame after the other, with progress."""
    for start, stop in batches(len(frames)):
        yield from frames[start:stop]


NODES = [JoinVideo, MatchColor, VisualizeWindows, MeasureVideo]
