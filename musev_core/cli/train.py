"""`musev train`: run, extract, demo."""

import argparse
from pathlib import Path
from typing import Any

from .terminal import add_command


def add_train(commands: Any) -> None:
    """Adds the command `train`."""
    title = "Train MuseV's networks, extract features, or make the demo model."
    actions = commands.add_parser("train", help=title, description=title).add_subparsers(
        metavar="ACTION", required=True
    )
    run = add_command(actions, "run", _train, "Run a training configuration, or go on with it.")
    run.add_argument("config", type=Path, metavar="CONFIG.yaml", help="what to train, on what, and how")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. train.steps=1000")
    run.add_argument("--resume", default="latest", help="a checkpoint folder, `latest`, or `none` to start anew")
    extract = add_command(actions, "extract", _extract, "Write the feature files which training reads.")
    extract.add_argument("places", type=Path, nargs="+", help="folders of videos, or CSV tables of them")
    extract.add_argument("--output_dir", type=Path, required=True, help="where the feature files go")
    extract.add_argument("--base", type=Path, required=True, help="Stable Diffusion 1.5 model: VAE and text encoder")
    extract.add_argument("--image_encoder", type=Path, default=None, help="folder of CLIP ViT-H, for embeddings")
    extract.add_argument("--video_dir", type=Path, default=None, help="where the paths in the tables begin")
    extract.add_argument("--width", type=int, default=512, help="pixels, a multiple of 8")
    extract.add_argument("--height", type=int, default=320, help="pixels, a multiple of 8")
    extract.add_argument("--stored_rate", type=int, default=2, help="store every so many frames one")
    extract.add_argument("--pose_weights", type=Path, default=None, help="folder of DWPose's files: stores poses too")
    extract.add_argument("--limit", type=int, default=None, help="only so many videos, to try it out")
    make = add_command(
        actions, "demo", _train_demo, "Make the demo model: about two hours and a half on two CPU cores."
    )
    make.add_argument("--output_dir", type=Path, default=Path("demo-training"), help="states and results")
    stages = "vae, decoder, latents, unet, refine, finish, controlnet, package or measure"
    make.add_argument("--stage", default=None, help=f"only {stages}")


def _train(options: argparse.Namespace) -> int:
    from ..training.command import train

    return train(options)


def _extract(options: argparse.Namespace) -> int:
    from ..training.command import extract_command

    return extract_command(options)


def _train_demo(options: argparse.Namespace) -> int:
    from ..training.demo_stages import make_demo

    make_demo(options.output_dir, only=options.stage)
    return 0
