"""A small hub of one's own: the few addresses that huggingface_hub asks for, served over real HTTP."""

import hashlib
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # made for this, with its key; valid for a hundred years
ENDLESS = b"endless"  # as a body: sent again and again
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class FakeHub:
    """Repositories as `{repo: {path: content}}`, what goes wrong, and which requests came."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cut_after: dict[str, int] = field(default_factory=dict)  # path -> bytes after which the next answer breaks off
    down_after_cut: bool = False  # the server then refuses that file
    # path or repo -> answer with this status, and perhaps the hub's word for it, instead
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)  # paths whose content arrives changed
    knows_ranges: bool = True
    poured: int = 0  # bytes of endless answers
    listings: dict[str, bytes] = field(default_factory=dict)  # by repo, in place of it
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)  # by path, added to it
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)  # by path

    def add(self, repo: str, path: str, content: bytes) -> bytes:
        self.repos.setdefault(repo, {})[path] = content
        return content

    def add_folder(self, repo: str, folder: Path, prefix: str) -> None:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.add(repo, prefix + file.relative_to(folder).as_posix(), file.read_bytes())

    def fetched(self) -> list[str]:
        """Paths of files whose content was asked for, in order."""
        return [r.path.split(f"/resolve/{COMMIT}/")[1] for r in self.requests if "/resolve/" in r.path]


def large(path: str) -> bool:
    """Whether the hub keeps it in LFS, with a SHA-256."""
    return not path.endswith(".json")


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(*, secure: bool = False) -> Iterator[FakeHub]:
    """A hub at `hub.url` until the block ends; over https if it is to be `secure`, with `CERTIFICATE`."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    hub.url = f"http{'s' if secure else ''}://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if path.startswith("/api/models/"):
            self._listing(path.removeprefix("/api/models/"))
        elif f"/resolve/{COMMIT}/" in path:
            repo, _, file = path[1:].partition(f"/resolve/{COMMIT}/")
            self._resolve(repo, file)
        elif path.startswith("/cdn/"):
            repo, file = path.removeprefix("/cdn/").split(":", 1)
            self._content(repo, file)
        else:
            self._answer(404)

    def _listing(self, repo: str) -> None:
        if repo in self.hub.refusals:
            return self._refuse(*self.hub.refusals[repo])
        if repo in self.hub.listings:
            return self._answer(200, {"Content-Type": "application/json"}, self.hub.listings[repo])
        if repo not in self.hub.repos:
            return self._refuse(404, "RepoNotFound")
        siblings = []
        for path, content in self.hub.repos[repo].items():
            entry = {"rfilename": path, "size": len(content), "blobId": git_hash(content)}
            if large(path):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry | self.hub.entries.get(path, {}))
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, repo: str, path: str) -> None:
        if path in self.hub.refusals:
            return self._refuse(*self.hub.refusals[path])
        if path in self.hub.answers:
            return self._answer(*self.hub.answers[path])
        if not large(path):
            return self._content(repo, path)
        # large files lie with another host
        self._answer(302, {"Location": self.hub.url.replace("127.0.0.1", "localhost") + f"/cdn/{repo}:{path}"})

    def _refuse(self, status: int, word: str) -> None:
        self._answer(status, {"X-Error-Code": word} if word else {})

    def _content(self, repo: str, path: str) -> None:
        content = self.hub.repos[repo][path]
        if path in self.hub.altered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = 0
        asked = self.headers.get("Range")
        if asked and self.hub.knows_ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
        headers = {"ETag": '"x"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.hub.cut_after.pop(path, None)
        if cut is not None and self.hub.down_after_cut:
            self.hub.refusals[path] = (503, "")
        self._answer(206 if start else 200, headers, content[start:], cut)

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", cut: int | None = None
    ) -> None:
        self.send_response(status)
        if body is ENDLESS:
            return self._pour()
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _pour(self) -> None:
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):  # until the other side has had enough
            while True:
                self.wfile.write(bytes(1 << 16))
                self.hub.poured += 1 << 16

    def log_message(self, format: str, *args: object) -> None:
        pass
