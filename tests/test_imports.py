"""What importing costs, and what depends on what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("diffusers", "transformers", "cv2", "av", "skimage", "controlnet_aux", "xformers", "insightface")


def in_new_process(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return run.stdout


def test_importing_the_library_is_fast_and_light():
    code = (
        "import sys, time, torch\n"
        "start = time.process_time()\n"
        "import musev_core, musev_core.pipeline, musev_core.loading\n"
        "print(time.process_time() - start)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    # the first run may still compile bytecode, which an installed library does not
    seconds, loaded = min((in_new_process(code).split("\n")[:2] for _ in range(3)), key=lambda out: float(out[0]))
    assert loaded == "[]"
    assert float(seconds) < 0.3


def test_the_library_knows_neither_comfyui_nor_the_nodes():
    for path in (ROOT / "musev_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level or not (node.module or "").startswith("musev_core"), (
                    f"{path}: absolute import of itself"
                )
                names = [] if node.level else [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top not in ("comfy", "comfy_api", "folder_paths", "nodes", "execution"), f"{path} imports {name}"


def _opens_text_without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text file in the encoding of the system; ruff sees it only where it knows the type."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name not in ("open", "fdopen", "read_text", "write_text") or (
        name == "open" and owner in ("av", "Image", "opener", "os", "tarfile")
    ):
        return False
    texts = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
    binary = name in ("open", "fdopen") and any(
        isinstance(text, str) and re.fullmatch("[rwxa]b[+]?", text) for text in texts
    )
    return not binary and "encoding" not in [keyword.arg for keyword in call.keywords]


def test_text_files_are_read_and_written_as_utf8_by_name():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("musev_core", "nodes", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _opens_text_without_encoding(node)
    ]
    assert found == []


def test_every_package_is_listed_for_installation():
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in (ROOT / "musev_core").rglob("__init__.py"):
        name = ".".join(folder.parent.relative_to(ROOT).parts)
        assert f'"{name}"' in config, f"{name} would be missing from an installed library"
