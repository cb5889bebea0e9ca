"""Published files onto the disk: planned, resumed, verified, and never over a file of the user's own."""

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import MuseVError
from ..file_names import made_folder
from ..locks import alone_with
from .hub import Listing, RemoteFile, append, read_listing
from .published import Source, sources_of

log = logging.getLogger(__name__)

LAYOUTS = ("comfyui", "original")
_BLOCK = 1 << 22  # bytes read at once for a checksum
_POINTER = b"version https://git-lfs"  # what `git clone` without LFS leaves instead of a file
_SPARE = 100_000_000  # bytes that are left free on a disk


class State(Enum):
    """What a plan does with a file."""

    FETCH = "fetch"
    PRESENT = "already there"
    KEPT = "kept, differs from the published file"


@dataclass(frozen=True)
class Step:
    """One file of a plan: from where, to where, and what is done."""

    file: RemoteFile
    target: Path
    state: State

    @property
    def part(self) -> Path:
        """Where the file grows; the name holds the checksum, so that only the same content is ever continued."""
        digest = self.file.sha256 or self.file.git_hash
        return self.target.with_name(f".{self.target.name}.{digest[:12]}.part")

    @property
    def remaining(self) -> int:
        """Bytes still to come."""
        if self.state is not State.FETCH:
            return 0
        return max(0, self.file.size - (self.part.stat().st_size if self.part.is_file() else 0))


# ------------------------------------------------------------------------------------------ planning


def models_folder(root: Path, layout: str | None = None) -> Path | None:
    """ComfyUI's folder of models if that is the layout, told from what lies in `root` unless given; otherwise None."""
    if layout == "original":
        return None
    named_so, holds = root.absolute().name == "models", (root / "checkpoints").is_dir()
    if (holds and (named_so or (root / "loras").is_dir())) or (named_so and layout == "comfyui"):
        return root
    known = (root / "models").is_dir() and ((root / "custom_nodes").is_dir() or (root / "main.py").is_file())
    return root / "models" if layout == "comfyui" or known else None


def make_plan(
    names: Sequence[str], root: Path, *, layout: str | None = None, overwrite: bool = False
) -> tuple[Step, ...]:
    """What has to be done so that everything of these names lies below `root`; nothing is written.

    Args:
        names: of `published.PUBLISHED`.
        root: a ComfyUI folder or the original's `checkpoints`.
        layout: "comfyui" or "original"; None tells it from what lies in `root`.
        overwrite: fetch also what exists and differs.

    Raises:
        MuseVError: an unknown name, or the hub cannot be asked or lacks a file.
    """
    models = models_folder(root, layout)
    wanted = []
    for source in sources_of(names):
        where = source.original if models is None else source.comfyui
        if where is not None:
            wanted.append((source, (root if models is None else models) / where))
    listings = {repo: read_listing(repo) for repo in dict.fromkeys(source.repo for source, _ in wanted)}
    files = [pair for source, target in wanted for pair in _files(source, target, listings[source.repo])]
    return tuple(Step(file, target, _state(file, target, overwrite)) for file, target in files)


def _files(source: Source, target: Path, listing: Listing) -> list[tuple[RemoteFile, Path]]:
    files = listing.files(source.path)
    if not source.path.endswith("/"):
        found = [(file, target) for file in files if file.path == source.path]
    else:
        found = [(file, target / file.path.removeprefix(source.path)) for file in files if file.path[-3:] != ".bk"]
    if not found:
        raise MuseVError(
            f"{source.path} is no longer in {source.repo}. Look for it there, and put it to {target} by hand."
        )
    return found


def _state(file: RemoteFile, target: Path, overwrite: bool) -> State:
    try:
        if not os.path.lexists(target) or _is_pointer(target):
            return State.FETCH
        if target.is_file() and _same(file, target):
            return State.PRESENT
    except OSError as error:
        raise MuseVError(f"{target} exists and cannot be read: {error.strerror or error}.") from error
    return State.FETCH if overwrite else State.KEPT


def _is_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _same(file: RemoteFile, path: Path) -> bool:
    """True if the file on disk has the published size and checksum."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        log.info("checking %s", path)
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as data:
        while block := data.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == (file.sha256 or file.git_hash)


# ------------------------------------------------------------------------------------------ fetching


def free_space(plan: Sequence[Step]) -> dict[Path, tuple[int, int]]:
    """Per disk: an existing folder on it, the bytes that the plan needs there, and the bytes that are free."""
    folders: dict[int, Path] = {}
    needed: Counter[int] = Counter()
    for step in plan:
        folder = next(parent for parent in step.target.absolute().parents if parent.is_dir())
        device = folder.stat().st_dev
        folders.setdefault(device, folder)
        needed[device] += step.remaining
    return {folder: (needed[device], shutil.disk_usage(folder).free) for device, folder in folders.items()}


def fetch(plan: Sequence[Step], starting: Callable[[Step], None] | None = None) -> None:
    """Carries a plan out. What was interrupted is continued, what arrives damaged is deleted.

    Args:
        plan: from `make_plan`.
        starting: called before every file that is fetched.

    Raises:
        MuseVError: no space, no permission, no connection, or a file that differs from what is published. What was
            fetched before stays.
    """
    for folder, (needed, free) in free_space(plan).items():
        if needed and needed + _SPARE > free:
            raise MuseVError(
                f"{size_text(needed)} have to be fetched, but only {size_text(free)} are free on the disk of {folder}. "
                "Make room, choose less, or another folder."
            )
    for step in plan:
        if step.state is State.FETCH:
            if starting is not None:
                starting(step)
            _fetch_file(step)


def _fetch_file(step: Step) -> None:
    made_folder(step.part.parent)
    try:
        with alone_with(step.target, "downloading"):
            _complete(step)
    except OSError as error:
        raise MuseVError(f"{step.target} cannot be written: {error.strerror or error}.") from error


def _complete(step: Step) -> None:
    file, part = step.file, step.part
    with part.open("ab") as stream:
        if stream.tell() > file.size:
            stream.truncate(0)
            stream.seek(0)
        append(stream, file, step.target.name)
    if not _same(file, part):
        part.unlink()
        raise MuseVError(
            f"{step.target.name} arrived damaged: its checksum is not the one published by {file.repo}. What came was "
            "deleted; run the command again."
        )
    part.replace(step.target)


def size_text(size: float) -> str:
    """Bytes for people, three digits: "5.68 GB"."""
    units = ["B", "kB", "MB", "GB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    digits = 0 if units[0] == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {units[0]}"
