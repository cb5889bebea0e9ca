import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.numbers import det_image

from musev_core.errors import MuseVError
from musev_core.frames.image_files import save_image
from musev_core.frames.images import (
    canny,
    clip_pixel_values,
    contact_sheet,
    crop_box,
    fit_images,
    fit_video,
    match_histograms,
    target_size,
    to_uint8,
    to_vae_input,
)

GOLDENS = Path(__file__).parent / "goldens" / "public"
CASES = {case["id"]: case for case in json.loads((GOLDENS / "cases.json").read_text(encoding="utf-8"))}


def golden_input(case, name="image") -> torch.Tensor:
    """(n, H, W, 3), the frames of the first item of the batch."""
    return det_image(*case["inputs"][name]["det_image"])[0].permute(1, 2, 3, 0).contiguous()


def assert_golden(case, name, got):
    spec = case["arrays"][name]
    expected = np.load(GOLDENS / case["file"])[name]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.double().numpy(), expected.astype(float), atol=spec["atol"], rtol=spec["rtol"])


def as_batch(frames):
    return frames.permute(3, 0, 1, 2)[None]  # (n, H, W, 3) -> (1, 3, n, H, W)


def noise(n, h, w, seed=0):
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- goldens of the original ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES.values() if c["kind"] == "image_prep"], ids=lambda c: c["id"])
def test_image_preparation_reproduces_the_original(case):
    image, size = golden_input(case), (case["target_height"], case["target_width"])
    if case["method"] == "crop_resize_image":
        assert_golden(case, "output", as_batch(fit_images(image, *size, legacy=True)))
    elif case["method"] == "crop_resize_video":
        assert_golden(case, "output", as_batch(fit_video(image, *size, legacy=True)))
    else:
        assert_golden(case, "output", to_vae_input(image))


def test_clip_input_reproduces_the_original():
    case = CASES["clip_image"]
    values = clip_pixel_values(
        golden_input(case), height=case["target_height"], width=case["target_width"], legacy=True
    )
    assert values.shape == (1, 3, 224, 224)
    assert_golden(case, "pixel_values", values[..., :: case["pixel_stride"], :: case["pixel_stride"]])


@pytest.mark.parametrize("as_float", [False, True])
def test_histogram_matching_reproduces_the_original(as_float):
    case = CASES["hist_match"]
    video, target = golden_input(case, "video"), golden_input(case, "target")
    if as_float:
        video, target = video / 255, target / 255
    assert_golden(case, "output", as_batch(match_histograms(video, target)))


# ---- crop and resize -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((80, 120), (64, 64), (0, 20, 80, 100)),
        ((100, 60), (64, 64), (20, 0, 80, 60)),
        ((64, 96), (64, 96), (0, 0, 64, 96)),
        ((90, 90), (64, 128), (22, 0, 67, 90)),
        ((1, 1000), (64, 64), (0, 499, 1, 500)),
        ((1000, 3), (64, 1024), (499, 0, 500, 3)),
    ],
)
def test_crop_box_is_centred_and_loses_nothing_of_the_side_it_keeps(size, target, box):
    assert crop_box(*size, *target) == box


def test_legacy_crop_box_lacks_the_last_row_or_column():
    assert crop_box(80, 120, 64, 64, legacy=True) == (0, 20, 79, 100)
    assert crop_box(90, 90, 64, 128, legacy=True) == (23, 0, 68, 89)
    assert crop_box(64, 64, 64, 64, legacy=True) == (0, 0, 63, 63)


def test_right_size_is_left_alone():
    images = noise(2, 64, 96)
    assert torch.equal(fit_images(images, 64, 96), images)
    assert torch.equal(fit_video(images, 64, 96), images.float())
    assert not torch.equal(fit_images(images, 64, 96, legacy=True), images)


def test_fit_crops_to_the_centre():
    images = torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
    images[:, :, 32:96] = 200
    assert (fit_images(images, 64, 64) == 200).all()
    assert (fit_video(images, 64, 64) == 200).all()


def test_bicubic_differs_from_lanczos():
    images = noise(1, 40, 40)
    assert not torch.equal(fit_images(images, 16, 16), fit_images(images, 16, 16, resample="bicubic"))


def test_shrinking_a_video_does_not_alias():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::4] = 255  # the mean is 64
    inner = fit_video(stripes, 16, 16)[:, :, 1:-1]
    assert (inner - 64).abs().max() < 1
    assert (fit_video(stripes, 16, 16, legacy=True)[:, :, 1:-1] - 64).abs().max() > 50


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [((1308, 736), 0.957, (1216, 704)), ((960, 512), 1.0, (960, 512)), ((1000, 600), 1.0, (960, 576))],
)
def test_target_size_matches_the_examples(size, ratio, expected):
    assert target_size(*size, ratio) == expected


# ---- network inputs, masks, views ----------------------------------------------------------------------------------


def test_vae_input_of_bytes_and_floats_agree():
    images = noise(2, 8, 16)
    values = to_vae_input(images)
    assert values.shape == (2, 3, 8, 16) and values.min() >= -1 and values.max() <= 1
    torch.testing.assert_close(to_vae_input(images / 255), values)


def test_clip_sees_the_centre_square_and_the_crop_of_the_video():
    images = torch.zeros(1, 60, 120, 3, dtype=torch.uint8)
    images[:, :, 30:90] = 255
    white = clip_pixel_values(images)
    assert white[..., 8:-8].std(dim=(0, 2, 3)).max() < 1e-5  # the edge of the square rings a little
    tall = clip_pixel_values(images, height=120, width=60)  # leaves the middle 30 columns, of which CLIP sees a square
    assert tall.shape == (1, 3, 224, 224) and tall.std(dim=(0, 2, 3)).max() < 1e-5


def test_clip_values_of_bytes_and_floats_agree():
    images = noise(2, 30, 40)
    assert torch.equal(clip_pixel_values(images), clip_pixel_values(images / 255))


def test_to_uint8_rounds_clamps_and_survives_a_round_trip():
    images = noise(1, 8, 8)
    assert torch.equal(to_uint8(images / 255), images)
    values = torch.tensor([-0.1, 0.0019, 0.002, 1.1]).reshape(1, 2, 2, 1).expand(1, 2, 2, 3)
    assert to_uint8(values)[0, :, :, 0].flatten().tolist() == [0, 0, 1, 255]


def test_inputs_are_never_changed():
    images = noise(1, 40, 60) / 255
    before = images.clone()
    to_uint8(images), to_vae_input(images), clip_pixel_values(images), match_histograms(images, images), canny(images)
    assert torch.equal(images, before)


def test_canny_draws_the_outline_in_white_on_black():
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[1, 8:24, 8:24, 0] = 255  # red on black
    edges = canny(images)
    assert edges.shape == images.shape and set(edges.unique().tolist()) == {0, 255}
    assert not edges[0].any() and edges[1, 16, 6:10].any() and not edges[1, 12:20, 12:20].any()


def test_contact_sheet_shows_first_and_last_frame_on_grey():
    frames = torch.arange(10, dtype=torch.uint8).mul(20)[:, None, None, None].expand(10, 8, 12, 3)
    sheet = contact_sheet(frames, columns=3, gap=2, max_frames=4)
    assert sheet.dtype == torch.uint8 and sheet.shape == (1, 2 * 10 + 2, 3 * 14 + 2, 3)
    assert [int(sheet[0, 2, 2 + 14 * i, 0]) for i in range(3)] == [0, 60, 120]
    assert int(sheet[0, 12, 2, 0]) == 180  # the last one, in the second row
    assert int(sheet[0, 0, 0, 0]) == 128 and (sheet[0, 12:20, 16:] == 128).all()
    assert contact_sheet(frames[:1]).shape == (1, 16, 20, 3)
    assert torch.equal(contact_sheet(frames / 255), contact_sheet(frames))


# ---- errors --------------------------------------------------------------------------------------------------------

GOOD = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_images(GOOD[0], 8, 8), r"images must have the shape .* got \(8, 8, 3\)"),
        (lambda: fit_images(GOOD[:0], 8, 8), "at least one frame"),
        (lambda: fit_images(GOOD.float(), 8, 8), "images must be uint8 pictures"),
        (lambda: fit_video(GOOD.float(), 8, 8), "frames must be uint8 pictures"),
        (lambda: fit_images(GOOD, 8, 8, resample="area"), "lanczos, bicubic, got 'area'"),
        (lambda: fit_images(GOOD, 0, 8), "sizes must be positive"),
        (lambda: fit_video(GOOD, 8, -8), "sizes must be positive"),
        (lambda: crop_box(1, 5, 8, 8, legacy=True), "too small to be cropped"),
        (lambda: to_vae_input(GOOD.int()), r"uint8 \(0..255\) or float \(0..1\), got torch.int32"),
        (lambda: to_vae_input(GOOD.float() + 255), "must lie in 0..1, got 255..255"),
        (lambda: to_uint8(GOOD.float() - 1), "must lie in 0..1, got -1..-1"),
        (lambda: to_uint8(GOOD.float() * float("nan")), "must lie in 0..1, got nan..nan"),
        (lambda: clip_pixel_values(GOOD, height=64), "both height and width"),
        (lambda: clip_pixel_values(GOOD.float() + 2), "images are float and must lie in 0..1"),
        (lambda: match_histograms(GOOD, GOOD.repeat(2, 1, 1, 1)), "one picture, got 2"),
        (lambda: target_size(63, 640), r"63 x 640 pixels .* smaller than 64"),
        (lambda: target_size(640, 640, 0.0), "must be positive"),
        (lambda: target_size(640, 640, float("nan")), "must be positive"),
        (lambda: contact_sheet(GOOD, columns=0), "columns 0"),
        (lambda: contact_sheet(GOOD, max_frames=1), "max_frames 1"),
        (lambda: save_image("a.bmp", GOOD), "Unknown image format '.bmp'.*png"),
        (lambda: save_image("a.png", GOOD.repeat(2, 1, 1, 1)), "one picture, got 2"),
        (lambda: save_image("no/such/folder/a.png", GOOD), "no folder"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(MuseVError, match=message):
        call()
