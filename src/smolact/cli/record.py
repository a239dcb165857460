"""`smolact record`: a robot's episodes to a LeRobot dataset, driven by hand, by a script or by a policy."""

from __future__ import annotations

import contextlib
import functools
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smolact.cli.devices import RobotSection, TeleopSection, needs_robot
from smolact.cli.help import asks_for_help, help_text
from smolact.cli.main import DONE, INTERRUPTED, tell, told_at_once
from smolact.cli.parsing import parse
from smolact.cli.servers import CHECK_NAMES, HELP, RENAME_MAP, ChosenPolicy, load_chosen
from smolact.errors import ConfigError, SmolactError
from smolact.hub import RECORDINGS
from smolact.settings import refused, setting

if TYPE_CHECKING:
    from smolact.datasets.writer import DatasetWriter
    from smolact.policies.factory import LoadedEngine, LoadedPolicy
    from smolact.recording.log import EpisodeReport
    from smolact.recording.plan import Plan
    from smolact.recording.recorder import Driver, Status
    from smolact.robots.base import Robot, Teleoperator
    from smolact.serving.remote import LoadedRemote

logger = logging.getLogger(__name__)

USAGE = "smolact record --robot.type=sim --robot.env=tabletop --teleop.type=expert --dataset.repo_id=me/push --dataset.num_episodes=10"

_STREAMED = "frames are always encoded while they are recorded, and never staged as images. Leave it out."


@dataclass
class RecordedDataset:
    """What is recorded, and where to."""

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
    num_episodes: int = setting(50, "Episodes to record, more than are there already.")
    video: bool = setting(True, "Cameras as video; false: as images in the tables, for small pictures.")
    vcodec: str | None = setting(
        None,
        "libsvtav1 (small files), h264 (any player), hevc, what hardware offers (h264_nvenc, hevc_nvenc, av1_nvenc, "
        "h264_qsv, hevc_qsv, h264_videotoolbox, hevc_videotoolbox), or auto; the dataset's own on --resume.",
        aliases=("rgb_encoder.vcodec",),
    )
    push_to_hub: bool = refused(
        False,
        "recording makes no network call. Publish what is finished: smolact push FOLDER OWNER/NAME",
    )
    private: bool | None = refused(None, "nothing is uploaded.", harmless=lambda value: True)
    tags: list[str] | None = refused(None, "nothing is uploaded.", harmless=lambda value: True)
    num_image_writer_processes: int = refused(0, _STREAMED, harmless=lambda value: True)
    num_image_writer_threads_per_camera: int = refused(4, _STREAMED, harmless=lambda value: True)
    video_encoding_batch_size: int = refused(1, _STREAMED)
    streaming_encoding: bool = refused(True, _STREAMED, harmless=lambda value: True)
    no_stamp: bool = refused(True, "the name is kept as it is given.", harmless=lambda value: True)


@dataclass
class DrivingPolicy(ChosenPolicy):
    """The policy that drives, in a teleoperator's place; further settings override those of its configuration."""

    path: str | None = setting(None, HELP + " Then these are evaluation episodes.")


@dataclass
class RecordConfig:
    """What `smolact record` takes."""

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
    play_sounds: bool = refused(True, "nothing is spoken.", harmless=lambda value: True)
    display_mode: Literal["rerun"] = setting("rerun", "Where --display_data shows them.")

    @property
    def root(self) -> Path:
        """The dataset's folder.

        Raises:
            ConfigError: neither a folder nor a name is given.
        """
        if self.dataset.root is not None:
            return self.dataset.root
        if not self.dataset.repo_id:
            raise ConfigError(
                "`smolact record` needs a name for the dataset, --dataset.repo_id=me/name, or its folder, --dataset.root=FOLDER."
            )
        return RECORDINGS / self.dataset.repo_id


def run(argv: Sequence[str]) -> int:
    """Record as the flags say."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(RecordConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return DONE
    needs_robot(argv, "record")
    config, _ = parse(RecordConfig, argv)
    _check(config)
    again = command_to_resume("record", argv)
    try:
        with terminated_is_interrupted():
            reports = record(config)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped. {kept(config.root)} To go on:\n  {again}\n")
        return INTERRUPTED
    except SmolactError:
        if (config.root / "meta/info.json").is_file():
            sys.stderr.write(f"{kept(config.root)} To go on when this is mended:\n  {again}\n")
        raise
    sys.stdout.write(summary(config.root, reports))
    return DONE


def record(config: RecordConfig) -> list[EpisodeReport]:
    """Make robot, driver and dataset, and record.

    Raises:
        SmolactError: what any of them raises.
    """
    from smolact.recording.controls import Controls
    from smolact.recording.drivers import check_fit, note_masked, rate_of_training
    from smolact.recording.plan import Plan
    from smolact.recording.recorder import Recorder
    from smolact.robots.jog import KeyboardTeleoperator
    from smolact.robots.keys import Keys

    robot = config.robot.make()
    teleoperator = config.teleop.make() if config.teleop.type is not None else None
    with contextlib.ExitStack() as stack:
        stack.callback(robot.disconnect)
        policy, trained = None, None
        if config.policy.path is not None:
            policy = load_chosen(config.policy, stack, engine={}, rename_map=config.rename_map)
            note_masked(
                check_fit(
                    policy.policy,
                    policy.preprocess,
                    policy.postprocess,
                    robot.features,
                    any_names=not config.check_names,
                )
            )
            trained = rate_of_training(policy.policy)
        planned = functools.partial(
            Plan,
            num_episodes=config.dataset.num_episodes,
            episode_time_s=config.dataset.episode_time_s,
            reset_time_s=config.dataset.reset_time_s,
            task=config.dataset.single_task,
            realtime=config.realtime,
        )
        writer = stack.enter_context(open_dataset(config, robot, planned, trained))
        plan = planned(writer.fps)
        stack.enter_context(told_at_once())
        connect_for(robot, writer)
        driver = _driver(policy, robot, teleoperator, stack, any_names=not config.check_names)
        by_keyboard = isinstance(teleoperator, KeyboardTeleoperator)
        controls = Controls(arrows_drive=by_keyboard)
        keys = stack.enter_context(Keys(controls.press))
        if isinstance(teleoperator, KeyboardTeleoperator):
            if not keys.is_listening:
                raise ConfigError(
                    "The teleoperator 'keyboard' needs a terminal, and this is none. Use --teleop.type=expert or gamepad."
                )
            keys.listen(teleoperator.press)
        if keys.is_listening:
            logger.info(
                "%s: keep, next · %s: throw away, again · space: pause · q: keep and stop · Ctrl-C: throw away and stop",
                *(("enter", "backspace") if by_keyboard else ("→", "←")),
            )
        shows: list[Callable[[Status], None]] = [_show_line] if sys.stderr.isatty() else []
        if config.display_data:
            from smolact.recording.display import show_in_rerun

            shows.append(show_in_rerun(config.root.name))

        def on_tick(status: Status) -> None:
            for show in shows:
                show(status)

        recorder = Recorder(
            robot,
            driver,
            writer,
            plan,
            controls=controls,
            on_tick=on_tick if shows else None,
            on_episode=lambda report: logger.info("%s", report),
            on_failure=tell,
        )
        return recorder.run()


def _check(config: RecordConfig) -> None:
    if config.robot.type is None:
        needs_robot([], "record")
    if config.teleop.type is None and config.policy.path is None:
        from smolact.recording.builtin import TELEOPERATORS
        from smolact.robots.factory import teleoperator_types

        raise ConfigError(
            "Who drives the robot? --teleop.type=NAME, or --policy.path=CHECKPOINT. Teleoperators: "
            f"{', '.join(teleoperator_types(TELEOPERATORS))}."
        )
    chosen = config.policy
    given = {
        "policy.stats_key": chosen.stats_key,
        "policy.stats": chosen.stats,
        "policy.int8": chosen.int8,
        "policy.fp8": chosen.fp8,
        **{f"policy.{name}": True for name in chosen.settings},
        "rename_map": config.rename_map,
        "check_names": not config.check_names,
    }
    idle = [name for name, value in given.items() if value]
    if chosen.path is None and idle:
        raise ConfigError(
            f"--{idle[0]} is for a policy, and --teleop.type={config.teleop.type} drives. Leave it out."
        )
    if config.teleop.type is not None and config.policy.path is not None:
        raise ConfigError("--teleop.type and --policy.path both drive the robot. Give one of them.")
    if config.dataset.single_task is not None and not config.dataset.single_task.strip():
        raise ConfigError(
            "--dataset.single_task is empty: say what the episodes show, like 'Pick up the cube.'"
        )
    if config.dataset.single_task is None and config.robot.type != "sim":
        raise ConfigError(
            "What do the episodes show? A policy learns it by its instruction: --dataset.single_task='Pick up the cube.'"
        )
    if not config.realtime and config.robot.type != "sim":
        raise ConfigError("--realtime=false is for simulations: a robot moves in real time. Leave it out.")


def open_dataset(
    config: RecordConfig, robot: Robot, planned: Callable[[float], Plan], trained: float | None = None
) -> DatasetWriter:
    """A new dataset for this robot, or the one to go on with, which keeps its rate.

    Args:
        config: what is recorded, and where to.
        robot: whose features it has.
        planned: the plan at a rate; its errors come before a folder is made.
        trained: the rate of the policy that drives.

    Raises:
        SmolactError: the plan can't be, there is one and it is not to be gone on with, it is another robot's, or the disk is too full.
    """
    from smolact.datasets import format as layout
    from smolact.datasets.writer import DatasetWriter
    from smolact.recording.drivers import note_rate, rate_of
    from smolact.recording.recorder import dataset_features
    from smolact.recording.space import check_space, estimate_bytes

    root, dataset = config.root, config.dataset
    features = dataset_features(robot.features, video=dataset.video)
    fps = dataset.fps
    there = (root / layout.INFO).is_file()
    if there and config.resume:
        writer = DatasetWriter.resume(
            root, fps=fps, features=features, robot_type=robot.name, video_codec=dataset.vcodec
        )
        logger.info("Going on with %s: %d episodes are there.", root, writer.num_episodes)
        note_rate(writer.fps, trained)
        check_space(
            root, estimate_bytes(features, writer.fps * dataset.episode_time_s * dataset.num_episodes)
        )
        return writer
    if config.resume:
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


def connect_for(robot: Robot, writer: DatasetWriter) -> None:
    """Connect the robot, whose features the dataset must have.

    Raises:
        ConfigError: connected, it has others; or what connecting raises.
    """
    from smolact.datasets.format import DEFAULT_FEATURES
    from smolact.recording.recorder import dataset_features

    robot.connect()
    now = dataset_features(robot.features)
    before = {name: feature for name, feature in writer.features.items() if name not in DEFAULT_FEATURES}
    wrong = [name for name in now if name not in before or now[name].shape != before[name].shape]
    if wrong or now.keys() != before.keys():
        raise ConfigError(
            f"Connected, the robot has other cameras or numbers than it said before: {', '.join(wrong) or 'some are gone'}. "
            "Give the cameras' width and height in --robot.cameras."
        )


def _driver(
    policy: LoadedPolicy | LoadedEngine | LoadedRemote | None,
    robot: Robot,
    teleoperator: Teleoperator | None,
    stack: contextlib.ExitStack,
    *,
    any_names: bool,
) -> Driver:
    from smolact.recording.drivers import PolicyDriver, TeleoperatorDriver

    if policy is not None:
        return PolicyDriver(
            policy.policy,
            policy.preprocess,
            policy.postprocess,
            robot.features,
            robot.gate,
            any_names=any_names,
        )
    assert teleoperator is not None
    stack.callback(teleoperator.disconnect)
    teleoperator.connect(robot)
    return TeleoperatorDriver(teleoperator, robot.gate)


@contextlib.contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM ends a recording as Ctrl-C does: the robot is left safe."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command_to_resume(command: str, argv: Sequence[str]) -> str:
    """What to type to go on with a recording."""
    words = [word for word in argv if not word.startswith("--resume")]
    return shlex.join(["smolact", command, *words, "--resume=true"])


def kept(root: Path) -> str:
    """What of a recording is on disk."""
    from smolact.datasets.metadata import LeRobotDatasetMetadata

    if not (root / "meta/info.json").is_file():
        return "Nothing was recorded."
    return f"The {LeRobotDatasetMetadata(root).total_episodes} finished episodes in {root} are on disk."


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
    """What was recorded, in a few lines."""
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
