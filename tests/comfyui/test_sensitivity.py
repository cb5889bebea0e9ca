"""Every input of every node matters: changing it changes exactly the results that its row of the table names."""

import itertools
import re

import folder_paths
import pytest
from support.node_inputs import TABLE
from support.node_results import write_files
from support.node_texts import schemas
from support.sensitivity import Others, changed, unnoticed

from musev_pack.nodes.host import paths

ROWS = [(node, name) for node, subject in TABLE.items() for name in subject.rows]


@pytest.fixture(scope="module", autouse=True)
def disk(tmp_path_factory):
    """ComfyUI's folder of models."""
    models = tmp_path_factory.mktemp("models")
    write_files(models / "musev")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "models_dir", str(models))
        patch.setattr(
            folder_paths, "folder_names_and_paths", {name: ([], set()) for name in ("diffusers", "custom_nodes")}
        )
        patch.setattr(folder_paths, "filename_list_cache", {})
        paths.register()
        yield


def test_every_input_has_a_row_and_every_row_an_input():
    inputs = {node: sorted(each.id for each in schema.inputs) for node, schema in schemas().items()}
    assert {node: sorted(subject.rows) for node, subject in TABLE.items()} == inputs
    assert all(subject.inputs.keys() >= subject.rows.keys() for subject in TABLE.values())


@pytest.mark.parametrize(("node", "name"), ROWS)
def test_an_input_changes_what_it_should_and_nothing_else(node, name):
    subject = TABLE[node]
    row = subject.rows[name]
    runs = [subject.baseline(row.beside)]
    for value in _values(node, name):
        runs.append(subject.results(**{**row.beside, name: value}))
        assert changed(runs[0], runs[-1]) == set(row.see.split()), value
    for one, other in itertools.combinations(runs, 2):
        assert changed(one, other) == set(row.see.split())
        assert not unnoticed(one, other)


@pytest.mark.parametrize("node", [node for node, subject in TABLE.items() if subject.rows])
def test_the_same_inputs_give_the_same_results(node):
    """So that what differs does because of the input."""
    assert not changed(TABLE[node].baseline({}), TABLE[node].results())


OFF = [(node, name) for node, name in ROWS if TABLE[node].rows[name].off is not None]
NEVER_OFF = {
    ("MuseV_ApplyMotion", "frame_strength"): "a mask: each of its values belongs to one frame",
    ("MuseV_Noise", "individual_weight"): "0 gives every frame the same noise",
    ("MuseV_Noise", "image_weight"): "0 leaves the node's other settings",
    ("MuseV_ApplyFaceID", "lora_strength"): "0 leaves the face",
}


def test_every_strength_switches_off():
    strengths = {(node, name) for node, name in ROWS if re.search("strength|weight|amount", name)}
    assert strengths - set(OFF) == NEVER_OFF.keys()


@pytest.mark.parametrize(("node", "name"), OFF)
def test_what_is_switched_off_is_as_if_the_node_were_not_there(node, name):
    subject = TABLE[node]
    assert not changed(subject.without(), subject.results(**{name: subject.rows[name].off}))


def _values(node, name):
    row = TABLE[node].rows[name]
    if row.to is not Others:
        return [row.to]
    (options,) = (each.options for each in schemas()[node].inputs if each.id == name)
    given = {**TABLE[node].inputs, **row.beside}[name]
    return [option for option in options if option != given]
