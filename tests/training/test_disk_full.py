"""A disk that fills or fails at any moment of a save: what was saved is whole, and the next save works."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smolact import durable
from smolact.errors import WriteError
from smolact.training.checkpoint import (
    PRETRAINED_MODEL,
    Progress,
    load_training_state,
    read_progress,
    save_checkpoint,
)
from smolact.training.run_folder import find_checkpoint, prune_checkpoints, remove_unfinished
from tests.training.kills import WEIGHTS, make_training, take_step
from tests.training.power import Disk, outcomes

NAMES = ("fsync", "rename", "replace", "mkdir", "symlink", "unlink", "rmdir")


class FailingDisk:
    """Everything that asks the disk for something, counted; the `nth` is refused, and all after it if the disk stays full."""

    def __init__(self, patch: pytest.MonkeyPatch, nth: int, code: int, *, stays: bool) -> None:
        self.asked: list[str] = []
        self.nth, self.code, self.stays = nth, code, stays
        for name in NAMES:
            patch.setattr(os, name, self.watched(name, getattr(os, name)))
        patch.setattr(io, "open", self.opening(io.open))
        patch.setattr(builtins, "open", self.opening(builtins.open))
        real = durable.save_tensors

        def save(path: Path, *args: Any, **kwargs: Any) -> None:  # safetensors writes past Python
            path.write_bytes(b"half a file")
            self.ask("tensors")
            real(path, *args, **kwargs)

        patch.setattr(durable, "save_tensors", save)

    def ask(self, name: str) -> None:
        self.asked.append(name)
        if len(self.asked) == self.nth or (self.stays and len(self.asked) > self.nth):
            raise OSError(self.code, os.strerror(self.code))

    def watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            self.ask(name)
            return real(*args, **kwargs)

        return stand_in

    def opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "w" not in mode:
                return real(file, mode, *args, **kwargs)
            self.ask("open")
            stream = real(file, mode, *args, **kwargs)
            stream.write = self.watched("write", stream.write)
            return stream

        return stand_in


class Run:
    """A run that saves after each step, and keeps two."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.step = folder, 0
        self.policy, self.optimizer, self.scheduler = make_training()

    def save_next(self) -> None:
        take_step(self.policy, self.optimizer)
        self.scheduler.step()
        self.step += 1
        self.save()

    def save(self) -> None:
        save_checkpoint(
            self.folder,
            Progress(self.step, self.step * 2, 2),
            policy=self.policy,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            save_policy=lambda to: durable.save_tensors(to / WEIGHTS, self.policy.state_dict()),
        )
        prune_checkpoints(self.folder, keep_last=2, keep_every=0)


def resumable_step(run: Path) -> int:
    """The step of the checkpoint that `last` leads to, after everything in it was read."""
    link = run / "checkpoints" / "last"
    assert link.resolve(strict=True).is_dir()
    checkpoint = find_checkpoint(run)
    assert checkpoint == link.resolve()
    return check(checkpoint)


def check(checkpoint: Path) -> int:
    policy, optimizer, scheduler = make_training()
    load_training_state(checkpoint, optimizer, scheduler)
    policy.load_state_dict(load_file(checkpoint / PRETRAINED_MODEL / WEIGHTS))
    step = read_progress(checkpoint).step
    assert checkpoint.name == f"{step:06d}"
    return step


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("disk") / "run")
    for _ in range(3):
        run.save_next()
    assert resumable_step(run.folder) == 3
    return run.folder


CASES = list(itertools.product((errno.ENOSPC, errno.EIO), (False, True), (False, True)))
QUICK = [(errno.ENOSPC, True, False), (errno.EIO, False, True)]


@pytest.mark.parametrize(
    ("code", "stays", "again"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_whatever_write_fails_a_whole_checkpoint_stays_last_and_the_next_save_works(
    saved: Path, tmp_path: Path, code: int, stays: bool, again: bool
) -> None:
    """`again`: the step that is saved was saved before, by a run that went further."""
    for nth in range(1, 200):
        folder = tmp_path / "run"
        shutil.copytree(saved, folder, symlinks=True)
        run = Run(folder)
        run.step = 2 if again else 3
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, nth, code, stays=stays)
            try:
                run.save_next()
            except WriteError as error:
                failed = True
                assert error.errno == code
                assert str(tmp_path) in str(error)
                assert ("disk is full" if code == errno.ENOSPC else "could not be written") in str(error)
            else:
                failed = False
        step = resumable_step(folder)
        assert step in ((2, 3) if again else (3, 4)), f"{nth}: {disk.asked[nth - 1]}"
        for checkpoint in (folder / "checkpoints").glob("0*"):
            check(checkpoint)
        if not failed:
            assert len(disk.asked) < nth
            assert {"open", "write", "tensors", *NAMES} == set(disk.asked)
            return
        run.save()  # there is room again
        assert resumable_step(folder) == run.step
        remove_unfinished(folder)
        assert all(
            entry.name in ("last", *map("{:06d}".format, range(9)))
            for entry in (folder / "checkpoints").iterdir()
        )
        shutil.rmtree(folder)
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    "again", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["new", "replacing"]
)
def test_a_power_cut_at_any_moment_loses_no_checkpoint_that_was_saved(
    saved: Path, tmp_path: Path, again: bool
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(saved, folder, symlinks=True)
    run = Run(folder)
    run.step = 2 if again else 3
    disk = Disk(folder)
    with disk.watching():
        run.save_next()
    assert len(disk.moments) >= 60  # two fewer than when the settings were two files
    for index, moment in enumerate(disk.moments):
        for choose in outcomes(seed=index):
            found = tmp_path / "found"
            moment.write_to(found, choose)
            where = f"moment {index}: {moment.done}"
            step = check(find_checkpoint(found))
            assert step in ((2, 3) if again else (3, 4)), where
            remove_unfinished(found)
            shutil.rmtree(found)
    moment = disk.moments[-1]
    moment.write_to(tmp_path / "end", lambda: False)
    assert resumable_step(tmp_path / "end") == run.step  # it was said to be saved


CHILD = """
import resource, signal, sys
from pathlib import Path
from tests.training.test_disk_full import Run
from smolact.errors import WriteError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = Run(Path(sys.argv[1]))
run.save_next()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    run.save_next()
except WriteError as error:
    print("refused:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.save()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_the_systems_own_refusal_is_named(tmp_path: Path) -> None:
    """A file may not grow beyond 2 kB: safetensors and Python both hear EFBIG from the system."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "refused: " in done.stdout
    assert resumable_step(tmp_path / "run") == 2
