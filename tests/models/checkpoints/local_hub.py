"""A Hugging Face Hub in a thread of this process: as much of its API as a download asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class LocalHub:
    """What the Hub has and does. All may be changed while it runs.

    Attributes:
        files: of each commit of the one repository, ``owner/name``.
        names: commits by branch or tag.
        gated: whether files are given to nobody.
        dead: whether every request is left without an answer.
        cut: a file that is sent to its half, once; then it is dead.
        broken: whether every request of a file is answered with a failure of the server.
        answers: JSON in place of what is true, by the path of the request.
        asked: path of every request so far.
    """

    files: dict[str, Files]
    names: dict[str, str]
    gated: bool = False
    dead: bool = False
    cut: str = ""
    broken: bool = False
    answers: dict[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def downloaded(self) -> list[str]:
        """Files that were asked for."""
        return [path.partition("/resolve/")[2].partition("/")[2] for path in self.asked if "/resolve/" in path]


@contextmanager
def serving(hub: LocalHub) -> Iterator[str]:
    """Answer for ``hub``; yields the address."""

    class Handler(_Handler):
        shown = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    shown: LocalHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        path = "/" + "/".join(parts)
        if self.command == "GET":
            self.shown.asked.append(path)
        if self.shown.dead:
            self.close_connection = True
        elif path in self.shown.answers:
            self._json(self.shown.answers[path])
        elif parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:], recursive="recursive=true" in self.path.lower())
        else:
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""

    def _api(self, repository: str, asked: list[str], recursive: bool) -> None:
        commit = self._commit(asked[1] if asked else "main")
        if repository != "owner/name":
            self._error(401, "RepoNotFound")
        elif commit is None:
            self._error(404, "RevisionNotFound")
        elif asked[:1] == ["tree"]:
            tree = self._tree(self.shown.files[commit], "/".join(asked[2:]), recursive)
            self._json(tree) if tree else self._error(404, "EntryNotFound")
        else:
            self._json({"id": repository, "sha": commit, "siblings": [], "tags": []})

    def _resolve(self, repository: str, commit: str, path: str) -> None:
        content = self.shown.files.get(commit, {}).get(path)
        if self.shown.broken:
            self._error(500, "Broken")
        elif self.shown.gated:
            self._error(401, "GatedRepo")
        elif content is None:
            self._error(404, "EntryNotFound")
        else:
            whole = path != self.shown.cut or self.command == "HEAD"
            self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, whole)
            self.shown.dead = self.shown.dead or not whole

    def _commit(self, revision: str) -> str | None:
        commit = self.shown.names.get(revision, revision)
        return commit if commit in self.shown.files else None

    @staticmethod
    def _tree(files: Files, folder: str, recursive: bool) -> list[dict[str, object]]:
        entries: dict[str, dict[str, object]] = {}
        for path, content in files.items():
            inside = PurePosixPath(path)
            if not folder or path.startswith(f"{folder}/"):
                depth = len(PurePosixPath(folder).parts) + 1
                top = str(PurePosixPath(*inside.parts[:depth]))
                if top != path:
                    entries[top] = {"type": "directory", "path": top, "oid": "0" * 40}
                if recursive or top == path:
                    entries[path] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        return list(entries.values())

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str], whole: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content if whole else content[: len(content) // 2])
