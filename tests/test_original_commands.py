"""The original's own command lines and task file, run on tiny models in the published layout."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support import faces, original, published

from musev_core.cli import main
from musev_core.file_names import portable_name
from musev_core.frames.image_files import load_image
from musev_core.frames.video import read_video
from musev_core.tasks.files import load_tasks
from musev_core.tasks.results import frame_size
from musev_core.weights.downloaded import FACE_MODELS
from musev_core.weights.published import sources_of


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="the extra `pose` is not installed")
    return original.write_original(tmp_path_factory.mktemp("original"))


@pytest.fixture(autouse=True)
def there(disk, monkeypatch):
    monkeypatch.chdir(disk)
    yield
    logging.getLogger().handlers.clear()
    shutil.rmtree("output", ignore_errors=True)


def results() -> list[Path]:
    return sorted(Path("output").glob("*.*")) if Path("output").exists() else []


def run(*command: str) -> int:
    return main([*command, *original.SMALL])


# ---- the README's command lines


@pytest.mark.parametrize("name", original.COMMANDS)
def test_the_readmes_commands_make_their_videos(name):
    assert run(*original.COMMANDS[name], "--time_size", "4") == 0
    (path,) = results()
    target = path.name.split("_")[0]
    assert target in ("yongen", "dance1") and target in original.COMMANDS[name]
    video = read_video(path)
    # an image comes on top of the frames of a shot, the first frame of a video is one of them
    assert len(video.frames) == (5 if target == "yongen" else 4) and video.fps == 12


def test_the_sizes_of_the_example_are_the_originals(tmp_path):
    tasks = original.example_tasks()
    for task in tasks:
        if task["name"] in original.PICTURES:
            _, task["width"], task["height"], task["img_length_ratio"] = original.PICTURES[task["name"]]
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tasks), encoding="utf-8")
    names = [name for name in original.PICTURES if name != original.MISSING]
    sizes = {task.name: frame_size(task) for task in load_tasks(tmp_path / "tasks.yaml", targets=names)}
    assert sizes["yongen"] == (704, 1216) and sizes["seaside4"] == (1216, 704)
    for name in names:
        _, width, height, ratio = original.PICTURES[name]
        assert sizes[name] == (int(width * ratio // 64 * 64), int(height * ratio // 64 * 64))


def test_all_tasks_run_as_text_to_video_but_the_one_without_its_picture(capsys):
    command = ["generate", "--unet_model_name", "musev", "--sd_model_name", "majicmixRealv6Fp16", *original.WHERE]
    assert run(*command, "--time_size", "2") == 1
    made = {path.name.split("_musev")[0] for path in results()}
    wanted = [name for name in (*original.PICTURES, *original.VIDEOS) if name != original.MISSING]
    assert len(results()) == len(wanted) == 18
    assert all(len(read_video(path).frames) == 3 for path in results())
    assert made == set(map(portable_name, wanted))
    assert original.PICTURES[original.MISSING][0] in capsys.readouterr().err


def test_pictures_for_networks_that_a_command_leaves_out_are_not_looked_for(tmp_path):
    task = {**original.example_tasks()[0], "refer_image": "gone.png", "ipadapter_image": "gone.png"}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump([task]), encoding="utf-8")
    options = ("--unet_model_name", "musev", "--sd_model_name", "fantasticmix_v10", "--output_dir", "output")
    assert run("generate", str(tmp_path / "tasks.yaml"), *options, "--time_size", "2") == 0
    assert len(results()) == 1


# ---- duffy


def duffy(*options: str, **changes) -> int:
    (task,) = (task for task in original.example_tasks() if task["name"] == "duffy")
    file = Path("duffy.yaml")
    file.write_text(yaml.safe_dump([{**task, "height": 64, "width": 64, **changes}]), encoding="utf-8")
    names = ("--unet_model_name", "musev", "--sd_model_name", "fantasticmix_v10", "--output_dir", "output")
    return run("generate", str(file), *names, *original.POSES, "--time_size", "4", *options)


def columns(path: Path) -> list[torch.Tensor]:
    return list(torch.stack([load_image(x)[0] for x in sorted(path.iterdir())]).split(64, dim=2))


SHOWN = ("--save_filetype", "images", "--need_return_videos", "--need_return_condition")


def test_the_condition_picture_of_a_video_of_maps_gets_its_map_from_the_preprocessor():
    assert duffy("--no-video_has_condition", *SHOWN) == 0
    source, result, maps = columns(*Path("output").iterdir())
    assert len(result) == 1 + 4  # the condition frame comes before the video's
    picture, video = original.dots(1, shift=original.SHIFT), read_video("data/source_video/pose-for-Duffy-4.mp4").frames
    assert torch.equal(source[0], picture[0])
    # the picture's own pose, drawn; then the video as it is
    assert not torch.equal(maps[0], picture[0]) and (maps[0] > 0).sum() > (picture > 0).sum()
    for i in range(4):
        assert torch.equal(maps[1 + i], video[i]) and torch.equal(source[1 + i], video[i])


def test_a_video_that_begins_with_the_condition_needs_no_preprocessor():
    assert duffy(*SHOWN) == 0
    _, result, maps = columns(*Path("output").iterdir())
    video = read_video("data/source_video/pose-for-Duffy-4.mp4").frames
    assert len(result) == 4 and torch.equal(maps, video[:4])


def middle(drawn: torch.Tensor) -> torch.Tensor:
    """The middle of what is not black, (y, x) in pixels."""
    return (drawn > 0).any(-1).nonzero().float().mean(0)


def test_poses_are_aligned_to_the_picture():
    video = {"video_is_middle": False, "video_path": "data/source_video/dance.mp4"}
    for align, shift in ((("--pose_align",), 0), ((), original.SHIFT)):
        shutil.rmtree("output", ignore_errors=True)
        assert duffy("--no-video_has_condition", *align, *SHOWN, **video) == 0
        source, result, maps = columns(*Path("output").iterdir())
        assert len(result) == 5 and torch.equal(source[0], original.dots(1, shift=original.SHIFT)[0])
        for i in range(1, 5):
            assert middle(maps[0]) - middle(maps[i]) == pytest.approx(shift, abs=2)


@pytest.mark.parametrize(
    "options, changes, message",
    [
        ((), {}, "has no poses to align any more"),
        (("--controlnet_name", "canny"), {"video_is_middle": False}, "controlnet_canny"),
        (
            ("--controlnet_name", "canny", "--controlnet", "canny=checkpoints/controlnet/control_v11p_sd15_openpose"),
            {"video_is_middle": False},
            "finds no bodies",
        ),
        ((), {"video_is_middle": False, "condition_images": None}, "condition_images"),
        ((), {"video_is_middle": False, "video_path": None}, "video_path: missing"),
        (("--annotators", "nowhere", "--checkpoints", "nowhere"), {"video_is_middle": False}, "nowhere"),
    ],
)
def test_where_poses_cannot_be_aligned_is_said_before_anything_is_loaded(options, changes, message, capsys):
    assert duffy("--pose_align", "--musev", "nowhere", *options, **changes) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and results() == []


# ---- options


def image_task() -> str:
    task = {**original.example_tasks()[0], "refer_image": None, "ipadapter_image": None}
    Path("one.yaml").write_text(yaml.safe_dump([task]), encoding="utf-8")
    return "one.yaml"


BASE = ("--sd_model_name", "fantasticmix_v10", "--output_dir", "output", "--time_size", "2")
PLAIN = ("--unet_model_name", "musev", *BASE)
REFERENCED = ("--unet_model_name", "musev_referencenet", *BASE)


@pytest.mark.parametrize("name", original.HARMLESS)
def test_options_at_their_harmless_default_pass(name):
    with pytest.raises(SystemExit) as stop:  # after all other options were understood
        main(["generate", f"--{name}", original.HARMLESS[name], "--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize("name", ["redraw_condition_image_with_facein"])
def test_switches_of_what_does_not_exist_pass(name):
    with pytest.raises(SystemExit) as stop:
        main(["generate", f"--{name}", "--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize("name", original.TURNED_OFF)
def test_a_switch_that_the_original_turns_off_is_warned_of(name, caplog):
    for option, warned in ((f"--{name}", True), (f"--no-{name}", False)):
        caplog.clear()
        with pytest.raises(SystemExit):
            main(["generate", option, "--help"])
        assert (f"Write --no-{name}" in caplog.text) == warned


@pytest.mark.parametrize(
    "options, message",
    [
        (("--lcm_model_name", "lmc"), "--lcm_model_name: there is no 'lmc', only lcm"),
        (("--lcm_model_name", "lcm"), "musev models download lcm --layout original --to checkpoints"),
        (("--unet_model_name", "musev_reference"), "Did you mean 'musev_referencenet'"),
        (("--sd_model_name", "majicmix"), "There is no model 'majicmix'"),
        (("--referencenet_model_name", "referencenet"), "--referencenet_model_name: there is no 'referencenet'"),
        (("--referencenet_model_name", "musev_referencenet", "--checkpoints", "elsewhere"), "elsewhere"),
        (("--ip_adapter_model_name", "IPAdapterPro"), "Did you mean 'IPAdapter"),
        (("--ip_adapter_model_name", "IPAdapterPlus"), "musev models download ip_adapter_plus"),
        (("--ip_adapter_model_name", "IPAdapterFaceID"), "--ip_adapter_face_model_name IPAdapterFaceID"),
        (("--ip_adapter_face_model_name", "IPAdapterFaceID"), "musev models download faceid"),
        (("--ip_adapter_face_model_name", "FaceID"), "there is no 'FaceID', only IPAdapterFaceID"),
        (
            ("--variant", "musev", "--referencenet_model_name", "musev_referencenet"),
            "musev has no layers for it",
        ),
        (("--variant", "musev", "--ip_adapter_model_name", "musev_referencenet"), "musev has no layers for it"),
        (("--scheduler", "eular"), "eular"),
        (("--face_image_path", "data/images/man.jpg"), "--face_image_path has no effect in this run"),
        (("--ipadapter_image_path", "data/images/man.jpg"), "--ipadapter_image_path has no effect in this run"),
        (("--ip_adapter_scale", "0.5"), "--ip_adapter_scale has no effect in this run"),
        (
            ("--referencenet_model_name", "None", "--referencenet_image_path", "data/images/man.jpg"),
            "--referencenet_image_path has no effect in this run: it needs a ReferenceNet",
        ),
        (("--vision_clip_extractor_class_name", "Clip"), "--vision_clip_extractor_class_name: there is no 'Clip'"),
        (("--negprompt_cfg_path", "configs/model/negative_prompt.py"), "presets Empty and V1 to V5 are built in"),
        (("--img_edge_ratio", "0.5"), "img_length_ratio"),
        (("--negative_prompt", "V6"), "negative_prompt: there is no preset of negative prompts 'V6'"),
        (("--video_negative_prompt", "v2"), "Did you mean 'V2'"),
        (("--sd_model_cfg_path", "table.py"), "table.py is Python code, which is never executed"),
        (("--unet_model_cfg_path", "table.py"), "table.py is Python code, which is never executed"),
        (("--referencenet_model_cfg_path", "table.py"), "table.py is Python code, which is never executed"),
        (("--ip_adapter_model_cfg_path", "table.py"), "table.py is Python code, which is never executed"),
        (("--ip_adapter_face_model_cfg_path", "table.py"), "table.py is Python code, which is never executed"),
        (("--lcm_model_cfg_path", "table.py"), "table.py is Python code, which is never executed"),
    ],
)
def test_named_options_are_refused_rather_than_ignored(options, message, capsys):
    Path("table.py").write_text("MODEL_CFG = {}", encoding="utf-8")
    assert run("generate", image_task(), *REFERENCED, *options) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and results() == []


@pytest.mark.parametrize("option", ["referencenet", "lcm", "ip_adapter", "ip_adapter_face"])
def test_a_name_is_looked_up_in_a_yaml_table(option, capsys):
    Path("table.yaml").write_text("mine: checkpoints/gone.safetensors\n", encoding="utf-8")
    names = (f"--{option}_model_cfg_path", "table.yaml", f"--{option}_model_name")
    assert run("generate", image_task(), *REFERENCED, *names, "mine") == 1
    assert "gone.safetensors does not exist" in capsys.readouterr().err
    assert run("generate", image_task(), *REFERENCED, *names, "other") == 1
    assert "There is no model 'other'" in capsys.readouterr().err


def frames(*options: str) -> torch.Tensor:
    shutil.rmtree("output", ignore_errors=True)
    assert run("generate", image_task(), *options) == 0
    return read_video(*results()).frames


def test_the_vae_that_was_downloaded_is_the_one_used(disk):
    before = frames(*PLAIN)
    folder = disk / "checkpoints" / "vae" / "sd-vae-ft-mse"
    original.write_vae(folder, seed=1)
    try:
        assert not torch.equal(frames(*PLAIN), before)
    finally:
        shutil.rmtree(folder.parent)


def own_place(name: str) -> Path:
    """Where the first file of a download lies in the original's layout."""
    return Path("checkpoints") / sources_of([name])[0].original


def write_faceid() -> None:
    published.write_adapter(own_place("faceid"), "faceid", 0)
    (Path("checkpoints") / FACE_MODELS / "models" / "buffalo_l").mkdir(parents=True, exist_ok=True)


NAMED = {
    "LCM": (
        lambda: published.write_lora(own_place("lcm"), 0),
        PLAIN,
        ("--lcm_model_name", "lcm"),
    ),
    "IP-Adapter": (
        lambda: published.write_adapter(own_place("ip_adapter"), "plain", 0),
        (*REFERENCED, *original.ENCODER),
        ("--ip_adapter_model_name", "IPAdapter"),
    ),
    "FaceID": (
        write_faceid,
        REFERENCED,
        ("--ip_adapter_face_model_name", "IPAdapterFaceID", "--face_image_path", "data/images/yongen.jpeg"),
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_network_that_is_called_by_its_name_takes_part(name, monkeypatch):
    write, given, named = NAMED[name]
    faces.install(monkeypatch)
    before = frames(*given)
    write()
    assert torch.equal(frames(*given), before)  # what only lies there is not used
    assert not torch.equal(frames(*given, *named), before)


def test_negative_presets_say_which_embeddings_are_missing(disk, caplog):
    before = frames(*PLAIN)
    assert "embeddings badhandv4, ng_deepnegative_v1_75t, which are not there" in caplog.text
    caplog.clear()
    folder = disk / "checkpoints" / "embedding"
    width = published.text_state()["text_model.embeddings.token_embedding.weight"].shape[1]
    for name in ("badhandv4", "ng_deepnegative_v1_75t"):
        published.save({"emb_params": torch.ones(2, width)}, folder / f"{name}.safetensors")
    try:
        assert not torch.equal(frames(*PLAIN), before)
        assert "which are not there" not in caplog.text
        assert run("generate", image_task(), *PLAIN, "--video_negative_prompt", "V4", "--base", "nowhere") == 1
        assert "embeddings EasyNegativeV2, bad_prompt_version2-neg, which" in caplog.text
    finally:
        shutil.rmtree(folder)


def test_results_of_other_networks_have_other_names():
    assert run("generate", image_task(), *PLAIN) == run("generate", image_task(), *PLAIN, "--scheduler", "ddim") == 0
    assert len(results()) == 2


# ---- musev pose align


def test_the_alignment_command_of_the_originals_branch(disk):
    assert main(["pose", "align", *original.ALIGN]) == 0
    made = disk / "data" / "pose_align_results"
    aligned = read_video(made / "align_pose_video.mp4")
    assert aligned.frames.shape == (12, 128, 128, 3) and aligned.fps == 8 and aligned.frames.any()
    assert load_image(made / "ref_img_pose.jpg").shape == (1, 128, 128, 3)
    assert read_video(made / "align_demo.mp4").frames.shape == (12, 512, 5 * 512, 3)
    options = ("--max_frame", "3", "--smooth_method", "savgol", "--winlen", "3", "--detect_resolution", "64")
    assert main(["pose", "align", *original.ALIGN, *options]) == 0  # nothing is overwritten
    assert len(read_video(made / "align_pose_video-2.mp4").frames) == 3 and (made / "align_demo-2.mp4").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "musev pose align VIDEO PICTURE"),
        (["data/source_video/dance.mp4", "data/images/river.jpeg", "--preprocessor", "canny"], "finds no bodies"),
        (["data/source_video/dance.mp4", "data/images/man.jpg", "--max_frame", "0"], "--max_frames"),
        (["data/source_video/dance.mp4", "data/images/man.jpg", "--detect_resolution", "100"], "multiple of 64"),
        (["data/source_video/dance.mp4", "data/images/man.jpg", "--winlen", "4"], "window"),
        (["data/source_video/dance.mp4", "data/images/man.jpg", "--fps", "nan"], "fps"),
        (["data/source_video/dance.mp4", "data/images/man.jpg", "--output", "x.avi"], "Unknown video format '.avi'"),
        (["data/source_video/dance.mp4", "data/images/man.jpg", "--outfn_ref_img_pose", "x.bmp"], "'.bmp'"),
        (["data/source_video/dance.mp4", "data/images/man.jpg", "--checkpoints", "nowhere"], "yolox_l.onnx"),
        (["gone.mp4", "data/images/man.jpg"], "gone.mp4"),
    ],
)
def test_wrong_alignments_are_one_sentence(arguments, message, capsys):
    assert main(["pose", "align", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
