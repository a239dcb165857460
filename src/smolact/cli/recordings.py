"""Dataset handling shared by `smolact record` and `smolact rollout`: creation, resuming, and messages at the end."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from smolact import unsupported
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.datasets.writer import DatasetWriter
    from smolact.recording.plan import RecordingPlan
    from smolact.robots.base import Robot

logger = logging.getLogger(__name__)


@dataclass
class RecordedDataset:
    """The dataset to record."""

    UNSUPPORTED: ClassVar = unsupported.RECORDED_DATASET

    repo_id: str | None = setting(None, "The dataset's name, as owner/name.")
    root: Path | None = setting(
        None, "The dataset's folder; outputs/datasets/REPO_ID when null. No network call is made."
    )
    single_task: str | None = setting(
        None, "The instruction that every episode shows; a simulation has one of its own when null."
    )
    fps: float | None = setting(
        None,
        "Frames a second; when null, the simulation's own, those of the training of the policy that drives, or 30.",
    )
    episode_time_s: float = setting(60.0, "The longest episode, in seconds.")
    reset_time_s: float = setting(
        60.0, "The longest time to set the scene back between two episodes; a simulation needs none."
    )
    num_episodes: int = setting(
        50, "Episodes to record; with --resume they are added to those that are there."
    )
    video: bool = setting(True, "Cameras as video; false: as images in the tables, for small pictures.")
    vcodec: str | None = setting(
        None,
        "libsvtav1 (small files), h264 (any player), hevc, what hardware offers (h264_nvenc, hevc_nvenc, av1_nvenc, "
        "h264_qsv, hevc_qsv, h264_videotoolbox, hevc_videotoolbox), or auto; the dataset's own on --resume.",
        aliases=("rgb_encoder.vcodec",),
    )


def check_folder(root: Path, *, resume: bool, num_episodes: int, flags: str) -> None:
    """Raise a `ConfigError` if the folder of a new dataset contains another dataset.

    Args:
        root: the folder.
        resume: whether to resume the dataset in the folder.
        num_episodes: episodes to record, for the message.
        flags: flags that name another folder, for the message.
    """
    n_existing = None if resume else episodes_in(root)
    if n_existing is not None:
        raise ConfigError(
            f"{root} holds a dataset already, of {n_existing} episodes. To add {num_episodes} more to it, give --resume=true; for a "
            f"new dataset, another {flags}."
        )


def open_dataset(
    root: Path,
    dataset: RecordedDataset,
    robot: Robot,
    planned: Callable[[float], RecordingPlan],
    *,
    trained: float | None = None,
    resume: bool = False,
    corrections: bool = False,
) -> DatasetWriter:
    """Create a dataset for this robot, or resume the existing one, which keeps its frame rate.

    Args:
        root: the dataset's folder.
        dataset: settings of the dataset.
        robot: the robot, which determines the features.
        planned: makes the plan at a frame rate; its errors are raised before the folder is created.
        trained: frame rate of the training data of the policy that drives.
        resume: whether to resume the existing dataset.
        corrections: whether each frame is marked as a correction or not.

    Raises:
        SmolactError: the plan is invalid, the dataset exists and is not resumed or has other features, or the disk is too full.
    """
    from smolact.datasets import format as layout
    from smolact.datasets.writer import DatasetWriter
    from smolact.recording.disk_space import check_space, estimate_bytes
    from smolact.recording.recorder import dataset_features
    from smolact.runtime.fit import note_rate, rate_of

    features = dataset_features(robot.features, video=dataset.video, corrections=corrections)
    fps = dataset.fps
    exists = (root / layout.INFO).is_file()
    if exists and resume:
        writer = DatasetWriter.resume(
            root, fps=fps, features=features, robot_type=robot.name, video_codec=dataset.vcodec
        )
        logger.info(
            "Going on with %s: %d episodes are there, %d more are recorded.",
            root,
            writer.num_episodes,
            dataset.num_episodes,
        )
        note_rate(writer.fps, trained)
        check_space(
            root, estimate_bytes(features, writer.fps * dataset.episode_time_s * dataset.num_episodes)
        )
        return writer
    if resume:
        logger.info("There is no dataset in %s yet: a new one is begun.", root)
    fps = rate_of(fps, robot, trained)
    planned(fps)
    note_rate(fps, trained)
    check_space(root, estimate_bytes(features, fps * dataset.episode_time_s * dataset.num_episodes))
    return DatasetWriter.create(
        root,
        fps=fps,
        features=features,
        robot_type=robot.name,
        video_codec=dataset.vcodec or "libsvtav1",
    )


@contextlib.contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM, so that the robot is left safe as after Ctrl-C."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command_to_resume(command: str, argv: Sequence[str]) -> str:
    """Return the command that resumes a recording."""
    arguments = [word for word in argv if not word.startswith("--resume")]
    return shlex.join(["smolact", command, *arguments, "--resume=true"])


def episodes_in(root: Path) -> int | None:
    """Return the number of episodes of the dataset in a folder; None if there is no dataset."""
    from smolact.datasets import format as layout
    from smolact.datasets.metadata import LeRobotDatasetMetadata

    return LeRobotDatasetMetadata(root).total_episodes if (root / layout.INFO).is_file() else None


def ended_early(root: Path, resume_command: str, before: int | None) -> str:
    """Return a message about the saved episodes of an interrupted recording, with the command that resumes it.

    Args:
        root: the dataset's folder.
        resume_command: the command.
        before: episodes before the recording; None if there was no dataset. In that case an empty dataset is removed, so that
            the next recording can use its folder.
    """
    n_now = episodes_in(root)
    if n_now is None or (n_now == 0 and before is None):
        _remove_empty(root)
        return "Nothing was recorded.\n"
    if n_now == before:
        return f"No episode was added to the {n_now} in {root}.\n"
    finished = "finished episode is" if n_now == 1 else f"{n_now} finished episodes are"
    return f"The {finished} on disk, in {root}. To go on:\n  {resume_command}\n"


def _remove_empty(root: Path) -> None:
    """Remove a dataset without episodes, unless its folder contains other files or is locked by a writer."""
    from smolact.datasets import format as layout
    from smolact.datasets.lock import FolderLock

    info = root / layout.INFO
    if not info.is_file():
        return
    with contextlib.suppress(OSError), FolderLock(root):
        if set(root.iterdir()) == {info.parent} and set(info.parent.iterdir()) == {info}:
            info.unlink()
            info.parent.rmdir()
            root.rmdir()
