"""A recorder that is killed, again and again, loses no episode that it said was saved."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.recording.kills import kill_while_recording


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize(
    ("video", "kills"),
    [(True, 4), (False, 4), *(pytest.param(video, 150, marks=pytest.mark.slow) for video in (True, False))],
)
def test_killed_at_random_moments_it_goes_on_and_lost_nothing(
    tmp_path: Path, video: bool, kills: int
) -> None:
    assert kill_while_recording(tmp_path / "d", kills, seed=5, video=video) >= 1
