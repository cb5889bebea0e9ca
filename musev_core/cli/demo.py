"""`musev demo`."""

import argparse
from pathlib import Path
from typing import Any

from .terminal import add_command, say


def add_demo(commands: Any) -> None:
    """Adds the command `demo`."""
    parser = add_command(commands, "demo", _demo, "Make three short films with the model inside the package.")
    parser.add_argument("--output_dir", type=Path, default=Path("musev-results"), help="where the results go")
    parser.add_argument("--prompt", default=None, help="another caption for the first film, in the toy world's words")
    parser.add_argument("--image", type=Path, default=None, help="another picture for the first film to start from")
    parser.add_argument("--frames", type=int, default=120, help="frames of the long film; any number")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other films")


def _demo(options: argparse.Namespace) -> int:
    from ..demo.showcase import demo

    return demo(options, say)
