"""The course of a whole video: first frame, then shots which continue each other (musev.md 5, extra.md 2.2)."""

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..denoise.control import Control
from ..denoise.noise import VideoNoise
from ..encode.vae import LatentDecoder, decode_latents, decoding_dtype, encode_latents, fitting_batch
from ..errors import MuseVError
from ..frames.images import check_frames, fit_images, fit_video, matched_to_first, target_size
from ..frames.source import FrameSource, as_source
from .clip import ClipPipeline, PictureNetwork
from .driving import ENCODED_AT_ONCE, ClipHints, ClipLatents, DrivingFrames
from .observer import Observer
from .request import ClipInputs, ControlInput, VideoRequest
from .result import VideoResult

log = logging.getLogger(__name__)
DEFAULT_NUM_FRAMES = 12  # the released models' window
Checkpoint = MutableMapping[str, Tensor]  # what a run needs of those before it, by name
_FIRST_FRAME = "first frame"


def _shot_key(k: int) -> str:
    """Of the latents `(1, 4, frames, h, w)` which the shot `k` is handed by the one before."""
    return f"shot {k}"


class ShotRunner:
    """Makes one video, or some of its frames. Everything is checked on construction, before the first network runs.

    A *driving* video gives frames of the timeline: pictures to start from, or control maps. The timeline counts the
    frames of the result.
    """

    def __init__(
        self,
        pipeline: ClipPipeline,
        request: VideoRequest,
        noise: VideoNoise,
        observer: Observer,
    ):
        self.pipeline, self.request, self.noise, self.observer = pipeline, request, noise, observer
        if request.num_shots < 1:
            raise MuseVError(f"the number of shots must be at least 1, got {request.num_shots}")
        if request.num_condition_frames < 0:
            raise MuseVError(f"the number of condition frames cannot be negative, got {request.num_condition_frames}")
        if not 0 <= request.video_strength <= 1:
            raise MuseVError(f"video_strength must lie in 0..1, got {request.video_strength}")
        if request.sampling.strength != 1:
            raise MuseVError(
                f"sampling.strength has no effect in a request, got {request.sampling.strength}; give video_strength, "
                "which says how far the result may leave the driving video"
            )
        self._check_pictures()
        self.height, self.width = self._size()
        self.has_condition = request.num_condition_frames > 0
        self.image = self._fit(request.image) if request.image is not None and self.has_condition else None
        self.num_given = 0 if self.image is None else self.image.shape[0]
        self.makes_first = self.has_condition and (self.image is None or request.redraw)
        if request.redraw and self.image is None:
            raise MuseVError(
                "redraw needs a condition image to repaint, and num_condition_frames of at least 1; give them, or "
                "leave redraw off"
            )
        self.num_first = (self.num_given or 1) if self.has_condition else 0
        if not request.video_has_condition and self._driven() and self.has_condition and self.image is None:
            raise MuseVError(
                "video_has_condition is off, so the driving video does not show the first frame; give a condition image"
            )
        self.counted = self._first_frame_counts()
        self.lengths = self._plan()
        self.places = self._places()
        self.video = self._driving_video()
        self.hints = [self._hints(control) for control in request.controls]
        # every picture is optional, and missing ones follow the first frame
        networks = pipeline.picture_networks()
        self.uses = {
            name: use and self._usable(name, given, networks[name])
            for name, use, given in (
                ("reference_image", request.use_reference, request.reference_image),
                ("image_prompt", request.use_image_prompt, request.image_prompt),
                ("face_image", request.use_face, request.face_image),
            )
        }
        self.pictures = {
            "reference_image": self._optional("reference_image", request.reference_image),
            "image_prompt": self._optional("image_prompt", request.image_prompt, fit=request.legacy_fit),
            "face_image": self._optional("face_image", request.face_image),
        }
        self._given = dict(self.pictures)

    # ------------------------------------------------------------------------------------------ checks and plan

    def _check_pictures(self) -> None:
        r = self.request
        for name in ("image", "video", "reference_image", "image_prompt", "face_image"):
            given = getattr(r, name)
            if isinstance(given, Tensor):
                check_frames(given, name=name)
        for control in r.controls:
            if isinstance(control.frames, Tensor):
                check_frames(control.frames, name="control frames")

    @staticmethod
    def _usable(name: str, given: Tensor | None, network: PictureNetwork) -> bool:
        """Whether a kind of picture has an effect; asking for one that cannot have any is an error or a warning."""
        if given is not None and network.layers and not network.loaded:
            raise MuseVError(
                f"{name} was given, but the pipeline has no network for it; load {network.needs}, or leave it out"
            )
        if given is not None and not network.layers:
            log.warning("%s has no effect: this MuseV model has no layers for it", name)
        return network.layers and network.loaded

    def _size(self) -> tuple[int, int]:
        r = self.request
        if (r.height is None) != (r.width is None):
            raise MuseVError(f"give both height and width, or none of them; got {r.height} x {r.width}")
        if r.height is None or r.width is None:
            source = r.image if r.image is not None else self._driving()
            if source is None:
                raise MuseVError("give height and width (for example 512 x 512), or a picture to take them from")
            height, width = as_source(source).size
            return target_size(height, width, multiple=64 if min(height, width) >= 64 else 8)
        if r.height % 8 or r.width % 8 or r.height < 8 or r.width < 8:
            raise MuseVError(f"height and width must be multiples of 8 pixels, got {r.height} x {r.width}")
        return r.height, r.width

    def _driven(self) -> int | None:
        """Frames of the shortest driving video, None if there is none."""
        r = self.request
        counts = [len(r.video)] if r.video is not None else []
        counts += [len(control.frames) for control in r.controls]
        return min(counts) if counts else None

    def _first_frame_counts(self) -> bool:
        """Whether the condition frame is one of the frames asked for, or comes on top of them."""
        if not self.has_condition:
            return False
        if self._driven() is not None:
            return self.request.video_has_condition
        return self.image is None

    def _plan(self) -> list[int]:
        """How many frames each shot generates."""
        r, driven = self.request, self._driven()
        num_frames = r.num_frames
        if num_frames is None:
            num_frames = DEFAULT_NUM_FRAMES if driven is None else driven // r.num_shots
        first = num_frames - (self.num_first if self.counted else 0)
        if first < 1 or num_frames < 1:
            raise MuseVError(
                f"a shot of {num_frames} frames with {self.num_first} condition frames leaves nothing to generate; "
                "ask for more frames"
            )
        if r.num_shots > 1 and r.num_condition_frames > self.num_first + first:
            raise MuseVError(
                f"a shot of {self.num_first + first} frames cannot hand on {r.num_condition_frames} condition frames; "
                "ask for longer shots or fewer condition frames"
            )
        return [first] + [num_frames] * (r.num_shots - 1)

    @property
    def _timeline(self) -> int:
        return self.num_first + sum(self.lengths)

    def _places(self) -> list[int]:
        """Numbers of the condition frames in the first shot, which are those of the timeline too."""
        clip = self.num_first + self.lengths[0]
        given = self.request.condition_frames
        places = list(range(self.num_first)) if given is None else list(given)
        if len(places) != self.num_first:
            raise MuseVError(f"there are {self.num_first} condition frames, but {len(places)} frame numbers: {places}")
        if any(not -clip <= i < clip for i in places):
            raise MuseVError(
                f"condition frame numbers must lie in 0..{clip - 1} for a shot of {clip} frames (or count from its "
                f"end, -1 is the last), got {places}"
            )
        return [i % clip for i in places]

    def _driving(self) -> Tensor | FrameSource | None:
        """The driving video that is looked at, or else the first which steers."""
        r = self.request
        return r.video if r.video is not None else next((control.frames for control in r.controls), None)

    def _driving_video(self) -> DrivingFrames | None:
        """Frames of the timeline to start from; the condition frames' are not looked at."""
        r = self.request
        if r.video is None:
            return None
        condition = None
        if self.has_condition and not r.video_has_condition:
            condition = self._frames(r.video).take([0]).expand(self.num_first, -1, -1, -1)
        return self._long_enough(self._frames(r.video, condition), "the video")

    def _hints(self, control: ControlInput) -> DrivingFrames:
        """Control maps of the timeline."""
        r, condition = self.request, None
        if self.has_condition and not r.video_has_condition:
            if control.condition_map is not None:
                condition = fit_video(control.condition_map, self.height, self.width, legacy=r.legacy_fit) / 255
            elif control.preprocessor is not None and self.image is not None:
                condition = control.preprocessor(self.image).float() / 255
            else:
                raise MuseVError(
                    "video_has_condition is off and the control frames are maps already: give the control map of the "
                    "condition image as condition_map"
                )
            if len(condition) != self.num_first:
                raise MuseVError(f"expected {self.num_first} maps of the condition frames, got {len(condition)}")
        hints = self._long_enough(self._frames(control.frames, condition, control.preprocessor), "a control video")
        hints.take([self.num_first])  # a preprocessor that cannot do it says so now
        return hints

    def source(self) -> DrivingFrames | None:
        """Driving frames of the timeline as one sees them; None without a driving video.

        The condition frames stand where the driving video does not show them.
        """
        given = self._driving()
        if given is None:
            return None
        shown = self.image is None or self.request.video_has_condition
        return self._frames(given, None if shown or self.image is None else self.image / 255)

    def _frames(
        self,
        given: Tensor | FrameSource,
        condition: Tensor | None = None,
        preprocessor: Callable[[Tensor], Tensor] | None = None,
    ) -> DrivingFrames:
        return DrivingFrames(
            as_source(given),
            self.height,
            self.width,
            legacy=self.request.legacy_fit,
            preprocessor=preprocessor,
            condition=condition,
            places=self.places,
        )

    def _long_enough(self, frames: DrivingFrames, what: str) -> DrivingFrames:
        if len(frames) < self._timeline:
            raise MuseVError(
                f"{what} has {len(frames)} frames, but {self._timeline} are needed for this video; ask for fewer "
                "frames or shots, or give a longer one"
            )
        if len(frames) > self._timeline:
            log.info("%s has %d frames; the first %d are used", what, len(frames), self._timeline)
        return frames

    def _forget_before(self, number: int) -> None:
        """Drops driving frames which no later part needs; those it shares with this one stay."""
        windows = self.request.sampling.denoiser.windows.length
        first = number - 2 * windows - self.request.num_condition_frames - ENCODED_AT_ONCE
        for frames in (self.video, *self.hints):
            if frames is not None and first > 0:
                frames.forget_before(first, self.places)

    def _fit(self, images: Tensor) -> Tensor:
        return fit_images(images, self.height, self.width, legacy=self.request.legacy_fit)

    def _optional(self, name: str, images: Tensor | None, *, fit: bool = True) -> Tensor | None:
        """A given picture, or the condition picture in its place."""
        if not self.uses[name]:
            return None
        if images is not None:
            return self._fit(images) if fit else images
        return self.image

    # ------------------------------------------------------------------------------------------ the work

    @property
    def num_frames(self) -> int:
        """Frames of the whole video."""
        return self._timeline

    def run(self) -> VideoResult:
        """The whole video."""
        return VideoResult(torch.cat(list(self.parts()), dim=1), self.pipeline.vae, self.request.match_histogram)

    def stream(
        self,
        length: int | None,
        *,
        frames: range | None = None,
        checkpoint: Checkpoint | None = None,
        batch: int | None = None,
        decoder: LatentDecoder | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Tensor]:
        """Frames `(k, H, W, 3)` in 0..1 as they are ready, the first ones while later ones are still noise.

        They are decoded in the groups in which `VideoResult.frames` decodes them, whatever the parts are.

        Args:
            length: generated frames of a part; None: a shot at once.
            frames: only these of the video, as the whole run makes them.
            checkpoint: takes what another run needs to go on in the middle, and gives it back to that run. Without it
                frames of a later shot cannot be made alone.
            batch, decoder, dtype: see `VideoResult.frames`.

        Raises:
            MuseVError: there are no such parts or frames, or their noise is drawn at once.
        """
        wanted = range(self._timeline) if frames is None else frames
        kept: Checkpoint = {} if checkpoint is None else checkpoint
        if length is not None and length < 1:
            raise MuseVError(f"a part must have at least 1 frame, got {length}")
        if not 0 <= wanted.start < wanted.stop <= self._timeline:
            raise MuseVError(
                f"the video has the frames 0..{self._timeline - 1}, got {wanted.start}..{wanted.stop - 1} to be made"
            )
        partly = length is not None or len(wanted) < self._timeline
        if partly and self.request.sampling.noise.draw == "original":
            raise MuseVError(
                "the original draws the noise of a whole clip at once; for a video in parts take the draw 'frames'"
            )
        vae: Any = decoder or self.pipeline.vae
        precision = dtype or decoding_dtype(vae)
        at_once = batch or fitting_batch(vae, self.height, self.width, precision)
        # the first frame too, which all others are matched to
        self._check_beginning(wanted.start // at_once * at_once, kept)

        def decoded(wanted: range) -> Iterator[Tensor]:
            begin, end = wanted.start // at_once * at_once, min(-(-wanted.stop // at_once) * at_once, self._timeline)
            number, waiting = begin, torch.empty(0)
            for latents in self.parts(length, range(begin, end), kept):
                waiting = latents if number == begin and not len(waiting) else torch.cat([waiting, latents], dim=1)
                got = number + waiting.shape[1]
                ready = waiting.shape[1] if got == end else waiting.shape[1] // at_once * at_once
                for pixels in decode_latents(vae, waiting[:, :ready], batch=at_once, dtype=precision):
                    new = pixels[max(wanted.start - number, 0) : max(wanted.stop - number, 0)]
                    number += len(pixels)
                    if len(new):
                        yield new
                    self._forget_before(number)
                waiting = waiting[:, ready:]

        def matched() -> Iterator[Tensor]:
            first = kept.get(_FIRST_FRAME)
            if first is None and wanted.start > 0:
                first = next(decoded(range(1)))
            for pixels in matched_to_first(decoded(wanted), first if wanted.start > 0 else None):
                kept.setdefault(_FIRST_FRAME, pixels[:1] if first is None else first)
                yield pixels

        return matched() if self.request.match_histogram else decoded(wanted)

    @property
    def _starts(self) -> list[int]:
        """The first frame that each shot adds to the video."""
        return [0, *(self.num_first + sum(self.lengths[:k]) for k in range(1, len(self.lengths)))]

    def _check_beginning(self, frame: int, kept: Checkpoint) -> int:
        """The shot of a frame, from which on everything can be made.

        Raises:
            MuseVError: that needs the end of the shot before, and nothing is known of it.
        """
        k = bisect_right(self._starts, frame) - 1
        if k > 0 and _shot_key(k) not in kept:
            raise MuseVError(
                f"frame {frame} belongs to shot {k + 1}, which goes on from the end of the one before: begin with a "
                f"frame of the first shot, 0..{self._starts[1] - 1}, or give the checkpoint of a run that came so far"
            )
        return k

    @torch.no_grad()
    def parts(
        self, length: int | None = None, frames: range | None = None, checkpoint: Checkpoint | None = None
    ) -> Iterator[Tensor]:
        """Latents `(4, frames, h, w)` of the video, part after part, see `stream`; None: every shot at once."""
        r = self.request
        wanted = range(self._timeline) if frames is None else frames
        kept: Checkpoint = {} if checkpoint is None else checkpoint
        starts, ends = self._starts, [*self._starts[1:], self._timeline]
        at = self._check_beginning(wanted.start, kept)
        self.pictures = dict(self._given)
        condition = first_condition = self._first_frame()
        last = kept[_shot_key(at)].to(self.pipeline.device) if at > 0 else torch.empty(0)
        handed_on = max(r.num_condition_frames, 1)
        for k in range(at, len(self.lengths)):
            if starts[k] >= wanted.stop:
                return
            places, timeline, before = self.places, list(range(ends[0])), 0
            if k > 0:
                kept.setdefault(_shot_key(k), last.cpu())
                taken: list[int] = []
                if self.has_condition and r.fixed_condition:
                    condition, taken = first_condition, self.places
                elif self.has_condition:
                    condition = last
                    taken = list(range(starts[k] - last.shape[2], starts[k]))
                self._move_references(last)
                places, before = list(range(len(taken))), len(taken)
                timeline = taken + list(range(starts[k], ends[k]))
            # numbers in the shot's clip: its new frames come after the condition frames which it was handed
            first = before + max(wanted.start - starts[k], 0)
            stop = before + min(wanted.stop, ends[k]) - starts[k]
            number = min(first, stop - handed_on) if ends[k] < wanted.stop else first
            number = 0 if number <= before else number
            seen: list[Tensor] = []
            for latents in self._shot(k, condition, places, timeline, length, range(number, stop)):
                seen.append(latents)
                last = torch.cat(seen, dim=2)[:, :, -handed_on:]
                seen = [last]
                new = latents[:, :, max(first - number, 0) :]
                number += latents.shape[2]
                if new.shape[2]:
                    yield new[0].cpu()

    def _shot(
        self,
        k: int,
        condition: Tensor | None,
        places: list[int],
        timeline: list[int],
        length: int | None,
        frames: range,
    ) -> Iterator[Tensor]:
        """One run of the loop over frames `timeline` of the result, with condition frames at `places` among them.

        Of these it makes the `frames`, which are numbers of the clip.
        """
        r = self.request
        generated = [frame for i, frame in enumerate(timeline) if i not in places]
        initial, sampling = None, r.sampling
        if self.video is not None:
            initial = ClipLatents(self.pipeline.vae, self.video, generated, self.pipeline.unet.config.in_channels)
            sampling = replace(sampling, strength=r.video_strength)
        inputs = ClipInputs(
            [r.prompt],
            [r.negative_prompt],
            len(generated),
            self.height,
            self.width,
            condition_latents=condition,
            condition_frames=places,
            initial_latents=initial,
            controls=self._controls(timeline),
            legacy_fit=r.legacy_fit,
            frame_numbers=timeline,
            **self._picture_inputs(),
        )
        run = "video" if len(self.lengths) == 1 else f"shot {k + 1}/{len(self.lengths)}"
        return self.pipeline.sample_parts(
            inputs, sampling, length=length, frames=frames, noise=self.noise, observer=self.observer, run=run
        )

    def _picture_inputs(self, **wanted: bool) -> dict[str, Any]:
        """The pictures as one run takes them, those of a single video."""
        fields = {"reference_image": "reference_images", "image_prompt": "image_prompts", "face_image": "face_images"}
        inputs: dict[str, Any] = {}
        for name, field in fields.items():
            picture = self.pictures[name] if wanted.get(name, True) else None
            inputs[field] = None if picture is None else picture[None]
        return inputs

    def _controls(self, timeline: list[int]) -> list[Control]:
        return [
            Control(control.net, ClipHints(hints, timeline), control.scale, control.start, control.end)
            for control, hints in zip(self.request.controls, self.hints, strict=True)
        ]

    def _first_frame(self) -> Tensor | None:
        """Latents of the condition frames: given, redrawn, or generated with the temporal layers off."""
        r = self.request
        if not self.has_condition:
            return None
        source = self.image if self.image is not None else None if self.video is None else self.video.take([0])
        initial = None if source is None else self._latents(source)
        if source is not None and initial is not None and (not self.makes_first or r.first_frame.strength == 0):
            self._replace_pictures(source, missing_only=True)
            return initial
        negative = r.negative_prompt if r.first_frame_negative_prompt is None else r.first_frame_negative_prompt
        wanted = {
            "reference_image": r.redraw_with_reference,
            "image_prompt": r.redraw_with_image_prompt,
            "face_image": r.redraw_with_face,
        }
        inputs = ClipInputs(
            [r.prompt],
            [negative],
            self.num_first,
            self.height,
            self.width,
            initial_latents=initial,
            controls=self._controls(self.places),
            legacy_fit=r.legacy_fit,
            frame_numbers=self.places,
            **self._picture_inputs(**wanted),
        )
        latents = self.pipeline.sample(
            inputs, r.first_frame, noise=self.noise.stream(1), observer=self.observer, run="first frame"
        )
        # a redrawn picture replaces all others, a generated one the missing ones
        self._replace_pictures(self._decode(latents), missing_only=self.image is None)
        return latents

    def _replace_pictures(self, frames: Tensor, *, missing_only: bool) -> None:
        for name, use in self.uses.items():
            if use and not (missing_only and self.pictures[name] is not None):
                self.pictures[name] = frames

    def _move_references(self, latents: Tensor) -> None:
        """Pictures which are not fixed follow `latents`, the last frames of the shot before."""
        r = self.request
        fixed = {
            "reference_image": r.fixed_reference,
            "image_prompt": r.fixed_image_prompt,
            "face_image": r.fixed_face,
        }
        moving = [name for name, use in self.uses.items() if use and not fixed[name]]
        if not self.has_condition or not moving:
            return
        frames = self._decode(latents)
        for name in moving:
            self.pictures[name] = frames

    def _latents(self, frames: Tensor) -> Tensor:
        return encode_latents(self.pipeline.vae, frames)[None].to(self.pipeline.device)

    def _decode(self, latents: Tensor) -> Tensor:
        return torch.cat(list(decode_latents(self.pipeline.vae, latents[0])))
