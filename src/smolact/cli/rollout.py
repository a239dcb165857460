"""`smolact rollout`: a policy drives a robot, and predicts the next actions while the last ones are executed."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from smolact import unsupported
from smolact.cli.command import command
from smolact.cli.corrections import (
    CorrectionsDataset,
    StrategySection,
    check_can_take_over,
    check_corrections,
    corrected,
    corrections_folder,
    summary,
)
from smolact.cli.devices import RobotSection, TeleopSection, needs_robot
from smolact.cli.main import DONE, INTERRUPTED, print_error, print_errors_at_once
from smolact.cli.recordings import (
    RecordedDataset,
    check_folder,
    command_to_resume,
    ended_early,
    episodes_in,
    open_dataset,
    terminated_is_interrupted,
)
from smolact.cli.servers import CHECK_NAMES, RENAME_MAP, ChosenPolicy, announce_policy, is_server, load_chosen
from smolact.errors import ConfigError, SmolactError
from smolact.flags import flag_value
from smolact.parsing import parse
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.recording.log import EpisodeReport
    from smolact.robots.base import Robot
    from smolact.runtime.controller import ChunkController
    from smolact.runtime.controls import Controls
    from smolact.runtime.corrections import CorrectedSource
    from smolact.runtime.inference import Inference
    from smolact.runtime.policy import Policy
    from smolact.runtime.rollout import RolloutReport

logger = logging.getLogger(__name__)

USAGE = "smolact rollout --robot.type=sim --robot.env=tabletop --policy.path=CHECKPOINT [--inference.type=async] [--NAME=VALUE …]"


@dataclass
class InferenceSection:
    """When the policy predicts its next chunk."""

    UNSUPPORTED: ClassVar = unsupported.INFERENCE

    type: Literal["sync", "async", "rtc", "ensemble"] = setting(
        "sync",
        "sync: when the last one was carried out, and the robot holds meanwhile; async: while some are left; rtc: so, and the new "
        "ones go on from what is left; ensemble: all the time, and each action is the mean of all chunks' for its tick.",
    )
    refill: float | None = setting(
        None, "async, rtc: ask when this share of a chunk is left; 0.5 when null, with rtc 1: all the time."
    )
    merge: Literal["latest", "weighted_average", "average", "conservative"] = setting(
        "latest",
        "async: which actions count where an old and a new chunk overlap; the new ones 1, 0.7, 0.5 or 0.3.",
    )
    schedule: Literal["exp", "linear", "ones", "zeros"] = setting(
        "exp",
        "rtc: how much those old actions count that are carried out if the answer is late: less and less, all, or not at all.",
    )
    max_guidance_weight: float = setting(
        5.0, "rtc: how strongly the new actions are bent at most.", aliases=("rtc.max_guidance_weight",)
    )
    jacobian: bool = setting(
        True, "rtc: bend through the network; false: in half the time, and also where the network is sure."
    )
    deadline: float = setting(10.0, "Seconds that the robot holds for want of an answer before it stops.")

    def make(self, n_action_steps: int) -> Inference:
        """Return the settings of the chunk controller.

        Raises:
            ConfigError: a number is out of range.
        """
        from smolact.runtime.inference import Inference, RealTime

        if self.type == "sync":
            return Inference(executed=n_action_steps, deadline=self.deadline)
        if self.type == "async":
            return Inference(0.5 if self.refill is None else self.refill, self.merge, deadline=self.deadline)
        if self.type == "rtc":
            real_time = RealTime(self.schedule, self.max_guidance_weight, self.jacobian)
            refill = 1.0 if self.refill is None else self.refill
            return Inference(refill, deadline=self.deadline, real_time=real_time)
        return Inference(1.0, "ensemble", deadline=self.deadline)


@dataclass
class RolloutConfig:
    """Settings of `smolact rollout`."""

    UNSUPPORTED: ClassVar = unsupported.ROLLOUT

    robot: RobotSection = field(default_factory=RobotSection)
    policy: ChosenPolicy = field(default_factory=ChosenPolicy)
    inference: InferenceSection = field(default_factory=InferenceSection)
    teleop: TeleopSection = field(default_factory=TeleopSection)
    strategy: StrategySection = field(default_factory=StrategySection)
    dataset: CorrectionsDataset = field(default_factory=CorrectionsDataset)
    rename_map: dict[str, str] = setting(dict, RENAME_MAP)
    check_names: bool = setting(True, CHECK_NAMES)
    task: str | None = setting(
        None,
        "The instruction; a simulation has one of its own when null.",
        aliases=("dataset.single_task",),
    )
    interactive: bool = setting(
        False,
        "Type another instruction at any time: the next chunk obeys it. An empty line ends the episode.",
    )
    episodes: int = setting(
        1, "How many episodes.", aliases=("dataset.num_episodes", "strategy.num_episodes")
    )
    duration: float = setting(60.0, "The longest episode, in seconds.", aliases=("dataset.episode_time_s",))
    fps: float | None = setting(
        None,
        "Actions a second; when null, the simulation's own, those of the policy's training, or 30.",
        aliases=("dataset.fps",),
    )
    interpolation: int = setting(
        1,
        "Commands for each action, evenly spread in time, on the straight line from the last action to it.",
        aliases=("interpolation_multiplier",),
    )
    realtime: bool = setting(
        True, "Hold the rate; false: a simulation that nobody watches, as fast as it goes."
    )
    record_to: Path | None = setting(
        None, "Keep what is driven as a dataset in this folder.", aliases=("record-to",)
    )
    corrections: Path | None = setting(
        None,
        "A person corrects the policy, with --teleop.type: keep whole episodes as a dataset in this folder, and mark each frame as "
        "the policy's or the person's.",
        aliases=("dataset.root",),
    )
    resume: bool = setting(False, "Go on with the dataset that is there.")
    video: bool = setting(
        True,
        "Keep cameras as video; false: as images in the tables, for small pictures.",
        aliases=("dataset.video",),
    )
    vcodec: str | None = setting(
        None,
        "What encodes it, as `smolact record` takes it; the dataset's own on --resume.",
        aliases=("dataset.vcodec", "dataset.rgb_encoder.vcodec"),
    )

    @property
    def corrections_to(self) -> Path | None:
        """The folder of the corrections; None without corrections."""
        return corrections_folder(self.corrections, self.strategy, self.dataset)

    @property
    def recorded_to(self) -> Path | None:
        """The folder of the recorded dataset, if any."""
        return self.corrections_to or self.record_to

    def recording(self, root: Path) -> RecordedDataset:
        """Return the dataset settings that `smolact record` would have."""
        return RecordedDataset(
            root=root,
            single_task=self.task,
            fps=self.fps,
            episode_time_s=self.duration,
            reset_time_s=0.0,
            num_episodes=self.episodes,
            video=self.video,
            vcodec=self.vcodec,
        )


@command(RolloutConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Roll out with the settings in `argv`."""
    needs_robot(argv, "rollout")
    strategy = flag_value(argv, "strategy.type") or ""
    if strategy in unsupported.STRATEGIES:
        raise ConfigError(f"--strategy.type={strategy} can't be used: {unsupported.STRATEGIES[strategy]}")
    config = parse(RolloutConfig, argv)
    _check(config)
    root, resume_command = config.recorded_to, command_to_resume("rollout", argv)
    before = None if root is None else episodes_in(root)
    announce_policy(config.policy.path)
    try:
        with terminated_is_interrupted():
            reports = rollout(config)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. The robot was let go of where it was.\n")
        if root is not None:
            sys.stderr.write(ended_early(root, resume_command, before))
        if config.corrections_to is not None and episodes_in(config.corrections_to):
            sys.stdout.write(summary(config.corrections_to, str(config.policy.path)))
        return INTERRUPTED
    except SmolactError as error:
        print_error(error)  # before the command that resumes
        if root is not None:
            sys.stderr.write(ended_early(root, resume_command, before))
        raise
    if root is not None:
        sys.stdout.write(f"{len(reports)} episodes: {root}\n")
    judged = [report.success for report in reports if report.success is not None]
    if judged:
        sys.stdout.write(f"success: {sum(judged)} of {len(judged)}\n")
    if config.corrections_to is not None:
        sys.stdout.write(summary(config.corrections_to, str(config.policy.path)))
    return DONE


def _check(config: RolloutConfig) -> None:
    """Raise a `ConfigError` for invalid settings, before the robot moves."""
    if config.policy.path is None:
        raise ConfigError(
            "Which policy drives? --policy.path=CHECKPOINT, or a server's address, ws://HOST:PORT."
        )
    if config.episodes < 1 or not config.duration > 0 or not (config.fps is None or config.fps > 0):
        raise ConfigError(
            f"--episodes={config.episodes}, --duration={config.duration:g} and --fps must be above 0."
        )
    config.inference.make(1)
    if config.task is not None and not config.task.strip():
        raise ConfigError("--task is empty: say what to do, like 'Pick up the cube.'")
    if not config.realtime and not config.robot.is_simulation:
        raise ConfigError("--realtime=false is for simulations: a robot moves in real time. Leave it out.")
    if config.task is None and not config.robot.is_simulation:
        raise ConfigError("What is to be done? --task='Pick up the cube.'")
    if config.interpolation < 1:
        raise ConfigError(f"--interpolation={config.interpolation}: an action has one command or more.")
    check_corrections(
        config.teleop.type,
        config.corrections_to,
        {"record-to": config.record_to, "interactive": config.interactive},
    )
    if config.resume and config.recorded_to is None:
        raise ConfigError("--resume goes on with a recording: give its folder, --record-to=FOLDER.")
    if config.recorded_to is not None:
        check_folder(
            config.recorded_to,
            resume=config.resume,
            num_episodes=config.episodes,
            flags="--record-to" if config.corrections_to is None else "--corrections",
        )


def rollout(config: RolloutConfig) -> Sequence[RolloutReport | EpisodeReport]:
    """Let the policy drive the robot, corrected by a teleoperator if --corrections is set, and record if it or --record-to is.

    Raises:
        SmolactError: errors of the robot, the policy or the dataset.
    """
    from smolact.recording.plan import RecordingPlan
    from smolact.recording.recorder import Recorder
    from smolact.robots.incremental_teleop import KeyboardTeleoperator
    from smolact.robots.keys import Keys
    from smolact.runtime.controller import ChunkController
    from smolact.runtime.controls import Controls
    from smolact.runtime.fit import note_rate, rate_of
    from smolact.runtime.inference import SyncInference, ThreadedInference
    from smolact.runtime.rollout import roll_out

    robot = config.robot.make()
    teleoperator = config.teleop.make() if config.corrections_to is not None else None
    by_keyboard = isinstance(teleoperator, KeyboardTeleoperator)
    if teleoperator is not None:
        check_can_take_over(teleoperator)
    with contextlib.ExitStack() as stack:
        stack.callback(robot.disconnect)
        robot.connect()  # before the policy is loaded: what is wrong with the robot is said sooner
        policy = _policy(config, robot, stack)
        backend: ThreadedInference | SyncInference = SyncInference(policy)
        if config.realtime:
            cancel = policy.reset if is_server(config.policy.path) else lambda: None
            backend = ThreadedInference(policy, cancel)
            stack.callback(backend.close)
            stack.callback(robot.disconnect)  # runs first: closing waits for a prediction
        planned = functools.partial(
            RecordingPlan,
            num_episodes=config.episodes,
            episode_time_s=config.duration,
            reset_time_s=0.0,
            task=config.task,
            realtime=config.realtime,
            interpolation=config.interpolation,
            flags={name: name for name in ("fps", "interpolation")}
            | {"num_episodes": "episodes", "episode_time_s": "duration"},
        )
        writer = None
        root = config.recorded_to
        if root is not None:
            writer = stack.enter_context(
                open_dataset(
                    root,
                    config.recording(root),
                    robot,
                    planned,
                    trained=policy.schema.fps,
                    resume=config.resume,
                    corrections=teleoperator is not None,
                )
            )
        stack.enter_context(print_errors_at_once())
        # The limits of a robot's gate are available only after `connect`.
        inference = config.inference.make(policy.schema.n_action_steps)
        controller = ChunkController(backend, inference, robot.gate)
        controls = Controls(arrows_drive=by_keyboard)
        source: ChunkController | CorrectedSource = controller
        counted: list[ChunkController | CorrectedSource] = [controller]
        if config.interactive:
            _read_instructions(controller, controls)
        else:
            keys = stack.enter_context(Keys(controls.press))
            controls.is_operated = keys.is_listening
            if keys.is_listening:
                logger.info("%s: next episode · space: pause · q: stop", "enter" if by_keyboard else "→")
            if teleoperator is not None and writer is not None:
                stack.callback(teleoperator.disconnect)
                teleoperator.connect(robot)
                if isinstance(teleoperator, KeyboardTeleoperator):
                    keys.listen(teleoperator.press)
                source = corrected(controller, teleoperator, robot, writer.fps, keys)
                counted.append(source)
        if writer is not None:
            return Recorder(
                robot,
                source,
                writer,
                planned(writer.fps),
                controls=controls,
                on_episode=lambda report: logger.info(
                    "%s", ", ".join(map(str, (report, *(each.counts for each in counted))))
                ),
                on_failure=print_error,
                keep_unfinished=True,
            ).run()
        fps = rate_of(config.fps, robot, policy.schema.fps)
        note_rate(fps, policy.schema.fps)
        return roll_out(
            robot,
            controller,
            fps=fps,
            duration=config.duration,
            episodes=config.episodes,
            task=config.task,
            realtime=config.realtime,
            controls=controls,
            on_episode=lambda report: logger.info("%s", report),
            interpolation=config.interpolation,
        )


def _policy(config: RolloutConfig, robot: Robot, stack: contextlib.ExitStack) -> Policy:
    """Load a policy and check that it fits the robot and supports --inference.type; `stack` closes it.

    Raises:
        FeatureError: the robot lacks an input of the policy, or has other actions.
        ConfigError: the policy does not support real-time chunking.
    """
    from smolact.runtime.fit import check_robot, note_masked

    policy = load_chosen(config.policy, engine={}, rename_map=config.rename_map)
    stack.callback(policy.close)
    schema = policy.schema
    if config.inference.type == "rtc" and not schema.takes_leftover:
        raise ConfigError(
            f"A '{schema.policy}' policy can't draw actions that go on from others, as --inference.type=rtc needs. Use "
            "--inference.type=async."
        )
    note_masked(check_robot(policy, robot.features, any_names=not config.check_names))
    policy.warm_up()
    return policy


def _read_instructions(controller: ChunkController, controls: Controls) -> None:
    """Read instructions from standard input in a thread; an empty line ends the episode."""

    def read() -> None:
        for line in sys.stdin:
            if line.strip():
                controller.task = line.strip()
                logger.info("From the next chunk on: %s", controller.task)
            else:
                controls.press("right")

    logger.info("Type an instruction at any time; an empty line ends the episode, Ctrl-C all of it.")
    threading.Thread(target=read, name="instructions", daemon=True).start()
