"""Model folders: where the loaders look for files, which they list for what, and the file behind a listed name.

Names are relative to a model folder and have forward slashes on every system, so a workflow finds its files on another
machine, whichever of the folders they lie in there.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...musev_core.errors import MuseVError, nearest
from ...musev_core.weights.files import WEIGHT_SUFFIXES, read_shapes, shorten
from ...musev_core.weights.kinds import MUSEV_FAMILIES, Family, ModelKind, recognise
from ...musev_core.weights.published import MUSEV_REPO

MUSEV, IP_ADAPTERS = "musev", "ipadapter"
# where other packs for MuseV have its repository, below models/diffusers
_SHARED_TREES = (MUSEV_REPO, "MuseV")


@dataclass(frozen=True)
class FileKind:
    """What a loader loads: its name in sentences, where it is looked for, and what it looks like.

    Args:
        noun: for messages.
        folders: keys of ComfyUI's model folders.
        families: what the tensors say.
        place: what the published name says; such files are not opened for the list.
        example: a published file, relative to a model folder.
        download: its name for `musev models download`.
    """

    noun: str
    folders: tuple[str, ...]
    families: tuple[Family, ...]
    place: str
    example: str
    download: str


MOTION = FileKind(
    noun="MuseV motion model",
    folders=(MUSEV,),
    families=MUSEV_FAMILIES,
    place=r"(^|/)(motion/[^/]+|musev(_referencenet(_pose)?)?)/unet/[^/]+$",
    example="motion/musev_referencenet/unet/diffusion_pytorch_model.bin",
    download="musev_referencenet",
)
REFERENCE_NET = FileKind(
    noun="MuseV ReferenceNet",
    folders=(MUSEV,),
    families=(Family.REFERENCENET,),
    place=r"(^|/)referencenet/[^/]+$",
    example="motion/musev_referencenet/referencenet/diffusion_pytorch_model.bin",
    download="musev_referencenet",
)
IP_ADAPTER = FileKind(
    noun="image projection of MuseV or IP-Adapter for SD1.5",
    folders=(MUSEV, IP_ADAPTERS),
    families=(Family.IMAGE_PROJECTION, Family.IP_ADAPTER),
    place=r"(^|/)ip_adapter_image_proj\.[^/.]+$",
    example="motion/musev_referencenet/ip_adapter_image_proj.bin",
    download="musev_referencenet",
)
_KINDS = (MOTION, REFERENCE_NET, IP_ADAPTER)
# the other networks of the published tree; the largest files of it need not be opened either
_OTHER_PLACE = r"(^|/)(t2i|vae|text_encoder|image_encoder|lcm|embedding|insightface)/"
_USABLE_ADAPTERS = ("plain", "plus", "faceid")

_recognised: dict[str, tuple[tuple[int, int], ModelKind | None]] = {}  # path -> ((mtime, size), kind)


def register() -> None:
    """Tells ComfyUI of the model folders, beside those which extra_model_paths.yaml or other packs named before."""
    models = folder_paths.models_dir
    shared = [os.path.join(root, *tree.split("/")) for root in _paths("diffusers") for tree in _SHARED_TREES]
    _add(MUSEV, [os.path.join(models, "musev"), *shared])
    _add(IP_ADAPTERS, [os.path.join(models, "ipadapter")] if not _paths(IP_ADAPTERS) else [])


def _paths(key: str) -> list[str]:
    return list(folder_paths.folder_names_and_paths[key][0]) if key in folder_paths.folder_names_and_paths else []


def _add(key: str, paths: Iterable[str]) -> None:
    for path in paths:
        folder_paths.add_model_folder_path(key, path)
    known, suffixes = folder_paths.folder_names_and_paths[key]
    # a key that came from add_model_folder_path has no suffixes and would list every file
    folder_paths.folder_names_and_paths[key] = (known, {*suffixes, *WEIGHT_SUFFIXES})


# ------------------------------------------------------------------------------------------ the list


def options(kind: FileKind) -> list[str]:
    """The names to choose from, sorted; a single entry that says what to do if there are none. Never raises.

    Published names are listed without opening the files, others by their tensors, read once per state of a file. What
    cannot be read is listed where its place says so, or as a motion model: loading it then tells what is wrong.
    """
    return _names(kind) or [_nothing_yet(kind)]


def _names(kind: FileKind) -> list[str]:
    names: dict[str, None] = {}
    for key in kind.folders:
        for name in _listed(key):
            tidy = name.replace(os.sep, "/")
            if tidy not in names and tidy.lower().endswith(WEIGHT_SUFFIXES) and _is(kind, key, tidy):
                names[tidy] = None
    return sorted(names)


def _path(key: str, name: str) -> str | None:
    try:
        return folder_paths.get_full_path(key, name)
    except ValueError:  # another drive of Windows
        return None


def _listed(key: str) -> list[str]:
    try:
        return folder_paths.get_filename_list(key)
    except OSError:  # ComfyUI's cached list asks for the time of a folder that was deleted meanwhile
        folder_paths.filename_list_cache.pop(key, None)
    try:
        return folder_paths.get_filename_list(key)
    except OSError:
        return []


def _is(kind: FileKind, key: str, name: str) -> bool:
    if key == MUSEV:
        place = next((other for other in _KINDS if re.search(other.place, name)), None)
        if place is not None:
            return place is kind
        if re.search(_OTHER_PLACE, name):
            return False
    path = _path(key, name)
    if path is None:
        return False
    found = _recognise(path)
    if found is None:
        return kind is (MOTION if key == MUSEV else IP_ADAPTER)
    if found.family in (Family.IP_ADAPTER, Family.IMAGE_PROJECTION) and found.form not in _USABLE_ADAPTERS:
        return False
    return found.family in kind.families and found.base in ("SD1.5", None)


def _recognise(path: str) -> ModelKind | None:
    """What a file is by the names and shapes of its tensors; None if it cannot be told."""
    try:
        stat = os.stat(path)
        state = (stat.st_mtime_ns, stat.st_size)
        if path not in _recognised or _recognised[path][0] != state:
            _recognised[path] = (state, _read_kind(path))
    except OSError:
        return None
    return _recognised[path][1]


def _read_kind(path: str) -> ModelKind | None:
    try:
        return recognise(read_shapes(path))
    except MuseVError:
        return None


# ------------------------------------------------------------------------------------------ the file


def find(kind: FileKind, name: str) -> str:
    """The path of a listed name; backslashes of a workflow from elsewhere are understood.

    Raises:
        MuseVError: it is not there (any more), or nothing was there to choose from.
    """
    if not isinstance(name, str):  # from another program
        raise MuseVError(f"The {kind.noun} is chosen by its name, got {name!r}.")
    for candidate in dict.fromkeys((name, name.replace("\\", "/"))):
        for key in kind.folders if candidate else ():
            if path := _path(key, candidate):
                return path
    known = _names(kind)
    if not known:
        raise MuseVError(_explanation(kind))
    if name == _nothing_yet(kind):
        raise MuseVError(f"Choose a file: {shorten(known)}.")
    raise MuseVError(
        f"The {kind.noun} {name!r} is not there: it was moved, deleted, or this workflow comes from another machine."
        f"{nearest(name, known)} Files to choose from: {shorten(known)}."
    )


def check(kind: FileKind, name: str | None) -> bool | str:
    """For `validate_inputs`: True, or the sentence of `find`. None is a value that only the run will show."""
    try:
        if name is not None:
            find(kind, name)
    except MuseVError as error:
        return str(error)
    return True


def _nothing_yet(kind: FileKind) -> str:
    return f"nothing found; put {kind.example} into models/musev"


def _explanation(kind: FileKind) -> str:
    folders = [path for key in kind.folders for path in _paths(key)]
    return (
        f"No {kind.noun} was found. Put {kind.example} of the hub repository {MUSEV_REPO}, with these folders, into "
        f"one of: {', '.join(folders)}. Other folders can be named under `{MUSEV}:` in extra_model_paths.yaml. "
        f"`python -m musev_core.cli models download {kind.download} --to {folder_paths.models_dir}`, run in the folder "
        f"{Path(__file__).parents[2]}, fetches it. Then press R, and choose the file in this node."
    )


register()
