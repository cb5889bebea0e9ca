"""What the families of nodes share: the pack's own wires, the menu, inputs which mean the same everywhere."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from comfy_api.latest import io

from ..musev_core.config import FUSIONS, SCHEDULES
from .host.inputs import check_inputs

Motion = io.Custom("MUSEV_MOTION")
ReferenceNet = io.Custom("MUSEV_REFERENCENET")
IPAdapter = io.Custom("MUSEV_IPADAPTER")

# made by other packs too: a list with one OpenPose dictionary per frame; insightface's analysis
PoseKeypoint = io.Custom("POSE_KEYPOINT")
InsightFace = io.Custom("INSIGHTFACE")

CATEGORY = "MuseV"


class Node(io.ComfyNode):
    """A node whose `execute` sees what its schema promises: links and other programs may bring anything."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        execute = vars(cls).get("execute")
        # ComfyUI copies a class with all it has at every call
        if execute is not None and not hasattr(execute.__func__, "__wrapped__"):
            cls.execute = classmethod(_checked(execute.__func__))  # type: ignore[assignment]


def _checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    parameters = inspect.signature(execute)

    @wraps(execute)
    def checked(cls: Any, *args: Any, **kwargs: Any) -> io.NodeOutput:
        _, *given = parameters.bind(cls, *args, **kwargs).arguments.items()
        own = inspect.signature(cls.validate_inputs).parameters
        return execute(cls, **check_inputs(cls.define_schema().inputs, dict(given), own))

    return checked


def span_inputs(what: str) -> list[io.Float.Input]:
    """`start_percent` and `end_percent`, as ComfyUI's own nodes have them."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip=f"Share of the sampling, 0..1, from which on {what}. 0 is the first, noisiest step.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip=f"Share of the sampling, 0..1, up to which {what}. 1 is the end.",
        ),
    ]


def window_inputs() -> list[io.Input]:
    """The numbers of context windows."""
    return [
        io.Int.Input(
            "context_length",
            default=12,
            min=1,
            max=512,
            tooltip="Frames denoised together, condition frames not counted. 12 is MuseV's: longer windows need more "
            "memory and leave what was trained, shorter ones jump.",
        ),
        io.Int.Input(
            "context_overlap",
            default=4,
            min=0,
            max=511,
            tooltip="Frames shared by neighbouring windows; less than the length. More is smoother and slower.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(SCHEDULES),
            default="uniform_v2",
            tooltip="uniform_v2: plain windows from the first to the last frame. uniform: the last windows wrap around "
            "to the start, which makes a loop.",
        ),
        io.Combo.Input(
            "fuse",
            options=list(FUSIONS),
            default="linear",
            tooltip="How windows are blended where they overlap. linear and pyramid count a frame less near the end of "
            "its window, which hides the seams, and differ with uniform only; flat is the original's plain mean.",
        ),
        io.Int.Input(
            "shift",
            default=0,
            min=0,
            max=64,
            tooltip="uniform_v2 only: moves the seams by this many frames at every step, so that no seam stays in "
            "place; allows a smaller overlap. 0 keeps them.",
        ),
    ]
