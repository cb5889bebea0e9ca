"""Any task file, model table or training configuration: a good result or a sentence, in bounded time and memory."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.bounded import bounded
from support.task_inputs import write_inputs

from musev_core.config import MAX_FRAMES
from musev_core.errors import MuseVError
from musev_core.tasks.dead import DEAD_PARAMETERS
from musev_core.tasks.files import load_tasks
from musev_core.tasks.model_table import load_model_table
from musev_core.tasks.task import FIELDS, Task
from musev_core.training.recipe import EXAMPLE, load_recipe

VALID = """\
base: &base {condition_images: ./a.png, refer_image: "${.condition_images}", motion_speed: 8.0}
tasks:
- <<: *base
  name: yongen
  prompt: (masterpiece, best quality:1.2), {mood} girl, (eye blinks:{eye_blinks_factor})
  mood: happy|sad
  eye_blinks_factor: 1.8
  ipadapter_image: ${.condition_images}
  video_path: null
  need_hist_match: off
- name: dance
  prompt: a girl is dancing
  condition_images: [./b.png]
  height: 128
  width: 64
  seed: 18446744073709551615
"""
TABLE = """\
majicmix:
  path: t2i/majicmix
  style: realistic
  loras:
    face.safetensors: 0.8
    dress.safetensors: {strength: 0.6, lora_block_weight: OUTALL}
anime: t2i/anime
"""
FILES = {"tasks": VALID, "table": TABLE, "recipe": EXAMPLE}
READERS = {"tasks": load_tasks, "table": load_model_table, "recipe": load_recipe}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("properties"))
    load_tasks(_write(folder, VALID.encode()))  # imports count as nothing
    return folder


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "x.yaml"
    path.write_bytes(content)
    return path


def check(kind: str, folder: Path, content: bytes) -> None:
    outcome = bounded(lambda: READERS[kind](_write(folder, content)), size=len(content))
    if isinstance(outcome, MuseVError):
        assert len(str(outcome)) < 20_000
    elif kind == "tasks":
        for task in outcome:
            assert isinstance(task, Task) and 1 <= task.n_batch * task.time_size <= MAX_FRAMES


# ---- bytes


_PIECES = st.sampled_from(
    [b"", b"\0", b"\xff", b"\t", b"\n", b"  ", b"- ", b"? ", b": ", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"*base",
     b"|", b"<<: ", b"${.", b"${.name}", b"${.prompt}", b"{x}", b"{}", b"!!python/object:x ", b"!x ", b"!!binary ",
     b"---\n", b"...\n", b"%YAML 1.2\n", b"9" * 5000, b"1e400", b".nan", b".inf", b"-1", b"0x1f", b"1:30",
     b"2024-02-31", b"'", b'"', b'"\\ud800"',
     b"\xef\xbb\xbf", b"a" * 3000, b"x|y" * 20, b"- " * 200, b"[" * 200, b"~", b"yes"]
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid file with a few pieces cut out and others put in."""
    content = valid
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 8, 40]))
        content = content[:start] + draw(_PIECES | st.binary(max_size=4)) + content[end:]
    return content


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_files_with_a_few_bytes_changed(kind, folder, data):
    check(kind, folder, data.draw(mutated(FILES[kind].encode())))


# ---- structures


_TEXT = st.text(max_size=20) | st.sampled_from(
    ["", "none", "a.png", "b.png", "clip.mp4", "x|y", "|" * 30, "${.name}", "${.prompt}${.prompt}", "{name}",
     "{hair} {x}", "{}", "${.x", "V2", "v9", "1e400", "\u0661", "1_0", "on", "../a.png", "a" * 300, "~nobody/x", "CON",
     "dwpose", "canny"]
)  # fmt: skip
_NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, 1, -1, 8, 64, 2**31, 2**64, 10**40, 1e-300, 1e300, float("inf"), float("nan")])
)
_LEAVES = st.none() | st.booleans() | _NUMBERS | _TEXT | st.binary(max_size=3) | st.dates()
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=6
)
_KEYS = st.sampled_from([*FIELDS, *DEAD_PARAMETERS, "my_note", "mood", "hair", "template_name", "insight_face"]) | _TEXT
_ENTRIES = st.dictionaries(_KEYS, _VALUES, max_size=8) | st.fixed_dictionaries(
    {"prompt": st.just("p"), "height": st.just(64), "width": st.just(64)},
    optional={key: _LEAVES for key in FIELDS if key not in ("prompt", "height", "width")},
)


def dumped(structure: Any) -> bytes:
    return yaml.safe_dump(structure, allow_unicode=True).encode("utf-8", "surrogatepass")


@given(entries=st.lists(_ENTRIES, min_size=1, max_size=4))
def test_tasks_of_any_fields(folder, entries):
    check("tasks", folder, dumped(entries))


@given(structure=_VALUES | st.dictionaries(_KEYS, _VALUES, max_size=4))
@pytest.mark.parametrize("kind", FILES)
def test_any_structure(kind, folder, structure):
    check(kind, folder, dumped(structure))


@given(
    models=st.dictionaries(
        _TEXT,
        _LEAVES
        | st.fixed_dictionaries(
            {"path": _LEAVES},
            optional={
                "loras": _VALUES | st.dictionaries(_TEXT, _VALUES, max_size=3),
                "style": _LEAVES,
                "sex": _VALUES,
                "lora": _LEAVES,
            },
        ),
        max_size=3,
    )
)
def test_model_tables_of_any_fields(folder, models):
    check("table", folder, dumped(models))


_VALID_RECIPE = yaml.safe_load(EXAMPLE)
_PLACES = [(group, key) for group, values in _VALID_RECIPE.items() if isinstance(values, dict) for key in values]
_PLACES += [("train", "seed"), ("train", "betas"), ("data", "rule"), ("data", "texts"), ("diffusion", "noise")]


@given(changes=st.lists(st.tuples(st.sampled_from(_PLACES), _VALUES), min_size=1, max_size=3))
def test_recipes_with_any_values(folder, changes):
    recipe = yaml.safe_load(EXAMPLE)
    for (group, key), value in changes:
        recipe[group][key] = value
    check("recipe", folder, dumped(recipe))


@given(text=st.text(alphabet="ab${.}|{,x ", max_size=60), other=st.text(alphabet="ab${.}|{,x ", max_size=60))
def test_references_alternatives_and_templates(folder, text, other):
    check("tasks", folder, dumped([{"prompt": text, "a": other, "b": text, "x": "y", "height": 64, "width": 64}]))
