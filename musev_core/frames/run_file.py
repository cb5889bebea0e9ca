"""What is written down about an unfinished video, in `name.mp4.parts/run.json`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MuseVError
from ..file_names import shown
from .folders import to_disk

MAKING, FINISHING = "making", "finishing"  # frames are made; all are, and outputs go to their places
SUFFIX = ".parts"
_VERSION = 1
_LIMIT = 1 << 20  # bytes
_NOTHING = object()


@dataclass
class RunFile:
    """An unfinished video.

    Attributes:
        facts: what decides its frames, by name.
        frames: how many it has, once it is finished.
        segment: frames of a segment.
        choices: what its first run has chosen, and all others keep.
        runs: who has worked on it: `from_frame`, `begun`, `host`, `process`, and what else is known.
    """

    facts: dict[str, Any]
    frames: int
    segment: int
    choices: dict[str, Any]
    state: str = MAKING
    runs: list[dict[str, Any]] = field(default_factory=list)
    version: int = _VERSION

    @staticmethod
    def exists(video: Path) -> bool:
        """Whether a video is unfinished, or a run that was finishing it has been killed."""
        return (run_folder(video) / "run.json").exists()

    @classmethod
    def read(cls, folder: Path) -> "RunFile":
        """That of a folder.

        Raises:
            MuseVError: there is none, or it is not one that a run of this version writes.
        """
        file = folder / "run.json"
        try:
            with file.open("rb") as stream:
                run = cls(**json.loads(stream.read(_LIMIT)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise MuseVError(f"{shown(file)} cannot be read: {error}.") from error
        counts = isinstance(run.frames, int) and isinstance(run.segment, int) and min(run.frames, run.segment) > 0
        mappings = isinstance(run.facts, dict) and isinstance(run.choices, dict)
        runs = isinstance(run.runs, list) and all(isinstance(one, dict) for one in run.runs)
        if run.version != _VERSION or run.state not in (MAKING, FINISHING) or not (counts and mappings and runs):
            raise MuseVError(f"{shown(file)} is damaged, or was written by another version of MuseV.")
        return run

    def write(self, folder: Path) -> None:
        """Puts it in the place of the one before.

        Raises:
            OSError: that is not possible.
        """
        part = folder / "run.part.json"
        part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        to_disk(part, folder / "run.json")

    @property
    def owner(self) -> str:
        """The process that worked on it last: "process 12 on studio"."""
        last = self.runs[-1] if self.runs else {}
        return f"process {last.get('process', '?')} on {last.get('host', '?')}"


def run_folder(video: Path) -> Path:
    """Where the parts of an unfinished video are."""
    return video.with_name(video.name + SUFFIX)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What two sets of facts differ in, as a sentence's part; empty if in nothing."""
    told = []
    old, new = _flat(old), _flat(new)
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name, _NOTHING), new.get(name, _NOTHING)
        if one != other:
            told.append(f"{name} was {_told(one)} and is {_told(other)}")
    return ", ".join(told)


def _flat(facts: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat.update(_flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value})
    return flat


def _told(value: Any) -> str:
    if value is _NOTHING:
        return "not given"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unfinished(folder: Path) -> Iterator[tuple[Path, RunFile]]:
    """The unfinished videos of a folder: where each will stand, and what is known of it. Damaged ones are left out."""
    for parts in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield parts.with_name(parts.name.removesuffix(SUFFIX)), RunFile.read(parts)
        except MuseVError:
            continue
