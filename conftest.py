"""Options of the test suite, and how its root is collected."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

# tests start a hundred processes: without bytecode, as in many containers, each compiles torch anew for five seconds
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # torch's threads wait in a loop: of two processes on two cores each would slow the other down many times over
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--goldens DIR` replays another set of golden cases, `--comfyui VERSION` tests in another ComfyUI."""
    parser.addoption(
        "--goldens",
        metavar="DIR",
        default=str(ROOT / "tests" / "goldens" / "public"),
        help="folder with cases.json and arrays (tests/goldens/FORMAT.md); default: the public set",
    )
    parser.addoption(
        "--comfyui",
        metavar="VERSION",
        default="0.30.0",
        help="ComfyUI for tests/comfyui: 0.30.0 (default) or 0.16.3; COMFYUI_PATH gives a tree of your own instead",
    )


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
    """The root is the node pack, a package in ComfyUI's eyes only: importing it here would shadow `nodes`."""
    return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None
