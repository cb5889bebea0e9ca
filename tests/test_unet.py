"""MuseVUNet is Stable Diffusion per frame without its temporal layers, and with them it keeps MuseV's peculiarities."""

import copy
from dataclasses import replace

import pytest
import torch
from support import golden_models
from support import unet_inputs as small
from support.golden_models import size_config
from torch import Tensor

from musev_core.errors import MuseVError
from musev_core.models.conditions import ClipConditions, ControlResiduals, ReferenceFeatures
from musev_core.models.layers import Layers, new_layers
from musev_core.models.reference_fusion import ReferenceFusion, reference_indices
from musev_core.models.unet import MuseVUNet

# a difference that somebody made, not rounding
CHANGED = 1e-4


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def predict(
    clip: ClipConditions, arch: str = small.REFERENCED, sample: Tensor | None = None, timestep=500.0, **options
) -> Tensor:
    return small.unet(arch)(small.sample() if sample is None else sample, timestep, clip, **options)


def text_only(rows: int = 2) -> ClipConditions:
    return ClipConditions(small.text(rows))


def changed_frames(x: Tensor, y: Tensor) -> list[int]:
    """Numbers of the frames where two predictions are not the same, bit for bit."""
    return [i for i in range(x.shape[2]) if not torch.equal(x[:, :, i], y[:, :, i])]


# the Stable Diffusion UNet inside


@pytest.fixture(scope="module")
def diffusers_unet() -> torch.nn.Module:
    return small.diffusers_unet()


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (9, 7)])
@pytest.mark.parametrize("timestep", [0.0, 964.5517])
def test_without_temporal_layers_it_is_stable_diffusion_per_frame(
    diffusers_unet: torch.nn.Module, size: tuple[int, int], timestep: float
) -> None:
    x, clip = small.sample(frames=3, size=size), text_only()
    frames = [diffusers_unet(x[:, :, i], timestep, clip.text).sample for i in range(3)]
    expected = torch.stack(frames, dim=2)

    plain = MuseVUNet(size_config("tiny2")).double()
    weights = small.unet().state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    assert small.distance(plain(x, timestep, clip), expected) <= small.SAME
    for arch in small.ARCHS:
        assert small.distance(predict(clip, arch, x, timestep, skip_temporal=True), expected) <= small.SAME


@pytest.mark.parametrize("arch", small.ARCHS)
def test_temporal_layers_make_a_difference_even_to_a_single_frame(arch: str) -> None:
    x = small.sample(frames=1)
    spatial = predict(text_only(), arch, x, skip_temporal=True)
    assert small.distance(predict(text_only(), arch, x), spatial) > CHANGED


# ControlNet


def zeros_like(control: ControlResiduals) -> ControlResiduals:
    return ControlResiduals(tuple(torch.zeros_like(x) for x in control.down), torch.zeros_like(control.mid))


def test_control_of_zeros_changes_nothing() -> None:
    expected = predict(text_only())
    none = zeros_like(small.control())
    assert torch.equal(predict(text_only(), control=none), expected)
    assert torch.equal(predict(text_only(), control=ControlResiduals(none.down)), expected)


def test_every_control_residual_counts() -> None:
    expected, control = predict(text_only()), small.control()
    none = zeros_like(control)
    for i, extra in enumerate(control.down):
        down = (*none.down[:i], extra, *none.down[i + 1 :])
        assert small.distance(predict(text_only(), control=ControlResiduals(down)), expected) > CHANGED, i
    assert small.distance(predict(text_only(), control=replace(none, mid=control.mid)), expected) > CHANGED


def test_control_residuals_have_the_frames_of_a_row_side_by_side() -> None:
    control = zeros_like(small.control())
    for extra in (*control.down, control.mid):
        extra[4 + 2] = 0.1  # of 2 rows with 4 frames: row 1, frame 2
    before = predict(text_only(), skip_temporal=True)
    after = predict(text_only(), skip_temporal=True, control=control)
    assert changed_frames(after[:1], before[:1]) == []
    assert changed_frames(after[1:], before[1:]) == [2]


# quirks (musev.md 8)


def test_motion_speed_is_truncated_to_whole_frame_numbers() -> None:
    x = small.sample(frames=5)
    slow, same, other = (predict(text_only(), sample=x, motion_speed=speed) for speed in (8.0, 8.1, 1.0))
    assert torch.equal(same, slow)  # 0, 8.1, 16.2, 24.3, 32.4
    assert small.distance(other, slow) > CHANGED


def test_musev_ignores_the_motion_speed() -> None:
    a, b = (predict(text_only(), "musev", motion_speed=speed) for speed in (8.0, 1.0))
    assert torch.equal(a, b)


def test_frame_index_replaces_the_product_with_the_motion_speed() -> None:
    expected = predict(text_only(), motion_speed=3.5)
    index = torch.tensor([0, 3, 7, 10])
    assert torch.equal(predict(text_only(), frame_index=index), expected)

    per_row = predict(text_only(), frame_index=torch.stack([index, 2 * index]))
    assert small.distance(per_row[:1], expected[:1]) <= small.SAME
    assert small.distance(per_row[1:], predict(text_only(), frame_index=2 * index)[1:]) <= small.SAME


@pytest.mark.parametrize("arch, changing", [(small.REFERENCED, [0, 2, 3]), ("musev", [0, 1, 2, 3])])
def test_time_step_does_not_reach_the_condition_frames_of_reference_models(arch: str, changing: list[int]) -> None:
    # without temporal layers a condition frame sees only itself
    a, b = (
        predict(text_only(), arch, timestep=timestep, condition_frames=(1,), skip_temporal=True)
        for timestep in (10.0, 900.0)
    )
    assert changed_frames(a, b) == changing


@pytest.mark.parametrize("arch", small.ARCHS)
def test_condition_frames_are_ignored_in_a_window_of_one_frame(arch: str) -> None:
    x = small.sample(frames=1)
    assert torch.equal(predict(text_only(), arch, x, condition_frames=(0,)), predict(text_only(), arch, x))


@pytest.mark.parametrize("arch", small.ARCHS)
def test_only_the_size_of_temporal_weights_counts(arch: str) -> None:
    net = copy.deepcopy(small.unet(arch))
    weights = [x for name, x in net.named_parameters() if name.endswith("temporal_weight")]
    expected = net(small.sample(), 500.0, text_only())
    for weight in weights:
        weight.neg_()
    assert torch.equal(net(small.sample(), 500.0, text_only()), expected)
    for weight in weights:
        weight.mul_(0.5)
    assert small.distance(net(small.sample(), 500.0, text_only()), expected) > CHANGED


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_prompt_scale_of_zero_or_less_is_no_prompt(scale: float) -> None:
    net, tokens = small.unet(face_layers=True), small.image_tokens()

    def run(**prompts) -> Tensor:
        return net(small.sample(), 500.0, ClipConditions(small.text(), **prompts))

    without = run()
    assert torch.equal(run(image_tokens=tokens, image_scale=scale), without)
    assert torch.equal(run(face_tokens=tokens, face_scale=scale), without)
    assert small.distance(run(image_tokens=tokens, image_scale=0.1), without) > CHANGED
    assert small.distance(run(face_tokens=tokens, face_scale=0.1), without) > CHANGED


def test_networks_without_the_layers_ignore_pictures() -> None:
    clip = small.varied(small.full_clip(), face_tokens=small.image_tokens(seed=1))
    assert torch.equal(predict(clip, "musev"), predict(text_only(), "musev"))
    assert torch.equal(predict(small.varied(clip, face_tokens=None)), predict(clip))


# reference features


def test_the_last_two_reference_features_are_never_used() -> None:
    clip = small.full_clip()
    features, expected = clip.reference, predict(clip)

    def influence(changed: ReferenceFeatures) -> float:
        return small.distance(predict(small.varied(clip, reference=changed)), expected)

    unused = []
    for i, x in enumerate(features.down):
        other = x + small.numbers("other", *x.shape)
        change = influence(replace(features, down=(*features.down[:i], other, *features.down[i + 1 :])))
        assert change == 0 or change > CHANGED
        unused += [i] if change == 0 else []
    assert unused == [10, 11]
    assert influence(replace(features, mid=features.mid + small.numbers("other", *features.mid.shape))) > CHANGED


def test_reference_indices_repeat_for_the_final_block() -> None:
    assert [list(reference_indices(2, i, i == 3)) for i in range(4)] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [7, 8]]


def test_reference_pictures_may_have_another_size_and_no_order() -> None:
    features = small.reference(pictures=2, size=(6, 14))
    swapped = ReferenceFeatures(tuple(x.flip(1) for x in features.down), features.mid.flip(1))
    first = ReferenceFeatures(tuple(x[:, :1] for x in features.down), features.mid[:, :1])
    both, other, one = (predict(ClipConditions(small.text(), reference=x)) for x in (features, swapped, first))
    assert small.distance(both, other) <= small.SAME
    assert small.distance(both, one) > CHANGED


def test_reference_fusion_attends_to_all_pictures_and_the_own_frame() -> None:
    c = 32
    net = ReferenceFusion(Layers(new_layers(dtype=torch.float64)), c, 1)
    x, pictures = small.numbers("x", 4, 3, 4, 5, c), small.numbers("pictures", 2, 2, 3, 2, c)  # 2 rows, 2 windows each
    got = net(x, pictures, ClipConditions(small.text()))
    for b in range(4):
        for t in range(3):
            own = x[b, t].flatten(0, 1)
            seen = torch.cat([pictures[b // 2].flatten(0, 2), own])
            weights = (net.to_q(own) @ net.to_k(seen).T / c**0.5).softmax(-1)
            expected = own + net.to_out["0"](weights @ net.to_v(seen))
            assert small.distance(got[b, t].flatten(0, 1), expected) <= small.SAME


# rows, windows, frames


def test_rows_and_windows_do_not_mix() -> None:
    clip = small.full_clip()
    windows = [[small.sample(1, seed=3 * row + window) for window in range(3)] for row in range(2)]
    batch = torch.cat([x for row in windows for x in row])
    got = predict(clip, sample=batch, condition_frames=(0,)).unflatten(0, (2, 3))
    for i, row in enumerate(windows):
        for j, x in enumerate(row):
            alone = predict(clip.take([i]), sample=x, condition_frames=(0,))
            assert small.distance(got[i, j : j + 1], alone) <= small.SAME, (i, j)


def test_every_row_may_have_its_own_time_step() -> None:
    got = predict(text_only(), timestep=torch.tensor([10.0, 900.0]), condition_frames=(0,))
    for i, timestep in enumerate((10.0, 900.0)):
        alone = predict(
            text_only().take([i]), sample=small.sample()[i : i + 1], timestep=timestep, condition_frames=(0,)
        )
        assert small.distance(got[i : i + 1], alone) <= small.SAME


@pytest.mark.parametrize("arch", small.ARCHS)
@pytest.mark.parametrize("frames, size", [(4, (12, 20)), (3, (9, 7)), (1, (9, 7)), (2, (3, 5))])
def test_any_latent_size_and_number_of_frames(arch: str, frames: int, size: tuple[int, int]) -> None:
    x = small.sample(frames=frames, size=size)
    clip = ClipConditions(small.text(), reference=small.reference(size=size))
    got = predict(clip, arch, x, condition_frames=(0,))
    assert got.shape == x.shape
    assert torch.isfinite(got).all()
    assert small.distance(predict(clip.take([1]), arch, x[1:], condition_frames=(0,)), got[1:]) <= small.SAME


def test_text_per_frame_equals_one_text_if_all_frames_have_the_same() -> None:
    per_frame = ClipConditions(small.text()[:, None].expand(-1, 4, -1, -1))
    got = predict(per_frame, condition_frames=(0,))
    assert small.distance(got, predict(text_only(), condition_frames=(0,))) <= small.SAME


def test_every_frame_gets_its_own_text() -> None:
    texts = torch.stack([small.text(seed=i) for i in range(4)], dim=1)
    got = predict(ClipConditions(texts), skip_temporal=True)
    for i in range(4):
        alone = predict(ClipConditions(texts[:, i]), sample=small.sample()[:, :, i : i + 1], skip_temporal=True)
        assert small.distance(got[:, :, i : i + 1], alone) <= small.SAME


# positions of condition frames


@pytest.mark.parametrize("arch", small.ARCHS)
def test_condition_frames_may_stand_anywhere_and_it_matters_where(arch: str) -> None:
    x = small.sample(frames=5)
    places = [(), (0,), (2,), (0, 4), (1, 2)]
    results = [predict(text_only(), arch, x, condition_frames=place) for place in places]
    for i, a in enumerate(results):
        for j, b in enumerate(results[:i]):
            assert small.distance(a, b) > CHANGED, (places[i], places[j])


@pytest.mark.parametrize("place, moved", [((2,), (4,)), ((0, 4), (1, 2)), ((4, 0), (2, 1))])
def test_condition_frames_are_found_wherever_they_stand(place: tuple[int, ...], moved: tuple[int, ...]) -> None:
    # without temporal layers the order of the frames does not count
    order = [3, 0, 4, 1, 2]  # frame order[i] goes to place i
    assert all(order[b] == a for a, b in zip(place, moved, strict=True))
    x = small.sample(frames=5)
    got = predict(text_only(), sample=x[:, :, order], condition_frames=moved, skip_temporal=True)
    expected = predict(text_only(), sample=x, condition_frames=place, skip_temporal=True)[:, :, order]
    assert small.distance(got, expected) <= small.SAME


# memory


def scattered(x: Tensor) -> Tensor:
    """The same numbers with their axes in reverse order in memory, and gaps between."""
    axes = tuple(reversed(range(x.ndim)))
    y = x.new_full((*[x.shape[i] for i in axes], 2), float("nan"))
    y[..., 1] = x.permute(axes)
    return y[..., 1].permute(axes)


def test_memory_layout_of_the_inputs_does_not_matter() -> None:
    clip, control, x = small.full_clip(), small.control(), small.sample()
    assert not scattered(x).is_contiguous() and torch.equal(scattered(x), x)
    loose = ClipConditions(
        scattered(clip.text),
        scattered(clip.image_tokens),
        reference=ReferenceFeatures(tuple(map(scattered, clip.reference.down)), scattered(clip.reference.mid)),
    )
    extra = ControlResiduals(tuple(map(scattered, control.down)), scattered(control.mid))
    got = predict(loose, sample=scattered(x), control=extra, condition_frames=(0,))
    assert small.distance(got, predict(clip, control=control, condition_frames=(0,))) <= small.SAME


def test_inputs_are_not_changed_in_place() -> None:
    clip, control, x = small.full_clip(), small.control(), small.sample()
    given = [x, clip.text, clip.image_tokens, *clip.reference.down, clip.reference.mid, *control.down, control.mid]
    before = [y.clone() for y in given]
    predict(clip, sample=x, control=control, condition_frames=(0,))
    assert all(torch.equal(y, z) for y, z in zip(given, before, strict=True))


WRONG_INPUTS = {
    "text rows": ({"text": torch.zeros(3, 7, 32)}, {}, "text for 3 rows cannot serve a batch of 2"),
    "text frames": ({"text": torch.zeros(2, 8, 7, 32)}, {}, r"must have the shape \(2, 4, tokens, dim\)"),
    "image rows": ({"image_tokens": torch.zeros(3, 4, 32)}, {}, "image tokens for 3 rows"),
    "condition frame": ({}, {"condition_frames": (4,)}, r"must lie in 0\.\.3 for a window of 4 frames"),
    "negative condition frame": ({}, {"condition_frames": (-1,)}, r"must lie in 0\.\.3"),
    "residuals": ({}, {"control": ControlResiduals((torch.zeros(8, 32, 8, 8),))}, "12 residuals.*got 1"),
    "reference": (
        {"reference": ReferenceFeatures((torch.zeros(2, 1, 8, 8, 32),), torch.zeros(2, 1, 1, 1, 64))},
        {},
        "12 features.*got 1",
    ),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_inputs_that_do_not_belong_together_are_named(name):
    changes, arguments, message = WRONG_INPUTS[name]
    clip = ClipConditions(**({"text": torch.zeros(2, 7, 32)} | changes))
    net = golden_models.unet("musev_referencenet", "tiny2", 0)
    with pytest.raises(MuseVError, match=message), torch.no_grad():
        net(torch.zeros(2, 4, 4, 8, 8), 500.0, clip, **arguments)


@pytest.mark.parametrize("arch", [small.REFERENCED, "musev"])
@pytest.mark.parametrize("windows", [1, 3])
def test_guidance_branches_share_what_comes_before_the_prompt(arch, windows):
    """One sample for both branches gives what the repeated sample gives."""
    clip = small.full_clip() if arch == small.REFERENCED else text_only(2)
    if clip.reference is not None:  # ReferenceNet's first feature does not see the prompt
        first = clip.reference.down[0][:1].expand_as(clip.reference.down[0])
        clip = replace(clip, reference=ReferenceFeatures((first, *clip.reference.down[1:]), clip.reference.mid))
    sample = torch.cat([small.sample()[:1] * (i + 1) for i in range(windows)])
    options = {"condition_frames": (0,)}
    shared = predict(clip, arch, sample, branches=2, **options)
    repeated = predict(clip, arch, sample.repeat(2, 1, 1, 1, 1), **options)
    assert shared.shape == repeated.shape
    assert small.distance(shared, repeated) <= 1e-12
