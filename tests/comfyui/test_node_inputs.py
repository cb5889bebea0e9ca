"""What links and other programs bring: for every input of every node a value of its schema, or a sentence about it."""

import math
import re
from functools import cache
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from hypothesis import given
from hypothesis import strategies as st
from support.bounded import bounded
from support.node_texts import node_classes
from support.small_comfy import REFERENCENET, Vision, adapter, base, motion, pictures, prompt, reference_net
from support.tiny_comfy import tiny_vae

from musev_core.errors import MuseVError
from musev_pack.nodes.conditioning import ContinueVideo, ImageToVideo, VideoToVideo
from musev_pack.nodes.host import inputs
from musev_pack.nodes.loaders import LoadMotion
from musev_pack.nodes.motion import ApplyMotion, ContextWindows
from musev_pack.nodes.pose import DrawPose
from musev_pack.nodes.sampling import SampleVideo
from musev_pack.nodes.video import VisualizeWindows

NOT_A_NUMBER = [None, "5", "", [], {}, [3], b"5", True, math.nan, math.inf, -math.inf, torch.tensor(5), object()]
NOT_PICTURES = [
    None,
    5,
    "picture.png",
    [],
    np.zeros((1, 8, 8, 3), np.float32),
    torch.zeros(8, 8, 3),
    torch.zeros(1, 8, 8),
    torch.zeros(1, 1, 8, 8, 3),
    torch.zeros(1, 8, 8, 1),
    torch.zeros(1, 8, 8, 2),
    torch.zeros(1, 3, 8, 8),
    torch.zeros(0, 8, 8, 3),
    torch.zeros(1, 0, 8, 3),
    torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
    torch.full((1, 8, 8, 3), math.nan),
    torch.full((1, 8, 8, 3), math.inf),
]
SAMPLES = torch.zeros(3, 4, 2, 2)
NOT_LATENTS = [
    None,
    5,
    [],
    {},
    SAMPLES,
    {"samples": None},
    {"samples": [1.0]},
    {"samples": torch.zeros(3, 16, 2, 2)},
    {"samples": torch.zeros(4, 2, 2)},
    {"samples": torch.zeros(1, 4, 3, 2, 2)},
    {"samples": torch.zeros(0, 4, 2, 2)},
    {"samples": torch.zeros(3, 4, 0, 2)},
    {"samples": SAMPLES.long()},
    {"samples": SAMPLES + math.nan},
    {"samples": SAMPLES, "noise_mask": 1.0},
    {"samples": SAMPLES, "noise_mask": torch.ones(2, 1, 2, 2)},
    {"samples": SAMPLES, "noise_mask": torch.full((3, 2, 2), math.nan)},
    {"samples": SAMPLES, "batch_index": [0, 1]},
    {"samples": SAMPLES, "batch_index": [0, 1, 2**31]},
    {"samples": SAMPLES, "batch_index": "012"},
]
NOT_MASKS = [
    5,
    [],
    torch.zeros(8),
    torch.zeros(1, 3, 8, 8),
    torch.zeros(0, 8, 8),
    torch.zeros(1, 8, 8, dtype=torch.long),
    torch.full((8, 8), math.nan),
]
WRONG: dict[str, list[Any]] = {
    "INT": [*NOT_A_NUMBER, 2**31, 2**64, -(2**31), 10**5000, 1.5, 1e300],
    "FLOAT": [*NOT_A_NUMBER, 1e300, -1e300, 10**5000],
    "BOOLEAN": [None, "true", 2, 0.5, [], torch.tensor(True)],
    "STRING": [None, 5, [], {}, b"0"],
    "COMBO": [None, 5, [], {}, "", "no such choice", "x" * 10_000, "\0", True, torch.zeros(2)],
    "IMAGE": NOT_PICTURES,
    "MASK": NOT_MASKS,
    "LATENT": NOT_LATENTS,
    "CONDITIONING": [None, 5, [], {}, torch.zeros(1, 7, 8), [[None, {}]], [[torch.zeros(7, 8), {}]], [[SAMPLES]]],
    "POSE_KEYPOINT": [None, 5, [], {}, "poses", [5], [{}], [{"people": 5, "canvas_height": 8, "canvas_width": 8}]],
    "INSIGHTFACE": [5, [], {}, "buffalo_l"],
}
ANY_OBJECT = [None, 5, [], {}, "name", object(), torch.zeros(1)]  # for all kinds of networks
NETWORKS = {"MODEL", "VAE", "CLIP_VISION", "MUSEV_MOTION", "MUSEV_REFERENCENET", "MUSEV_IPADAPTER"}


@cache
def right() -> dict[str, Any]:
    """A value for every kind of socket, small enough for any node."""
    pose = {"people": [], "canvas_height": 64, "canvas_width": 64}
    return {
        "MODEL": base(),
        "VAE": tiny_vae(),
        "CLIP_VISION": Vision(),
        "MUSEV_MOTION": motion(REFERENCENET),
        "MUSEV_REFERENCENET": reference_net(),
        "MUSEV_IPADAPTER": adapter("plain"),
        "CONDITIONING": prompt("good"),
        "LATENT": {"samples": SAMPLES},
        "IMAGE": pictures(2),
        "MASK": torch.ones(2, 8, 8),
        "POSE_KEYPOINT": [pose, pose],
        "INSIGHTFACE": None,
    }


def values(node: Any) -> dict[str, Any]:
    """What a graph gives to the node where nothing is wrong: defaults, and something on each socket."""
    found = {}
    for each in node.define_schema().inputs:
        if each.optional:
            continue
        options = getattr(each, "options", None)
        default = getattr(each, "default", None)
        found[each.id] = right().get(each.get_io_type(), options[0] if default is None and options else default)
    return found


CASES = [
    pytest.param(node, each, number, id=f"{node.define_schema().node_id}-{each.id}-{number}")
    for node in node_classes()
    for each in node.define_schema().inputs
    for number in range(len(ANY_OBJECT if each.get_io_type() in NETWORKS else WRONG[each.get_io_type()]))
]


@pytest.mark.parametrize(("node", "each", "number"), CASES)
def test_a_wrong_value_gets_a_sentence(node, each, number):
    kind = each.get_io_type()
    wrong = (ANY_OBJECT if kind in NETWORKS else WRONG[kind])[number]
    if wrong is None and each.optional:
        return  # nothing is connected
    if kind == "INT" and isinstance(wrong, int) and not isinstance(wrong, bool) and each.min <= wrong <= each.max:
        return  # some seeds are that large
    given_values = {**values(node), each.id: wrong}
    refused = bounded(lambda: node.execute(**given_values))
    assert isinstance(refused, MuseVError)
    said = str(refused)
    assert each.id in said or "Choose" in said or "No MuseV" in said or "No image projection" in said, said
    assert len(said) < 1200 and "Traceback" not in said


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.sampled_from(["samples", "noise_mask", "batch_index"]), st.integers(), max_size=2),
    st.builds(
        lambda shape, dtype: torch.zeros(shape, dtype=dtype),
        st.lists(st.integers(0, 4), max_size=5),
        st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
    ),
)


@given(odd=ODD)
@pytest.mark.parametrize("node", node_classes(), ids=lambda node: node.define_schema().node_id)
def test_any_value_is_checked_or_refused(node, odd):
    given_values = values(node)
    for each in node.define_schema().inputs:
        try:
            checked = inputs.check_inputs([each], {**given_values, each.id: odd}, ())[each.id]
        except MuseVError as error:
            assert str(error).endswith((".", "or 1"))
        else:
            low, high = getattr(each, "min", None), getattr(each, "max", None)
            assert low is None or low <= checked <= high
            assert not hasattr(each, "options") or checked in each.options


@pytest.mark.parametrize(("value", "kind"), [(12, int), (12.0, int), (np.int64(12), int), (np.float32(12), int)])
def test_whole_numbers_of_other_types_are_taken(value, kind):
    model = ContextWindows.execute(base(), value, 4, "uniform_v2", "linear", 0).result[0]
    (length,) = [o.windows.length for o in [model.get_attachment("musev")]]
    assert length == 12 and type(length) is kind


ODD_BUT_RIGHT: dict[str, list[Any]] = {
    "IMAGE": [
        torch.rand(1, 1, 1, 3),
        torch.rand(1, 1, 3000, 3),
        torch.rand(2, 7, 5, 4),
        torch.rand(1, 8, 8, 3).half(),
        torch.rand(1, 8, 8, 3).double(),
        torch.rand(1, 8, 8, 3) * 9 - 4,
        torch.rand(1, 8, 8, 3).expand(5, -1, -1, -1),
    ],
    "MASK": [torch.zeros(1, 1, 1), torch.rand(3, 2, 900), torch.rand(1, 8, 8).half(), torch.rand(4, 4) - 9],
    "LATENT": [{"samples": torch.rand(shape)} for shape in ((1, 4, 1, 1), (2, 4, 1, 9))]
    + [{"samples": SAMPLES.half()}, {"samples": SAMPLES.double(), "noise_mask": torch.ones(1, 1), "other": 5}],
    "STRING": ["", " 0 , 1 ", "0;1", "9" * 5000, "-1", "\0", "٣", "1e3"],
}
ODD_CASES = [
    pytest.param(node, each, number, id=f"{node.define_schema().node_id}-{each.id}-{number}")
    for node in node_classes()
    for each in node.define_schema().inputs
    for number in range(len(ODD_BUT_RIGHT.get(each.get_io_type(), ())))
]


@pytest.mark.parametrize(("node", "each", "number"), ODD_CASES)
def test_odd_values_give_a_result_or_a_sentence(node, each, number, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    given_values = {**values(node), each.id: ODD_BUT_RIGHT[each.get_io_type()][number]}
    for name in {"width", "height"} & given_values.keys():
        given_values[name] = 64
    outcome = bounded(lambda: node.execute(**given_values))
    assert isinstance(outcome, (MuseVError, io.NodeOutput))


# ------------------------------------------------------------------------ values that fit, but not together


def empty(frames: int, size: int = 4) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(frames, 4, size, size)}


def poses(count: int, side: int) -> list[dict]:
    return [{"people": [], "canvas_height": side, "canvas_width": side}] * count


TOO_MUCH = {
    "Image to Video": lambda: ImageToVideo.execute(tiny_vae(), pictures(1), 4096, 4096, 100_000, "0", 1.0),
    "many pictures": lambda: ImageToVideo.execute(
        tiny_vae(), pictures(1).expand(90_000, -1, -1, -1), 4096, 4096, 100_000, "0", 1.0
    ),
    "Video to Video": lambda: VideoToVideo.execute(
        tiny_vae(), pictures(1).expand(90_000, -1, -1, -1), 4096, 4096, True, 1.0
    ),
    "Continue Video": lambda: ContinueVideo.execute(empty(3, 512), 100_000, 1, False),
    "Draw Pose": lambda: DrawPose.execute(poses(50_000, 64), True, True, False, 8192, 8192),
    "a large canvas": lambda: DrawPose.execute(poses(2, 2**19), True, True, False, 0, 0),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_more_than_fits_into_memory_is_refused_before_it_is_asked_for(name, monkeypatch):
    monkeypatch.setattr(inputs.comfy.model_management, "get_free_memory", lambda device: 64 * 2**30)
    refused = bounded(TOO_MUCH[name])
    assert re.search(r"would need [\d,.]+ GB of memory, and 64.0 GB are free|a side can be drawn", str(refused))


def test_a_schedule_that_is_too_long_to_draw():
    refused = bounded(lambda: VisualizeWindows.execute(100_000, 1, 512, 511, "uniform_v2", "linear", 0, 10))
    assert "99999 windows of 512 frames are too many to draw. Ask for a shorter clip" in str(refused)


def test_a_denoise_so_small_that_its_steps_have_no_end():
    moving = ApplyMotion.execute(base(), motion(REFERENCENET), 8.0, 1.0, 0.0, 1.0).result[0]
    with pytest.raises(MuseVError, match="raise denoise, or take fewer steps"):
        SampleVideo.execute(moving, prompt("good"), prompt("bad"), empty(3), 0, 10, 3.5, "euler", "normal", 1e-9)


def test_a_mask_may_come_without_the_axis_of_frames():
    """Load Image gives one mask, and some nodes one without the axis for it."""
    masks = [torch.full((8, 6), 0.5), torch.full((1, 8, 6), 0.5), torch.full((1, 1, 8, 6), 0.5)]
    for mask in masks:
        model = ApplyMotion.execute(base(), motion(REFERENCENET), 8.0, 1.0, 0.0, 1.0, mask).result[0]
        assert model.get_attachment("musev").motion.frame_strength.tolist() == [0.5]


@pytest.mark.parametrize("name", [5, {}, [], None, "", "\0", "../" * 400, "x" * 5000, "a/b\\c.bin"])
def test_odd_file_names(name):
    """The API brings them to the check before the run as well."""
    if name is not None:
        assert isinstance(LoadMotion.validate_inputs(motion_name=name), str)
    with pytest.raises(MuseVError):
        LoadMotion.execute(name)
