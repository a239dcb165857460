"""The recording log: timing, dropped frames and success of each recorded episode, in addition to the dataset."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets.outcomes import read_log
from smolact.runtime.rate_limiter import Timing


@dataclass(frozen=True)
class EpisodeReport:
    """The report of a recorded episode.

    Attributes:
        episode_index: its index in the dataset.
        task: the instruction.
        frames: the number of frames.
        fps: the rate of its timestamps.
        timing: the measured timing; None without real time.
        dropped: the number of frames that were dropped because encoding was too slow.
        seconds_to_ready: seconds from its end until it was on disk.
        success: whether its goal was reached, if the robot reports it.
    """

    episode_index: int
    task: str
    frames: int
    fps: float
    timing: Timing | None
    dropped: int
    seconds_to_ready: float
    success: bool | None

    def __str__(self) -> str:
        parts = [f"episode {self.episode_index}: {self.frames} frames"]
        if self.timing is not None and self.timing.rate is not None:
            parts.append(
                f"{self.timing.rate:.1f} of {self.fps:g} a second (jitter {self.timing.jitter_p50_ms:.1f} ms, "
                f"p99 {self.timing.jitter_p99_ms:.1f} ms)"
            )
            if self.timing.late or self.timing.missed:
                parts.append(f"{self.timing.late} late, {self.timing.missed} missed")
        if self.dropped:
            parts.append(f"{self.dropped} dropped: encoding could not follow")
        parts.append(f"on disk after {self.seconds_to_ready:.2f} s")
        if self.success is not None:
            parts.append("success" if self.success else "no success")
        return ", ".join(parts)


class RecordingLog:
    """`meta/smolact_recording.json`: a report for each episode that smolact recorded; LeRobot ignores the file.

    Args:
        root: the dataset's folder.
        episodes: its number of episodes; reports of later ones, which were never finished, are dropped.

    Raises:
        DatasetError: the file is corrupt.
    """

    def __init__(self, root: Path, episodes: int) -> None:
        self.path = root / layout.RECORDING_LOG
        self._rows = [row for row in read_log(root) if row["episode_index"] < episodes]

    def add(self, report: EpisodeReport) -> None:
        """Append a report and write the file."""
        self._rows.append(asdict(report))
        durable.write_json(self.path, {"episodes": self._rows}, indent=None)
