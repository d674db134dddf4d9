"""Fakes the Hugging Face Hub on loopback, with one public and one gated repository."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/models/(?P<repo>\w+/[\w-]+)/(?P<what>revision|tree)/(?P<revision>\w+)")
FILE = re.compile(r"/(?P<repo>\w+/[\w-]+)/resolve/(?P<revision>\w+)/(?P<name>.+)")


class FakeHub(BaseHTTPRequestHandler):
    """Serves `folder` as org/tiny at COMMIT, its main branch; org/gated needs a token."""

    folder: Path

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := API.fullmatch(path):
            self.about(**found.groupdict())
        elif found := FILE.fullmatch(path):
            self.file(**found.groupdict())
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def about(self, repo: str, what: str, revision: str) -> None:
        """Answer with the commit of a revision, or the files of a commit."""
        if not self.known(repo, revision):
            return
        files = [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid(file)}
            for file in self.folder.iterdir()
        ]
        siblings = [{"rfilename": file["path"]} for file in files]
        info = {"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        self.send(json.dumps(files if what == "tree" else info).encode())

    def file(self, repo: str, revision: str, name: str) -> None:
        """Answer with one file of a commit."""
        if self.known(repo, revision):
            file = self.folder / name
            self.send(file.read_bytes(), {"ETag": f'"{oid(file)}"', "X-Repo-Commit": COMMIT})

    def known(self, repo: str, revision: str) -> bool:
        """Tell whether there is such a commit; answer with an error where there is none."""
        if found := re.fullmatch(r"org/status-(\d+)", repo):
            self.refuse(int(found[1]), "")
        elif repo == "org/gated":
            self.refuse(401, "GatedRepo")
        elif repo != "org/tiny":
            self.refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def refuse(self, status: int, code: str) -> None:
        self.send(b"", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def oid(file: Path) -> str:
    """Return the hash that names a file's content."""
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve_hub(folder: Path) -> Iterator[str]:
    """Serve a Hub that has `folder` as org/tiny; yield its address."""
    handler = type("Tiny", (FakeHub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
