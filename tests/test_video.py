import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from musev_core.errors import MuseVError
from musev_core.frames.image_files import load_image
from musev_core.frames.video import VideoWriter, frame_rate, iter_frames, read_video, unique_path, write_video


def smooth_clip(n=10, h=64, w=96) -> torch.Tensor:
    """A colourful gradient which moves: uint8 (n, h, w, 3)."""
    t, y, x = np.mgrid[0:n, 0:h, 0:w].astype(np.float64)
    channels = (40 + 180 * x / w + 3 * t, 20 + 200 * y / h, 230 - 150 * (x + y) / (w + h) - 2 * t)
    return torch.from_numpy(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def psnr(a, b) -> float:
    return float(10 * torch.log10(255**2 / (a.double() - b.double()).square().mean()))


def leftovers(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


CLIP = smooth_clip()
FORMATS = ["clip.mp4", "clip.gif", "clip.webp", "clip"]


# ---- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [12, 29.97, 3.5])
def test_mp4_keeps_frames_rate_and_colours(tmp_path, fps):
    path = write_video(tmp_path / "clip.mp4", CLIP, fps=fps)
    video = read_video(path)
    assert video.frames.shape == CLIP.shape and video.frames.dtype == torch.uint8
    assert video.fps == pytest.approx(fps, rel=1e-3)
    assert min(psnr(a, b) for a, b in zip(video.frames, CLIP, strict=True)) > 40
    difference = video.frames.double().mean((0, 1, 2)) - CLIP.double().mean((0, 1, 2))
    assert difference.abs().max() < 1


def test_mp4_holds_bt709_and_says_so(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    for i, colour in enumerate(colours):
        frames = torch.tensor(colour, dtype=torch.uint8).expand(1, 32, 32, 3)
        path = write_video(tmp_path / f"{i}.mp4", frames, fps=8, overwrite=True)
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            frame = next(container.decode(video=0))
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        planes = frame.to_ndarray()  # yuv420p, so that no conversion of FFmpeg hides an error
        y, u, v = (float(p.mean()) for p in (planes[:32], planes[32:40], planes[40:]))
        r, g, b = (c / 255 for c in colour)
        luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
        expected = (16 + 219 * luma, 128 + 224 * (b - luma) / 1.8556, 128 + 224 * (r - luma) / 1.5748)
        assert (y, u, v) == pytest.approx(expected, abs=1.5), colour


def test_gif_is_endless_and_keeps_every_frame_and_its_time(tmp_path):
    path = write_video(tmp_path / "clip.gif", CLIP, fps=12)
    with Image.open(path) as gif:
        assert gif.n_frames == 10 and gif.info["loop"] == 0
        for i in range(gif.n_frames):
            gif.seek(i)
            assert gif.info["duration"] == 80  # int(1000 / 12) = 83 ms, in hundredths of a second
            assert psnr(torch.from_numpy(np.array(gif.convert("RGB"))), CLIP[i]) > 30
    assert read_video(path).fps == 12.5


def test_gif_never_asks_for_frames_shorter_than_browsers_show(tmp_path):
    with Image.open(write_video(tmp_path / "clip.gif", CLIP[:2], fps=100)) as gif:
        assert gif.info["duration"] == 20


def test_webp_is_endless_and_lossless(tmp_path):
    path = write_video(tmp_path / "clip.webp", CLIP, fps=8)
    with Image.open(path) as webp:
        assert webp.n_frames == 10 and webp.info["loop"] == 0
        for i in range(webp.n_frames):
            webp.seek(i)
            assert np.array_equal(np.asarray(webp.convert("RGB")), CLIP[i].numpy())
            assert webp.info["duration"] == 125


def test_no_suffix_makes_a_folder_of_png_files(tmp_path):
    path = write_video(tmp_path / "clip", CLIP[:3], fps=8)
    assert leftovers(path) == ["0000.png", "0001.png", "0002.png"]
    assert torch.equal(load_image(path / "0002.png"), CLIP[2:3])


@pytest.mark.parametrize("name", FORMATS)
def test_chunks_and_floats_give_the_same_file_as_everything_at_once(tmp_path, name):
    once, chunks = tmp_path / "once", tmp_path / "chunks"
    write_video(once / name, CLIP, fps=8)
    with VideoWriter(chunks / name, fps=8) as writer:
        for chunk in (CLIP[:1], CLIP[1:8], CLIP[8:] / 255 + 0.001):
            writer.write(chunk)
        assert writer.frame_count == 10
    files = [p for p in sorted(once.rglob("*")) if p.is_file()]
    assert files
    for file in files:
        assert file.read_bytes() == (chunks / file.relative_to(once)).read_bytes()


def test_odd_sizes_are_padded_for_mp4_with_a_warning(tmp_path, caplog):
    path = write_video(tmp_path / "clip.mp4", CLIP[:, :63, :95], fps=8)
    assert "63 x 95 becomes 64 x 96" in caplog.text
    frames = read_video(path).frames
    assert frames.shape[1:3] == (64, 96) and psnr(frames[:, :63, :95], CLIP[:, :63, :95]) > 40
    assert psnr(frames[:, 63], frames[:, 62]) > 40  # the edge goes on, no black line


@pytest.mark.parametrize("name", FORMATS)
def test_one_frame_is_a_video_too(tmp_path, name):
    path = write_video(tmp_path / name, CLIP[:1], fps=8)
    assert path.is_file() or leftovers(path) == ["0000.png"]


def test_lower_crf_is_better(tmp_path):
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for crf in (5, 45):
        with VideoWriter(tmp_path / f"{crf}.mp4", fps=8, crf=crf) as writer:
            writer.write(frames)
    assert psnr(read_video(tmp_path / "5.mp4").frames, frames) > psnr(read_video(tmp_path / "45.mp4").frames, frames)


# ---- reading -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", CLIP, fps=12)


def test_stride_start_and_limit_pick_frames(clip_path):
    everything = read_video(clip_path).frames
    video = read_video(clip_path, stride=3, start=1, max_frames=2)
    assert torch.equal(video.frames, everything[[1, 4]]) and video.fps == 4
    assert torch.equal(read_video(clip_path, stride=4).frames, everything[[0, 4, 8]])
    assert torch.equal(read_video(clip_path, start=9, stride=50).frames, everything[9:])
    assert frame_rate(clip_path) == 12


def test_streaming_gives_the_same_frames(clip_path):
    frames = iter_frames(clip_path, stride=2, start=1)
    first = next(frames)
    assert first.shape == CLIP.shape[1:]
    assert torch.equal(torch.stack([first, *frames]), read_video(clip_path, stride=2, start=1).frames)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_videos_of_a_turned_phone_are_upright(clip_path, tmp_path, matrix, turns):
    data = bytearray(clip_path.read_bytes())
    a, b, c, d = (v * 0x10000 for v in matrix)
    at = data.index(b"tkhd") + 44  # the display matrix of the track header (ISO 14496-12, 8.3.2)
    assert struct.unpack(">9i", data[at : at + 36]) == (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    (tmp_path / "turned.mp4").write_bytes(data)
    expected = torch.rot90(read_video(clip_path).frames, turns, dims=(1, 2))  # positive: counter-clockwise
    assert torch.equal(read_video(tmp_path / "turned.mp4").frames, expected)


def test_unreadable_videos_are_named(tmp_path, clip_path):
    (tmp_path / "text.mp4").write_text("hello", encoding="utf-8")
    data = clip_path.read_bytes()
    (tmp_path / "head.mp4").write_bytes(data[: data.index(b"mdat") + 4])
    (tmp_path / "damaged.mp4").write_bytes(data[: -len(data) // 4].ljust(len(data), b"\xff"))
    write_video(tmp_path / "clip.webp", CLIP, fps=8)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, message in [
        ("absent.mp4", "The video file .* does not exist"),
        ("text.mp4", "cannot be read as a video"),
        ("head.mp4", "no video stream that can be decoded"),
        ("damaged.mp4", r"cannot be read after frame \d+"),
        ("clip.webp", "cannot be read as a video: .*Playlists, pictures and damaged files are no videos"),
        ("sound.wav", "cannot be read as a video"),
    ]:
        with pytest.raises(MuseVError, match=message) as caught:
            read_video(tmp_path / name)
        assert name in str(caught.value)


def test_numbers_of_the_reader_are_checked_before_reading(clip_path):
    with pytest.raises(MuseVError, match="got stride 0"):
        iter_frames(clip_path, stride=0)
    with pytest.raises(MuseVError, match="start -1"):
        iter_frames(clip_path, start=-1)
    with pytest.raises(MuseVError, match="max_frames must be 1 or more, got 0"):
        read_video(clip_path, max_frames=0)
    with pytest.raises(MuseVError, match="does not exist"):
        iter_frames("absent.mp4")
    with pytest.raises(MuseVError, match="has 10 frames, so there is none left from frame 10 on"):
        read_video(clip_path, start=10)


# ---- safety of files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_target_appears_only_when_it_is_complete(tmp_path, name):
    with VideoWriter(tmp_path / name, fps=8) as writer:
        writer.write(CLIP)
        assert not (tmp_path / name).exists()
    assert leftovers(tmp_path) == [name]


@pytest.mark.parametrize("name", FORMATS)
def test_an_exception_leaves_nothing_behind(tmp_path, name):
    with pytest.raises(RuntimeError, match="power cut"), VideoWriter(tmp_path / name, fps=8) as writer:
        writer.write(CLIP[:4])
        raise RuntimeError("power cut")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_overwritten_unless_allowed(tmp_path, name):
    path = write_video(tmp_path / name, CLIP[:4], fps=8)
    file = path if path.is_file() else path / "0003.png"
    before = file.read_bytes()
    with pytest.raises(MuseVError, match=f"{name}.*exists already.*overwrite=True"):
        VideoWriter(path, fps=8)
    with pytest.raises(RuntimeError), VideoWriter(path, fps=8, overwrite=True) as writer:
        writer.write(CLIP[5:7])
        raise RuntimeError
    assert file.read_bytes() == before  # a failure keeps the old one
    write_video(path, CLIP[5:7], fps=8, overwrite=True)
    assert not file.exists() or file.read_bytes() != before
    assert leftovers(tmp_path) == [name]


def test_overwriting_a_folder_spares_other_files(tmp_path):
    path = write_video(tmp_path / "clip", CLIP[:4], fps=8)
    (path / "notes.txt").write_text("mine", encoding="utf-8")
    write_video(path, CLIP[:2], fps=8, overwrite=True)
    assert leftovers(path) == ["0000.png", "0001.png", "notes.txt"]
    (tmp_path / "empty").mkdir()
    assert leftovers(write_video(tmp_path / "empty", CLIP[:1], fps=8)) == ["0000.png"]


def test_a_file_that_appeared_meanwhile_is_spared(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", fps=8) as writer:
        writer.write(CLIP)
        (tmp_path / "clip.mp4").write_text("faster", encoding="utf-8")
    assert (tmp_path / "clip.mp4").read_text(encoding="utf-8") == "faster"
    assert writer.path.name == "clip-2.mp4" and len(read_video(writer.path).frames) == 10


@pytest.mark.parametrize("name", FORMATS)
def test_a_target_that_a_player_holds_open_costs_no_video(tmp_path, name, monkeypatch, caplog):
    taken = write_video(tmp_path / name, CLIP[:1], fps=8)
    replace = os.replace

    def refuse(old, new):  # as Windows does
        if taken in (Path(old), Path(new)):
            raise PermissionError(13, "being used by another process", str(new))
        replace(old, new)

    monkeypatch.setattr("os.replace", refuse)
    written = write_video(tmp_path / name, CLIP, fps=8, overwrite=True)
    assert written == taken.with_name(taken.stem + "-2" + taken.suffix) and written.exists()
    assert f"{taken} is in use by another program or protected; writing {written} instead" in caplog.text
    assert leftovers(tmp_path) == sorted([taken.name, written.name])


def test_a_finished_video_is_never_lost(tmp_path, monkeypatch):
    def refuse(old, new):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(
        MuseVError, match="The video is finished, but cannot be named .*clip.mp4.*It is here: "
    ) as caught:
        write_video(tmp_path / "clip.mp4", CLIP, fps=8)
    left = Path(str(caught.value).split("It is here: ")[1])
    monkeypatch.undo()
    assert len(read_video(left.rename(tmp_path / "clip.mp4")).frames) == 10


def test_long_and_odd_names_of_targets(tmp_path, monkeypatch):
    assert write_video(tmp_path / f"{'x' * 251}.mp4", CLIP, fps=8).is_file()
    for bad in ("x" * 252 + ".mp4", "a\0.mp4", "half\ud83d\udc80.mp4"):
        with pytest.raises(MuseVError, match="cannot be made"):
            VideoWriter(tmp_path / bad, fps=8)
    monkeypatch.chdir(tmp_path)
    assert write_video("pipe:1/clip.mp4", CLIP, fps=8).is_file()  # no protocol of FFmpeg's


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "gone").mkdir()
    writer = VideoWriter(tmp_path / "gone" / name, fps=8)
    (tmp_path / "gone").rmdir()
    with pytest.raises(MuseVError, match=f"{name}' cannot be written: .*No such file"), writer:
        writer.write(CLIP)


def test_missing_folders_are_made(tmp_path):
    assert write_video(tmp_path / "a" / "b" / "clip.gif", CLIP[:2], fps=8).is_file()


def test_closing_twice_is_harmless_and_writing_later_is_not(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", fps=8) as writer:
        writer.write(CLIP)
        writer.close()
        with pytest.raises(MuseVError, match="is finished"):
            writer.write(CLIP)
    assert len(read_video(tmp_path / "clip.mp4").frames) == 10


def test_unique_path_counts_on(tmp_path):
    assert unique_path(tmp_path / "a.mp4") == tmp_path / "a.mp4"
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a-2.mp4").touch()
    assert unique_path(tmp_path / "a.mp4") == tmp_path / "a-3.mp4"
    assert unique_path(tmp_path) == tmp_path.with_name(tmp_path.name + "-2")


# ---- errors of the writer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_frame_rates_which_make_no_video(tmp_path, fps):
    with pytest.raises(MuseVError, match=f"fps must be a positive number.*got {fps}"):
        VideoWriter(tmp_path / "clip.mp4", fps=fps)


def test_bad_targets_are_refused_at_once(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    for name, message in [
        ("clip.avi", r"Unknown video format '.avi'.*\.mp4, \.gif, \.webp"),
        ("folder.mp4", "existing folder of another sort"),
        ("file", "existing file of another sort"),
        ("file/clip.mp4", "cannot be made"),
    ]:
        with pytest.raises(MuseVError, match=message):
            VideoWriter(tmp_path / name, fps=8)
    with pytest.raises(MuseVError, match="crf must lie in 0..51, got 52"):
        VideoWriter(tmp_path / "clip.mp4", fps=8, crf=52)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (CLIP[:, :32], r"size of the first, \(64, 96\) \(height, width\), got \(32, 96\)"),
        (CLIP[0], "frames must have the shape"),
        (CLIP.int(), "uint8 .* or float .*, got torch.int32"),
        (CLIP.float(), "must lie in 0..1"),
    ],
)
def test_wrong_frames_are_refused_and_nothing_is_left(tmp_path, frames, message):
    with pytest.raises(MuseVError, match=message), VideoWriter(tmp_path / "clip.mp4", fps=8) as writer:
        writer.write(CLIP)
        writer.write(frames)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", FORMATS)
def test_no_frames_is_an_error(tmp_path, name):
    with pytest.raises(MuseVError, match="No frames were written"), VideoWriter(tmp_path / name, fps=8):
        pass
    assert leftovers(tmp_path) == []
