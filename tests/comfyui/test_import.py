"""What loading the pack costs ComfyUI, and what it needs."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.comfyui import ROOT, import_pack

# not ComfyUI's: a missing or broken one may cost one feature, never the pack
OPTIONAL = ("diffusers", "controlnet_aux", "cv2", "skimage", "onnxruntime", "insightface", "xformers")
TRAINING = ("accelerate", "h5py", "tensorboard", "mediapipe", "timm")
NOT_OURS = ("huggingface_hub", "transformers")  # ComfyUI needs them itself, in a version that we have no say in

SCRIPT = """
import asyncio, builtins, json, sys, time
sys.path.insert(0, {tests!r})
broken = {broken!r}
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in broken:
            raise ImportError("broken on purpose: " + name)
def ours_only(name, globals=None, locals=None, fromlist=(), level=0, real=builtins.__import__):
    importer = (globals or {{}}).get("__name__", "")
    if not level and name.partition(".")[0] in {not_ours!r} and importer.startswith(comfyui.PACK):
        raise ImportError("broken on purpose: " + name)
    return real(name, globals, locals, fromlist, level)
from support import comfyui
sys.path.insert(0, str(comfyui.tree({version!r})))
sys.argv = sys.argv[:1]
from comfy.cli_args import args
args.cpu = True
import nodes, comfy.samplers, comfy.sd, comfy.context_windows, comfy_api.latest
import comfy.cldm.cldm, comfy.clip_vision, latent_preview
sys.meta_path.insert(0, Broken())
builtins.__import__ = ours_only
before = set(sys.modules)
start = time.process_time()
extension = asyncio.run(comfyui.import_pack().comfy_entrypoint())
found = asyncio.run(extension.get_node_list())
seconds = time.process_time() - start
new = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
classes = {{node.define_schema().node_id: node for node in found}}
result = {{"seconds": seconds, "new": new, "nodes": list(classes)}}
{then}
print(json.dumps(result))
"""
DEMO = """
import torch
from support.comfy_workflows import executed, of_class, small
before = set(sys.modules)
with torch.inference_mode():
    graph, done = small("demo"), {}
    executed(graph, of_class(graph, "MuseV_LoadDemo"), classes, done)
    result["demo"] = len(set(sys.modules) - before)
    (frames,) = executed(graph, of_class(graph, "VAEDecode"), nodes.NODE_CLASS_MAPPINGS | classes, done)
result["shape"], result["finite"] = list(frames.shape), bool(frames.isfinite().all())
"""


def loaded(version: str, broken: tuple[str, ...] = (), not_ours: tuple[str, ...] = (), then: str = "") -> dict:
    """What importing the pack does in a fresh process, and what is done `then`."""
    script = SCRIPT.format(tests=str(ROOT / "tests"), version=version, broken=broken, not_ours=not_ours, then=then)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def version(request):
    return request.config.getoption("comfyui")


def test_the_extension_lists_its_nodes():
    extension = asyncio.run(import_pack().comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    assert len({node.define_schema().node_id for node in nodes}) == len(nodes) == 22
    assert all(node.define_schema().node_id.startswith("MuseV_") for node in nodes)


def test_importing_costs_less_than_half_a_second(version):
    result = loaded(version)
    assert result["seconds"] < 0.5
    assert not set(result["new"]) & {*OPTIONAL, *TRAINING, *NOT_OURS, "scipy"}


def test_the_demo_runs_where_every_optional_package_is_broken(version):
    result = loaded(version, (*OPTIONAL, *TRAINING), NOT_OURS, DEMO)
    assert len(result["nodes"]) == 22
    assert result["demo"] < 60  # modules that Load MuseV Demo imports; once 700, and ten seconds of silence
    assert result["finite"] and result["shape"] == [5, 32, 32, 3]


def test_a_broken_package_disables_one_feature_with_a_sentence(monkeypatch):
    import torch

    from musev_core.errors import MissingPackageError
    from musev_pack.nodes.pose import PreprocessControl
    from musev_pack.nodes.video import MatchColor

    for module in ("cv2", "skimage", "controlnet_aux"):
        monkeypatch.setitem(sys.modules, module, None)
    images = torch.rand(2, 16, 16, 3)
    assert MatchColor.execute(images, images[:1], "histogram", 1.0).result[0].shape == images.shape
    assert PreprocessControl.execute(images, "tile", 0).result[0].shape == images.shape
    with pytest.raises(MissingPackageError, match="pip install opencv-python-headless numpy=="):
        PreprocessControl.execute(images, "canny", 0)
    with pytest.raises(MissingPackageError, match="pip install --no-deps controlnet_aux and pip install opencv"):
        PreprocessControl.execute(images, "hed", 0)


def test_the_door_imports_without_comfyui_and_torch():
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('pack', {str(ROOT / '__init__.py')!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "assert not {'torch', 'comfy', 'comfy_api'} & set(sys.modules)\n"
        "assert callable(module.comfy_entrypoint) and module.WEB_DIRECTORY == './web'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not hasattr(import_pack(), "NODE_CLASS_MAPPINGS")  # even an empty one would hide the entry point
    assert (Path(ROOT) / "web" / "docs").is_dir()
