"""What goes with the text encoder: CLIP's tokenizer, and the embeddings that users add."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..encode.text import TextualInversion, read_textual_inversion
from ..errors import CheckpointError, naming
from ..weights.files import TORCH_SUFFIXES, check_finite, near_names, read_tensors
from .files import ModelFiles, StrPath

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"  # what every Stable Diffusion 1.5 model uses
_EMBEDDING_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_FILE_LIMIT = 20_000_000  # bytes; CLIP's files have one million


def load_tokenizer(files: ModelFiles) -> Any:
    """CLIP's tokenizer: given, the base model's, or from the local hub cache; nothing is downloaded.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    from transformers import CLIPTokenizer

    folder = _tokenizer_folder(files)
    for name in ("vocab.json", "merges.txt"):
        if (folder / name).stat().st_size > _FILE_LIMIT:
            raise CheckpointError(f"{folder / name} is larger than any tokenizer's. Download it again.")
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({error}). Download its files again."
        ) from error


def _tokenizer_folder(files: ModelFiles) -> Path:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(CLIP_TOKENIZER, "vocab.json")
    given = [] if files.tokenizer is None else [Path(files.tokenizer)]
    local = [Path(cached).parent] if isinstance(cached, str) else []
    for folder in given or [Path(files.base) / "tokenizer", *local]:
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return folder
    if given:
        raise CheckpointError(f"the tokenizer folder {files.tokenizer} holds no vocab.json and merges.txt")
    raise CheckpointError(
        f"{files.base} brings no tokenizer. Give the tokenizer folder (vocab.json, merges.txt) of any Stable Diffusion "
        f"1.5 model in diffusers form, or fetch it once: hf download {CLIP_TOKENIZER} vocab.json merges.txt "
        "tokenizer_config.json special_tokens_map.json"
    )


def read_embeddings(paths: Sequence[StrPath]) -> list[TextualInversion]:
    """The textual inversions of files and folders, called by their files' names.

    Raises:
        CheckpointError: a path does not exist, a folder has none, or a file is no textual inversion.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise CheckpointError(f"The embeddings {path} do not exist.{near_names(path)}")
        found = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in _EMBEDDING_SUFFIXES) if path.is_dir() else [path]
        )
        if not found:
            raise CheckpointError(
                f"The folder {path} holds no embeddings: expected files ending in {', '.join(_EMBEDDING_SUFFIXES)}."
            )
        files += found
    embeddings = []
    for path in files:
        with naming(path):
            embeddings.append(read_textual_inversion(read_tensors(path), path.stem))
            check_finite({"vectors": embeddings[-1].vectors}, path)
    return embeddings
