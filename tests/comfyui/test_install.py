"""Installing the pack moves no package that ComfyUI's own requirements name or bring. Asked of pip itself.

An environment is what pip would install for ComfyUI's requirements: names, versions and what each asks for, without the
files (torch alone is gigabytes). A dry run of pip in it tells what another installation would do.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.comfyui import ROOT, tree

pytestmark = pytest.mark.slow

PIP = ("uv", "tool", "run", "--from", "pip", "pip")


def pip_install(*arguments: str, python: Path | None = None) -> dict[str, dict]:
    """What `pip install` would install, by name in lower case with hyphens."""
    where = ["--python", str(python)] if python else []
    command = [*PIP, *where, "install", "--quiet", "--dry-run", "--report", "-", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    packages = (item["metadata"] for item in json.loads(done.stdout)["install"])
    return {canonical(package["name"]): package for package in packages}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Environment:
    """A Python that has what ComfyUI's requirements bring."""

    def __init__(self, folder: Path, requirements: Path, *pins: str):
        self.packages = pip_install("--ignore-installed", "-r", str(requirements), *pins)
        subprocess.run(["uv", "venv", "--quiet", str(folder)], check=True, timeout=120)
        (self.python,) = folder.glob("*/python") or folder.glob("*/python.exe")
        (site,) = [path for path in folder.rglob("site-packages") if path.is_dir() and not path.is_symlink()]
        for package in self.packages.values():
            info = site / f"{canonical(package['name']).replace('-', '_')}-{package['version']}.dist-info"
            info.mkdir()
            (info / "RECORD").touch()
            fields = {"Metadata-Version": "2.1", "Name": package["name"], "Version": package["version"]}
            lines = [f"{key}: {value}" for key, value in fields.items()]
            lines += [f"Requires-Dist: {requirement}" for requirement in package.get("requires_dist", [])]
            lines += [f"Provides-Extra: {extra}" for extra in package.get("provides_extra", [])]
            (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def moved(self, *arguments: str) -> dict[str, str]:
        """What `pip install` would put in the place of a package that is there: name to `old -> new`."""
        installed = pip_install(*arguments, python=self.python)
        return {
            name: f"{self.packages[name]['version']} -> {package['version']}"
            for name, package in installed.items()
            if name in self.packages
        }


@pytest.fixture(scope="module")
def requirements(request):
    return tree(request.config.getoption("comfyui")) / "requirements.txt"


@pytest.fixture(scope="module")
def oldest(requirements, tmp_path_factory):
    """The oldest transformers that this ComfyUI allows, beside a numpy that many have kept."""
    (version,) = re.findall(r"^transformers>=([\d.]+)$", requirements.read_text(encoding="utf-8"), re.M)
    return Environment(tmp_path_factory.mktemp("oldest") / "env", requirements, f"transformers=={version}", "numpy<2")


@pytest.fixture(scope="module")
def newest(requirements, tmp_path_factory):
    """Everything at its newest."""
    return Environment(tmp_path_factory.mktemp("newest") / "env", requirements)


@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_installing_the_pack_moves_nothing(request, age):
    assert request.getfixturevalue(age).moved("-r", str(ROOT / "requirements.txt")) == {}


@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_the_commands_that_nodes_name_move_nothing(request, age):
    made = request.getfixturevalue(age)
    kept = [f"{name}=={made.packages[name]['version']}" for name in ("numpy", "torch")]
    assert made.moved("--no-deps", "controlnet_aux") == {}
    assert made.moved("opencv-python-headless", "scikit-image", "timm", "onnxruntime", *kept) == {}


@pytest.mark.parametrize(
    "package, moved",
    [
        ("diffusers", "huggingface-hub"),  # a requirement once; older transformers cannot be imported beside the newest
        ("controlnet_aux", "numpy"),
    ],
)
def test_the_dry_run_sees_what_would_break_comfyui(oldest, package, moved):
    assert moved in oldest.moved(package)
