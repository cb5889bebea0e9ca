import pytest
import torch
import torch.nn.functional as F

from musev_core.errors import MuseVError
from musev_core.frames.color import METHODS, match_color, match_moments
from musev_core.frames.images import match_histograms
from musev_core.measure.metrics import drift


def pictures(n, seed=0, low=0.3, high=0.6):
    coarse = torch.rand(n, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return (low + (high - low) * F.interpolate(coarse, (24, 32), mode="bilinear")).permute(0, 2, 3, 1).contiguous()


def moments(frames):
    std, mean = torch.std_mean(frames, dim=(1, 2), correction=0)
    return mean, std


def test_mean_std_gives_every_frame_the_moments_of_the_picture():
    matched = match_color(pictures(4), pictures(1, seed=1), "mean_std")
    for got, expected in zip(moments(matched), moments(pictures(1, seed=1)), strict=True):
        torch.testing.assert_close(got, expected.expand(4, 3))


def test_mean_moves_a_frame_and_changes_nothing_else():
    frames = pictures(4)
    moved = match_color(frames, pictures(1, seed=1), "mean") - frames
    torch.testing.assert_close(moved, moved[:, :1, :1].expand_as(moved), atol=1e-6, rtol=0)
    torch.testing.assert_close(moments(frames + moved)[0], moments(pictures(1, seed=1))[0].expand(4, 3))


def test_histogram_is_the_original_s_matching():
    frames, picture = pictures(2), pictures(1, seed=1)
    assert torch.equal(match_color(frames, picture, "histogram"), match_histograms(frames, picture))


@pytest.mark.parametrize("method", METHODS)
def test_a_drift_goes_away(method):  # but for the steps of 1/255 of a histogram
    growth = 1 + 0.5 * torch.arange(20)[:, None, None, None] / 100
    clip = pictures(1) * growth
    assert drift(moments(clip)[0]) == pytest.approx([50] * 3, rel=1e-3)
    assert drift(moments(match_color(clip, clip[:1], method))[0]) == pytest.approx([0] * 3, abs=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_frame_does_not_depend_on_the_rest_of_the_clip(method):
    frames, picture = pictures(3), pictures(1, seed=1)
    assert torch.equal(match_color(frames, picture, method)[1:2], match_color(frames[1:2], picture, method))


@pytest.mark.parametrize("method", METHODS)
def test_amount_goes_from_the_frames_to_the_match(method):
    frames, picture = pictures(2), pictures(1, seed=1)
    full, half = match_color(frames, picture, method), match_color(frames, picture, method, 0.5)
    assert match_color(frames, picture, method, 0.0) is frames
    torch.testing.assert_close(half, (frames + full) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_results_are_pictures_and_inputs_stay(method):
    frames, picture = pictures(2), pictures(1, seed=1, low=-0.1, high=1.1).clamp(0, 1)
    kept = frames.clone()
    matched = match_color(frames, picture, method)
    assert matched.min() >= 0 and matched.max() <= 1 and matched.dtype == torch.float32
    assert torch.equal(frames, kept)


def test_a_nearly_flat_frame_is_not_blown_up():
    noise = 0.5 + 0.0005 * torch.randn(1, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    matched = match_color(noise, pictures(1, low=0, high=1), "mean_std")
    assert matched.std(dim=(1, 2)).max() < 0.05
    black = match_color(torch.zeros(1, 24, 32, 3), pictures(1), "mean_std")
    torch.testing.assert_close(black, moments(pictures(1))[0].expand(24, 32, 3)[None])


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_read_as_pictures(method):
    frames, picture = ((pictures(n, seed=n) * 255).byte() for n in (2, 1))
    expected = match_color(frames / 255, picture / 255, method)
    torch.testing.assert_close(match_color(frames, picture, method), expected)


def test_moments_of_latents_are_matched_over_frames_and_keep_their_format():
    generator = torch.Generator().manual_seed(0)
    latents = (3 * torch.randn(5, 4, 8, 8, generator=generator) + 1).half()
    reference = torch.randn(2, 4, 6, 6, generator=generator)
    matched = match_moments(latents, reference, (0, 2, 3))
    assert matched.dtype == torch.float16 and matched.shape == latents.shape
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(
            statistic(matched.float(), (0, 2, 3)), statistic(reference, (0, 2, 3)), atol=5e-3, rtol=5e-3
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": pictures(2)}, "one picture, got 2"),
        ({"picture": pictures(1)[0]}, "the reference must have the shape"),
        ({"frames": pictures(2)[..., :1]}, "frames must have the shape"),
        ({"method": "reinhard"}, "one of histogram, mean_std, mean"),
        ({"amount": 1.5}, "0..1, got 1.5"),
    ],
)
def test_what_cannot_be_matched_is_refused(changes, message):
    with pytest.raises(MuseVError, match=message):
        match_color(**{"frames": pictures(2), "picture": pictures(1)} | changes)
