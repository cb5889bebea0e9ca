"""Model tables: the base models a run can choose from, by name, with the LoRAs each brings along."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MuseVError, nearest
from ..values import beside, scalar, user_path
from ..weights.lora_blocks import LORA_BLOCK_PRESETS, block_factors
from ..yaml_file import read_yaml

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")

_EXAMPLE = """majicmixRealv6Fp16:
  path: ./checkpoints/t2i/sd1.5/majicmixRealv6Fp16
  style: realistic
  loras:
    ./checkpoints/lora/face.safetensors: 0.8
    ./checkpoints/lora/dress.safetensors: {strength: 0.6, strength_offset: 0.0, lora_block_weight: OUTALL}"""


@dataclass(frozen=True, kw_only=True)
class LoraEntry:
    """One LoRA of a model: its weights count (strength + strength_offset) * factor of their block (extra.md 7.3)."""

    path: Path
    strength: float = 1.0
    strength_offset: float = 0.0
    lora_block_weight: tuple[float, ...] = LORA_BLOCK_PRESETS["ALL"]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One base model: a diffusers folder or a single checkpoint file (extra.md 2.8)."""

    name: str
    path: Path
    loras: tuple[LoraEntry, ...] = ()
    style: str | None = None
    sex: str | None = None

    def suits(self, *, style: str | None, sex: str | None) -> bool:
        """Whether a task of this style and sex runs with the model; unset on either side means any (extra.md 2.7)."""
        return all(None in pair or pair[0] == pair[1] for pair in ((self.style, style), (self.sex, sex)))


def load_model_table(path: str | os.PathLike[str]) -> dict[str, ModelEntry]:
    """Read the models of a YAML table, of a folder of models, or the one model that `path` itself is.

    In a table relative paths are looked for beside it, then in the working directory; whether they exist is checked by
    `pick`, so a table may list models which are not downloaded. In a folder the entries are its sub folders with a
    diffusers model and its single files, by name without extension.

    Raises:
        MuseVError: nothing there, no models in it, a Python file (never executed), or a malformed table.
    """
    path = user_path(path)
    suffix = path.suffix.lower()
    if suffix != ".py" and not os.path.exists(path):
        raise MuseVError(f"There is no model table, model or folder {path} (working directory: {Path.cwd()}).")
    if path.is_dir():
        return _from_folder(path)
    if suffix in CHECKPOINT_SUFFIXES:
        return {path.stem: ModelEntry(name=path.stem, path=path)}
    data = read_yaml(path, what="model table", example=_EXAMPLE)
    if not isinstance(data, Mapping) or not data:
        raise MuseVError(f"The model table {path} should map names to models, e.g.\n{_EXAMPLE}")
    return {str(name): _entry(str(name), fields, path.parent) for name, fields in data.items()}


def pick(table: Mapping[str, ModelEntry], names: str) -> list[ModelEntry]:
    """The entries of a comma list of names in its order, or every entry for "all".

    "None" is the only entry of a table which holds one, as the original names a model given by its folder.

    Raises:
        MuseVError: an unknown name, no name, or a file of a chosen model which is not there.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["all"] or (wanted == ["None"] and len(table) == 1):
        wanted = list(table)
    if not wanted:
        raise MuseVError(f"No model was named. Known models: {', '.join(table)}.")
    for name in wanted:
        if name not in table:
            raise MuseVError(f"There is no model {name!r}.{nearest(name, table)} Known models: {', '.join(table)}.")
    entries = [table[name] for name in dict.fromkeys(wanted)]
    for entry in entries:
        for what, file in (("path", entry.path), *(("loras", lora.path) for lora in entry.loras)):
            if not os.path.exists(file):
                raise MuseVError(
                    f"Model {entry.name!r}: {what}: {file} does not exist (working directory: {Path.cwd()})."
                )
    return entries


def _is_diffusers(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "unet").is_dir()


def _from_folder(folder: Path) -> dict[str, ModelEntry]:
    if _is_diffusers(folder):
        name = folder.resolve().name
        return {name: ModelEntry(name=name, path=folder)}
    table: dict[str, ModelEntry] = {}
    for item in sorted(folder.iterdir()):
        single = item.is_file() and item.suffix.lower() in CHECKPOINT_SUFFIXES
        if single or (item.is_dir() and _is_diffusers(item)):
            name = item.stem if single and item.stem not in table else item.name
            table[name] = ModelEntry(name=name, path=item)
    if not table:
        raise MuseVError(
            f"The folder {folder} holds no models: neither sub folders with model_index.json or unet/, nor "
            f"{' or '.join(CHECKPOINT_SUFFIXES)} files."
        )
    return table


def _entry(name: str, fields: Any, folder: Path) -> ModelEntry:
    where = f"Model {name!r}"
    if isinstance(fields, str):
        fields = {"path": fields}
    fields = _mapping(fields, where, ("path", "loras", "style", "sex"))
    if not isinstance(fields.get("path"), str) or not fields["path"].strip():
        raise MuseVError(f"{where}: path: expected a folder or file name, got {fields.get('path')!r}.")
    loras = fields.get("loras") or {}
    if not isinstance(loras, Mapping):
        raise MuseVError(f"{where}: loras: expected a mapping of files to strengths, got {loras!r}.")
    texts = {key: None if fields.get(key) is None else str(fields[key]) for key in ("style", "sex")}
    return ModelEntry(
        name=name,
        path=beside(folder, fields["path"]),
        loras=tuple(_lora(f"{where}: loras: {file}", str(file), rule, folder) for file, rule in loras.items()),
        **texts,
    )


def _lora(where: str, file: str, rule: Any, folder: Path) -> LoraEntry:
    if rule is None:
        rule = {}
    if not isinstance(rule, Mapping):
        rule = {"strength": rule}
    rule = _mapping(rule, where, ("strength", "strength_offset", "lora_block_weight"))
    return LoraEntry(
        path=beside(folder, file),
        strength=scalar(f"{where}: strength", rule.get("strength", 1.0), float),
        strength_offset=scalar(f"{where}: strength_offset", rule.get("strength_offset", 0.0), float),
        lora_block_weight=block_factors(rule.get("lora_block_weight", "ALL"), name=f"{where}: lora_block_weight"),
    )


def _mapping(fields: Any, where: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(fields, Mapping):
        raise MuseVError(f"{where}: expected fields, got {fields!r}. A table looks like this:\n{_EXAMPLE}")
    for key in fields:
        if key not in known:
            raise MuseVError(f"{where}: unknown field {key!r}; known are {', '.join(known)}.{nearest(str(key), known)}")
    return fields
