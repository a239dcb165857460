"""What is done by children that are killed. Nothing here may start a thread when it is imported, nor import torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolact.datasets.format import INFO
from smolact.datasets.repair import repair
from smolact.datasets.writer import DatasetWriter
from smolact.recording.log import EpisodeReport
from smolact.recording.recorder import Recorder, RecordingPlan, dataset_features
from tests.recording.nursery import BEGUN, Work
from tests.recording.worlds import Arm, Counting

LENGTH = 3
Acknowledge = Callable[[int], None]


def record_without_pause(job: dict[str, Any], acknowledge: Acknowledge) -> None:
    """Begin, or mend what the last one left and go on; then record for ever, and say after each episode how many there are."""
    arm, root = Arm(), Path(job["root"])
    features = dataset_features(arm.features, video=job["video"])
    if (root / INFO).is_file():
        writer = DatasetWriter.resume(root, fps=10, features=features)
    else:
        writer = DatasetWriter.create(root, fps=10, features=features, video_codec="h264")
    acknowledge(BEGUN)

    def saved(report: EpisodeReport) -> None:
        acknowledge(report.episode_index + 1)

    plan = RecordingPlan(10, 10**6, LENGTH / 10, 0, "Grip.", realtime=False)
    Recorder(arm, Counting(), writer, plan, on_episode=saved).run()


def repair_once(job: dict[str, Any], acknowledge: Acknowledge) -> None:
    """Make a damaged dataset whole."""
    repair(Path(job["root"]), quick=job["quick"])


WORKS: dict[str, Work] = {"record": record_without_pause, "repair": repair_once}
