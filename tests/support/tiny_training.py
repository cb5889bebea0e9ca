"""The smallest training run of MuseV's networks, also as a program of its own that can be killed."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from musev_core.config import MUSEV_REFERENCENET, ImageProjectionConfig, UNetConfig, resized
from musev_core.models.ip_adapter import image_projection
from musev_core.models.reference_net import ReferenceNet
from musev_core.models.unet import MuseVUNet
from musev_core.training.diffusion import DiffusionOptions
from musev_core.training.networks import save_musev, start_neutral
from musev_core.training.objective import MotionObjective
from musev_core.training.options import TrainOptions
from musev_core.training.trainer import Trainer

SIZE = UNetConfig(
    block_out_channels=(32,),
    cross_attention_blocks=(True,),
    layers_per_block=1,
    num_heads=2,
    norm_groups=8,
    context_dim=16,
)
FRAMES = 3


class Noise(Dataset):
    """Clips of random numbers."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(number % 7)
        return {
            "latents": torch.randn(4, FRAMES, 4, 4, generator=g),
            "frame_index": torch.arange(FRAMES) * 8,
            "text": torch.randn(5, 16, generator=g),
            "reference": torch.randn(4, 1, 4, 4, generator=g),
            "image": torch.randn(1, 8, generator=g),
        }


def objective(**options) -> MotionObjective:
    torch.manual_seed(0)
    unet = MuseVUNet(resized(MUSEV_REFERENCENET, SIZE))
    start_neutral(unet)
    return MotionObjective(
        unet,
        DiffusionOptions(**options),
        empty_text=torch.zeros(5, 16),
        write=lambda folder, o: save_musev(folder, o, whole=True, reference=True),
        reference_net=ReferenceNet(SIZE),
        image_projection=image_projection(ImageProjectionConfig(input_dim=8, context_dim=16)),
    )


OPTIONS = {
    "batch_size": 2,
    "accumulation": 1,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "cosine",
    "ema_decay": 0.99,
    "checkpoint_every": 20,
    "keep_checkpoints": 2,
    "log_every": 50,
}


def trainer(folder: Path, steps: int, **changes) -> Trainer:
    options = TrainOptions(steps=steps, **{**OPTIONS, **changes})
    loss = objective(text_dropout=0.1, image_dropout=0.1, both_dropout=0.1, static_probability=0.1, min_snr_gamma=5)
    return Trainer(loss, Noise(), options, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = trainer(Path(sys.argv[1]), int(sys.argv[2]))
    run.resume()
    run.run()
