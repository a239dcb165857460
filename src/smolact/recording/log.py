"""What a dataset does not tell of its episodes: how well the rate was held, and whether they succeeded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from smolact import durable
from smolact.datasets import format as layout
from smolact.datasets.outcomes import read_log
from smolact.runtime.rate_limiter import Timing


@dataclass(frozen=True)
class EpisodeReport:
    """How an episode was recorded.

    Attributes:
        episode_index: its number in the dataset.
        task: the instruction.
        frames: rows of it.
        fps: the rate that its timestamps stand for.
        timing: what was measured; None when it was not recorded in real time.
        dropped: frames that could not be kept because encoding did not follow.
        seconds_to_ready: from its end until it was on disk for good.
        success: whether its goal was reached, if the robot knows.
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
    """`meta/smolact_recording.json`: a report for each episode that was recorded here; LeRobot does not look at it.

    Args:
        root: the dataset's folder.
        episodes: how many it has; reports beyond belong to episodes that never were.

    Raises:
        DatasetError: the file is damaged.
    """

    def __init__(self, root: Path, episodes: int) -> None:
        self.path = root / layout.RECORDING_LOG
        self._rows = [row for row in read_log(root) if row["episode_index"] < episodes]

    def add(self, report: EpisodeReport) -> None:
        """Keep a report for good."""
        self._rows.append(asdict(report))
        durable.write_json(self.path, {"episodes": self._rows}, indent=None)
