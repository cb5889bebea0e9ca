import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.poses import write_detector, write_pose_net

from musev_core.errors import CheckpointError, MissingPackageError, MuseVError
from musev_core.frames.images import canny
from musev_core.pose.drawing import draw_people
from musev_core.pose.keypoints import BODY, FACE, LEFT_HAND, RIGHT_HAND
from musev_core.pose.preprocessors import (
    PREPROCESSORS,
    ControlPreprocessor,
    check_preprocessor,
    check_resolution,
    detection_size,
)
from musev_core.tasks.runner import check_controls
from musev_core.tasks.task import Task

ALL_NAMES = [
    *("pose", "pose_body", "pose_hand", "pose_face", "pose_hand_body", "pose_hand_face"),
    *("dwpose", "dwpose_face", "dwpose_hand", "dwpose_body", "dwpose_body_hand"),
    *("canny", "tile", "hed", "hed_scribble", "depth", "pidi", "normal_bae", "lineart", "lineart_anime", "zoe"),
    *("sam", "mobile_sam", "leres", "content", "face_detector"),
]


def video(frames=2, height=64, width=128, seed=0):
    """Noise in blocks, so that resizing does not flatten it."""
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (frames, height // 8, width // 8, 3), dtype=torch.uint8, generator=random)
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


# ---- the table -----------------------------------------------------------------------------------------------------


def test_the_names_are_the_originals():
    assert list(PREPROCESSORS) == ALL_NAMES


@pytest.mark.parametrize(
    "name, parts",
    [
        ("pose", "body hands"),
        ("pose_hand", "hands"),
        ("pose_face", "face"),
        ("pose_hand_body", "body hands"),
        ("pose_hand_face", "hands face"),
        ("dwpose", "body hands face"),
        ("dwpose_hand", "hands"),
        ("dwpose_body_hand", "body hands"),
    ],
)
def test_poses_show_what_their_name_says(name, parts):
    """The original lost hands and faces of several to an old switch."""
    row = PREPROCESSORS[name]
    assert list(row.parts) == parts.split() and row.controlnet.endswith("openpose")
    if row.detector == "openpose":
        assert row.options == {"hands": "hands" in parts, "face": "face" in parts}


def test_maps_go_with_the_controlnet_that_reads_them():
    paired = {name: row.controlnet.rsplit("/", 1)[1] for name, row in PREPROCESSORS.items()}
    assert paired["pidi"] == paired["hed"] == "control_v11p_sd15_softedge"
    assert paired["hed_scribble"] == "control_v11p_sd15_scribble"
    assert paired["face_detector"] == "ControlNetMediaPipeFace"
    assert paired["depth"] == paired["zoe"] == paired["leres"] == "control_v11f1p_sd15_depth"


def test_names_that_do_not_exist_are_refused_with_the_nearest():
    with pytest.raises(MuseVError, match="no control preprocessor 'dwpose_bodyhand'.*Did you mean 'dwpose_body_hand'"):
        check_preprocessor("dwpose_bodyhand")


def test_a_task_that_names_weights_nobody_has_is_refused_before_anything_is_loaded(tmp_path):
    task = Task(name="dance", prompt="", controlnet_name="dwpose", video_path="v.mp4", which2video="video_middle")
    with pytest.raises(CheckpointError, match=rf"'dwpose' needs yolox_l\.onnx.*into one of: {tmp_path}"):
        check_controls(task, ["dwpose"], [tmp_path])
    check_controls(replace(task, video_is_middle=True), ["dwpose"])


# ---- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, resolution, expected",
    [
        ((512, 768), 512, (512, 768)),
        ((1080, 1920), 512, (512, 896)),  # 910.2
        ((300, 200), 512, (768, 512)),
        ((100, 1000), 64, (64, 640)),
        ((96, 100), 64, (64, 64)),
        ((96, 144), 64, (64, 128)),  # 96 is one half: to the even multiple
        ((1000, 1000), 1000, (1024, 1024)),
        ((20, 200), 20, (64, 192)),  # never nothing
    ],
)
def test_the_short_side_meets_the_resolution_and_both_are_multiples_of_64(size, resolution, expected):
    assert detection_size(*size, resolution) == expected


@pytest.mark.parametrize("name", ["canny", "tile", "content"])
@pytest.mark.parametrize("height, width", [(64, 128), (72, 104)])
def test_resolution_0_keeps_the_size_of_the_frames(name, height, width):
    result = ControlPreprocessor(name).run(video(2, height, width))
    assert result.maps.shape == (2, height, width, 3) and result.maps.dtype == torch.uint8
    assert [(f.height, f.width, len(f.people)) for f in result.poses] == [(height, width, 0)] * 2


@pytest.mark.parametrize("name", ["canny", "tile", "content"])
def test_a_resolution_resizes_before_detection(name):
    assert ControlPreprocessor(name).run(video(1, 64, 128), resolution=128).maps.shape == (1, 128, 256, 3)


def test_frames_are_enlarged_with_lanczos_and_reduced_by_area():
    cv2 = pytest.importorskip("cv2")
    frames = video(1, 128, 192)
    for resolution, size, how in ((192, (288 // 64 * 64, 192), cv2.INTER_LANCZOS4), (64, (64, 64), cv2.INTER_AREA)):
        maps = ControlPreprocessor("tile").run(frames, resolution=resolution).maps
        width, height = detection_size(128, 192, resolution)[::-1]
        expected = cv2.resize(frames[0].numpy(), (width, height), interpolation=how)
        np.testing.assert_array_equal(maps[0].numpy(), expected)
        assert size[1] in (width, height)


@pytest.mark.parametrize("resolution", [-64, 1, 500])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(MuseVError, match=f"multiple of 64 pixels, or 0 for the frames' size, got {resolution}"):
        check_resolution(resolution)


# ---- without weights -----------------------------------------------------------------------------------------------


def test_tile_is_the_frame_itself_and_canny_its_edges():
    frames = video()
    assert torch.equal(ControlPreprocessor("tile")(frames), frames)
    edges = ControlPreprocessor("canny")(frames)
    assert torch.equal(edges, canny(frames)) and edges.any() and not edges.all()


def test_float_frames_are_the_same_as_their_grey_levels():
    frames = video()
    for name in ("tile", "canny", "content"):
        assert torch.equal(ControlPreprocessor(name)(frames / 255), ControlPreprocessor(name)(frames))


def test_content_shuffles_every_frame_alike_and_every_time():
    frames = video(1, 320, 256).repeat(2, 1, 1, 1)
    first = ControlPreprocessor("content")(frames)
    assert torch.equal(first[0], first[1]) and torch.equal(first, ControlPreprocessor("content")(frames))
    assert (first != frames).float().mean() > 0.5
    rows, columns = torch.meshgrid(torch.arange(320), torch.arange(256), indexing="ij")
    places = torch.stack([rows * 255 // 319, columns, torch.zeros_like(rows)], -1).to(torch.uint8)[None]
    moved = ControlPreprocessor("content")(places)[0, ..., :2].flatten(0, 1)
    assert moved.amin(0).tolist() == [0, 0] and moved.amax(0).tolist() == [255, 255]  # from the whole picture


def test_progress_is_told_after_every_frame_and_may_stop_the_rest():
    seen = []

    def stop_after_two(done, total):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ControlPreprocessor("tile").run(video(4), on_frame=stop_after_two)
    assert seen == [(1, 4), (2, 4)]


def test_frames_of_a_wrong_kind_are_refused():
    with pytest.raises(MuseVError, match=r"shape \(frames, height, width, 3\)"):
        ControlPreprocessor("tile").run(torch.zeros(1, 3, 64, 64))
    with pytest.raises(MuseVError, match="must lie in 0..1"):
        ControlPreprocessor("tile").run(torch.full((1, 64, 64, 3), 255.0))


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in ALL_NAMES if n not in ("canny", "tile", "content", "face_detector")])
def test_missing_weights_are_named_with_the_place_to_put_them(name, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        ControlPreprocessor(name, folders=[tmp_path / "a", tmp_path / "b"])
    message = str(caught.value)
    assert repr(name) in message and "(Hugging Face); nothing is downloaded" in message
    assert f"into one of: {tmp_path / 'a'}, {tmp_path / 'b'}" in message
    with pytest.raises(CheckpointError, match="No folder was given"):
        check_preprocessor(name)


def test_weights_are_found_by_repository_or_by_name_in_any_folder(tmp_path):
    ours, fetched = tmp_path / "ours", tmp_path / "ckpts"
    (fetched / "yzd-v" / "DWPose").mkdir(parents=True)
    ours.mkdir()
    (fetched / "yzd-v" / "DWPose" / "yolox_l.onnx").touch()
    with pytest.raises(CheckpointError, match=r"needs dw-ll_ucoco_384\.onnx of yzd-v/DWPose.*Put it into"):
        check_preprocessor("dwpose", [ours, fetched])
    (ours / "dw-ll_ucoco_384.onnx").touch()
    check_preprocessor("dwpose", [ours, fetched])


def test_a_file_which_could_run_code_is_refused_before_the_package_unpickles_it(tmp_path):
    torch.save({"weight": Trap()}, tmp_path / "ControlNetHED.pth")
    with pytest.raises(CheckpointError, match="loading it could run code"):
        ControlPreprocessor("hed", folders=[tmp_path])


class Trap:
    def __reduce__(self):
        return print, ("ran",)


@pytest.fixture(scope="module")
def annotators(tmp_path_factory):
    """Weights of controlnet_aux's smaller networks, drawn at random."""
    folder = tmp_path_factory.mktemp("ckpts") / "lllyasviel" / "Annotators"
    folder.mkdir(parents=True)
    pytest.importorskip("controlnet_aux")
    from controlnet_aux.hed import ControlNetHED_Apache2
    from controlnet_aux.lineart import Generator

    torch.manual_seed(0)
    torch.save(ControlNetHED_Apache2().state_dict(), folder / "ControlNetHED.pth")
    for name in ("sk_model.pth", "sk_model2.pth"):
        torch.save(Generator(3, 1, 3).state_dict(), folder / name)
    return folder.parents[1]


@pytest.mark.parametrize("name", ["hed", "hed_scribble", "lineart"])
def test_detectors_of_controlnet_aux_run_from_local_files(annotators, name):
    result = ControlPreprocessor(name, folders=[annotators]).run(video(1, 72, 104))
    assert result.maps.shape == (1, 72, 104, 3) and result.maps.dtype == torch.uint8
    assert torch.equal(result.maps[..., 0], result.maps[..., 2])
    assert len(result.maps.unique()) > 1 or name == "hed_scribble"


def test_scribbles_are_strokes_and_no_soft_edges(annotators):
    maps = {name: ControlPreprocessor(name, folders=[annotators])(video(1)) for name in ("hed", "hed_scribble")}
    assert len(maps["hed"].unique()) > 2
    assert set(maps["hed_scribble"].unique().tolist()) <= {0, 255}


def test_lineart_is_the_coarse_one(annotators):
    from controlnet_aux import LineartDetector

    frame = video(1, 64, 64)
    detector = LineartDetector.from_pretrained(str(annotators / "lllyasviel" / "Annotators"))
    coarse = detector(frame[0].numpy(), coarse=True, detect_resolution=64, image_resolution=64, output_type="np")
    np.testing.assert_array_equal(ControlPreprocessor("lineart", folders=[annotators])(frame)[0].numpy(), coarse)


OPENCV = "pip install opencv-python-headless"
AUX = f"pip install --no-deps controlnet_aux and {OPENCV}"
COMMANDS = {name: f"{OPENCV} onnxruntime" if name.startswith("dwpose") else AUX for name in ALL_NAMES}
COMMANDS |= {"canny": OPENCV, "content": OPENCV, "face_detector": f"{AUX} 'mediapipe<0.10.30'"}
del COMMANDS["tile"]


@pytest.mark.parametrize("name", COMMANDS)
def test_without_its_packages_a_name_says_the_command_that_moves_none(monkeypatch, name):
    for module in ("controlnet_aux", "cv2", "onnxruntime", "mediapipe"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=f"The control preprocessor '{name}' needs ") as caught:
        ControlPreprocessor(name)
    assert f"Install with: {COMMANDS[name]} numpy=={np.__version__} torch==" in str(caught.value)


def test_a_name_without_packages_runs_without_them(monkeypatch):
    for module in ("controlnet_aux", "cv2", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    assert torch.equal(ControlPreprocessor("tile")(video(1)), video(1))


@pytest.mark.parametrize("raised", ["ImportError('libGL.so.1')", "AttributeError('solutions')", "RuntimeError('ABI')"])
def test_a_controlnet_aux_that_fails_to_import_is_named_with_the_command(annotators, tmp_path, monkeypatch, raised):
    (tmp_path / "controlnet_aux.py").write_text(f"raise {raised}\n", encoding="utf-8")
    for module in [name for name in sys.modules if name.partition(".")[0] == "controlnet_aux"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match="for others: pip install --no-deps controlnet_aux and ") as caught:
        ControlPreprocessor("hed", folders=[annotators])
    assert raised.split("'")[1] in str(caught.value)


# ---- poses ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dwpose_files(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `pose` is not installed")
    write_detector(tmp_path / "yolox_l.onnx", [((80, 80, 560, 560), 0.9, 0)])
    write_pose_net(tmp_path / "dw-ll_ucoco_384.onnx")
    return tmp_path


def dots(frames=2, height=128, width=192):
    """Three bright dots, which the test networks take for all points of one person; the last frame is empty."""
    images = torch.zeros(frames + 1, height, width, 3, dtype=torch.uint8)
    for channel, (x, y) in enumerate([(60, 40), (90, 70), (120, 100)]):
        images[:frames, y - 1 : y + 2, x - 1 : x + 2, channel] = 255
    return images


@pytest.mark.parametrize("resolution, size", [(0, (128, 192)), (256, (256, 384))])
def test_poses_come_with_the_picture_of_them(dwpose_files, resolution, size):
    result = ControlPreprocessor("dwpose_body_hand", folders=[dwpose_files]).run(dots(), resolution=resolution)
    assert result.maps.shape == (3, *size, 3)
    assert [len(f.people) for f in result.poses] == [1, 1, 0] and not result.maps[2].any()
    (one,) = result.poses[0].people
    assert (result.poses[0].height, result.poses[0].width) == size
    assert one.points[0] * (192, 128) == pytest.approx((60, 40), abs=2)
    drawn = draw_people([one], *size)  # at the size of the maps, not resized
    np.testing.assert_array_equal(result.maps[0].numpy(), drawn)


@pytest.mark.parametrize(
    "name, places",
    [
        ("dwpose", (BODY, LEFT_HAND, RIGHT_HAND, FACE)),
        ("dwpose_face", (FACE,)),
        ("dwpose_hand", (LEFT_HAND, RIGHT_HAND)),
        ("dwpose_body", (BODY,)),
    ],
)
def test_the_other_parts_are_neither_drawn_nor_returned(dwpose_files, name, places):
    result = ControlPreprocessor(name, folders=[dwpose_files]).run(dots(1))
    (one,) = result.poses[0].people
    for part in (BODY, LEFT_HAND, RIGHT_HAND, FACE):
        assert one.visible[part].any() == (part in places)
    flags = {"body": BODY in places, "hands": LEFT_HAND in places, "face": FACE in places}
    np.testing.assert_array_equal(result.maps[0].numpy(), draw_people([one], 128, 192, **flags))
    assert result.maps[0].any()
