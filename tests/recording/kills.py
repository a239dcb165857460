"""Kill a process that records without pause, at random moments, and look at what it left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from smolact.datasets.format import INFO
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter
from smolact.recording.recorder import Plan, Recorder, dataset_features
from tests.recording.worlds import Arm, Counting

LENGTH = 3
TOP = Path(__file__).parent.parent.parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(TOP), str(TOP / "src"), os.environ.get("PYTHONPATH", "")]),
}
CHILD = """
import os, sys
from pathlib import Path
from tests.recording.kills import record_without_pause

os.write(int(sys.argv[3]), b"...!")
record_without_pause(Path(sys.argv[1]), sys.argv[2] == "1", int(sys.argv[3]))
"""


def record_without_pause(root: Path, video: bool, acknowledge: int) -> None:
    """Resume (or begin), and record for ever; the number of episodes is written to the pipe after each."""
    arm = Arm()
    features = dataset_features(arm.features, video=video)
    if (root / INFO).is_file():
        writer = DatasetWriter.resume(root, fps=10, features=features)
    else:
        writer = DatasetWriter.create(root, fps=10, features=features, video_codec="h264")
    Recorder(
        arm,
        Counting(),
        writer,
        Plan(10, 10**6, LENGTH / 10, 0, "Grip.", realtime=False),
        on_episode=lambda report: (
            os.write(acknowledge, (report.episode_index + 1).to_bytes(4, "big")),
            None,
        )[1],
    ).run()


def kill_while_recording(root: Path, kills: int, seed: int, *, video: bool, check_every: int = 1) -> int:
    """Kill `kills` times, open the dataset after each, and return how many episodes there are in the end.

    The first moments of every child are its resuming, so kills come while it mends what the last one left, too.
    Every `check_every`th time all new frames are decoded.

    Raises:
        AssertionError: an acknowledged episode was lost, or the dataset does not open.
    """
    chance = random.Random(seed)
    acknowledged = there = checked = 0
    pause = 0.1
    for kill in range(kills):
        reader, writer = os.pipe()
        # Not a fork: what pyarrow and FFmpeg keep in threads does not survive one.
        command = [sys.executable, "-c", CHILD, str(root), str(int(video)), str(writer)]
        child = subprocess.Popen(command, pass_fds=(writer,), cwd=TOP, env=ENVIRONMENT)
        os.close(writer)
        assert os.read(reader, 4) == b"...!", f"kill {kill}: the child did not begin"
        said = b""
        for _ in range(chance.randrange(3)):
            began = time.monotonic()
            said = os.read(reader, 4) or said
            pause = min(time.monotonic() - began, 0.3)
        time.sleep(chance.uniform(0.0, pause))
        child.kill()
        assert child.wait() == -signal.SIGKILL, f"kill {kill}: the child failed by itself"
        said += os.read(reader, 1 << 20)
        os.close(reader)
        if said:
            acknowledged = int.from_bytes(said[-4:], "big")
        if not (root / INFO).is_file():
            assert acknowledged == 0, (
                f"kill {kill}: {acknowledged} episodes were saved, and there is no dataset"
            )
            continue
        there = LeRobotDatasetMetadata(root).total_episodes
        assert there >= acknowledged, f"kill {kill}: {acknowledged} episodes were saved, {there} are found"
        if there > checked and (kill % check_every == 0 or kill == kills - 1):
            checked = check(root, checked, there)
    return there


def check(root: Path, first: int, last: int) -> int:
    dataset = LeRobotDataset(root, episodes=list(range(first, last)))
    assert len(dataset) == LENGTH * (last - first)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["index"] == first * LENGTH + index
        assert sample["frame_index"] == index % LENGTH
    return last
