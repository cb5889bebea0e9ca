"""Image to Video, Video to Video and Continue Video with a real, tiny VAE."""

from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from support.tiny_comfy import tiny_vae

from musev_core.errors import MuseVError
from musev_pack.nodes.conditioning import ContinueVideo, ImageToVideo, VideoToVideo, parse_indices
from musev_pack.nodes.video import JoinVideo


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


def pictures(n, height=64, width=64, channels=3, seed=0):
    return torch.rand(n, height, width, channels, generator=torch.Generator().manual_seed(seed))


def image_to_video(vae, images, *, width=64, height=64, length=9, indices="0", ratio=1.0):
    return ImageToVideo.execute(vae, images, width, height, length, indices, ratio).result


def video_to_video(vae, video, *, width=64, height=64, has_condition=True, ratio=1.0, condition_images=None):
    return VideoToVideo.execute(vae, video, width, height, has_condition, ratio, condition_images).result


def clip(frames, seed=0, dtype=torch.float32):
    return {"samples": torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)}


def given(latent):
    """Numbers of the frames that are kept; the mask knows whole frames only."""
    mask = latent["noise_mask"]
    assert mask.shape == (len(latent["samples"]), 1, *latent["samples"].shape[2:])
    assert torch.equal(mask, mask[:, :, :1, :1].expand_as(mask)) and set(mask.unique().tolist()) <= {0, 1}
    return (mask[:, 0, 0, 0] == 0).nonzero().flatten().tolist()


# ---- Image to Video ------------------------------------------------------------------------------------------------


def test_the_picture_is_the_first_frame_and_the_others_are_empty(vae):
    latent, fitted, width, height = image_to_video(vae, pictures(1))
    assert given(latent) == [0]
    assert torch.equal(latent["samples"][:1], vae.encode(pictures(1)))
    assert latent["samples"].shape == (9, 4, 8, 8) and not latent["samples"][1:].any()
    assert torch.equal(fitted, pictures(1)) and (width, height) == (64, 64)


@pytest.mark.parametrize(
    ("indices", "frames"), [("0", [0, 1]), ("", [0, 1]), ("0, -1", [0, 8]), ("5,2", [5, 2]), ("-9,3,", [0, 3])]
)
def test_several_pictures_stand_where_the_list_says(vae, indices, frames):
    latent, *_ = image_to_video(vae, pictures(2), indices=indices)
    assert given(latent) == sorted(frames)
    assert torch.equal(latent["samples"][frames], vae.encode(pictures(2)))


def test_pictures_are_cropped_in_the_middle_and_resized(vae):
    picture = torch.zeros(1, 100, 300, 3)
    picture[:, :, 100:200] = 1  # what a square crop keeps
    _, fitted, width, height = image_to_video(vae, picture, width=40, height=40)
    assert fitted.shape == (1, 40, 40, 3) and (width, height) == (40, 40)
    assert fitted.min() == 1


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"width": 0, "height": 0}, (192, 128)),
        ({"width": 0, "height": 0, "ratio": 0.5}, (64, 64)),
        ({"width": 0, "height": 40}, (192, 40)),
        ({"width": 72, "height": 0}, (72, 128)),
    ],
)
def test_a_size_of_zero_is_that_of_the_picture_times_the_ratio(vae, asked, size):
    latent, fitted, width, height = image_to_video(vae, pictures(1, height=130, width=200), length=2, **asked)
    assert (width, height) == size == (fitted.shape[2], fitted.shape[1])
    assert latent["samples"].shape[2:] == (height // 8, width // 8)


def test_transparency_lies_on_white(vae):
    picture = pictures(1, channels=4)
    picture[..., 3] = 0
    assert image_to_video(vae, picture)[1].min() == 1
    picture[..., 3] = 1
    assert torch.equal(image_to_video(vae, picture)[1], picture[..., :3])


def test_inputs_stay_as_they_are(vae):
    images, kept = pictures(1, channels=4), pictures(1, channels=4)
    image_to_video(vae, images, width=32, height=32)
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"indices": "first"}, "whole numbers separated by commas"),
        ({"indices": "0,1"}, "names 2 frames .* for 1 pictures"),
        ({"indices": "9"}, r"0\.\.8"),
        ({"indices": "-10"}, r"0\.\.8"),
        ({"images": pictures(2), "indices": "8,-1"}, "a frame of its own"),
        ({"images": pictures(9)}, "nothing to generate"),
        ({"width": 60}, "multiples of 8 pixels, got 60 x 64"),
        ({"width": 0, "ratio": 0.5}, "smaller than 64 pixels"),
        ({"images": pictures(1, channels=1)}, "images must be pictures"),
    ],
)
def test_image_to_video_says_what_is_wrong(vae, inputs, message):
    with pytest.raises(MuseVError, match=message):
        image_to_video(vae, **{"images": pictures(1)} | inputs)


@pytest.mark.parametrize("sizes", [{"levels": 3}, {"channels": 8}])
def test_a_vae_of_another_kind_of_model_is_refused(sizes):
    with pytest.raises(MuseVError, match="This VAE does not fit"):
        image_to_video(tiny_vae(**sizes), pictures(1))
    with pytest.raises(MuseVError, match="vae must be a VAE.*load one with Load VAE, got nothing"):
        image_to_video(None, pictures(1))


def test_wrong_numbers_are_found_before_anything_is_encoded():
    def encode(*_):
        raise AssertionError("encoded")

    with pytest.raises(MuseVError, match="whole numbers"):
        image_to_video(SimpleNamespace(encode=encode), pictures(1), indices="x")


# ---- Video to Video ------------------------------------------------------------------------------------------------


def test_a_video_begins_with_its_condition_frame(vae):
    latent, fitted, *_ = video_to_video(vae, pictures(20))
    assert given(latent) == [0]
    torch.testing.assert_close(latent["samples"], vae.encode(pictures(20)))
    assert torch.equal(fitted, pictures(20))


def test_condition_images_take_the_place_of_the_first_frames(vae):
    latent, fitted, *_ = video_to_video(vae, pictures(5), condition_images=pictures(2, seed=1))
    assert given(latent) == [0, 1]
    expected = vae.encode(torch.cat([pictures(2, seed=1), pictures(5)[2:]]))
    torch.testing.assert_close(latent["samples"], expected)
    assert torch.equal(fitted, pictures(5))  # control maps follow the video, the first frame's too


def test_condition_images_stand_in_front_of_a_video_without_them(vae):
    latent, fitted, *_ = video_to_video(vae, pictures(5), has_condition=False, condition_images=pictures(1, seed=1))
    assert given(latent) == [0] and len(latent["samples"]) == 6
    assert torch.equal(fitted, torch.cat([pictures(1, seed=1), pictures(5)]))
    torch.testing.assert_close(latent["samples"], vae.encode(fitted))


def test_frames_of_another_size_are_cropped_and_resized(vae):
    video = torch.full((3, 80, 160, 3), 0.5)
    video[:, :, :40] = video[:, :, 120:] = 0  # cropped away
    latent, fitted, width, height = video_to_video(vae, video, condition_images=video[:1, :70, :70] * 0 + 1)
    assert fitted.shape == (3, 64, 64, 3) and (width, height) == (64, 64)
    torch.testing.assert_close(fitted, torch.full_like(fitted, 128 / 255))
    torch.testing.assert_close(latent["samples"][:1], vae.encode(torch.ones(1, 64, 64, 3)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"has_condition": False}, "connect condition_images"),
        ({"video": pictures(1)}, "nothing is left to generate"),
        ({"condition_images": pictures(3)}, "3 of them are condition frames"),
        ({"height": 30}, "multiples of 8"),
    ],
)
def test_video_to_video_says_what_is_wrong(vae, inputs, message):
    with pytest.raises(MuseVError, match=message):
        video_to_video(vae, **{"video": pictures(3)} | inputs)


def test_encoding_stops_when_the_user_interrupts(vae):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        video_to_video(vae, pictures(3))


# ---- Continue Video ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [1, 3])
def test_a_clip_goes_on_where_the_other_ends(overlap):
    first = clip(6)
    (latent,) = ContinueVideo.execute(first, 5, overlap, False).result
    assert given(latent) == list(range(overlap)) and len(latent["samples"]) == 5
    assert torch.equal(latent["samples"][:overlap], first["samples"][-overlap:])
    assert not latent["samples"][overlap:].any()
    (joined,) = JoinVideo.execute(first, latent, overlap).result
    assert torch.equal(joined["samples"][:6], first["samples"]) and len(joined["samples"]) == 6 + 5 - overlap


def test_matched_frames_have_the_statistics_of_the_first_ones():
    first = clip(6)
    first["samples"][-2:] = first["samples"][-2:] * 3 + 1  # drifted
    (latent,) = ContinueVideo.execute(first, 5, 2, True).result
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(
            statistic(latent["samples"][:2], (0, 2, 3)), statistic(first["samples"][:2], (0, 2, 3))
        )


def test_latents_keep_their_format():
    (latent,) = ContinueVideo.execute(clip(6, dtype=torch.float16), 5, 1, True).result
    assert latent["samples"].dtype == torch.float16


@pytest.mark.parametrize(
    ("latent", "length", "frames", "message"),
    [
        (clip(2), 9, 3, "has only 2 frames"),
        (clip(6), 3, 3, "nothing to generate"),
        ({"samples": torch.zeros(1, 16, 3, 8, 8)}, 9, 1, "Stable Diffusion 1.5"),
    ],
)
def test_continue_video_says_what_is_wrong(latent, length, frames, message):
    with pytest.raises(MuseVError, match=message):
        ContinueVideo.execute(latent, length, frames, False)


def test_indices_are_given_as_places_in_the_clip():
    assert parse_indices(" 3 , -1 ", 2, 10) == [3, 9]
