"""A Hugging Face hub on this machine, with what huggingface_hub, datasets and SAELens ask it for.

    python tests/hub_server.py FOLDER COMMAND...

runs a command for which the hub is this one, its cache build/hub_cache. The folder is laid out as
the hub's addresses are: OWNER/NAME/FILE for models, datasets/OWNER/NAME/FILE for datasets. As on
the hub, large files are sent from elsewhere, with their SHA-256 as ETag, and small ones have git's
hash. A repository has one branch, main, and the same files at every commit. There is no Xet: files
come over HTTP, as the hub gives them to who has it not. A file can be told to go wrong: see Fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = {".safetensors", ".parquet"}
"""Endings of files that the hub keeps apart from git."""
RESOLVE = re.compile(r"/((?:datasets/)?[^/]+(?:/[^/]+)??)/resolve/([^/]+)/(.+)")
LARGE_FILE = re.compile(r"/large/(.+)")
API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
COMMIT = re.compile("[0-9a-f]{40}")
CHUNK = 2**20
CONTENT = ("cut", "short", "stall", "changed", "down")
"""Faults of content; a missing file is missed before."""


@dataclass
class Fault:
    """What goes wrong with a file whose content is asked for, and how often before all is well.

    cut: the connection drops at the middle of the file; short: the first half is sent as if it were
    all; stall: after it nothing more comes; changed: the last byte is another one; missing: it is
    not found; down: the hub is busy.
    """

    kind: Literal["cut", "short", "stall", "changed", "missing", "down"]
    times: float = float("inf")


@dataclass
class Hub:
    """A hub that runs: its address, what went and goes wrong, and what was asked for."""

    url: str
    faults: dict[str, Fault] = field(default_factory=dict)
    """By path in the folder."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request, and the range where one was asked for."""


@cache
def digest(path: Path, changed: int, git: bool) -> str:
    """The hash of a file, SHA-256 or git's; `changed` is when it did, so that it is read once."""
    with path.open("rb") as file:
        if not git:
            return hashlib.file_digest(file, "sha256").hexdigest()
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: Path) -> str:
    return digest(path, path.stat().st_mtime_ns, path.suffix not in LARGE)


def files(repository: Path) -> list[Path]:
    return sorted(path for path in repository.rglob("*") if path.is_file())


def newest(repository: Path) -> str:
    """The commit of main: a hash of all that it holds."""
    names = [f"{path.relative_to(repository)} {etag(path)}" for path in files(repository)]
    return hashlib.sha1("\n".join(names).encode()).hexdigest()


def entry(repository: Path, path: Path) -> dict[str, Any]:
    """A file or folder as the API tells of it."""
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    size, large = path.stat().st_size, path.suffix in LARGE
    about = {"type": "file", "path": name, "size": size, "oid": etag(path)}
    if large:
        about |= {"oid": "0" * 40, "lfs": {"oid": etag(path), "size": size, "pointerSize": 134}}
    return about


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub; `folder` and `hub` are set by `serve`."""

    protocol_version = "HTTP/1.1"
    folder: Path
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        address = unquote(urlsplit(self.path).path)
        span = self.headers.get("Range", "")
        self.hub.asked.append(f"{self.command} {address} {span}".strip())
        if found := LARGE_FILE.fullmatch(address):
            self.send_content(self.folder / found[1], "")
        elif found := RESOLVE.fullmatch(address):
            self.resolve(*found.groups())
        elif found := API.fullmatch(address):
            kind, name, verb, revision, inside = found.groups()
            repository = self.folder / (f"datasets/{name}" if kind == "datasets" else name)
            if commit := self.commit(repository, revision or "main"):
                self.tell(repository, commit, verb, inside or "")
        else:
            self.refuse("EntryNotFound")

    def commit(self, repository: Path, revision: str) -> str | None:
        """The commit that a revision is. Where there is none, that has been answered."""
        if not repository.is_dir():
            self.refuse("RepoNotFound", 401)  # as the hub does, which may hide a private one
        elif COMMIT.fullmatch(revision):
            return revision
        elif revision == "main":
            return newest(repository)
        else:
            self.refuse("RevisionNotFound")
        return None

    def tell(self, repository: Path, commit: str, verb: str | None, inside: str) -> None:
        """Answer what the API is asked of a repository."""
        if verb == "tree":
            deep = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
            there = (repository / inside).rglob("*") if deep else (repository / inside).glob("*")
            self.send_json([entry(repository, path) for path in sorted(there)])
        elif verb == "paths-info":
            body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            named = [repository / path for path in body.get("paths", [])]
            self.send_json([entry(repository, path) for path in named if path.exists()])
        else:
            siblings = [{"rfilename": str(x.relative_to(repository))} for x in files(repository)]
            name = repository.relative_to(self.folder).as_posix().removeprefix("datasets/")
            about = {"id": name, "sha": commit, "private": False, "tags": [], "downloads": 0}
            self.send_json({**about, "siblings": siblings})

    def resolve(self, name: str, revision: str, inside: str) -> None:
        """Answer for a file of a repository: with it, or with where it is."""
        commit = self.commit(self.folder / name, revision)
        path = self.folder / name / inside
        if commit is None:
            return
        if not path.is_file() or self.fault(path, "missing"):
            self.refuse("EntryNotFound", commit=commit)
        elif path.suffix in LARGE:
            self.send_response(302)
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # a host is a name
            self.send_header("Location", f"{elsewhere}/large/{path.relative_to(self.folder)}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Etag", f'"{etag(path)}"')
            self.send_header("X-Linked-Size", str(path.stat().st_size))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_content(path, commit)

    def fault(self, path: Path, *kinds: str) -> str:
        """The fault of these kinds that a file has now, and once less from now on."""
        found = self.hub.faults.get(path.relative_to(self.folder).as_posix())
        if found is None or found.kind not in kinds or found.times <= 0:
            return ""
        found.times -= 1
        return found.kind

    def send_content(self, path: Path, commit: str) -> None:
        """Send a file or the range that is asked for; for HEAD, what is said of it."""
        size = path.stat().st_size
        fault = "" if self.command == "HEAD" else self.fault(path, *CONTENT)
        if fault == "down":
            self.refuse("", 503)
            return
        if fault == "short":
            size //= 2
        first, last, status = 0, size - 1, 200
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(span[1]), min(int(span[2] or last), last), 206
            if first > last:
                self.refuse("", 416)
                return
        self.send_response(status)
        self.send_header("ETag", f'"{etag(path)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "HEAD":
            return
        end = min(last + 1, size // 2) if fault in ("cut", "stall") else last + 1
        with path.open("rb") as file:
            file.seek(first)
            for at in range(first, end, CHUNK):
                content = file.read(min(CHUNK, end - at))
                if fault == "changed" and at + len(content) == end:
                    content = content[:-1] + bytes([255 - content[-1]])
                self.wfile.write(content)
        if fault == "stall":
            self.wfile.flush()
            self.rfile.read(1)  # returns when the other side has gone
        self.close_connection = end <= last

    def send_json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str, status: int = 404, commit: str = "") -> None:
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Repo-Commit", commit)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """A hub with what is in a folder, until the block ends."""

    class Here(Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    server.daemon_threads = True
    Here.folder, Here.hub = folder, Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield Here.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def settings(hub: Hub, cache: Path) -> dict[str, str]:
    """Environment variables for a process that shall know no other hub, and no other cache."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # which datasets does elsewhere
    }


def main() -> int:
    """Run a command beside a hub, and return its exit code."""
    with serve(Path(sys.argv[1]).resolve()) as hub:
        environment = os.environ | settings(hub, Path("build", "hub_cache").resolve())
        return subprocess.run(sys.argv[2:], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
