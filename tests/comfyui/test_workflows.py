"""The example workflows: complete and tidy as files, and each executed by a real server with tiny models."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from support.comfy_server import running
from support.comfy_workflows import LONG, NAMES, WORKFLOWS, api, of_class, small, ui
from support.comfyui import ROOT

FOLDERS = {"checkpoints", "clip_vision", "controlnet", "ipadapter", "loras", "musev"}
MODEL_FILE = re.compile(r".*\.(safetensors|bin|pth|onnx)$")
FRAMES = {"continue_with_a_new_prompt": 9, "long_video_with_references": LONG}  # that `small` makes; others 5


@pytest.fixture(scope="module")
def server(request):
    return running(request.config.getoption("comfyui"))


@pytest.mark.parametrize("name", NAMES)
class TestFile:
    def test_names_the_pack_of_every_node(self, name):
        for node in ui(name)["nodes"]:
            ours = node["type"].startswith("MuseV_")
            properties = node["properties"]
            assert properties["cnr_id"] == ("musev-nodes" if ours else "comfy-core"), node["type"]
            assert re.fullmatch(r"\d+\.\d+\.\d+", properties["ver"])
            assert properties["Node name for S&R"] == node["type"]

    def test_says_where_every_model_comes_from(self, name):
        for node in ui(name)["nodes"]:
            chosen = {v for v in node.get("widgets_values", []) if isinstance(v, str) and MODEL_FILE.fullmatch(v)}
            named = {model["name"]: model for model in node["properties"].get("models", [])}
            assert named.keys() == chosen, node["type"]
            for model in named.values():
                assert model["url"].startswith(("https://huggingface.co/", "https://civitai.com/"))
                assert model["directory"] in FOLDERS

    def test_keeps_its_seeds(self, name):
        for node in ui(name)["nodes"]:
            assert not {"randomize", "increment", "decrement"} & set(map(str, node.get("widgets_values", [])))

    def test_has_a_note_which_explains_knobs(self, name):
        (note,) = [node for node in ui(name)["nodes"] if node["type"] == "MarkdownNote"]
        (text,) = note["widgets_values"]
        knobs = re.findall(r"^- \*\*", text, re.M)
        assert len(knobs) in (2, 3)
        titles = {node.get("title") for node in ui(name)["nodes"]}
        assert "Read me" in titles

    def test_is_laid_out_without_overlap_in_groups(self, name):
        graph = ui(name)
        boxes = [(n["type"], _box(n)) for n in graph["nodes"]]
        for i, (first, a) in enumerate(boxes):
            for second, b in boxes[i + 1 :]:
                assert not _meet(a, b), f"{first} and {second}"
        groups = [g["bounding"] for g in graph["groups"]]
        for i, a in enumerate(groups):
            assert not any(_meet(_corners(a), _corners(b)) for b in groups[i + 1 :])
        for kind, box in boxes:
            if kind != "MarkdownNote":
                assert sum(_inside(box, _corners(g)) for g in groups) == 1, kind

    def test_is_the_same_graph_as_its_api_copy(self, name):
        links = {link[0]: link for link in ui(name)["links"]}
        nodes = {str(n["id"]): n for n in ui(name)["nodes"] if n["type"] != "MarkdownNote"}
        copy = api(name)
        assert {i: n["type"] for i, n in nodes.items()} == {i: n["class_type"] for i, n in copy.items()}
        for i, node in nodes.items():
            wired = {
                x["name"]: [str(links[x["link"]][1]), links[x["link"]][2]]
                for x in node.get("inputs", [])
                if x.get("link") is not None
            }
            assert wired == {k: v for k, v in copy[i]["inputs"].items() if isinstance(v, list)}, node["type"]

    def test_has_a_thumbnail(self, name):
        file = WORKFLOWS / f"{name}.jpg"
        assert file.stat().st_size < 200_000
        with Image.open(file) as picture:
            assert picture.format == "JPEG" and min(picture.size) >= 300


def _box(node):
    (x, y), (w, h) = node["pos"], node["size"]
    return x, y - 30, x + w, y + h  # the title is above


def _corners(bounding):
    x, y, w, h = bounding
    return x, y, x + w, y + h


def _meet(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(a, b):
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def test_every_feature_that_users_ask_for_has_an_example():
    assert set(NAMES) == {
        *("image_to_video", "long_video_with_references", "text_to_image_to_video", "video_to_video"),
        *("pose_to_video", "face_id", "lcm_fast", "continue_with_a_new_prompt", "prompt_that_changes", "demo"),
    }
    assert not (ROOT / "example_workflows").exists()  # ComfyUI would then serve only one of the two folders
    used = {node["class_type"] for name in NAMES for node in api(name).values()}
    assert used >= {"MuseV_Sampler", "MuseV_ApplyMotion", "MuseV_ContinueVideo", "MuseV_ApplyFaceID", "MuseV_AlignPose"}


def test_the_demo_of_the_original_is_covered():
    """extra.md 7.3: what its two tabs offered, and what they fixed."""
    for name in ("image_to_video", "pose_to_video"):
        nodes = list(api(name).values())
        kinds = {node["class_type"] for node in nodes}
        assert kinds >= {"MuseV_ApplyReferenceNet", "MuseV_ApplyIPAdapter", "CreateVideo", "LoadImage"}
        (sampler,) = [n["inputs"] for n in nodes if n["class_type"] == "MuseV_Sampler"]
        assert (sampler["steps"], sampler["cfg"], sampler["denoise"]) == (10, 3.5, 1.0)
        (motion,) = [n["inputs"] for n in nodes if n["class_type"] == "MuseV_ApplyMotion"]
        assert motion["motion_speed"] == 8
        (start,) = [n["inputs"] for n in nodes if n["class_type"] == "MuseV_ImageToVideo"]
        assert {"width", "height", "length", "size_ratio"} <= start.keys()
    kinds = {node["class_type"] for node in api("pose_to_video").values()}
    assert kinds >= {"LoadVideo", "MuseV_PreprocessControl", "MuseV_AlignPose", "ControlNetApplyAdvanced"}


@pytest.fixture(scope="module")
def film(server):
    """The frames that the server makes of a workflow; every workflow runs once."""
    known = {}

    def run(workflow):
        key = json.dumps(workflow)
        if key not in known:
            run = server.run(workflow)
            assert run.end == "execution_success", run.error
            for node, parts in run.progress().items():
                assert parts == sorted(parts) and parts[-1] == 1, workflow[node]["class_type"]
            known[key] = server.video_frames(run.outputs()[of_class(workflow, "SaveVideo")])
        return known[key]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_server_executes_it(film, name):
    frames = film(small(name))
    assert len(frames) == FRAMES.get(name, 5)
    assert frames.std() > 1  # a picture, not one colour


# what the notes in the workflows, and common sense, say that matters; a number is the node of this id
KNOBS = {
    "image_to_video": [
        ("MuseV_ApplyMotion", "motion_speed", 16.0),
        ("LoadImage", "image", "upside_down.png"),
        ("MuseV_Sampler", "seed", 1),
        (
            "7",
            "text",
            "(masterpiece, best quality, highres:1), a girl smiles and turns her head, hair in the wind, hard light",
        ),
        ("8", "text", "lowres"),
    ],
    "long_video_with_references": [("MuseV_ContextWindows", "context_overlap", 8)],
}


@pytest.mark.parametrize(("name", "node", "knob", "value"), [(name, *each) for name in KNOBS for each in KNOBS[name]])
def test_a_knob_changes_the_video(film, name, node, knob, value):
    turned = small(name)
    inputs = turned[node if node.isdigit() else of_class(turned, node)]["inputs"]
    assert inputs[knob] != value
    inputs[knob] = value
    before, after = film(small(name)), film(turned)
    assert np.abs(before.astype(float) - after).mean() > 0.1  # of 255
