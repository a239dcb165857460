"""A recorder that is killed, again and again, loses no episode that it said was saved; nor does a repair that is killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.recording.kills import kill_while_recording, kill_while_repairing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")


@pytest.mark.parametrize(
    ("video", "kills"),
    [(True, 6), (False, 6), *(pytest.param(video, 150, marks=pytest.mark.slow) for video in (True, False))],
)
def test_killed_at_random_moments_it_goes_on_and_lost_nothing(
    tmp_path: Path, video: bool, kills: int
) -> None:
    done = kill_while_recording(tmp_path, kills, seed=5, video=video)
    assert done.kills == kills and done.there >= 1


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_while_it_repairs_it_lost_no_whole_episode(tmp_path: Path, kills: int) -> None:
    done = kill_while_repairing(tmp_path, kills, seed=5)
    assert done.kills >= kills and done.there >= 1
