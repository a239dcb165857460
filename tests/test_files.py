"""Every JSON file is read in one place: byte order marks, line ends, and files that no JSON reader should open."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from smolact import durable
from smolact.backbones import weights
from smolact.errors import CheckpointError
from smolact.files import parse_json, parse_json_lines, read_bytes, read_json_object, read_tensors
from smolact.openable import faults_below, leads_out, own_files

ROWS = [{"task": "Fold it.\u2028Then stop.\u0085", "task_index": 0}, {"task": "é", "task_index": 1}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        LINES.encode(),
        LINES.encode("utf-8-sig"),
        LINES.encode("utf-16"),
        LINES.replace("\n", "\r\n").encode(),
        LINES.rstrip("\n").encode(),
        (LINES.replace("\n", "\n\n") + "  \n").encode(),
        "".join("\ufeff" + line + "\n" for line in LINES.rstrip("\n").split("\n")).encode(),
        "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
        json.dumps(ROWS, indent=4).encode("utf-8-sig"),
        json.dumps(ROWS).encode(),
    ],
    ids=["plain", "mark", "utf16", "crlf", "open-end", "blank", "joined", "spread", "list", "list-in-a-line"],
)
def test_json_lines_are_read_in_every_form(data: bytes) -> None:
    assert [row for _, row in parse_json_lines(data)] == ROWS


def test_lines_have_their_numbers() -> None:
    assert [number for number, _ in parse_json_lines(b'{"a": 1}\n\n{"b": 2}\n')] == [1, 3]
    assert [number for number, _ in parse_json_lines(b'{\n"a": 1}\n\n{"b": 2}\n')] == [1, 4]
    with pytest.raises(ValueError, match="line 3: "):
        parse_json_lines(b'{"a": 1}\n\n{"b": \n{"c": 3}\n')
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 10**5 + "]" * 10**5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_checkpoints_json_is_read_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "config.json").write_text('{"type": "smolvla"}', encoding=encoding)
    assert read_json_object(tmp_path / "config.json", "") == {"type": "smolvla"}


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # a socket's path is short
        server.bind(path.name)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def close(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody list the folder: its permissions would not keep root out."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize("put", [put_pipe, put_socket, put_device])
def test_only_regular_files_are_opened(tmp_path: Path, put: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    put(path)  # type: ignore[operator]
    for read in (
        lambda: read_json_object(path, "Copy it."),
        lambda: read_tensors(path, "Copy it."),
        lambda: weights.read_tensors([path]),
    ):
        with pytest.raises(CheckpointError, match="only regular files are opened"):
            read()
    with pytest.raises(OSError, match="only regular files"):
        read_bytes(path)
    (found,) = faults_below(tmp_path, ["model.safetensors"])
    assert found[0] == "model.safetensors"
    with pytest.raises(OSError, match="only regular files"):
        own_files(tmp_path)


def test_a_checkpoints_file_may_be_a_link_in_its_folder_or_into_its_repositorys_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--me--x"
    snapshot = repository / "snapshots" / "0123"
    (snapshot / "vlm").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text('{"type": "smolvla"}')
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "vlm" / "config.json").symlink_to("../../../blobs/abc")
    (snapshot / "same.json").symlink_to("config.json")
    (tmp_path / "mine").symlink_to(snapshot)
    for path in (snapshot / "config.json", snapshot / "vlm/config.json", tmp_path / "mine/same.json"):
        assert read_json_object(path, "") == {"type": "smolvla"}
    assert len(own_files(tmp_path / "mine")) == 3
    (tmp_path / "outside.json").write_text("{}")
    for name, target in {
        "other.json": "../../../models--me--y/blobs/abc",
        "deeper.json": "../../blobs/more/abc",
        "out.json": "../../../outside.json",
    }.items():
        (snapshot / name).symlink_to(target)
        resolved = (snapshot / name).resolve()
        resolved.parent.mkdir(parents=True, exist_ok=True)
        resolved.write_text("{}")
        with pytest.raises(CheckpointError, match="a link out of its folder"):
            read_json_object(snapshot / name, "")
        assert leads_out(snapshot, snapshot / name) == resolved
        (snapshot / name).unlink()


def test_weights_that_are_a_link_out_of_their_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    durable.save_tensors(tmp_path / "outside.safetensors", {"a": torch.zeros(2)})
    path = tmp_path / "made/model.safetensors"
    path.symlink_to("../outside.safetensors")
    with pytest.raises(CheckpointError, match="put the file itself there"):
        weights.read_tensors([path])
    path.unlink()
    (tmp_path / "outside.safetensors").rename(path)
    assert list(weights.read_tensors([path])) == ["a"]


def test_a_folder_that_can_not_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data/closed/deeper", "data/listed", "data/open", "other"):
        (tmp_path / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "data/open/pipe")
    for place in ("data/closed", "other"):
        close(tmp_path / place, monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "listed")  # r without x
    assert sorted(faults_below(tmp_path, ["data"])) == [
        ("data/closed", "can't be read (Permission denied)"),
        ("data/listed", "can't be read (Permission denied)"),
        ("data/open/pipe", "is a pipe (FIFO), no regular file"),
    ]
    close(tmp_path, monkeypatch)
    assert list(faults_below(tmp_path, ["data"])) == [(".", "can't be read (Permission denied)")]


def test_a_loop_of_links_and_a_link_to_nothing_are_no_end(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/again").symlink_to("../data")
    (tmp_path / "data/itself").symlink_to("itself")
    (tmp_path / "data/nothing").symlink_to("nowhere")
    assert list(faults_below(tmp_path, ["data"])) == []
