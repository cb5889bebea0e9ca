"""From pictures, text and videos to a video (musev.md 4 and 5, extra.md 2).

`MuseVPipeline.sample` is one run of the denoising loop over one clip; calling the pipeline makes a whole video: the
first frame if none is given, then one or several shots which continue each other through their latents.
"""

from .clip import PictureNetwork
from .observer import Observer, StepInfo
from .request import FIRST_FRAME, PART, ClipInputs, ControlInput, SamplingOptions, VideoRequest
from .result import VideoResult
from .video import MuseVPipeline

__all__ = [
    "FIRST_FRAME",
    "PART",
    "ClipInputs",
    "ControlInput",
    "MuseVPipeline",
    "Observer",
    "PictureNetwork",
    "SamplingOptions",
    "StepInfo",
    "VideoRequest",
    "VideoResult",
]
