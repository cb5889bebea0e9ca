"""Every input of a video changes it: one row for every field of a request and of all options inside it.

A field without a row fails, a row without a field too. The row says what another value changes; where that is nothing
it says why.
"""

from typing import Any

import pytest
import torch
from support.effects import Result, Row, leaves, put, refused, same
from support.request_table import DRIVEN, ROWS, SCENES, pipeline

from musev_core.errors import MuseVError
from musev_core.pipeline import VideoRequest


def made(request: VideoRequest, **call: Any) -> Result:
    pipe, calls = pipeline(), []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0]))
    try:
        result = pipe.generate(request, seed=1, **call)
        return Result(result.latents, result.video(), tuple(calls))
    finally:
        hook.remove()


_before: dict[str, Result] = {}


def before(row: Row) -> Result:
    """The result of the scene as it is; scenes which several rows share are made once."""
    key = f"{row.scene} {sorted(row.given)} {[v for v in row.given.values() if not isinstance(v, torch.Tensor)]}"
    if key not in _before:
        _before[key] = made(put(SCENES[row.scene], row.given))
    return _before[key]


def test_every_field_of_a_request_and_of_its_options_has_a_row():
    assert set(leaves(DRIVEN)) == set(ROWS)


def test_what_changes_nothing_has_a_reason_and_nothing_else_has():
    assert all((row.how in (same, refused)) == bool(row.why) for row in ROWS.values())


@pytest.mark.parametrize("scene", SCENES)
def test_the_same_request_makes_the_same_video_again(scene):
    same(before(Row(None, scene=scene)), made(SCENES[scene]))


@pytest.mark.parametrize("path", ROWS)
def test_another_value_changes_what_its_row_says(path):
    row = ROWS[path]
    if row.how is refused:
        with pytest.raises(MuseVError, match=row.why):
            made(put(SCENES[row.scene], {path: row.value}))
        return
    row.how(before(row), made(put(SCENES[row.scene], {**row.given, path: row.value})))
