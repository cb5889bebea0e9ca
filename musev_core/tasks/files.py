"""Task files: YAML lists of tasks with references, alternatives and templates, as the original has them."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import MuseVError, blame, nearest
from ..prompt_templates import fill_template, template_fields
from ..values import beside, is_none, read_yaml, scalar, user_path
from .results import check_files, frame_size
from .task import DEAD_PARAMETERS, FIELDS, Task

_HARMLESS = {"context_stride": "1"}  # a dead parameter at the value existing scripts give it
_FREE_KEYS = frozenset({"template_name", "eye_blinks_factor"})  # in the original's files even where no prompt asks
_SIBLING = re.compile(r"\$\{\.(\w+)\}")
_EXAMPLE = (
    "- name: yongen\n  prompt: (masterpiece:1.2), a girl is dancing\n  condition_images: ./images/yongen.jpeg\n"
    "  refer_image: ${.condition_images}\n  motion_speed: 8.0"
)


def load_tasks(
    path: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    targets: Sequence[str] | None = None,
) -> list[Task]:
    """Read a task file: a YAML list of tasks, or a mapping with the list under `tasks` (extra.md 2.7).

    Args:
        path: the YAML file. Relative file names in it are looked for beside it, then in the working directory.
        defaults: values for fields which a task leaves out, e.g. from the command line.
        targets: names of the tasks wanted, in any order; None for all. Only these are checked.

    Raises:
        MuseVError: the file or a task is wrong; the message names the task and the field.
    """
    path = user_path(path)
    return make_tasks(_read(path), folder=path.parent, defaults=defaults, targets=targets)


def make_tasks(
    entries: Sequence[Any],
    *,
    folder: Path | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    targets: Sequence[str] | None = None,
) -> list[Task]:
    """Checked tasks from the mappings of a task file; see `load_tasks`.

    `${.key}` becomes the sibling's value; then a text with `|` splits its task into one per alternative, all
    combinations, named name_1, name_2...; then `{key}` in the prompt becomes the value of that field.
    A target selects a task by its name before or after splitting.
    """
    _check_keys(defaults, "the defaults", used=frozenset())
    named = [(str(name), fields) for name, fields in map(_named, itertools.count(), entries)]
    variants = [(name, *variant) for name, fields in named for variant in _alternatives(name, fields)]
    _check_unique([name for name, _ in named])
    _check_unique([name for _, name, _ in variants])
    if targets is not None:
        known = dict.fromkeys(name for base, name, _ in variants for name in (base, name))
        targets = [target.strip() for target in targets]
        for target in targets:
            if target not in known:
                raise MuseVError(
                    f"There is no task {target!r}.{nearest(target, known)} Known tasks: {', '.join(known)}."
                )
        variants = [variant for variant in variants if variant[0] in targets or variant[1] in targets]
    tasks = []
    for _, name, fields in variants:
        with blame(f"Task {name!r}"):
            tasks.append(_build(name, fields, defaults, folder))
    return tasks


def _build(name: str, fields: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path | None) -> Task:
    values: dict[str, Any] = {key: value for key, value in defaults.items() if value is not None}
    for key, value in fields.items():
        template_word = key not in FIELDS and key not in DEAD_PARAMETERS
        if value is not None or template_word:  # null means the default, or no word in a template
            values[key] = _located(value, folder) if _is_path(key) else value
    if "prompt" not in values:
        raise MuseVError("prompt: missing; every task needs one (it may be empty: prompt: '').")
    prompt = scalar("prompt", values["prompt"], str)
    _check_keys(values, "the task", used=template_fields(prompt))
    values["name"] = name
    values["prompt"] = fill_template(prompt, {**fields, **values})
    task = Task(**{key: value for key, value in values.items() if key in FIELDS})
    check_files(task)
    frame_size(task)
    return task


def _is_path(key: str) -> bool:
    return key in FIELDS and FIELDS[key].kind is Path


def _located(value: Any, folder: Path | None) -> Any:
    """The file beside the task file if it is there; otherwise the name is left to the working directory."""
    if isinstance(value, list):
        return [_located(item, folder) for item in value]
    if folder is None or not isinstance(value, str) or is_none(value):
        return value
    return beside(folder, value)


def _check_keys(values: Mapping[str, Any], where: str, *, used: frozenset[str]) -> None:
    for key, value in values.items():
        if key in DEAD_PARAMETERS:
            if value is not None and str(value) != _HARMLESS.get(key):
                raise MuseVError(f"{key}: no longer a parameter in {where}: {DEAD_PARAMETERS[key]}.")
        elif key not in FIELDS and key not in used and key not in _FREE_KEYS:
            raise MuseVError(
                f"{key}: unknown field in {where}, and no {{{key}}} in the prompt uses it.{nearest(str(key), FIELDS)}"
            )


def _named(index: int, entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, Mapping):
        raise MuseVError(
            f"Task {index}: expected a mapping of fields, got {entry!r}. A task looks like this:\n{_EXAMPLE}"
        )
    fields = {str(key): value for key, value in entry.items()}
    name = fields.pop("name", None)
    return str(index if name is None else name).strip(), fields


def _check_unique(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MuseVError(f"Task {name!r}: name: two tasks are called so; every task needs a name of its own.")
        seen.add(name)


def _alternatives(name: str, fields: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    with blame(f"Task {name!r}"):
        resolved = {key: _interpolate(value, fields | {"name": name}, (key,)) for key, value in fields.items()}
    choices = [
        [part.strip() for part in value.split("|")] if isinstance(value, str) and "|" in value else [value]
        for value in resolved.values()
    ]
    variants = [dict(zip(resolved, values, strict=True)) for values in itertools.product(*choices)]
    return [(name if len(variants) == 1 else f"{name}_{i}", variant) for i, variant in enumerate(variants, 1)]


def _interpolate(value: Any, fields: Mapping[str, Any], trail: tuple[str, ...]) -> Any:
    """`value` with every `${.key}` replaced by the sibling field; `trail` are the keys being resolved."""
    if isinstance(value, list):
        return [_interpolate(item, fields, trail) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def sibling(match: re.Match[str]) -> Any:
        key = match[1]
        if key in trail:
            raise MuseVError(f"{trail[0]}: the references {' -> '.join((*trail, key))} go round in a circle.")
        if key not in fields:
            raise MuseVError(
                f"{trail[0]}: {match[0]} refers to a field which this task does not have.{nearest(key, fields)}"
            )
        return _interpolate(fields[key], fields, (*trail, key))

    if whole := _SIBLING.fullmatch(value.strip()):
        return sibling(whole)
    result = _SIBLING.sub(lambda match: str(sibling(match)), value)
    if "${" in result:
        raise MuseVError(f"{trail[0]}: expected a reference like ${{.condition_images}}, got {value!r}.")
    return result


def _read(path: Path) -> list[Any]:
    if path.suffix.lower() == ".csv":
        raise MuseVError(f"{path} is a CSV file; convert it to YAML, one list entry per row:\n{_EXAMPLE}")
    data = read_yaml(path, what="task file", example=_EXAMPLE)
    if isinstance(data, Mapping) and "tasks" in data:
        data = data["tasks"]
    if not isinstance(data, list) or not data:
        raise MuseVError(f"The task file {path} should hold a list of tasks, e.g.\n{_EXAMPLE}")
    return data
