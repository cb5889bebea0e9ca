"""The sound of a video."""

import logging
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from musev_core.cli import main
from musev_core.errors import MuseVError
from musev_core.frames.audio import Sound, has_sound
from musev_core.frames.joining import join_videos, range_ending
from musev_core.frames.segments import ResumableVideo
from musev_core.frames.video import read_video, write_video
from musev_core.tasks.making import Output, open_jobs
from musev_core.tasks.task import Task


@pytest.fixture(autouse=True)
def quiet():
    yield
    logging.getLogger().handlers.clear()


def tone(path: Path, seconds: float, *, hertz: float = 440, rate: int = 22050, channels: int = 2) -> Path:
    """A sound whose second channel is silent."""
    wave_form = (np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * hertz / rate) * 2**14).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.stack([wave_form] + [0 * wave_form] * (channels - 1), axis=1).tobytes())
    return path


def film(path: Path, frames: int = 16, fps: float = 8, size: int = 64) -> Path:
    ramp = torch.arange(size)
    picture = (ramp[:, None, None] + ramp[None, :, None]).expand(size, size, 3)
    return write_video(path, torch.stack([picture + i for i in range(frames)]).to(torch.uint8), fps=fps)


def heard(path: Path) -> tuple[np.ndarray, int]:
    """Samples `(channels, n)` and how many make a second."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        first = float(frames[0].pts * frames[0].time_base)
        samples = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
        return samples[:, max(0, round(-first * stream.rate)) :], stream.rate


def loudness(samples: np.ndarray, rate: int, begin: float, end: float) -> float:
    return float(np.sqrt((samples[0, round(begin * rate) : round(end * rate)] ** 2).mean()))


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_is_cut_to_the_video(tmp_path, channels):
    source = film(tmp_path / "film.mp4")
    join_videos(tmp_path / "out.mp4", [source], fps=8, sound=Sound(tone(tmp_path / "a.wav", 5, channels=channels)))
    samples, rate = heard(tmp_path / "out.mp4")
    assert samples.shape[0] == channels and abs(samples.shape[1] / rate - 2) < 0.05 and rate == 22050
    assert loudness(samples, rate, 0.1, 1.9) == pytest.approx(0.5 / 2**0.5, rel=0.1)
    spectrum = np.abs(np.fft.rfft(samples[0, :rate]))
    assert abs(int(spectrum.argmax()) - 440) <= 2
    if channels == 2:
        assert loudness(samples[1:], rate, 0.1, 1.9) < 0.01
    assert torch.equal(read_video(tmp_path / "out.mp4").frames, read_video(source).frames)


def test_sound_and_pictures_lie_side_by_side(tmp_path):
    import av

    source = film(tmp_path / "film.mp4", frames=80)
    join_videos(tmp_path / "out.mp4", [source], fps=8, sound=Sound(tone(tmp_path / "a.wav", 9)))
    with av.open(str(tmp_path / "out.mp4")) as container:
        places = [(p.pos, float(p.dts * p.time_base)) for p in container.demux() if p.dts is not None]
    times = [time for _, time in sorted(places)]
    assert max(max(times[: i + 1]) - time for i, time in enumerate(times)) < 1.5  # a player need not look far ahead


def test_sound_begins_with_the_driving_video(tmp_path):
    sound = Sound(tone(tmp_path / "a.wav", 5), delay=0.5)
    join_videos(tmp_path / "out.mp4", [film(tmp_path / "film.mp4")], fps=8, sound=sound)
    samples, rate = heard(tmp_path / "out.mp4")
    assert loudness(samples, rate, 0, 0.4) < 0.01 and loudness(samples, rate, 0.6, 1.9) > 0.3
    assert abs(samples.shape[1] / rate - 2) < 0.05


def test_a_short_sound_ends_before_the_video(tmp_path):
    join_videos(tmp_path / "out.mp4", [film(tmp_path / "film.mp4")], fps=8, sound=Sound(tone(tmp_path / "a.wav", 0.75)))
    samples, rate = heard(tmp_path / "out.mp4")
    assert abs(samples.shape[1] / rate - 0.75) < 0.05 and len(read_video(tmp_path / "out.mp4").frames) == 16


def test_a_damaged_sound_costs_no_video(tmp_path, monkeypatch, caplog):
    import av

    good = tmp_path / "good.mp4"
    join_videos(good, [film(tmp_path / "film.mp4", frames=80)], fps=8, sound=Sound(tone(tmp_path / "a.wav", 20)))
    data = good.read_bytes()
    (tmp_path / "bad.mp4").write_bytes(data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * len(data) // 3 :])
    join_videos(tmp_path / "out.mp4", [tmp_path / "film.mp4"], fps=8, sound=Sound(tmp_path / "bad.mp4"))
    assert "ends where it is damaged" in caplog.text
    assert len(read_video(tmp_path / "out.mp4").frames) == 80
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio


def test_what_has_sound(tmp_path):
    silent = film(tmp_path / "film.mp4")
    folder = film(tmp_path / "folder")
    assert has_sound(tone(tmp_path / "a.wav", 1)) and not has_sound(silent) and not has_sound(folder)
    (tmp_path / "text.wav").write_text("no sound", encoding="utf-8")
    with pytest.raises(MuseVError, match="cannot be read as sound or video"):
        has_sound(tmp_path / "text.wav")
    with pytest.raises(MuseVError, match="does not exist"):
        has_sound(tmp_path / "gone.wav")
    with pytest.raises(MuseVError, match="has no sound that can be decoded"):
        join_videos(tmp_path / "out.mp4", [silent], fps=8, sound=Sound(silent))


@pytest.mark.parametrize("images", [False, True])
def test_a_resumed_video_has_its_sound(tmp_path, images):
    frames = read_video(film(tmp_path / "film.mp4", frames=100)).frames
    sound = Sound(tone(tmp_path / "a.wav", 20))
    for count in (60, 100):
        try:
            with ResumableVideo(tmp_path / "out.mp4", fps=8, facts={}, sound=sound, images=images) as video:
                first = video.begin(100, {}, {})
                video.write(frames[first:count])
                if count < 100:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    samples, rate = heard(tmp_path / "out.mp4")
    assert abs(samples.shape[1] / rate - 12.5) < 0.05 and len(read_video(tmp_path / "out.mp4").frames) == 100


def test_joined_parts_with_a_sound(tmp_path, capsys):
    parts = [film(tmp_path / f"film{range_ending(a, a + 16)}.mp4") for a in (0, 16)]
    sound = tone(tmp_path / "a.wav", 9)
    assert main(["join", *map(str, parts), "--audio", str(sound)]) == 0
    samples, rate = heard(tmp_path / "film.mp4")
    assert abs(samples.shape[1] / rate - 4) < 0.05
    assert main(["join", *map(str, parts), "--audio", str(parts[0]), "--overwrite"]) == 1
    assert "has no sound" in capsys.readouterr().err


# ---- which sound


@pytest.fixture(scope="module")
def dance(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dance")
    sound = Sound(tone(folder / "a.wav", 9))
    join_videos(folder / "dance.mp4", [film(folder / "film.mp4", frames=48, fps=24)], fps=24, sound=sound)
    film(folder / "picture")
    return folder


def chosen(dance: Path, audio=None, *, suffix: str = ".mp4", frames=(None, None), **task) -> Sound | None:
    given = {"video_path": dance / "dance.mp4", "fps": 24, "height": 64, "width": 64, **task}
    output = Output(dance / "results", suffix, audio=audio, frames=frames)
    (job,) = open_jobs(
        Task(prompt="a", seed=1, **given),
        output,
        model="m",
        networks={},
        random_seed=lambda: 1,
        turns=iter([True]),
    )
    return job.video.sound


def test_the_driving_video_is_heard_where_it_plays_in_time(dance, caplog):
    caplog.set_level(logging.INFO)
    source, picture = dance / "dance.mp4", dance / "picture" / "0000.png"
    assert chosen(dance) == Sound(source) == chosen(dance, sample_rate=2, fps=12)
    assert "left out" not in caplog.text
    assert chosen(
        dance, fps=12
    ) is None and "plays 24 of its frames a second, the result 12; its sound is left out" in (caplog.text)
    assert chosen(dance, "source", fps=12) == Sound(source) and "goes another way" in caplog.text
    assert (
        chosen(dance, "none") is None and chosen(dance, suffix=".gif") is None and chosen(dance, frames=(0, 3)) is None
    )
    assert chosen(dance, video_path=dance / "film.mp4") is None
    own = tone(dance / "own.wav", 1)
    assert chosen(dance, own) == Sound(own)
    with pytest.raises(MuseVError, match="--audio: .*film.mp4 has no sound"):
        chosen(dance, dance / "film.mp4")
    with pytest.raises(MuseVError, match="--audio: these files have no sound; take save_filetype mp4"):
        chosen(dance, own, suffix=".gif")
    with pytest.raises(MuseVError, match="--audio: parts of a video have no sound; give it to musev join"):
        chosen(dance, "source", frames=(0, 3))
    # a picture before the driving frames
    before = {"condition_images": picture, "video_has_condition": False}
    assert chosen(dance, **before) == Sound(source, delay=1 / 24)
    assert chosen(dance, condition_images_index=-1, **before) == Sound(source)
