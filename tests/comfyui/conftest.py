"""Tests in a real ComfyUI; for its requirements: `uv run --isolated --group comfyui pytest -n 0 tests/comfyui`."""

import sys
from pathlib import Path

import pytest
from support import comfyui

_started: dict[str, str | None] = {}  # version -> why there is none


def _why_not(version: str) -> str | None:
    if version not in _started:
        try:
            if missing := comfyui.missing_requirements():
                raise comfyui.NoComfyUI(
                    f"its requirements are not installed here ({', '.join(missing)}): "
                    "uv run --isolated --group comfyui pytest -n 0 tests/comfyui"
                )
            if "musev_core" in sys.modules and comfyui.PACK not in sys.modules:
                raise comfyui.NoComfyUI("other tests run in this process: run tests/comfyui on its own")
            comfyui.start(version)
            _started[version] = None
        except comfyui.NoComfyUI as error:
            _started[version] = f"no ComfyUI {version}: {error}"
    return _started[version]


class _Unavailable(pytest.Module):
    def collect(self):
        pytest.skip(_why_not(self.config.getoption("comfyui")), allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector):
    """ComfyUI is started before the first test module is imported; without one every module is skipped."""
    if _why_not(parent.config.getoption("comfyui")) is not None:
        return _Unavailable.from_parent(parent, path=module_path)
    return None


@pytest.fixture(autouse=True)
def _as_in_the_server():
    """Nodes run under inference mode there."""
    import torch

    with torch.inference_mode():
        yield
