"""Where the weights lie on disk: MuseV's folders as published, and the three parts of a base model."""

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from ..config import SD15, VARIANTS, UNetConfig
from ..errors import CheckpointError, MuseVError, nearest
from .files import near_names, read_shapes, read_tensors, shapes_of, shorten
from .keymaps import (
    LDM_TEXT_PREFIX,
    LDM_UNET_PREFIX,
    LDM_VAE_PREFIX,
    renamed,
    text_ldm_to_transformers,
    unet_ldm_to_diffusers,
    vae_names,
)
from .kinds import MUSEV_FAMILIES, Family, ModelKind, describe, recognise

_NETWORK_FILES = (  # in the order in which they are preferred
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
)
_TEXT_FILES = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
_PROJECTION_FILES = ("ip_adapter_image_proj.safetensors", "ip_adapter_image_proj.bin")

_VARIANT_FAMILY = {
    name: Family.MUSEV_REFERENCENET_UNET if config.reference_fusion else Family.MUSEV_UNET
    for name, config in VARIANTS.items()
}
_PART_FAMILY = {"unet": Family.UNET, "vae": Family.VAE, "text_encoder": Family.CLIP_TEXT}
_PART_FILES = {"unet": _NETWORK_FILES, "vae": _NETWORK_FILES, "text_encoder": _TEXT_FILES}
_PART_REMEDY = {
    "unet": "Choose a complete base model.",
    "vae": "Give another VAE beside it (--vae; `vae` of ModelFiles).",
    "text_encoder": "Give another text encoder beside it (--text_encoder; `text_encoder` of ModelFiles).",
}
_PART_PREFIX = {"unet": LDM_UNET_PREFIX, "vae": LDM_VAE_PREFIX, "text_encoder": LDM_TEXT_PREFIX}


@dataclass(frozen=True)
class MuseVFiles:
    """The weight files of one MuseV model.

    `referencenet` and `image_proj` are None where they were not found or the variant has none.
    """

    unet: Path
    kind: ModelKind
    referencenet: Path | None = None
    image_proj: Path | None = None


def find_musev_files(root_or_file: str | PathLike[str], variant: str | None = None) -> MuseVFiles:
    """Find a MuseV model by the published layout (extra.md 8.2, 8.3).

    Args:
        root_or_file: a UNet file; a folder that holds it; a model folder (with `unet/`); or a folder of models, such
            as the whole of the published repository (with `motion/<variant>/unet/`).
        variant: "musev", "musev_referencenet" or "musev_referencenet_pose". Chooses among several models, and is
            checked against the tensors. The last two have one architecture and only differ by folder name.

    Raises:
        MuseVError: unknown variant.
        CheckpointError: nothing or too much was found, or the file is something else than asked for.
    """
    if variant is not None and variant not in VARIANTS:
        raise MuseVError(
            f"Unknown MuseV variant {variant!r}; expected one of {', '.join(VARIANTS)}.{nearest(variant, VARIANTS)}"
        )
    root = Path(root_or_file)
    if not root.exists():
        raise CheckpointError(f"{root} does not exist.{near_names(root)}")
    unet = root if root.is_file() else _find_unet(root, variant)
    kind = recognise(read_shapes(unet))
    if kind.family not in MUSEV_FAMILIES:
        raise CheckpointError(
            f"A MuseV UNet was expected, but {unet} is {describe(kind)}. "
            "Choose motion/<variant>/unet/diffusion_pytorch_model of the MuseV repository."
        )
    if variant is not None and kind.family is not _VARIANT_FAMILY[variant]:
        fitting = [name for name, family in _VARIANT_FAMILY.items() if family is kind.family]
        raise CheckpointError(
            f"Asked for {variant}, but {unet} is {describe(kind)}. "
            f"Choose the file of {variant}, or ask for {' or '.join(fitting)}."
        )
    folder = unet.parent.parent if unet.parent.name == "unet" else unet.parent
    if kind.family is Family.MUSEV_UNET:
        return MuseVFiles(unet=unet, kind=kind)
    # musev_referencenet_pose is published without a ReferenceNet and uses the one of musev_referencenet.
    homes = (folder / "referencenet", folder.parent / "musev_referencenet" / "referencenet")
    return MuseVFiles(
        unet=unet,
        kind=kind,
        referencenet=next((file for home in homes if (file := _first(home, _NETWORK_FILES))), None),
        image_proj=_first(folder, _PROJECTION_FILES),
    )


def read_base(path: str | PathLike[str], part: str, *, config: UNetConfig = SD15) -> dict[str, Tensor]:
    """One part of a Stable Diffusion 1.5 model, with diffusers names (UNet, VAE) or `text_model.*` (text encoder).

    For the installed transformers' spelling of the latter see `keymaps.fit_text_names`.

    Args:
        path: a diffusers folder (`unet/`, `vae/`, `text_encoder/`), one of these folders, the file in it, or a
            single-file checkpoint.
        part: "unet", "vae" or "text_encoder".
        config: sizes of the UNet, for the names in a single file.

    Raises:
        MuseVError: unknown part.
        CheckpointError: not found, or of another kind; an SDXL or SD2 model is called by its name.
    """
    if part not in _PART_FAMILY:
        raise MuseVError(f"Unknown part {part!r} of a base model; expected one of {', '.join(_PART_FAMILY)}.")
    file = base_file(path, part)
    tensors = read_tensors(file)
    kind = recognise(shapes_of(tensors))
    _check_base(kind, part, file)
    prefix = _PART_PREFIX[part]
    if kind.family is Family.SINGLE_FILE or any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if not tensors:
            raise CheckpointError(
                f"{file} holds no {_PART_FAMILY[part].value} (no tensor is named {prefix}*). {_PART_REMEDY[part]}"
            )
    if part == "vae":
        return vae_names(tensors)
    if part == "text_encoder":
        return {new: tensor for name, tensor in tensors.items() if (new := text_ldm_to_transformers(name))}
    if kind.form != "LDM":
        return tensors
    return renamed(tensors, unet_ldm_to_diffusers(config), what="the UNet of Stable Diffusion 1.5")


def _check_base(kind: ModelKind, part: str, file: Path) -> None:
    wanted = _PART_FAMILY[part]
    if kind.base not in ("SD1.5", None):
        raise CheckpointError(f"{file} is {describe(kind)}: this is an {kind.base} model, MuseV needs SD1.5.")
    if kind.family not in (wanted, Family.SINGLE_FILE):
        raise CheckpointError(f"{file} was expected to hold a {wanted.value}, but it is {describe(kind)}.")
    if wanted is Family.CLIP_TEXT is kind.family and kind.width in (1024, 1280):
        raise CheckpointError(
            f"{file} is {describe(kind)}, as SD2 and SDXL use it. MuseV needs the one of SD1.5 (width 768)."
        )


def base_file(path: str | PathLike[str], part: str) -> Path:
    """The file which `read_base` reads.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.{near_names(path)}")
    if path.is_file():
        return path
    names = _PART_FILES[part]
    file = _first(path / part, names) or _first(path, names)
    if file is None:
        raise CheckpointError(
            f"{path} holds no {_PART_FAMILY[part].value}: expected {part}/{names[0]} (or .bin). "
            f"Give a diffusers folder or a single-file checkpoint of Stable Diffusion 1.5. {_PART_REMEDY[part]}"
        )
    return file


def _find_unet(root: Path, variant: str | None) -> Path:
    for folder in (root, root / "unet"):
        if file := _first(folder, _NETWORK_FILES):
            return file
    parents = (root, root / "motion")
    if variant is not None:
        for parent in parents:
            if file := _first(parent / variant / "unet", _NETWORK_FILES):
                return file
    models = {}
    for parent in parents:
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            file = _first(folder / "unet", _NETWORK_FILES)
            if file and recognise(read_shapes(file)).family in MUSEV_FAMILIES:
                models[folder.name] = file
    if variant is not None:
        found = f" Found there: {shorten(list(models))}." if models else ""
        raise CheckpointError(f"{root} holds no model {variant}: expected {variant}/unet/{_NETWORK_FILES[2]}.{found}")
    if not models:
        raise CheckpointError(
            f"{root} holds no MuseV model: expected motion/<variant>/unet/{_NETWORK_FILES[2]} or .safetensors, "
            f"<variant> being one of {', '.join(VARIANTS)}."
        )
    if len(models) > 1:
        raise CheckpointError(f"{root} holds several MuseV models: {', '.join(models)}. Name the variant you want.")
    return next(iter(models.values()))


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
