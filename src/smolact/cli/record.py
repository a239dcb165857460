"""`smolact record`: record a robot's episodes into a LeRobot dataset, driven by hand, by a script or by a policy."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from smolact import unsupported
from smolact.cli.command import command
from smolact.cli.devices import RobotSection, TeleopSection, needs_robot
from smolact.cli.main import DONE, INTERRUPTED, print_error, print_errors_at_once
from smolact.cli.progress import announce
from smolact.cli.recordings import (
    RecordedDataset,
    check_folder,
    command_to_resume,
    ended_early,
    episodes_in,
    open_dataset,
    terminated_is_interrupted,
)
from smolact.cli.servers import CHECK_NAMES, HELP, RENAME_MAP, ChosenPolicy, announce_policy, load_chosen
from smolact.errors import ConfigError, SmolactError
from smolact.hub import RECORDINGS
from smolact.parsing import parse
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.recording.log import EpisodeReport
    from smolact.recording.recorder import Status
    from smolact.robots.base import Robot, Teleoperator
    from smolact.runtime.loop import ActionSource
    from smolact.runtime.policy import Policy

logger = logging.getLogger(__name__)

USAGE = "smolact record --robot.type=sim --robot.env=tabletop --teleop.type=expert --dataset.repo_id=me/push --dataset.num_episodes=10"


@dataclass
class DrivingPolicy(ChosenPolicy):
    """The policy that drives instead of a teleoperator; further settings override its configuration."""

    path: str | None = setting(None, HELP + " Then these are evaluation episodes.")


@dataclass
class RecordConfig:
    """Settings of `smolact record`."""

    UNSUPPORTED: ClassVar = unsupported.RECORD

    robot: RobotSection = field(default_factory=RobotSection)
    teleop: TeleopSection = field(default_factory=TeleopSection)
    policy: DrivingPolicy = field(default_factory=DrivingPolicy)
    dataset: RecordedDataset = field(default_factory=RecordedDataset)
    rename_map: dict[str, str] = setting(dict, RENAME_MAP, aliases=("dataset.rename_map",))
    check_names: bool = setting(True, CHECK_NAMES)
    resume: bool = setting(False, "Go on with a dataset that is there.")
    realtime: bool = setting(
        True, "Hold the rate; false: a simulation that nobody watches, as fast as it goes."
    )
    display_data: bool = setting(False, "Show cameras and numbers in rerun while recording.")
    display_mode: Literal["rerun"] = setting("rerun", "Where --display_data shows them.")
    display_ip: str | None = setting(
        None, "The machine on which rerun's viewer is open; when null, it opens on this one."
    )
    display_port: int | None = setting(None, "The port of the viewer at --display_ip; 9876 when null.")
    display_compressed_images: bool = setting(False, "Send the pictures to the viewer as JPEG.")

    @property
    def root(self) -> Path:
        """The dataset's folder.

        Raises:
            ConfigError: neither --dataset.root nor --dataset.repo_id is set.
        """
        if self.dataset.root is not None:
            return self.dataset.root
        if not self.dataset.repo_id:
            raise ConfigError(
                "`smolact record` needs a name for the dataset, --dataset.repo_id=me/name, or its folder, --dataset.root=FOLDER."
            )
        return RECORDINGS / self.dataset.repo_id


@command(RecordConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Record with the settings in `argv`."""
    needs_robot(argv, "record")
    config = parse(RecordConfig, argv)
    _check(config)
    resume_command = command_to_resume("record", argv)
    before = episodes_in(config.root)
    announce(f"Recording {config.dataset.num_episodes} episodes into {config.root} …")
    if config.policy.path is not None:
        announce_policy(config.policy.path)
    try:
        with terminated_is_interrupted():
            reports = record(config)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped. {ended_early(config.root, resume_command, before)}")
        return INTERRUPTED
    except SmolactError as error:
        print_error(error)  # before the command that resumes
        sys.stderr.write(ended_early(config.root, resume_command, before))
        raise
    sys.stdout.write(summary(config.root, reports))
    return DONE


def record(config: RecordConfig) -> list[EpisodeReport]:
    """Record episodes of the robot with its teleoperator or policy.

    Raises:
        SmolactError: errors of the robot, the teleoperator, the policy or the dataset.
    """
    from smolact.recording.plan import RecordingPlan
    from smolact.recording.recorder import Recorder
    from smolact.robots.incremental_teleop import KeyboardTeleoperator
    from smolact.robots.keys import Keys, has_terminal
    from smolact.runtime.controls import Controls
    from smolact.runtime.fit import check_robot, note_masked

    robot = config.robot.make()
    teleoperator = config.teleop.make() if config.teleop.type is not None else None
    by_keyboard = isinstance(teleoperator, KeyboardTeleoperator)
    if by_keyboard and not has_terminal():
        raise ConfigError(
            "--teleop.type=keyboard needs a terminal, and this command runs without one. Run it in a terminal, or use "
            "--teleop.type=expert or gamepad."
        )
    with contextlib.ExitStack() as stack:
        stack.callback(robot.disconnect)
        robot.connect()  # before a policy is loaded: what is wrong with the robot is said sooner
        policy = None
        if config.policy.path is not None:
            policy = load_chosen(
                config.policy, engine={}, rename_map=config.rename_map, any_names=not config.check_names
            )
            stack.callback(policy.close)
            note_masked(check_robot(policy, robot.features, any_names=not config.check_names))
        trained = None if policy is None else policy.schema.fps
        planned = functools.partial(
            RecordingPlan,
            num_episodes=config.dataset.num_episodes,
            episode_time_s=config.dataset.episode_time_s,
            reset_time_s=config.dataset.reset_time_s,
            task=config.dataset.single_task,
            realtime=config.realtime,
        )
        writer = stack.enter_context(
            open_dataset(config.root, config.dataset, robot, planned, trained=trained, resume=config.resume)
        )
        plan = planned(writer.fps)
        stack.enter_context(print_errors_at_once())
        source = _source(policy, robot, teleoperator, stack)
        controls = Controls(arrows_drive=by_keyboard)
        keys = stack.enter_context(Keys(controls.press))
        if isinstance(teleoperator, KeyboardTeleoperator):
            keys.listen(teleoperator.press)
        controls.is_operated = keys.is_listening
        if keys.is_listening:
            logger.info(
                "%s: keep, next · %s: throw away, again · space: pause · q: keep and stop · Ctrl-C: throw away and stop",
                *(("enter", "backspace") if by_keyboard else ("→", "←")),
            )
        displays: list[Callable[[Status], None]] = [_show_line] if sys.stderr.isatty() else []
        if config.display_data:
            from smolact.recording.display import show_in_rerun

            displays.append(
                show_in_rerun(
                    config.root.name,
                    config.display_ip,
                    config.display_port,
                    config.display_compressed_images,
                )
            )

        def on_tick(status: Status) -> None:
            for display in displays:
                display(status)

        recorder = Recorder(
            robot,
            source,
            writer,
            plan,
            controls=controls,
            on_tick=on_tick if displays else None,
            on_episode=lambda report: logger.info("%s", report),
            on_failure=print_error,
        )
        return recorder.run()


def _check(config: RecordConfig) -> None:
    if config.robot.type is None:
        needs_robot([], "record")
    if config.teleop.type is None and config.policy.path is None:
        from smolact.registry import TELEOPERATORS
        from smolact.robots.factory import teleoperator_types

        raise ConfigError(
            "Who drives the robot? --teleop.type=NAME, or --policy.path=CHECKPOINT. Teleoperators: "
            f"{', '.join(teleoperator_types(TELEOPERATORS))}."
        )
    chosen = config.policy
    flags = {
        "policy.stats_key": chosen.stats_key,
        "policy.stats": chosen.stats,
        "policy.int8": chosen.int8,
        "policy.fp8": chosen.fp8,
        **{f"policy.{name}": True for name in chosen.settings},
        "rename_map": config.rename_map,
        "check_names": not config.check_names,
    }
    unused = [name for name, value in flags.items() if value]
    if chosen.path is None and unused:
        raise ConfigError(
            f"--{unused[0]} is for a policy, and --teleop.type={config.teleop.type} drives. Leave it out."
        )
    if config.teleop.type is not None and config.policy.path is not None:
        raise ConfigError("--teleop.type and --policy.path both drive the robot. Give one of them.")
    if config.dataset.single_task is not None and not config.dataset.single_task.strip():
        raise ConfigError(
            "--dataset.single_task is empty: say what the episodes show, like 'Pick up the cube.'"
        )
    if config.dataset.single_task is None and not config.robot.is_simulation:
        raise ConfigError(
            "What do the episodes show? A policy learns it by its instruction: --dataset.single_task='Pick up the cube.'"
        )
    if not config.realtime and not config.robot.is_simulation:
        raise ConfigError("--realtime=false is for simulations: a robot moves in real time. Leave it out.")
    for name, needed in (
        ("display_ip", "display_data"),
        ("display_compressed_images", "display_data"),
        ("display_port", "display_ip"),
    ):
        if getattr(config, name) and not getattr(config, needed):
            raise ConfigError(f"--{name} has an effect with --{needed} only. Give both, or leave it out.")
    check_folder(
        config.root,
        resume=config.resume,
        num_episodes=config.dataset.num_episodes,
        flags="--dataset.repo_id or --dataset.root",
    )


def _source(
    policy: Policy | None, robot: Robot, teleoperator: Teleoperator | None, stack: contextlib.ExitStack
) -> ActionSource:
    from smolact.runtime.controller import ChunkController
    from smolact.runtime.inference import Inference, SyncInference
    from smolact.runtime.loop import TeleoperatorSource

    if policy is not None:
        inference = Inference(executed=policy.schema.n_action_steps)
        return ChunkController(SyncInference(policy), inference, robot.gate)
    assert teleoperator is not None
    stack.callback(teleoperator.disconnect)
    teleoperator.connect(robot)
    return TeleoperatorSource(teleoperator, robot.gate)


def _show_line(status: Status) -> None:
    rate = "" if status.timing.rate is None else f"{status.timing.rate:5.1f}/s"
    notes = [
        f"{status.timing.late} late" * bool(status.timing.late),
        f"{status.dropped} dropped" * bool(status.dropped),
        f"{status.waiting_bytes / 2**20:.0f} MB to encode" * (status.waiting_bytes > 2**20),
        "PAUSED" * status.paused,
    ]
    line = f"episode {status.episode}  {status.frames:5d} frames  {rate}  {'  '.join(note for note in notes if note)}"
    sys.stderr.write(f"\r{line:<78}\r")
    sys.stderr.flush()


def summary(root: Path, reports: Sequence[EpisodeReport]) -> str:
    """Return a summary of the recording."""
    frames = sum(report.frames for report in reports)
    lines = [f"{len(reports)} episodes, {frames} frames: {root}"]
    judged = [report.success for report in reports if report.success is not None]
    if judged:
        lines.append(f"success: {sum(judged)} of {len(judged)}")
    dropped = sum(report.dropped for report in reports)
    if dropped:
        lines.append(
            f"{dropped} frames were left out because encoding could not follow. Use --dataset.vcodec=h264, fewer or smaller "
            "cameras, or a lower --dataset.fps."
        )
    return "\n".join(lines) + "\n"
