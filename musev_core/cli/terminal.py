"""What all commands share: their parsers, and lines for the person at the terminal."""

import argparse
import sys
from typing import Any


def say(text: str, file: Any = None) -> None:
    """One line for the person at the terminal."""
    print(text, file=file or sys.stdout, flush=True)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of descriptions."""


def add_command(commands: Any, name: str, run: Any, help: str, description: str = "") -> argparse.ArgumentParser:
    """The parser of a command, whose options go to `run`."""
    parser = commands.add_parser(name, help=help, description=f"{help}\n\n{description}", formatter_class=_Help)
    parser.set_defaults(run=run)
    levels = ["debug", "info", "warning", "error"]
    parser.add_argument("--log_level", type=str.lower, default="info", choices=levels, help="how much is told")
    parser.add_argument("--debug", action="store_true", help="tell everything, with tracebacks of errors")
    return parser
