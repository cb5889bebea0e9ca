"""Weight files into tensors: read without running code, checked by name and shape before a network sees them."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .records import TensorRecord, claim_too_much, mapped_tensors
from .safetensors_header import safetensors_records
from .torch_files import torch_records
from .torch_pickle import UnknownName

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]

TORCH_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
NAMES_SHOWN = 8  # in an error message, of a list that may hold hundreds
_NAME_LENGTH = 200


def read_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a weight file on the CPU, memory mapped, in the stored dtype.

    The format is told by the file's content. Nested dictionaries become dotted names (`image_proj.proj.weight`),
    a `state_dict` level is dropped, whatever is no tensor is ignored (musev.md 7, extra.md 6.3).

    Raises:
        CheckpointError: the file is missing, no weight file, damaged, holds no tensors, or could run code.
    """
    path = Path(path)
    records = _records(path)
    try:
        return mapped_tensors(path, records)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_shapes(path: str | PathLike[str]) -> dict[str, Shape]:
    """Name and shape of every tensor of a weight file, without reading the tensors' data.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    return {name: record.shape for name, record in _records(Path(path)).items()}


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
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise CheckpointError(
            f"{source} holds NaN or infinite values in {len(broken)} of {len(tensors)} tensors: {shorten(broken)}. "
            "The file is damaged or was converted to a type too small for it. Use another copy."
        )


def shorten(names: Sequence[str]) -> str:
    """The first names of a list and how many more there are; what no console should get is escaped."""
    rest = len(names) - NAMES_SHOWN
    shown = (f"{name if name.isprintable() else ascii(name):.{_NAME_LENGTH}}" for name in names[:NAMES_SHOWN])
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Name and shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


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


def _records(path: Path) -> dict[str, TensorRecord]:
    is_safetensors = _is_safetensors(path)
    try:
        size = path.stat().st_size
        records = safetensors_records(path) if is_safetensors else torch_records(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except UnknownName as error:
        raise CheckpointError(
            f"{path} was not loaded: it refers to {str(error)!r:.100}, which is no tensor, "
            "and loading it could run code. Ask for a .safetensors version of this model."
        ) from None
    except ValueError as error:
        form = "safetensors" if is_safetensors else "torch"
        raise CheckpointError(f"{path} is a truncated or damaged {form} file: {error}. Download it again.") from error
    if not records:
        raise CheckpointError(f"{path} holds no tensors. Choose a file with model weights.")
    if claim_too_much(records, size):
        raise CheckpointError(f"{path} is damaged: its tensors would take far more than its {size} bytes.")
    return records


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor is without NaN and infinity."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # the float8 types know no arithmetic
        tensor = tensor.float()
    low, high = tensor.aminmax()  # one pass, 25 times as fast as isfinite().all()
    return bool(low.isfinite() and high.isfinite())


def _text(shape: Sequence[int]) -> str:
    return str(list(shape))
