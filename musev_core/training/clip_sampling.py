"""Which frames of a video make a training clip (extra.md 1.3): pure functions of numbers and a generator."""

from dataclasses import dataclass

import numpy as np

from ..errors import MuseVError


@dataclass(frozen=True)
class ClipRule:
    """How clips are taken from videos; the defaults are the original's.

    Args:
        num_frames: of a clip, condition frames included.
        sample_rate, max_sample_rate: stored frames from one frame of a clip to the next, drawn between these.
        stored_rate: video frames from one stored frame to the next; the network is told rate x stored_rate.
        num_references: pictures of the same video outside the clip, for the ReferenceNet and the image prompt.
    """

    num_frames: int = 12
    sample_rate: int = 4
    max_sample_rate: int = 8
    stored_rate: int = 2
    num_references: int = 1

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise MuseVError(f"a clip needs at least 2 frames, one condition frame and one more, got {self.num_frames}")
        if not 1 <= self.sample_rate <= self.max_sample_rate:
            raise MuseVError(
                f"sample rates must be at least 1 and rise, got {self.sample_rate} to {self.max_sample_rate}"
            )
        if self.stored_rate < 1 or self.num_references < 0:
            raise MuseVError(
                f"stored_rate must be at least 1 and num_references not negative, got {self.stored_rate} and "
                f"{self.num_references}"
            )


@dataclass(frozen=True)
class ClipChoice:
    """Numbers of stored frames, those of the references, and the clip's frame index."""

    frames: tuple[int, ...]
    references: tuple[int, ...]
    frame_index: tuple[int, ...]


def choose_clip(total: int, rule: ClipRule, rng: np.random.Generator) -> ClipChoice:
    """A clip from a video of `total` stored frames.

    The rate falls where the video is too short for it. References come from outside the clip, with replacement; where
    nothing lies outside, from the frames that the clip left out, or else from the clip (the original fails there).

    Raises:
        MuseVError: fewer frames than a clip has.
    """
    if total < rule.num_frames:
        raise MuseVError(f"a clip needs {rule.num_frames} stored frames, but the video has {total}")
    rate = min(int(rng.integers(rule.sample_rate, rule.max_sample_rate + 1)), total // rule.num_frames)
    span = rule.num_frames * rate
    start = int(rng.integers(0, max(1, total - span)))
    frames = tuple(range(start, start + span, rate))
    outside = [i for i in range(total) if not start <= i < start + span]
    outside = outside or [i for i in range(total) if i not in frames] or list(frames)
    references = tuple(int(i) for i in rng.choice(outside, rule.num_references))
    return ClipChoice(frames, references, tuple(k * rate * rule.stored_rate for k in range(rule.num_frames)))
