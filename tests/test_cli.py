"""The command line, run as a person runs it, on small models in the published layout."""

import logging
import wave
from pathlib import Path

import pytest
import torch
from support import published

from musev_core.cli import main
from musev_core.frames.audio import Sound, has_sound
from musev_core.frames.image_files import load_image, save_image
from musev_core.frames.joining import join_videos
from musev_core.frames.segments import ResumableVideo
from musev_core.frames.video import read_video, write_video
from musev_core.models.unet import MuseVUNet
from musev_core.tasks import making
from musev_core.tasks.dead import DEAD_PARAMETERS
from musev_core.weights.published import PUBLISHED


@pytest.fixture(autouse=True)
def quiet():
    yield
    logging.getLogger().handlers.clear()


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    published.write_musev(root / "motion")
    published.write_base(root / "base")
    published.write_image_encoder(root / "image_encoder")
    published.write_controlnet(root / "canny")
    picture = torch.arange(64 * 64 * 3).reshape(1, 64, 64, 3) % 251
    save_image(root / "picture.png", picture.to(torch.uint8))
    clip = torch.stack([torch.full((64, 64, 3), 40 * i) for i in range(5)]).to(torch.uint8)
    write_video(root / "driving.mp4", clip, fps=8)
    return root


def run(disk: Path, out: Path, tasks: str, *options: str) -> int:
    file = out / "tasks.yaml"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(tasks, encoding="utf-8")
    return main(
        [
            "generate",
            str(file),
            *("--musev", str(disk / "motion")),
            *("--base", str(disk / "base")),
            *("--image_encoder", str(disk / "image_encoder")),
            *("--output_dir", str(out / "results"), "--video_num_inference_steps", "1", "--num_inference_steps", "1"),
            *("--device", "cpu", "--seed", "1"),
            *options,
        ]
    )


def results(out: Path) -> list[Path]:
    return sorted((out / "results").iterdir()) if (out / "results").exists() else []


def image_task(disk: Path, extra: str = "") -> str:
    return f"- name: one\n  prompt: a b\n  condition_images: {disk / 'picture.png'}\n  time_size: 3\n{extra}"


def test_image_to_video_writes_condition_and_generated_frames(disk, tmp_path, capsys):
    assert run(disk, tmp_path, image_task(disk)) == 0
    (path,) = results(tmp_path)
    assert str(path) in capsys.readouterr().out
    video = read_video(path)
    assert video.frames.shape == (4, 64, 64, 3) and video.fps == 4


def test_frames_are_written_while_later_ones_are_still_noise(disk, tmp_path, monkeypatch):
    calls, written = [], []
    forward, write = MuseVUNet.forward, ResumableVideo.write

    def counted(net, *args, **kwargs):
        calls.append(1)
        return forward(net, *args, **kwargs)

    def watched(writer, frames):
        written.append(len(calls))
        write(writer, frames)

    monkeypatch.setattr(MuseVUNet, "forward", counted)
    monkeypatch.setattr(ResumableVideo, "write", watched)
    monkeypatch.setattr(making, "PART", 4)
    task = image_task(disk).replace("time_size: 3", "time_size: 24")
    assert run(disk, tmp_path, task, "--context_frames", "6", "--context_overlap", "2") == 0
    (path,) = results(tmp_path)
    assert len(read_video(path).frames) == 25
    assert written[0] < written[-1] == len(calls)


def test_a_name_that_is_taken_is_found_before_the_work(disk, tmp_path, monkeypatch, capsys):
    assert run(disk, tmp_path, image_task(disk)) == 0
    (path,) = results(tmp_path)
    path.unlink()
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "0000.png").write_bytes(b"mine")
    monkeypatch.setattr(MuseVUNet, "forward", None)  # would end the run otherwise
    assert run(disk, tmp_path, image_task(disk), "--save_images") == 1
    said = capsys.readouterr().err
    assert folder.name in said and "exists already" in said
    assert results(tmp_path) == [folder] and (folder / "0000.png").read_bytes() == b"mine"


def test_existing_results_are_skipped_and_overwritten_only_on_request(disk, tmp_path, caplog):
    run(disk, tmp_path, image_task(disk))
    (path,) = results(tmp_path)
    path.write_bytes(b"mine")
    with caplog.at_level(logging.INFO):
        assert run(disk, tmp_path, image_task(disk)) == 0
    assert path.read_bytes() == b"mine" and "is skipped" in caplog.text
    assert run(disk, tmp_path, image_task(disk), "--overwrite") == 0
    assert len(read_video(path).frames) == 4


def test_same_seed_same_file_and_other_seed_other_file(disk, tmp_path):
    run(disk, tmp_path / "a", image_task(disk), "--save_filetype", "images")
    run(disk, tmp_path / "b", image_task(disk), "--save_filetype", "images")
    run(disk, tmp_path / "c", image_task(disk), "--save_filetype", "images", "--seed", "2")
    frames = [sorted(results(tmp_path / x)[0].glob("*.png")) for x in "abc"]
    assert [len(f) for f in frames] == [4, 4, 4]
    contents = [[p.read_bytes() for p in f] for f in frames]
    assert contents[0] == contents[1] and contents[0][0] == contents[2][0] and contents[0][1:] != contents[2][1:]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_other_formats(disk, tmp_path, kind):
    assert run(disk, tmp_path, image_task(disk), "--save_filetype", kind) == 0
    assert [p.suffix for p in results(tmp_path)] == [f".{kind}"]


def test_text_to_image_to_video(disk, tmp_path):
    task = "- name: t\n  prompt: a\n  height: 64\n  width: 64\n  time_size: 3\n"
    assert run(disk, tmp_path, task) == 0
    assert len(read_video(results(tmp_path)[0]).frames) == 3


def test_chained_shots(disk, tmp_path):
    assert run(disk, tmp_path, image_task(disk, "  n_batch: 2\n")) == 0
    assert len(read_video(results(tmp_path)[0]).frames) == 1 + 2 * 3


def test_video_to_video_with_a_controlnet_shows_source_and_maps_beside_it(disk, tmp_path):
    task = (
        f"- name: v\n  prompt: a\n  video_path: {disk / 'driving.mp4'}\n  condition_images: {disk / 'picture.png'}\n"
        "  time_size: 4\n  controlnet_name: canny\n  need_return_videos: true\n  need_return_condition: true\n"
    )
    assert run(disk, tmp_path, task, "--controlnet", f"canny={disk / 'canny'}") == 0
    assert read_video(results(tmp_path)[0]).frames.shape == (4, 64, 3 * 64, 3)


def test_parts_of_a_video_are_made_alone_and_joined(disk, tmp_path, capsys):
    task = image_task(disk).replace("time_size: 3", "time_size: 24")
    windows = ("--context_frames", "6", "--context_overlap", "2", "--video_num_inference_steps", "3")
    assert run(disk, tmp_path, task, *windows, "--save_filetype", "images") == 0
    (whole,) = results(tmp_path)
    assert run(disk, tmp_path, task, *windows, "--save_filetype", "images", "--frames", "7:16") == 0
    (part,) = set(results(tmp_path)) - {whole}
    assert part.name == f"{whole.name}_frames_000007_000016"
    assert torch.equal(read_video(part).frames, read_video(whole).frames[7:16])
    for frames in (":9", "9:"):
        assert run(disk, tmp_path / "mp4", task, *windows, "--frames", frames) == 0
    files = results(tmp_path / "mp4")
    assert [file.name.split("_frames_")[1] for file in files] == ["000000_000009.mp4", "000009_000025.mp4"]
    assert main(["join", *map(str, files)]) == 0
    assert len(read_video(tmp_path / "mp4" / "results" / f"{whole.name}.mp4").frames) == 25


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ("2:9", r"--frames 2:9: a part of this video lies within 0:4"),
        ("4:", r"--frames 4:4: a part of this video lies within 0:4"),
    ],
)
def test_frames_that_the_video_does_not_have(disk, tmp_path, frames, said, monkeypatch, capsys):
    monkeypatch.setattr(MuseVUNet, "forward", None)  # would end the run otherwise
    assert run(disk, tmp_path, image_task(disk), "--frames", frames) == 1
    assert said in capsys.readouterr().err and results(tmp_path) == []
    assert run(disk, tmp_path, image_task(disk), "--frames", "1:2", "--noise_draw", "original") == 1
    assert "take noise_draw: frames for a part of it" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--frames", "3"), ("--frames", "a:b"), ("--share", "3/2"), ("--share", "0/2")])
def test_parts_and_shares_that_are_none(disk, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as ended:
        run(disk, tmp_path, image_task(disk), *options)
    assert ended.value.code == 2 and "expected" in capsys.readouterr().err


@pytest.mark.parametrize("resume", [True, False])
def test_a_video_is_made_anew_on_request(disk, tmp_path, resume, monkeypatch, caplog):
    def full(writer, frames):
        write(writer, frames)
        raise OSError(28, "No space left on device")

    write = ResumableVideo.write
    task = image_task(disk).replace("time_size: 3", "time_size: 24")
    with monkeypatch.context() as patch:
        patch.setattr(ResumableVideo, "write", full)
        assert run(disk, tmp_path, task, "--save_filetype", "images") == 1
    with caplog.at_level(logging.INFO):
        again = () if resume else ("--no-resume",)
        assert run(disk, tmp_path, task, "--save_filetype", "images", *again) == 0
    assert ("frames are finished already" in caplog.text) == resume
    (path,) = results(tmp_path)
    assert len(read_video(path).frames) == 25


def test_shares_make_everything_once(disk, tmp_path):
    tasks = image_task(disk) + image_task(disk).replace("name: one", "name: two") + "  n_repeat: 3\n"
    made = []
    for share in ("1/3", "2/3", "3/3"):
        assert run(disk, tmp_path / share[0], tasks, "--share", share) == 0
        assert run(disk, tmp_path / share[0], tasks, "--share", share) == 0  # what exists changes no share
        made.append([path.name for path in results(tmp_path / share[0])])
    assert [len(names) for names in made] == [2, 1, 1]
    assert len(set(sum(made, []))) == 4


def test_the_driving_videos_sound_is_heard_with_the_result(disk, tmp_path):
    driving = tmp_path / "driving.mp4"
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8000))
    join_videos(driving, [disk / "driving.mp4"], fps=8, sound=Sound(sound))
    task = f"- name: one\n  prompt: a b\n  video_path: {driving}\n  time_size: 5\n  fps: 8\n"
    for audio, heard in (((), True), (("--audio", "none"), False), (("--audio", str(sound)), True)):
        out = tmp_path / "-".join(["out", *(Path(name).name for name in audio)])
        assert run(disk, out, task, *audio) == 0
        (path,) = results(out)
        assert has_sound(path) == heard and len(read_video(path).frames) == 5


def test_write_info_marks_every_frame_with_name_and_number(disk, tmp_path):
    for name, options in (("plain", ()), ("marked", ("--write_info",))):
        assert run(disk, tmp_path / name, image_task(disk), "--save_filetype", "images", *options) == 0
    plain, marked = (
        [load_image(path)[0].int() for path in sorted(results(tmp_path / name)[0].glob("*.png"))]
        for name in ("plain", "marked")
    )
    for before, after in zip(plain, marked, strict=True):
        changed = (before != after).any(-1)
        assert changed[:16].any() and changed[-16:].any()  # top and bottom
        assert not changed[16:-16].any() and not changed[:, 40:].any()
        towards_red = after[changed] - before[changed]
        assert (towards_red[:, 0] >= 0).all() and (towards_red[:, 1:] <= 0).all()
    numbers = [(a - b)[-16:] for a, b in zip(marked, plain, strict=True)]
    assert not torch.equal(numbers[0], numbers[1])


def test_pictures_for_networks_that_were_left_out_are_not_used_and_named(disk, tmp_path, caplog):
    pictures = "  refer_image: ${.condition_images}\n  ipadapter_image: ${.condition_images}\n"
    left_out = ("--referencenet_model_name", "None", "--ip_adapter_model_name", "None")
    # the ReferenceNet beside the UNet is left out as well as the image prompt
    assert run(disk, tmp_path, image_task(disk, pictures), *left_out) == 0
    assert "refer_image is not used" in caplog.text and "ipadapter_image is not used" in caplog.text
    assert len(results(tmp_path)) == 1


def test_models_check_says_what_is_there_and_what_is_missing(disk, capsys, tmp_path):
    assert main(["models", "check", str(disk / "motion")]) == 0
    out = capsys.readouterr().out
    assert "musev_referencenet UNet" in out and "ReferenceNet:" in out and "image projection:" in out
    alone = published.write_musev(tmp_path) / "unet"
    moved = tmp_path / "elsewhere" / "alone"
    moved.parent.mkdir()
    alone.rename(moved)
    assert main(["models", "check", str(moved)]) == 1
    assert "no ReferenceNet" in capsys.readouterr().out


def test_models_check_names_missing_tensors(tmp_path, capsys):
    folder = published.write_musev(tmp_path, arch="musev", motion_only=True)
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    gone = [name for name in state if name.startswith("mid_block.temp_convs.0.conv1")]
    published.save({name: x for name, x in state.items() if name not in gone}, path)
    assert main(["models", "check", str(path)]) == 1
    assert gone[0] in capsys.readouterr().out


def test_models_download_without_a_name_lists_what_there_is_and_fetches_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["models", "download"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PUBLISHED) and "non-commercial research only" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(DEAD_PARAMETERS))
def test_dead_options_are_refused_by_name(name, tmp_path, capsys):
    assert main(["generate", "tasks.yaml", f"--{name}", "7"]) == 1
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate"], "give a task file"),
        (["generate", "missing.yaml"], "missing.yaml"),
        (["generate", "tasks.py"], "never executed"),
        (["models", "check", "nowhere"], "no file or folder"),
        (["models", "download", "musev_reference"], "Did you mean 'musev_referencenet'?"),
        (["demo", "--frames", "0"], "--frames"),
        (["demo", "--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_errors_are_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tasks.py").write_text("TASKS = []", encoding="utf-8")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_controlnet_that_is_not_given_is_named_before_anything_is_loaded(disk, tmp_path, capsys):
    task = (
        f"- name: v\n  prompt: a\n  video_path: {disk / 'driving.mp4'}\n  condition_images: {disk / 'picture.png'}\n"
        "  controlnet_name: canny\n"
    )
    assert run(disk, tmp_path, task, "--musev", "nowhere") == 1
    assert "--controlnet canny=PATH" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["generate", "-h"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--motion_speed", "--context_overlap", "--video_guidance_scale_end", "--overwrite", "--controlnet"):
        assert option in out


def test_help_of_download_shows_how_it_is_used(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["models", "download", "-h"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "--to DIR" in out and "HF_ENDPOINT" in out and "~/ComfyUI" in out
