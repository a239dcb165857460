"""`smolact replay`: replay a recorded episode on a robot or in simulation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from smolact import unsupported
from smolact.cli.command import command
from smolact.cli.devices import RobotSection, needs_robot
from smolact.cli.main import DONE, print_errors_at_once
from smolact.cli.progress import announce
from smolact.cli.recordings import terminated_is_interrupted
from smolact.errors import ConfigError
from smolact.parsing import parse
from smolact.settings import setting

USAGE = "smolact replay --robot.type=sim --robot.env=tabletop --dataset.root=FOLDER --dataset.episode=0"


@dataclass
class ReplayedDataset:
    """The episode to replay."""

    repo_id: str | None = setting(None, "The dataset: a Hub id (owner/name) or a local folder.")
    root: Path | None = setting(None, "Its folder; no network call is made then.")
    episode: int = setting(0, "The episode's number.")
    fps: float | None = setting(None, "Actions a second; the dataset's own when null.")


@dataclass
class ReplayConfig:
    """Settings of `smolact replay`."""

    UNSUPPORTED: ClassVar = unsupported.RECORD

    robot: RobotSection = field(default_factory=RobotSection)
    dataset: ReplayedDataset = field(default_factory=ReplayedDataset)


@command(ReplayConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Replay with the settings in `argv`."""
    needs_robot(argv, "replay")
    config = parse(ReplayConfig, argv)
    from smolact.hub import find_folder
    from smolact.recording.replay import check_fits, read_actions, replay
    from smolact.robots.base import EpisodicRobot

    dataset = config.dataset
    if dataset.fps is not None and not dataset.fps > 0:
        raise ConfigError(f"--dataset.fps={dataset.fps}: expected actions a second, above 0.")
    if dataset.root is None and dataset.repo_id is None:
        raise ConfigError(
            "`smolact replay` needs a dataset: --dataset.root=FOLDER, or --dataset.repo_id=owner/name."
        )
    root = find_folder(str(dataset.repo_id), "dataset", root=dataset.root)
    announce(f"Replaying episode {dataset.episode} of {root} …")
    actions, fps = read_actions(root, dataset.episode)
    robot = config.robot.make()
    try:
        with terminated_is_interrupted(), print_errors_at_once():
            check_fits(root, robot)
            robot.connect()
            timing = replay(robot, actions, dataset.fps or fps, dataset.episode)
        success = (
            f", {'success' if robot.is_success else 'no success'}" if isinstance(robot, EpisodicRobot) else ""
        )
    finally:
        robot.disconnect()
    rate = "" if timing.rate is None else f" at {timing.rate:.1f} a second"
    sys.stdout.write(f"episode {dataset.episode}: {len(actions)} actions{rate}{success}\n")
    return DONE
