"""The command `musev`: demo, generate, train, models, bench."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import Cancelled, MissingPackageError, MuseVError
from .demo import add_demo
from .generate import add_generate
from .models import add_models
from .terminal import add_command, say
from .train import add_train

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


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musev", description="Videos of a person that stays that person.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_demo, add_generate, add_models, add_train):
        add(commands)
    _add_bench(commands, chosen == "bench")
    return parser


def _add_bench(commands: Any, chosen: bool) -> None:
    title = "Count what the network costs, and time it on this device."
    if not chosen:  # its options need torch, the help of the others does not
        commands.add_parser("bench", help=title)
        return
    from ..bench.command import add_arguments, bench

    add_arguments(add_command(commands, "bench", bench, title))
