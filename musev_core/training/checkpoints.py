"""Training states on disk: complete or not there, whenever the process is killed."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, MuseVError
from ..weights.files import read_tensors

log = logging.getLogger(__name__)

STATE = "state"
TENSORS, PROGRESS = "training.safetensors", "progress.json"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, on the disk when this returns."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, path, metadata=dict(metadata or {}))
    _sync(path)


def save_json(path: Path, value: Any) -> None:
    """A JSON file, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _sync(path)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a folder, which gets its name only when it is complete."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    _sync(folder.parent)


def checkpoint_folders(root: Path) -> dict[int, Path]:
    """Complete checkpoints below `root`, by step, the latest last."""
    found = {}
    for progress in root.glob(f"checkpoint-*/{STATE}/{PROGRESS}"):
        folder = progress.parents[1]
        number = folder.name.removeprefix("checkpoint-")
        if number.isdigit():
            found[int(number)] = folder
    return dict(sorted(found.items()))


def find_checkpoint(root: Path, wanted: str) -> Path | None:
    """Where a run in `root` goes on: None for its beginning.

    Args:
        wanted: a checkpoint's folder; `latest`, which may be none; or `none`.

    Raises:
        CheckpointError: the folder is no complete checkpoint.
        MuseVError: `none` where there are checkpoints, which a new run would mix with its own.
    """
    latest = list(checkpoint_folders(root).values())[-1:]
    if wanted == "none" and latest:
        raise MuseVError(
            f"a new run cannot begin where an earlier one got to {latest[0]}; choose another output_dir, delete its "
            "checkpoints, or go on with it (resume latest)"
        )
    if wanted in ("none", "latest"):
        return latest[0] if latest else None
    folder = Path(wanted).expanduser()
    for name in (TENSORS, PROGRESS):
        if not (folder / STATE / name).is_file():
            raise CheckpointError(
                f"{folder} is no checkpoint training can go on from: it has no {STATE}/{name}; choose a folder "
                "checkpoint-<step> which `musev train` wrote, or `latest`"
            )
    return folder


def remove_old(root: Path, keep: int) -> None:
    """Removes all but the last `keep` checkpoints, and what killed processes left unfinished."""
    for folder in list(checkpoint_folders(root).values())[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)
    for part in root.glob("checkpoint-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress of a checkpoint.

    Raises:
        CheckpointError: it is no complete checkpoint of a training run.
    """
    progress = folder / STATE / PROGRESS
    try:
        return read_tensors(folder / STATE / TENSORS), json.loads(progress.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint training can go on from: {progress} cannot be read ({error}); choose a folder "
            "checkpoint-<step> which `musev train` wrote, or start without resume"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's state as tensors named `<parameter>/<entry>`; `names` by `id` of the parameters."""
    return {
        f"{names[id(parameter)]}/{entry}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Gives the optimizer back what `optimizer_tensors` took."""
    for name, value in tensors.items():
        parameter_name, _, entry = name.rpartition("/")
        parameter = parameters[parameter_name]
        # AdamW counts its steps on the CPU; its moments lie where the parameter is
        place = value.clone() if value.ndim == 0 else value.to(parameter.device, copy=True)
        optimizer.state[parameter][entry] = place


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders; renaming is durable enough there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
