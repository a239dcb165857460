"""Two writers of one dataset: the second is told who the first is, and a dead one keeps nobody out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets import edit
from smolact.datasets.lock import FolderLock
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build, replace, restore
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import DatasetError, NotFoundError, WriteError
from tests.datasets.make import FPS, features, record, write

TOP = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no lock of folders")
CHILD = """
import sys, time
from tests.datasets.make import *
writer = DatasetWriter.resume(sys.argv[1])
print("holds it", flush=True)
time.sleep(600)
"""


def test_a_second_writer_is_told_who_the_first_is_until_it_is_dead(tmp_path: Path) -> None:
    root = write(tmp_path / "d", (2,), "image")
    path = os.pathsep.join([str(TOP), str(TOP / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CHILD, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as child:
        assert child.stdout is not None and child.stdout.readline()
        holder = rf"process {child.pid} \(.*python" if Path("/proc/locks").exists() else "another process"
        try:
            for second in (
                lambda: DatasetWriter.resume(root),
                lambda: repair(root),
                lambda: replace(edit.all_episodes(Source(root)), quick=True),
            ):
                with pytest.raises(WriteError, match=rf"is being written by {holder}"):
                    second()
            build(edit.all_episodes(Source(root)), tmp_path / "read", quick=True)  # reading is nobody's harm
        finally:
            child.send_signal(signal.SIGKILL)
    with DatasetWriter.resume(root) as writer:
        record(writer, 1, 3)
    assert LeRobotDatasetMetadata(root).total_episodes == 2


def test_one_process_is_no_exception_and_closing_lets_go(tmp_path: Path) -> None:
    root = tmp_path / "d"
    writer = DatasetWriter.create(root, fps=FPS, features=features("image"))
    named = "which is this one" if Path("/proc/locks").exists() else "another process"
    with pytest.raises(WriteError, match=named):
        DatasetWriter.create(root, fps=FPS, features=features("image"))
    writer.close()
    DatasetWriter.resume(root)  # nobody keeps it, so nobody is kept out
    DatasetWriter.resume(root).close()
    assert {entry.name for entry in tmp_path.iterdir()} == {"d"}


def test_an_edit_at_work_is_not_undone(tmp_path: Path) -> None:
    """Between its two renames the old folder lies beside; who comes then must not put it back."""
    root = write(tmp_path / "d", (2,), "image")
    with FolderLock(root):
        root.rename(tmp_path / "d.replaced")
        for other in (lambda: restore(root), lambda: repair(root)):
            with pytest.raises(WriteError, match="is being written"):
                other()
    assert restore(root)
    with pytest.raises(NotFoundError):
        FolderLock(tmp_path / "none")


def test_a_plan_that_has_become_old_is_not_carried_out(tmp_path: Path) -> None:
    root = write(tmp_path / "d", (2, 2), "image")
    plan = edit.delete_episodes(Source(root), [0])
    with DatasetWriter.resume(root) as writer:
        record(writer, 2, 3)
    with pytest.raises(DatasetError, match="changed by another process"):
        replace(plan, quick=True)
    assert LeRobotDatasetMetadata(root).total_episodes == 3


def test_a_folder_that_took_the_name_is_locked_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "d", (2,), "image")
    real, opened = os.open, []

    def exchanged(path: Path, flags: int) -> int:
        descriptor = real(path, flags)
        opened.append(descriptor)
        if len(opened) == 1:
            shutil.copytree(root, tmp_path / "new")
            root.rename(tmp_path / "old")
            (tmp_path / "new").rename(root)
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exchanged)
        lock = FolderLock(root)
    assert len(opened) == 2
    with pytest.raises(WriteError):
        FolderLock(root)
    FolderLock(tmp_path / "old").release()
    lock.release()


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "d", (2,), "image")
    with FolderLock(root):
        assert main(["dataset", "compact", f"--dataset.root={root}"]) == 1
    assert "is being written by" in capsys.readouterr().err


def test_a_fork_does_not_hold_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    """A training's forked workers may live on for a while; a supervisor begins it again at once."""
    root = write(tmp_path / "d", (2,), "image")
    code = (
        "import os, sys, time; from pathlib import Path; from smolact.datasets.lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); child = os.fork()\n"
        "if not child:\n    print('forked', flush=True); time.sleep(60)\n"
        "os.wait()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "forked\n"
        with pytest.raises(WriteError):
            FolderLock(root)
        holder.kill()
        holder.wait()
        FolderLock(root).release()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
