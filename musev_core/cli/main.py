"""The command `musev`: demo, generate, join, models, pose, train, bench."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

from .demo import add_demo
from .failures import explain
from .generate import add_generate
from .join import add_join
from .models import add_models
from .pose import add_pose
from .stopping import stoppable
from .streams import steady_streams
from .terminal import add_command, say
from .train import add_train

log = logging.getLogger("musev_core")


@steady_streams()
@stoppable()
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 0; 1 after an error that the user can mend; 70 after a bug; 130 after Ctrl-C. A command line
        that cannot be understood ends in argparse's `SystemExit` of 2.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        log.debug("where it happened:", exc_info=error)
        say(f"musev: {failure.sentence}", file=sys.stderr)
        return failure.status


def _run(arguments: list[str]) -> int:
    # before the arguments are understood, which may fail too
    logging.basicConfig(level="DEBUG" if "--debug" in arguments else "INFO", format="%(levelname)s: %(message)s")
    for noisy in ("httpx", "httpx2", "urllib3", "PIL", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if len(arguments) > 1 and arguments[0] == "train" and arguments[1].endswith((".yaml", ".yml")):
        arguments.insert(1, "run")  # `musev train CONFIG.yaml`
    options = _parser(arguments[0] if arguments else None).parse_args(arguments)
    logging.getLogger().setLevel("DEBUG" if options.debug else options.log_level.upper())
    return options.run(options)


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musev", description="Videos of a person that stays that person.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_demo, add_generate, add_join, add_models, add_pose, add_train):
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
