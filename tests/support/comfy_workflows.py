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


def executed(graph: dict, node: str, nodes: dict[str, type], done: dict[str, tuple]) -> tuple:
    """What a node of a graph in API format gives, with everything before it.

    Args:
        nodes: classes by name; those of the pack by their ids, ComfyUI's own by NODE_CLASS_MAPPINGS.
        done: results so far, by the id of the node in the graph.
    """
    if node not in done:
        kind = nodes[graph[node]["class_type"]]
        inputs = {
            name: executed(graph, value[0], nodes, done)[value[1]] if isinstance(value, list) else value
            for name, value in graph[node]["inputs"].items()
        }
        if hasattr(kind, "define_schema"):
            done[node] = kind.execute(**inputs).result
        else:
            made = kind()
            done[node] = getattr(made, made.FUNCTION)(**inputs)
    return done[node]
