"""The command `musev`: demo, generate, models, bench."""

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
        options = _parser(arguments[0] if arguments else None).parse_args(arguments)
        logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s: %(message)s")
        for noisy in ("httpx", "httpx2", "urllib3", "PIL", "huggingface_hub"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        return options.run(options)
    except (MuseVError, MissingPackageError) as error:
        say(f"musev: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Cancelled):
        say("musev: stopped; finished videos were kept", file=sys.stderr)
        return 130


def say(text: str, file: Any = None) -> None:
    """One line for the person at the terminal."""
    print(text, file=file or sys.stdout, flush=True)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of descriptions."""


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musev", description="Videos of a person that stays that person.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_demo, _add_generate, _add_models):
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
    parser = _command(commands, "demo", _demo, "Make a short video of a photograph, without any download.")
    parser.add_argument("--image", type=Path, default=None, help="another picture to start from")
    parser.add_argument("--output_dir", type=Path, default=Path("musev-results"), help="where the results go")
    parser.add_argument("--frames", type=int, default=24, help="frames besides the picture; any number")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels, a multiple of 8")
    parser.add_argument("--seed", type=int, default=0, help="another number gives another video")


def _demo(options: argparse.Namespace) -> int:
    from .demo import PHOTOGRAPH
    from .denoise.denoiser import DenoiserOptions
    from .denoise.windows import WindowOptions
    from .images import contact_sheet, fit_images, load_image, save_image
    from .pipeline import SamplingOptions
    from .progress import TerminalProgress
    from .video import VideoWriter, unique_path

    image = load_image(options.image or PHOTOGRAPH)
    if options.frames < 1:
        raise MuseVError(f"--frames must be at least 1, got {options.frames}")
    video_path = unique_path(options.output_dir / "demo.mp4")
    progress = TerminalProgress()
    progress.loading("the demo model")
    from .demo.untrained import untrained_pipeline

    pipeline = untrained_pipeline()
    say(
        "The demo model is tiny and untrained: every part of the pipeline runs, but the frames after the first show "
        "noise, not motion."
    )
    sampling = SamplingOptions(denoiser=DenoiserOptions(windows=WindowOptions(fuse="linear")))
    result = pipeline(
        "a portrait of an astronaut, smiling",
        negative_prompt="blurry",
        image=image,
        num_frames=options.frames,
        height=options.size,
        width=options.size,
        sampling=sampling,
        seed=options.seed,
        observer=progress.observer({"video": sampling.num_steps}),
    )
    import torch

    parts = []
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with VideoWriter(video_path, fps=8) as writer:
        for part in progress.writing(result.frames(), len(result)):
            writer.write(part)
            parts.append(part)
    sheet_path = unique_path(video_path.with_name(f"{video_path.stem}-frames.png"))
    given = fit_images(image, options.size, options.size).float() / 255
    save_image(sheet_path, contact_sheet(torch.cat([given, *parts])))
    say(f"video: {video_path}\nthe given picture and the frames at a glance: {sheet_path}")
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
