"""Tensors by name as files of a folder, each whole if it is there."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path

from torch import Tensor

from ..errors import MuseVError
from ..file_names import shown
from .folders import to_disk


class TensorFolder(MutableMapping[str, Tensor]):
    """`folder["shot 2"]` is the tensor in `folder/shot-2.safetensors`; see `shots.Checkpoint`.

    Raises:
        MuseVError: a file is damaged, or cannot be written.
    """

    def __init__(self, folder: Path):
        """The folder has to be there once something is written."""
        self.folder = folder

    def __getitem__(self, name: str) -> Tensor:
        """Reads a tensor."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self._file(name)
        if not file.exists():
            raise KeyError(name)
        try:
            return load_file(file)["tensor"]
        except (SafetensorError, OSError, KeyError) as error:
            raise MuseVError(f"{shown(file)} cannot be read: {error}. Remove it, or begin the video anew.") from error

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor."""
        from safetensors.torch import save_file

        file = self._file(name)
        part = file.with_suffix(".part.safetensors")
        try:
            save_file({"tensor": tensor.contiguous()}, part)
            to_disk(part, file)
        except OSError as error:
            raise MuseVError(f"{shown(file)} cannot be written: {error.strerror or error}.") from error

    def __delitem__(self, name: str) -> None:
        """Removes a tensor's file."""
        if name not in self:
            raise KeyError(name)
        self._file(name).unlink()

    def __contains__(self, name: object) -> bool:
        """Whether there is a file of that name, without reading it."""
        return isinstance(name, str) and self._file(name).exists()

    def __iter__(self) -> Iterator[str]:
        """The names, sorted."""
        files = sorted(self.folder.glob("*.safetensors"))
        return iter(file.stem.replace("-", " ") for file in files if not file.stem.endswith(".part"))

    def __len__(self) -> int:
        """How many there are."""
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.safetensors"
