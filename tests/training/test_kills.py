"""`kill -9` at any moment of a save leaves a run that resumes. scripts/torture does it a thousand times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smolact.training.run_folder import prune_checkpoints
from tests.training.kills import kill_while_checkpointing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_no_saved_checkpoint_is_lost_to_a_kill(tmp_path: Path) -> None:
    assert kill_while_checkpointing(tmp_path / "run", kills=10, seed=3) >= 3


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30, 40, 50):
        (folder / f"{step:06d}" / "training_state").mkdir(parents=True)
    (folder / "last").symlink_to("000050")
    gone = prune_checkpoints(tmp_path, keep_last=2, keep_every=20)
    assert [path.name for path in gone] == ["000010", "000030"]
    assert sorted(path.name for path in folder.iterdir()) == ["000020", "000040", "000050", "last"]
    (folder / "last").unlink()
    (folder / "last").symlink_to("000020")
    assert prune_checkpoints(tmp_path, keep_last=1, keep_every=0) == [folder / "000040"]
    assert prune_checkpoints(tmp_path, keep_last=0, keep_every=0) == []
