"""Pictures and frames to latents of a clip, with its condition frames marked."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ..musev_core.errors import MuseVError
from ..musev_core.frames.color import match_moments
from ..musev_core.frames.images import fit_video, target_size, to_uint8
from .host.clips import batches, encode, fit, rgb
from .host.inputs import check_memory
from .sockets import CATEGORY, Node

MAX_SIZE, MAX_LENGTH = 4096, 100_000
SIZE_TOOLTIP = (
    "The {side} of the video in pixels, a multiple of 8. The pictures are cropped in the middle and resized to it. 0 "
    "takes that of the picture times size_ratio. MuseV was trained at about 512 x 320; larger costs time and memory."
)
RATIO_TOOLTIP = (
    "Used only where width or height is 0: that side is the picture's times this factor, rounded down to a multiple of "
    "64. Less than 1 makes the video smaller than the picture."
)


class ImageToVideo(Node):
    """IMAGE -> LATENT with condition frames at given places."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_ImageToVideo",
            display_name="Image to Video",
            category=f"{CATEGORY}/latent",
            description=(
                "Starts a video from one or several pictures. They become condition frames, which stay as they are; "
                "all other frames are generated from them."
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="A VAE of Stable Diffusion 1.5. It encodes the pictures."),
                io.Image.Input("images", tooltip="One picture, or several: each becomes one condition frame."),
                io.Int.Input(
                    "width", default=512, min=0, max=MAX_SIZE, step=8, tooltip=SIZE_TOOLTIP.format(side="width")
                ),
                io.Int.Input(
                    "height", default=512, min=0, max=MAX_SIZE, step=8, tooltip=SIZE_TOOLTIP.format(side="height")
                ),
                io.Int.Input(
                    "length",
                    default=49,
                    min=2,
                    max=MAX_LENGTH,
                    tooltip="Frames of the whole clip, condition frames included. More frames take longer, not more "
                    "video memory.",
                ),
                io.String.Input(
                    "condition_indices",
                    default="0",
                    tooltip="The frame of each picture, separated by commas. 0 is the first frame, -1 the last: "
                    "'0, -1' goes from the first picture to the second. With several pictures '0' means the first "
                    "frames, in order.",
                ),
                io.Float.Input("size_ratio", default=1.0, min=0.05, max=4.0, step=0.05, tooltip=RATIO_TOOLTIP),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The clip: condition frames in place, all others empty. Its mask is 0 where a frame stays.",
                ),
                io.Image.Output(
                    display_name="fitted images",
                    tooltip="The pictures, cropped and resized to the video. For reference nodes and comparison.",
                ),
                io.Int.Output(display_name="width", tooltip="Width of the video in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the video in pixels."),
            ],
        )

    @classmethod
    def execute(cls, vae, images, width, height, length, condition_indices, size_ratio) -> io.NodeOutput:
        """Encodes the pictures and puts them into an empty clip."""
        images = rgb(images)
        height, width = _video_size(images, height, width, size_ratio)
        indices = parse_indices(condition_indices, len(images), length)
        _check_memory(length, height // 8, width // 8)
        fitted = fit(images, height, width)
        latents = encode(vae, fitted)
        samples = latents.new_zeros(length, *latents.shape[1:])
        samples[indices] = latents
        return io.NodeOutput(_clip(samples, indices), fitted, width, height)


class VideoToVideo(Node):
    """IMAGE frames -> LATENT to start from, with condition frames at the head."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_VideoToVideo",
            display_name="Video to Video",
            category=f"{CATEGORY}/latent",
            description=(
                "Starts from the frames of a video. How far the result may leave them is the sampler's denoise; the "
                "condition frames at the head stay as they are."
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="A VAE of Stable Diffusion 1.5. It encodes the frames."),
                io.Image.Input("video", tooltip="The frames of the video, in order."),
                io.Int.Input(
                    "width", default=512, min=0, max=MAX_SIZE, step=8, tooltip=SIZE_TOOLTIP.format(side="width")
                ),
                io.Int.Input(
                    "height", default=512, min=0, max=MAX_SIZE, step=8, tooltip=SIZE_TOOLTIP.format(side="height")
                ),
                io.Boolean.Input(
                    "video_has_condition",
                    default=True,
                    tooltip="On: the video begins with the condition frame; condition_images take its place if given. "
                    "Off: it does not, and condition_images are put in front of it.",
                ),
                io.Float.Input("size_ratio", default=1.0, min=0.05, max=4.0, step=0.05, tooltip=RATIO_TOOLTIP),
                io.Image.Input(
                    "condition_images",
                    optional=True,
                    tooltip="Pictures which become the condition frames. Without them it is the first frame of the "
                    "video. For a good result they show the pose of the first frame.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The frames as latents. Its mask is 0 where a frame stays, 1 where it is redrawn.",
                ),
                io.Image.Output(
                    display_name="fitted video",
                    tooltip="One picture for each frame of the latent, cropped and resized: the video, with the "
                    "condition images in front if it does not show them. For control maps.",
                ),
                io.Int.Output(display_name="width", tooltip="Width of the video in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the video in pixels."),
            ],
        )

    @classmethod
    def execute(
        cls, vae, video, width, height, video_has_condition, size_ratio, condition_images=None
    ) -> io.NodeOutput:
        """Encodes the frames, and the condition images in their place or in front of them."""
        video = rgb(video)
        pictures = None if condition_images is None else rgb(condition_images)
        height, width = _video_size(video, height, width, size_ratio)
        if pictures is None and not video_has_condition:
            raise MuseVError(
                "video_has_condition is off, so the video does not show the condition frame: connect condition_images, "
                "or switch it on. To redraw a video without any condition frame use VAE Encode."
            )
        count = 1 if pictures is None else len(pictures)
        if video_has_condition and count >= len(video):
            raise MuseVError(
                f"The video has {len(video)} frames and {count} of them are condition frames: nothing is left to "
                "generate. Give a longer video or fewer condition images."
            )
        frames = _fit_frames(video, height, width)
        if pictures is None:
            return io.NodeOutput(_clip(encode(vae, frames), [0]), frames, width, height)
        pictures = fit(pictures, height, width)
        rest = frames[count:] if video_has_condition else frames
        samples = torch.cat([encode(vae, pictures), encode(vae, rest)])
        if not video_has_condition:
            frames = torch.cat([pictures, frames])
        return io.NodeOutput(_clip(samples, list(range(count))), frames, width, height)


class ContinueVideo(Node):
    """The end of one LATENT as the condition frames of the next."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="MuseV_ContinueVideo",
            display_name="Continue Video",
            category=f"{CATEGORY}/latent",
            description=(
                "Starts a new clip where another one ends: its last frames become the condition frames. Sample it, "
                "then put both together with Join Video and the same number as overlap."
            ),
            inputs=[
                io.Latent.Input("previous", tooltip="The finished clip to go on from."),
                io.Int.Input(
                    "length",
                    default=49,
                    min=2,
                    max=MAX_LENGTH,
                    tooltip="Frames of the new clip, its condition frames included.",
                ),
                io.Int.Input(
                    "condition_frames",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many of the last frames to go on from. 1 is what MuseV was trained with; more carry "
                    "the motion over.",
                ),
                io.Boolean.Input(
                    "match_statistics",
                    default=False,
                    tooltip="Against colours and contrast which drift from clip to clip: gives these frames the mean "
                    "and deviation which the first frames of the previous clip have, in each latent channel. They then "
                    "differ a little from the frames they repeat.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The new clip: condition frames at the head, all others empty. Its mask is 0 where a frame "
                    "stays.",
                )
            ],
        )

    @classmethod
    def execute(cls, previous, length, condition_frames, match_statistics) -> io.NodeOutput:
        """Takes the last frames and puts them at the head of an empty clip."""
        latents = previous["samples"]
        if condition_frames > len(latents):
            raise MuseVError(
                f"condition_frames is {condition_frames}, but the previous clip has only {len(latents)} frames."
            )
        if condition_frames >= length:
            raise MuseVError(
                f"A clip of {length} frames with {condition_frames} condition frames leaves nothing to generate; ask "
                "for a longer clip or fewer condition frames."
            )
        _check_memory(length, *latents.shape[2:])
        last = latents[-condition_frames:]
        if match_statistics:
            last = match_moments(last, latents[:condition_frames], (0, 2, 3))
        samples = latents.new_zeros(length, *latents.shape[1:])
        samples[:condition_frames] = last
        return io.NodeOutput(_clip(samples, list(range(condition_frames))))


def parse_indices(text: str, pictures: int, length: int) -> list[int]:
    """The frame of each picture, 0..length-1, from a list like `0, -1`; nothing, or `0`, means the first frames.

    Raises:
        MuseVError: not numbers, not one per picture, a frame twice or outside the clip, or none left to generate.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        indices = [int(part) for part in parts]
    except ValueError as error:
        raise MuseVError(
            f"condition_indices must be whole numbers separated by commas, like '0, -1', got {text!r}."
        ) from error
    if pictures >= length:
        raise MuseVError(
            f"{pictures} pictures in a clip of {length} frames leave nothing to generate; ask for a longer clip."
        )
    if indices in ([], [0]):
        return list(range(pictures))
    if len(indices) != pictures:
        raise MuseVError(
            f"condition_indices names {len(indices)} frames ({text!r}) for {pictures} pictures; give one number for "
            "each picture, or 0 for the first frames."
        )
    if any(not -length <= index < length for index in indices):
        raise MuseVError(
            f"condition_indices must lie in 0..{length - 1} for a clip of {length} frames, or count from its end with "
            f"-1 as the last, got {text!r}."
        )
    frames = [index % length for index in indices]
    if len(set(frames)) < len(frames):
        raise MuseVError(f"Every picture needs a frame of its own, but condition_indices is {text!r}.")
    return frames


def _video_size(images: Tensor, height: int, width: int, ratio: float) -> tuple[int, int]:
    if not height or not width:
        own_height, own_width = target_size(images.shape[1], images.shape[2], ratio)
        height, width = height or own_height, width or own_width
    if height % 8 or width % 8:
        raise MuseVError(f"width and height must be multiples of 8 pixels, got {width} x {height}.")
    return height, width


def _check_memory(length: int, height: int, width: int) -> None:
    """Of latents and their mask."""
    check_memory(f"a clip of {length} frames of {width * 8} x {height * 8} pixels", length, 5, height, width)


def _fit_frames(video: Tensor, height: int, width: int) -> Tensor:
    if video.shape[1:3] == (height, width):
        return video
    check_memory(f"{len(video)} frames of {width} x {height} pixels", len(video), height, width, 3)
    frames = video.new_empty(len(video), height, width, 3)
    for start, stop in batches(len(video)):
        frames[start:stop] = fit_video(to_uint8(video[start:stop]), height, width) / 255
    return frames


def _clip(samples: Tensor, condition_frames: list[int]) -> dict[str, Tensor]:
    """A LATENT with its mask: 0 keeps a frame, 1 generates it."""
    mask = torch.ones(len(samples), 1, *samples.shape[2:], device=samples.device)
    mask[condition_frames] = 0
    return {"samples": samples, "noise_mask": mask}


NODES = [ImageToVideo, VideoToVideo, ContinueVideo]
