import copy
import json
import logging
import string
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.numbers import det, det_param
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from musev_core.encode.prompts import NEGATIVE_PROMPTS
from musev_core.encode.text import (
    TextualInversion,
    add_textual_inversions,
    encode_prompts,
    read_textual_inversion,
    weighted_tokens,
)
from musev_core.errors import CheckpointError, MuseVError

GOLDENS = Path(__file__).parent / "goldens/public"
CASES = json.loads((GOLDENS / "cases.json").read_text(encoding="utf-8"))
WIDTH = 32


def tiny_encoder(vocab_size=1000, bos=998, eos=999, layers=2):
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # transformers 5 leaves out the outer name which the published keys have
            published = "text_encoder.text_model." + key.removeprefix("text_model.")
            parameter.copy_(det_param(published, parameter.shape, seed=0))
    return model


class HashTokenizer:
    """The golden set's stand-in (FORMAT.md 2.2)."""

    bos_token_id, eos_token_id, pad_token_id = 998, 999, 999

    def __call__(self, text, add_special_tokens, verbose):
        return SimpleNamespace(input_ids=[zlib.crc32(word.encode()) % 990 for word in text.split()])


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


def words(count):
    return " ".join(["w"] * count)


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "text_weights"], ids=lambda c: c["id"])
def test_golden_tokens(case):
    tokens, weights = weighted_tokens(HashTokenizer(), case["text"], case["max_tokens"])

    assert tokens == case["expected"]["tokens"]
    assert weights == pytest.approx(case["expected"]["weights"], abs=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "text_embedding"], ids=lambda c: c["id"])
def test_golden_context(case, encoder):
    expected = torch.from_numpy(np.load(GOLDENS / case["file"])["context"])
    tolerance = case["arrays"]["context"]

    context = encode_prompts(HashTokenizer(), encoder, case["prompt"], case["negative_prompt"])

    torch.testing.assert_close(context, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])


def test_what_exceeds_the_limit_is_dropped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="musev_core.encode.text"):
        tokens, weights = weighted_tokens(HashTokenizer(), f"({words(9)}:1.5) tail", max_tokens=7)

    assert len(tokens) == 7
    assert weights == [1.5] * 7
    assert "has 10 tokens; the last 3 are dropped because only 7 are used" in caplog.text


@pytest.mark.parametrize(("count", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (300, 3)])
def test_context_grows_by_chunks_of_77(count, chunks, encoder):
    assert encode_prompts(HashTokenizer(), encoder, [words(count)], None).shape == (1, 77 * chunks, WIDTH)


def test_chunks_are_encoded_separately(encoder):
    first = " ".join(f"a{i}" for i in range(75))
    context = encode_prompts(HashTokenizer(), encoder, f"{first} b c", "bad")

    alone = [encode_prompts(HashTokenizer(), encoder, text, None)[0] for text in ("bad", "", first, "b c")]

    torch.testing.assert_close(context[0], torch.cat(alone[:2]))
    torch.testing.assert_close(context[1], torch.cat(alone[2:]))


def test_max_chunks_bounds_the_context(encoder):
    assert encode_prompts(HashTokenizer(), encoder, words(200), None, max_chunks=1).shape == (1, 77, WIDTH)


def test_weights_keep_the_mean_of_each_prompt(encoder):
    plain = encode_prompts(HashTokenizer(), encoder, ["red hair", "blue eyes"], None)
    weighted = encode_prompts(HashTokenizer(), encoder, ["(red:1.5) hair", "(blue:0.7) eyes"], None)

    torch.testing.assert_close(weighted.mean((1, 2)), plain.mean((1, 2)), atol=1e-5, rtol=1e-4)
    ratio = (weighted / plain).mean(2)  # (prompts, tokens): start, two words, end, padding
    torch.testing.assert_close(ratio[:, 1] / ratio[:, 2], torch.tensor([1.5, 0.7]))
    torch.testing.assert_close(ratio[:, 2:], ratio[:, :1].expand(-1, 75))


def test_a_prompt_does_not_depend_on_the_others_in_the_batch(encoder):
    together = encode_prompts(HashTokenizer(), encoder, ["red hair", "(blue:1.4) eyes"], "bad")

    torch.testing.assert_close(together[2:3], encode_prompts(HashTokenizer(), encoder, "red hair", None))
    torch.testing.assert_close(together[3:4], encode_prompts(HashTokenizer(), encoder, "(blue:1.4) eyes", None))


def test_one_negative_prompt_serves_all(encoder):
    context = encode_prompts(HashTokenizer(), encoder, ["a", "b"], ["bad"])

    torch.testing.assert_close(context, encode_prompts(HashTokenizer(), encoder, ["a", "b"], ["bad", "bad"]))
    assert context.shape == (4, 77, WIDTH)
    assert torch.equal(context[0], context[1]) and not torch.equal(context[2], context[3])


def test_the_encoders_dtype_is_kept(encoder):
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    context = encode_prompts(HashTokenizer(), half, "(a:1.3) b", None)

    assert context.dtype == torch.bfloat16
    torch.testing.assert_close(
        context.float(), encode_prompts(HashTokenizer(), encoder, "(a:1.3) b", None), atol=0.2, rtol=0.1
    )


def test_no_gradient_is_kept(encoder):
    assert not encode_prompts(HashTokenizer(), encoder, "(a:1.2) b", None).requires_grad


def test_clip_skip_leaves_out_the_last_layers(encoder):
    shallow = tiny_encoder(layers=1)

    skipped = encode_prompts(HashTokenizer(), encoder, "a girl", None, clip_skip=1)

    torch.testing.assert_close(skipped, encode_prompts(HashTokenizer(), shallow, "a girl", None))
    assert not torch.allclose(skipped, encode_prompts(HashTokenizer(), encoder, "a girl", None), atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, r"at least one prompt, got an empty list"),
        ({"negative_prompts": []}, r"at least one negative prompt"),
        ({"prompts": ["a", 3]}, r"every prompt to be a text, got 3 \(int\)"),
        ({"prompts": None}, r"every prompt to be a text, got None"),
        ({"negative_prompts": [b"x"]}, r"every negative prompt to be a text, got b'x' \(bytes\)"),
        ({"prompts": ["a"] * 3, "negative_prompts": ["b"] * 2}, r"as prompts \(3\), or one for all; got 2"),
        ({"max_chunks": 0}, r"max_chunks must be 1 or more, got 0"),
        ({"clip_skip": 2}, r"clip_skip must be between 0 and 1 .* of 2 layers, got 2"),
        ({"clip_skip": -1}, r"clip_skip must be between 0 and 1 .* got -1"),
    ],
)
def test_wrong_prompts_are_explained(arguments, message, encoder):
    with pytest.raises(MuseVError, match=message):
        encode_prompts(HashTokenizer(), encoder, **({"prompts": ["a"], "negative_prompts": ["b"]} | arguments))


# textual inversion


@pytest.fixture
def clip(tmp_path):
    """A real tokenizer which spells words letter by letter, and an encoder of the same vocabulary."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    return tokenizer, tiny_encoder(len(tokens), tokenizer.bos_token_id, tokenizer.eos_token_id)


def inversion(name, count, width=WIDTH):
    return TextualInversion(name, det(name, (count, width)))


def spelled(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(weighted_tokens(tokenizer, text)[0])


def test_a_name_stands_for_all_its_vectors(clip):
    tokenizer, encoder = clip
    before = encoder.get_input_embeddings().weight.detach().clone()
    hands, deep = inversion("badhandv4", 3), inversion("ng_deepnegative_v1_75t", 2)

    add_textual_inversions(tokenizer, encoder, [hands, deep])

    names = ["badhandv4", "badhandv4_1", "badhandv4_2"]
    deep_names = ["ng_deepnegative_v1_75t", "ng_deepnegative_v1_75t_1"]
    prompt = "badhandv4, ng_deepnegative_v1_75t, bad"
    assert spelled(tokenizer, prompt) == [*names, ",</w>", *deep_names, ",</w>", "b", "a", "d</w>"]
    table = encoder.get_input_embeddings().weight
    assert torch.equal(table[tokenizer.convert_tokens_to_ids(names)], hands.vectors)
    assert torch.equal(table[tokenizer.convert_tokens_to_ids(deep_names)], deep.vectors)
    assert torch.equal(table[: len(before)], before)
    assert encoder.config.vocab_size == len(table) == len(before) + 5


def test_only_the_first_vector_on_request(clip):
    tokenizer, encoder = clip
    add_textual_inversions(tokenizer, encoder, [inversion("badhandv4", 3)], vectors="first")

    assert spelled(tokenizer, "badhandv4") == ["badhandv4"]
    assert tokenizer.convert_tokens_to_ids("badhandv4") == len(tokenizer) - 1


def test_names_are_weighted_like_words(clip):
    tokenizer, encoder = clip
    add_textual_inversions(tokenizer, encoder, [inversion("EasyNegativeV2", 2)])

    _, weights = weighted_tokens(tokenizer, "a (EasyNegativeV2,x:1.2) [easynegativev2]")

    assert weights == pytest.approx([1, 1.2, 1.2, 1.2, 1.2, 1 / 1.1, 1 / 1.1])


@pytest.mark.parametrize("text", ["badhandv45", "xbadhandv4", "badhandv4_x", "badhand"])
def test_a_name_is_not_found_inside_a_word(text, clip):
    tokenizer, encoder = clip
    plain = weighted_tokens(tokenizer, text)
    add_textual_inversions(tokenizer, encoder, [inversion("badhandv4", 2)])

    assert weighted_tokens(tokenizer, text) == plain


def test_the_longest_name_wins(clip):
    tokenizer, encoder = clip
    add_textual_inversions(tokenizer, encoder, [inversion("bad-hands", 1), inversion("bad-hands-5", 1)])

    assert spelled(tokenizer, "bad-hands-5 bad-hands") == ["bad-hands-5", "bad-hands"]


def test_every_vector_reaches_the_context(clip):
    tokenizer, encoder = clip
    embedding = inversion("style9", 3)
    changed = TextualInversion("style9", torch.cat([embedding.vectors[:2], -embedding.vectors[2:]]))
    contexts = []
    for one in (embedding, changed):
        pair = copy.deepcopy((tokenizer, encoder))
        add_textual_inversions(*pair, [one])
        contexts.append(encode_prompts(*pair, "style9", None)[0])

    same = (contexts[0] == contexts[1]).all(1)
    assert same[:3].all()  # start, style9, style9_1
    assert not same[3:].any()


def test_embeddings_may_come_one_after_the_other_and_in_other_dtypes(clip):
    tokenizer, encoder = clip
    single = TextualInversion("one1", inversion("one1", 1).vectors.half())
    add_textual_inversions(tokenizer, encoder, [single, inversion("two2", 2)])
    add_textual_inversions(tokenizer, encoder, [inversion("three3", 1)])

    assert spelled(tokenizer, "three3 two2 one1") == ["three3", "two2", "two2_1", "one1"]
    assert torch.isfinite(encode_prompts(tokenizer, encoder, "three3 (two2:1.2) one1", "bad")).all()


def test_no_embeddings_change_nothing(clip):
    tokenizer, encoder = clip
    table = encoder.get_input_embeddings()
    add_textual_inversions(tokenizer, encoder, [])

    assert encoder.get_input_embeddings() is table


def test_global_random_state_is_untouched(clip):
    state = torch.get_rng_state()
    add_textual_inversions(*clip, [inversion("badhandv4", 6)])

    assert torch.equal(torch.get_rng_state(), state)


def test_published_negative_prompt_finds_every_embedding(clip):
    tokenizer, encoder = clip
    sizes = {"badhandv4": 6, "ng_deepnegative_v1_75t": 75, "EasyNegativeV2": 16, "bad_prompt_version2-neg": 8}
    add_textual_inversions(tokenizer, encoder, [inversion(name, count) for name, count in sizes.items()])

    tokens = spelled(tokenizer, NEGATIVE_PROMPTS["V4"])

    assert len(tokens) == sum(sizes.values()) + len(",,,,badquality")
    assert all(name in tokens for name in sizes)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([("sdxl", 2, 1280)], r"'sdxl' has the shape \(2, 1280\).*expects \(vectors, 32\).*another base model"),
        ([("none", 0, WIDTH)], r"'none' has the shape \(0, 32\)"),
        ([("a", 1, WIDTH)], r"name 'a' cannot be used: 'a' already has a meaning"),
        ([("new", 1, WIDTH), ("New", 1, WIDTH)], r"name 'New' cannot be used: 'new' already"),
        ([("v", 2, WIDTH)], r"name 'v' cannot be used"),
        ([("old_2", 1, WIDTH)], r"name 'old_2' cannot be used"),
        ([("new_1", 1, WIDTH), ("new", 1, WIDTH)], r"name 'new' cannot be used: 'new_1' already"),
        ([("two words", 1, WIDTH)], r"name 'two words' would not be found in a prompt"),
        ([("x(y)", 1, WIDTH)], r"name 'x\(y\)' would not be found"),
        ([("", 1, WIDTH)], r"name '' would not be found"),
    ],
)
def test_a_refused_embedding_leaves_everything_as_it_was(embeddings, message, clip):
    tokenizer, encoder = clip
    add_textual_inversions(tokenizer, encoder, [inversion("old", 2)])
    table, count = encoder.get_input_embeddings(), len(tokenizer)

    with pytest.raises(MuseVError, match=message):
        add_textual_inversions(tokenizer, encoder, [inversion("fine", 1), *(inversion(*e) for e in embeddings)])

    assert len(tokenizer) == count
    assert encoder.get_input_embeddings() is table


def test_tokenizer_and_encoder_must_belong_together(clip):
    with pytest.raises(MuseVError, match=r"tokenizer has \d+ tokens but the text encoder knows 50"):
        add_textual_inversions(clip[0], tiny_encoder(50, 48, 49), [inversion("new", 1)])


def test_vectors_is_all_or_first(clip):
    with pytest.raises(MuseVError, match="must be 'all' or 'first', got 'last'"):
        add_textual_inversions(*clip, [inversion("new", 1)], vectors="last")


VECTORS = torch.arange(8.0).reshape(2, 4)


@pytest.mark.parametrize(
    "content",
    [
        {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "x", "step": 100},
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": torch.nn.Parameter(VECTORS)}},
        {"string_to_param.*": VECTORS},
        {"emb_params": VECTORS},
        {"<cat>": VECTORS},
    ],
)
def test_published_forms_of_embeddings(content):
    embedding = read_textual_inversion(content, "cat")

    assert embedding.name == "cat"
    assert torch.equal(embedding.vectors, VECTORS)
    assert not embedding.vectors.requires_grad


def test_a_single_vector_becomes_a_row():
    assert read_textual_inversion({"<cat>": torch.zeros(768)}, "cat").vectors.shape == (1, 768)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"one embedding .* in 'x', found none"),
        ({"step": 3, "ids": torch.zeros(2, 4, dtype=torch.long)}, "found none"),
        ({"emb_params": torch.zeros(0, 768)}, r"found emb_params \(0, 768\)"),
        ({"a.weight": VECTORS, "b.weight": VECTORS}, r"found a.weight \(2, 4\), b.weight \(2, 4\)\."),
        ({f"{i}.weight": VECTORS for i in range(20)}, r"7.weight \(2, 4\), \.\.\."),
        ({"clip_l": VECTORS, "clip_g": VECTORS}, r"'x' is made for SDXL \(it holds clip_g, clip_l\)"),
    ],
)
def test_files_without_one_embedding_are_explained(content, message):
    with pytest.raises(CheckpointError, match=message):
        read_textual_inversion(content, "x")
