import json
from pathlib import Path

import pytest

from musev_core.errors import MuseVError
from musev_core.prompts import (
    NEGATIVE_PROMPTS,
    RENDER_STYLES,
    fill_template,
    negative_prompt,
    parse_weights,
    template_fields,
)

CASES = json.loads((Path(__file__).parent / "goldens/public/cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "text_weights"], ids=lambda c: c["id"])
def test_golden_weights(case):
    texts, weights = zip(*parse_weights(case["text"]), strict=True)

    assert list(texts) == [text for text, _ in case["expected"]["parsed"]]
    assert list(weights) == pytest.approx([weight for _, weight in case["expected"]["parsed"]], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("(a)", [("a", 1.1)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("(a:0.5)", [("a", 0.5)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:2.)", [("a", 2.0)]),
        ("(a:-1)", [("a", -1.0)]),
        ("(a:+1.5)", [("a", 1.5)]),
        ("(a:0)", [("a", 0.0)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        ("[(a)]", [("a", 1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(a:1) b", [("a b", 1.0)]),
        ("()", [("", 1.0)]),
        ("two\nlines (a:2)", [("two\nlines ", 1.0), ("a", 2.0)]),
    ],
)
def test_brackets_weigh_what_they_enclose(text, pieces):
    parsed = parse_weights(text)

    assert [piece for piece, _ in parsed] == [piece for piece, _ in pieces]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        (r"\(a\)", "(a)"),
        (r"\[a\]", "[a]"),
        (r"\\", "\\"),
        (r"\(a:1.2\)", "(a:1.2)"),
        (r"a\b", "ab"),
        ("a\\", "a"),
        ("16:9, a:b", "16:9, a:b"),
    ],
)
def test_escapes_and_colons_are_text(text, literal):
    assert parse_weights(text) == [(literal, 1.0)]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a)", [("a)", 1.0)]),
        ("a]", [("a]", 1.0)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),
        ("a (b", [("a ", 1.0), ("b", 1.1)]),
        ("a [b", [("a ", 1.0), ("b", 1 / 1.1)]),
        ("((a) b", [("a", 1.21), (" b", 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:.)", [("a:.", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a:1.2", [("a:1.2", 1.1)]),
        ("[a:1.2]", [("a:1.2", 1 / 1.1)]),
    ],
)
def test_malformed_syntax_is_tolerated(text, pieces):
    parsed = parse_weights(text)

    assert [piece for piece, _ in parsed] == [piece for piece, _ in pieces]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in pieces])


def test_presets_are_found_by_their_exact_name():
    assert negative_prompt("V3") == "badhandv4, ng_deepnegative_v1_75t, bad quality"
    assert negative_prompt("Empty") == ""
    assert negative_prompt("v3") == "v3"
    assert negative_prompt("ugly, V3") == "ugly, V3"


def test_default_preset_is_the_embeddings_and_v5():
    assert list(NEGATIVE_PROMPTS) == ["Empty", "V1", "V2", "V3", "V4", "V5"]
    assert NEGATIVE_PROMPTS["V2"] == "badhandv4, ng_deepnegative_v1_75t, " + NEGATIVE_PROMPTS["V5"]
    assert NEGATIVE_PROMPTS["V1"].startswith("nsfw, lowres, ") and NEGATIVE_PROMPTS["V1"].endswith("tail, watermarks")


def test_v5_weighs_as_written():
    weights = dict(parse_weights(NEGATIVE_PROMPTS["V5"]))

    assert weights["multiple heads"] == pytest.approx(1.1**3)
    assert weights["worst quality"] == 2.0
    assert weights["too many fingers"] == 1.1


@pytest.mark.parametrize(
    ("prompt", "fields", "filled"),
    [
        ("(eye blinks:{eye_blinks_factor})", {"eye_blinks_factor": 1.8}, "(eye blinks:1.8)"),
        ("a girl, { hair }, {hair}", {"hair": "red"}, "a girl, red, red"),
        ("{tags}", {"tags": "a,b , c,,"}, "a, b, c"),
        ("{tags}", {"tags": ["a", "b,c", None]}, "a, b, c"),
        ("a, {x}, b", {"x": ""}, "a, b"),
        ("a, {x}, {y}, b", {"x": None, "y": " "}, "a, b"),
        ("a,{x},b", {"x": []}, "a,b"),
        ("a {x}", {"x": "{y}", "y": "no"}, "a {y}"),
        ("(a, {x}:1.2)", {"x": r"\(b\)"}, r"(a, \(b\):1.2)"),
    ],
)
def test_templates(prompt, fields, filled):
    assert fill_template(prompt, fields) == filled


@pytest.mark.parametrize("prompt", ["", "a, , b", "a {", "{} {a b}, , c"])
def test_prompt_without_fields_is_untouched(prompt):
    assert fill_template(prompt, {"a": "x"}) == prompt


def test_render_names_become_phrases_and_other_words_stay():
    assert fill_template("a girl, {render}", {"render": "Epic,ink"}) == f"a girl, {RENDER_STYLES['Epic']}, ink"
    assert fill_template("{name}", {"name": "Epic"}) == "Epic"
    assert set(RENDER_STYLES) == {"Epic", "HD", "EpicHD", "Digital", "Unreal1", "Unreal2"}


def test_unknown_field_is_named_with_those_there_are():
    with pytest.raises(MuseVError, match=r"asks for \{hair\}.*no field 'hair'.*one of: age, sex\."):
        fill_template("{sex}, {hair}", {"sex": "female", "age": 20})
    with pytest.raises(MuseVError, match="there are none"):
        fill_template("{hair}", {})


def test_the_fields_a_prompt_asks_for():
    assert template_fields("a { sex } with {hair}, {hair}") == {"sex", "hair"}
    assert template_fields("a girl {with space}") == frozenset()
