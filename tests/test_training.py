"""Training: what a step computes, and that killing a run does no harm."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import tiny_training
from torch import nn

import musev_core
from musev_core.denoise.noise import NoiseOptions
from musev_core.errors import CheckpointError, MuseVError
from musev_core.training import checkpoints, diffusion
from musev_core.training.muon import orthogonalised
from musev_core.training.networks import checkpoint_activations
from musev_core.training.options import TrainOptions
from musev_core.training.schedule import RunSampler, learning_rate, place_in_epoch
from musev_core.weights.files import read_tensors

# ------------------------------------------------------------------------------------------ a run


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    latest = list(checkpoints.checkpoint_folders(folder / "checkpoints").values())[-1]
    return checkpoints.read_state(latest)[0]


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path):
    steps = 200
    torch.set_num_threads(1)
    try:
        tiny_training.trainer(tmp_path / "whole", steps).run()
    finally:
        torch.set_num_threads(os.cpu_count() or 1)
    program = [sys.executable, "-m", "support.tiny_training", str(tmp_path / "killed"), str(steps)]
    roots = [str(Path(tiny_training.__file__).parents[1]), str(Path(musev_core.__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots)}
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "checkpoints"
    while not checkpoints.checkpoint_folders(folder) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.random())  # anywhere, also while a checkpoint is being written
    process.kill()
    process.wait()
    assert max(checkpoints.checkpoint_folders(folder)) < steps
    subprocess.run(program, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole, resumed = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert {name.split("/")[0] for name in whole} == {"weights", "average", "optimizer"}
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_resuming_with_accumulation_and_muon_changes_nothing(tmp_path):
    options = {"accumulation": 2, "muon_rate": 0.01}
    whole = tiny_training.trainer(tmp_path / "whole", 5, checkpoint_every=1, **options)
    whole.run()
    again = tiny_training.trainer(tmp_path / "again", 5, **options)
    assert again.resume(whole.checkpoints / "checkpoint-4") == 4
    again.run()
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters.values(), again.parameters.values(), strict=True))
    assert whole.average is not None and again.average is not None
    assert all(torch.equal(x, again.average[name]) for name, x in whole.average.items())


def test_training_lowers_the_loss(tmp_path):
    trainer = tiny_training.trainer(tmp_path, 40, ema_decay=None)
    batches = trainer._batches()
    losses = [trainer._step(batches)["loss"] for _ in range(40)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_only_the_last_checkpoints_stay(tmp_path):
    trainer = tiny_training.trainer(tmp_path, 5, checkpoint_every=1, keep_checkpoints=2)
    trainer.run()
    assert list(checkpoints.checkpoint_folders(trainer.checkpoints)) == [4, 5]


def test_published_weights_are_the_averaged_ones(tmp_path):
    trainer = tiny_training.trainer(tmp_path, 5)
    trainer.run()
    folder = trainer.checkpoints / "checkpoint-5"
    published = read_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert trainer.average is not None
    assert torch.equal(published["conv_in.weight"], trainer.average["unet.conv_in.weight"])
    assert not torch.equal(published["conv_in.weight"], trainer.parameters["unet.conv_in.weight"])
    assert (folder / "referencenet" / "config.json").is_file()
    assert set(read_tensors(folder / "ip_adapter_image_proj.safetensors")) == {
        *("image_proj.proj.weight", "image_proj.proj.bias", "image_proj.norm.weight", "image_proj.norm.bias"),
    }


def test_a_half_written_checkpoint_is_not_seen_and_goes_away(tmp_path):
    def fails(part: Path) -> None:
        checkpoints.save_json(part / "state" / "progress.json", {"step": 7})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_folder(tmp_path / "checkpoint-7", fails)
    assert checkpoints.checkpoint_folders(tmp_path) == {}
    checkpoints.remove_old(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    trainer = tiny_training.trainer(tmp_path / "a", 1)
    folder = trainer.save()
    other = tiny_training.trainer(tmp_path / "b", 1)
    other.parameters.pop("unet.conv_in.weight")
    with pytest.raises(CheckpointError, match="other parameters"):
        other.resume(folder)
    with pytest.raises(CheckpointError, match="no checkpoint training can go on from"):
        other.resume(tmp_path)


# ------------------------------------------------------------------------------------------ numbers


def test_every_epoch_sees_every_clip_once_in_its_own_order():
    epochs = [[place_in_epoch(n, 5, seed=1) for n in range(5 * e, 5 * e + 5)] for e in range(3)]
    for e, places in enumerate(epochs):
        assert {epoch for epoch, _ in places} == {e}
        assert sorted(item for _, item in places) == [0, 1, 2, 3, 4]
    assert len({tuple(item for _, item in places) for places in epochs}) > 1


def test_processes_share_the_samples_and_resuming_skips_what_was_done():
    options = TrainOptions(steps=3, batch_size=2, accumulation=2)
    whole = [list(RunSampler(0, options, rank, 2)) for rank in range(2)]
    assert sorted(whole[0] + whole[1]) == list(range(2 * 3 * 2 * 2))
    assert list(RunSampler(2, options, 1, 2)) == whole[1][-4:]


def test_the_learning_rate_rises_and_falls():
    options = TrainOptions(steps=110, learning_rate=1.0, learning_rate_schedule="cosine", warmup_steps=10)
    rates = [learning_rate(options, step) for step in range(110)]
    assert rates[0] < rates[5] < rates[10] == max(rates) == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[-1] < 0.01


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate_schedule": "step"}, "expected one of constant, linear, cosine"),
        ({"ema_decay": 1.5}, "between 0 and 1"),
        ({"mixed_precision": "fp8"}, "expected one of no, fp16, bf16"),
    ],
)
def test_options_that_make_no_sense_are_refused(change, message):
    with pytest.raises(MuseVError, match=message):
        TrainOptions(**change)


# ------------------------------------------------------------------------------------------ diffusion


@pytest.mark.parametrize("kind", diffusion.PREDICTIONS)
def test_the_target_says_which_frames_are_meant(kind):
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 2, 4, 4, generator=g)
    alpha = diffusion.alphas_cumprod()[[10, 500, 990]]
    sample = diffusion.noised(clean, noise, alpha)
    target = diffusion.prediction_target(clean, noise, alpha, kind)
    assert torch.allclose(diffusion.clean_estimate(target, sample, alpha, kind), clean, atol=1e-4)


def test_the_noise_schedule_is_that_of_the_sampler():
    from musev_core.denoise.schedulers import SchedulerConfig, VideoScheduler

    scheduler = VideoScheduler(SchedulerConfig(type="ddim", timestep_spacing="leading"), 10)
    assert torch.allclose(scheduler._scheduler.alphas_cumprod, diffusion.alphas_cumprod(), atol=1e-6)


def test_min_snr_limits_nearly_clean_steps_only():
    alpha = torch.tensor([0.999, 0.5, 0.01])
    weight = diffusion.min_snr_weight(alpha, 5.0, "epsilon")
    assert weight.tolist() == pytest.approx([5 / 999, 1, 1], rel=1e-3)
    assert diffusion.min_snr_weight(alpha, None, "epsilon").tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------------ one step


class Recorder(nn.Module):
    """Answers with zeros and keeps what it was asked."""

    def forward(self, sample, timestep, clip, **options):
        self.sample, self.clip, self.options = sample, clip, options
        return torch.zeros_like(sample)


def batch(count: int = 4) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([tiny_training.Noise()[i] for i in range(count)])


def seen(options: dict, clips: dict[str, torch.Tensor], seed: int = 0):
    objective = tiny_training.objective(**options)
    objective.unet = Recorder()
    losses = objective(clips, torch.Generator().manual_seed(seed))
    return objective.unet, losses


def test_condition_frames_stay_clean_and_do_not_count():
    clips = batch()
    unet, losses = seen({}, clips)
    assert torch.equal(unet.sample[:, :, 0], clips["latents"][:, :, 0])
    assert not torch.equal(unet.sample[:, :, 1:], clips["latents"][:, :, 1:])
    # the answer was 0, so the loss is the mean square of the noise of the generated frames alone
    assert losses["loss"].item() == pytest.approx(1.0, abs=0.25)
    clips["latents"][:, :, 0] = 1e3
    assert seen({}, clips)[1]["loss"] == losses["loss"]


def test_spread_time_steps_cover_the_schedule_in_every_batch():
    steps = diffusion.random_timesteps(8, 1000, 1.0, torch.Generator().manual_seed(1))
    assert sorted((steps // 125).tolist()) == list(range(8))
    assert steps.tolist() != sorted(steps.tolist())
    noisier = diffusion.random_timesteps(1000, 1000, 0.5, torch.Generator().manual_seed(1)).float()
    assert noisier.mean().item() == pytest.approx(667, abs=5) and noisier.max() <= 999
    with pytest.raises(MuseVError, match="timestep_power must be greater than 0"):
        diffusion.DiffusionOptions(timestep_power=0.0)


def test_video_fusion_noise_is_shared_between_frames():
    clips = batch(8)
    clips["latents"] *= 0
    shared = seen({"noise": NoiseOptions(individual_weight=0.0)}, clips)[0].sample
    assert torch.allclose(shared[:, :, 1], shared[:, :, 2])


def test_dropped_pictures_are_what_inference_knows_as_no_picture():
    clips = batch()
    objective = tiny_training.objective()
    unet, _ = seen({"image_dropout": 1.0}, clips)
    empty = objective.image_projection(torch.zeros(1, 8))
    assert torch.allclose(unet.clip.image_tokens, empty.expand(4, -1, -1))
    assert torch.equal(unet.clip.text, clips["text"])
    unet, _ = seen({"text_dropout": 1.0}, clips)
    assert (unet.clip.text == 0).all()
    assert not torch.allclose(unet.clip.image_tokens, empty.expand(4, -1, -1))
    unet, _ = seen({"both_dropout": 1.0}, clips)
    assert (unet.clip.text == 0).all() and torch.allclose(unet.clip.image_tokens, empty.expand(4, -1, -1))


def test_dropouts_happen_as_often_as_asked():
    clips = {name: x.repeat(400, *[1] * (x.ndim - 1)) for name, x in batch(1).items()}
    unet, _ = seen({"text_dropout": 0.2, "image_dropout": 0.1, "both_dropout": 0.1}, clips)
    no_text = (unet.clip.text == 0).all((1, 2))
    assert no_text.float().mean() == pytest.approx(0.3, abs=0.06)


def test_static_clips_repeat_one_frame_and_stand_still():
    unet, _ = seen({"static_probability": 1.0}, batch())
    assert (unet.options["frame_index"] == 0).all()


def test_optional_losses_count_by_their_weights_and_only_at_low_noise():
    clips = batch(8)
    plain = seen({}, clips)[1]
    some = seen({"condition_loss": 0.05, "motion_loss": 0.02, "consistency_limit": 1.0}, clips)[1]
    expected = plain["loss"] + 0.05 * some["condition"] + 0.02 * some["motion"]
    assert some["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    never = seen({"condition_loss": 0.05, "consistency_limit": 0.0}, clips)[1]
    assert never["condition"] == 0


def test_losses_on_pixels_need_a_decoder():
    with pytest.raises(MuseVError, match="need the VAE's decoder"):
        tiny_training.objective(pixel_motion_loss=0.01)


def test_the_picture_loss_compares_with_the_network_without_temporal_layers():
    objective = tiny_training.objective(picture_loss=1.0)
    losses = objective(batch(2), torch.Generator().manual_seed(0))
    assert losses["picture"] > 0
    losses["loss"].backward()
    assert objective.unet.conv_in.weight.grad is not None


def test_checkpointed_activations_give_the_same_gradients():
    def gradients(prepare) -> list[torch.Tensor]:
        objective = tiny_training.objective()
        for parameter in objective.parameters():
            parameter.data += 0.01
        prepare(objective.unet)
        objective(batch(2), torch.Generator().manual_seed(0))["loss"].backward()
        return [p.grad for p in objective.parameters() if p.grad is not None]

    plain, saving = gradients(lambda unet: None), gradients(checkpoint_activations)
    assert len(plain) == len(saving)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, saving, strict=True))
