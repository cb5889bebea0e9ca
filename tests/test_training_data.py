"""What training reads: videos, tables, extracted features; broken ones are reported and left out."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from support import golden_models as models
from support import published

from musev_core.errors import MuseVError
from musev_core.frames.video import write_video
from musev_core.loading import ModelFiles, load_text_encoder, load_tokenizer, load_vae
from musev_core.training.clip_sampling import ClipRule, choose_clip
from musev_core.training.extract import Extractor, extract
from musev_core.training.features import (
    MAX_PEOPLE,
    POINTS,
    FeatureClips,
    FeatureKeys,
    draw_moments,
    h5py,
    pose_maps,
    stored_points,
)
from musev_core.training.sources import class_caption, find_features, find_sources
from musev_core.training.video_clips import VideoClips

KEYS = FeatureKeys(width=32, height=16)
RULE = ClipRule(num_frames=3, sample_rate=1, max_sample_rate=2)


# ------------------------------------------------------------------------------------------ clips


def test_clips_are_even_and_lie_in_the_video():
    for seed in range(200):
        rule = ClipRule(num_frames=12, sample_rate=4, max_sample_rate=8)
        choice = choose_clip(150, rule, np.random.default_rng(seed))
        (rate,) = set(np.diff(choice.frames))
        assert 4 <= rate <= 8 and choice.frames[0] >= 0 and choice.frames[-1] < 150
        assert choice.frame_index == tuple(k * rate * 2 for k in range(12))  # 8 to 16 at every second stored frame
        (reference,) = choice.references
        assert not choice.frames[0] <= reference < choice.frames[0] + 12 * rate


def test_the_rate_falls_for_short_videos_and_too_short_ones_are_refused():
    assert set(np.diff(choose_clip(30, ClipRule(), np.random.default_rng(0)).frames)) == {2}
    assert len(choose_clip(12, ClipRule(), np.random.default_rng(0)).references) == 1
    with pytest.raises(MuseVError, match="needs 12 stored frames, but the video has 11"):
        choose_clip(11, ClipRule(), np.random.default_rng(0))


# ------------------------------------------------------------------------------------------ videos


def moving_video(frames: int, height: int = 16, width: int = 32) -> torch.Tensor:
    video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    for i in range(frames):
        video[i] = 8 * i
    return video


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a.mp4", moving_video(20), fps=8)
    write_video(folder / "b.mp4", moving_video(12), fps=8)
    (folder / "a.txt").write_text("a grey picture\n", encoding="utf-8")
    write_video(folder / "short.mp4", moving_video(4), fps=8)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


def test_folders_and_tables_list_videos_with_captions(videos, tmp_path):
    found = {source.path.name: source.caption for source in find_sources([videos])}
    assert found == {"a.mp4": "a grey picture", "b.mp4": "", "broken.mp4": "", "short.mp4": ""}
    table = tmp_path / "videos.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["video_path", "prompt"], ["videos/b.mp4", "b"], ["videos/a.mp4", "a"]])
    assert [(s.path, s.caption, s.feature_name) for s in find_sources([table])] == [
        (videos / "b.mp4", "b", "videos/b"),
        (videos / "a.mp4", "a", "videos/a"),
    ]


def test_captions_are_utf8_whatever_the_system_prefers(videos):
    (videos / "a.txt").write_bytes("\ufeffein M\u00e4dchen\n".encode())  # as Windows' editor writes it
    assert next(iter(find_sources([videos]))).caption == "ein M\u00e4dchen"
    (videos / "a.txt").write_bytes(b"ein M\xe4dchen")
    with pytest.raises(MuseVError, match=r"caption .*a\.txt cannot be read: .*save it as UTF-8"):
        find_sources([videos])


def test_webvid_tables_and_ucf101_classes_are_understood(tmp_path):
    table = tmp_path / "webvid.csv"
    table.write_text(
        "videoid,page_dir,name,duration\n17,000001_000050,A dog,PT00H00M10S\n18,,A cat,PT00H00M09S\n", encoding="utf-8"
    )
    first, second = find_sources([table], video_dir=tmp_path / "video")
    assert (first.path, first.caption) == (tmp_path / "video" / "000001_000050" / "17.mp4", "A dog")
    assert second.feature_name == "pagedir_none/18"
    assert class_caption(Path("ApplyLipstick/v_ApplyLipstick_g01_c01.avi")) == "apply lipstick"


def test_broken_and_short_videos_are_reported_and_left_out(videos, caplog):
    clips = VideoClips(find_sources([videos]), RULE, 16, 32, seed=0)
    assert [source.path.name for source, _ in clips.videos] == ["a.mp4", "b.mp4"]
    assert "broken.mp4 is left out" in caplog.text
    assert "it has 2 frames at every 2th, a clip needs 3" in caplog.text


def test_a_video_sample_shows_the_frames_it_says(videos):
    clips = VideoClips(find_sources([videos]), RULE, 16, 32, seed=0)
    for number in range(6):
        sample, again = clips[number], clips[number]
        assert torch.equal(sample["frames"], again["frames"])
        assert sample["frames"].shape == (3, 16, 32, 3) and sample["references"].shape == (1, 16, 32, 3)
        values = sample["frames"].float().mean((1, 2, 3)) / 8  # frame numbers
        steps = values.diff()
        assert torch.allclose(steps, steps.mean().round().expand_as(steps), atol=0.3)
        assert sample["frame_index"].tolist() == [round(x) for x in (torch.arange(3) * steps.mean()).tolist()]


def test_no_usable_video_is_an_error(videos):
    with pytest.raises(MuseVError, match="none of the 4 videos"):
        VideoClips(find_sources([videos]), ClipRule(num_frames=100), 16, 32, seed=0)


# ------------------------------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def extractor(tmp_path_factory) -> Extractor:
    base = published.write_base(tmp_path_factory.mktemp("base"))
    encoder = models.image_encoder(published.SEED)

    def poses(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = np.full((1, POINTS, 2), 0.5)
        points[:, :18, 1] = np.linspace(0.1, 0.9, 18)
        return points, np.ones((1, POINTS))

    text = (load_tokenizer(ModelFiles(musev=base, base=base)), load_text_encoder(base, torch.float32))
    return Extractor(KEYS, load_vae(base), text, encoder, poses)


def test_extracted_features_have_the_published_layout(videos, tmp_path, extractor):
    counts = extract(find_sources([videos]), extractor, tmp_path / "emb")
    assert counts == {"written": 3, "skipped": 0, "broken": 1}
    with h5py().File(tmp_path / "emb" / "a.h5py") as file:
        shapes = {name: (array.shape, str(array.dtype)) for name, array in file.items() if name != "tag"}
        assert shapes == {
            "CompVis_stable-diffusion-v1-4_vae_w=32_h=16_encoder_quant_emb": ((10, 8, 2, 4), "float16"),
            "CompVis_stable-diffusion-v1-4_vae_w=32_h=16_sample_indexs": ((10,), "uint32"),
            "CompVis_stable-diffusion-v1-4_CLIPEncoderLayer_last_hidden_state_0": ((1, 77, 32), "float16"),
            "CLIPVisionModelWithProjection_ip_adapter_w=32_h=16_image_embeds": ((10, 24), "float16"),
            "lllyasviel_control_v11p_sd15_openpose_dwpose_w=32_h=16_pose": ((10, MAX_PEOPLE, POINTS, 3), "float32"),
        }
        assert list(file[KEYS.frames]) == list(range(0, 20, 2))
        assert file["tag"][0].decode() == "a grey picture"


def test_extraction_skips_what_exists_and_adds_what_is_missing(videos, tmp_path, extractor):
    sources = [source for source in find_sources([videos]) if source.path.name == "a.mp4"]
    without_pose = Extractor(KEYS, extractor.vae, extractor.text, extractor.image_encoder)
    assert extract(sources, without_pose, tmp_path)["written"] == 1
    path = tmp_path / "a.h5py"
    with h5py().File(path) as file:
        before = file[KEYS.moments][:]
        assert KEYS.pose not in file
    assert extract(sources, extractor, tmp_path)["written"] == 1
    with h5py().File(path) as file:
        assert np.array_equal(file[KEYS.moments], before) and KEYS.pose in file
    unchanged = path.stat().st_mtime_ns
    assert extract(sources, extractor, tmp_path) == {"written": 0, "skipped": 1, "broken": 0}
    assert path.stat().st_mtime_ns == unchanged


def test_an_unreadable_feature_file_is_written_anew(videos, tmp_path, extractor):
    sources = [source for source in find_sources([videos]) if source.path.name == "b.mp4"]
    (tmp_path / "b.h5py").write_bytes(b"the machine was switched off here")
    assert extract(sources, extractor, tmp_path)["written"] == 1
    assert FeatureClips([tmp_path / "b.h5py"], KEYS, RULE, seed=0).files


def test_feature_samples_are_what_the_objective_wants(videos, tmp_path, extractor, caplog):
    extract(find_sources([videos]), extractor, tmp_path)
    (tmp_path / "broken.h5py").write_bytes(b"")
    clips = FeatureClips(find_features([tmp_path]), KEYS, RULE, seed=0, poses=True)
    assert [path.name for path in clips.files] == ["a.h5py", "b.h5py"]
    assert "broken.h5py is left out" in caplog.text and "2 stored frames, a clip needs 3" in caplog.text
    sample, again = clips[5], clips[5]
    assert all(torch.equal(x, again[name]) for name, x in sample.items())
    assert {name: tuple(x.shape) for name, x in sample.items()} == {
        "latents": (4, 3, 2, 4),
        "frame_index": (3,),
        "text": (77, 32),
        "reference": (4, 1, 2, 4),
        "image": (1, 24),
        "pose": (3, 3, 16, 32),
    }
    assert sample["pose"].max() > 0


def test_latents_are_drawn_anew_for_every_sample_around_the_stored_mean():
    moments = torch.cat([torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), -2.0)], dim=1)
    draws = torch.cat([draw_moments(moments, torch.Generator().manual_seed(i), 0.5) for i in range(400)])
    assert draws.mean().item() == pytest.approx(1.5, abs=0.03)
    assert draws.std().item() == pytest.approx(0.5 * np.exp(-1), abs=0.01)


def test_training_tables_leave_out_short_videos(tmp_path):
    table = tmp_path / "train.csv"
    table.write_text("prompt,emb_path,frames_num\na,one.h5py,97\nb,two.h5py,96\nc,three.h5py,\n", encoding="utf-8")
    assert [path.name for path in find_features([table], min_frames=96)] == ["one.h5py", "three.h5py"]
    with pytest.raises(MuseVError, match="no column 'h5'"):
        find_features([table], path_column="h5")


def test_stored_poses_draw_the_same_picture_as_the_detector():
    from musev_core.pose.drawing import draw_people
    from musev_core.pose.keypoints import NUM_POINTS, Person, PoseFrame

    points = np.random.default_rng(0).uniform(0.1, 0.9, (NUM_POINTS, 2))
    score = np.ones(NUM_POINTS)
    score[128:] = 0  # the files hold no pupils
    frame = PoseFrame([Person(points, score)], 64, 64)
    stored = np.zeros((1, MAX_PEOPLE, POINTS, 3))
    stored[0, :1, :, :2], stored[0, :1, :, 2] = stored_points(frame)
    drawn = pose_maps(stored, 64, 64)[0].permute(1, 2, 0) * 255
    assert np.array_equal(drawn.numpy().round(), draw_people(frame.people, 64, 64))
