import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from musev_core.errors import MuseVError
from musev_core.measure.metrics import drift, flicker, linear_fit, measure_frames, moving_pixels, psnr, seam_jerk, ssim
from musev_core.measure.report import measure

T, H, W = 60, 32, 48


def picture(seed=0, height=H, width=W):
    """(H, W, 3), smooth, within 0.2..0.6: room to change without clipping."""
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return (0.2 + 0.4 * smooth)[0].permute(1, 2, 0).contiguous()


def still(frames=T):
    return picture().repeat(frames, 1, 1, 1)


def walk(frames=T):
    """A picture that moves by one pixel per frame, for as long as there are columns left."""
    wide = picture(width=W + frames)
    return torch.stack([wide[:, t : t + W] for t in range(frames)])


def brightness(curve):
    """A still picture whose brightness goes along `curve`."""
    return still(len(curve)) + torch.as_tensor(curve, dtype=torch.float32)[:, None, None, None]


# ---- fidelity ------------------------------------------------------------------------------------------------------


def test_equal_frames_are_as_faithful_as_can_be():
    assert psnr(still(2), still(2)).tolist() == [float("inf")] * 2
    assert ssim(still(2), still(2)).tolist() == [1, 1]


def test_psnr_is_the_error_in_decibels():
    # an error of 0.1 everywhere is 20 dB, one of 0.01 is 40 dB
    offsets = torch.tensor([0.1, 0.01])[:, None, None, None]
    assert psnr(still(2) + offsets, still(2)).tolist() == pytest.approx([20, 40], rel=1e-6)


def test_ssim_is_that_of_scikit_image():
    noisy = (still(2) + 0.05 * torch.randn(2, H, W, 3, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    expected = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
            data_range=1.0,
        )
        for a, b in zip(noisy, still(2), strict=True)
    ]
    np.testing.assert_allclose(ssim(noisy, still(2)).numpy(), expected, rtol=1e-12)


def test_a_mask_looks_only_at_what_moves():
    reference = still(3)
    reference[1, 8:16, 8:16] += 0.3  # a square flashes up in the middle frame
    moving = moving_pixels(reference)
    assert moving.sum(dim=(1, 2)).tolist() == [64, 64, 64]  # it changes from frame 0 and towards frame 2
    spoilt = reference.clone()
    spoilt[:, :8] += 0.2  # outside
    assert psnr(spoilt, reference, moving).tolist() == [float("inf")] * 3
    spoilt = reference.clone()
    spoilt[:, 8:16, 8:16] += 0.1  # inside
    torch.testing.assert_close(psnr(spoilt, reference, moving), torch.full((3,), 20.0).double(), rtol=1e-5, atol=0)
    assert (ssim(spoilt, reference, moving) < ssim(spoilt, reference)).all()


def test_noise_of_a_camera_is_not_motion():
    reference = still(3)
    reference[1] += 2 / 255
    assert not moving_pixels(reference).any()
    assert torch.isnan(psnr(reference, reference, moving_pixels(reference))).all()


@pytest.mark.parametrize(
    ("frames", "reference", "mask", "message"),
    [
        (still(2), still(3), None, "one shape"),
        (still(2)[0], still(2)[0], None, "frames, height, width, 3"),
        ((still(2) * 255).byte(), still(2), None, "float pictures"),
        (still(2), still(2), torch.ones(2, H, W), "bool"),
        (still(2)[:, :10], still(2)[:, :10], None, "11 pixels"),
    ],
)
def test_what_cannot_be_compared_is_refused(frames, reference, mask, message):
    with pytest.raises(MuseVError, match=message):
        ssim(frames, reference, mask)


# ---- drift ---------------------------------------------------------------------------------------------------------


def test_a_still_clip_does_not_drift_jerk_or_flicker():
    report = measure(still(), seams=[12, 20])
    assert report.drift.color == pytest.approx([0, 0, 0], abs=1e-4)
    assert report.drift.contrast == pytest.approx([0, 0, 0], abs=1e-4)
    assert report.drift.sharpness == pytest.approx(0, abs=1e-4)
    assert report.seam_jerk == 1
    assert report.flicker == 0


@pytest.mark.parametrize("percent", [-30.0, 7.0, 50.0])
def test_the_drift_that_was_put_in_is_measured(percent):
    growth = (1 + percent / 100 * torch.arange(T) / 100)[:, None, None]
    clip = still()
    clip[..., 1] *= growth
    report = measure(clip)
    assert report.drift.color == pytest.approx([0, percent, 0], abs=1e-3)
    assert report.drift.contrast == pytest.approx([0, percent, 0], abs=1e-3)


def test_flashes_along_the_way_do_not_hide_the_trend():
    curve = 0.5 + 0.001 * torch.arange(101.0)
    curve[::2] += 0.05
    curve[1::2] -= 0.05
    assert drift(curve).item() == pytest.approx(20, abs=2)


def test_blur_that_grows_is_a_loss_of_sharpness_and_not_of_colour():
    def blurred(frame, amount):
        soft = F.avg_pool2d(frame.permute(2, 0, 1)[None], 3, 1, 1, count_include_pad=False)[0].permute(1, 2, 0)
        return torch.lerp(frame, soft, amount)

    detailed = (picture() + 0.1 * torch.rand(H, W, 3, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    clip = torch.stack([blurred(detailed, t / T) for t in range(T)])
    report = measure(clip)
    assert report.drift.sharpness < -50
    assert report.drift.color == pytest.approx([0, 0, 0], abs=1)


def test_sharpness_does_not_depend_on_brightness():
    assert measure(brightness(0.002 * torch.arange(T))).drift.sharpness == pytest.approx(0, abs=0.1)


def test_a_black_clip_has_no_drift():
    assert measure(torch.zeros(T, H, W, 3)).drift.color == (0, 0, 0)


def test_the_fit_is_that_of_numpy():
    values = torch.rand(40, 3, generator=torch.Generator().manual_seed(3)).double()
    start, slope = linear_fit(values)
    expected = np.polyfit(np.arange(40), values.numpy(), 1)
    np.testing.assert_allclose(torch.stack([slope, start]).numpy(), expected, rtol=1e-9)


# ---- seams ---------------------------------------------------------------------------------------------------------


def test_steady_motion_has_no_seam():
    assert seam_jerk(measure_frames(walk()).jerk, [12, 24, 36])[0] == pytest.approx(1, abs=0.1)


def test_a_jump_at_a_seam_is_found_there_and_only_there():
    clip = walk()
    clip[24:] += 0.1
    ratio, by_seam = seam_jerk(measure_frames(clip).jerk, [12, 24, 36])
    assert by_seam[24] > 3 * by_seam[12]
    assert by_seam[12] == pytest.approx(1, abs=0.1) == by_seam[36]
    assert by_seam[12] < ratio < by_seam[24]


def test_the_ratio_is_that_of_the_second_differences():
    # second differences of 0.001 everywhere (a parabola), and a jump of 0.1 before frame 20
    time = torch.arange(40.0)
    curve = 0.005 * (time - 20) ** 2 / 10
    curve[20:] += 0.1
    curvature = 0.001
    expected = (((0.1 + curvature) ** 2 + (0.1 - curvature) ** 2) / 2) ** 0.5 / curvature
    ratio, _ = seam_jerk(measure_frames(brightness(curve)).jerk, [20])
    assert ratio == pytest.approx(expected, rel=1e-3)


def test_a_jump_away_from_the_seams_makes_them_look_better():
    clip = walk()
    clip[30:] += 0.1
    assert seam_jerk(measure_frames(clip).jerk, [12, 24, 48])[0] < 0.5


def test_without_seams_or_without_an_interior_there_is_nothing_to_compare():
    jerk = measure_frames(still(10)).jerk
    assert seam_jerk(jerk, []) == (None, {})
    assert seam_jerk(jerk, range(1, 10)) == (None, {})


@pytest.mark.parametrize("seam", [0, 10, -1])
def test_a_seam_outside_the_video_is_refused(seam):
    with pytest.raises(MuseVError, match=r"1\.\.9"):
        seam_jerk(measure_frames(still(10)).jerk, [seam])


# ---- flicker -------------------------------------------------------------------------------------------------------


def test_flicker_is_the_amplitude_of_an_alternating_brightness():
    curve = torch.tensor([0.02, -0.02]).repeat(20)
    assert flicker(measure_frames(brightness(curve))) == pytest.approx(0.02, rel=1e-4)


def test_a_steady_change_of_brightness_is_no_flicker():
    assert flicker(measure_frames(brightness(0.005 * torch.arange(40)))) == pytest.approx(0, abs=1e-6)


def test_flicker_in_parts_of_the_picture_is_seen():
    clip = still(20)
    clip[::2, :, : W // 2] += 0.04
    clip[1::2, :, W // 2 :] += 0.04  # the mean of the picture stays
    assert flicker(measure_frames(clip)) == pytest.approx(0.02, rel=0.05)


def test_flicker_is_more_than_motion():
    assert flicker(measure_frames(walk())) < 0.002


# ---- the report ----------------------------------------------------------------------------------------------------


def test_condition_frames_count_for_fidelity_only():
    clip = torch.cat([still(1) + 0.1, still(T)])
    report = measure(clip, num_condition_frames=1, seams=[12], pictures=still(1))
    assert report.fidelity == pytest.approx([20], abs=1e-3)
    assert report.drift.color == pytest.approx([0, 0, 0], abs=1e-4)
    assert list(report.by_seam) == [13]  # counted in the whole video
    assert report.seam_jerk == 1 and report.flicker == 0


def test_the_report_reads_as_a_text():
    clip = walk()
    clip[24:] += 0.1
    text = str(measure(clip, num_condition_frames=1, seams=[11, 23, 35], pictures=clip[:1] + 0.01))
    assert "60 frames: 1 condition frame, 59 generated" in text
    assert "Condition frame 0: 40.0 dB" in text
    assert "% per 100 frames" in text
    assert "at 3 seams, worst" in text and "at frame 24" in text
    assert "grey levels" in text


def test_a_video_of_two_frames_has_a_drift_but_no_jerk():
    report = measure(still(2), seams=[1])
    assert report.drift is not None and report.seam_jerk is None and report.flicker == 0
    assert measure(still(1)).drift is None
    assert "Flicker" in str(measure(still(1)))


def test_a_stream_gives_the_numbers_of_the_tensor():
    clip = walk()
    streamed, whole = measure(frame.clone() for frame in clip), measure(clip)
    assert str(streamed) == str(whole)
    assert torch.equal(streamed.numbers.jerk, whole.numbers.jerk)


def test_a_stream_is_let_go_of_while_it_runs():
    alive, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for t in range(40):
            frame = picture(seed=t)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame
            del frame

    measure(stream())
    assert most <= 4  # three to compare, and the next one


def test_half_precision_is_measured_like_single():
    clip = walk().half()
    torch.testing.assert_close(measure_frames(clip).mean, measure_frames(clip.float()).mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure(iter(())), "no frame"),
        (lambda: measure([picture(), picture()[:-1]]), "one size"),
        (lambda: measure([(picture() * 255).byte()]), "float pictures"),
        (lambda: measure(still(3), num_condition_frames=3), "leave nothing"),
        (lambda: measure(still(3), pictures=still(4)), "only 3 frames"),
        (lambda: measure(still(3), pictures=still(1)[:, 1:]), "one shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(MuseVError, match=message):
        call()
