"""Prompts as people write them: weighted pieces, presets of negative prompts."""

import re
from difflib import get_close_matches

from ..errors import MuseVError, nearest

_V5 = (
    "(((multiple heads))), (((bad body))), (((two people))), ((extra arms)), ((deformed body)), (((sexy))), "
    "paintings,(((two heads))), ((big head)),sketches, (worst quality:2), (low quality:2), (normal quality:2), "
    "lowres, ((monochrome)), ((grayscale)), skin spots, acnes, skin blemishes, age spot, glans, (((nsfw))), "
    "nipples, extra fingers, (extra legs), (long neck), mutated hands, (fused fingers), (too many fingers)"
)

# extra.md 2.9, to the letter
NEGATIVE_PROMPTS: dict[str, str] = {
    "Empty": "",
    "V1": (
        "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
        "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry, tail, "
        "watermarks"
    ),
    "V2": "badhandv4, ng_deepnegative_v1_75t, " + _V5,
    "V3": "badhandv4, ng_deepnegative_v1_75t, bad quality",
    "V4": "badhandv4,ng_deepnegative_v1_75t,EasyNegativeV2,bad_prompt_version2-neg,bad quality",
    "V5": _V5,
}

# what presets name as words, and `musev models download embeddings` fetches
NEGATIVE_EMBEDDINGS = ("badhandv4", "ng_deepnegative_v1_75t", "EasyNegativeV2", "bad_prompt_version2-neg")

EMPHASIS = 1.1  # of one pair of round brackets; square brackets divide by it

_SYNTAX = re.compile(
    r"\\(?P<literal>[()\[\]\\]?)"  # a backslash before anything else is dropped
    r"|(?P<open>[(\[])"
    r"|:(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\)"
    r"|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""Splits a prompt into pieces of equal weight (musev.md 4 "Text").

    `(x)` weighs 1.1, `(x:1.2)` weighs 1.2, `[x]` weighs 1/1.1; brackets nest and multiply. `\(`, `\)`, `\[`, `\]`
    and `\\` are the characters themselves. A bracket never closed reaches to the end of the prompt, one never
    opened is text. Neighbours of equal weight are one piece; a prompt without text is `[("", 1.0)]`.
    """
    texts: list[str] = []
    weights: list[float] = []
    # Round and square brackets do not see each other, so "(a [b) c]" is two overlapping ranges.
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for i in range(opened[bracket].pop(), len(weights)):
            weights[i] *= factor

    for token in _SYNTAX.finditer(text):
        if token["open"]:
            opened[token["open"]].append(len(texts))
        elif token["weight"] and opened["("]:
            close("(", float(token["weight"]))
        elif token["close"] == ")" and opened["("]:
            close("(", EMPHASIS)
        elif token["close"] == "]" and opened["["]:
            close("[", 1 / EMPHASIS)
        else:
            piece = token[0] if token["literal"] is None else token["literal"]
            if piece:
                texts.append(piece)
                weights.append(1.0)
    for bracket, factor in (("(", EMPHASIS), ("[", 1 / EMPHASIS)):
        while opened[bracket]:
            close(bracket, factor)

    pieces: list[tuple[str, float]] = []
    for piece, weight in zip(texts, weights, strict=True):
        if pieces and pieces[-1][1] == weight:
            pieces[-1] = (pieces[-1][0] + piece, weight)
        else:
            pieces.append((piece, weight))
    return pieces or [("", 1.0)]


def negative_prompt(name_or_text: str) -> str:
    """The text of a preset (`Empty`, `V1` to `V5`, spelt exactly so), or the argument itself (extra.md 2.9).

    Raises:
        MuseVError: a word which all but is the name of a preset, like V6 or v2.
    """
    if name_or_text in NEGATIVE_PROMPTS:
        return NEGATIVE_PROMPTS[name_or_text]
    word = name_or_text.strip()
    if re.fullmatch(r"v[\W_]*\d+\W*", word.lower()) or get_close_matches(word.lower(), ["empty"]):
        raise MuseVError(
            f"there is no preset of negative prompts {word!r}, only {', '.join(NEGATIVE_PROMPTS)}."
            f"{nearest(word.capitalize(), NEGATIVE_PROMPTS)} Other texts are taken as they are."
        )
    return name_or_text
