"""Task files: YAML lists of tasks with references, alternatives and templates, as the original has them."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..encode.templates import fill_template, parts, template_fields
from ..errors import MuseVError, blame, listed, nearest, shown
from ..values import beside, is_none, scalar, user_path
from ..yaml_file import read_yaml
from .dead import DEAD_PARAMETERS, refuse_dead
from .expansion import MAX_TASKS, count_variants, variants, with_references
from .results import check_files, frame_size
from .task import FIELDS, Task

log = logging.getLogger(__name__)

_FREE_KEYS = frozenset({"template_name", "eye_blinks_factor"})  # in the original's files even where no prompt asks
_OPTIONS = {info.option: key for key, info in FIELDS.items() if info.option}
_WORDS = frozenset(word for key in FIELDS for word in key.split("_"))  # "video", "frames": hardly notes
_MAX_NAME = 200  # characters
_EXAMPLE = (
    "- name: yongen\n  prompt: (masterpiece:1.2), a girl is dancing\n  condition_images: ./images/yongen.jpeg\n"
    "  refer_image: ${.condition_images}\n  motion_speed: 8.0"
)


def load_tasks(
    path: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    targets: Sequence[str] | None = None,
    refuse: Callable[[MuseVError], None] | None = None,
    unused: Mapping[str, str] = MappingProxyType({}),
) -> list[Task]:
    """Read a task file: a YAML list of tasks, or a mapping with the list under `tasks` (extra.md 2.7).

    Args:
        path: the YAML file. Relative file names in it are looked for beside it, then in the working directory.
        defaults: values for fields which a task leaves out, e.g. from the command line.
        targets: names of the tasks wanted, in any order; None for all. Only these are checked.
        refuse: called with the error of every task that is wrong, which is left out; None: the first is raised.
        unused: fields which have no effect in this run, and what each would need; their files are not looked for.

    Raises:
        MuseVError: the file, the defaults or the targets are wrong, or a task; the message names the task and the
            field.
    """
    path = user_path(path)
    return make_tasks(_read(path), folder=path.parent, defaults=defaults, targets=targets, refuse=refuse, unused=unused)


def make_tasks(
    entries: Sequence[Any],
    *,
    folder: Path | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    targets: Sequence[str] | None = None,
    refuse: Callable[[MuseVError], None] | None = None,
    unused: Mapping[str, str] = MappingProxyType({}),
) -> list[Task]:
    """Checked tasks from the mappings of a task file; see `load_tasks`.

    `${.key}` becomes the sibling's value; then a text with `|` splits its task into one per alternative, all
    combinations, named name_1, name_2...; then `{key}` in the prompt becomes the value of that field.
    A target selects a task by its name before or after splitting.
    """
    refuse = refuse or _raise
    _check_keys(defaults, "the defaults", used=None)
    tasks = []
    idle: dict[str, None] = {}  # keys, in order
    drafts = _drafts(entries, targets, refuse)
    for draft in drafts:
        try:
            with blame(f"Task {draft.name!r}"):
                tasks.append(_build(draft, defaults, folder, idle, unused.keys()))
        except MuseVError as error:
            refuse(error)
    if idle:
        log.warning("without effect, since they are neither fields nor {words} of a prompt: %s", listed(idle))
    for key, need in unused.items():
        if _is_path(key) and any(not is_none(draft.fields.get(key)) for draft in drafts):
            log.warning("%s is not used: it needs %s", key, need)
    return tasks


def _raise(error: MuseVError) -> None:
    raise error


@dataclass(frozen=True)
class _Draft:
    """A task to be: its values as they were written, and the keys which others refer to."""

    name: str
    fields: Mapping[str, Any]
    used: Set[str]


def _drafts(
    entries: Sequence[Any], targets: Sequence[str] | None, refuse: Callable[[MuseVError], None]
) -> list[_Draft]:
    """The tasks wanted, after splitting."""
    if len(entries) > MAX_TASKS:
        raise MuseVError(f"A file may hold {MAX_TASKS:,} tasks, got {len(entries):,}.")
    groups: dict[str, list[_Draft]] = {}
    errors: dict[str, MuseVError] = {}
    names: dict[str, None] = {}  # before and after splitting, in order
    left = MAX_TASKS
    for index, entry in enumerate(entries):
        base = str(index)
        try:
            base, fields = _named(index, entry)
            with blame(f"Task {base!r}"):
                if base in groups:
                    raise MuseVError("name: two tasks are called so; every task needs a name of its own.")
                group = _split(base, fields, left)
                if taken := next((draft.name for draft in group if draft.name in names), None):
                    raise MuseVError(f"name: another task is called {taken!r}; every task needs a name of its own.")
        except MuseVError as error:
            errors[base] = error
        else:
            groups[base] = group
            left -= len(group)
            names |= dict.fromkeys([base, *(draft.name for draft in group)])
    wanted = None if targets is None else [target.strip() for target in targets]
    for target in wanted or ():
        if target not in names and not any(target == base or target.startswith(f"{base}_") for base in errors):
            raise MuseVError(f"There is no task {shown(target)}.{nearest(target, names)} Known tasks: {listed(names)}.")
    for base, error in errors.items():
        if wanted is None or any(target == base or target.startswith(f"{base}_") for target in wanted):
            refuse(error)
    return [
        draft
        for base, group in groups.items()
        for draft in group
        if wanted is None or base in wanted or draft.name in wanted
    ]


def _split(name: str, fields: dict[str, Any], most: int) -> list[_Draft]:
    """One task per combination of alternatives, at most so many."""
    resolved, used = with_references(fields | {"name": name})
    del resolved["name"]
    count = count_variants(resolved)
    if count > most:
        split = [f"{key} {value.count('|') + 1}" for key, value in resolved.items() if "|" in str(value)]
        raise MuseVError(
            f"the alternatives (x|y) make {count:,} tasks ({listed(split, 8)}), and a file may hold {MAX_TASKS:,}."
        )
    return [
        _Draft(name if count == 1 else f"{name}_{i}", variant, used) for i, variant in enumerate(variants(resolved), 1)
    ]


def _build(
    draft: _Draft, defaults: Mapping[str, Any], folder: Path | None, idle: dict[str, None], unused: Set[str]
) -> Task:
    fields = {key: value for key, value in draft.fields.items() if key not in unused}
    values = {key: value for key, value in defaults.items() if value is not None and key not in unused}
    for key, value in fields.items():
        template_word = key not in FIELDS and key not in DEAD_PARAMETERS
        if value is not None or template_word:  # null means the default, or no word in a template
            values[key] = _located(value, folder) if _is_path(key) else value
    if "prompt" not in values:
        raise MuseVError("prompt: missing; every task needs one (it may be empty: prompt: '').")
    prompt = scalar("prompt", values["prompt"], str)
    idle |= dict.fromkeys(_check_keys(values, "the task", used=template_fields(prompt) | draft.used))
    values["name"] = draft.name
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


def _check_keys(values: Mapping[str, Any], where: str, *, used: Set[str] | None) -> list[str]:
    """The keys of the user's own that nothing uses; one that may be a misspelt field is an error.

    `used` are the keys which prompts and references use; None: there can be none of the user's own.
    """
    idle = []
    for key, value in values.items():
        if key in FIELDS or key in _FREE_KEYS or key in (used or ()):
            continue
        if key in DEAD_PARAMETERS:
            refuse_dead(key, value, f"in {where}")
            continue
        if key in _OPTIONS:
            raise MuseVError(f"{key}: a name of the command line; in {where} it is {_OPTIONS[key]}.")
        misspelt = key in _WORDS or nearest(key, FIELDS, cutoff=0.75)
        if misspelt or used is None:
            raise MuseVError(
                f"{key}: unknown field in {where}, and no {{{key}}} in the prompt uses it.{nearest(key, FIELDS)}"
                + (" A note of your own needs a name less like a field's." if misspelt else "")
            )
        idle.append(key)
    return idle


def _named(index: int, entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, Mapping):
        raise MuseVError(
            f"Task {index}: expected a mapping of fields, got {shown(entry)}. A task looks like this:\n{_EXAMPLE}"
        )
    fields = {str(key): value for key, value in entry.items()}
    if isinstance(fields.get("render"), (str, list)):  # each of several styles makes a task of its own
        fields["render"] = "|".join(parts(fields["render"]))
    name = fields.pop("name", None)
    with blame(f"Task {index}"):
        name = str(index) if name is None else scalar("name", name, str).strip()
        if len(name) > _MAX_NAME:
            raise MuseVError(f"name: at most {_MAX_NAME} characters, got {len(name)}: {shown(name, 40)}.")
    return name, fields


def _read(path: Path) -> list[Any]:
    if path.suffix.lower() == ".csv":
        raise MuseVError(f"{path} is a CSV file; convert it to YAML, one list entry per row:\n{_EXAMPLE}")
    data = read_yaml(path, what="task file", example=_EXAMPLE)
    if isinstance(data, Mapping) and "tasks" in data:
        data = data["tasks"]
    if not isinstance(data, list) or not data:
        raise MuseVError(f"The task file {path} should hold a list of tasks, e.g.\n{_EXAMPLE}")
    return data
