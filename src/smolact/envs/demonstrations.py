"""Demonstration episodes from a scripted expert."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.benchmarks.base import BenchmarkEnv
from smolact.envs.experts import ScriptedExpert, expert_for
from smolact.envs.factory import make_env
from smolact.envs.mapping import Observation, PolicyEnv
from smolact.envs.seeding import episode_seed
from smolact.errors import ConfigError
from smolact.machine import worker_processes
from smolact.types import ACTION, DONE, REWARD, SUCCESS, TASK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActionNoise:
    """Noise on the expert's actions during a demonstration, as a share of the action's range.

    The noisy action is executed, the expert's own is recorded: demonstrations include states that the expert alone would not
    reach, and its recovery from them.

    Attributes:
        std: standard deviation at every step.
        kick_probability: probability per step of a kick, which adds one vector for `kick_steps` steps.
        kick_std: standard deviation of that vector.
    """

    std: float = 0.008
    kick_probability: float = 0.03
    kick_std: float = 0.05
    kick_steps: int = 3


@dataclass(frozen=True)
class Demonstration:
    """One episode of T steps.

    Attributes:
        frames: batch key to array: images (T, H, W, 3) uint8; other observations (T, D) float32; `action` (T, A) without noise;
            its outcome: `next.reward` (T, 1) float32, `next.done` and `next.success` (T, 1) bool.
    """

    frames: dict[str, NDArray[np.generic]]
    task: str
    seed: int
    success: bool

    def __len__(self) -> int:
        return len(self.frames[ACTION])


def demonstrations(
    env: PolicyEnv,
    expert: ScriptedExpert,
    n_episodes: int,
    *,
    seed: int = 0,
    noise: ActionNoise | None = None,
    only_successes: bool = True,
    on_attempt: Callable[[bool], None] | None = None,
) -> Generator[Demonstration, None, None]:
    """Yield `n_episodes` episodes of the expert, the same for the same seed.

    Args:
        env: one environment under batch keys: `make_env(…)[0]`.
        noise: None for no noise; `ActionNoise()` suits the experts of this package.
        only_successes: replace failed episodes with further ones.
        on_attempt: called with each episode's success before it is yielded or dropped.

    Raises:
        ConfigError: the expert fails more often than it succeeds.
    """
    attempts = (_attempt(env, expert, seed, index, noise) for index in itertools.count())
    return _select_attempts(attempts, n_episodes, only_successes, on_attempt)


def demonstrations_by_processes(
    name: str,
    n_episodes: int,
    processes: int,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    noise: ActionNoise | None = None,
    only_successes: bool = True,
    on_attempt: Callable[[bool], None] | None = None,
) -> Generator[Demonstration, None, None]:
    """Yield the episodes of `demonstrations`, made by several processes.

    Args:
        name: the environment, for `make_env` and `expert_for`.
        settings: further arguments of `make_env`.

    Raises:
        ConfigError: the environment has no expert, or the expert fails more often than it succeeds.
    """
    expert_for(name)
    attempts = _round_robin((name, dict(settings or {}), seed, noise), processes)
    return _select_attempts(attempts, n_episodes, only_successes, on_attempt)


def _select_attempts(
    attempts: Iterator[Demonstration],
    n_episodes: int,
    only_successes: bool,
    on_attempt: Callable[[bool], None] | None,
) -> Generator[Demonstration, None, None]:
    failed = yielded = 0
    while yielded < n_episodes:
        episode = next(attempts)
        if on_attempt is not None:
            on_attempt(episode.success)
        if episode.success or not only_successes:
            yielded += 1
            yield episode
        else:
            failed += 1
            if failed > yielded + 20:
                raise ConfigError(
                    f"The expert failed in {failed} of {failed + yielded} episodes. Lower the noise, or use only_successes=False."
                )
    if failed:
        logger.info("%d demonstrations failed and were replaced.", failed)


def _round_robin(arguments: tuple[Any, ...], processes: int) -> Iterator[Demonstration]:
    """Yield every attempt in order; process p makes the attempts whose index is p modulo `processes`."""
    with worker_processes(
        _send_attempts, [(*arguments, rank, processes) for rank in range(processes)]
    ) as workers:
        for _, receiver in itertools.cycle(workers):
            try:
                received = receiver.recv()
            except EOFError as error:
                raise ConfigError(
                    "A process that makes demonstrations ended before its time; memory may have run out. Use fewer: "
                    f"--processes={max(processes // 2, 1)}."
                ) from error
            if isinstance(received, Exception):
                raise received
            yield received


def _send_attempts(
    name: str,
    env_settings: Mapping[str, Any],
    seed: int,
    noise: ActionNoise | None,
    first: int,
    processes: int,
    sender: Connection,
) -> None:
    """Send the attempts `first`, `first + processes`, … until the pipe is closed."""
    try:
        with make_env(name, **env_settings) as envs:
            expert = expert_for(name)
            for index in itertools.count(first, processes):
                sender.send(_attempt(envs[0], expert, seed, index, noise))
    except BrokenPipeError:
        pass  # the receiver is closed
    except Exception as error:
        sender.send(error)


def _attempt(
    env: PolicyEnv, expert: ScriptedExpert, seed: int, index: int, noise: ActionNoise | None
) -> Demonstration:
    """Play the attempt `index` of a run with `seed`; in a suite, the tasks take turns."""
    suite = env.unwrapped
    options = {"task_id": index % len(suite.tasks)} if isinstance(suite, BenchmarkEnv) else None
    return _play_episode(env, expert, episode_seed(seed, index, "demonstrations"), noise, options)


def _play_episode(
    env: PolicyEnv,
    expert: ScriptedExpert,
    seed: int,
    noise: ActionNoise | None,
    options: dict[str, Any] | None,
) -> Demonstration:
    random = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options=options)
    observations: list[Observation] = []
    actions: list[NDArray[np.float32]] = []
    outcomes: list[tuple[float, bool, bool]] = []
    size: int = env.action_space.shape[0]
    low, high = env.action_space.low, env.action_space.high
    kick, kick_left, over, success = np.zeros(size), 0, False, False
    while not over:
        action = expert.act(env)
        observations.append(observation)
        actions.append(action)
        if noise is not None:
            if kick_left == 0 and random.random() < noise.kick_probability:
                kick, kick_left = random.normal(0.0, noise.kick_std, size), noise.kick_steps
            disturbance = random.normal(0.0, noise.std, size) + (kick if kick_left else 0.0)
            kick_left = max(kick_left - 1, 0)
            action = np.clip(action + (high - low) * disturbance, low, high).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        over, success = terminated or truncated, success or info["is_success"]
        outcomes.append((reward, over, info["is_success"]))
    frames = {key: np.stack([frame[key] for frame in observations]) for key in observations[0]}
    rewards, ends, successes = (np.array(values)[:, None] for values in zip(*outcomes, strict=True))
    outcome_frames = {REWARD: rewards.astype(np.float32), DONE: ends, SUCCESS: successes}
    return Demonstration({**frames, ACTION: np.stack(actions), **outcome_frames}, info[TASK], seed, success)
