import json
from pathlib import Path

import pytest

from musev_core.encode.prompts import (
    NEGATIVE_PROMPTS,
    negative_prompt,
    parse_weights,
)
from musev_core.errors import MuseVError

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
    assert negative_prompt("ugly, V3") == "ugly, V3"


@pytest.mark.parametrize(
    "name, hint",
    [("v3", "Did you mean 'V3'"), ("V6", ""), ("V10", "Did you mean 'V1'"), ("V_2", "Did you mean 'V2'"),
     ("empty", "Did you mean 'Empty'"), ("Emty", "Did you mean 'Empty'")],
)  # fmt: skip
def test_a_misspelt_preset_is_named(name, hint):
    with pytest.raises(MuseVError, match=f"no preset of negative prompts '{name}', only Empty, V1, .*{hint}"):
        negative_prompt(name)


@pytest.mark.parametrize("text", ["", "ugly", "nsfw", "text", "bad", "V", "blurry", "vest", "a vase, v2"])
def test_other_words_are_the_negative_prompt_itself(text):
    assert negative_prompt(text) == text


def test_default_preset_is_the_embeddings_and_v5():
    assert list(NEGATIVE_PROMPTS) == ["Empty", "V1", "V2", "V3", "V4", "V5"]
    assert NEGATIVE_PROMPTS["V2"] == "badhandv4, ng_deepnegative_v1_75t, " + NEGATIVE_PROMPTS["V5"]
    assert NEGATIVE_PROMPTS["V1"].startswith("nsfw, lowres, ") and NEGATIVE_PROMPTS["V1"].endswith("tail, watermarks")


def test_v5_weighs_as_written():
    weights = dict(parse_weights(NEGATIVE_PROMPTS["V5"]))

    assert weights["multiple heads"] == pytest.approx(1.1**3)
    assert weights["worst quality"] == 2.0
    assert weights["too many fingers"] == 1.1
