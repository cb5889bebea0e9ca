"""How the demo model is made: VAE, latents, UNet with ReferenceNet and image prompt, ControlNet, package.

Every stage goes on where it was when it is started again; what is finished is not done again.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..demo.model import FILES, DemoNetworks, fill, new_networks
from ..demo.vocabulary import USED_TOKENS
from ..errors import MuseVError
from ..images import save_image
from ..weights.files import read_tensors
from . import checkpoints, demo_motion, demo_vae
from .networks import start_neutral
from .trainer import Trainer

log = logging.getLogger(__name__)


def make_demo(folder: Path, *, only: str | None = None) -> None:
    """Runs all stages, or one, in `folder`; the finished model ends up in `folder/demo`."""
    steps: dict[str, Callable[[Path], None]] = {
        "vae": train_vae,
        "latents": encode_clips,
        "unet": train_unet,
        "controlnet": train_controlnet,
        "package": package,
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
    torch.manual_seed(demo_vae.OPTIONS.seed)
    vae = demo_vae.new_vae()
    pictures = demo_vae.test_pictures()

    def validate(step: int, out: Path) -> dict[str, float]:
        save_image(_made(out, step), demo_vae.round_trip_sheet(vae, pictures[:16])[None])
        return {"psnr": demo_vae.round_trip_psnr(vae, pictures)}

    trainer = Trainer(
        demo_vae.VAEObjective(vae),
        demo_vae.Pictures(demo_vae.OPTIONS.seed),
        demo_vae.OPTIONS,
        folder / "vae",
        validate=validate,
        collate=demo_vae.pictures,
    )
    trainer.resume()
    trainer.run()
    with trainer.averaged():
        vae.eval()
        demo_vae.standardise(vae, demo_vae.pixels_of(demo_vae.test_pictures(256, "train")))
        log.info(
            "round trip of the test split: %.2f dB", demo_vae.round_trip_psnr(vae, demo_vae.test_pictures(split="test"))
        )
        demo_vae.save_vae(vae, target)


def encode_clips(folder: Path) -> None:
    """Encodes the training clips once."""
    demo_motion.write_latents(_vae(folder), folder / "latents", demo_motion.CLIPS)


def train_unet(folder: Path) -> None:
    """Trains everything but VAE and ControlNet, from random weights."""
    options = demo_motion.UNET_OPTIONS
    torch.manual_seed(options.seed)
    networks = new_networks(len(USED_TOKENS))
    start_neutral(networks.unet)
    nn.init.zeros_(networks.unet.conv_out.weight)
    samples = demo_motion.ToyLatents(
        folder / "latents",
        demo_motion.CLIPS,
        options.seed,
        short_samples=demo_motion.SHORT_STEPS * options.batch_size,
    )
    trainer = Trainer(demo_motion.motion_objective(networks), samples, options, folder / "unet")
    trainer.resume()
    trainer.run()


def train_controlnet(folder: Path) -> None:
    """Trains the ControlNet beside the finished rest; it begins as the UNet's own down path."""
    options = demo_motion.CONTROLNET_OPTIONS
    torch.manual_seed(options.seed)
    networks = new_networks(len(USED_TOKENS))
    _load_trained(networks, _latest(folder / "unet"))
    start = {name: x for name, x in networks.unet.state_dict().items() if name in networks.controlnet.state_dict()}
    networks.controlnet.load_state_dict(start, strict=False)
    samples = demo_motion.ToyLatents(
        folder / "latents",
        demo_motion.CLIPS,
        options.seed,
        short_samples=options.steps * options.batch_size,
        kinds=("directed", "wander"),
        pose=True,
    )
    objective = demo_motion.motion_objective(networks, train_controlnet=True)
    trainer = Trainer(objective, samples, options, folder / "controlnet")
    trainer.resume()
    trainer.run()


def package(folder: Path) -> None:
    """Collects all networks in half precision."""
    unet, controlnet = _latest(folder / "unet"), folder / "controlnet"
    sources = {name: unet / file for name, file in FILES.items() if name not in ("vae", "controlnet")}
    if checkpoints.checkpoint_folders(controlnet / "checkpoints"):
        sources["controlnet"] = _latest(controlnet) / FILES["controlnet"]
    sources["vae"] = folder / "demo" / FILES["vae"]
    target = folder / "package"
    for name, source in sources.items():
        tensors = {key: x.half() for key, x in read_tensors(source).items()}
        checkpoints.save_tensors(target / FILES[name], tensors)


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
