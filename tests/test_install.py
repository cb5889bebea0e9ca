"""What installing promises is what is tested and imported. What pip makes of it: tests/comfyui/test_install.py."""

import ast
import importlib.metadata
import json
import re
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from support.comfyui import VERSIONS

from musev_core.errors import MissingPackageError, install_command, require

ROOT = Path(__file__).parents[1]
CONFIG = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
OLDEST = min(VERSIONS, key=lambda version: [int(n) for n in version.split(".")])


def listed(title: str) -> list[str]:
    """The strings of a list in pyproject.toml."""
    return re.findall(r'^ *"(.+?)",', CONFIG.partition(f"\n{title} = [")[2].partition("\n]")[0], re.M)


def test_the_oldest_comfyui_promised_is_the_oldest_one_tested() -> None:
    assert re.findall(r'requires-comfyui = "(.+)"', CONFIG) == [f">={OLDEST}"]
    in_ci = re.findall(r"comfyui (\d[\d.]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert set(in_ci) == set(VERSIONS)
    assert f"({OLDEST} or newer)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"（{OLDEST} 及以上）" in (ROOT / "README-zh.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("workflow", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_templates_ask_for_the_oldest_comfyui_promised(workflow: Path) -> None:
    nodes = json.loads(workflow.read_text(encoding="utf-8"))["nodes"]
    versions = {n["properties"]["ver"] for n in nodes if n["properties"].get("cnr_id") == "comfy-core"}
    assert versions == {OLDEST}


def required() -> set[str]:
    """First names of the modules that the library asks `require` for."""
    found = set()
    for path in (ROOT / "musev_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "require",
                "import_module",
            ):
                found |= {a.value.split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


def test_what_deptry_cannot_see_is_imported_by_name() -> None:
    """It knows import statements; `require` takes a string."""
    modules = {"opencv-python-headless": "cv2"}
    unseen = {modules.get(name, name) for name in listed("DEP002")}
    assert unseen <= required()


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_keeps_numpy_and_torch() -> None:
    numpy, torch = (importlib.metadata.version(name) for name in ("numpy", "torch"))
    assert install_command("h5py") == f"pip install h5py numpy=={numpy} torch=={torch}"


class Breaks(PathFinder):
    """Finds one package, whose import then raises what it likes."""

    error: Exception

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "some_package":
            raise cls.error
        return None


@pytest.mark.parametrize(
    "error",
    [ImportError("no such file"), AttributeError("module 'numpy' has no attribute 'bool8'"), RuntimeError("ABI")],
)
def test_a_broken_package_is_as_good_as_none(monkeypatch, error) -> None:
    monkeypatch.setattr(Breaks, "error", error, raising=False)
    monkeypatch.setattr("sys.meta_path", [Breaks])
    with pytest.raises(
        MissingPackageError, match="Drawing needs .*'some_package'.*: pip install some-package"
    ) as caught:
        require("some_package", install="some-package", purpose="Drawing")
    assert str(error) in str(caught.value)
