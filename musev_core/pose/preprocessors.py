"""Control preprocessors by name: rgb frames to the maps a ControlNet was trained on, and their poses (extra.md 3).

The names are the original's. Where its table was wrong (hands and faces lost to an old switch, scribbles which were
soft edges, maps paired with the wrong ControlNet), this one has what was meant.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import MuseVError, nearest, require
from ..frames.images import check_frames, to_uint8
from .detectors import DETECTORS, Detector, Device, check_packages, find_weights
from .drawing import draw_people
from .keypoints import Person, PoseFrame

log = logging.getLogger(__name__)

_MULTIPLE = 64  # pixels: the sides at which detectors work


@dataclass(frozen=True)
class Preprocessor:
    """What stands behind a name.

    Attributes:
        detector: key of `DETECTORS`.
        controlnet: repository (Hugging Face) of the ControlNet its maps are made for.
        parts: of the people, drawn and returned; empty if the map is no pose.
        options: for the detector.
    """

    detector: str
    controlnet: str
    parts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


_OPENPOSE = "lllyasviel/control_v11p_sd15_openpose"
_DEPTH = "lllyasviel/control_v11f1p_sd15_depth"
_SOFT_EDGE = "lllyasviel/control_v11p_sd15_softedge"
_SEGMENTS = "lllyasviel/control_v11p_sd15_seg"  # trained on ADE20K's colours, so segments of any colour steer weakly


def _pose(detector: str, *parts: str) -> Preprocessor:
    options = {part: part in parts for part in ("hands", "face")} if detector == "openpose" else {}
    return Preprocessor(detector, _OPENPOSE, parts, options)


PREPROCESSORS: Mapping[str, Preprocessor] = MappingProxyType(
    {
        "pose": _pose("openpose", "body", "hands"),
        "pose_body": _pose("openpose", "body"),
        "pose_hand": _pose("openpose", "hands"),
        "pose_face": _pose("openpose", "face"),
        "pose_hand_body": _pose("openpose", "body", "hands"),
        "pose_hand_face": _pose("openpose", "hands", "face"),
        "dwpose": _pose("dwpose", "body", "hands", "face"),
        "dwpose_face": _pose("dwpose", "face"),
        "dwpose_hand": _pose("dwpose", "hands"),
        "dwpose_body": _pose("dwpose", "body"),
        "dwpose_body_hand": _pose("dwpose", "body", "hands"),
        "canny": Preprocessor("canny", "lllyasviel/control_v11p_sd15_canny"),
        "tile": Preprocessor("identity", "lllyasviel/control_v11f1e_sd15_tile"),
        "hed": Preprocessor("hed", _SOFT_EDGE),
        "hed_scribble": Preprocessor("hed", "lllyasviel/control_v11p_sd15_scribble", options={"scribble": True}),
        "depth": Preprocessor("midas", _DEPTH),
        "pidi": Preprocessor("pidi", _SOFT_EDGE),
        "normal_bae": Preprocessor("normal_bae", "lllyasviel/control_v11p_sd15_normalbae"),
        "lineart": Preprocessor("lineart", "lllyasviel/control_v11p_sd15_lineart", options={"coarse": True}),
        "lineart_anime": Preprocessor("lineart_anime", "lllyasviel/control_v11p_sd15s2_lineart_anime"),
        "zoe": Preprocessor("zoe", _DEPTH),
        "sam": Preprocessor("sam", _SEGMENTS),
        "mobile_sam": Preprocessor("mobile_sam", _SEGMENTS),
        "leres": Preprocessor("leres", _DEPTH),
        "content": Preprocessor("shuffle", "lllyasviel/control_v11e_sd15_shuffle"),
        "face_detector": Preprocessor("mediapipe_face", "CrucibleAI/ControlNetMediaPipeFace"),
    }
)


class ControlMaps(NamedTuple):
    """Maps uint8 `(frames, H, W, 3)`, and the people in each frame: nobody if the preprocessor finds no poses."""

    maps: Tensor
    poses: list[PoseFrame]


class ControlPreprocessor:
    """A preprocessor whose detector is loaded, for any number of videos.

    Args:
        name: one of `PREPROCESSORS`.
        folders: where weight files are looked for, in this order (see `find_weights`).
        device: for detectors which are torch networks; with DWPose, anything but "cpu" allows acceleration.

    Raises:
        MuseVError: no preprocessor of that name, weight files which are missing or damaged, a package which is.
    """

    def __init__(self, name: str, *, folders: Sequence[str | Path] = (), device: Device = "cpu") -> None:
        self.preprocessor, self.detector, files = _resolve(name, folders)
        self._detect: Callable[[np.ndarray], Any] = self.detector.load(device, files, **self.preprocessor.options)
        log.info("%s makes maps for the ControlNet %s", name, self.preprocessor.controlnet)

    def __call__(self, frames: Tensor) -> Tensor:
        """Maps uint8 `(frames, H, W, 3)` of frames of that shape."""
        return self.run(frames).maps

    def run(
        self, frames: Tensor, *, resolution: int = 0, on_frame: Callable[[int, int], None] | None = None
    ) -> ControlMaps:
        """Maps and poses of a video, frame by frame.

        Args:
            frames: `(frames, H, W, 3)`, uint8 or float 0..1.
            resolution: 0 for maps of the frames' size; else a multiple of 64 to which the shorter side is brought
                before detection, the other side with it and rounded to a multiple of 64, and maps of that size.
            on_frame: told how many frames are done and how many there are; may raise to stop.

        Raises:
            MuseVError: frames of a wrong shape, type or range, or a resolution that is no multiple of 64.
        """
        check_frames(frames)
        height, width = frames.shape[1:3]
        if resolution:
            check_resolution(resolution)
        # most networks want multiples of 64; their maps then go back to the frames' size
        inner = (height, width)
        if resolution or not self.detector.any_size:
            inner = detection_size(height, width, resolution or min(height, width))
        outer = inner if resolution else (height, width)
        enlarge = resolution > min(height, width)
        maps = torch.empty((len(frames), *outer, 3), dtype=torch.uint8)
        poses = []
        for i in range(len(frames)):
            image = _resized(to_uint8(frames[i : i + 1])[0].cpu().numpy(), inner, enlarge)
            people: list[Person] = []
            if self.preprocessor.parts:
                people = [person.only(self.preprocessor.parts) for person in self._detect(image)]
                people = [person for person in people if person.visible.any()]
                picture = self.draw(people, *outer)
            else:
                picture = self._detect(image)
                if picture.shape[:2] != outer:
                    cv2 = require("cv2", install="opencv-python-headless", purpose="Resizing control maps")
                    picture = cv2.resize(picture, outer[::-1], interpolation=cv2.INTER_LINEAR)
            maps[i] = torch.from_numpy(np.ascontiguousarray(picture))
            poses.append(PoseFrame(people, *outer))
            if on_frame is not None:
                on_frame(i + 1, len(frames))
        return ControlMaps(maps.to(frames.device), poses)

    def draw(self, people: Sequence[Person], height: int, width: int) -> np.ndarray:
        """The map uint8 `(height, width, 3)` of these people, as this preprocessor draws them."""
        parts = {part: part in self.preprocessor.parts for part in ("body", "hands", "face")}
        return draw_people(people, height, width, order=self.preprocessor.detector, **parts)


def check_preprocessor(name: str, folders: Sequence[str | Path] = ()) -> None:
    """Raises MuseVError for no preprocessor of that name, missing packages, or weight files in none of the folders."""
    _resolve(name, folders)


def check_resolution(resolution: int) -> None:
    """Raises MuseVError unless it is a positive multiple of 64."""
    if resolution < _MULTIPLE or resolution % _MULTIPLE:
        raise MuseVError(
            f"the resolution must be a multiple of {_MULTIPLE} pixels, or 0 for the frames' size, got {resolution}"
        )


def detection_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width with the shorter side brought to `resolution` and both rounded to multiples of 64."""
    factor = resolution / min(height, width)
    rounded = [max(1, round(side * factor / _MULTIPLE)) * _MULTIPLE for side in (height, width)]
    return rounded[0], rounded[1]


def _resolve(name: str, folders: Sequence[str | Path]) -> tuple[Preprocessor, Detector, dict[str, Path]]:
    if name not in PREPROCESSORS:
        raise MuseVError(
            f"there is no control preprocessor {name!r}, only {', '.join(PREPROCESSORS)}."
            f"{nearest(name, PREPROCESSORS)} Control maps made with another program can be given as the video, with "
            "video_is_middle: true"
        )
    preprocessor = PREPROCESSORS[name]
    detector = DETECTORS[preprocessor.detector]
    purpose = f"The control preprocessor {name!r}"
    check_packages(detector, purpose=purpose)
    return preprocessor, detector, find_weights(detector, folders, purpose=purpose)


def _resized(image: np.ndarray, size: tuple[int, int], enlarge: bool) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    cv2 = require("cv2", install="opencv-python-headless", purpose="Resizing frames for a detector")
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LANCZOS4 if enlarge else cv2.INTER_AREA)
