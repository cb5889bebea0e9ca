"""From prompts to the text encoder's context: weighted tokens, chunks of 75, textual inversions.

The tokenizer is anything which offers these parts of a transformers tokenizer:
`tokenizer(text, add_special_tokens=False, verbose=False).input_ids`, `bos_token_id`, `eos_token_id`, `pad_token_id`;
textual inversions need a real one.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, MuseVError
from ..precision import expect_finite
from .prompts import parse_weights

if TYPE_CHECKING:
    from transformers import CLIPTextModel

logger = logging.getLogger(__name__)

CHUNK_TOKENS = 75  # what the encoder's 77 positions leave between start and end token
MOST_VECTORS = 3 * CHUNK_TOKENS  # of an embedding; a prompt has no place for more


def weighted_tokens(tokenizer: Any, text: str, max_tokens: int = 3 * CHUNK_TOKENS) -> tuple[list[int], list[float]]:
    """Token ids of a weighted prompt, without start and end token, and the weight of each (musev.md 4 "Text").

    Each piece is tokenised on its own. A textual inversion's name stands for all its tokens. What exceeds
    `max_tokens` is cut off and reported as a warning.
    """
    embeddings = _embedding_tokens(tokenizer)
    tokens: list[int] = []
    weights: list[float] = []
    for piece, weight in parse_weights(text):
        ids = _token_ids(tokenizer, piece, embeddings)
        tokens += ids
        weights += [weight] * len(ids)
    if len(tokens) > max_tokens:
        logger.warning(
            "The prompt has %d tokens; the last %d are dropped because only %d are used. It begins: %.60r",
            len(tokens),
            len(tokens) - max_tokens,
            max_tokens,
            text,
        )
    return tokens[:max_tokens], weights[:max_tokens]


@torch.no_grad()
def encode_prompts(
    tokenizer: Any,
    text_encoder: "CLIPTextModel",
    prompts: str | Sequence[str],
    negative_prompts: str | Sequence[str] | None,
    *,
    max_chunks: int = 3,
    clip_skip: int = 0,
) -> Tensor:
    """The context of weighted prompts for the networks' cross attention (musev.md 4 "Text").

    Every 75 tokens are encoded as a chunk of their own, and the start and end tokens of all chunks stay. The
    vectors are multiplied by their tokens' weights, then those of one prompt together by the one factor which
    restores their mean.

    Args:
        tokenizer: see the module's text.
        text_encoder: a transformers CLIPTextModel.
        prompts: one per video; a single text is one prompt.
        negative_prompts: as many, or one for all. None without guidance.
        max_chunks: at most so many chunks of 75 tokens; the rest of a prompt is dropped with a warning.
        clip_skip: layers left out at the end of the encoder. 0 is the original's: all layers are used.

    Returns:
        `(negatives ++ positives, 77 * chunks, dim)`, or positives only, in the encoder's dtype and on its device.
        All prompts have the number of chunks which the longest needs.

    Raises:
        MuseVError: no prompt, a prompt which is no text, numbers of prompts which differ, `max_chunks` below 1, or
            `clip_skip` beyond the encoder's layers.
    """
    positives = _texts(prompts, "prompt")
    negatives = [] if negative_prompts is None else _texts(negative_prompts, "negative prompt")
    if len(negatives) == 1:
        negatives *= len(positives)
    if negatives and len(negatives) != len(positives):
        raise MuseVError(
            f"Expected as many negative prompts as prompts ({len(positives)}), or one for all; got {len(negatives)}."
        )
    if max_chunks < 1:
        raise MuseVError(f"max_chunks must be 1 or more, got {max_chunks}.")
    layers: int = text_encoder.config.num_hidden_layers
    if not 0 <= clip_skip < layers:
        raise MuseVError(
            f"clip_skip must be between 0 and {layers - 1} for this text encoder of {layers} layers, got {clip_skip}. "
            "0 uses all of them."
        )

    weighted = [weighted_tokens(tokenizer, text, max_chunks * CHUNK_TOKENS) for text in negatives + positives]
    chunks = max(1, *(-(-len(tokens) // CHUNK_TOKENS) for tokens, _ in weighted))
    ids: list[list[int]] = []
    factors: list[list[float]] = []
    for tokens, weights in weighted:
        for start in range(0, chunks * CHUNK_TOKENS, CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            padding = CHUNK_TOKENS - len(chunk)
            ids.append([tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding])
            factors.append([1.0, *weights[start : start + CHUNK_TOKENS], 1.0, *[1.0] * padding])

    device = next(text_encoder.parameters()).device
    hidden = _encode(text_encoder, torch.tensor(ids, device=device), clip_skip)  # (prompts * chunks, 77, dim)
    expect_finite(hidden, "the text encoder")
    context = hidden.reshape(len(weighted), -1, hidden.shape[-1])
    if all(weight == 1 for row in factors for weight in row):
        return context
    plain = context.float()
    scaled = plain * torch.tensor(factors, device=plain.device).reshape(len(weighted), -1, 1)
    before, after = plain.mean((1, 2), keepdim=True), scaled.mean((1, 2), keepdim=True)
    context = (scaled * torch.where(after == 0, 1.0, before / after)).to(context.dtype)
    expect_finite(context, "the weighting of the prompt")
    return context


def _texts(texts: str | Sequence[str], what: str) -> list[str]:
    texts = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    if not texts:
        raise MuseVError(f"Expected at least one {what}, got an empty list. No words at all are the {what} ''.")
    for text in texts:
        if not isinstance(text, str):
            raise MuseVError(f"Expected every {what} to be a text, got {text!r} ({type(text).__name__}).")
    return texts


def _encode(text_encoder: "CLIPTextModel", ids: Tensor, clip_skip: int) -> Tensor:
    """`(n, 77)` token ids to normalised hidden states `(n, 77, dim)`."""
    if clip_skip == 0:
        return text_encoder(ids).last_hidden_state
    states = text_encoder(ids, output_hidden_states=True).hidden_states
    inner = getattr(text_encoder, "text_model", text_encoder)  # transformers 5 has no such level
    return inner.final_layer_norm(states[-1 - clip_skip])


@dataclass(frozen=True)
class TextualInversion:
    """Learned vectors `(n, dim)` which a name stands for in a prompt."""

    name: str
    vectors: Tensor


def read_textual_inversion(tensors: Mapping[str, Any], name: str) -> TextualInversion:
    """Finds the vectors in a file's content (extra.md 8.2).

    Known forms: `{"string_to_param": {"*": tensor}, ...}` (.pt; nested, or flat as `string_to_param.*`),
    `{"emb_params": tensor}` (.safetensors) and `{token: tensor}` (diffusers). A tensor is `(n, dim)` or `(dim,)`.

    Args:
        tensors: the file's content by name.
        name: what prompts will call it; usually the file's name without its suffix.

    Raises:
        CheckpointError: there is no embedding inside, more than one, or one for the two encoders of SDXL.
    """
    found = {key: value for key, value in _flat(tensors) if value.is_floating_point() and value.ndim in (1, 2)}
    if {"clip_l", "clip_g"} & set(found):
        raise CheckpointError(
            f"Embedding {name!r} is made for SDXL (it holds {', '.join(sorted(found))}). "
            "Choose one made for Stable Diffusion 1.x."
        )
    published = [key for key in ("string_to_param.*", "emb_params") if key in found]
    keys = published or list(found)
    if len(keys) != 1 or not found[keys[0]].numel() > 0 or len(torch.atleast_2d(found[keys[0]])) > MOST_VECTORS:
        raise CheckpointError(
            f"Expected one embedding of shape (vectors, width) with 1 to {MOST_VECTORS} vectors in {name!r}, found "
            f"{', '.join(f'{key} {tuple(found[key].shape)}' for key in keys[:8]) or 'none'}"
            f"{', ...' if len(keys) > 8 else ''}. Choose a textual inversion file."
        )
    return TextualInversion(name, torch.atleast_2d(found[keys[0]].detach()))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def add_textual_inversions(
    tokenizer: Any,
    text_encoder: "CLIPTextModel",
    embeddings: Iterable[TextualInversion],
    *,
    vectors: Literal["all", "first"] = "all",
) -> None:
    """Teaches tokenizer and text encoder, in place, what the embeddings' names stand for (extra.md 2.9, 8.2).

    An embedding of n vectors adds the tokens `name`, `name_1` ... `name_{n-1}`, as diffusers names them; in a prompt
    the name as a word, in upper or lower case, then stands for all of them.

    Args:
        tokenizer: see the module's text; gets new tokens.
        text_encoder: a transformers CLIPTextModel; its token embedding gets new rows.
        embeddings: each as wide as the encoder. If one is refused, none is added.
        vectors: "first" repeats the original, which by mistake used the first vector only (musev.md 4 "Text").

    Raises:
        MuseVError: a name which is taken or cannot be found in a prompt, an embedding of another width, or a
            tokenizer with more tokens than the encoder.
    """
    if vectors not in ("all", "first"):
        raise MuseVError(f"vectors must be 'all' or 'first', got {vectors!r}.")
    table = cast(nn.Embedding, text_encoder.get_input_embeddings())
    taken = {token.lower() for token in tokenizer.get_vocab()}
    # A token of this name would be read as one vector more of an embedding which is there.
    taken |= {f"{name}_{len(ids)}" for name, ids in _embedding_tokens(tokenizer).items()}
    rows: dict[str, Tensor] = {}
    for embedding in embeddings:
        tokens = _new_tokens(embedding, table.embedding_dim, 1 if vectors == "first" else None)
        name = embedding.name.lower()
        wanted = {f"{name}</w>", f"{name}_{len(tokens)}", *map(str.lower, tokens)}
        if wanted & taken:
            raise MuseVError(
                f"The embedding's name {embedding.name!r} cannot be used: {min(wanted & taken)!r} already has a "
                "meaning in the tokenizer's vocabulary. Give it another name."
            )
        rows |= tokens
        taken |= wanted
    if not rows:
        return
    if len(tokenizer) > table.num_embeddings:
        raise MuseVError(
            f"The tokenizer has {len(tokenizer)} tokens but the text encoder knows {table.num_embeddings}: "
            "they do not belong together. Load both from the same model."
        )
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=False) for token in rows])
    ids = tokenizer.convert_tokens_to_ids(list(rows))
    # Not resize_token_embeddings: by default it fills new rows by a draw from torch's global generator.
    old = table.weight.detach()
    weight = old.new_zeros(max(table.num_embeddings, max(ids) + 1), table.embedding_dim)
    weight[: len(old)] = old
    weight[ids] = torch.stack([vector.detach().to(weight) for vector in rows.values()])
    text_encoder.set_input_embeddings(nn.Embedding.from_pretrained(weight, freeze=not table.weight.requires_grad))
    text_encoder.config.vocab_size = len(weight)


def _new_tokens(embedding: TextualInversion, width: int, limit: int | None) -> dict[str, Tensor]:
    """The embedding's tokens and their vectors `(width,)`."""
    name = embedding.name
    if not name or re.search(r"[\s()\[\]\\]", name):
        raise MuseVError(
            f"The embedding's name {name!r} would not be found in a prompt. "
            "Give it a name of one word without brackets and backslashes."
        )
    if embedding.vectors.ndim != 2 or embedding.vectors.shape[1] != width or not len(embedding.vectors):
        raise MuseVError(
            f"Embedding {name!r} has the shape {tuple(embedding.vectors.shape)}, but this text encoder expects "
            f"(vectors, {width}): it was made for another base model. "
            "Stable Diffusion 1.x uses 768, 2.x uses 1024, SDXL 768 and 1280."
        )
    return {f"{name}_{i}" if i else name: vector for i, vector in enumerate(embedding.vectors[:limit])}


def _embedding_tokens(tokenizer: Any) -> dict[str, list[int]]:
    """Token ids of every textual inversion the tokenizer was taught, by lower-case name."""
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    if not added:
        return {}
    special = set(tokenizer.all_special_tokens)
    ids = {token.lower(): i for token, i in sorted(added.items(), key=lambda item: item[1]) if token not in special}
    found: dict[str, list[int]] = {}
    continued: set[str] = set()
    for name in ids:
        if name in continued:
            continue
        tokens = [name]
        while (following := f"{name}_{len(tokens)}") in ids:
            tokens.append(following)
        continued.update(tokens)
        found[name] = [ids[token] for token in tokens]
    return found


def _token_ids(tokenizer: Any, text: str, embeddings: Mapping[str, list[int]]) -> list[int]:
    """Tokens of a text in which the names of embeddings stand for their own tokens."""
    # The tokenizers' own search for added words differs between transformers releases, so names are cut out here.
    names = "|".join(re.escape(name) for name in sorted(embeddings, key=len, reverse=True))
    parts = re.split(rf"(?<!\w)({names})(?!\w)", text, flags=re.IGNORECASE) if embeddings else [text]
    ids: list[int] = []
    for part in parts:
        # verbose: a text of more than 77 tokens makes transformers warn of errors which chunks do not have
        ids += embeddings.get(part.lower()) or tokenizer(part, add_special_tokens=False, verbose=False).input_ids
    return ids
