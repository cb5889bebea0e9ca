"""Names of files: those that people give us, and those that we make up, which every file system has to take."""

import errno
import hashlib
import os
import re
import stat
import unicodedata
from base64 import b32encode
from pathlib import Path, PurePath, PureWindowsPath

from .errors import MuseVError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]|data:")  # two letters at least: C:\ is a drive
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])", re.IGNORECASE)
_WINDOWS_LIMIT = 248  # characters; a folder may have so many on Windows, a file 259
_SHOWN = 300  # characters of a name in a message


def existing_file(name: str | os.PathLike[str], noun: str, *, folders: bool = False, hint: str = "") -> Path:
    """The path of a file that is there.

    Args:
        noun: what is expected, for the messages: "image file".
        folders: whether a folder will do.
        hint: sentences for a file that is missing, such as where it was looked for.

    Raises:
        MuseVError: nothing there, a folder, something that is no file (a pipe, a device), a web address, or a name that
            the file system does not take.
    """
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # NUL, or characters which the system's encoding does not have
        raise MuseVError(f"{shown(path)} cannot be the name of a file here: {error}.") from error
    except OSError as error:
        if _ADDRESS.match(str(path)):
            raise MuseVError(f"{shown(path)} is an address, not a file. Download it, and give the {noun}.") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise MuseVError(f"The {noun} {shown(path)} does not exist.{hint and f' {hint}'}") from error
        raise MuseVError(f"The {noun} {shown(path)} cannot be opened: {error.strerror or error}.") from error
    if stat.S_ISDIR(mode) and not folders:
        raise MuseVError(f"{shown(path)} is a folder; the name of one {noun} was expected.")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise MuseVError(f"{shown(path)} is a device or a pipe; the name of one {noun} was expected.")
    return path


def made_folder(path: Path) -> Path:
    """`path`, which is a folder from now on.

    Raises:
        MuseVError: it cannot be made: a file of that name, no rights, a name that the system does not take.
    """
    try:
        long_path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise MuseVError(f"The folder {shown(path)} cannot be made: {error}.") from error
    return path


def shown(path: str | os.PathLike[str]) -> str:
    """A file name for a message: quoted, control characters by their code, and not pages long."""
    text = os.fspath(path)
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}")


def portable_name(text: str, length: int = 40, *, fallback: str = "unnamed") -> str:
    """`text` as a part of a file name which Windows, macOS and Linux take alike.

    Letters and digits of all languages stay, and `-` and `_`; whatever else is in between becomes one `_`. Dots go as
    well, since they begin a suffix. Names of Windows' devices (`CON`, `com1`) are extended by `_`.

    Args:
        length: characters at most, 12 or more, and twice as many bytes; file systems take 255 bytes for a whole name.
            A longer text ends in a code of its own.
        fallback: for a text of which nothing is left.
    """
    name = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)).strip("_-")
    if _cut(name, length) != name:  # names which begin alike stay apart
        code = short_code(name)
        name = f"{_cut(name, length - len(code) - 1).rstrip('_-')}-{code}"
    return f"{name}_" if _RESERVED.fullmatch(name) else name or fallback


def short_code(text: str) -> str:
    """Five letters and digits for a text, which survive file systems that ignore case."""
    return b32encode(hashlib.sha256(text.encode()).digest())[:5].decode().lower()


def _cut(text: str, length: int) -> str:
    return text[:length].encode()[: 2 * length].decode(errors="ignore")


def portable_path(text: str) -> str:
    """A relative path out of someone else's table, `/` between its parts: it stays in its folder, on every system.

    Parts that all systems take stay as they are.
    """
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".")]
    return "/".join(part if is_portable(part) else portable_name(part) for part in parts) or "unnamed"


def is_portable(name: str) -> bool:
    """Whether Windows, macOS and Linux all take a file of this name."""
    return (
        0 < len(name.encode(errors="replace")) <= 255
        and not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]', name)
        and not name.endswith((".", " "))
        and not _RESERVED.fullmatch(name.split(".")[0].rstrip())
    )


def long_path(path: Path) -> Path:
    r"""The path in the form in which the system takes it whatever its length: on Windows `\\?\C:\...` if it is long."""
    return Path(extended_windows_path(PureWindowsPath(path.absolute()))) if os.name == "nt" else path


def extended_windows_path(path: PureWindowsPath) -> PurePath:
    r"""An absolute path of Windows; one of 248 characters and more as `\\?\C:\...` or `\\?\UNC\server\share\...`.

    In this form no setting of the system and no program along the way limits it to 259 characters.
    """
    text = str(path)
    if len(text) < _WINDOWS_LIMIT or text.startswith("\\\\?\\") or not path.is_absolute():
        return path
    return PureWindowsPath(f"\\\\?\\UNC\\{text[2:]}" if text.startswith("\\\\") else f"\\\\?\\{text}")
