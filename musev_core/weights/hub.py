"""The hub over HTTP: what it lists and the files themselves, believed no further than they were checked."""

import json
import logging
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from ..errors import MuseVError, shown
from ..file_names import is_portable

log = logging.getLogger(__name__)

HUB = "https://huggingface.co"
LARGEST_FILE = 1 << 40  # bytes
_LARGEST_LISTING = 32 << 20
_BLOCK = 1 << 20  # bytes read at once
_MOST_REDIRECTS = 5
_MOST_TRIES = 3  # in a row, without a byte that comes
_TIMEOUT = 30  # seconds without an answer
_AGAIN = (
    "Check the connection (HTTPS_PROXY for a proxy, HF_ENDPOINT for a mirror) and run the command again: "
    "it goes on where it stopped."
)
_SIZE_OF_A_DIGEST = {"sha": 40, "blobId": 40, "sha256": 64}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub repository at one commit. `sha256` is published for large files, `git_hash` for all."""

    repo: str
    commit: str
    path: str
    size: int
    git_hash: str
    sha256: str | None = None


# ------------------------------------------------------------------------------------------ listings


@dataclass(frozen=True)
class Listing:
    """What a repository holds, as the hub says: looked at only where it is asked for."""

    repo: str
    commit: str
    entries: Sequence[Mapping[str, Any]]

    def files(self, prefix: str) -> list[RemoteFile]:
        """The files whose path begins so.

        Raises:
            MuseVError: what is said of one of them cannot be.
        """
        with _sentences_of_listings(self.repo):
            named = [(entry["rfilename"], entry) for entry in self.entries]
            return [_file(self.repo, self.commit, path, entry) for path, entry in named if path.startswith(prefix)]


def read_listing(repo: str) -> Listing:
    """Asks the hub for the listing of a repository.

    Raises:
        MuseVError: it cannot be asked, or answers something else.
    """
    with _sentences(repo), _open(f"{_endpoint()}/api/models/{quote(repo)}?blobs=true") as response:
        text = response.read(_LARGEST_LISTING + 1)
    with _sentences_of_listings(repo):
        if len(text) > _LARGEST_LISTING:
            raise ValueError("it is endless")
        content = json.loads(text)
        return Listing(repo, _digest(content, "sha"), list(content["siblings"]))


@contextmanager
def _sentences_of_listings(repo: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, MuseVError):
            raise
        raise MuseVError(
            f"What {_endpoint()} answers for {repo} is no listing of files ({type(error).__name__}: {error}). {_AGAIN}"
        ) from error


def _file(repo: str, commit: str, path: str, entry: Mapping[str, Any]) -> RemoteFile:
    large = entry.get("lfs") or {}
    size = large.get("size") if large else entry.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= LARGEST_FILE:
        raise MuseVError(f"{repo} lists {shown(path)} with {shown(size)} bytes, which cannot be; it is not fetched.")
    if not all(map(is_portable, path.split("/"))):
        raise MuseVError(f"{repo} lists {shown(path)}, which not every system takes as a name; it is not fetched.")
    return RemoteFile(repo, commit, path, size, _digest(entry, "blobId"), _digest(large, "sha256") if large else None)


def _digest(entry: Mapping[str, Any], key: str) -> str:
    if not re.fullmatch(rf"[0-9a-f]{{{_SIZE_OF_A_DIGEST[key]}}}", entry[key]):
        raise ValueError(f"{key} is {shown(entry[key])}")
    return entry[key]


# ------------------------------------------------------------------------------------------ files


def append(stream: BinaryIO, file: RemoteFile, name: str) -> None:
    """Fetches what is missing of a file, to the end of `stream`; never more than was announced.

    A connection that breaks is taken up again. Whether the content is right is for the caller to see.

    Args:
        stream: open for appending and at its end.
        name: shown beside the bar.

    Raises:
        MuseVError: refused, unreachable, or something else is sent.
        OSError: `stream` cannot be written.
    """
    from tqdm import tqdm

    tries, start = 0, stream.tell()
    bar = tqdm(total=file.size, initial=start, unit="B", unit_scale=True, desc=name, disable=None)
    with bar:
        while (start := stream.tell()) < file.size:
            try:
                with _sentences(f"{file.repo}/{file.path}"):
                    _continue(stream, file, bar)
            except _Broken:
                tries = 0 if stream.tell() > start else tries + 1
                if tries == _MOST_TRIES:
                    raise
                log.warning("the connection broke %d bytes before the end of %s; it goes on",
                            file.size - stream.tell(), name)  # fmt: skip
                time.sleep(1)


def _continue(stream: BinaryIO, file: RemoteFile, bar: Any) -> None:
    """One answer, from where `stream` ends to where the answer does."""
    start = stream.tell()
    what = f"{file.repo}/{file.path}"
    url = f"{_endpoint()}/{quote(file.repo)}/resolve/{file.commit}/{quote(file.path)}"
    with _open(url, start) as response:
        if "html" in response.headers.get("Content-Type", ""):
            raise MuseVError(f"Instead of {what} a web page came, as networks send that ask for a login. {_AGAIN}")
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and not goes_on:  # everything is sent again
            stream.truncate(0)
            stream.seek(0)
            bar.reset()
            start = 0
            if response.status == 206:
                raise _Broken(f"Of {what} another part came than was asked for. {_AGAIN}")
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and len(length) < 20 and int(length) != file.size - start:
            raise MuseVError(
                f"{what} has {file.size:,} bytes, but {start + int(length):,} are sent: it is another file. {_AGAIN}"
            )
        while (left := file.size - stream.tell()) > 0:
            block = response.read(min(left, _BLOCK))
            if not block:
                raise _Broken(f"{what} cannot be reached: the connection broke. {_AGAIN}")
            bar.update(stream.write(block))


# ------------------------------------------------------------------------------------------ HTTP


class _Broken(MuseVError):
    """What another try may mend."""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Leaves them to `_open`, which sees where they lead."""


def _endpoint() -> str:
    """The hub, or a mirror of it; read now rather than at import."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB


def _open(url: str, start: int = 0) -> HTTPResponse:
    """The answer to a GET of the bytes from `start`; redirects lead to no file of this machine, nor from https to http.

    The login goes to the host of `url` only, and over https only.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        raise MuseVError(f"{url} is not fetched: HF_HUB_OFFLINE forbids it. Unset this variable to download.")
    opener = build_opener(_NoRedirects, HTTPSHandler(context=_certificates()))
    home = urlsplit(url)
    for _ in range(_MOST_REDIRECTS):
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or (home.scheme == "https" and place.scheme == "http"):
            raise MuseVError(f"{home.geturl()} leads to {shown(url)}, which is not safe to follow; nothing is fetched.")
        headers = {"User-Agent": "musev", "Accept-Encoding": "identity"}  # a part of a packed answer is of no use
        if start:
            headers["Range"] = f"bytes={start}-"
        if place.scheme == "https" and place.netloc == home.netloc and (token := _token()):
            headers["Authorization"] = f"Bearer {token}"
        try:
            return opener.open(Request(url, headers=headers), timeout=_TIMEOUT)
        except HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in (301, 302, 303, 307, 308) or target is None:
                raise
            error.close()
            url = urljoin(url, quote(target, safe="%/:=&?~#+!$,;'@()*[]"))
    raise MuseVError(f"{home.geturl()} leads from one address to the next without an end.")


def _certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    with suppress(ImportError):  # not every Python knows where the system keeps them
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _token() -> str | None:
    """The login of `hf auth login`, found where huggingface_hub looks."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            return token if token.isascii() and token.isprintable() else None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or cache)
    try:
        file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):  # none there; the last: no home
        return None
    return token if token and token.isascii() and token.isprintable() else None


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Errors of the hub and the network as sentences; those of the disk pass."""
    try:
        yield
    except HTTPError as error:
        raise _refusal(what, error) from error
    except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        told = (str(reason).strip() or type(reason).__name__).splitlines()[0]
        raise _Broken(f"{what} cannot be reached: {told}. {_AGAIN}") from error
    except ValueError as error:  # no address
        if isinstance(error, MuseVError):
            raise
        raise MuseVError(f"{what} cannot be reached: {error}. HF_ENDPOINT is {shown(_endpoint())}.") from error


def _refusal(what: str, error: HTTPError) -> MuseVError:
    word = error.headers.get("X-Error-Code")
    if word == "GatedRepo":
        return MuseVError(f"{what} asks for a login: accept its terms on its page, then run `hf auth login`.")
    if word == "RepoNotFound":
        return MuseVError(f"{what} is not on the hub any more, or it is private (then run `hf auth login`).")
    kind = _Broken if error.code >= 500 or error.code == 429 else MuseVError
    return kind(f"{what} cannot be fetched now: the hub answered {error.code}. {_AGAIN}")
