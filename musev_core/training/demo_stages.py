"""How the demo model is made: VAE, latents, UNet with ReferenceNet and image prompt, ControlNet, package, figures.

Every stage goes on where it was when it is started again; what is finished is not done again. On two cores, `finish` is
1.5 times as fast in two processes of one thread each:

    torchrun --nproc_per_node 2 -m musev_core.cli train demo --stage finish
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..demo.files import FILES
from ..demo.model import DemoNetworks, fill, load_networks, new_networks
from ..demo.vocabulary import USED_TOKENS
from ..errors import MuseVError
from ..frames.image_files import save_image
from ..weights.files import read_tensors
from . import checkpoints, demo_motion, demo_quality, demo_vae
from .networks import start_neutral
from .options import TrainOptions
from .trainer import Trainer

log = logging.getLogger(__name__)

LAST = list(demo_motion.STAGES)[-1]  # the stage with the finished UNet


def make_demo(folder: Path, *, only: str | None = None) -> None:
    """Runs all stages, or one, in `folder`; the finished model ends up in `folder/package`."""
    steps: dict[str, Callable[[Path], None]] = {
        "vae": train_vae,
        "decoder": train_decoder,
        "latents": encode_clips,
        **{name: partial(train_unet, name=name) for name in demo_motion.STAGES},
        "controlnet": train_controlnet,
        "package": package,
        "measure": measure,
    }
    if only is not None and only not in steps:
        raise MuseVError(f"unknown stage {only!r}, expected one of {', '.join(steps)}")
    for name, run in steps.items():
        if only in (None, name):
            log.info("stage %s", name)
            run(folder)


def train_vae(folder: Path) -> None:
    """Trains the VAE, and brings its latents to the usual scale."""
    target = folder / "demo" / "vae"
    if (target / "config.json").exists():
        return
    options = demo_vae.OPTIONS
    torch.manual_seed(options.seed)
    vae = demo_vae.new_vae()
    samples = demo_vae.Pictures(options.seed, cropped=demo_vae.CROPPED_STEPS * options.batch_size)
    with _trained_vae(demo_vae.VAEObjective(vae), samples, options, folder / "vae"):
        demo_vae.standardise(vae, demo_vae.pixels_of(demo_vae.test_pictures(256, "train")))
        demo_vae.save_vae(vae, target)


def train_decoder(folder: Path) -> None:
    """Goes on with the VAE's decoder alone: sharper pictures of the same latents."""
    target = folder / "finished" / "vae"
    if (target / "config.json").exists():
        return
    options = demo_vae.DECODER_OPTIONS
    vae = _vae(folder)
    objective = demo_vae.VAEObjective(vae.requires_grad_(True), decoder_only=True)
    with _trained_vae(objective, demo_vae.Pictures(options.seed), options, folder / "decoder"):
        demo_vae.save_vae(vae, target)


@contextmanager
def _trained_vae(
    objective: demo_vae.VAEObjective, samples: demo_vae.Pictures, options: TrainOptions, folder: Path
) -> Iterator[None]:
    """A `with` block in which the VAE is trained, and has its averaged weights."""
    pictures = demo_vae.test_pictures()

    def validate(step: int, out: Path) -> dict[str, float]:
        save_image(_made(out, step), demo_vae.round_trip_sheet(objective.vae, pictures[:16])[None])
        return {"psnr": demo_vae.round_trip_psnr(objective.vae, pictures)}

    trainer = Trainer(objective, samples, options, folder, validate=validate, collate=demo_vae.pictures)
    trainer.resume()
    trainer.run()
    with trainer.averaged():
        objective.eval()
        test = demo_vae.round_trip_psnr(objective.vae, demo_vae.test_pictures(split="test"))
        log.info("round trip of the test split: %.2f dB", test)
        yield


def encode_clips(folder: Path) -> None:
    """Encodes the training clips once."""
    count = max(stage.clips for stage in demo_motion.STAGES.values())
    demo_motion.write_latents(_vae(folder), folder / "latents", count)


def train_unet(folder: Path, name: str) -> None:
    """One of the stages which train everything but VAE and ControlNet; the first begins with random weights."""
    stage = demo_motion.STAGES[name]
    options = shared_out(stage.options)
    torch.manual_seed(options.seed)
    networks = new_networks(len(USED_TOKENS))
    order = list(demo_motion.STAGES)
    if name == order[0]:
        start_neutral(networks.unet)
        nn.init.zeros_(networks.unet.conv_out.weight)
    else:
        _load_trained(networks, _latest(folder / order[order.index(name) - 1]))
    samples = _samples(folder, stage)
    trainer = Trainer(demo_motion.motion_objective(networks, stage.diffusion), samples, options, folder / name)
    trainer.resume()
    trainer.run()


def train_controlnet(folder: Path) -> None:
    """Trains the ControlNet beside the finished rest; it begins as the UNet's own down path."""
    stage = demo_motion.CONTROLNET
    torch.manual_seed(stage.options.seed)
    networks = new_networks(len(USED_TOKENS))
    _load_trained(networks, _latest(folder / LAST))
    start = {name: x for name, x in networks.unet.state_dict().items() if name in networks.controlnet.state_dict()}
    networks.controlnet.load_state_dict(start, strict=False)
    samples = _samples(folder, stage, pose=True)
    objective = demo_motion.motion_objective(networks, stage.diffusion, train_controlnet=True)
    trainer = Trainer(objective, samples, stage.options, folder / "controlnet")
    trainer.resume()
    trainer.run()


def shared_out(options: TrainOptions) -> TrainOptions:
    """The same batches, with passes side by side in the processes which torchrun started instead of one by one."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return replace(options, accumulation=max(1, options.accumulation // processes))


def _samples(folder: Path, stage: demo_motion.Stage, **options: Any) -> demo_motion.ToyLatents:
    short = stage.short_steps * stage.options.batch_size
    return demo_motion.ToyLatents(folder / "latents", stage.clips, stage.options.seed, short_samples=short, **options)


def package(folder: Path) -> None:
    """Collects all networks in half precision."""
    unet = _latest(folder / LAST)
    sources = {name: unet / file for name, file in FILES.items() if name not in ("vae", "controlnet")}
    sources["controlnet"] = _latest(folder / "controlnet") / FILES["controlnet"]
    sources["vae"] = folder / "finished" / FILES["vae"]
    target = folder / "package"
    for name, source in sources.items():
        tensors = {key: x.half() for key, x in read_tensors(source).items()}
        checkpoints.save_tensors(target / FILES[name], tensors)


def measure(folder: Path) -> None:
    """Writes how good the finished model is, beside its weights."""
    target = folder / "package" / "metrics.json"
    networks = load_networks(target.parent)
    figures: dict[str, Any] = {}
    for name, figure in demo_quality.MEASURES.items():
        figures[name] = figure(networks)
        checkpoints.save_json(target, figures)
        log.info("%s: %s", name, figures[name])


def _latest(folder: Path) -> Path:
    return list(checkpoints.checkpoint_folders(folder / "checkpoints").values())[-1]


def _vae(folder: Path) -> nn.Module:
    vae = demo_vae.new_vae()
    fill(vae, read_tensors(folder / "demo" / FILES["vae"]), folder)
    return vae


def _load_trained(networks: DemoNetworks, checkpoint: Path) -> None:
    """Gives networks with the short vocabulary the published weights of a checkpoint."""
    for name in ("unet", "reference_net", "image_projection", "image_encoder", "text_encoder"):
        net = networks.named()[name]
        tensors = read_tensors(checkpoint / FILES[name])
        table = "text_model.embeddings.token_embedding.weight"
        if table in tensors:
            tensors[table] = tensors[table][list(USED_TOKENS)]
        fill(net, tensors, checkpoint)


def _made(folder: Path, step: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{step:06d}.png"
