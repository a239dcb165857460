"""What goes to the Hub: in one commit or not at all, again from where it stopped, and what each refusal says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from smolact.errors import ConfigError, HubError, NotFoundError, SmolactError
from smolact.hub import find_folder
from smolact.uploads import PATIENCE, Upload, check_repository, publish
from tests.hub_standin import THEIRS, TOKEN, Fault, StandIn

pytestmark = THEIRS


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited, without waiting."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    (tmp_path / "w.safetensors").write_bytes(b"weights" * 100)
    (tmp_path / "v.safetensors").write_bytes(b"more" * 100)
    files: dict[str, Path | bytes] = {
        "model.safetensors": tmp_path / "w.safetensors",
        "part/v.safetensors": tmp_path / "v.safetensors",
        "config.json": b"{}",
        "README.md": b"# x\n",
    }
    return Upload("model", files, ("*.safetensors", "part/**"))


def test_what_is_published_is_found_again(hub: StandIn, upload: Upload) -> None:
    assert publish(upload, "me/x", message="the first") == f"{hub.endpoint}/me/x"
    assert hub.model("me/x").messages == ["the first"]
    folder = find_folder("me/x", "model")
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 100
    assert (folder / "part/v.safetensors").read_bytes() == b"more" * 100
    assert (folder / "config.json").read_text() == "{}"


def test_a_name_alone_is_the_users_own(hub: StandIn, upload: Upload) -> None:
    assert publish(upload, "x").endswith("/me/x")
    assert publish(upload, "lab/x").endswith("/lab/x")
    assert set(hub.repositories) == {("models", "me/x"), ("models", "lab/x")}


def test_a_repository_is_as_private_as_asked(hub: StandIn, upload: Upload) -> None:
    publish(upload, "me/x", private=True)
    publish(upload, "me/y", private=False)
    assert hub.model("me/x").private and not hub.model("me/y").private
    publish(upload, "me/x")
    with pytest.raises(ConfigError, match="'me/y' is there and public"):
        publish(upload, "me/y", private=True)
    assert len(hub.model("me/y").messages) == 1


def test_what_an_earlier_version_left_is_removed_and_nothing_else(hub: StandIn, upload: Upload) -> None:
    publish(upload, "me/x")
    hub.model("me/x").files.update({"demo.gif": b"", "old.safetensors": b"", "deep/mine.safetensors": b""})
    less = Upload("model", {"model.safetensors": b"new", "config.json": b"{}"}, upload.owned)
    publish(less, "me/x")
    assert set(hub.model("me/x").files) == {
        *("model.safetensors", "config.json", "README.md", "demo.gif", ".gitattributes"),
        "deep/mine.safetensors",
    }


def test_a_branch_is_made_and_main_stays(hub: StandIn, upload: Upload) -> None:
    publish(upload, "me/x", revision="wide")
    assert set(hub.model("me/x").files) == {".gitattributes"}
    assert (find_folder("me/x", "model", revision="wide") / "config.json").is_file()


def test_a_tag_moves_to_what_was_published(hub: StandIn) -> None:
    for text in (b"one", b"two"):
        publish(Upload("dataset", {"meta/info.json": text}, tag="v3.0"), "me/d")
    repository = hub.dataset("me/d")
    assert repository.tags == {"v3.0": repository.branches["main"]}
    assert repository.files["meta/info.json"] == b"two"


def test_a_tag_that_could_not_be_set_is_told_and_set_the_next_time(hub: StandIn) -> None:
    hub.faults.append(Fault("POST .*/tag/", 500))
    upload = Upload("dataset", {"meta/info.json": b"{}"}, tag="v3.0")
    with pytest.raises(HubError, match=r"Its files are there, but not the tag 'v3\.0'"):
        publish(upload, "me/d")
    assert hub.dataset("me/d").tags == {}
    publish(upload, "me/d")
    assert set(hub.dataset("me/d").tags) == {"v3.0"}


def test_pushed_again_only_what_is_missing_is_sent(hub: StandIn, upload: Upload) -> None:
    hub.faults.append(Fault("POST .*/commit/", 500))
    with pytest.raises(HubError, match="only what is missing is sent"):
        publish(upload, "me/x")
    assert len(hub.sent("PUT /lfs/")) == 2
    assert "model.safetensors" not in hub.model("me/x").files
    publish(upload, "me/x")
    assert len(hub.sent("PUT /lfs/")) == 2
    assert "model.safetensors" in hub.model("me/x").files
    publish(upload, "me/x")
    assert len(hub.model("me/x").messages) == 1  # nothing was new


@pytest.mark.parametrize("with_new_time", [False, True])
def test_a_file_that_changes_meanwhile_is_not_published(
    hub: StandIn, upload: Upload, slept: list[float], with_new_time: bool
) -> None:
    weights = upload.files["model.safetensors"]
    assert isinstance(weights, Path)

    def change(line: str) -> None:
        if "objects/batch" in line and not with_new_time:
            weights.write_bytes(b"longer" * 200)
        elif line.startswith("PUT /lfs/") and with_new_time:  # after its bytes were read
            os.utime(weights, ns=(1, 1))

    hub.on_request = change
    with pytest.raises(HubError, match=r"w\.safetensors changed while it was sent"):
        publish(upload, "me/x")
    assert hub.model("me/x").messages == []


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "../up", "me/a--b", "me/a..b", "me/x.git", "me/", "-x", "me/x.", "me/ä b", "x" * 97]
)
def test_a_name_that_can_not_be_is_told_before_anything_is_asked(hub: StandIn, name: str) -> None:
    with pytest.raises(ConfigError, match="expected owner/name"):
        check_repository(name, "model")
    assert hub.requests == []


def test_the_check_sends_nothing(hub: StandIn) -> None:
    assert check_repository("x", "model") == "me/x"
    assert hub.model("me/x").messages == [] and hub.large == {}


def test_without_a_token_it_says_how_to_log_in(
    hub: StandIn, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        publish(upload, "me/x")
    assert hub.requests == []


def test_offline_nothing_is_asked(hub: StandIn, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        publish(upload, "me/x")
    assert hub.requests == []


def test_a_hub_that_can_not_be_reached(
    hub: StandIn, upload: Upload, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"can't be reached\. Go online"):
        publish(upload, "me/x")


def test_a_token_that_only_reads_or_is_another_users(hub: StandIn, upload: Upload) -> None:
    with pytest.raises(
        HubError, match="belongs to 'you', and you are logged in as me, who may write to: me, lab"
    ):
        publish(upload, "you/x")
    hub.role = "read"
    with pytest.raises(HubError, match="Your token only reads"):
        publish(upload, "me/x")
    assert hub.repositories == {}


def test_a_repository_that_may_be_read_only_is_told_before_a_file_is_sent(
    hub: StandIn, upload: Upload
) -> None:
    check_repository("lab/x", "model")
    hub.read_only.add("lab/x")
    with pytest.raises(HubError, match="your token may not write there"):
        check_repository("lab/x", "model")
    assert hub.large == {}


GATED = {"X-Error-Code": "GatedRepo"}


@pytest.mark.parametrize(
    ("where", "status", "headers", "error", "message"),
    [
        ("whoami", 401, {}, HubError, "does not accept your token.*hf auth login"),
        ("repos/create", 403, {}, HubError, "may not write there"),
        ("repos/create", 402, {}, HubError, "plan has no room"),
        ("preupload", 403, GATED, HubError, "may not write there"),
        ("preupload", 404, {"X-Error-Code": "RepoNotFound"}, NotFoundError, "not there, or not for you"),
        ("preupload", 404, {"X-Error-Code": "RevisionNotFound"}, NotFoundError, "has no such branch"),
        ("objects/batch", 403, {}, HubError, "may not write there"),
        ("PUT /lfs/", 403, {}, HubError, "may not write there"),
        ("/commit/", 409, {}, HubError, "somebody else writes to it"),
        ("/commit/", 412, {}, HubError, "somebody else writes to it"),
        ("/commit/", 400, {"X-Error-Message": "bad licence"}, HubError, "answered 400.*bad licence"),
        ("/commit/", 500, {}, HubError, "answered 500"),
        ("/commit/", 429, {"Retry-After": "4000"}, HubError, "limits your requests.*in 4001 s"),
        ("/commit/", 429, {}, HubError, "limits your requests.*in some minutes"),
    ],
)
def test_each_refusal_says_what_to_do(
    hub: StandIn,
    upload: Upload,
    slept: list[float],
    where: str,
    status: int,
    headers: dict[str, str],
    error: type[SmolactError],
    message: str,
) -> None:
    hub.faults.append(Fault(where, status, headers, times=9))
    with pytest.raises(error, match=message) as caught:
        publish(upload, "me/x")
    assert "me/x" in str(caught.value)
    assert TOKEN not in str(caught.value)
    repository = hub.repositories.get(("models", "me/x"))
    assert repository is None or repository.messages == []


@pytest.mark.parametrize("headers", [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=7'}])
def test_the_hub_is_asked_again_when_it_says(
    hub: StandIn,
    upload: Upload,
    slept: list[float],
    headers: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.faults += [Fault("whoami", 429, headers, times=2), Fault("/commit/", 429, headers)]
    publish(upload, "me/x")
    assert slept == [8, 8, 8]
    assert "going on in 8 s" in caplog.text and TOKEN not in caplog.text


def test_nobody_waits_for_ever(hub: StandIn, slept: list[float]) -> None:
    hub.faults.append(Fault("whoami", 429, {"Retry-After": "59"}, times=99))
    with pytest.raises(HubError, match="limits your requests"):
        check_repository("me/x", "model")
    assert sum(slept) == PATIENCE


def test_a_token_is_never_published() -> None:
    with pytest.raises(ConfigError, match=r"notes\.json holds what looks like a token") as caught:
        Upload("model", {"notes.json": b'{"key": "' + TOKEN.encode() + b'"}'})
    assert TOKEN not in str(caught.value)
