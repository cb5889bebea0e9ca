"""Latents to frames: half precision where it is safe, as many at once as fit in memory, by any decoder."""

import copy
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import golden_models as models
from support.numbers import det
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from musev_core.bench.meter import count
from musev_core.encode.vae import (
    CPU_BATCH,
    MAX_BATCH,
    decode_latents,
    decoding_bytes,
    decoding_dtype,
    fitting_batch,
    free_memory,
)
from musev_core.frames.video import read_video
from musev_core.pipeline import VideoResult

HALF = (torch.float16, torch.bfloat16)


def latents(frames: int = 6) -> Tensor:
    return det("latents", (4, frames, 8, 8))


def decoded(vae: Any, x: Tensor, **options: Any) -> Tensor:
    return torch.cat(list(decode_latents(vae, x, **options)))


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a - b).square().mean())


def overflowing_vae() -> Any:
    """Beyond float16 behind its first layer, and back within a picture's range behind the norm which follows."""
    vae = copy.deepcopy(models.vae(0))
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5)
    return vae


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# precision


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_stays_within_45_dB_and_leaves_the_weights_alone(dtype):
    vae, x = models.vae(0), latents()
    before = copy.deepcopy(vae.state_dict())
    low, full = decoded(vae, x, dtype=dtype), decoded(vae, x)
    assert low.dtype == torch.float32
    assert 45 <= psnr(low, full) < 80  # and it is another precision
    after = vae.state_dict()
    assert all(x.dtype == torch.float32 and torch.equal(x, before[name]) for name, x in after.items())


def test_overflow_is_noticed_and_decoded_in_float32(caplog):
    vae, x = overflowing_vae(), latents()
    assert torch.equal(decoded(vae, x, dtype=torch.float16, batch=2), decoded(vae, x, batch=2))
    assert warnings(caplog) == [
        "the VAE overflows in float16 at frame 0: this and all later frames are decoded in float32"
    ]


def test_bfloat16_reaches_as_far_as_float32(caplog):
    vae, x = overflowing_vae(), latents()
    assert psnr(decoded(vae, x, dtype=torch.bfloat16), decoded(vae, x)) >= 45
    assert not warnings(caplog)


def test_frames_before_the_overflow_stay_and_those_after_it_are_float32(caplog):
    vae, x = models.vae(0), latents(7)
    x[:, 4] *= 1e4
    got, full = decoded(vae, x, dtype=torch.float16, batch=2), decoded(vae, x, batch=2)
    assert torch.equal(got[4:], full[4:])
    assert not torch.equal(got[:4], full[:4]) and psnr(got[:4], full[:4]) >= 45
    assert len(warnings(caplog)) == 1 and "at frame 4" in warnings(caplog)[0]


def test_weights_in_half_precision_are_widened_after_an_overflow():
    vae, x = overflowing_vae().half(), latents(2)
    got = decoded(vae, x)
    assert torch.equal(got, decoded(copy.deepcopy(vae).float(), x))
    assert {p.dtype for p in vae.parameters()} == {torch.float16}


def test_float16_is_for_float32_weights_on_an_accelerator():
    vae = copy.deepcopy(models.vae(0))
    assert decoding_dtype(vae) == torch.float32
    assert decoding_dtype(vae.to("meta")) == torch.float16
    assert decoding_dtype(vae.bfloat16()) == torch.bfloat16


# memory


def full_size(name: str) -> Any:
    from diffusers import AutoencoderKL, AutoencoderTiny

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    make: Any = AutoencoderTiny if name == "TAESD" else AutoencoderKL
    return make() if name == "TAESD" else make(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks)


@pytest.mark.parametrize("name", ["Stable Diffusion", "TAESD"])
def test_the_estimate_is_what_one_frame_takes_at_full_size(name):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with FakeTensorMode():
            vae = full_size(name).eval()
            for frames, height, width in ((1, 512, 512), (3, 512, 320)):
                x = torch.randn(frames, 4, height // 8, width // 8)
                peak = count(lambda x=x: vae.decode(x)).total.peak
                estimate = frames * decoding_bytes(vae, height, width, torch.float16)
                assert estimate == pytest.approx(peak, rel=0.01)
    finally:
        torch.set_default_dtype(default)


def test_as_many_frames_as_fit_in_memory():
    vae, size = models.vae(0), (512, 512, torch.float16)
    one = decoding_bytes(vae, *size)
    assert one == 3 * 8 * 512 * 512 * 2
    assert [fitting_batch(vae, *size, free=int(one * n)) for n in (0, 0.5, 1.3, 5.1, 10)] == [1, 1, 1, 4, 8]
    assert fitting_batch(vae, *size, free=10**15) == MAX_BATCH
    # float32 needs twice as much
    assert fitting_batch(vae, 512, 512, torch.float32, free=10 * one) == 4


def test_the_cpu_always_decodes_the_same_number():
    assert free_memory(torch.device("cpu")) is None
    for height in (64, 4096):
        assert fitting_batch(models.vae(0), height, height, torch.float32) == CPU_BATCH
    assert [len(part) for part in decode_latents(models.vae(0), latents(6))] == [4, 2]


# other decoders


def tiny_autoencoder() -> Any:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    make: Any = AutoencoderTiny
    return make(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval().requires_grad_(False)


def test_taesd_decodes_in_place_of_the_vae(tmp_path):
    taesd, x = tiny_autoencoder(), latents()
    expected = (taesd.decode(x.transpose(0, 1)).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    result = VideoResult(x, models.vae(0))
    torch.testing.assert_close(result.video(decoder=taesd), expected, atol=1e-5, rtol=1e-5)
    assert psnr(result.video(decoder=taesd, dtype=torch.float16), expected) >= 45
    result.save(str(tmp_path / "look.mp4"), fps=8, decoder=taesd)
    assert read_video(tmp_path / "look.mp4").frames.shape == (6, 64, 64, 3)


class FlatColours(nn.Module):
    """The least that decodes: one matrix, no width in its config."""

    config = SimpleNamespace(scaling_factor=0.5)

    def __init__(self):
        super().__init__()
        self.colours = nn.Conv2d(4, 3, 1)

    def decode(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=nn.functional.interpolate(self.colours(x), scale_factor=8.0))


@torch.no_grad()
def test_any_module_with_decode_and_a_scaling_factor_will_do():
    net, x = FlatColours(), latents(5)
    frames = decoded(net, x)
    assert frames.shape == (5, 64, 64, 3)
    pixels = net.colours(x.transpose(0, 1) / 0.5) / 2 + 0.5
    torch.testing.assert_close(frames[:, ::8, ::8], pixels.clamp(0, 1).permute(0, 2, 3, 1), atol=1e-6, rtol=1e-6)
