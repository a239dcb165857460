"""`smolact rollout`: a policy drives a robot, and thinks of the next actions while it carries out the last ones."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from smolact.cli.devices import RobotSection, needs_robot
from smolact.cli.help import asks_for_help, help_text
from smolact.cli.main import DONE, INTERRUPTED
from smolact.cli.parsing import parse
from smolact.cli.record import DrivingPolicy, terminated_is_interrupted
from smolact.cli.servers import is_server, load_from_server
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.recording.chunk_driver import ChunkDriver, Inference, Predicts
    from smolact.recording.controls import Controls
    from smolact.recording.rollout import RolloutReport

logger = logging.getLogger(__name__)

USAGE = "smolact rollout --robot.type=sim --robot.env=tabletop --policy.path=CHECKPOINT [--inference.type=async] [--NAME=VALUE …]"


@dataclass
class InferenceSection:
    """When the policy is asked for its next actions."""

    type: Literal["sync", "async", "ensemble"] = setting(
        "sync",
        "sync: when the last one was carried out, and the robot holds meanwhile; async: while some are left; ensemble: all the "
        "time, and each action is the mean of all chunks' for its tick.",
    )
    refill: float = setting(0.5, "async: ask when this share of a chunk is left.")
    merge: Literal["latest", "weighted_average", "average", "conservative"] = setting(
        "latest",
        "async: which actions count where an old and a new chunk overlap; the new ones 1, 0.7, 0.5 or 0.3.",
    )
    deadline: float = setting(10.0, "Seconds that the robot holds for want of an answer before it stops.")

    def make(self, n_action_steps: int) -> Inference:
        """As the driver takes it."""
        from smolact.recording.chunk_driver import Inference

        if self.type == "sync":
            return Inference(executed=n_action_steps, deadline=self.deadline)
        if self.type == "async":
            return Inference(self.refill, self.merge, deadline=self.deadline)
        return Inference(1.0, "ensemble", deadline=self.deadline)


@dataclass
class RolloutConfig:
    """What `smolact rollout` takes."""

    robot: RobotSection = field(default_factory=RobotSection)
    policy: DrivingPolicy = field(default_factory=DrivingPolicy)
    inference: InferenceSection = field(default_factory=InferenceSection)
    task: str | None = setting(None, "The instruction; a simulation has one of its own when null.")
    interactive: bool = setting(
        False,
        "Type another instruction at any time: the next chunk obeys it. An empty line ends the episode.",
    )
    episodes: int = setting(1, "How many episodes.")
    duration: float = setting(60.0, "The longest episode, in seconds.")
    fps: float | None = setting(None, "Actions a second; when null, 30, or the simulation's own.")
    realtime: bool = setting(
        True, "Hold the rate; false: a simulation that nobody watches, as fast as it goes."
    )


def run(argv: Sequence[str]) -> int:
    """Roll out as the flags say."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(RolloutConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return DONE
    needs_robot(argv, "rollout")
    config, _ = parse(RolloutConfig, argv)
    if config.policy.path is None:
        raise ConfigError(
            "Which policy drives? --policy.path=CHECKPOINT, or a server's address, ws://HOST:PORT."
        )
    if config.episodes < 1 or not config.duration > 0 or not (config.fps is None or config.fps > 0):
        raise ConfigError(
            f"--episodes={config.episodes}, --duration={config.duration:g} and --fps must be above 0."
        )
    config.inference.make(1)  # says what is wrong before anything moves
    if config.task is not None and not config.task.strip():
        raise ConfigError("--task is empty: say what to do, like 'Pick up the cube.'")
    if not config.realtime and config.robot.type != "sim":
        raise ConfigError("--realtime=false is for simulations: a robot moves in real time. Leave it out.")
    if config.task is None and config.robot.type != "sim":
        raise ConfigError("What is to be done? --task='Pick up the cube.'")
    try:
        with terminated_is_interrupted():
            reports = rollout(config)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. The robot was let go of where it was.\n")
        return INTERRUPTED
    judged = [report.success for report in reports if report.success is not None]
    if judged:
        sys.stdout.write(f"success: {sum(judged)} of {len(judged)}\n")
    return DONE


def rollout(config: RolloutConfig) -> list[RolloutReport]:
    """Make robot and policy, and let the one drive the other.

    Raises:
        SmolactError: what any of them raises.
    """
    from smolact.recording.chunk_driver import AnswersAtOnce, ChunkDriver, ThreadAsks
    from smolact.recording.controls import Controls
    from smolact.recording.rollout import roll_out
    from smolact.robots.keys import Keys

    robot = config.robot.make()
    with contextlib.ExitStack() as stack:
        stack.callback(robot.disconnect)
        policy, n_action_steps = _policy(config, stack)
        asks: ThreadAsks | AnswersAtOnce = AnswersAtOnce(policy)
        if config.realtime:
            asks = ThreadAsks(policy)
            stack.callback(asks.close)
        driver = ChunkDriver(asks, config.inference.make(n_action_steps), getattr(robot, "gate", None))
        robot.connect()
        controls = Controls()
        if config.interactive:
            _listen(driver, controls)
        elif stack.enter_context(Keys(controls.press)).is_listening:
            logger.info("→: next episode · space: pause · q: stop")
        return roll_out(
            robot,
            driver,
            fps=config.fps or getattr(getattr(robot, "env", None), "fps", None) or 30.0,
            duration=config.duration,
            episodes=config.episodes,
            task=config.task,
            realtime=config.realtime,
            controls=controls,
            on_episode=lambda report: logger.info("%s", report),
        )


def _policy(config: RolloutConfig, stack: contextlib.ExitStack) -> tuple[Predicts, int]:
    """A policy with its processors, and how many of a chunk's actions it executes."""
    from smolact.policies.factory import load_policy
    from smolact.serving.local import LocalPolicy

    settings = dict(config.policy.settings)
    if is_server(config.policy.path):
        remote = load_from_server(str(config.policy.path), settings).policy
        stack.callback(remote.close)
        return remote.one(), int(remote.config.n_action_steps)  # type: ignore[attr-defined]
    loaded = load_policy(
        str(config.policy.path),
        device=settings.pop("device", None),
        stats_key=config.policy.stats_key,
        engine=True,
        **settings,
    )
    policy = LocalPolicy(*loaded)
    policy.warm_up()
    return policy, policy.schema.n_action_steps


def _listen(driver: ChunkDriver, controls: Controls) -> None:
    """Take instructions from standard input, line by line, for as long as there are any."""

    def read() -> None:
        for line in sys.stdin:
            if line.strip():
                driver.task = line.strip()
                logger.info("From the next chunk on: %s", driver.task)
            else:
                controls.press("right")

    logger.info("Type an instruction at any time; an empty line ends the episode, Ctrl-C all of it.")
    threading.Thread(target=read, name="instructions", daemon=True).start()
