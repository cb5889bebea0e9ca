"""`musev models`: download, check."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import MuseVError
from .failures import STOPPED
from .terminal import add_command, say


def add_models(commands: Any) -> None:
    """Adds the command `models`."""
    title = "Download weight files, and look at those which are there."
    models = commands.add_parser("models", help=title, description=title)
    actions = models.add_subparsers(metavar="ACTION", required=True)
    check = add_command(actions, "check", _check, "Say what a file or folder is, and what a MuseV model lacks.")
    check.add_argument("path", type=Path, nargs="+", help="weight file, model folder, or folder of models")
    download = add_command(
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
    from ..weights.download import State, fetch, free_space, make_plan, size_text
    from ..weights.published import PUBLISHED

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
            return STOPPED
    kept = [step.target for step in plan if step.state is State.KEPT]
    if kept:
        raise MuseVError(
            f"{len(kept)} of {len(plan)} files exist and differ from what is published, and were kept: "
            f"{', '.join(map(str, kept))}. --overwrite replaces them."
        )
    return 0


def _check(options: argparse.Namespace) -> int:
    from ..weights.check import check_path

    complete = True
    for path in options.path:
        report = check_path(path)
        for line in report.lines:
            say(line)
        complete &= report.complete
    return 0 if complete else 1
