"""Driving videos: read, fitted, preprocessed and encoded when they are needed, and dropped with the part."""

import gc
from pathlib import Path

import pytest
import torch
from support import golden_models as models
from support.numbers import det_image

from musev_core.encode.vae import encode_latents
from musev_core.errors import MuseVError
from musev_core.frames.images import fit_video, to_uint8
from musev_core.frames.source import FileFrames, GivenFrames, as_source
from musev_core.frames.video import read_video, write_video
from musev_core.pipeline.driving import ENCODED_AT_ONCE, ClipHints, ClipLatents, DrivingFrames


def pictures(n: int, height: int = 40, width: int = 48) -> torch.Tensor:
    return (det_image("driving", (1, 3, n, height, width))[0].permute(1, 2, 3, 0) * 255).to(torch.uint8).contiguous()


@pytest.fixture(scope="module", params=["film.mp4", "film"])
def film(request, tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("driving") / request.param, pictures(30), fps=8)


class Opened:
    """Counts how often a source begins anew."""

    def __init__(self, source: FileFrames, monkeypatch):
        self.count = 0
        frames = source._source.frames

        def counted(*args):
            self.count += 1
            return frames(*args)

        monkeypatch.setattr(source._source, "frames", counted)


# ---- sources


@pytest.mark.parametrize(
    ("stride", "max_frames", "count"), [(1, None, 30), (4, None, 8), (3, None, 10), (2, 5, 5), (1, 99, 30)]
)
def test_a_file_has_the_frames_that_reading_it_gives(film, stride, max_frames, count):
    source = FileFrames(film, stride=stride, max_frames=max_frames)
    whole = read_video(film, stride=stride, max_frames=max_frames).frames
    assert len(source) == len(whole) == count and source.size == (40, 48)
    assert torch.equal(source.take(range(count)), whole)
    assert torch.equal(source.take([3, 1, 3]), whole[[3, 1, 3]])


def test_a_file_is_read_once_if_numbers_rise(film, monkeypatch):
    source, whole = FileFrames(film), read_video(film).frames
    opened = Opened(source, monkeypatch)
    for first in range(0, 24, 4):
        assert torch.equal(source.take(range(first, first + 6)), whole[first : first + 6])
        source.forget_before(first, keep=[0])
    assert opened.count == 0
    assert torch.equal(source.take([0, 25]), whole[[0, 25]]) and opened.count == 0
    assert torch.equal(source.take([2]), whole[[2]]) and opened.count == 1  # behind: begun anew


def test_what_is_forgotten_costs_no_memory(film):
    source = FileFrames(film)
    source.take(range(20))
    source.forget_before(15, keep=[0])
    gc.collect()
    assert sorted(source._kept) == [0, *range(15, 20)]


def test_frames_that_are_not_there(film):
    source = FileFrames(film)
    for numbers in ([30], [-1]):
        with pytest.raises(MuseVError, match="has 30 frames, asked for"):
            source.take(numbers)


@pytest.mark.parametrize("options", [{"stride": 0}, {"stride": -1}])
def test_a_stride_that_is_none(film, options):
    with pytest.raises(MuseVError, match="stride must be 1 or more"):
        FileFrames(film, **options)


def test_a_file_that_ends_before_its_count_shows_its_last_frame(film, monkeypatch, caplog):
    monkeypatch.setattr("musev_core.frames.decoders.VideoFile.count", lambda self: 33)
    monkeypatch.setattr("musev_core.frames.decoders.PictureFolder.count", lambda self: 33)
    source, whole = FileFrames(film), read_video(film).frames
    assert torch.equal(source.take([29, 30, 32]), whole[[29, 29, 29]])
    assert "ends after 30 of 33 frames; the last one stays" in caplog.text
    assert torch.equal(source.take([4]), whole[[4]])


def test_counting_decodes_nothing(film, monkeypatch):
    from musev_core.frames import decoders

    monkeypatch.setattr(decoders, "load_image", None)
    monkeypatch.setattr(decoders, "_Converter", None)
    assert decoders.open_source(film).count() == 30


def test_packets_that_do_not_fit_the_duration_are_not_believed(tmp_path, monkeypatch):
    from musev_core.frames import decoders

    source = decoders.open_source(write_video(tmp_path / "film.mp4", pictures(30), fps=8))
    demux = []
    frames = source.frames
    monkeypatch.setattr(source, "fps", 4)  # as if every packet were a field
    monkeypatch.setattr(source, "frames", lambda start, stride: (demux.append(1), frames(start, stride))[1])
    assert source.count() == 30 and demux == [1]


def test_frames_in_memory_are_a_source():
    frames = pictures(4)
    source = as_source(frames)
    assert isinstance(source, GivenFrames) and as_source(source) is source
    assert torch.equal(source.take([2, 0]), frames[[2, 0]]) and source.size == (40, 48) and len(source) == 4


# ---- on the timeline


def inverted(frames: torch.Tensor) -> torch.Tensor:
    return 255 - frames


@pytest.mark.parametrize("places", [[], [0], [2, 5], [5, 2], [10]])
@pytest.mark.parametrize("preprocessor", [None, inverted])
def test_condition_pictures_stand_between_driving_frames(places, preprocessor):
    frames, condition = pictures(10), torch.rand(len(places), 32, 32, 3)
    driving = DrivingFrames(
        as_source(frames), 32, 32, preprocessor=preprocessor, condition=condition if places else None, places=places
    )
    rest = iter(fit_video(frames, 32, 32) / 255)
    if preprocessor is not None:
        rest = iter((255 - to_uint8(fit_video(frames, 32, 32) / 255)).float() / 255)
    expected = [condition[places.index(i)] if i in places else next(rest) for i in range(10 + len(places))]
    assert len(driving) == len(expected)
    assert torch.equal(driving.take(range(len(driving))), torch.stack(expected))
    numbers = [len(driving) - 1, 0, 3, 2]
    assert torch.equal(driving.take(numbers), torch.stack([expected[i] for i in numbers]))


def test_a_preprocessor_sees_a_frame_once(film):
    seen = []

    def counted(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        return frames

    driving = DrivingFrames(FileFrames(film), 32, 32, preprocessor=counted)
    for first in range(0, 20, 4):
        driving.take(range(first, first + 8))  # as windows do, and a column which shows the maps
        driving.forget_before(first)
    assert sum(seen) == 24


def test_dropping_keeps_condition_frames(film):
    driving = DrivingFrames(
        FileFrames(film), 32, 32, preprocessor=inverted, condition=torch.rand(1, 32, 32, 3), places=[3]
    )
    driving.take(range(12))
    driving.forget_before(8, keep=[1, 3])
    assert sorted(driving._maps) == sorted(driving.source._kept) == [1, 7, 8, 9, 10]  # of the source: 3 is not in it


def test_hints_and_latents_of_a_clip(film):
    driving, timeline = DrivingFrames(FileFrames(film), 32, 32), [4, 5, 20, 21]
    whole = fit_video(read_video(film).frames, 32, 32) / 255
    hints = ClipHints(driving, timeline)
    assert hints.shape == (4, 3, 32, 32) and torch.equal(hints[[2, 0]], whole[[20, 4]].permute(0, 3, 1, 2))


def test_latents_are_encoded_in_the_same_groups_whatever_is_asked_for(film):
    vae, timeline = models.vae(0), list(range(1, 30))
    driving = DrivingFrames(FileFrames(film), 32, 32)
    whole = encode_latents(vae, driving.take(timeline), batch=ENCODED_AT_ONCE)[None]
    calls = []
    hook = vae.encoder.register_forward_pre_hook(lambda net, inputs: calls.append(len(inputs[0])))
    try:
        latents = ClipLatents(vae, driving, timeline, 4)
        assert latents.shape == whole.shape
        for first, last in ((0, 11), (5, 16), (16, 29)):
            assert torch.equal(latents.take(first, last), whole[:, :, first:last])
        assert calls == [8, 8, 8, 5]  # none twice
        assert torch.equal(ClipLatents(vae, driving, timeline, 4).take(13, 14), whole[:, :, 13:14])
    finally:
        hook.remove()
