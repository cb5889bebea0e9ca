"""Options of the test suite, and how its root is collected."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent


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
