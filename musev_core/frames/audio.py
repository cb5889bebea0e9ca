"""The sound of a video: read from any file that has some, cut to the video's length, encoded as AAC."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MuseVError
from ..file_names import existing_file, long_path, shown
from .decoders import DEMUXERS

log = logging.getLogger(__name__)
_DEMUXERS = (*DEMUXERS, "mp3", "wav", "flac", "aac", "ac3", "aiff", "w64")
_RATES = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # of a second, those of AAC that are in use
_FRAME = 1024  # samples of an AAC packet


@dataclass(frozen=True)
class Sound:
    """The sound of a file, `delay` seconds after the first frame."""

    path: Path
    delay: float = 0.0


def has_sound(path: str | Path) -> bool:
    """Whether a file has sound that can be decoded; a folder of pictures has none.

    Raises:
        MuseVError: there is no such file, or it is none of sound or video.
    """
    path = existing_file(path, "sound or video file", folders=True)
    if path.is_dir():
        return False
    with _opened(path) as container:
        return _stream(container) is not None


class SoundTrack:
    """The sound of a video which is written to a container, packet by packet, in the order of time.

    Args:
        output: an `av` container that is being written.
        seconds: how long the video is; what is longer is cut.
    """

    def __init__(self, output: Any, sound: Sound, seconds: float):
        self._output = output
        self._resources = contextlib.ExitStack()
        self._source = self._resources.enter_context(_opened(sound.path))
        stream = _stream(self._source)
        if stream is None:
            raise MuseVError(f"{shown(sound.path)} has no sound that can be decoded.")
        self._path, self._input = sound.path, stream
        rate = next((rate for rate in _RATES if rate <= stream.rate), _RATES[-1])
        self.layout = "mono" if stream.channels == 1 else "stereo"
        self._stream = output.add_stream("aac", rate=rate, layout=self.layout)
        self._rate, self._samples = rate, round(seconds * rate)
        self._silence = round(sound.delay * rate)
        self._packets = self._encoded()
        self._next: Any = None

    def write_until(self, seconds: float | None) -> None:
        """Writes the packets which begin before a time; None: all, and closes the source."""
        while True:
            if self._next is None:
                self._next = next(self._packets, None)
            packet = self._next
            if packet is None or (seconds is not None and float(packet.pts * packet.time_base) >= seconds):
                break
            self._output.mux(packet)
            self._next = None
        if seconds is None:
            self._resources.close()

    def _encoded(self) -> Iterator[Any]:
        from av import AudioFrame

        count = 0
        for samples in self._cut():
            frame = AudioFrame.from_ndarray(samples, format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, count, Fraction(1, self._rate)
            count += samples.shape[1]
            yield from self._stream.encode(frame)
        yield from self._stream.encode()

    def _cut(self) -> Iterator[np.ndarray]:
        """`(channels, n)` in pieces of `_FRAME`; the last one is shorter."""
        channels = 1 if self.layout == "mono" else 2
        held = np.zeros((channels, self._silence), np.float32)
        left = self._samples
        for samples in self._decoded():
            held = np.concatenate([held, samples], axis=1)
            while left > 0 and held.shape[1] >= _FRAME:
                yield np.ascontiguousarray(held[:, : min(_FRAME, left)])
                held, left = held[:, _FRAME:], left - _FRAME
            if left <= 0:
                return
        if held.shape[1] > 0:
            yield np.ascontiguousarray(held[:, :left])

    def _decoded(self) -> Iterator[np.ndarray]:
        from av import AudioResampler
        from av.error import FFmpegError

        resampler = AudioResampler(format="fltp", layout=self.layout, rate=self._rate)
        try:
            for frame in self._source.decode(self._input):
                frame.pts = None  # gaps in time are not filled
                for converted in resampler.resample(frame):
                    yield converted.to_ndarray()
            for converted in resampler.resample(None):
                yield converted.to_ndarray()
        except (FFmpegError, ValueError) as error:  # the video is finished, and worth more than the rest of its sound
            log.warning("the sound of %s ends where it is damaged: %s", self._path, error)


def _stream(container: Any) -> Any:
    return next((s for s in container.streams.audio if s.codec_context is not None and s.rate and s.channels), None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av
    from av.error import FFmpegError

    only = {"format_whitelist": ",".join(_DEMUXERS), "protocol_whitelist": "file"}
    try:
        container = av.open(str(long_path(path.absolute())), options=only, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MuseVError(f"{shown(path)} cannot be read as sound or video: {reason}.") from error
    with container:
        yield container
