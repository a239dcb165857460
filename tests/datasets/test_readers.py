"""An edit in place takes no file away from who reads the dataset; a dead reader keeps nobody waiting."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smolact import lock
from smolact.cli.main import main
from smolact.datasets import edit
from smolact.datasets.inspection import check_dataset
from smolact.datasets.lock import ReadLock, ReplaceLock
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build, replace
from smolact.datasets.sources import Source
from smolact.datasets.viz import write_page
from smolact.datasets.writer import DatasetWriter
from smolact.errors import DatasetError, WriteError
from tests.datasets.make import record, write

TOP = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no lock of folders")
READS = """
import sys, torch
from smolact.datasets.collate import collate
from smolact.datasets.reader import LeRobotDataset
if __name__ == "__main__":
    root, context = sys.argv[1:]
    loader = torch.utils.data.DataLoader(
        LeRobotDataset(root), batch_size=2, num_workers=2, multiprocessing_context=context, collate_fn=collate,
        persistent_workers=True,
    )
    while True:
        print(sum(len(batch["index"]) for batch in loader), "frames", flush=True)
"""


@contextmanager
def reading(folder: Path, root: Path, context: str) -> Iterator[subprocess.Popen[str]]:
    """A training's loader, with two workers, that has begun."""
    script = folder / "reads.py"
    script.write_text(READS)
    path = os.pathsep.join([str(TOP / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(root), context]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "12 frames\n"
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_an_edit_is_refused_while_a_training_reads_until_that_is_dead(
    tmp_path: Path, context: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "set", (4, 5, 3), video_codec="h264")
    command = ["dataset", "delete", f"--dataset.root={root}", "--episodes=[0]"]
    with reading(tmp_path, root, context) as child:
        assert child.stdout is not None
        holder = rf"process {child.pid} \(.*python" if Path("/proc/locks").exists() else "another process"
        with pytest.raises(WriteError, match=rf"is being read by {holder}.*--output=FOLDER"):
            replace(edit.delete_episodes(Source(root), [0]))
        assert main(command) == 1
        assert "give --output=FOLDER for the result" in capsys.readouterr().err
        assert main([*command, f"--output={tmp_path / 'new'}"]) == 0  # what the message says
        assert [child.stdout.readline() for _ in range(3)] == ["12 frames\n"] * 3  # and it reads on
        child.send_signal(signal.SIGKILL)
        child.wait()
    begun = time.monotonic()
    while main(command) == 1:  # its workers notice after some seconds that it is dead
        assert time.monotonic() - begun < 60
        time.sleep(0.2)
    assert LeRobotDatasetMetadata(root).total_episodes == 2


def test_whoever_reads_is_held_and_lets_go(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3, 4), "image")

    def edits() -> bool:
        try:
            with ReplaceLock(root, "wait"):
                return True
        except WriteError:
            return False

    assert edits()
    dataset = LeRobotDataset(root)
    assert not edits()
    twin = pickle.loads(pickle.dumps(dataset))  # as a spawned worker gets it
    del dataset
    assert not edits()
    other = copy.deepcopy(twin)
    del twin
    assert not edits() and len(other) == 7
    del other
    source = Source(root, locked=True)
    assert not edits()
    del source
    seen: list[bool] = []

    def look(*_: Any) -> None:
        seen.append(edits())

    check_dataset(root, progress=look)
    build(edit.all_episodes(Source(root)), tmp_path / "new", progress=look)
    write_page(root, tmp_path / "page.html", progress=look)
    assert len(seen) > 5 and not any(seen)
    assert edits()


def test_readers_do_not_keep_recorders_out_nor_each_other(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3,), "image")
    with DatasetWriter.resume(root) as writer:
        one, two = LeRobotDataset(root), LeRobotDataset(root)
        record(writer, 1, 2)
    assert len(one) == len(two) == 3 and len(LeRobotDataset(root)) == 5


def test_nobody_begins_to_read_what_is_about_to_be_replaced(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3, 4), "image")
    found: list[str] = []

    def look(what: str, done: int, total: int) -> None:
        if not found:
            for read in (LeRobotDataset, check_dataset):
                with pytest.raises(DatasetError, match="is being changed by") as raised:
                    read(root)
                found.append(str(raised.value))

    replace(edit.delete_episodes(Source(root), [0]), progress=look)
    assert len(found) == 2 and "Wait until it is done" in found[0]
    assert len(LeRobotDataset(root)) == 4


def test_a_repair_that_makes_the_dataset_anew_waits_for_readers_too(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3, 4, 2), "image")
    held = ReadLock(root)
    first = root / "data/chunk-000/file-000.parquet"
    first.write_bytes(first.read_bytes()[:-10])
    with pytest.raises(WriteError, match=r"is being read by .*, or stop it\.") as raised:
        repair(root)
    assert "--output" not in str(raised.value)  # repair has none
    held.release()
    assert repair(root).episodes == 2


def test_folders_that_can_not_be_written_or_locked_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "set", (3, 4), "image")
    for folder in (root, root / "meta"):
        folder.chmod(0o555)
    try:
        assert len(LeRobotDataset(root)) == 7
        assert check_dataset(root) == []
    finally:
        for folder in (root, root / "meta"):
            folder.chmod(0o755)

    def unable(descriptor: int, operation: int) -> None:
        raise OSError(45, "not supported by this disk")

    monkeypatch.setattr(lock.fcntl, "flock", unable)
    dataset = LeRobotDataset(root)
    replace(edit.delete_episodes(Source(root), [0]))
    assert len(dataset) == 7 and len(LeRobotDataset(root)) == 4
