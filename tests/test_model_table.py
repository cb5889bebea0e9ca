"""Model tables: YAML, folders, single files; choosing by name."""

from pathlib import Path

import pytest

from musev_core.errors import MuseVError
from musev_core.tasks.model_table import LoraEntry, ModelEntry, load_model_table, pick
from musev_core.weights.lora_blocks import LORA_BLOCK_PRESETS


def table(folder: Path, text: str) -> dict[str, ModelEntry]:
    """The table with this text, which lies in `folder`."""
    (folder / "models.yaml").write_text(text, encoding="utf-8")
    return load_model_table(folder / "models.yaml")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two diffusers models, two single files and things which are no models."""
    folder = tmp_path / "sd1.5"
    (folder / "fantasticmix" / "unet").mkdir(parents=True)
    (folder / "majicmix").mkdir()
    (folder / "majicmix" / "model_index.json").write_text("{}", encoding="utf-8")
    (folder / "lora").mkdir()
    for name in ("anime.safetensors", "Old.CKPT", "notes.txt"):
        (folder / name).touch()
    return folder


# ---- YAML tables


def test_full_and_short_entries(tmp_path):
    entries = table(
        tmp_path,
        """
majicmix:
  path: some/where
  style: realistic
  sex: girl
  loras:
    face.safetensors: 0.8
    dress.safetensors: {strength: "0.6", strength_offset: -0.1, lora_block_weight: outall}
    plain.safetensors:
short: models/short
""",
    )
    assert entries == {
        "majicmix": ModelEntry(
            name="majicmix",
            path=Path("some/where"),
            style="realistic",
            sex="girl",
            loras=(
                LoraEntry(path=Path("face.safetensors"), strength=0.8),
                LoraEntry(
                    path=Path("dress.safetensors"),
                    strength=0.6,
                    strength_offset=-0.1,
                    lora_block_weight=LORA_BLOCK_PRESETS["OUTALL"],
                ),
                LoraEntry(path=Path("plain.safetensors")),
            ),
        ),
        "short": ModelEntry(name="short", path=Path("models/short")),
    }
    assert entries["majicmix"].loras[2].lora_block_weight == (1.0,) * 17


def test_paths_are_looked_for_beside_the_table_first(tmp_path):
    (tmp_path / "near").mkdir()
    entries = table(tmp_path, "a: {path: near, loras: {near: 1}}\nb: far\nc: ~/home")
    assert entries["a"].path == entries["a"].loras[0].path == tmp_path / "near"
    assert entries["b"].path == Path("far")
    assert entries["c"].path == Path.home() / "home"


@pytest.mark.parametrize("weights", ["[1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0.5]", "'1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0.5'"])
def test_block_weights_as_numbers(tmp_path, weights):
    entry = table(tmp_path, f"a: {{path: p, loras: {{l: {{lora_block_weight: {weights}}}}}}}")["a"]
    assert entry.loras[0].lora_block_weight == (1.0, *(0.0,) * 15, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should map names to models(.|\n)*majicmixRealv6Fp16:"),
        ("- a\n- b", "should map names to models"),
        ("a: [", "The model table .* is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be used: line 1: the tag"),
        ("a: p\na: q", "cannot be used: line 2: the key 'a' stands twice"),
        ("a: 5", "Model 'a': expected fields, got 5"),
        ("a: {loras: {}}", "Model 'a': path: expected a folder or file name, got None"),
        ("a: {path: ' '}", "Model 'a': path: expected a folder or file name, got ' '"),
        ("a: {path: p, prompt: x}", "Model 'a': unknown field 'prompt'; known are path, loras, style, sex"),
        ("a: {path: p, lora: {}}", "Model 'a': unknown field 'lora'.* Did you mean 'loras'"),
        ("a: {path: p, loras: [x]}", r"Model 'a': loras: expected a mapping of files to strengths, got \['x'\]"),
        ("a: {path: p, loras: {l: much}}", "Model 'a': loras: l: strength: expected a number, got 'much'"),
        ("a: {path: p, loras: {l: true}}", "Model 'a': loras: l: strength: expected a number, got True"),
        ("a: {path: p, loras: {l: {strength: .nan}}}", "strength: expected a number, got nan"),
        ("a: {path: p, loras: {l: {strength_offset: x}}}", "strength_offset: expected a number, got 'x'"),
        ("a: {path: p, loras: {l: {weight: 1}}}", "Model 'a': loras: l: unknown field 'weight'; known are strength"),
        (
            "a: {path: p, loras: {l: {lora_block_weight: NOSE}}}",
            "expected 17 numbers or one of ALL, FACE, .* got 'NOSE'",
        ),
        ("a: {path: p, loras: {l: {lora_block_weight: [1, 2]}}}", "expected 17 numbers or one of ALL"),
        (
            "a: {path: p, loras: {l: {lora_block_weight: 'x,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0'}}}",
            "lora_block_weight: expected a number, got 'x'",
        ),
    ],
)
def test_wrong_tables_are_explained(tmp_path, text, message):
    with pytest.raises(MuseVError, match=message):
        table(tmp_path, text)


def test_python_table_is_never_executed(tmp_path):
    witness = tmp_path / "witness"
    (tmp_path / "models.py").write_text(f"open({str(witness)!r}, 'w')\nMODEL_CFG = {{}}", encoding="utf-8")
    with pytest.raises(
        MuseVError, match="never executed. Write the model table as YAML:\nmajicmixRealv6Fp16:\n  path: "
    ):
        load_model_table(tmp_path / "models.py")
    assert not witness.exists()
    with pytest.raises(MuseVError, match="never executed"):
        load_model_table(tmp_path / "gone.py")  # the original's default, where there is no original


def test_the_example_in_the_messages_is_a_valid_table(tmp_path):
    (tmp_path / "models.py").touch()
    with pytest.raises(MuseVError) as caught:
        load_model_table(tmp_path / "models.py")
    [entry] = table(tmp_path, str(caught.value).split("YAML:\n")[1]).values()
    assert entry.name == "majicmixRealv6Fp16" and [lora.strength for lora in entry.loras] == [0.8, 0.6]


def test_missing_path(tmp_path):
    with pytest.raises(MuseVError, match="There is no model table, model or folder .*gone"):
        load_model_table(tmp_path / "gone")


# ---- folders and single models


def test_folder_of_models(models):
    entries = load_model_table(models)
    assert {name: entry.path for name, entry in entries.items()} == {
        "Old": models / "Old.CKPT",
        "anime": models / "anime.safetensors",
        "fantasticmix": models / "fantasticmix",
        "majicmix": models / "majicmix",
    }
    assert all(entry.name == name and entry.loras == () for name, entry in entries.items())


def test_two_models_of_one_stem_both_stay(models):
    (models / "anime.ckpt").touch()
    assert {"anime", "anime.safetensors"} <= set(load_model_table(models))


def test_the_model_itself_is_a_table_of_one(models):
    for path, name in ((models / "majicmix", "majicmix"), (models / "anime.safetensors", "anime")):
        entries = load_model_table(path)
        assert entries == {name: ModelEntry(name=name, path=path)}
        assert pick(entries, "None") == pick(entries, "all") == [entries[name]]


def test_folder_without_models(models):
    with pytest.raises(MuseVError, match="lora holds no models: neither sub folders with model_index.json or unet/"):
        load_model_table(models / "lora")


# ---- choosing


def test_pick(models):
    entries = load_model_table(models)
    assert pick(entries, "all") == list(entries.values())
    assert pick(entries, "majicmix, anime,majicmix") == [entries["majicmix"], entries["anime"]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "majikmix",
            "There is no model 'majikmix'. Did you mean 'majicmix'.* Known models: Old, anime, fantasticmix, majicmix",
        ),
        ("None", "There is no model 'None'"),
        (" , ", "No model was named. Known models: Old, anime"),
    ],
)
def test_pick_of_unknown_names(models, names, message):
    with pytest.raises(MuseVError, match=message):
        pick(load_model_table(models), names)


def test_only_chosen_models_must_exist(tmp_path, models):
    entries = table(tmp_path, "here: {path: sd1.5/majicmix}\ngone: nowhere\nlora: {path: sd1.5, loras: {lost: 1}}")
    assert pick(entries, "here")[0].path == models / "majicmix"
    with pytest.raises(MuseVError, match="Model 'gone': path: nowhere does not exist"):
        pick(entries, "gone")
    with pytest.raises(MuseVError, match="Model 'lora': loras: lost does not exist"):
        pick(entries, "here,lora")


def test_models_skip_tasks_of_another_style_or_sex():
    model = ModelEntry(name="m", path=Path("p"), style="anime")
    assert model.suits(style="anime", sex="girl") and model.suits(style=None, sex=None)
    assert not model.suits(style="realistic", sex="girl")
    assert not ModelEntry(name="m", path=Path("p"), sex="boy").suits(style=None, sex="girl")
