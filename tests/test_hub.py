"""Where a name leads: folders here, repositories on the Hub, and what each failure says."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from smolact.datasets.reader import LeRobotDataset
from smolact.errors import HubError, NotFoundError
from smolact.hub import find_folder
from tests.datasets.make import write

SNAPSHOT = huggingface_hub.snapshot_download
SECRET = "hf_" + "a" * 34


class StandIn(http.server.ThreadingHTTPServer):
    """The Hub's answers: a status and headers for every request, or a small repository."""

    status = 200
    headers: dict[str, str]
    requests: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        commit = "0123456789abcdef0123456789abcdef01234567"
        body = b""
        if self.server.status == 200 and "/api/" in self.path:
            files = [{"rfilename": name} for name in ("meta/info.json", "data/big.parquet")]
            body = json.dumps({"id": "owner/name", "sha": commit, "siblings": files}).encode()
            if "/tree/" in self.path:
                files = [
                    {"type": "file", "path": entry["rfilename"], "size": 2, "oid": "x"} for entry in files
                ]
                body = json.dumps(files).encode()
        elif self.server.status == 200:
            body = b"{}"
        self.send_response(self.server.status)
        for name, value in {
            "Content-Length": str(len(body)),
            "X-Repo-Commit": commit,
            "ETag": '"abc"',
        }.items():
            self.send_header(name, value)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    server = StandIn(("127.0.0.1", 0), Handler)
    server.headers, server.requests = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    options = {"endpoint": endpoint, "cache_dir": tmp_path / "cache", "token": SECRET}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", functools.partial(SNAPSHOT, **options))
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits before it tries again
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_is_itself(tmp_path: Path, hub: StandIn) -> None:
    (tmp_path / "data").mkdir()
    assert find_folder(tmp_path / "data", "dataset") == tmp_path / "data"
    assert find_folder(str(tmp_path / "data"), "dataset") == tmp_path / "data"
    assert find_folder("owner/name", "dataset", root=tmp_path / "data") == tmp_path / "data"
    assert hub.requests == []


def test_a_folder_of_that_name_comes_before_the_hub(
    tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder("owner/name", "dataset") == Path("owner/name")
    assert hub.requests == []


def test_what_was_recorded_under_a_name_comes_before_the_hub(
    tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write(tmp_path / "outputs/datasets/me/push", (3, 2), dtype="image")
    monkeypatch.chdir(tmp_path)
    assert find_folder("me/push", "dataset") == Path("outputs/datasets/me/push")
    assert len(LeRobotDataset("me/push")) == 5
    assert caplog.text.count("'me/push' is the one that was recorded here") == 1
    assert hub.requests == []
    assert find_folder("me/push", "dataset", revision="main").name.startswith("0123")
    with pytest.raises(NotFoundError, match="expected a folder or a Hub id"):
        find_folder("../datasets", "dataset")


def test_a_typing_error_in_the_name_of_a_recording_is_recognized(
    tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs/datasets/me/push").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    meant = r"Did you mean 'me/push'\? That one was recorded here\."
    hub.status, hub.headers = 404, {"X-Error-Code": "RepoNotFound"}
    with pytest.raises(NotFoundError, match=meant):
        find_folder("me/psuh", "dataset")
    for name, kind in (("me/psuh", "model"), ("somebody/else", "dataset")):
        with pytest.raises(NotFoundError, match=r"shows you\. Check its spelling"):
            find_folder(name, kind)
    nowhere = functools.partial(huggingface_hub.snapshot_download, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    with pytest.raises(HubError, match=meant):
        find_folder("me/psuh", "dataset")


def test_a_root_that_is_not_there_asks_nobody(tmp_path: Path, hub: StandIn) -> None:
    (tmp_path / "pusht").mkdir()
    with pytest.raises(NotFoundError, match=r"pushd does not exist\..*pusht/.*Did you mean 'pusht'"):
        find_folder("owner/name", "dataset", root=tmp_path / "pushd")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./data", "just-a-word", "a/b/c", "owner/", "../up"])
def test_what_can_be_no_hub_id_is_told_as_a_path(name: str, hub: StandIn) -> None:
    with pytest.raises(NotFoundError, match="expected a folder or a Hub id"):
        find_folder(name, "dataset")
    assert hub.requests == []


def test_a_typing_error_in_a_folder_is_not_sent_to_the_hub(
    tmp_path: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "pusht").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="Did you mean 'pusht'"):
        find_folder("data/pushd", "dataset")
    assert hub.requests == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="a file, not a folder"):
        find_folder(tmp_path / "file", "model")


def test_a_repository_is_fetched_as_far_as_asked(hub: StandIn) -> None:
    folder = find_folder("owner/name", "dataset", patterns=["meta/**"])
    assert (folder / "meta/info.json").read_text() == "{}"
    assert not (folder / "data").exists()
    assert folder.name == "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("status", "headers", "error", "message"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, NotFoundError, "neither a folder here nor a repository"),
        (401, {}, (NotFoundError, HubError), "log in"),
        (403, {}, HubError, "may not read it"),
        (403, {"X-Error-Code": "GatedRepo"}, HubError, "gated: accept its terms"),
        (404, {"X-Error-Code": "RepoNotFound"}, NotFoundError, "Check its spelling"),
        (404, {"X-Error-Code": "RevisionNotFound"}, NotFoundError, "no revision 'v9'"),
        (429, {}, HubError, "limits your requests"),
        (500, {}, HubError, "answered 500"),
    ],
)
def test_each_refusal_says_what_to_do(
    hub: StandIn, status: int, headers: dict[str, str], error: type[Exception], message: str
) -> None:
    hub.status, hub.headers = status, headers
    with pytest.raises(error, match=message) as caught:
        find_folder("owner/name", "dataset", revision="v9")
    assert "owner/name" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_without_a_network_it_says_how_to_use_a_folder(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = functools.partial(huggingface_hub.snapshot_download, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    with pytest.raises(HubError, match=r"can't be reached.*hf download owner/name.*--dataset\.root=FOLDER"):
        find_folder("owner/name", "dataset")


def test_offline_what_was_fetched_before_is_found(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_folder("owner/name", "dataset")
    offline = functools.partial(huggingface_hub.snapshot_download, local_files_only=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    hub.requests.clear()
    assert find_folder("owner/name", "dataset") == before
    assert hub.requests == []
