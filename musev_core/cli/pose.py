"""`musev pose`: align."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MuseVError
from ..file_names import made_folder
from ..weights.downloaded import ANNOTATORS
from .terminal import add_command, say

if TYPE_CHECKING:
    from torch import Tensor

_COMPARISON_HEIGHT = 512  # pixels, as the original draws it
_ORIGINAL_WINDOW = 11  # frames


def add_pose(commands: Any) -> None:
    """Adds the command `pose`."""
    title = "Align the poses of a video to a person in a picture."
    actions = commands.add_parser("pose", help=title, description=title).add_subparsers(metavar="ACTION", required=True)
    align = add_command(
        actions,
        "align",
        _align,
        "Draw a video's poses with the proportions and at the place of the person in a picture.",
        "The result drives a ControlNet: video_path of a task, with video_is_middle: true.\n\n"
        "  musev pose align dance.mp4 man.jpg --output aligned.mp4\n",
    )
    align.add_argument("video", type=Path, nargs="?", metavar="VIDEO", help="the driving video")
    align.add_argument("picture", type=Path, nargs="?", metavar="PICTURE", help="shows the person to align to")
    align.add_argument("--vidfn", type=Path, dest="vidfn", default=None, help=argparse.SUPPRESS)
    align.add_argument("--imgfn_refer", type=Path, dest="imgfn_refer", default=None, help=argparse.SUPPRESS)
    align.add_argument(
        "--output", "--outfn_align_pose_video", dest="output", type=Path, default=Path("aligned_poses.mp4"),
        help="the aligned poses as a video",
    )  # fmt: skip
    align.add_argument(
        "--reference_pose", "--outfn_ref_img_pose", dest="reference_pose", type=Path, default=None,
        help="the pose found in the picture, as a picture",
    )  # fmt: skip
    align.add_argument(
        "--comparison", "--outfn", dest="comparison", type=Path, default=None,
        help="a video of picture, its pose, aligned poses, driving video and its poses side by side",
    )  # fmt: skip
    align.add_argument("--max_frames", "--max_frame", dest="max_frames", type=int, default=None, help="at most so many")
    align.add_argument("--fps", type=float, default=None, help="of the results; default: the driving video's")
    align.add_argument("--preprocessor", default="dwpose_body_hand", help="what finds and draws the poses")
    align.add_argument(
        "--detect_resolution", type=int, default=0,
        help="shorter side for detection, a multiple of 64; 0: pictures as they are",
    )  # fmt: skip
    align.add_argument("--mode", choices=["robust", "original"], default="robust", help="original: its very numbers")
    align.add_argument("--smooth_method", choices=["savgol"], default=None, help="smooth over time")
    align.add_argument(
        "--smoothing", "--winlen", dest="smoothing", type=int, default=None,
        help=f"window in frames, odd; default: {_ORIGINAL_WINDOW} with --smooth_method, else no smoothing",
    )  # fmt: skip
    align.add_argument("--order", "--polyorder", dest="order", type=int, default=1, help="of the smoothing polynomial")
    align.add_argument(
        "--annotators", action="append", default=[], metavar="DIR",
        help="folder with the preprocessor's weights, beside those in --checkpoints; repeatable",
    )  # fmt: skip
    align.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR",
        help="where `musev models download preprocessor_dwpose --layout original` has put things",
    )  # fmt: skip
    align.add_argument("--device", default=None, help="default: the accelerator if there is one")
    align.add_argument(
        "--overwrite", action="store_true", help="replace results which exist; else new ones get a number"
    )


def _align(options: argparse.Namespace) -> int:
    from ..devices import find_device
    from ..frames.image_files import load_image, save_image
    from ..frames.video import VideoWriter, frame_rate, read_video, unique_path
    from ..pose.aligned import align_video
    from ..pose.alignment import AlignOptions
    from ..pose.preprocessors import PREPROCESSORS, ControlPreprocessor, check_preprocessor, check_resolution

    video, picture = options.video or options.vidfn, options.picture or options.imgfn_refer
    if video is None or picture is None:
        raise MuseVError("give a driving video and a picture: musev pose align VIDEO PICTURE")
    if options.max_frames is not None and options.max_frames < 1:
        raise MuseVError(f"--max_frames must be at least 1, got {options.max_frames}")
    if options.detect_resolution:
        check_resolution(options.detect_resolution)
    window = options.smoothing if options.smoothing is not None else _ORIGINAL_WINDOW if options.smooth_method else 0
    align_options = AlignOptions(mode=options.mode, smoothing=window, order=options.order)
    folders = [*options.annotators, options.checkpoints / ANNOTATORS]
    check_preprocessor(options.preprocessor, folders)
    if "body" not in PREPROCESSORS[options.preprocessor].parts:
        raise MuseVError(f"--preprocessor: {options.preprocessor} finds no bodies; use dwpose_body_hand or pose_body")

    def free(path: Path) -> Path:
        return path if options.overwrite else unique_path(path)

    person = load_image(picture)
    fps = frame_rate(video) if options.fps is None else options.fps
    result = VideoWriter(free(options.output), fps=fps, overwrite=options.overwrite)
    comparison = options.comparison and VideoWriter(free(options.comparison), fps=fps, overwrite=options.overwrite)
    preprocessor = ControlPreprocessor(options.preprocessor, folders=folders, device=find_device(options.device))
    reference = preprocessor.run(person, resolution=options.detect_resolution)
    if options.reference_pose is not None:
        path = free(options.reference_pose)
        made_folder(path.parent)
        save_image(path, reference.maps)
        say(str(path))
    driving = read_video(video, max_frames=options.max_frames).frames
    aligned = align_video(preprocessor, driving, reference, align_options, resolution=options.detect_resolution)
    with result as writer:
        writer.write(aligned.maps)
    say(str(result.path))
    if comparison is not None:
        with comparison as writer:
            writer.write(_side_by_side(person, reference.maps, aligned.maps, driving, aligned.driving.maps))
        say(str(comparison.path))
    return 0


def _side_by_side(*columns: "Tensor") -> "Tensor":
    """Pictures and videos `(n, h, w, 3)` uint8 beside each other, `(frames, 512, W, 3)` uint8; pictures stand still."""
    import torch

    from ..frames.images import fit_video, to_uint8

    frames = max(map(len, columns))
    fitted = []
    for column in columns:
        height, width = column.shape[1:3]
        # whole pairs of pixels, as H.264 has them
        wanted = max(2, round(width / height * _COMPARISON_HEIGHT / 2) * 2)
        resized = to_uint8(fit_video(column, _COMPARISON_HEIGHT, wanted) / 255)
        fitted.append(resized.expand(frames, -1, -1, -1))
    return torch.cat(fitted, dim=2)
