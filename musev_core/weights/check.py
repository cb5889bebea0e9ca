"""What lies in a file or folder, and what is missing for a video (`musev models check`)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import MuseVError
from ..models.unet import MuseVUNet
from .architecture import unet_config_from_shapes
from .files import WEIGHT_SUFFIXES, read_shapes, shorten
from .keymaps import is_motion_name
from .kinds import MUSEV_FAMILIES, Family, describe, recognise
from .layout import find_musev_files


@dataclass
class Report:
    """Lines to show, and whether everything looked at can be used."""

    lines: list[str] = field(default_factory=list)
    complete: bool = True

    def problem(self, line: str) -> None:
        """Adds a line that says what is wrong."""
        self.lines.append(f"  PROBLEM: {line}")
        self.complete = False


def check_path(path: Path) -> Report:
    """Looks at a weight file, or at every weight file below a folder; only names and shapes are read.

    Raises:
        MuseVError: nothing is there.
    """
    if not path.exists():
        raise MuseVError(f"there is no file or folder {path}")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _holds_weights(p))
    if not files:
        raise MuseVError(f"the folder {path} holds no weight files ({', '.join(WEIGHT_SUFFIXES)})")
    report = Report()
    for file in files:
        _check_file(file, report)
    return report


def _check_file(file: Path, report: Report) -> None:
    try:
        _check_content(file, report)
    except MuseVError as error:  # the other files are looked at all the same
        report.lines.append(f"{file}")
        report.problem(str(error))


def _check_content(file: Path, report: Report) -> None:
    shapes = read_shapes(file)
    kind = recognise(shapes)
    report.lines.append(f"{file}: {describe(kind)}, {len(shapes)} tensors, {file.stat().st_size / 1e6:.1f} MB")
    if kind.base not in (None, "SD1.5"):
        report.problem(f"made for {kind.base}; MuseV needs SD1.5")
    if kind.family in MUSEV_FAMILIES:
        _check_musev(file, shapes, report)


def _check_musev(file: Path, shapes: dict[str, tuple[int, ...]], report: Report) -> None:
    with torch.device("meta"):
        expected = {name: tuple(x.shape) for name, x in MuseVUNet(unet_config_from_shapes(shapes)).state_dict().items()}
    motion = [name for name in expected if is_motion_name(name)]
    missing = [name for name in motion if name not in shapes]
    wrong = [name for name in motion if name in shapes and tuple(shapes[name]) != expected[name]]
    if missing:
        report.problem(f"{len(missing)} of {len(motion)} motion tensors are missing: {shorten(missing)}")
    if wrong:
        report.problem(f"{len(wrong)} motion tensors have another shape than this model: {shorten(wrong)}")
    found = find_musev_files(file)
    if found.kind.family is Family.MUSEV_REFERENCENET_UNET:
        for part, what, where in (
            (found.referencenet, "ReferenceNet", "referencenet/diffusion_pytorch_model.bin beside unet/"),
            (found.image_proj, "image projection", "ip_adapter_image_proj.bin beside unet/"),
        ):
            if part is None:
                report.problem(f"no {what}; put {where}, or run without it")
            else:
                report.lines.append(f"  {what}: {part}")
    if found.kind.motion_only:
        report.lines.append("  the Stable Diffusion part comes from the base model")


def _holds_weights(path: Path) -> bool:
    """What training goes on from lies among a checkpoint's weights, but is none."""
    return path.suffix.lower() in WEIGHT_SUFFIXES and path.is_file() and path.parent.name != "state"
