"""Parts of a video, made by several machines, as one file."""

import logging
import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from musev_core.cli import main
from musev_core.errors import MuseVError
from musev_core.frames.encoders import ENCODERS
from musev_core.frames.joining import in_order, join_videos, range_ending
from musev_core.frames.video import frame_rate, read_video, write_video


@pytest.fixture(autouse=True)
def quiet():
    yield
    logging.getLogger().handlers.clear()


def clip(first: int, n: int, height: int = 64, width: int = 64) -> torch.Tensor:
    ramp = torch.arange(height)[:, None] * 2 + torch.arange(width)
    return torch.stack([(ramp + 9 * i)[..., None].expand(-1, -1, 3) for i in range(first, first + n)]).to(torch.uint8)


def parts(folder: Path, *ranges: tuple[int, int], name: str = "film") -> list[Path]:
    return [write_video(folder / f"{name}{range_ending(a, b)}.mp4", clip(a, b - a), fps=12.5) for a, b in ranges]


def test_parts_are_joined_frame_by_frame(tmp_path, capsys):
    files = parts(tmp_path, (0, 5), (13, 14), (5, 13))
    assert main(["join", *map(str, files)]) == 0
    film = tmp_path / "film.mp4"
    assert capsys.readouterr().out == f"{film}\n"
    wanted = torch.cat([read_video(files[i]).frames for i in (0, 2, 1)])
    assert torch.equal(read_video(film).frames, wanted) and frame_rate(film) == 12.5
    assert sorted(tmp_path.iterdir()) == sorted([*files, film])  # the parts stay
    assert main(["join", *map(str, files)]) == 1 and "exists already" in capsys.readouterr().err
    assert main(["join", str(files[1]), str(files[0]), "--output", str(film), "--overwrite"]) == 0
    assert torch.equal(read_video(film).frames, torch.cat([read_video(files[i]).frames for i in (1, 0)]))


@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        ([(0, 5), (6, 13)], "the frames 5..5 are missing"),
        ([(3, 5)], "the frames 0..2 are missing"),
        ([(0, 5), (4, 13)], "frame 4 comes twice"),
    ],
)
def test_parts_with_gaps(tmp_path, ranges, problem):
    with pytest.raises(MuseVError, match=re.escape(problem)):
        in_order([tmp_path / f"film{range_ending(*one)}.mp4" for one in ranges])


def test_parts_that_are_none(tmp_path, capsys):
    (one,) = parts(tmp_path, (0, 2))
    (other,) = parts(tmp_path, (2, 4), name="another")
    assert main(["join", str(one), str(other)]) == 1
    assert "parts of 2 videos: another, film" in capsys.readouterr().err
    plain = write_video(tmp_path / "plain.mp4", clip(0, 2), fps=12.5)
    assert main(["join", str(one), str(plain)]) == 1
    assert "is not named as a part of a video" in capsys.readouterr().err
    assert main(["join", str(one), str(tmp_path / "gone.mp4")]) == 1
    assert "does not exist" in capsys.readouterr().err
    faster = write_video(tmp_path / "faster.mp4", clip(0, 2), fps=25)
    film = tmp_path / "film.mp4"
    for wrong, said in (
        (faster, "12.5 and 25 frames per second"),
        (
            write_video(tmp_path / "wide.mp4", clip(0, 2, 64, 96), fps=12.5),
            "one size can be joined, got 64 x 64 and 64 x 96",
        ),
        (write_video(tmp_path / "moving.gif", clip(0, 2), fps=12.5), "no mp4 file with one video in H.264"),
    ):
        assert main(["join", str(one), str(wrong), "--output", str(film)]) == 1
        assert said in capsys.readouterr().err
    assert main(["join", str(one), "--output", str(tmp_path / "film.gif")]) == 1
    assert "only mp4 files can be joined" in capsys.readouterr().err
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    assert main(["join", str(tmp_path / "text.mp4"), "--output", str(film)]) == 1
    assert "cannot be read as a video" in capsys.readouterr().err
    assert not film.exists() and not list(tmp_path.glob(".*"))


def test_parts_of_another_encoder_are_encoded_again(tmp_path, caplog):
    one = write_video(tmp_path / "one.mp4", clip(0, 5), fps=10)
    import av

    # another profile: what a decoder has to know differs
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"profile": "baseline", "crf": "5"})
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for frame in clip(5, 5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())
    join_videos(tmp_path / "film.mp4", [one, tmp_path / "two.mp4"], fps=10)
    joined = read_video(tmp_path / "film.mp4")
    assert "different encoders" in caplog.text and joined.frames.shape == (10, 64, 64, 3) and joined.fps == 10
    assert (joined.frames.float() - clip(0, 10).float()).abs().mean() < 6


def test_small_frames_are_encoded_alike_every_time(tmp_path):
    def encoded(name: str) -> bytes:
        encoder = ENCODERS[".mp4"](tmp_path / name, (32, 32), Fraction(8), 17)
        for frame in clip(0, 12, 32, 32):
            encoder.add(frame.numpy())
        encoder.close()
        return (tmp_path / name).read_bytes()

    assert len({encoded(f"{i}.mp4") for i in range(30)}) == 1
