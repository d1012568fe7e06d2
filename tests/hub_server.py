"""Serve a Hugging Face Hub on the loopback interface for tests: real HTTP, no network.

    with HubServer() as hub:
        hub.add("org/model", {"model_index.json": b"{}"})
        ...                                 # huggingface_hub with HF_ENDPOINT=hub.url
        hub.answers["unet/"] = 500          # fail if a request's path contains "unet/"
        hub.answers["unet/"] = Bad(cut=100) # drop the connection after 100 bytes of the body
        hub.log                             # [("GET", "/api/models/org/model/revision/main"), ...]

Files are sent over plain HTTP: without an `X-Xet-Hash` header, hf-xet is not used.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self
from urllib.parse import unquote, urlsplit

CODES = {"RepoNotFound": 404, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403}

Files = dict[str, bytes]


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for path, data in contents.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def cache(folder: Path, repo: str, contents: Mapping[str, bytes], commit: str = "c" * 40) -> None:
    """Write a repository into a Hub cache, as a download does."""
    repository = folder / f"models--{repo.replace('/', '--')}"
    write(repository, {"refs/main": commit.encode()})
    write(repository / "snapshots" / commit, contents)


@dataclass(frozen=True)
class Bad:
    """Describes what is wrong with an answer of status 200."""

    body: bytes | None = None  # sent in place of the right one
    cut: int | None = None  # bytes after which the connection is dropped, of what is sent
    then: int | None = None  # the status of all answers after this one; 200: in order
    length: int | None = None  # what Content-Length says
    stall: float = 0.0  # seconds to wait in the middle of the body
    headers: Mapping[str, str] | None = None
    status: int = 200


class HubServer:
    """Serves repositories by the Hub's API: model information, file trees, and files.

    `answers` overrides: for a request whose path contains the key, the value is a status (500), an
    error code of the Hub ("GatedRepo"), seconds to wait first (a float), or something `Bad`. `log`
    has the requests, `sent` the bytes that went out, by path.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}  # repository -> commit -> files
        self.refs: dict[tuple[str, str], str] = {}  # (repository, branch or tag) -> commit
        self.answers: dict[str, int | float | str | Bad] = {}
        self.log: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: Path | Mapping[str, bytes], revision: str = "main") -> str:
        """Commit a folder, or files given by path, to a branch or tag; return the commit."""
        if isinstance(files, Path):
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        parts = [(path, hashlib.sha1(data).hexdigest()) for path, data in sorted(files.items())]
        commit = hashlib.sha1(repr((repo, parts)).encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = dict(files)
        self.refs[repo, revision] = commit
        return commit

    def fetched(self) -> list[str]:
        """Return the downloaded files in order, without the name of the repository."""
        return [
            p.split("/resolve/")[1].split("/", 1)[1]
            for m, p in self.log
            if m == "GET" and "/resolve/" in p
        ]

    def lookup(self, repo: str, revision: str) -> tuple[str, Files] | str:
        """Return the commit and files of a revision, or the Hub's error code."""
        if repo not in self.commits:
            return "RepoNotFound"
        commit = self.refs.get((repo, revision), revision)
        files = self.commits[repo].get(commit)
        return "RevisionNotFound" if files is None else (commit, files)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that gave up waiting."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it holds small answers back for 40 ms

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.log.append((self.command, path))
        self.bad = Bad()
        for part, answer in list(hub.answers.items()):
            if part not in path:
                continue
            if isinstance(answer, Bad):
                self.bad = answer
            elif isinstance(answer, float):
                time.sleep(answer)
            else:
                return self._refuse(answer)

        if path.startswith("/api/models/"):
            organisation, name, *rest = path.removeprefix("/api/models/").split("/")
            kind, _, revision = "/".join(rest).partition("/")
            found = hub.lookup(f"{organisation}/{name}", revision or "main")
            if isinstance(found, str):
                return self._refuse(found)
            return self._send_json(f"{organisation}/{name}", kind, *found)

        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = hub.lookup(repo, revision)
        if isinstance(found, str):
            return self._refuse(found)
        commit, files = found
        if file not in files:
            return self._refuse("EntryNotFound", {"X-Repo-Commit": commit})
        etag = hashlib.sha256(files[file]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self._send(200, files[file], headers)

    def _send_json(self, repo: str, kind: str, commit: str, files: Files) -> None:
        if kind == "tree":
            tree = [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for path, data in files.items()
            ]
            return self._send(200, json.dumps(tree).encode())
        siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
        info = {"id": repo, "sha": commit, "siblings": siblings, "tags": ["license:openrail++"]}
        self._send(200, json.dumps(info).encode())

    def _refuse(self, answer: int | str, headers: Mapping[str, str] | None = None) -> None:
        code = {"X-Error-Code": answer} if isinstance(answer, str) else {}
        status = CODES[answer] if isinstance(answer, str) else answer
        message = {"X-Error-Message": HTTPStatus(status).phrase}
        self._send(status, b"", {**code, **message, **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        bad = self.bad if status == 200 else Bad(status=status)
        headers, body = dict(headers or {}), body if bad.body is None else bad.body
        start, total = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-"), len(body)
        if start.isdigit() and status == 200:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            bad, body = replace(bad, status=206), body[int(start) :]
        length = len(body) if bad.length is None else bad.length
        self.send_response(bad.status)
        for name, value in {
            **headers,
            "Content-Length": str(length),
            **(bad.headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "GET":
            return
        body = body[: bad.cut]
        for part in (body[: len(body) // 2], body[len(body) // 2 :]):
            self.wfile.write(part)
            self.wfile.flush()
            self.server.hub.sent[unquote(urlsplit(self.path).path)] += len(part)  # type: ignore
            time.sleep(bad.stall)
        self.close_connection |= bad.cut is not None or bad.length is not None
        if bad.then is not None:
            hub = self.server.hub  # type: ignore[attr-defined]
            hub.answers = {} if bad.then == 200 else dict.fromkeys(hub.answers, bad.then)
