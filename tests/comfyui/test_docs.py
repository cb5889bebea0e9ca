"""What artists read: translations as the front end looks them up, help pages which say what the nodes are."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import folder_paths
import nodes as comfy_nodes
import pytest
from support.comfyui import ROOT, import_pack
from support.node_texts import (
    HEADINGS,
    HOW_TO_UPDATE,
    LOCALES,
    UPDATE,
    english,
    help_page,
    schemas,
    sections,
    tables,
    translations,
    write_english,
    write_tables,
)

from musev_pack.nodes.host import paths

NODES = list(schemas())
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# what vue-i18n, through which the front end shows texts, would take for its own syntax
VUE_SYNTAX = re.compile(r"[{}@|]")
# ASCII punctuation beside a Chinese character; numbers, names and code keep theirs
HALF_WIDTH = re.compile(r"[\u4e00-\u9fff][,;:?!()]|[,;?!()][\u4e00-\u9fff]")
# the front end translates these by itself
ITS_CATEGORIES = {"loaders", "latent", "model", "video"}

# names that ComfyUI gives its own nodes, in English and in the front end's Chinese
CORE_NODES = {
    "Apply ControlNet": "应用ControlNet（旧版高级）",
    "Batch Images": "批量图像",
    "CLIP Text Encode (Prompt)": "CLIP文本编码",
    "Create Video": "创建视频",
    "Get Video Components": "获取视频元素",
    "KSampler": "K采样器",
    "Load CLIP Vision": "加载CLIP视觉",
    "Load Checkpoint": "Checkpoint加载器（简易）",
    "Load ControlNet Model": "加载ControlNet模型",
    "Load Image": "加载图像",
    "Load VAE": "加载VAE",
    "Load Video": "加载视频",
    "Load LoRA": "LoRA加载器（仅模型）",
    "Preview Image": "预览图像",
    "SamplerCustomAdvanced": "自定义采样器（高级）",
    "Save Video": "保存视频",
    "VAE Decode": "VAE解码",
    "VAE Encode": "VAE编码",
}


@pytest.fixture(params=NODES)
def node(request):
    return request.param


@pytest.fixture(params=LOCALES)
def locale(request):
    return request.param


@pytest.fixture
def page(node, locale):
    return help_page(node, locale).read_text(encoding="utf-8")


def strings(texts: dict, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a translation file with its place."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from strings(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)?", text))


class TestTranslations:
    def test_english_is_the_schema(self):
        if UPDATE:
            write_english()
        assert translations("en") == {node: english(schema) for node, schema in schemas().items()}, HOW_TO_UPDATE

    def test_chinese_has_the_same_places(self):
        places = {locale: [place for place, _ in strings(translations(locale))] for locale in LOCALES}
        assert places["zh"] == places["en"]

    def test_chinese_says_the_same_numbers(self):
        chinese = dict(strings(translations("zh")))
        for place, text in strings(translations("en")):
            assert numbers(chinese[place]) == numbers(text), f"{place}: translate again what has changed: {text!r}"

    def test_chinese_is_chinese(self):
        for place, text in strings(translations("zh")):
            assert CHINESE.search(text) or place.endswith("name"), f"{place}: {text!r}"
            assert not HALF_WIDTH.search(text), f"{place}: {text!r}"
            if not place.endswith("name"):
                assert text.endswith("。"), f"{place}: {text!r}"

    def test_names_in_chinese_are_unique(self):
        assert len(set(display_names("zh"))) == len(NODES)
        for texts in translations("zh").values():
            inputs = [entry["name"] for entry in texts["inputs"].values()]
            assert len(set(inputs)) == len(inputs), texts["display_name"]

    @pytest.mark.parametrize("file", ["main", "nodeDefs"])
    def test_nothing_is_syntax_of_the_front_end(self, locale, file):
        for place, text in strings(translations(locale, file)):
            assert not VUE_SYNTAX.search(text), f"{place}: {text!r}"

    def test_every_category_and_socket_of_ours_has_a_name(self, locale):
        main = translations(locale, "main")
        categories = {part for schema in schemas().values() for part in schema.category.split("/")}
        assert set(main["nodeCategories"]) == categories - ITS_CATEGORIES
        sockets = {each.get_io_type() for schema in schemas().values() for each in [*schema.inputs, *schema.outputs]}
        ours = {socket for socket in sockets if socket.startswith("MUSEV_")} | {"POSE_KEYPOINT", "INSIGHTFACE"}
        assert set(main["dataTypes"]) == ours

    def test_comfyui_finds_them(self, tmp_path, monkeypatch):
        # older ones put their folder comfy before themselves on the path, where another `utils` is
        monkeypatch.syspath_prepend(Path(comfy_nodes.__file__).parent)
        monkeypatch.delitem(sys.modules, "utils", raising=False)
        from app.custom_node_manager import CustomNodeManager

        (tmp_path / "any name").mkdir()
        (tmp_path / "any name" / "locales").symlink_to(ROOT / "locales")
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
        served = CustomNodeManager().build_translations()
        assert served["en"]["nodeDefs"]["MuseV_Noise"]["display_name"] == "Set Video Noise"
        assert served["zh"]["nodeDefs"] == translations("zh")
        assert served["zh"]["dataTypes"]["MUSEV_MOTION"] == translations("zh", "main")["dataTypes"]["MUSEV_MOTION"]


class TestHelpPages:
    def test_every_node_has_one_in_every_language_and_nobody_else(self):
        pages = {help_page(node, locale) for node in NODES for locale in LOCALES}
        found = (ROOT / import_pack().WEB_DIRECTORY / "docs").rglob("*")
        assert {path for path in found if path.is_file()} == pages

    def test_its_title_is_the_nodes_name(self, node, locale, page):
        assert page.splitlines()[0] == f"# {translations(locale)[node]['display_name']}"

    def test_it_has_all_sections(self, node, locale, page):
        found = sections(page)
        assert tuple(found) == ("", *HEADINGS[locale])
        assert all(found.values())

    def test_its_tables_are_the_schema(self, node, locale):
        if UPDATE:
            write_tables(node, locale)
        found = sections(help_page(node, locale).read_text(encoding="utf-8"))
        for heading, table in tables(schemas()[node], locale).items():
            assert found[heading] == table, HOW_TO_UPDATE

    def test_it_names_nodes_that_exist(self, locale, page):
        known = {*display_names(locale), *(CORE_NODES if locale == "en" else CORE_NODES.values())}
        assert named_nodes(page, locale) <= known

    def test_both_languages_name_the_same_nodes(self, node):
        chinese = CORE_NODES | dict(zip(display_names("en"), display_names("zh"), strict=True))
        pages = {locale: prose(node, locale) for locale in LOCALES}
        assert {chinese[name] for name in named_nodes(pages["en"], "en")} == named_nodes(pages["zh"], "zh")

    def test_it_quotes_messages_that_exist(self, node, locale):
        for message in quoted(prose(node, locale)):
            assert all(part in messages() for part in message.split("...")), message

    def test_both_languages_quote_the_same(self, node):
        assert quoted(prose(node, "en")) == quoted(prose(node, "zh"))

    def test_what_it_calls_an_input_is_one_of_some_node(self, node, page):
        inputs = {each.id for schema in schemas().values() for each in [*schema.inputs]}
        outputs = {each.display_name for schema in schemas().values() for each in schema.outputs}
        options = {
            str(option)
            for schema in schemas().values()
            for each in schema.inputs
            for option in each.as_dict().get("options", [])
        }
        core = {"denoise", "images", "fps", "strength_model", "sampling", "batch_size"}
        named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)*)`", page))
        assert named <= inputs | outputs | options | core

    def test_chinese_pages_are_chinese(self, node):
        text = help_page(node, "zh").read_text(encoding="utf-8")
        for line in re.sub(r"`[^`]*`", "", text).splitlines():
            assert not HALF_WIDTH.search(line), line

    def test_it_is_plain_text(self, page):
        assert not re.search(r"<[a-z/]|!\[|https?://(?!huggingface\.co|github\.com)", page)
        assert all(len(line) < 1000 for line in page.splitlines())


def test_core_nodes_have_these_names():
    names = set(comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS.values()) | set(comfy_nodes.NODE_CLASS_MAPPINGS)
    extras = {"Batch Images", "Create Video", "Get Video Components", "Load Video", "Save Video"}
    extras |= {"SamplerCustomAdvanced"}
    assert set(CORE_NODES) - extras <= names


def test_json_is_written_as_it_is_kept():
    for path in (ROOT / "locales").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n", path


def display_names(locale: str) -> list[str]:
    return [texts["display_name"] for texts in translations(locale).values()]


def prose(node: str, locale: str) -> str:
    """A help page without its tables of inputs and outputs."""
    found = sections(help_page(node, locale).read_text(encoding="utf-8"))
    tables = HEADINGS[locale][:2]
    return "\n\n".join(text for heading, text in found.items() if heading not in tables)


def named_nodes(text: str, locale: str) -> set[str]:
    """What is in italics, or in quotation marks where italics are not the custom; those are nodes."""
    marks = {"en": r"(?<![*\w\\])\*([^*\s][^*]*)\*(?![*\w])", "zh": r"“([^”]*)”"}
    return {" ".join(name.split()) for name in re.findall(marks[locale], text)}


def quoted(text: str) -> list[str]:
    """Error messages, in code marks; `...` stands for what differs."""
    code = re.findall(r"`([^`]+)`", re.sub(r"(?s)```.*?```", "", text))
    return [" ".join(each.split()) for each in code if " " in each]


@cache
def messages() -> str:
    """Every text in the pack's code; what is filled in is left out."""
    kinds = (paths.MOTION, paths.REFERENCE_NET, paths.IP_ADAPTER)
    found = [f"No {kind.noun} was found" for kind in kinds]
    for folder in ("nodes", "musev_core"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            found += [each.value for each in nodes if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return "\n".join(found)
