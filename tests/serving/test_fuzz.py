"""The decoder against messages that are nearly right; a million of them: `python -m tests.serving.fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_messages_that_are_nearly_right_are_named_errors() -> None:
    """In a process of its own, whose audit hook can't be taken out again."""
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-m", "tests.serving.fuzz", "4000", "7"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert "4000 messages" in found.stdout
    for outcome in ("'message'", "'ProtocolError'", "'VersionMismatchError'", "'MissingFeatureError'"):
        assert outcome in found.stdout  # the cases reach as far as that
