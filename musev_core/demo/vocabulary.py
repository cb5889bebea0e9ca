"""The demo model's words and their numbers in CLIP's tokenizer, so that prompts here and in ComfyUI mean the same.

The numbers were made once by ComfyUI's tokenizer, one word at a time; CLIP's vocabulary is OpenAI's (MIT licence).
"""

from collections.abc import Sequence
from typing import Any

from ..errors import MuseVError, nearest

BOS, EOS = 49406, 49407  # CLIP pads with the end token where ComfyUI does
WORDS: dict[str, tuple[int, ...]] = {
    "a": (320,),
    "an": (550,),
    "ball": (1069,),
    "blue": (1746,),
    "bobs": (45533,),
    "box": (2063,),
    "dances": (24083,),
    "down": (1136,),
    "enters": (15287,),
    "figure": (5274,),
    "from": (633,),
    "green": (1901,),
    "in": (530,),
    "left": (1823,),
    "moves": (6880,),
    "orange": (4287,),
    "purple": (5496,),
    "red": (736,),
    "right": (1155,),
    "ringed": (44712,),
    "shirt": (2523,),
    "star": (1565,),
    "striped": (22192,),
    "sways": (1220, 785),
    "the": (518,),
    "to": (531,),
    "up": (705,),
    "walks": (8192,),
    "wanders": (86, 10880),
    "waves": (7882,),
    "yellow": (4481,),
}
USED_TOKENS = tuple(sorted({i for ids in WORDS.values() for i in ids} | {BOS, EOS}))


class DemoTokenizer:
    """Splits a caption of the toy world into CLIP's tokens; what one offers says `musev_core.encode.text`."""

    bos_token_id = BOS
    eos_token_id = EOS
    pad_token_id = EOS

    def __call__(self, text: str, **_: Any) -> "_Encoding":
        """`.input_ids` of a text without start and end.

        Raises:
            MuseVError: a word the demo model never saw.
        """
        ids: list[int] = []
        for word in text.lower().replace(",", " ").replace(".", " ").split():
            if word not in WORDS:
                raise MuseVError(
                    f"the demo model does not know the word {word!r}.{nearest(word, WORDS)} It knows: "
                    f"{', '.join(WORDS)}"
                )
            ids += WORDS[word]
        return _Encoding(ids)


class _Encoding:
    def __init__(self, input_ids: Sequence[int]):
        self.input_ids = list(input_ids)


def padded(ids: Sequence[int], length: int = 77) -> list[int]:
    """Token ids with start, end and padding."""
    ids = [BOS, *ids, EOS]
    return ids + [EOS] * (length - len(ids))
