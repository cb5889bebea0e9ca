"""The guidance scale over the steps (extra.md 2.8)."""

import pytest
import torch

from musev_core.denoise.guidance import GUIDANCE_METHODS, guidance_schedule, guide
from musev_core.errors import MuseVError


@pytest.mark.parametrize(
    "method, steps, expected",
    [
        ("linear", 1, [8]),
        ("linear", 2, [8, 3]),
        ("linear", 3, [8, 5.5, 3]),
        ("two_stage", 1, [3]),
        ("two_stage", 2, [8, 3]),
        ("two_stage", 3, [8, 3, 3]),
        ("two_stage", 4, [8, 8, 3, 3]),
        ("three_stage", 1, [3]),
        ("three_stage", 2, [3, 3]),
        ("three_stage", 3, [8, 5, 3]),  # the mean is truncated
        ("three_stage", 5, [8, 5, 3, 3, 3]),
        ("fix_two_stage", 1, [8]),
        ("fix_two_stage", 2, [8, 8]),
        ("fix_two_stage", 3, [8, 8, 8]),
        ("fix_two_stage", 5, [8, 8, 8, 3, 3]),
    ],
)
def test_values_of_every_method(method, steps, expected):
    assert guidance_schedule(8, 3, method, steps) == pytest.approx(expected)


@pytest.mark.parametrize("method", GUIDANCE_METHODS)
@pytest.mark.parametrize("end", [None, 3.5])
def test_without_another_end_it_is_constant(method, end):
    assert guidance_schedule(3.5, end, method, 7) == [3.5] * 7


@pytest.mark.parametrize("method", GUIDANCE_METHODS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 31])
def test_there_is_a_value_between_the_ends_for_every_step(method, steps):
    values = guidance_schedule(2.5, 7, method, steps)
    assert len(values) == steps
    assert values == sorted(values)
    assert all(2.5 <= value <= 7 for value in values)


def test_guidance_leads_away_from_the_unconditional_prediction():
    unconditional, conditional = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    assert torch.equal(guide(unconditional, conditional, 0), unconditional)
    assert torch.equal(guide(unconditional, conditional, 1), conditional)
    assert torch.equal(guide(unconditional, conditional, 3), torch.tensor([4.0, -4.0]))


def test_wrong_numbers_say_what_is_expected():
    with pytest.raises(MuseVError, match="unknown guidance method 'cosine', expected one of linear, two_stage"):
        guidance_schedule(3.5, 2, "cosine", 10)
    with pytest.raises(MuseVError, match="number of steps must be at least 1, got 0"):
        guidance_schedule(3.5, 2, "linear", 0)
