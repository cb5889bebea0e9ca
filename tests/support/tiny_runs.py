"""A training on tiny models in the published layout: in a test's own process, or as one of several processes."""

import sys
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from musev_core.cli import main
from musev_core.frames.video import write_video
from musev_core.training.options import TrainOptions
from musev_core.training.schedule import generator
from musev_core.training.trainer import Trainer

from . import published, tiny_training

FRAMES, SIZE = 3, 64


def write_disk(root: Path) -> Path:
    """A base model, an image encoder, and three videos, of which two have captions."""
    published.write_base(root / "base")
    published.write_image_encoder(root / "image_encoder")
    across, shift = torch.arange(SIZE)[:, None], 10 * torch.arange(8)[:, None, None, None]
    for number, name in enumerate(("one", "two", "three")):
        frames = (across + shift + 50 * number).expand(8, SIZE, SIZE, 3)
        write_video(root / "videos" / f"{name}.mp4", frames.to(torch.uint8), fps=8)
        if number < 2:
            (root / "videos" / f"{name}.txt").write_text(f"clip {name}\n", encoding="utf-8")
    return root


def configuration(disk: Path, file: Path, *, kind: str = "videos", variant: str = "musev", **parts: dict) -> Path:
    """Writes a configuration for the disk; `parts` change values of its groups."""
    clips = {"num_frames": FRAMES, "sample_rate": 1, "max_sample_rate": 1, "stored_rate": 2}
    content = {
        "output_dir": str(file.parent / file.stem),
        "model": {"variant": variant, "base": str(disk / "base")},
        "data": {"kind": kind, "places": [str(disk / kind)], "width": SIZE, "height": SIZE, "rule": clips},
        "train": {"steps": 2, "accumulation": 1, "learning_rate": "1e-3", "log_every": 1},
    }
    if variant != "musev" and kind == "videos":
        content["model"]["image_encoder"] = str(disk / "image_encoder")
    for name, values in parts.items():
        content.setdefault(name, {}).update(values)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


class Numbered(tiny_training.Noise):
    """Clips that know their number."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {**super().__getitem__(number), "number": torch.tensor(number)}


class OneByOne(nn.Module):
    """The mean loss of clips of which each has noise of its own number, however they are shared out."""

    def __init__(self):
        super().__init__()
        self.motion = tiny_training.objective()

    def forward(self, batch: dict[str, Tensor], _: torch.Generator) -> dict[str, Tensor]:
        losses = [
            self.motion({name: x[i : i + 1] for name, x in batch.items()}, generator(5, int(number)))["loss"]
            for i, number in enumerate(batch["number"])
        ]
        return {"loss": torch.stack(losses).mean()}

    def publish(self, folder: Path) -> None:
        self.motion.publish(folder)


def train_one_by_one(folder: Path, batch_size: int) -> Trainer:
    # with a large eps, AdamW does not turn rounding errors of tiny gradients into whole steps
    options = TrainOptions(
        steps=3, batch_size=batch_size, accumulation=2, learning_rate=1e-3, eps=1e-3, validate_every=2
    )

    def sample(step: int, results: Path) -> dict[str, float]:
        results.mkdir(parents=True)
        (results / f"step-{step}").write_text(f"process {trainer.accelerator.process_index}", encoding="utf-8")
        return {}

    trainer = Trainer(OneByOne(), Numbered(), options, folder, validate=sample)
    trainer.run()
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_one_by_one(Path(sys.argv[1]), 1)
    sys.exit(main(["train", "run", sys.argv[2]]))
