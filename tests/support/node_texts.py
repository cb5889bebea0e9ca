"""What artists read about the nodes, put side by side: schema, translations, help pages. Needs a started ComfyUI.

English lives in the schemas. `locales/en` and the tables of the help pages repeat it and are written by

    MUSEV_UPDATE=1 pytest tests/comfyui/test_schema.py tests/comfyui/test_docs.py

Chinese lives in `locales/zh`; the tables of its help pages repeat that.
"""

import asyncio
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from .comfyui import ROOT, import_pack

LOCALES = ("en", "zh")
UPDATE = bool(os.environ.get("MUSEV_UPDATE"))
HOW_TO_UPDATE = "MUSEV_UPDATE=1 pytest tests/comfyui/test_schema.py tests/comfyui/test_docs.py"
SNAPSHOT = ROOT / "tests" / "comfyui" / "schemas.json"

# what there is to choose from depends on the machine or on ComfyUI, so only the input itself is promised
OPEN_LISTS = {"motion_name", "reference_net_name", "ip_adapter_name", "sampler_name", "scheduler"}
_PROMISED = ("default", "min", "max", "step", "round", "options", "control_after_generate")

_WORDS = {
    "en": {
        "inputs": "Inputs",
        "outputs": "Outputs",
        "input table": ("Input", "What it does"),
        "output table": ("Output", "What it is"),
        "none": "None.",
        "file": "A file of the list",
        "optional": "{kind}, optional",
        "meaning": "**{value}**: {text}",
        "range": "{default} ({low} to {high})",
        True: "on",
        False: "off",
    },
    "zh": {
        "inputs": "输入",
        "outputs": "输出",
        "input table": ("输入", "作用"),
        "output table": ("输出", "内容"),
        "none": "无。",
        "file": "列表中的文件",
        "optional": "{kind}，可选",
        "meaning": "**{value}**：{text}",
        "range": "{default}（{low} 到 {high}）",
        True: "开",
        False: "关",
    },
}
HEADINGS = {
    "en": ("Inputs", "Outputs", "How to use", "Tips", "Limits and errors"),
    "zh": ("输入", "输出", "使用方法", "实用建议", "局限与常见报错"),
}


@cache
def schemas() -> dict[str, Any]:
    """Every node's schema by node id, in the order of the menu."""
    return {node.define_schema().node_id: node.define_schema() for node in node_classes()}


@cache
def node_classes() -> list[Any]:
    """Every node class of the pack."""
    extension = asyncio.run(import_pack().comfy_entrypoint())
    return asyncio.run(extension.get_node_list())


# ---------------------------------------------------------------------------------------- the promise


def promise(schema: Any) -> dict[str, Any]:
    """What saved workflows and API users rely on."""
    return {
        "display_name": schema.display_name,
        "inputs": [_promised_input(each) for each in schema.inputs],
        "outputs": [{"type": each.get_io_type(), "name": each.display_name} for each in schema.outputs],
    }


def _promised_input(each: Any) -> dict[str, Any]:
    settings = each.as_dict()
    named = {"id": each.id, "type": each.get_io_type()}
    if each.optional:
        named["optional"] = True
    return named | {
        key: settings[key]
        for key in _PROMISED
        if settings.get(key) is not None and not (key == "options" and each.id in OPEN_LISTS)
    }


def broken_promises(before: dict[str, Any], now: dict[str, Any] | None) -> list[str]:
    """Why workflows made with `before` would not work with `now`; empty if they do."""
    if now is None:
        return ["the node is gone"]
    broken = []
    for i, old in enumerate(before["inputs"]):
        if i >= len(now["inputs"]) or now["inputs"][i]["id"] != old["id"]:
            broken.append(f"input {i} is no longer {old['id']}")
            continue
        broken += [f"input {old['id']}: {why}" for why in _broken_input(old, now["inputs"][i])]
    for new in now["inputs"][len(before["inputs"]) :]:
        if not new.get("optional"):
            broken.append(f"the new input {new['id']} is not optional")
    for i, old in enumerate(before["outputs"]):
        if i >= len(now["outputs"]) or now["outputs"][i] != old:
            broken.append(f"output {i} is no longer {old['type']} {old['name']!r}")
    return broken


def _broken_input(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    broken = []
    if new["type"] != old["type"]:
        broken.append(f"its type is {new['type']}, it was {old['type']}")
    if old.get("optional") and not new.get("optional"):
        broken.append("it was optional")
    if new.get("default") != old.get("default"):
        broken.append(f"its default is {new.get('default')!r}, it was {old.get('default')!r}")
    if lost := [option for option in old.get("options", ()) if option not in new.get("options", ())]:
        broken.append(f"it lost the options {', '.join(map(str, lost))}")
    if "min" in old and new.get("min", old["min"]) > old["min"]:
        broken.append(f"its least value is {new['min']}, it was {old['min']}")
    if "max" in old and new.get("max", old["max"]) < old["max"]:
        broken.append(f"its largest value is {new['max']}, it was {old['max']}")
    return broken


# ---------------------------------------------------------------------------------------- translations


def translations(locale: str, file: str = "nodeDefs") -> dict[str, Any]:
    """`locales/<locale>/<file>.json`."""
    return json.loads(_locale_file(locale, file).read_text(encoding="utf-8"))


def _locale_file(locale: str, file: str) -> Path:
    return ROOT / "locales" / locale / f"{file}.json"


def english(schema: Any) -> dict[str, Any]:
    """A schema's texts as the front end looks them up."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {each.id: {"name": each.display_name or each.id, "tooltip": each.tooltip} for each in schema.inputs},
        "outputs": {
            str(i): {"name": each.display_name, "tooltip": each.tooltip} for i, each in enumerate(schema.outputs)
        },
    }


def write_english() -> None:
    """Writes `locales/en/nodeDefs.json` from the schemas."""
    texts = {node: english(schema) for node, schema in schemas().items()}
    write_json(_locale_file("en", "nodeDefs"), texts)


def write_json(path: Path, content: Any) -> None:
    """JSON as it is kept in the repository."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------ help pages


def help_page(node: str, locale: str) -> Path:
    """Where the front end looks for a node's help: `docs/<node id>/<locale>.md` below WEB_DIRECTORY."""
    return ROOT / import_pack().WEB_DIRECTORY / "docs" / node / f"{locale}.md"


def sections(page: str) -> dict[str, str]:
    """Text by heading, in order; what stands before the first one is under an empty string."""
    parts = re.split(r"^## (.+)$", page, flags=re.M)
    return {"": parts[0].strip()} | {head: text.strip() for head, text in zip(parts[1::2], parts[2::2], strict=True)}


def tables(schema: Any, locale: str) -> dict[str, str]:
    """The two tables of a help page by heading: two columns, as the panel which shows them is narrow."""
    words, texts = _WORDS[locale], translations(locale)[schema.node_id]

    def row(own: str, value: str, entry: dict[str, str]) -> tuple[str, str]:
        name = f"`{own}`" if own == entry["name"] else f"{entry['name']} `{own}`"
        return name, words["meaning"].format(value=value, text=_text(entry))

    inputs = [row(each.id, _value(each, words), texts["inputs"][each.id]) for each in schema.inputs]
    outputs = [
        row(each.display_name, each.get_io_type(), texts["outputs"][str(i)]) for i, each in enumerate(schema.outputs)
    ]
    return {
        words["inputs"]: _table(words["input table"], inputs) if inputs else words["none"],
        words["outputs"]: _table(words["output table"], outputs),
    }


def _value(each: Any, words: dict[Any, Any]) -> str:
    """Default and range; the type of what has none."""
    given = _promised_input(each)
    if "min" in given:
        numbers = {"default": given["default"], "low": given["min"], "high": given["max"]}
        return words["range"].format(**{name: f"{x:.10g}" if x < 1e9 else x for name, x in numbers.items()})
    if isinstance(given.get("default"), bool):
        return words[given["default"]]
    if given.get("default") is not None:
        return f"`{given['default']}`"
    kind = words["file"] if each.id in OPEN_LISTS else each.get_io_type()
    return words["optional"].format(kind=kind) if each.optional else kind


def _text(entry: dict[str, str]) -> str:
    return re.sub(r"([*|<])", r"\\\1", entry["tooltip"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ("---",) * len(head), *rows])


def write_tables(node: str, locale: str) -> None:
    """Puts the tables into a help page in place of those which it has."""
    path = help_page(node, locale)
    page = path.read_text(encoding="utf-8")
    for heading, table in tables(schemas()[node], locale).items():
        page = re.sub(rf"(?ms)^## {heading}$.*?(?=^## )", lambda _, h=heading, t=table: f"## {h}\n\n{t}\n\n", page)
    path.write_text(page, encoding="utf-8")
