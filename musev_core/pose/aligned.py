"""Control maps of a video whose poses are aligned to the person in a picture."""

from typing import NamedTuple

import torch
from torch import Tensor

from .alignment import AlignOptions, align_poses
from .preprocessors import ControlMaps, ControlPreprocessor


class AlignedVideo(NamedTuple):
    """Maps uint8 `(frames, H, W, 3)` of the picture's size, and maps and poses of the video as it is."""

    maps: Tensor
    driving: ControlMaps


def align_video(
    preprocessor: ControlPreprocessor,
    frames: Tensor,
    reference: ControlMaps,
    options: AlignOptions | None = None,
    *,
    resolution: int = 0,
) -> AlignedVideo:
    """The poses of a video with the proportions and at the place of the person in a picture, drawn.

    Args:
        preprocessor: one which finds people with their bodies.
        frames: `(frames, h, w, 3)`, the driving video.
        reference: what the preprocessor found in the picture; the maps have the size of its map.
        resolution: of detection, see `ControlPreprocessor.run`.

    Raises:
        MuseVError: nobody is found in the picture, or in the video; others as `ControlPreprocessor.run`.
    """
    driving = preprocessor.run(frames, resolution=resolution)
    aligned = align_poses(driving.poses, reference.poses[0], options)
    height, width = reference.maps.shape[1:3]
    maps = [torch.from_numpy(preprocessor.draw(frame.people, height, width)) for frame in aligned]
    return AlignedVideo(torch.stack(maps), driving)
