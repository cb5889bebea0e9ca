import folder_paths
import numpy as np
import pytest
import torch
from comfy import model_management
from support.poses import frame, person, write_detector, write_pose_net

from musev_core.errors import MuseVError
from musev_core.frames.images import canny
from musev_core.pose.drawing import draw_people
from musev_core.pose.keypoint_json import read_keypoints, write_keypoints
from musev_pack.nodes.pose import NODES, AlignPose, DrawPose, PreprocessControl

pytest.importorskip("cv2")


def pictures(people_per_frame, height=400, width=200, **parts):
    drawn = [draw_people(people, height, width, **parts) for people in people_per_frame]
    return torch.from_numpy(np.stack(drawn)).float() / 255


def video(frames=2, height=72, width=104):
    blocks = torch.rand(frames, height // 8, width // 8, 3, generator=torch.Generator().manual_seed(0))
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """ComfyUI's models folder, empty but for ours."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    folder = tmp_path / "models" / "controlnet_aux"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def reported(monkeypatch):
    """What the progress bars show."""
    from comfy import utils

    values = []
    monkeypatch.setattr(utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: values.append((value, total)))
    return values


# ---- schema --------------------------------------------------------------------------------------------------------


def test_the_sockets_are_those_of_the_contract():
    found = {
        node.define_schema().node_id: (
            [i.id for i in node.define_schema().inputs],
            [o.io_type for o in node.define_schema().outputs],
        )
        for node in NODES
    }
    assert found == {
        "MuseV_PreprocessControl": (["images", "preprocessor", "resolution"], ["IMAGE", "POSE_KEYPOINT"]),
        "MuseV_AlignPose": (
            ["poses", "reference", "mode", "smoothing", "width", "height"],
            ["POSE_KEYPOINT", "IMAGE"],
        ),
        "MuseV_DrawPose": (["poses", "body", "hands", "face", "width", "height"], ["IMAGE"]),
    }


def test_every_socket_is_explained():
    for node in NODES:
        schema = node.define_schema()
        assert schema.description and all(s.tooltip for s in [*schema.inputs, *schema.outputs])


# ---- preprocess ----------------------------------------------------------------------------------------------------


def test_canny_maps_have_the_frames_size_and_nobody_in_them(weights, reported):
    images = video(3)
    maps, poses = PreprocessControl.execute(images, "canny", 0).result
    assert maps.dtype == torch.float32 and torch.equal(maps, canny(images).float() / 255)
    assert poses == [{"people": [], "canvas_height": 72, "canvas_width": 104}] * 3
    assert reported[0] == (1, 3) and reported[-1] == (3, 3)  # ComfyUI leaves out what comes too fast


def test_a_resolution_brings_the_short_side_to_it(weights):
    assert PreprocessControl.execute(video(1), "tile", 128).result[0].shape == (1, 128, 192, 3)
    with pytest.raises(MuseVError, match="multiple of 64"):
        PreprocessControl.execute(video(1), "tile", 100)


def test_missing_weights_are_asked_for_in_comfyuis_folders(weights):
    with pytest.raises(MuseVError, match=r"yolox_l\.onnx and dw-ll_ucoco_384\.onnx of yzd-v/DWPose") as caught:
        PreprocessControl.execute(video(1), "dwpose_body_hand", 0)
    assert str(weights) in str(caught.value)


def test_weights_of_comfyui_controlnet_aux_are_used(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra `pose` is not installed")
    folder = tmp_path / "custom_nodes" / "comfyui_controlnet_aux" / "ckpts" / "yzd-v" / "DWPose"
    folder.mkdir(parents=True)
    write_detector(folder / "yolox_l.onnx", [])
    write_pose_net(folder / "dw-ll_ucoco_384.onnx")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path / "custom_nodes")], set()))
    images = torch.zeros(2, 128, 192, 3)
    images[0, 39:42, 59:62] = 1
    maps, poses = PreprocessControl.execute(images, "dwpose_body_hand", 0).result
    assert [len(pose["people"]) for pose in poses] == [1, 0]
    assert poses[0]["people"][0]["pose_keypoints_2d"][:2] == pytest.approx((60, 40), abs=2)
    assert maps[0].any() and not maps[1].any()
    assert torch.equal(DrawPose.execute(poses, True, True, False, 0, 0).result[0], maps)


def test_the_interrupt_button_stops_between_two_frames(weights, monkeypatch):
    done = []
    real = model_management.throw_exception_if_processing_interrupted

    def press_after_two():
        done.append(1)
        if len(done) == 2:
            model_management.interrupt_current_processing()
        real()

    monkeypatch.setattr(model_management, "throw_exception_if_processing_interrupted", press_after_two)
    with pytest.raises(model_management.InterruptProcessingException):
        PreprocessControl.execute(video(5), "tile", 0)
    assert len(done) == 2


def test_inputs_are_left_as_they_are(weights):
    images = video(1)
    before = images.clone()
    maps = PreprocessControl.execute(images, "tile", 0).result[0]
    maps.zero_()
    assert torch.equal(images, before)
    poses = write_keypoints([frame(person())])
    AlignPose.execute(poses, poses, "robust", 0, 0, 0)
    assert poses == write_keypoints([frame(person())])


# ---- draw ----------------------------------------------------------------------------------------------------------


def test_poses_are_drawn_at_the_size_of_the_result(reported):
    poses = write_keypoints([frame(person()), frame()])
    drawn = DrawPose.execute(poses, True, False, True, 0, 0).result[0]
    assert torch.equal(drawn, pictures([[person()], []], body=True, hands=False, face=True))
    assert reported[-1] == (2, 2)
    larger = DrawPose.execute(poses, True, True, False, 320, 640).result[0]
    assert torch.equal(larger, pictures([[person()], []], 640, 320))


def test_frames_of_different_sizes_need_a_size():
    poses = write_keypoints([frame(person()), frame(height=8, width=8)])
    with pytest.raises(MuseVError, match="different sizes .*set width and height"):
        DrawPose.execute(poses, True, True, False, 0, 0)
    assert DrawPose.execute(poses, True, True, False, 64, 64).result[0].shape == (2, 64, 64, 3)


def test_something_else_than_poses_is_refused():
    with pytest.raises(MuseVError, match="poses: POSE_KEYPOINT must be a list"):
        DrawPose.execute("people", True, True, False, 0, 0)
    with pytest.raises(MuseVError, match="reference: POSE_KEYPOINT must be a list"):
        AlignPose.execute(write_keypoints([frame(person())]), [], "robust", 0, 0, 0)


# ---- align ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["robust", "original"])
def test_the_first_frame_fits_the_reference(mode):
    reference = write_keypoints([frame(person(at=(-60, -40), size=1.3))])
    video_poses = write_keypoints([frame(person(at=(x, 0))) for x in (10, 20)] + [frame()])
    poses, maps = AlignPose.execute(video_poses, reference, mode, 0, 0, 0).result
    first, second, third = read_keypoints(poses)
    (expected,) = read_keypoints(reference)
    np.testing.assert_allclose(first.people[0].points[:60], expected.people[0].points[:60], atol=1e-9)
    assert len(second.people) == 1 and not third.people
    assert maps.shape == (3, 400, 200, 3) and maps[0].any() and not maps[2].any()
    assert torch.equal(maps, DrawPose.execute(poses, True, True, False, 0, 0).result[0])


def test_aligned_poses_are_drawn_at_a_size_of_their_own():
    poses = write_keypoints([frame(person())])
    aligned, maps = AlignPose.execute(poses, poses, "robust", 0, 128, 256).result
    assert maps.shape == (1, 256, 128, 3) and aligned[0]["canvas_width"] == 200


def test_smoothing_is_odd_or_off():
    poses = write_keypoints([frame(person(at=(x, 0))) for x in (0, 4, 0, 4, 0)])
    with pytest.raises(MuseVError, match=r"odd number of frames \(0 is off\), got 4"):
        AlignPose.execute(poses, poses, "robust", 4, 0, 0)
    smooth, _ = AlignPose.execute(poses, poses, "robust", 3, 0, 0).result
    neck = [pose["people"][0]["pose_keypoints_2d"][3] for pose in smooth]
    assert max(np.abs(np.diff(neck))) < 3
