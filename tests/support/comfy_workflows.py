"""The example workflows as tests use them."""

import copy
import json

from .comfyui import ROOT

WORKFLOWS = ROOT / "workflows"
NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))

_SMALL = {  # class -> inputs; frames and sizes that tiny models on a CPU finish in seconds
    "EmptyLatentImage": {"width": 32, "height": 32},
    "ImageFromBatch": {"length": 5},
    "KSampler": {"steps": 2},
    "MuseV_ContinueVideo": {"length": 5},
    "MuseV_PreprocessControl": {"resolution": 64},
    "MuseV_Sampler": {"steps": 2},
    "MuseV_VideoToVideo": {"width": 32, "height": 32},
}
_SHORTER = {20: 2, 9: 1}  # frames that have the same prompt
LONG = 17  # one condition frame and two windows


def ui(name: str) -> dict:
    """A workflow as the front end saves it."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def api(name: str) -> dict:
    """Its copy in API format: node id -> class and inputs."""
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))


def small(name: str) -> dict:
    """A copy in API format with few frames, small pictures and two steps; what it is about stays as it is."""
    nodes = copy.deepcopy(api(name))
    for node in nodes.values():
        inputs = node["inputs"]
        inputs.update(_SMALL.get(node["class_type"], {}))
        if node["class_type"] == "MuseV_ImageToVideo":
            inputs.update({side: 32 for side in ("width", "height") if inputs[side]})
            if isinstance(inputs["length"], int):
                inputs["length"] = LONG if inputs["length"] > 100 else 5
        if node["class_type"] == "EmptyImage":
            inputs["batch_size"] = _SHORTER[inputs["batch_size"]]
        if node["class_type"] == "MuseV_ApplyFaceID":  # insightface and its models are not for tests to download
            inputs["insightface"] = ["faces", 0]
            nodes = nodes | {"faces": {"class_type": "Test_Faces", "inputs": {}}}
    return nodes


def of_class(nodes: dict, class_type: str) -> str:
    """The id of the only node of a class."""
    (found,) = [i for i, node in nodes.items() if node["class_type"] == class_type]
    return found
