"""Euler, DDIM and LCM with MuseV's semantics (musev.md 4, extra.md 2.3)."""

from typing import Any

import diffusers
import pytest
import torch
from support.numbers import det

from musev_core.denoise.schedulers import SCHEDULERS, SchedulerConfig, VideoScheduler, scheduler_config
from musev_core.errors import MuseVError

SHAPE = (1, 4, 3, 8, 8)
SD15 = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


def no_noise() -> torch.Tensor:
    return torch.zeros(SHAPE)


class CountingNoise:
    """Noise that notes how often it was asked for."""

    def __init__(self):
        self.asked = 0

    def __call__(self) -> torch.Tensor:
        self.asked += 1
        return det(f"noise {self.asked}", SHAPE)


def sigmas(scheduler: VideoScheduler) -> torch.Tensor:
    """The noise levels of an Euler run."""
    assert scheduler.sigmas is not None
    return scheduler.sigmas


def run(scheduler: VideoScheduler, x: torch.Tensor, noise=no_noise) -> list[torch.Tensor]:
    """The latents after every step, for a network which predicts a tenth of what it sees."""
    trajectory = []
    for i in range(len(scheduler.timesteps)):
        x, _ = scheduler.step(0.1 * scheduler.scale(x, i), i, x, noise)
        trajectory.append(x)
    return trajectory


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_euler_is_diffusers_euler(spacing):
    theirs: Any = diffusers.EulerDiscreteScheduler(**SD15, timestep_spacing=spacing)
    theirs.set_timesteps(7)
    ours = VideoScheduler(SchedulerConfig(timestep_spacing=spacing), 7)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(sigmas(ours), theirs.sigmas)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
    x = y = det("x", SHAPE, 0, ours.init_noise_sigma)
    for i, t in enumerate(theirs.timesteps):
        scaled = theirs.scale_model_input(y, t)
        torch.testing.assert_close(ours.scale(x, i), scaled)
        y = theirs.step(0.1 * scaled, t, y).prev_sample
        x, _ = ours.step(0.1 * scaled, i, x, no_noise)
        torch.testing.assert_close(x, y)


def test_ddim_is_diffusers_ddim():
    theirs: Any = diffusers.DDIMScheduler(**SD15, timestep_spacing="leading", set_alpha_to_one=False, clip_sample=False)
    theirs.set_timesteps(5)
    y = det("x", SHAPE)
    trajectory = run(VideoScheduler("ddim", 5), y)
    for got, t in zip(trajectory, theirs.timesteps, strict=True):
        y = theirs.step(0.1 * y, t, y).prev_sample
        torch.testing.assert_close(got, y)


@pytest.mark.parametrize(
    "name, steps, timesteps, sigma",
    [
        ("euler", 10, [999 - 111 * i for i in range(10)], 14.6146),
        ("euler_leading", 10, [901 - 100 * i for i in range(10)], 8.45),
        ("ddim", 10, [901 - 100 * i for i in range(10)], 1.0),
        ("lcm", 4, [999, 759, 499, 259], 1.0),
    ],
)
def test_time_steps_and_noise_levels(name, steps, timesteps, sigma):
    scheduler = VideoScheduler(name, steps)
    assert scheduler.timesteps.tolist() == pytest.approx(timesteps)
    assert scheduler.init_noise_sigma == pytest.approx(sigma, abs=0.01)


def test_euler_time_steps_are_fractional():
    assert VideoScheduler("euler", 30).timesteps[1].item() == pytest.approx(964.5517, abs=1e-3)


def test_sigmas_end_at_zero_and_only_euler_has_them():
    levels = sigmas(VideoScheduler("euler", 5))
    assert len(levels) == 6
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()
    assert VideoScheduler("ddim", 5).sigmas is None


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_true_noise_leads_back_to_the_clean_video_at_once(name):
    clean, noise = det("clean", SHAPE), det("noise", SHAPE)
    scheduler = VideoScheduler(name, 4)
    _, believed = scheduler.step(noise, 0, scheduler.add_noise(clean, noise), no_noise)
    # LCM's boundary conditions keep a little of the sample at its last time step
    torch.testing.assert_close(believed, clean, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    "strength, used", [(1.0, 10), (0.8, 8), (0.55, 6), (0.5, 5), (0.34, 3), (0.1, 1), (0.01, 1), (0.0, 1)]
)
def test_strength_uses_the_last_steps(name, strength, used):
    full, partial = VideoScheduler(name, 10), VideoScheduler(name, 10, strength=strength)
    assert partial.first == 10 - used
    assert torch.equal(partial.timesteps, full.timesteps[10 - used :])
    if partial.sigmas is not None:
        assert torch.equal(partial.sigmas, sigmas(full)[10 - used :])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.2])
def test_noise_is_added_at_the_level_of_the_first_step(name, strength):
    clean, noise = det("clean", SHAPE), det("noise", SHAPE)
    scheduler = VideoScheduler(name, 10, strength=strength)
    got = scheduler.add_noise(clean, noise)
    if scheduler.sigmas is not None:
        expected = clean + scheduler.sigmas[0] * noise
    else:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        alpha = (1 - betas).cumprod(0)[int(scheduler.timesteps[0])]
        expected = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_adding_noise_does_not_depend_on_what_was_done_before():
    clean, noise = det("clean", SHAPE), det("noise", SHAPE)
    scheduler = VideoScheduler("euler", 10, strength=0.5)
    before = scheduler.add_noise(clean, noise)
    assert torch.equal(scheduler.add_noise(clean, noise), before)


@pytest.mark.parametrize("name", ["euler", "euler_leading", "ddim"])
def test_a_partial_run_is_the_end_of_the_full_run(name):
    x = det("x", SHAPE, 0, 14)
    whole = run(VideoScheduler(name, 10), x)
    part = run(VideoScheduler(name, 10, strength=0.4), whole[5])
    assert len(part) == 4
    for a, b in zip(part, whole[6:], strict=True):
        torch.testing.assert_close(a, b)


def test_lcm_partial_run_is_the_end_of_the_full_run():
    whole = run(VideoScheduler("lcm", 8), det("x", SHAPE))
    part = run(VideoScheduler("lcm", 8, strength=0.5), whole[3])
    assert len(part) == 4
    torch.testing.assert_close(part[-1], whole[-1])


def test_scaling_is_by_the_noise_level_for_euler_and_nothing_otherwise():
    x = det("x", SHAPE)
    euler = VideoScheduler("euler", 5)
    for i in range(5):
        torch.testing.assert_close(euler.scale(x, i), x / (sigmas(euler)[i] ** 2 + 1) ** 0.5)
        x, _ = euler.step(0.1 * x, i, x, no_noise)
    for name in ("ddim", "lcm"):
        assert torch.equal(VideoScheduler(name, 5).scale(x, 0), x)


@pytest.mark.parametrize("name, asked", [("euler", 0), ("ddim", 0), ("lcm", 3)])
def test_fresh_noise_is_asked_for_where_it_is_used(name, asked):
    noise = CountingNoise()
    run(VideoScheduler(name, 4), det("x", SHAPE), noise)
    assert noise.asked == asked


def test_lcm_uses_the_fresh_noise():
    x = det("x", SHAPE)
    with_noise, without = (run(VideoScheduler("lcm", 4), x, noise)[-1] for noise in (CountingNoise(), no_noise))
    assert not torch.equal(with_noise, without)


def test_lcm_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    run(VideoScheduler("lcm", 4), det("x", SHAPE))
    assert torch.equal(torch.get_rng_state(), state)


def test_lcm_returns_the_clean_video_at_the_last_step():
    scheduler, x = VideoScheduler("lcm", 2), det("x", SHAPE)
    x, clean = scheduler.step(0.1 * x, 0, x, CountingNoise())
    assert not torch.equal(x, clean)
    x, clean = scheduler.step(0.1 * x, 1, x, CountingNoise())
    assert torch.equal(x, clean)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    "change",
    [
        {"beta_start": 0.002},
        {"beta_end": 0.02},
        {"beta_schedule": "linear"},
        {"prediction_type": "v_prediction"},
        {"num_train_timesteps": 500},
    ],
)
def test_every_scheduler_follows_the_numbers_of_its_configuration(name, change):
    plain, changed = (run(VideoScheduler(scheduler_config(name, **x), 2), det("x", SHAPE))[0] for x in ({}, change))
    assert (plain - changed).norm() > 1e-4 * plain.norm()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_given_latents_stay_as_they_were(name):
    x = det("x", SHAPE)
    kept = x.clone()
    scheduler = VideoScheduler(name, 3)
    scheduler.add_noise(x, x)
    run(scheduler, x)
    assert torch.equal(x, kept)


def test_a_named_configuration_can_be_changed():
    config = scheduler_config("euler", timestep_spacing="leading")
    assert config == SCHEDULERS["euler_leading"]
    assert SCHEDULERS["euler"].timestep_spacing == "linspace"
    assert scheduler_config(config, prediction_type="v_prediction").prediction_type == "v_prediction"


def test_lcm_takes_fifty_steps_but_not_more():
    assert len(VideoScheduler("lcm", 50).timesteps) == 50
    with pytest.raises(MuseVError, match="LCM takes at most 50 steps .* got 51"):
        VideoScheduler("lcm", 51)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: VideoScheduler("euler", 0), "number of steps must be at least 1, got 0"),
        (lambda: VideoScheduler("euler", 4, strength=1.1), r"strength must lie in 0\.\.1, got 1.1"),
        (lambda: VideoScheduler("euler", 4, strength=-1), r"strength must lie in 0\.\.1, got -1"),
        (lambda: VideoScheduler("dpm++", 4), r"unknown scheduler 'dpm\+\+', expected one of euler, euler_leading"),
        (lambda: SchedulerConfig(type="heun"), "unknown scheduler 'heun', expected one of euler, ddim, lcm"),
        (
            lambda: SchedulerConfig(timestep_spacing="trailing"),
            "unknown timestep spacing 'trailing', expected linspace or leading",
        ),
    ],
)
def test_wrong_numbers_say_what_is_expected(make, message):
    with pytest.raises(MuseVError, match=message):
        make()
