"""A stand-in of the Hub's API on loopback: repositories, branches, tags, commits, large files, downloads; and faults on demand."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

TOKEN = "hf_" + "s" * 34
REPO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?")
THEIRS = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""What the Hub's client warns of when it sends a file the old way, which it does itself."""
LARGE = (".safetensors", ".parquet", ".mp4")


@dataclass
class Repository:
    """Its files at each commit, by name, and what its branches and tags point at."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {".gitattributes": b"x"}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]

    def commit_of(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        return found if found in self.commits else None


@dataclass
class Fault:
    """What the next requests that fit get instead of an answer."""

    pattern: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    body: bytes = b"{}"


class StandIn(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.owners = ["me", "lab"]
        self.role = "write"
        self.read_only: set[str] = set()
        self.on_request: Callable[[str], None] = lambda line: None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def model(self, name: str) -> Repository:
        return self.repositories["models", name]

    def dataset(self, name: str) -> Repository:
        return self.repositories["datasets", name]

    def sent(self, pattern: str) -> list[str]:
        return [line for line in self.requests if re.search(pattern, line)]


class Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "") -> None:
        message = {401: "Invalid credentials in Authorization header"}.get(status, code or "no")
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self) -> None:
        hub, body = self.server, self.body()
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        hub.requests.append(line)
        hub.on_request(line)
        for fault in hub.faults:
            if fault.times and re.search(fault.pattern, line):
                fault.times -= 1
                self.answer(fault.status, fault.body, fault.headers)
                return
        if path.startswith("/lfs/"):  # an address that was signed for whoever asked
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            hub.large[oid] = body
            self.answer(200)
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/resolve/" in path:
            self.resolve(path)
        elif self.command != "GET" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401)
        elif path == "/api/whoami-v2":
            self.whoami()
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif found := REPO.fullmatch(path):
            self.repository(found[1], found[2], found[3] or "", body)
        else:
            self.refuse(404)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def whoami(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401)
            return
        name, *organisations = self.server.owners
        auth = {"accessToken": {"role": self.server.role}}
        self.answer(200, {"name": name, "orgs": [{"name": one} for one in organisations], "auth": auth})

    def create(self, asked: dict[str, Any]) -> None:
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked.get('organization') or self.server.owners[0]}/{asked['name']}"
        prefix = "datasets/" if kind == "datasets" else ""
        url = {"url": f"{self.server.endpoint}/{prefix}{name}"}
        if (kind, name) in self.server.repositories:
            self.answer(409, url)
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repositories[kind, name] = Repository(private)
        self.answer(200, url)

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            href = {"href": f"{self.server.endpoint}/lfs/{one['oid']}"}
            actions = {} if one["oid"] in self.server.large else {"actions": {"upload": href}}
            objects.append({**one, **actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def repository(self, kind: str, name: str, rest: str, body: bytes) -> None:
        found = self.server.repositories.get((kind, name))
        what, _, revision = rest.partition("/")
        if what == "tree":
            revision, _, below = revision.partition("/")
        if found is None:
            self.refuse(404, "RepoNotFound")
        elif self.command != "GET" and name in self.server.read_only:
            self.refuse(403)
        elif what == "branch":
            if revision in found.branches:
                self.refuse(409)
                return
            found.branches[revision] = found.branches["main"]
            self.answer(200)
        elif what == "tag" and self.command == "DELETE":
            if found.tags.pop(revision, None) is None:
                self.refuse(404, "RevisionNotFound")
                return
            self.answer(200)
        elif what == "refs":
            kinds = {"branches": found.branches, "tags": found.tags}
            refs = {
                key: [{"name": one, "ref": one, "targetCommit": commit} for one, commit in group.items()]
                for key, group in kinds.items()
            }
            self.answer(200, {**refs, "converts": []})
        elif (commit := found.commit_of(revision or "main")) is None:
            self.refuse(404, "RevisionNotFound")
        elif what == "tag" and json.loads(body)["tag"] in found.tags:
            self.refuse(409)
        elif what == "tag":
            found.tags[json.loads(body)["tag"]] = commit
            self.answer(200)
        elif what == "preupload":
            files = [self.mode(one, found.commits[commit]) for one in json.loads(body)["files"]]
            self.answer(200, {"files": files})
        elif what == "commit":
            self.commit(found, f"{kind}/{name}", revision, [json.loads(line) for line in body.splitlines()])
        elif what == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
                for path, data in found.commits[commit].items()
                if not below or path.startswith(f"{below}/")
            ]
            if below and not entries:
                self.refuse(404, "EntryNotFound")
                return
            self.answer(200, entries)
        elif what in ("", "revision"):
            siblings = [{"rfilename": path} for path in found.commits[commit]]
            self.answer(200, {"id": name, "sha": commit, "private": found.private, "siblings": siblings})
        else:
            self.refuse(404)

    @staticmethod
    def mode(asked: dict[str, Any], there: dict[str, bytes]) -> dict[str, Any]:
        path = asked["path"]
        is_large = path.endswith(LARGE)
        old = there.get(path)
        oid = None if old is None else hashlib.sha256(old).hexdigest() if is_large else git_hash(old)
        return {
            "path": path,
            "uploadMode": "lfs" if is_large else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    def commit(self, found: Repository, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(found.commits[found.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                found.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        oid = hashlib.sha1(repr((len(found.commits), sorted(files))).encode()).hexdigest()
        found.commits[oid] = files
        found.branches[branch] = oid
        url = f"{self.server.endpoint}/{name.removeprefix('models/')}/commit/{oid}"
        self.answer(200, {"commitUrl": url, "commitOid": oid, "pullRequestUrl": None})

    def resolve(self, path: str) -> None:
        kind = "datasets" if path.startswith("/datasets/") else "models"
        owner, name, _, revision, file = path.removeprefix("/datasets").removeprefix("/").split("/", 4)
        found = self.server.repositories.get((kind, f"{owner}/{name}"))
        commit = None if found is None else found.commit_of(revision)
        if found is None or commit is None:
            self.refuse(404, "RepoNotFound" if found is None else "RevisionNotFound")
        elif file not in found.commits[commit]:
            self.refuse(404, "EntryNotFound")
        else:
            data = found.commits[commit][file]
            self.answer(200, data, {"X-Repo-Commit": commit, "ETag": f'"{git_hash(data)}"'})


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def standing_in(folder: Path) -> Iterator[StandIn]:
    """The stand-in in the Hub's place, with a cache in `folder`, and a user who is logged in."""
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    url = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        for module in (constants, file_download):  # older clients keep it in both
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", url, raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        patch.setenv("HF_TOKEN", TOKEN)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
