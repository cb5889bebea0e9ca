"""Prompt templates: `{name}` in a prompt becomes the words which a field of the task stands for (extra.md 2.7)."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from random import Random
from types import MappingProxyType
from typing import Any

from ..errors import MuseVError, nearest

# The original's phrases, rules and order of attributes (its musev/auto_prompt/attributes), to the letter.
RENDER_STYLES: Mapping[str, str] = MappingProxyType(
    {
        "Epic": "artstation, epic environment, highly detailed, 8k, HD",
        "HD": "8k, highly detailed",
        "EpicHD": "hyper detailed, beautiful lighting, epic environment, octane render, cinematic, 8k",
        "Digital": "detailed illustration, crisp lines, digital art, 8k, trending on artstation",
        "Unreal1": "artstation, concept art, smooth, sharp focus, illustration, unreal engine 5, 8k",
        "Unreal2": "concept art, octane render, artstation, epic environment, highly detailed, 8k",
    }
)
_NAMED = (  # "red" becomes "red hair"
    "background", "eyes", "face", "hair", "irises", "lighting", "mouth", "necklace", "nose", "skin", "smile",
)  # fmt: skip
_DRAWN: Mapping[str, tuple[str, ...]] = MappingProxyType(  # one of these where the field is empty
    {
        "env": ("east asian architecture", "fireworks", "snow, snowflakes", "snowing, snowflakes"),
        "decoration": ("chinese knot", "flowers", "food", "lanterns", "red envelop"),
        "festival": ("new year",),
        "spring_headwear": ("rabbit ears", "rabbit ears, fur hat"),
        "spring_clothes": (
            "mittens, chinese clothes",
            "mittens, fur trim",
            "mittens, red scarf",
            "mittens, winter clothes",
        ),
        "animal": ("rabbit", "holding rabbits"),
    }
)
PORTRAIT = (  # what `{}` stands for with template_name: portrait, in this order
    "age", "sex", "singing", "country", "lighting", "headwear", "eyes", "irises", "hair", "skin", "face", "smile",
    "expression", "clothes", "nose", "mouth", "beard", "necklace", "style", "keywords", "render",
)  # fmt: skip
_FACES = {"girl": ("gorgeous", "kawaii", "colorful"), "boy": ("handsome", "elegant")}
_SMALLEST_FACE = 0.02  # share of the picture
MAX_PROMPT = 10_000  # characters; CLIP reads 77 tokens at once

_FIELD = re.compile(r"\{\s*(\w+)\s*\}")
_ALL = re.compile(r"\{\s*\}")


def template_fields(prompt: str) -> frozenset[str]:
    """The fields which a prompt asks for: `{name}`, or all that make a portrait for `{}`."""
    return frozenset(_FIELD.findall(prompt)) | (frozenset(PORTRAIT) if _ALL.search(prompt) else frozenset())


def fill_template(prompt: str, fields: Mapping[str, Any]) -> str:
    """Replaces every `{name}` of a prompt by the words of the field of that name.

    A value is a text, a number, or a list; the parts of a comma list are joined by ", ". An empty value or None
    leaves nothing. `{hair}` and its kind add their name to every part, `{age}` makes "20-year-old", `{render}` turns
    names of `RENDER_STYLES` into phrases, `{insight_face}` describes detected faces. `{}` with `template_name:
    portrait` stands for all fields of `PORTRAIT` that are there. Commas which meet become one. A prompt without any
    of this comes back as it is.

    Raises:
        MuseVError: the prompt asks for a field which is not there, a value is none of those a field can have, or the
            prompt becomes longer than `MAX_PROMPT`.
    """
    if not template_fields(prompt):
        return prompt
    if _ALL.search(prompt) and fields.get("template_name") != "portrait":
        raise MuseVError(
            "template_name: `{}` in a prompt is filled by template_name: portrait and by nothing else, got "
            f"{fields.get('template_name')!r}. Write that, or name the fields, like {{hair}}."
        )

    length = len(prompt)

    def value(match: re.Match[str]) -> str:
        nonlocal length
        name = match[1]
        if name not in fields:
            raise MuseVError(
                f"The prompt asks for {{{name}}}, but there is no field {name!r}. "
                f"Add it, or use one of: {', '.join(sorted(map(str, fields))) or '(there are none)'}."
            )
        words = _words(name, fields[name])
        length += len(words)
        if length > MAX_PROMPT:
            raise MuseVError(f"prompt: with every {{field}} written out it has more than {MAX_PROMPT:,} characters.")
        return words

    portrait = ", ".join(filter(None, (_words(name, fields[name]) for name in PORTRAIT if name in fields)))
    filled = _FIELD.sub(value, _ALL.sub(lambda _: portrait, prompt))
    return re.sub(r"(?:, *)+", ", ", filled)


def _words(name: str, value: Any) -> str:
    if name == "insight_face":
        return _faces(value)
    words = parts(value)
    if not words and name in _DRAWN:
        return Random(name).choice(_DRAWN[name])  # the same in every run, so that a result can be found again
    return ", ".join(map(_RULES.get(name, str), words))


def parts(value: Any) -> list[str]:
    """The non-empty members of a comma list, trimmed."""
    if value is None:
        return []
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        return [part for member in value for part in parts(member)]
    return [part for part in map(str.strip, str(value).split(",")) if part]


def _render(style: str) -> str:
    if style not in RENDER_STYLES:
        raise MuseVError(
            f"render: there is no style {style!r}, only {', '.join(RENDER_STYLES)}.{nearest(style, RENDER_STYLES)}"
        )
    return RENDER_STYLES[style]


_RULES: Mapping[str, Callable[[str], str]] = {
    "age": "{}-year-old".format,
    "render": _render,
    **{name: f"{{}} {name}".format for name in _NAMED},
}


def _faces(value: Any) -> str:
    """Words for what insightface found, `{"image_type": ..., "info": [{"gender": 0, "ratio": 0.4}, ...]}` or its JSON.

    Gender 0 is female; `ratio` is the face's share of the picture, small ones do not count.
    """
    if not parts(value):
        return ""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        faces = found["info"]
        dark = any(face.get("black") for face in faces)
        if found["image_type"] == "body":
            return "african, dark skin" if dark else ""
        large = [face for face in faces if face["ratio"] >= _SMALLEST_FACE]
        dark = any(face.get("black") for face in large)
        people = ["boy" if face["gender"] else "girl" for face in large]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MuseVError(
            'insight_face: expected faces like {"image_type": "face", "info": [{"gender": 0, "ratio": 0.4}]}, got '
            f"{value!r:.200}."
        ) from error
    if not people:
        return ""
    counts = {who: people.count(who) for who in _FACES if who in people}
    words = ["african", "dark skin"] if dark else []
    words += [f"{count}{who}{'s' if count > 1 else ''}" for who, count in counts.items()]
    words += [] if "girl" in counts else ["male focus"]
    words += [word for who in dict.fromkeys(people) for word in _FACES[who]]
    words += ["delicate face", "beautiful eyes"] + (["solo"] if len(people) == 1 else [])
    return ", ".join(words)
