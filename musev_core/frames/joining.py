"""Several mp4 files as one, frame after frame, without encoding them again."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import MuseVError
from ..file_names import existing_file, shown
from .decoders import DEMUXERS, open_source
from .encoders import ENCODERS, MUXER_OPTIONS

log = logging.getLogger(__name__)


def join_videos(path: Path, parts: Sequence[Path], *, fps: float) -> None:
    """Writes the frames of `parts`, one file after another, `fps` of them a second, and replaces what is at `path`.

    Files of one encoder are joined as they are. If they differ in how they were encoded, everything is encoded again.

    Raises:
        MuseVError: a part is no mp4 of ours, or their sizes differ.
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
        _join_packets(path, parts, rate)
        return
    log.warning("the parts of %s come from different encoders, so all is encoded again", shown(path))
    encoder = ENCODERS[".mp4"](path, sizes[0], rate, 17)
    for frame in itertools.chain.from_iterable(open_source(part).frames(0, 1) for part in parts):
        encoder.add(frame.numpy())
    encoder.close()


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


def _join_packets(path: Path, parts: Sequence[Path], rate: Fraction) -> None:
    import av

    with av.open(str(path.absolute()), "w", format="mp4", options=MUXER_OPTIONS["mp4"]) as output:
        target: Any = None
        first = 0
        for part in parts:
            with ExitStack() as stack:
                stream = _stream(stack, part)
                if target is None:
                    target = output.add_stream_from_template(stream)
                count = 0
                for packet in _packets(stream):
                    shift = round(first / rate / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = target
                    output.mux(packet)
                    count += 1
                first += count


def _packets(stream: Any) -> Iterator[Any]:
    for packet in stream.container.demux(stream):
        if packet.dts is not None:  # the last one, which only says that there are no more
            yield packet
