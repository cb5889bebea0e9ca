"""Control maps from a video, and its poses: found, drawn, and laid over the person of the start picture."""

import os

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..musev_core.errors import MuseVError, blame
from ..musev_core.pose.alignment import MODES, AlignOptions, align_poses
from ..musev_core.pose.drawing import draw_people
from ..musev_core.pose.keypoint_json import read_keypoints, write_keypoints
from ..musev_core.pose.keypoints import PoseFrame
from ..musev_core.pose.preprocessors import PREPROCESSORS, ControlPreprocessor, check_resolution
from .host.inputs import check_memory
from .sockets import CATEGORY, Node, PoseKeypoint

_CONTROL = f"{CATEGORY}/control"
_MAX_SIZE = 8192  # pixels


class PreprocessControl(Node):
    """Frames to control maps and poses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_PreprocessControl",
            display_name="Preprocess Control Video",
            category=_CONTROL,
            description="Turns every frame of a video into the picture a ControlNet reads: a pose, edges, depth. "
            "Nothing is downloaded; weight files go into models/controlnet_aux or stay with comfyui_controlnet_aux.",
            inputs=[
                io.Image.Input(
                    "images", tooltip="The frames of the driving video, best cropped to the size of the result."
                ),
                io.Combo.Input(
                    "preprocessor",
                    options=list(PREPROCESSORS),
                    default="dwpose_body_hand",
                    tooltip="What is looked for. dwpose_* and pose* draw people (OpenPose ControlNet), depth, zoe and "
                    "leres distances (depth), hed and pidi soft edges (softedge), hed_scribble strokes (scribble), "
                    "sam and mobile_sam segments (seg), content a shuffled picture (shuffle), face_detector a face "
                    "mesh (MediaPipeFace); canny, tile, normal_bae, lineart, lineart_anime go with the ControlNet of "
                    "that name. canny, tile and content need no weight file.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=_MAX_SIZE,
                    step=64,
                    tooltip="Shorter side of the maps in pixels, a multiple of 64; the frames are resized to it before "
                    "detection. Larger shows smaller detail and takes longer. 0 keeps the size of the frames, which is "
                    "right if that is the size of the result.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="maps", tooltip="One control map per frame, 0..1, for Apply ControlNet."),
                PoseKeypoint.Output(
                    display_name="poses",
                    tooltip="The people found in every frame, in pixels of the maps; nobody unless a pose is "
                    "preprocessed.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, preprocessor: str, resolution: int) -> io.NodeOutput:
        """Runs the detector frame by frame."""
        if resolution:
            check_resolution(resolution)
        larger = max(1.0, resolution / min(images.shape[1:3]))
        height, width = (round(larger * side) for side in images.shape[1:3])
        check_memory(f"{len(images)} maps of {width} x {height} pixels", len(images), height, width, 3)
        device = comfy.model_management.get_torch_device()
        detector = ControlPreprocessor(preprocessor, folders=_weight_folders(), device=device)
        found = detector.run(images, resolution=resolution, on_frame=_progress(len(images)))
        return io.NodeOutput(found.maps.float().div_(255), write_keypoints(found.poses))


class AlignPose(Node):
    """Poses of a video in the proportions of the person in a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_AlignPose",
            display_name="Align Pose to Image",
            category=_CONTROL,
            description="Gives the person of a driving video the proportions and the place of the person in the start "
            "picture, so that the pose of the first frame fits it. Follows the largest person.",
            inputs=[
                PoseKeypoint.Input("poses", tooltip="Poses of the driving video, one entry per frame."),
                PoseKeypoint.Input(
                    "reference", tooltip="Pose of the start picture; of several entries the first is used."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="robust",
                    tooltip="robust leaves missing points out and gives limbs which the picture does not show the "
                    "scale of the others. original computes what MuseV computes, and needs whole bodies in the "
                    "picture and the first frame.",
                ),
                io.Int.Input(
                    "smoothing",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="Odd number of frames over which movements are smoothed; 0 is off. More trembles less "
                    "and loses quick movements; 5 to 11 is usual.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=_MAX_SIZE,
                    step=8,
                    tooltip="Width of the pictures in pixels: that of the result. 0 takes the reference's.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=_MAX_SIZE,
                    step=8,
                    tooltip="Height of the pictures in pixels: that of the result. 0 takes the reference's.",
                ),
            ],
            outputs=[
                PoseKeypoint.Output(
                    display_name="poses", tooltip="The aligned poses, one per frame, in pixels of the reference."
                ),
                io.Image.Output(
                    display_name="maps", tooltip="Bodies and hands drawn, 0..1, for an OpenPose ControlNet."
                ),
            ],
        )

    @classmethod
    def execute(cls, poses, reference, mode: str, smoothing: int, width: int, height: int) -> io.NodeOutput:
        """Aligns and draws."""
        video = _read(poses, "poses")
        options = AlignOptions(mode=mode, smoothing=smoothing, max_gap=smoothing // 2)
        aligned = align_poses(video, _read(reference, "reference")[0], options)
        maps = _draw(aligned, width, height, body=True, hands=True, face=False)
        return io.NodeOutput(write_keypoints(aligned), maps)


class DrawPose(Node):
    """Poses to pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_DrawPose",
            display_name="Draw Pose",
            category=_CONTROL,
            description="Draws poses for an OpenPose ControlNet at the size of the result, where the lines have the "
            "width the ControlNet knows; a drawn pose should not be resized.",
            inputs=[
                PoseKeypoint.Input("poses", tooltip="Poses, one entry per frame; frames without people become black."),
                io.Boolean.Input("body", default=True, tooltip="Draw head, trunk, arms and legs."),
                io.Boolean.Input("hands", default=True, tooltip="Draw the fingers."),
                io.Boolean.Input(
                    "face",
                    default=False,
                    tooltip="Draw the face's landmarks. They carry over the expression, and the shape of a face which "
                    "may not be that of the start picture.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=_MAX_SIZE,
                    step=8,
                    tooltip="Width of the pictures in pixels: that of the result. 0 takes the poses' own.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=_MAX_SIZE,
                    step=8,
                    tooltip="Height of the pictures in pixels: that of the result. 0 takes the poses' own.",
                ),
            ],
            outputs=[io.Image.Output(display_name="maps", tooltip="One picture per frame, 0..1, on black.")],
        )

    @classmethod
    def execute(cls, poses, body: bool, hands: bool, face: bool, width: int, height: int) -> io.NodeOutput:
        """Draws frame by frame."""
        return io.NodeOutput(_draw(_read(poses, "poses"), width, height, body=body, hands=hands, face=face))


def _read(poses, name: str) -> list[PoseFrame]:
    with blame(name):
        return read_keypoints(poses)


def _draw(frames: list[PoseFrame], width: int, height: int, **parts: bool) -> torch.Tensor:
    """IMAGE of poses; a side of 0 is that of their canvas."""
    sizes = {(height or frame.height, width or frame.width) for frame in frames}
    if len(sizes) > 1:
        raise MuseVError(
            f"the poses come from pictures of different sizes (height x width: {sorted(sizes)}); set width and height"
        )
    size = sizes.pop()
    if max(size) > _MAX_SIZE:
        raise MuseVError(
            f"the poses come from pictures of {size[1]} x {size[0]} pixels, and {_MAX_SIZE} a side can be drawn; set "
            "width and height"
        )
    check_memory(f"{len(frames)} pictures of {size[1]} x {size[0]} pixels", len(frames), *size, 3)
    pictures = torch.empty((len(frames), *size, 3))
    report = _progress(len(frames))
    for i, frame in enumerate(frames):
        pictures[i] = torch.from_numpy(draw_people(frame.people, *size, **parts)).float() / 255
        report(i + 1, len(frames))
    return pictures


def _progress(total: int):
    bar = comfy.utils.ProgressBar(total)

    def report(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report


def _weight_folders() -> list[str]:
    """Where weight files of detectors may lie: our own folders first, then what comfyui_controlnet_aux has fetched."""
    folders = [os.path.join(folder_paths.models_dir, name) for name in ("controlnet_aux", "annotators")]
    for name in ("controlnet_aux", "annotators"):
        if name in folder_paths.folder_names_and_paths:
            folders += folder_paths.get_folder_paths(name)
    fetched = (
        os.path.join(root, "comfyui_controlnet_aux", "ckpts") for root in folder_paths.get_folder_paths("custom_nodes")
    )
    return list(dict.fromkeys([*folders, *filter(os.path.isdir, fetched)]))


NODES = [PreprocessControl, AlignPose, DrawPose]
