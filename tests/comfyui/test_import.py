"""What loading the pack costs ComfyUI, and what it needs."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.comfyui import ROOT, import_pack

# brought by requirements.txt or an extra: a missing or broken one may cost one feature, never the pack
OPTIONAL = ("diffusers", "controlnet_aux", "huggingface_hub", "skimage", "onnxruntime", "insightface", "xformers")
TRAINING = ("accelerate", "h5py", "tensorboard", "mediapipe", "timm")

SCRIPT = """
import asyncio, json, sys, time
sys.path.insert(0, {tests!r})
broken = {broken!r}
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in broken:
            raise ImportError("broken on purpose: " + name)
from support import comfyui
sys.path.insert(0, str(comfyui.tree({version!r})))
sys.argv = sys.argv[:1]
from comfy.cli_args import args
args.cpu = True
import nodes, comfy.samplers, comfy.sd, comfy.context_windows, comfy_api.latest
import comfy.cldm.cldm, comfy.clip_vision, latent_preview
sys.meta_path.insert(0, Broken())
before = set(sys.modules)
start = time.process_time()
extension = asyncio.run(comfyui.import_pack().comfy_entrypoint())
found = asyncio.run(extension.get_node_list())
seconds = time.process_time() - start
new = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
infos = [node.define_schema().node_id for node in found]
print(json.dumps({{"seconds": seconds, "new": new, "nodes": infos}}))
"""


def loaded(version: str, broken: tuple[str, ...] = ()) -> dict:
    """What importing the pack does in a fresh process."""
    script = SCRIPT.format(tests=str(ROOT / "tests"), version=version, broken=broken)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180)
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
    assert not set(result["new"]) & {*OPTIONAL, *TRAINING, "cv2", "scipy"}


def test_every_optional_package_may_be_broken(version):
    assert len(loaded(version, (*OPTIONAL, *TRAINING, "cv2"))["nodes"]) == 22


def test_a_broken_package_disables_one_feature_with_a_sentence(monkeypatch):
    import torch

    from musev_core.errors import MissingPackageError
    from musev_pack.nodes.video import MatchColor

    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.exposure", None)
    images = torch.rand(2, 16, 16, 3)
    assert MatchColor.execute(images, images[:1], "mean", 1.0).result[0].shape == images.shape
    with pytest.raises(MissingPackageError, match="scikit-image"):
        MatchColor.execute(images, images[:1], "histogram", 1.0)


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
