"""The nodes' schemas: frozen for saved workflows, explained on every socket, understood by old ComfyUIs."""

import copy
import inspect
import json
import re

import pytest
from support.node_texts import (
    HOW_TO_UPDATE,
    SNAPSHOT,
    UPDATE,
    broken_promises,
    node_classes,
    promise,
    schemas,
    write_json,
)

CATEGORIES = {"MuseV", "MuseV/loaders", "MuseV/model", "MuseV/latent", "MuseV/control", "MuseV/video"}
VERBS = {"Align", "Apply", "Continue", "Draw", "Join", "Load", "Match", "Measure", "Preprocess", "Sample", "Set"}
VERBS |= {"Stream", "Visualize"}
NAMED_AS_THE_FIELD_DOES = {"Image to Video", "Video to Video"}

# what every ComfyUI knows; later fields are passed where the dataclass has them
SCHEMA_FIELDS = {"node_id", "display_name", "category", "inputs", "outputs", "hidden", "description", "is_input_list"}
SCHEMA_FIELDS |= {"is_output_node", "is_deprecated", "is_experimental", "is_api_node", "not_idempotent"}
SCHEMA_FIELDS |= {"enable_expand"}
INPUT_SETTINGS = {"optional", "tooltip", "default", "min", "max", "step", "round", "options", "multiselect"}
INPUT_SETTINGS |= {"multiline", "control_after_generate"}
TYPES = {"MODEL", "CLIP", "VAE", "CLIP_VISION", "CONTROL_NET", "CONDITIONING", "LATENT", "IMAGE", "MASK", "VIDEO"}
TYPES |= {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
OWN_TYPES = {"MUSEV_MOTION", "MUSEV_REFERENCENET", "MUSEV_IPADAPTER", "POSE_KEYPOINT", "INSIGHTFACE"}


def promises() -> dict:
    return {node: promise(schema) for node, schema in schemas().items()}


def snapshot() -> dict:
    return json.loads(SNAPSHOT.read_text(encoding="utf-8"))


@pytest.fixture(params=list(schemas()))
def schema(request):
    return schemas()[request.param]


class TestPromise:
    def test_saved_workflows_keep_working(self):
        now = promises()
        broken = {node: broken_promises(before, now.get(node)) for node, before in snapshot().items()}
        broken = {node: why for node, why in broken.items() if why}
        assert not broken, (
            "Saved workflows would break. Allowed are new nodes, new optional inputs after the others, new outputs "
            f"after the others, more options and wider ranges. What was never released may be deleted from "
            f"{SNAPSHOT.name} first."
        )
        if UPDATE:
            write_json(SNAPSHOT, now)

    def test_the_snapshot_shows_the_nodes_as_they_are(self):
        assert snapshot() == promises(), f"If this change of the nodes is wanted: {HOW_TO_UPDATE}"


BEFORE = {
    "display_name": "Set Speed",
    "inputs": [
        {"id": "model", "type": "MODEL"},
        {"id": "speed", "type": "FLOAT", "default": 8.0, "min": 0.0, "max": 64.0},
        {"id": "curve", "type": "COMBO", "default": "linear", "options": ["linear", "cubic"]},
        {"id": "mask", "type": "MASK", "optional": True},
    ],
    "outputs": [{"type": "MODEL", "name": "model"}],
}
NEW_INPUT = {"id": "count", "type": "INT", "default": 1, "min": 1, "max": 9}


class TestBrokenPromises:
    @pytest.mark.parametrize(
        "change",
        [
            lambda node: None,
            lambda node: node["inputs"].append(NEW_INPUT | {"optional": True}),
            lambda node: node["outputs"].append({"type": "INT", "name": "count"}),
            lambda node: node["inputs"][1].update(min=-1.0, max=128.0),
            lambda node: node["inputs"][2].update(options=["linear", "steps", "cubic"]),
            lambda node: node["inputs"][0].update(optional=True),
        ],
        ids=["nothing", "optional input", "output", "wider range", "more options", "less required"],
    )
    def test_growth_is_none(self, change):
        now = copy.deepcopy(BEFORE)
        change(now)
        assert broken_promises(BEFORE, now) == []

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda node: node["inputs"].append(NEW_INPUT), "the new input count is not optional"),
            (lambda node: node["inputs"].insert(3, NEW_INPUT | {"optional": True}), "input 3 is no longer mask"),
            (lambda node: node["inputs"].pop(), "input 3 is no longer mask"),
            (lambda node: node["inputs"][1].update(id="pace"), "input 1 is no longer speed"),
            (lambda node: node["inputs"][1].update(type="INT"), "input speed: its type is INT, it was FLOAT"),
            (lambda node: node["inputs"][1].update(default=9.0), "input speed: its default is 9.0, it was 8.0"),
            (lambda node: node["inputs"][1].update(min=1.0), "input speed: its least value is 1.0, it was 0.0"),
            (lambda node: node["inputs"][1].update(max=32.0), "input speed: its largest value is 32.0, it was 64.0"),
            (lambda node: node["inputs"][2]["options"].remove("cubic"), "input curve: it lost the options cubic"),
            (lambda node: node["inputs"][3].pop("optional"), "input mask: it was optional"),
            (lambda node: node["outputs"][0].update(type="IMAGE"), "output 0 is no longer MODEL 'model'"),
            (lambda node: node["outputs"].clear(), "output 0 is no longer MODEL 'model'"),
        ],
    )
    def test_everything_else_is_one(self, change, why):
        now = copy.deepcopy(BEFORE)
        change(now)
        assert why in broken_promises(BEFORE, now)

    def test_a_node_that_is_gone_is_one(self):
        assert broken_promises(BEFORE, None) == ["the node is gone"]


class TestTexts:
    def test_every_socket_has_a_tooltip_of_whole_sentences(self, schema):
        for name, text in _texts(schema).items():
            assert text and text == text.strip() and text.endswith("."), f"{name}: {text!r}"

    def test_tooltips_of_numbers_say_what_the_number_means(self, schema):
        for each in schema.inputs:
            if each.get_io_type() in ("INT", "FLOAT"):
                assert re.search(
                    r"\d|[Ff]rames?\b|pixels|[Ss]teps?\b|[Ss]hare|[Ff]actor|[Mm]ore|[Ll]ess|[Ll]arger|[Ll]ower|seed",
                    each.tooltip,
                ), f"{each.id} has neither unit nor range nor direction: {each.tooltip!r}"

    def test_tooltips_name_every_option(self, schema):
        for each, promised in zip(schema.inputs, promise(schema)["inputs"], strict=True):
            named = re.findall(r"\w+", each.tooltip)
            missing = [name for name in promised.get("options", []) if name not in named and "pose" not in name]
            assert not missing, f"{each.id}: {each.tooltip!r}"

    def test_texts_are_plain(self, schema):
        for name, text in {"display name": schema.display_name, **_texts(schema)}.items():
            assert text.isascii(), f"{name}: {text!r}"  # no emoji, no look-alikes of ordinary characters

    def test_the_name_begins_with_a_verb(self, schema):
        first = schema.display_name.split()[0]
        assert first in VERBS or schema.display_name in NAMED_AS_THE_FIELD_DOES

    def test_names_are_unique(self):
        names = [schema.display_name for schema in schemas().values()]
        assert len(set(names)) == len(names)

    def test_it_is_in_the_packs_menu(self, schema):
        assert schema.category in CATEGORIES


class TestOldComfyUI:
    def test_only_fields_it_knows_are_set(self, schema):
        plain = type(schema)(node_id=schema.node_id)
        used = {name for name in vars(schema) if getattr(schema, name) != getattr(plain, name)}
        assert used <= SCHEMA_FIELDS

    def test_only_settings_and_types_it_knows_are_used(self, schema):
        for each in schema.inputs:
            assert set(each.as_dict()) <= INPUT_SETTINGS, each.id
        sockets = {each.get_io_type() for each in [*schema.inputs, *schema.outputs]}
        assert sockets <= TYPES | OWN_TYPES

    def test_an_output_has_a_name_but_no_id(self, schema):
        assert all(each.id is None and each.display_name for each in schema.outputs)


@pytest.mark.parametrize("node", node_classes(), ids=lambda node: node.__name__)
def test_execute_takes_the_inputs(node):
    schema, parameters = node.define_schema(), inspect.signature(node.execute).parameters
    assert list(parameters) == [each.id for each in schema.inputs]
    optional = {each.id for each in schema.inputs if each.optional}
    assert all(parameters[name].default is not inspect.Parameter.empty for name in optional)


def _texts(schema) -> dict[str, str]:
    named = {f"input {each.id}": each.tooltip for each in schema.inputs}
    named |= {f"output {each.display_name}": each.tooltip for each in schema.outputs}
    return {"description": schema.description, **named}
