"""Noise of a whole video (musev.md 4)."""

import pytest
import torch

from musev_core.denoise.noise import NOISE_TYPES, NoiseOptions, VideoNoise, image_based_noise, video_noise
from musev_core.errors import MuseVError

SHAPE = (1, 4, 6, 64, 64)  # enough values for two digits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_variance_is_one_and_frames_share_what_the_individual_weight_leaves(weight):
    noise = video_noise(SHAPE, NoiseOptions(individual_weight=weight), seeded())
    assert noise.shape == SHAPE
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.var().item() == pytest.approx(1, abs=0.03)
    for i, j in ((0, 1), (0, 5), (2, 4)):  # whatever the distance
        assert correlation(noise[:, :, i], noise[:, :, j]) == pytest.approx(1 - weight, abs=0.03)


def test_random_noise_is_independent_whatever_the_weight():
    noise = video_noise(SHAPE, NoiseOptions(type="random", individual_weight=0.1), seeded())
    assert noise.var().item() == pytest.approx(1, abs=0.03)
    assert correlation(noise[:, :, 0], noise[:, :, 1]) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("kind", NOISE_TYPES)
def test_the_generator_decides(kind):
    options = NoiseOptions(type=kind)
    first = video_noise((1, 4, 3, 8, 8), options, seeded(1))
    assert torch.equal(first, video_noise((1, 4, 3, 8, 8), options, seeded(1)))
    assert not torch.equal(first, video_noise((1, 4, 3, 8, 8), options, seeded(2)))
    running = seeded(1)
    assert torch.equal(first, video_noise((1, 4, 3, 8, 8), options, running))
    assert not torch.equal(first, video_noise((1, 4, 3, 8, 8), options, running))


def test_without_generator_the_global_seed_counts():
    torch.manual_seed(3)
    first = video_noise((1, 4, 3, 8, 8), NoiseOptions())
    torch.manual_seed(3)
    assert torch.equal(first, video_noise((1, 4, 3, 8, 8), NoiseOptions()))


def test_the_common_part_is_drawn_first():
    generator = seeded()
    common, individual = (torch.randn((1, 4, t, 8, 8), generator=generator) for t in (1, 3))
    expected = 0.8**0.5 * common + 0.2**0.5 * individual
    torch.testing.assert_close(video_noise((1, 4, 3, 8, 8), NoiseOptions(individual_weight=0.2), seeded()), expected)


def test_a_given_common_part_is_used_and_nothing_drawn_for_it():
    common = torch.full((1, 4, 1, 8, 8), 10.0)
    noise = video_noise((1, 4, 3, 8, 8), NoiseOptions(), seeded(), common_noise=common)
    individual = torch.randn((1, 4, 3, 8, 8), generator=seeded())
    torch.testing.assert_close(noise, 0.5**0.5 * (common + individual))


@pytest.mark.parametrize("kind", NOISE_TYPES)
def test_noise_is_drawn_where_the_generator_lives(kind):
    # the device of the model changes neither what is drawn nor how much
    here, elsewhere = seeded(), seeded()
    video_noise((1, 4, 3, 8, 8), NoiseOptions(type=kind), here)
    moved = video_noise((1, 4, 3, 8, 8), NoiseOptions(type=kind), elsewhere, device="meta")
    assert moved.device.type == "meta"
    assert torch.equal(here.get_state(), elsewhere.get_state())


def test_a_lower_precision_rounds_the_same_noise():
    full = video_noise((1, 4, 1, 8, 8), NoiseOptions(type="random"), seeded())
    half = video_noise((1, 4, 1, 8, 8), NoiseOptions(type="random"), seeded(), dtype=torch.bfloat16)
    assert torch.equal(half, full.bfloat16())


@pytest.mark.parametrize("kind", NOISE_TYPES)
def test_one_generator_per_video_gives_each_its_own_noise(kind):
    options = NoiseOptions(type=kind)
    both = video_noise((2, 4, 3, 8, 8), options, [seeded(1), seeded(2)])
    alone = [video_noise((1, 4, 3, 8, 8), options, seeded(seed)) for seed in (1, 2)]
    assert torch.equal(both, torch.cat(alone))


def test_one_generator_per_video_with_a_given_common_part():
    common = torch.zeros(2, 4, 1, 8, 8)
    both = video_noise((2, 4, 3, 8, 8), NoiseOptions(), [seeded(1), seeded(2)], common_noise=common)
    alone = video_noise((1, 4, 3, 8, 8), NoiseOptions(), seeded(2), common_noise=common[:1])
    assert torch.equal(both[1:], alone)


def test_the_image_weight_is_the_pictures_share():
    noise = video_noise(SHAPE, NoiseOptions(), seeded())
    condition = torch.randn(1, 4, 2, 64, 64, generator=seeded(5))
    assert torch.equal(image_based_noise(noise, condition, 0.0), noise)
    mean = condition.mean(2, keepdim=True)
    torch.testing.assert_close(image_based_noise(noise, condition, 1.0), mean.expand_as(noise))
    mixed = image_based_noise(noise, condition, 0.36)
    torch.testing.assert_close(mixed, 0.6 * mean + 0.8 * noise)


# ---- a whole video's ------------------------------------------------------------------------------------------------

SIZE = (4, 8, 8)
LARGE = (4, 64, 64)
ORIGINAL = NoiseOptions(draw="original")


def drawn(*frames: int, seed: int = 1, number: int = 0, size=SIZE, stream: int = 0, **options) -> torch.Tensor:
    return VideoNoise([seed]).stream(stream).draw(number, frames, size, NoiseOptions(**options))


@pytest.mark.parametrize("kind", NOISE_TYPES)
def test_a_frames_noise_does_not_depend_on_what_else_is_drawn(kind):
    whole = drawn(*range(20), type=kind)
    source, options = VideoNoise([1]), NoiseOptions(type=kind)
    source.draw(3, [5, 6], SIZE, options)
    for frames in ([19, 3], [7], list(range(4, 9))):
        assert torch.equal(source.draw(0, frames, SIZE, options), whole[:, :, frames])


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_noise_by_frame_number_has_the_originals_distribution(weight):
    noise = drawn(*range(6), size=LARGE, individual_weight=weight)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.var().item() == pytest.approx(1, abs=0.03)
    assert (noise.double() ** 4).mean().item() == pytest.approx(3, abs=0.15)  # as normal numbers have
    for i, j in ((0, 1), (0, 5), (2, 4)):
        assert correlation(noise[:, :, i], noise[:, :, j]) == pytest.approx(1 - weight, abs=0.03)


def test_seed_draw_stream_and_frame_each_give_other_numbers():
    one = {"seed": 2**63 + 5, "number": 1, "stream": 1}
    others = [
        {"seed": 2**63 + 6},
        {"seed": 2**63 + 5 + 2**32},
        {"seed": 5},
        {"number": 2},
        {"stream": 0},
        {"stream": 2},
    ]
    first = drawn(3, type="random", size=LARGE, **one)
    assert abs(correlation(first, drawn(4, type="random", size=LARGE, **one))) < 0.03
    for other in others:
        assert abs(correlation(first, drawn(3, type="random", size=LARGE, **{**one, **other}))) < 0.03
        fused = (drawn(3, individual_weight=0.0, size=LARGE, **x) for x in (one, {**one, **other}))
        assert abs(correlation(*fused)) < 0.03


def test_the_numbers_stay_what_they_are():
    """A seed gives the same video next year, on another machine."""
    expected = [-0.35933807492256165, -0.4798129200935364, 0.10786429047584534]
    assert drawn(0, seed=2**64 - 1, size=(1, 1, 3), type="random").flatten().tolist() == pytest.approx(expected)


def test_every_video_of_a_batch_has_a_seed_of_its_own():
    both = VideoNoise([1, 2]).draw(0, [4, 5], SIZE, NoiseOptions())
    assert torch.equal(both, torch.cat([drawn(4, 5, seed=1), drawn(4, 5, seed=2)]))


def test_the_originals_draw_is_of_the_whole_clip_and_goes_on():
    source, generator = VideoNoise([3]), seeded(3)
    expected = [video_noise((1, *SIZE[:1], 5, *SIZE[1:]), ORIGINAL, generator) for _ in range(4)]
    assert torch.equal(source.draw(0, range(5), SIZE, ORIGINAL), expected[0])
    assert torch.equal(source.stream(1).draw(0, range(5), SIZE, ORIGINAL), expected[1])
    source.skip(range(5), SIZE, ORIGINAL)
    assert torch.equal(source.draw(0, range(5), SIZE, ORIGINAL), expected[3])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"type": "pink"}, "unknown noise type 'pink', expected one of video_fusion, random"),
        ({"draw": "torch"}, "unknown noise draw 'torch', expected one of frames, original"),
        ({"individual_weight": 1.5}, r"individual noise weight must lie in 0\.\.1, got 1.5"),
        ({"individual_weight": -0.1}, r"individual noise weight must lie in 0\.\.1, got -0.1"),
        ({"image_weight": 2}, r"image noise weight must lie in 0\.\.1, got 2"),
    ],
)
def test_wrong_options_say_what_is_expected(options, message):
    with pytest.raises(MuseVError, match=message):
        NoiseOptions(**options)


@pytest.mark.parametrize("common", [None, torch.zeros(2, 4, 1, 8, 8)], ids=["drawn", "given"])
def test_the_number_of_generators_must_fit(common):
    with pytest.raises(MuseVError, match="one generator per video, got 1 for a batch of 2"):
        video_noise((2, 4, 3, 8, 8), NoiseOptions(), [seeded()], common_noise=common)
