"""Videos as they come: other containers, covers, flat pixels, folders, damage, and files that point elsewhere."""

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.bounded import bounded
from support.damaged import VIDEOS, damaged, write_film

from musev_core.errors import MuseVError
from musev_core.frames.decoders import natural_order
from musev_core.frames.encoders import PngFolder
from musev_core.frames.video import frame_rate, iter_frames, read_video


@pytest.mark.parametrize("suffix", VIDEOS)
def test_every_kind_of_file_is_read(tmp_path, suffix):
    video = read_video(write_film(tmp_path / f"film.{suffix}"))
    assert video.frames.shape[1:] == (64, 96, 3) and len(video.frames) in (5, 6)  # mpg: the last one is lost
    assert video.fps == pytest.approx(25, rel=0.3)  # gif counts in hundredths


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_still_cover_before_the_film_is_passed_over(tmp_path, suffix):
    with_cover = read_video(write_film(tmp_path / f"cover.{suffix}", cover=True))
    assert torch.equal(with_cover.frames, read_video(write_film(tmp_path / f"film.{suffix}")).frames)


def test_a_single_picture_is_a_film_if_there_is_no_other(tmp_path):
    assert len(read_video(write_film(tmp_path / "film.mp4", frames=1)).frames) == 1


@pytest.mark.parametrize(
    ("aspect", "width"), [((4, 3), 128), ((8, 9), 85), ((1, 1), 96), ((1000, 1), 96), ((0, 1), 96)]
)
def test_flat_pixels_become_square(tmp_path, aspect, width):
    path = write_film(tmp_path / "film.mkv", sample_aspect_ratio=Fraction(*aspect))
    assert read_video(path).frames.shape == (6, 64, width, 3)


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path):
    small, large = write_film(tmp_path / "small.ts"), tmp_path / "large.ts"
    with av.open(str(large), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for _ in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((128, 192, 3), 200, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    frames = read_video(tmp_path / "both.ts").frames
    assert frames.shape[1:] == (64, 96, 3) and frames[-1].float().mean() > 190


# ---- folders of pictures -------------------------------------------------------------------------------------------


def folder_of(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for value, name in enumerate(names):
        Image.new("RGB", (16, 8), (value,) * 3).save(folder / name)
    return folder


def test_a_folder_of_pictures_is_a_video_in_the_order_of_its_numbers(tmp_path):
    folder = folder_of(tmp_path, "f9.png", "f10.jpg", "f9999.png", "f10000.png", "f10001.bmp")
    (folder / "notes.txt").touch()
    (folder / "._f1.png").touch()  # as macOS leaves them
    video = read_video(folder)
    assert video.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and video.fps == frame_rate(folder) == 25
    assert [int(f[0, 0, 0]) for f in iter_frames(folder, start=1, stride=3)] == [1, 4]
    with pytest.raises(MuseVError, match="has 5 frames, so there is none left from frame 5 on"):
        read_video(folder, start=5)


def test_a_folder_without_pictures_or_with_different_ones_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MuseVError, match="empty' holds no pictures"):
        read_video(tmp_path / "empty")
    folder = folder_of(tmp_path, "a1.png", "a2.png")
    Image.new("RGB", (8, 8)).save(folder / "a3.png")
    with pytest.raises(MuseVError, match="differ in size: a3.png has 8 x 8 pixels .* those before it 8 x 16"):
        read_video(folder)


def test_many_written_frames_sort_by_name(tmp_path):
    frames = PngFolder(tmp_path / "frames")
    for number in (0, 9_998, 9_999, 10_000, 10_001):  # the others would only take time
        frames.count = number
        frames.add(np.full((8, 8, 3), number % 251, np.uint8))
    frames.close()
    names = sorted(file.name for file in (tmp_path / "frames").iterdir())
    assert names == ["00000.png", "09998.png", "09999.png", "10000.png", "10001.png"]
    assert [file.name for file in natural_order((tmp_path / "frames").iterdir())] == names


# ---- refused -------------------------------------------------------------------------------------------------------

POINTING = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfilm.mp4\n#EXT-X-ENDLIST\n",
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/film.ts\n#EXT-X-ENDLIST\n",
    "list.txt": "ffconcat version 1.0\nfile film.mp4\n",
    "list.ffconcat": "ffconcat version 1.0\nfile film.mp4\n",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation><BaseURL>film.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "picture-%d.png": "no pattern",
}  # fmt: skip


@pytest.mark.parametrize("name", POINTING)
def test_files_that_point_to_others_are_refused(tmp_path, name, monkeypatch):
    write_film(tmp_path / "film.mp4")
    (tmp_path / name).write_text(POINTING[name], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    outcome = bounded(lambda: read_video(name))
    assert isinstance(outcome, MuseVError) and "cannot be read as a video" in str(outcome)


def test_names_are_never_taken_for_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_film(tmp_path / "film.mp4").rename(tmp_path / "concat:film.mp4")
    assert len(read_video("concat:film.mp4").frames) == 6
    for name in ("http://127.0.0.1:9/film.mp4", "rtsp://127.0.0.1/film", "pipe:0", "a\0.mp4", "x" * 300 + ".mp4"):
        assert isinstance(bounded(lambda name=name: read_video(name)), MuseVError)


@pytest.mark.parametrize("size", [(60_000, 60_000), (0, 64), (16_384, 16_384)])
def test_absurd_sizes_are_refused_before_a_frame_is_made(tmp_path, size):
    film = write_film(tmp_path / "film.gif", frames=2).read_bytes()
    at = film.index(b"\x2c\0\0\0\0") + 5  # of the first image; the screen's is at 6
    for place in (6, at):
        film = film[:place] + b"".join(n.to_bytes(2, "little") for n in size) + film[place + 4 :]
    (tmp_path / "film.gif").write_bytes(film)
    outcome = bounded(lambda: read_video(tmp_path / "film.gif"), size=len(film))
    assert isinstance(outcome, MuseVError)


def test_damage_further_on_does_not_matter_to_those_who_stop_before(tmp_path):
    path = write_film(tmp_path / "film.ts", frames=40)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 4] + bytes(1000))
    assert len(read_video(path, max_frames=3).frames) == 3


@given(st.sampled_from(VIDEOS), st.integers(0, 2**32))
def test_damaged_videos_are_read_or_told(tmp_path_factory, kind, seed):
    path = tmp_path_factory.mktemp("damaged") / f"film.{kind}"
    path.write_bytes(damaged(kind, random.Random(seed)))
    bounded(lambda: read_video(path, max_frames=8), size=path.stat().st_size)
