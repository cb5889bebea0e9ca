"""The command `musev`: demo, generate, train, models, bench."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import Cancelled, MissingPackageError, MuseVError

log = logging.getLogger("musev_core")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 0, 1 after an error a user can mend, 130 after Ctrl-C."""
    try:
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        if len(arguments) > 1 and arguments[0] == "train" and arguments[1].endswith((".yaml", ".yml")):
            arguments.insert(1, "run")  # `musev train CONFIG.yaml`
        options = _parser(arguments[0] if arguments else None).parse_args(arguments)
        logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s: %(message)s")
        for noisy in ("httpx", "httpx2", "urllib3", "PIL", "huggingface_hub"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        return options.run(options)
    except (MuseVError, MissingPackageError) as error:
        say(f"musev: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Cancelled):
        say("musev: stopped; what was finished is kept", file=sys.stderr)
        return 130


def say(text: str, file: Any = None) -> None:
    """One line for the person at the terminal."""
    print(text, file=file or sys.stdout, flush=True)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of descriptions."""


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musev", description="Videos of a person that stays that person.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_demo, _add_generate, _add_models, _add_train):
        add(commands)
    _add_bench(commands, chosen == "bench")
    return parser


def _command(commands: Any, name: str, run: Any, help: str, description: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help}\n\n{description}", formatter_class=_Help)
    parser.set_defaults(run=run)
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log_level", type=str.lower, default="info", choices=levels, help="how much is told")
    return parser


# ------------------------------------------------------------------------------------------ demo


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", _demo, "Make three short films with the model inside the package.")
    parser.add_argument("--output_dir", type=Path, default=Path("musev-results"), help="where the results go")
    parser.add_argument("--prompt", default=None, help="another caption for the first film, in the toy world's words")
    parser.add_argument("--image", type=Path, default=None, help="another picture for the first film to start from")
    parser.add_argument("--frames", type=int, default=120, help="frames of the long film; any number")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other films")


def _demo(options: argparse.Namespace) -> int:
    from .demo.showcase import demo

    return demo(options, say)


# ------------------------------------------------------------------------------------------ train


def _add_train(commands: Any) -> None:
    title = "Train MuseV's networks, extract features, or make the demo model."
    actions = commands.add_parser("train", help=title, description=title).add_subparsers(
        metavar="ACTION", required=True
    )
    run = _command(actions, "run", _train, "Run a training configuration, or go on with it.")
    run.add_argument("config", type=Path, metavar="CONFIG.yaml", help="what to train, on what, and how")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. train.steps=1000")
    run.add_argument("--resume", default="latest", help="a checkpoint folder, `latest`, or `none` to start anew")
    extract = _command(actions, "extract", _extract, "Write the feature files which training reads.")
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
    make = _command(actions, "demo", _train_demo, "Make the demo model: about two hours and a half on two CPU cores.")
    make.add_argument("--output_dir", type=Path, default=Path("demo-training"), help="states and results")
    stages = "vae, decoder, latents, unet, refine, finish, controlnet, package or measure"
    make.add_argument("--stage", default=None, help=f"only {stages}")


def _train(options: argparse.Namespace) -> int:
    from .training.command import train

    return train(options)


def _extract(options: argparse.Namespace) -> int:
    from .training.command import extract_command

    return extract_command(options)


def _train_demo(options: argparse.Namespace) -> int:
    from .training.demo_stages import make_demo

    make_demo(options.output_dir, only=options.stage)
    return 0


# ------------------------------------------------------------------------------------------ generate


def _add_generate(commands: Any) -> None:
    from .generate_command import add_arguments, generate

    parser = _command(
        commands,
        "generate",
        generate,
        "Make the videos of a task file.",
        "Options of a video give the default for tasks which do not say otherwise; a task file is a YAML list:\n\n"
        "  - name: yongen\n"
        "    prompt: (masterpiece:1.2), a girl is dancing\n"
        "    condition_images: ./images/yongen.jpeg\n"
        "    motion_speed: 8.0\n",
    )
    add_arguments(parser)


# ------------------------------------------------------------------------------------------ bench


def _add_bench(commands: Any, chosen: bool) -> None:
    title = "Count what the network costs, and time it on this device."
    if not chosen:  # its options need torch, the help of the others does not
        commands.add_parser("bench", help=title)
        return
    from .bench.command import add_arguments, bench

    add_arguments(_command(commands, "bench", bench, title))


# ------------------------------------------------------------------------------------------ models


def _add_models(commands: Any) -> None:
    title = "Download weight files, and look at those which are there."
    models = commands.add_parser("models", help=title, description=title)
    actions = models.add_subparsers(metavar="ACTION", required=True)
    check = _command(actions, "check", _check, "Say what a file or folder is, and what a MuseV model lacks.")
    check.add_argument("path", type=Path, nargs="+", help="weight file, model folder, or folder of models")
    download = _command(
        actions,
        "download",
        _download,
        "Fetch published files into the right folders.",
        "Without a name it lists the names. Checksums are verified, an interrupted download is continued, and files\n"
        "of your own stay as they are. HF_ENDPOINT sets a mirror of the hub.\n\n"
        "  musev models download musev_referencenet base image_encoder\n"
        "  musev models download musev_referencenet base image_encoder --to ~/ComfyUI\n",
    )
    download.add_argument("what", nargs="*", metavar="WHAT", help="what to fetch, by name")
    download.add_argument("--to", type=Path, default=Path("checkpoints"), metavar="DIR", help="where it goes")
    download.add_argument(
        "--layout", choices=["comfyui", "original"], default=None,
        help="folders as in ComfyUI's models, or as in the original's checkpoints; None: what DIR is",
    )  # fmt: skip
    download.add_argument("--dry_run", "--dry-run", action="store_true", help="only show what would be done")
    download.add_argument("--overwrite", action="store_true", help="replace files which differ from the published")


def _download(options: argparse.Namespace) -> int:
    from .download import State, fetch, free_space, make_plan, size_text
    from .weights.published import PUBLISHED

    if not options.what:
        width = max(map(len, PUBLISHED))
        for name, published in PUBLISHED.items():
            say(f"{name:{width}}  {published.title}" + (f" [{published.terms}]" if published.terms else ""))
        say("\nName what you want: musev models download musev_referencenet base image_encoder --to DIR")
        return 0
    plan = make_plan(options.what, options.to.expanduser(), layout=options.layout, overwrite=options.overwrite)
    for step in plan:
        resumed = f", {size_text(step.remaining)} of it missing" if 0 < step.remaining < step.file.size else ""
        say(f"{size_text(step.file.size):>8}  {step.target}  ({step.state.value}{resumed})")
    for name in dict.fromkeys(options.what):
        if terms := PUBLISHED[name].terms:
            say(f"terms of {name}: {terms}")
    for folder, (needed, free) in free_space(plan).items():
        say(f"to fetch: {size_text(needed)}; {size_text(free)} are free in {folder}")
    if not options.dry_run:
        try:
            fetch(plan, starting=lambda step: say(f"{step.target} from {step.file.repo}"))
        except KeyboardInterrupt:
            say("musev: stopped; the same command goes on from here", file=sys.stderr)
            return 130
    kept = [step.target for step in plan if step.state is State.KEPT]
    if kept:
        raise MuseVError(
            f"{len(kept)} of {len(plan)} files exist and differ from what is published, and were kept: "
            f"{', '.join(map(str, kept))}. --overwrite replaces them."
        )
    return 0


def _check(options: argparse.Namespace) -> int:
    from .weights.check import check_path

    complete = True
    for path in options.path:
        report = check_path(path)
        for line in report.lines:
            say(line)
        complete &= report.complete
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
