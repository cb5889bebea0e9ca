"""Prompt templates; what is expected was printed by the original's own code (its musev/auto_prompt)."""

import json

import pytest

from musev_core.encode.templates import PORTRAIT, RENDER_STYLES, fill_template, template_fields
from musev_core.errors import MuseVError

NAMED = ("background", "eyes", "face", "hair", "irises", "lighting", "mouth", "necklace", "nose", "skin", "smile")
PLAIN = ("sex", "style", "country", "headwear", "clothes", "expression", "beard", "keywords", "singing", "caption")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    ("value", "words"),
    [("red", "red {0}"), ("red,blue", "red {0}, blue {0}"), ("red, blue", "red {0}, blue {0}"),
     ("red,,blue", "red {0}, blue {0}"), ("", ""), (None, "")],
)  # fmt: skip
def test_a_value_comes_with_the_name_of_its_attribute(name, value, words):
    assert fill_template(f"a {{{name}}} b", {name: value}) == f"a {words.format(name)} b"


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("value", "words"), [("x", "x"), ("x,y", "x, y"), ("x,,y", "x, y"), ("", ""), (5, "5")])
def test_other_values_stand_alone(name, value, words):
    assert fill_template(f"a {{{name}}} b", {name: value}) == f"a {words} b"


@pytest.mark.parametrize(
    ("value", "words"), [(20, "20-year-old"), ("20,30", "20-year-old, 30-year-old"), ("", ""), (None, "")]
)
def test_age_is_given_in_years(value, words):
    assert fill_template("{age}", {"age": value}) == words


@pytest.mark.parametrize(
    ("style", "phrase"),
    [
        ("Epic", "artstation, epic environment, highly detailed, 8k, HD"),
        ("HD", "8k, highly detailed"),
        ("EpicHD", "hyper detailed, beautiful lighting, epic environment, octane render, cinematic, 8k"),
        ("Digital", "detailed illustration, crisp lines, digital art, 8k, trending on artstation"),
        ("Unreal1", "artstation, concept art, smooth, sharp focus, illustration, unreal engine 5, 8k"),
        ("Unreal2", "concept art, octane render, artstation, epic environment, highly detailed, 8k"),
    ],
)
def test_render_styles_are_the_originals(style, phrase):
    assert fill_template("a, {render}, b", {"render": style}) == f"a, {phrase}, b"
    assert fill_template("{name}", {"name": style}) == style
    assert len(RENDER_STYLES) == 6


def test_a_render_style_that_does_not_exist_is_named():
    with pytest.raises(MuseVError, match="render: there is no style 'epic', only Epic, HD, .* Did you mean 'Epic'"):
        fill_template("{render}", {"render": "epic"})


GIRL, BOY, DARK = {"gender": 0, "ratio": 0.4}, {"gender": 1, "ratio": 0.4}, {"gender": 0, "ratio": 0.4, "black": True}


@pytest.mark.parametrize(
    ("kind", "faces", "words"),
    [
        ("face", [], ""),
        ("face", [GIRL], "1girl, gorgeous, kawaii, colorful, delicate face, beautiful eyes, solo"),
        ("face", [BOY], "1boy, male focus, handsome, elegant, delicate face, beautiful eyes, solo"),
        (
            "face",
            [GIRL, BOY],
            "1girl, 1boy, gorgeous, kawaii, colorful, handsome, elegant, delicate face, beautiful eyes",
        ),
        (
            "face",
            [BOY, BOY, GIRL],
            "1girl, 2boys, handsome, elegant, gorgeous, kawaii, colorful, delicate face, beautiful eyes",
        ),
        ("face", [GIRL, GIRL], "2girls, gorgeous, kawaii, colorful, delicate face, beautiful eyes"),
        ("face", [{**GIRL, "ratio": 0.01}], ""),
        (
            "face",
            [DARK],
            "african, dark skin, 1girl, gorgeous, kawaii, colorful, delicate face, beautiful eyes, solo",
        ),
        ("body", [DARK], "african, dark skin"),
        ("body", [BOY], ""),
    ],
)
def test_detected_faces_become_words(kind, faces, words):
    found = {"image_type": kind, "info": faces}
    assert fill_template("{insight_face}", {"insight_face": json.dumps(found)}) == words
    assert fill_template("{insight_face}", {"insight_face": found}) == words


@pytest.mark.parametrize("value", ["no json", "[]", "{}", '{"info": [{}], "image_type": "face"}', '{"info": 5}', 5])
def test_other_things_than_faces_are_refused(value):
    with pytest.raises(MuseVError, match="insight_face: expected faces like"):
        fill_template("{insight_face}", {"insight_face": value})


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [("env", "a,b", "a, b"), ("festival", "", "new year"), ("festival", None, "new year")],
)
def test_festive_attributes_are_chosen_where_none_is_given(name, given, words):
    assert fill_template(f"{{{name}}}", {name: given}) == words


@pytest.mark.parametrize("name", ["env", "decoration", "spring_headwear", "spring_clothes", "animal"])
def test_the_choice_is_the_same_in_every_run(name):
    first, second = (fill_template(f"{{{name}}}", {name: ""}) for _ in range(2))
    assert first == second != ""


def test_a_portrait_has_its_attributes_in_order():
    fields = {"render": "HD", "hair": "red", "age": 20, "style": "ink", "sex": "girl", "eyes": "", "env": "sea"}
    filled = fill_template("a portrait of {}", {"template_name": "portrait", **fields})
    assert filled == "a portrait of 20-year-old, girl, red hair, ink, 8k, highly detailed"
    assert template_fields("a portrait of {}") == set(PORTRAIT)


@pytest.mark.parametrize("fields", [{}, {"template_name": None}, {"template_name": "landscape"}])
def test_empty_braces_need_the_portrait_template(fields):
    with pytest.raises(MuseVError, match="template_name: .*portrait"):
        fill_template("a {}", fields)


@pytest.mark.parametrize(
    ("prompt", "fields", "filled"),
    [
        ("(eye blinks:{eye_blinks_factor})", {"eye_blinks_factor": 1.8}, "(eye blinks:1.8)"),
        ("a girl, { beard }, {beard}", {"beard": "red"}, "a girl, red, red"),
        ("{tags}", {"tags": "a,b , c,,"}, "a, b, c"),
        ("{tags}", {"tags": ["a", "b,c", None]}, "a, b, c"),
        ("a, {x}, b", {"x": ""}, "a, b"),
        ("a, {x}, {y}, b", {"x": None, "y": " "}, "a, b"),
        ("a,{x},b", {"x": []}, "a, b"),
        ("(a:1),(b:1),{x}", {"x": "q"}, "(a:1), (b:1), q"),
        ("a {x}", {"x": "{y}", "y": "no"}, "a {y}"),
        ("(a, {x}:1.2)", {"x": r"\(b\)"}, r"(a, \(b\):1.2)"),
    ],
)
def test_commas_that_meet_become_one(prompt, fields, filled):
    assert fill_template(prompt, fields) == filled


@pytest.mark.parametrize("prompt", ["", "a,b, , c", "a {", "{a b}, , c"])
def test_prompt_without_fields_is_untouched(prompt):
    assert fill_template(prompt, {"a": "x"}) == prompt


def test_unknown_field_is_named_with_those_there_are():
    with pytest.raises(MuseVError, match=r"asks for \{hair\}.*no field 'hair'.*one of: age, sex\."):
        fill_template("{sex}, {hair}", {"sex": "female", "age": 20})
    with pytest.raises(MuseVError, match="there are none"):
        fill_template("{hair}", {})


def test_the_fields_a_prompt_asks_for():
    assert template_fields("a { sex } with {hair}, {hair}") == {"sex", "hair"}
    assert template_fields("a girl {with space}") == frozenset()
