"""What can be said of one video, measured frame by frame, and as a text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import MuseVError
from .metrics import GREY_LEVEL, FrameNumbers, drift, flicker, measure_frames, psnr, seam_jerk


@dataclass(frozen=True)
class Drift:
    """Steady change over the generated frames, in percent per 100 frames."""

    color: tuple[float, ...]  # of the mean of red, green, blue
    contrast: tuple[float, ...]  # of their standard deviation
    sharpness: float  # of the variance of the Laplacian


@dataclass(frozen=True)
class Report:
    """What was measured of a video. `str(report)` is meant to be read."""

    num_frames: int  # condition frames included
    num_condition_frames: int
    fidelity: tuple[float, ...]  # dB, picture by picture; empty if none was given
    drift: Drift | None  # None: a single generated frame
    seam_jerk: float | None  # None: no seams, or nothing between them
    by_seam: dict[int, float]  # the same seam by seam, by frame number of the whole video
    flicker: float  # 0..1
    numbers: FrameNumbers  # of the whole video, for curves

    def __str__(self) -> str:
        given, total = self.num_condition_frames, self.num_frames
        lines = [f"{_count(total, 'frame')}: {_count(given, 'condition frame')}, {total - given} generated"]
        lines += [f"Condition frame {i}: {value:.1f} dB PSNR to its picture" for i, value in enumerate(self.fidelity)]
        if self.drift:
            lines += [
                f"Colour drift: {_channels(self.drift.color)} % per 100 frames",
                f"Contrast drift: {_channels(self.drift.contrast)} % per 100 frames",
                f"Sharpness drift: {self.drift.sharpness:+.1f} % per 100 frames",
            ]
        if self.seam_jerk is None:
            lines.append("Seam jerk: no seams between windows, or no frames away from them")
        else:
            worst = max(self.by_seam, key=lambda seam: self.by_seam[seam])
            lines.append(
                f"Seam jerk: {self.seam_jerk:.2f} at {_count(len(self.by_seam), 'seam')}, worst "
                f"{self.by_seam[worst]:.2f} at frame {worst} (1 = like between the seams)"
            )
        lines.append(f"Flicker: {self.flicker / GREY_LEVEL:.2f} of 255 grey levels")
        return "\n".join(lines)


def measure(
    frames: Iterable[Tensor],
    *,
    num_condition_frames: int = 0,
    seams: Sequence[int] = (),
    pictures: Tensor | None = None,
) -> Report:
    """Everything that can be said of one video without another one to compare it with.

    Args:
        frames: pictures `(H, W, 3)` in order, 0..1: a tensor `(T, H, W, 3)` or a stream.
        num_condition_frames: leading frames which were given. Only the frames after them count for drift, seams and
            flicker.
        seams: where windows begin and end, as numbers of the generated frames (`metrics.seam_jerk`).
        pictures: `(n, H, W, 3)`, what the first n frames should look like.

    Raises:
        MuseVError: shapes or number formats that do not fit, no generated frame, more pictures than frames, or a
            seam outside the video.
    """
    fidelity: list[float] = []

    def compared() -> Iterator[Tensor]:
        for i, frame in enumerate(frames):
            if pictures is not None and i < len(pictures):
                fidelity.append(float(psnr(frame[None], pictures[i : i + 1])))
            yield frame

    numbers = measure_frames(compared())
    if pictures is not None and len(fidelity) < len(pictures):
        raise MuseVError(f"There are {len(pictures)} pictures to compare with, but only {len(numbers)} frames.")
    generated = numbers.after(num_condition_frames)
    if not len(generated):
        raise MuseVError(
            f"{_count(num_condition_frames, 'condition frame')} of {_count(len(numbers), 'frame')} leave nothing that "
            "was generated; give a smaller number of condition frames."
        )
    jerk, by_seam = seam_jerk(generated.jerk, seams) if len(generated) > 2 else (None, {})
    return Report(
        num_frames=len(numbers),
        num_condition_frames=num_condition_frames,
        fidelity=tuple(fidelity),
        drift=_drift(generated) if len(generated) > 1 else None,
        seam_jerk=jerk,
        by_seam={seam + num_condition_frames: value for seam, value in by_seam.items()},
        flicker=flicker(generated),
        numbers=numbers,
    )


def _drift(numbers: FrameNumbers) -> Drift:
    return Drift(
        color=tuple(drift(numbers.mean).tolist()),
        contrast=tuple(drift(numbers.std).tolist()),
        sharpness=float(drift(numbers.sharpness, least=GREY_LEVEL**2)),
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _channels(values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:+.1f}" for name, value in zip(("red", "green", "blue"), values, strict=True))
