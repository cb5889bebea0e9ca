"""A tokenizer without a vocabulary file of its own."""

import json
import tempfile
from pathlib import Path
from typing import Any


def letters_tokenizer(*, backwards: bool = False) -> Any:
    """CLIP's tokenizer with single letters as its words, numbered from either end of the alphabet."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)][:: -1 if backwards else 1]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges))
