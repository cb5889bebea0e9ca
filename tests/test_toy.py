"""The toy world: the same for the same numbers, and everything it says about a clip is true."""

import time

import pytest
import torch

from musev_core.demo import toy
from musev_core.demo.vocabulary import WORDS, DemoTokenizer
from musev_core.errors import MuseVError
from musev_core.training.demo_metrics import centres, directions


def test_a_clip_is_a_function_of_split_and_number():
    first, again = toy.clips("train", range(6)), toy.clips("train", range(6))
    assert torch.equal(first.frames, again.frames) and torch.equal(first.pose, again.pose)
    assert first.captions == again.captions


def test_a_clip_does_not_depend_on_what_is_rendered_beside_it():
    together, alone = toy.clips("test", range(5)), toy.clips("test", [3])
    assert torch.equal(together.frames[3], alone.frames[0])
    assert torch.equal(together.reference[3], alone.reference[0])


def test_splits_share_no_scene():
    scenes = {split: [toy.scene(split, i) for i in range(200)] for split in toy.SPLITS}
    homes = [s.home for split in scenes.values() for s in split]
    assert len(set(homes)) == len(homes)


def test_directed_subjects_move_as_the_caption_says():
    clips = toy.clips("test", range(40), "directed")
    for caption, direction in zip(clips.captions, directions(clips.frames, clips.background), strict=True):
        assert direction is not None and direction in caption.split()


def test_motion_speed_stretches_time():
    slow, fast = (toy.clips("test", range(4), "directed", motion_speed=s).positions for s in (4, 8))
    assert torch.allclose(slow[:, 12], fast[:, 6])


def test_positions_are_where_the_subject_is_seen():
    clips = toy.clips("test", range(30), "directed", num_frames=5)
    balls = [i for i, caption in enumerate(clips.captions) if "ball" in caption]
    seen = centres(clips.frames, clips.background)[balls]
    # parts which resemble the hill behind them count less: less than a sixth of a ball is lost
    assert (seen - clips.positions[balls]).norm(dim=-1).max() < 2.0


def test_an_entering_subject_is_not_in_the_first_frame_but_in_the_reference():
    clips = toy.clips("test", range(20), "enter")
    assert torch.equal(clips.frames[:, 0], clips.background)
    assert torch.isfinite(centres(clips.frames[:, -1:], clips.background)).all()
    assert (clips.reference.float() - clips.background.float()).abs().amax((1, 2, 3)).min() > 60


def test_ambient_motion_begins_at_home_with_any_phase_and_stays_near():
    clips = toy.clips("test", range(60), "ambient", num_frames=33)
    away = (clips.positions - clips.positions[:, :1]).norm(dim=-1)
    assert away.max() <= toy.AMBIENT_REACH + 1e-4
    bobbing = [i for i, caption in enumerate(clips.captions) if "bobs" in caption]
    second = clips.positions[bobbing, 1, 1] - clips.positions[bobbing, 0, 1]
    assert second.min() < -2 and second.max() > 2  # the phase is anywhere


def test_the_pose_video_shows_where_the_subject_is():
    clips = toy.clips("test", range(12), "wander")
    black = torch.zeros_like(clips.background)
    apart = (centres(clips.pose, black) - centres(clips.frames, clips.background)).norm(dim=-1)
    assert apart.max() < 5.0


def test_the_background_stands_still():
    clips = toy.clips("test", range(10), "directed")
    still = (clips.frames == clips.background[:, None]).all(-1).all(1)
    assert still.float().mean() > 0.6


def test_captions_are_made_of_the_words_the_tokenizer_knows():
    assert set(toy.words()) == set(WORDS)
    tokenizer = DemoTokenizer()
    for split in toy.SPLITS:
        for number in range(200):
            assert tokenizer(toy.scene(split, number).caption).input_ids


def test_an_unknown_word_is_named():
    with pytest.raises(MuseVError, match="'dog'"):
        DemoTokenizer()("a red dog walks up")


def test_unknown_splits_and_kinds_are_refused():
    with pytest.raises(MuseVError, match="expected one of train, validation, test"):
        toy.scene("training", 0)
    with pytest.raises(MuseVError, match="directed, enter, ambient, wander"):
        toy.scene("train", 0, "jumping")


def test_rendering_is_fast():
    toy.clips("train", range(2))
    started = time.process_time()
    toy.clips("train", range(50))
    assert time.process_time() - started < 2.5  # seconds of CPU time
