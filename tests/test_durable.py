"""A reader sees the old content or the new, whatever fails and whenever."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smolact import durable
from smolact.errors import WriteError

STEPS = ("fsync", "replace", "rename", "mkdir", "symlink")


def count_and_fail(monkeypatch: pytest.MonkeyPatch, nth: int, code: int = errno.ENOSPC) -> list[str]:
    """Make the nth step that touches the disk fail; returns the list in which the steps are noted."""
    steps: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            steps.append(name)
            if len(steps) == nth:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return stand_in

    for name in STEPS:
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    return steps


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def at_every_step(work: Callable[[], None], check: Callable[[bool], None]) -> int:
    """Do `work` with each of its steps failing once, and `check(failed)` after each; returns how many steps it has."""
    for nth in range(1, 50):
        with pytest.MonkeyPatch.context() as monkeypatch:
            steps = count_and_fail(monkeypatch, nth)
            try:
                work()
            except WriteError as error:
                assert error.errno == errno.ENOSPC
                assert "disk is full" in str(error)
                failed = True
            else:
                failed = False
        check(failed)
        if not failed:
            assert len(steps) < nth
            return len(steps)
    raise AssertionError("it never ended")


def test_a_file_is_old_or_new_whatever_step_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def check(failed: bool) -> None:
        assert path.read_text() in (("old", "new") if failed else ("new",))
        assert names(tmp_path) == {"file"}
        path.write_text("old")

    assert at_every_step(lambda: durable.write_text(path, "new"), check) >= 3


def test_a_file_in_new_folders_is_there_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"

    def check(failed: bool) -> None:
        assert not path.exists() or path.read_text() == "new"
        assert failed or path.exists()
        assert not [entry for entry in tmp_path.rglob("*") if entry.name.startswith(durable.TEMPORARY_PREFIX)]
        shutil.rmtree(tmp_path / "a", ignore_errors=True)

    assert at_every_step(lambda: durable.write_text(path, "new"), check) == 7


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def work() -> None:
        with durable.replacing_folder(path) as temporary:
            (temporary / "inner").mkdir()
            (temporary / "one").write_text("1")
            (temporary / "inner" / "two").write_text("2")

    def check(failed: bool) -> None:
        if path.exists():
            assert (path / "one").read_text() + (path / "inner/two").read_text() == "12"
            durable.remove_folder(path)
        assert names(tmp_path) == set()

    assert at_every_step(work, check) >= 6


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "mine").touch()
    with pytest.raises(WriteError, match="exists already"), durable.replacing_folder(path) as temporary:
        (temporary / "other").touch()
    assert names(path) == {"mine"}
    assert names(tmp_path) == {"folder"}


def test_a_link_points_to_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "last"
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    durable.link(path, "1")

    def check(failed: bool) -> None:
        assert path.readlink().name in (("1", "2") if failed else ("2",))
        assert names(tmp_path) == {"1", "2", "last"}
        durable.link(path, "1")

    assert at_every_step(lambda: durable.link(path, "2"), check) >= 3


def test_a_removed_folder_is_whole_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def make() -> None:
        path.mkdir(exist_ok=True)
        (path / "one").write_text("1")

    def check(failed: bool) -> None:
        assert path.exists() <= failed
        assert not path.exists() or (path / "one").read_text() == "1"
        make()

    make()
    assert at_every_step(lambda: durable.remove_folder(path), check) == 2
    durable.remove_folder(path)
    durable.remove_litter(tmp_path)
    assert names(tmp_path) == set()


def test_a_published_file_can_be_published_again_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"

    def work() -> None:
        (tmp_path / "staged").write_text("new")
        durable.publish(tmp_path / "staged", path)

    at_every_step(work, lambda failed: None)
    assert path.read_text() == "new"
    assert names(tmp_path) == {"deep"}


def test_an_exception_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), durable.replacing_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError("stop")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_and_fail(monkeypatch, -1)
    durable.write_bytes(tmp_path / "file", b"x")
    assert steps == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO])
def test_a_refusing_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    count_and_fail(monkeypatch, 1, code)
    with pytest.raises(WriteError, match=r"file could not be written .*untouched") as error:
        durable.write_text(tmp_path / "file", "new")
    assert error.value.errno == code


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_and_fail(monkeypatch, 1, errno.EBADF)
    with pytest.raises(OSError, match="Bad file descriptor") as error:
        durable.write_text(tmp_path / "file", "new")
    assert not isinstance(error.value, WriteError)


def test_json_is_plain_and_finite(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "a.json", {"task": "Größe", "n": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"task": "Größe", "n": 1}
    assert "Größe" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        durable.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["n"] == 1


def test_litter_is_removed_and_nothing_else(tmp_path: Path) -> None:
    file, folder = durable.temporary_beside(tmp_path / "x"), durable.temporary_beside(tmp_path / "y")
    file.touch()
    folder.mkdir()
    (folder / "inside").touch()
    (tmp_path / "kept").mkdir()
    link = durable.temporary_beside(tmp_path / "z")
    link.symlink_to("kept")
    assert set(durable.remove_litter(tmp_path)) == {file, folder, link}
    assert names(tmp_path) == {"kept"}


def test_a_disk_that_fills_while_tensors_are_saved_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch
    import torch
    from safetensors import SafetensorError

    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with (
        pytest.raises(WriteError, match=r"The disk is full: .*model.safetensors"),
        durable.replacing_file(path) as new,
    ):
        durable.save_tensors(new, {"x": torch.zeros(2)})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_can_not_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(WriteError, match=str(folder)):
            durable.make_folder(folder)
