"""Which videos there are to train on: folders, CSV tables, and the original's tables (extra.md 1.1)."""

import csv
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MuseVError
from ..file_names import portable_path

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".ts", ".rmvb", ".mov", ".avi", ".webm", ".gif")
FEATURE_SUFFIXES = (".h5py", ".h5", ".hdf5")
_PATH_COLUMNS = ("video_path", "path", "file", "filename", "basename")
_CAPTION_COLUMNS = ("prompt", "caption", "text", "name")


@dataclass(frozen=True)
class Source:
    """One video: where it is, what it shows, and the name of its feature file below the folder of features."""

    path: Path
    caption: str
    feature_name: str


def find_sources(places: Sequence[Path], *, video_dir: Path | None = None) -> list[Source]:
    """Videos of folders and CSV tables, in their order; a video that is listed twice counts once.

    In a folder a video's caption is the text file beside it (`clip.mp4`, `clip.txt`), else there is none. A table
    (`,`, with a header) has one of the columns video_path, path, file, filename, basename, or, as WebVid, videoid and
    page_dir; and one of prompt, caption, text, name. Relative paths are looked for in `video_dir`, else beside the
    table. Without a caption column, UCF101's class in the path is the caption.

    Raises:
        MuseVError: a place that is neither, a table without a column of paths, or no video at all.
    """
    found: dict[Path, Source] = {}
    for place in places:
        if place.is_dir():
            sources: Iterable[Source] = _in_folder(place)
        elif place.suffix.lower() == ".csv" and place.is_file():
            sources = _in_table(place, video_dir or place.parent)
        else:
            raise MuseVError(f"{place} is neither a folder of videos nor a CSV table")
        for source in sources:
            found.setdefault(source.path, source)
    if not found:
        raise MuseVError(f"no videos ({', '.join(VIDEO_SUFFIXES)}) were found in {', '.join(map(str, places))}")
    return list(found.values())


def find_features(places: Sequence[Path], *, path_column: str = "emb_path", min_frames: int = 0) -> list[Path]:
    """Feature files of folders and of the original's training tables.

    Args:
        path_column: the table's column of paths.
        min_frames: rows with a `frames_num` up to this are left out, as the original does.

    Raises:
        MuseVError: a place that is neither, a table without that column, or no file at all.
    """
    files: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in FEATURE_SUFFIXES)
        elif place.suffix.lower() == ".csv" and place.is_file():
            paths = []
            for row in _rows(place):
                if path_column not in row:
                    raise MuseVError(f"{place} has no column {path_column!r}; its columns are {', '.join(row)}")
                if not row.get("frames_num") or float(row["frames_num"]) > min_frames:
                    paths.append(_located(row[path_column], place.parent))
        else:
            raise MuseVError(f"{place} is neither a folder of feature files nor a CSV table")
        files |= dict.fromkeys(paths)
    if not files:
        raise MuseVError(
            f"no feature files ({', '.join(FEATURE_SUFFIXES)}) were found in {', '.join(map(str, places))}"
        )
    return list(files)


def class_caption(path: Path) -> str:
    """UCF101's caption: the class folder's name split at its capitals, "ApplyLipstick" -> "apply lipstick"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", path.parent.name)
    return " ".join(words).lower()


def _in_folder(folder: Path) -> Iterable[Source]:
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
        yield Source(path, _caption(path.with_suffix(".txt")), str(path.relative_to(folder).with_suffix("")))


def _caption(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MuseVError(f"the caption {path} cannot be read: {error}; save it as UTF-8 text") from error


def _in_table(table: Path, videos: Path) -> Iterable[Source]:
    for row in _rows(table):
        caption = next((row[name] for name in _CAPTION_COLUMNS if row.get(name)), "")
        if row.get("videoid"):
            name = f"{row.get('page_dir') or 'pagedir_none'}/{row['videoid']}"
            yield Source(videos / f"{name}.mp4", caption, portable_path(name))
            continue
        column = next((name for name in _PATH_COLUMNS if name in row), None)
        if column is None:
            raise MuseVError(
                f"{table} has no column of videos; expected one of {', '.join(_PATH_COLUMNS)}, or videoid and "
                f"page_dir; its columns are {', '.join(row)}"
            )
        path = _located(row[column], videos)
        if column == "basename" and not caption:
            caption = class_caption(path)
        name = path.relative_to(videos) if path.is_relative_to(videos) else Path(path.name)
        yield Source(path, caption, portable_path(str(name.with_suffix(""))))


def _located(text: str, folder: Path) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() or not (folder / path).exists() and path.exists() else folder / path


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MuseVError(f"{table} cannot be read as a CSV table: {error}") from error
    return [{key: value or "" for key, value in row.items() if key is not None} for row in rows]
