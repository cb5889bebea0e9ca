"""Weight files into tensors: read without running code, checked by name and shape before a network sees them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]

TORCH_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
NAMES_SHOWN = 8  # in an error message, of a list that may hold hundreds
_HEADER_LIMIT = 100_000_000  # bytes of JSON; the safetensors library refuses more as well
_NESTING_LIMIT = 4  # {"ip_adapter": {"1": {...}}} is the deepest seen
_SAFE_TORCH = "2.10"  # in older ones a crafted file gets round weights_only: CVE-2025-32434, CVE-2026-24747


def read_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a weight file on the CPU, memory mapped where the format allows, in the stored dtype.

    The format is told by the file's content. Nested dictionaries become dotted names (`image_proj.proj.weight`),
    a `state_dict` level is dropped, whatever is no tensor is ignored (musev.md 7, extra.md 6.3).

    Raises:
        CheckpointError: the file is missing, no weight file, damaged, holds no tensors, or could run code.
    """
    path = Path(path)
    if _is_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        _safetensors_shapes(path)  # says what is wrong with a damaged file better than the library
        try:
            return load_file(path, device="cpu")
        except SafetensorError as error:
            raise CheckpointError(f"{path} is a damaged safetensors file ({error}). Download it again.") from error
    return _not_empty(dict(_flatten(_torch_load(path, device="cpu"))), path)


def read_shapes(path: str | PathLike[str]) -> dict[str, Shape]:
    """Name and shape of every tensor of a weight file, without reading the tensors' data.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    path = Path(path)
    if _is_safetensors(path):
        return _safetensors_shapes(path)
    return _not_empty({name: tuple(t.shape) for name, t in _flatten(_torch_load(path, device="meta"))}, path)


def select(
    tensors: Mapping[str, Tensor], expected: Shapes, *, source: str | PathLike[str], tolerate: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The tensors that a network expects, in its order, or an error that names every difference.

    Args:
        tensors: what the file holds.
        expected: name -> shape of every parameter and buffer of the network.
        source: the file, for the message.
        tolerate: patterns such as `"up_blocks.*"` of names that may be there beyond the expected ones; they are left
            out. `("*",)` ignores everything else in the file.

    Raises:
        CheckpointError: names are missing, unexpected, or their shapes differ.
    """
    missing = [name for name in expected if name not in tensors]
    unexpected = [
        name for name in tensors if name not in expected and not any(fnmatchcase(name, pattern) for pattern in tolerate)
    ]
    misshaped = [
        f"{name} (expected {_text(shape)}, found {_text(tensors[name].shape)})"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {title}: {shorten(names)}"
        for title, names in (
            ("missing", missing),
            ("of another shape", misshaped),
            ("unexpected", unexpected),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit the network, which has {len(expected)} tensors: {'; '.join(problems)}. "
            "Choose a file made for this network, or download it again if it should fit."
        )
    return {name: tensors[name] for name in expected}


def check_finite(tensors: Mapping[str, Tensor], source: str | PathLike[str]) -> None:
    """Refuse weights that hold NaN or infinity: they turn every picture black.

    Raises:
        CheckpointError: names the tensors.
    """
    broken = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinite values in {len(broken)} of {len(tensors)} tensors: {shorten(broken)}. "
            "The file is damaged or was converted to a type too small for it. Use another copy."
        )


def shorten(names: Sequence[str]) -> str:
    """The first names of a list and how many more there are."""
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def near_names(path: Path) -> str:
    """`" Near it: a.bin, b.bin."` for a path that does not exist, or nothing when its folder has no such files."""
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    present = [p.name for p in sorted(path.parent.iterdir()) if p.is_dir() or p.suffix.lower() in WEIGHT_SUFFIXES]
    near = get_close_matches(path.name, present, n=NAMES_SHOWN, cutoff=0.5) or present
    return f" In that folder: {shorten(near)}." if near else " That folder holds no weight files."


def _is_safetensors(path: Path) -> bool:
    """True for a safetensors file, False for one of torch; an error for everything else."""
    if path.is_dir():
        inside = [p.name for p in sorted(path.iterdir()) if p.suffix.lower() in WEIGHT_SUFFIXES]
        raise CheckpointError(
            f"{path} is a folder, a weight file was expected. "
            + (f"Choose one of: {shorten(inside)}." if inside else "It holds no weight files.")
        )
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.{near_names(path)}")
    if path.suffix.lower() not in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"{path} is no weight file: its name ends in {path.suffix!r}, expected one of {', '.join(WEIGHT_SUFFIXES)}."
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer ({size} bytes of text), not the weights. "
            "Run `git lfs pull` in that repository, or download the file itself."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page that was saved under this name, not weights. "
            "Use the download link of the file itself; some sites ask for a login first."
        )
    if head[8:9] == b"{":  # asked first: the eight bytes of length before it may be anything
        return True
    if head.startswith((b"PK", b"\x80")):  # a zip archive, or the pickle that torch wrote before 1.6
        return False
    if path.suffix.lower() == ".safetensors":
        return True
    raise CheckpointError(
        f"{path} is neither a safetensors nor a torch file (it starts with {head[:8]!r}). Download it again."
    )


def _safetensors_shapes(path: Path) -> dict[str, Shape]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _HEADER_LIMIT):
            raise CheckpointError(
                f"{path} is no complete safetensors file: its header should take {length} bytes, "
                f"the whole file has {size}. Download it again."
            )
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in header.items()}
            end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is a damaged safetensors file: its header cannot be read ({error}). Download it again."
            ) from error
    if size < end:
        raise CheckpointError(
            f"{path} is truncated: its header says {end} bytes, the file has {size} ({size / end:.0%}). "
            "Download it again."
        )
    return _not_empty(shapes, path)


def _torch_load(path: Path, device: str) -> Any:
    if torch.__version__ < _SAFE_TORCH:
        raise CheckpointError(
            f"{path} was not loaded: a file of this format can run code in torch {torch.__version__}, which is older "
            f"than {_SAFE_TORCH} (CVE-2025-32434, CVE-2026-24747). Use a .safetensors version of this model, or update "
            "torch."
        )
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            if is_zip and path.suffix.lower() in TORCH_SUFFIXES:  # mapping needs a path, whose suffix torch looks at
                return torch.load(path, map_location=device, weights_only=True, mmap=True)
            return torch.load(file, map_location=device, weights_only=True, mmap=False)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        message = str(error)
        refused = re.search(r"GLOBAL (\S+)", message)
        if refused:
            # torch's own text recommends to switch the protection off, so it is not passed on.
            raise CheckpointError(
                f"{path} was not loaded: it refers to {refused[1]!r}, which is no tensor, "
                "and loading it could run code. Ask for a .safetensors version of this model."
            ) from None
        if "Weights only load failed" in message and "WeightsUnpickler" in message:
            reason = message.split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        else:
            reason = (message.splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is truncated or damaged ({path.stat().st_size} bytes; {reason}). Download it again."
        ) from error


def _flatten(data: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries with dotted names."""
    if isinstance(data, Tensor):
        yield prefix or "tensor", data.detach()
    elif isinstance(data, Mapping) and depth < _NESTING_LIMIT:
        for key, value in data.items():
            if key == "state_dict" and isinstance(value, Mapping):
                yield from _flatten(value, prefix, depth)
            else:
                yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def _not_empty(found: dict[str, Any], path: Path) -> dict[str, Any]:
    if not found:
        raise CheckpointError(f"{path} holds no tensors. Choose a file with model weights.")
    return found


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # the float8 types know no isfinite
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def _text(shape: Sequence[int]) -> str:
    return str(list(shape))
