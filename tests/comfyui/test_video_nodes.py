"""Join Video, Match Color, Visualize Context Windows and Measure Video."""

import folder_paths
import pytest
import torch

from musev_core.errors import MuseVError
from musev_core.frames.color import match_color
from musev_core.measure.metrics import drift
from musev_pack.nodes.video import JoinVideo, MatchColor, MeasureVideo, VisualizeWindows


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    """Where previews go."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def frames(n, seed=0, channels=3, height=16, width=24):
    return torch.rand(n, height, width, channels, generator=torch.Generator().manual_seed(seed))


def still(n):
    return (0.25 + 0.5 * frames(1)).repeat(n, 1, 1, 1)


def latent(n, height=4, width=4, channels=4, dtype=torch.float32, **others):
    return {"samples": torch.arange(n, dtype=dtype).view(n, 1, 1, 1).repeat(1, channels, height, width), **others}


def windows(length=49, condition_frames=1, context=12, overlap=4, schedule="uniform_v2", fuse="linear", shift=0):
    (image,) = VisualizeWindows.execute(length, condition_frames, context, overlap, schedule, fuse, shift, 10).result
    return image


def measured(images, *, context=12, overlap=4, condition_frames=1, reference=None):
    return MeasureVideo.execute(images, context, overlap, condition_frames, reference)


# ---- Join Video ----------------------------------------------------------------------------------------------------


def test_frames_of_the_second_clip_that_repeat_the_first_are_dropped():
    second = latent(4, noise_mask=torch.zeros(4, 1, 4, 4), batch_index=[0, 1, 2, 3])
    (joined,) = JoinVideo.execute(latent(3), second, 2).result
    assert joined["samples"][:, 0, 0, 0].tolist() == [0, 1, 2, 2, 3]
    assert set(joined) == {"samples"}  # everything has been made: no mask, and no numbers of old batches


def test_the_first_clip_says_the_format():
    (joined,) = JoinVideo.execute(latent(3, dtype=torch.float16), latent(4), 0).result
    assert joined["samples"].dtype == torch.float16 and len(joined["samples"]) == 7


@pytest.mark.parametrize(
    ("first", "second", "overlap", "message"),
    [
        (latent(3), latent(3, height=8), 1, "same width and height, got 32 x 32 and 32 x 64"),
        (latent(3), latent(2), 2, "nothing is left of the second clip, which has 2"),
        (latent(3, channels=16), latent(3), 1, "first must be the latents of a Stable Diffusion 1.5"),
        (latent(3), {"samples": torch.zeros(1, 4, 3, 4, 4)}, 1, "second must be"),
    ],
)
def test_clips_which_cannot_be_joined_are_refused(first, second, overlap, message):
    with pytest.raises(MuseVError, match=message):
        JoinVideo.execute(first, second, overlap)


# ---- Match Color ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["histogram", "mean_std", "mean"])
def test_the_batches_of_a_long_clip_give_what_the_core_gives(method):
    (matched,) = MatchColor.execute(frames(35), frames(1, seed=1), method, 0.5).result
    torch.testing.assert_close(matched, match_color(frames(35), frames(1, seed=1), method, 0.5))


def test_amount_zero_hands_the_frames_on():
    images = frames(3)
    assert MatchColor.execute(images, frames(1), "histogram", 0.0).result[0] is images


def test_a_reference_of_several_pictures_is_refused_at_any_amount():
    for amount in (0.0, 1.0):
        with pytest.raises(MuseVError, match="one picture, got 2"):
            MatchColor.execute(frames(3), frames(2), "mean", amount)


def test_transparency_does_not_disturb():
    opaque = torch.cat([frames(2), torch.ones(2, 16, 24, 1)], dim=-1)
    (matched,) = MatchColor.execute(opaque, opaque[1:], "mean", 1.0).result
    torch.testing.assert_close(matched, match_color(frames(2), frames(2)[1:], "mean"))


# ---- Visualize Context Windows -------------------------------------------------------------------------------------


def test_the_schedule_is_one_picture():
    image = windows()
    assert image.shape[0] == 1 and image.shape[2:] == (1024, 3) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert torch.equal(image, windows())


def test_every_setting_shows():
    assert not torch.equal(windows(), windows(fuse="pyramid"))
    assert not torch.equal(windows(), windows(schedule="uniform"))
    assert not torch.equal(windows(), windows(condition_frames=2))
    assert windows(shift=3).shape[1] > windows().shape[1]  # a band for every step


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"overlap": 12}, "less than the window length"),
        ({"length": 3, "condition_frames": 3}, "nothing to generate"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(numbers, message):
    with pytest.raises(MuseVError, match=message):
        windows(**numbers)


# ---- Measure Video -------------------------------------------------------------------------------------------------


def test_a_still_video_is_measured_as_still():
    report, plot = measured(still(49), reference=still(1)).result
    assert "49 frames: 1 condition frame, 48 generated" in report
    assert "Condition frame 0: inf dB" in report
    assert "Seam jerk: 1.00 at 10 seams" in report
    assert plot.shape[0] == 1 and plot.shape[2:] == (1024, 3)


def test_a_jump_where_a_window_begins_is_named():
    video = still(49)
    video[9:] += 0.2  # 8 frames after the condition frame the second window begins
    report, _ = measured(video).result
    assert "at frame 9 " in report
    assert "at frame 9 " not in measured(video, context=48, overlap=0).result[0]


def test_match_color_cures_the_drift_that_is_measured():
    video = still(40)
    video *= 1 + 0.3 * torch.arange(40)[:, None, None, None] / 100
    assert "red +30.0, green +30.0, blue +30.0 %" in measured(video, condition_frames=0).result[0]
    (matched,) = MatchColor.execute(video, video[:1], "mean_std", 1.0).result
    means = matched.mean(dim=(1, 2))
    assert drift(means) == pytest.approx([0] * 3, abs=1e-3)


def test_the_picture_is_fitted_to_the_video():
    picture = torch.zeros(1, 32, 200, 3)
    picture[:, :, 76:124] = 0.5  # what the video shows: 3 : 2
    report, _ = measured(torch.full((4, 16, 24, 3), 128 / 255), reference=picture).result
    assert "Condition frame 0: inf dB" in report


def test_text_and_curves_are_shown_on_the_node(temp):
    output = measured(still(20))
    assert MeasureVideo.define_schema().is_output_node
    assert output.ui["text"] == (output.result[0],)
    (image,) = output.ui["images"]
    assert (temp / image["filename"]).is_file()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"condition_frames": 5}, "no generated frame is left"),
        ({"reference": frames(2)}, "one picture for each condition frame"),
        ({"context": 4}, "less than the window length"),
        ({"images": frames(5, channels=1)}, "images must be pictures"),
    ],
)
def test_what_cannot_be_measured_is_refused(inputs, message):
    with pytest.raises(MuseVError, match=message):
        measured(**{"images": frames(5)} | inputs)
