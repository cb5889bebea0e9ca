"""Several mp4 files as one, frame after frame, without encoding them again."""

import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import MuseVError
from ..file_names import existing_file, shown
from .audio import Sound, SoundTrack
from .decoders import DEMUXERS, open_source
from .encoders import ENCODERS, MUXER_OPTIONS

log = logging.getLogger(__name__)


def join_videos(path: Path, parts: Sequence[Path], *, fps: float, sound: Sound | None = None) -> None:
    """Writes the frames of `parts`, one file after another, `fps` of them a second, and replaces what is at `path`.

    Files of one encoder are joined as they are. If they differ in how they were encoded, everything is encoded again.

    Args:
        sound: what is heard with it, cut to its length; sound of the parts is dropped.

    Raises:
        MuseVError: a part is no mp4 of ours, their sizes differ, or there is no sound.
        FFmpegError, OSError: the file cannot be written.
    """
    for part in parts:
        existing_file(part, "part of a video")
    formats = [_format(part) for part in parts]
    sizes = sorted({(height, width) for height, width, _ in formats})
    if len(sizes) > 1:
        told = " and ".join(f"{height} x {width}" for height, width in sizes)
        raise MuseVError(f"Only frames of one size can be joined, got {told} (height x width).")
    rate = Fraction(fps).limit_denominator(1001)
    if len(set(formats)) == 1:
        _join_packets(path, parts, rate, sound)
        return
    log.warning("the parts of %s come from different encoders, so all is encoded again", shown(path))
    whole = path if sound is None else path.with_name(f"silent.{path.name}")
    encoder = ENCODERS[".mp4"](whole, sizes[0], rate, 17)
    for frame in itertools.chain.from_iterable(open_source(part).frames(0, 1) for part in parts):
        encoder.add(frame.numpy())
    encoder.close()
    if sound is not None:
        _join_packets(path, [whole], rate, sound)
        whole.unlink()


def range_ending(first: int, stop: int) -> str:
    """What the name of a file ends in that holds the frames `first..stop - 1` of a video."""
    return f"_frames_{first:06d}_{stop:06d}"


def in_order(files: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The video whose parts are `files`, by their names; and these in their order.

    Raises:
        MuseVError: names that are not those of `range_ending`, parts of several videos, or frames that are missing or
            come twice.
    """
    parts = []
    for file in files:
        match = re.fullmatch(r"(.+)_frames_(\d{6,})_(\d{6,})", file.stem)
        if match is None:
            raise MuseVError(
                f"{shown(file)} is not named as a part of a video (NAME_frames_000000_000048.mp4), as musev generate "
                "--frames does. Say with --output where the video goes; its parts are then joined as they are given."
            )
        parts.append((match[1], int(match[2]), int(match[3]), file))
    names = sorted({name for name, *_ in parts})
    if len(names) > 1:
        raise MuseVError(f"These are parts of {len(names)} videos: {', '.join(names)}. Give those of one.")
    parts.sort(key=lambda part: part[1:3])
    at = 0
    for _, first, stop, file in parts:
        if first != at:
            problem = f"the frames {at}..{first - 1} are missing" if first > at else f"frame {first} comes twice"
            raise MuseVError(f"Before {shown(file)}, {problem}.")
        at = stop
    return parts[0][3].with_name(names[0] + parts[0][3].suffix), [file for *_, file in parts]


def _format(part: Path) -> tuple[int, int, bytes]:
    """Height, width and what a decoder has to know before the first frame."""
    with ExitStack() as stack:
        stream = _stream(stack, part)
        return stream.height, stream.width, bytes(stream.codec_context.extradata or b"")


def _stream(stack: ExitStack, part: Path) -> Any:
    import av
    from av.error import FFmpegError

    only = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "file"}
    try:
        container = stack.enter_context(av.open(str(part.absolute()), options=only))
    except (FFmpegError, ValueError) as error:
        raise MuseVError(f"{shown(part)} cannot be read as a video: {error}.") from error
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    if len(streams) != 1 or streams[0].codec_context.name != "h264":
        raise MuseVError(f"{shown(part)} is no mp4 file with one video in H.264, which musev generate writes.")
    return streams[0]


def _join_packets(path: Path, parts: Sequence[Path], rate: Fraction, sound: Sound | None) -> None:
    import av

    # a packet is decoded as many frames before it is shown as the parts need at most; a short part alone needs none
    shown_at = [number for _, number in _packets(parts, rate)]
    delay = max(i - number for i, number in enumerate(shown_at))
    with av.open(str(path.absolute()), "w", format="mp4", options=MUXER_OPTIONS["mp4"]) as output:
        target: Any = None
        track: SoundTrack | None = None
        for i, (packet, number) in enumerate(_packets(parts, rate)):
            if target is None:
                target = output.add_stream_from_template(packet.stream)
                if sound is not None:
                    track = SoundTrack(output, sound, float(len(shown_at) / rate))
            packet.pts, packet.dts = (round(n / rate / packet.time_base) for n in (number, i - delay))
            packet.stream = target
            if track is not None:
                track.write_until(float(i / rate))
            output.mux(packet)
        if track is not None:
            track.write_until(None)


def _packets(parts: Sequence[Path], rate: Fraction) -> Iterator[tuple[Any, int]]:
    """The packets of all parts in the order of decoding, and the number of each one's frame."""
    first = 0
    for part in parts:
        with ExitStack() as stack:
            stream, count = _stream(stack, part), 0
            for packet in stream.container.demux(stream):
                if packet.dts is not None:  # the last one, which only says that there are no more
                    yield packet, first + round(packet.pts * packet.time_base * rate)
                    count += 1
            first += count
