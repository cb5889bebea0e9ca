"""Control preprocessors by name: rgb frames to the maps a ControlNet was trained on (extra.md 3)."""

from collections.abc import Callable

from torch import Tensor

from .errors import MuseVError
from .images import canny

Preprocessor = Callable[[Tensor], Tensor]


def _identity(frames: Tensor) -> Tensor:
    return frames


PREPROCESSORS: dict[str, Preprocessor] = {"canny": canny, "tile": _identity}


def preprocessor(name: str) -> Preprocessor:
    """The preprocessor called `name`: uint8 `(frames, H, W, 3)` to maps of the same shape.

    Raises:
        MuseVError: there is none of that name; the message says how to use maps made elsewhere.
    """
    if name not in PREPROCESSORS:
        raise MuseVError(
            f"there is no control preprocessor {name!r} here, only {', '.join(PREPROCESSORS)}; make the control maps "
            "with another program and give them as the video, with video_is_middle: true"
        )
    return PREPROCESSORS[name]
