"""Episodes of a scripted expert, to learn from."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.experts import ScriptedExpert, expert_for
from smolact.envs.factory import env_id, make_env
from smolact.envs.mapping import Observation, PolicyEnv
from smolact.envs.seeding import episode_seed
from smolact.errors import ConfigError
from smolact.machine import check_main_guard, leave_with_parent
from smolact.types import ACTION, DONE, REWARD, SUCCESS, TASK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActionNoise:
    """What is added to the expert's actions while it demonstrates, as a share of what the action can span.

    The disturbed action is carried out and the expert's own is recorded: so the demonstrations hold states that the
    expert would not get into, and the way back from them.

    Attributes:
        std: of every step's noise.
        kick_probability: of a kick beginning at a step; it adds the same vector for `kick_steps` steps.
        kick_std: of that vector.
    """

    std: float = 0.008
    kick_probability: float = 0.03
    kick_std: float = 0.05
    kick_steps: int = 3


@dataclass(frozen=True)
class Demonstration:
    """One episode of T steps.

    Attributes:
        frames: batch key to array: images (T, H, W, 3) uint8, everything else (T, D) float32; `action` (T, A) is what
            the expert wanted. And what came of each action: `next.reward` (T, 1) float32, `next.done` and `next.success`
            (T, 1) bool.
        task: the instruction.
        seed: of the environment.
        success: whether the goal was reached.
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
    """Yield `n_episodes` of the expert's, the same for the same seed.

    Args:
        env: one environment under batch keys: `make_env(…)[0]`.
        noise: None for an undisturbed expert; `ActionNoise()` is right for the experts here.
        only_successes: leave out those that failed, and make others instead.
        on_attempt: is told of each one whether it succeeded, before it is yielded or left out.

    Raises:
        ConfigError: the expert fails more often than it succeeds.
    """
    attempts = (_demonstrate(env, expert, _seed(seed, index), noise) for index in itertools.count())
    return _wanted(attempts, n_episodes, only_successes, on_attempt)


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
    """The episodes of `demonstrations`, made by several processes at once, each with an environment of its own.

    Args:
        name: of the environment, for `make_env` and `expert_for`.
        settings: further arguments for `make_env`.

    Raises:
        ConfigError: nobody wrote an expert for it, or it fails more often than it succeeds.
    """
    expert_for(env_id(name))
    order = _Order(name, dict(settings or {}), seed, noise)
    return _wanted(_by_turns(order, processes), n_episodes, only_successes, on_attempt)


def _wanted(
    attempts: Iterator[Demonstration],
    n_episodes: int,
    only_successes: bool,
    on_attempt: Callable[[bool], None] | None,
) -> Generator[Demonstration, None, None]:
    failed = made = 0
    while made < n_episodes:
        episode = next(attempts)
        if on_attempt is not None:
            on_attempt(episode.success)
        if episode.success or not only_successes:
            made += 1
            yield episode
        else:
            failed += 1
            if failed > made + 20:
                raise ConfigError(
                    f"The expert failed in {failed} of {failed + made} episodes. Lower the noise, or use only_successes=False."
                )
    if failed:
        logger.info("%d demonstrations failed and were replaced.", failed)


@dataclass(frozen=True)
class _Order:
    """What a process needs to know."""

    name: str
    settings: dict[str, Any]
    seed: int
    noise: ActionNoise | None


def _by_turns(order: _Order, processes: int) -> Iterator[Demonstration]:
    """Every attempt in its order; process p makes those whose number is p modulo `processes`."""
    # A forked process would inherit the locks of whatever threads were running here.
    check_main_guard()
    context = multiprocessing.get_context("spawn")
    receivers: list[Connection] = []
    workers: list[BaseProcess] = []
    try:
        for first in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            worker: BaseProcess = context.Process(
                target=_make, args=(order, first, processes, sender), daemon=True
            )
            worker.start()
            sender.close()  # so that it is the worker's alone, and its death is an end of the pipe
            receivers.append(receiver)
            workers.append(worker)
        for index in itertools.count():
            try:
                made = receivers[index % processes].recv()
            except EOFError as error:
                raise ConfigError(
                    "A process that makes demonstrations ended before its time; memory may have run out. Use fewer: "
                    f"--processes={max(processes // 2, 1)}."
                ) from error
            if isinstance(made, Exception):
                raise made
            yield made
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
        for receiver in receivers:
            receiver.close()


def _make(order: _Order, first: int, processes: int, sender: Connection) -> None:
    """Send the attempts `first`, `first + processes`, … for as long as somebody takes them."""
    leave_with_parent()
    try:
        with make_env(order.name, **order.settings) as envs:
            expert = expert_for(env_id(order.name))
            for index in itertools.count(first, processes):
                sender.send(_demonstrate(envs[0], expert, _seed(order.seed, index), order.noise))
    except BrokenPipeError:
        pass  # nobody takes them any more
    except Exception as error:
        sender.send(error)


def _seed(seed: int, index: int) -> int:
    return episode_seed(seed, index, "demonstrations")


def _demonstrate(
    env: PolicyEnv, expert: ScriptedExpert, seed: int, noise: ActionNoise | None
) -> Demonstration:
    random = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    seen: list[Observation] = []
    wanted: list[NDArray[np.float32]] = []
    came: list[tuple[float, bool, bool]] = []
    size: int = env.action_space.shape[0]
    low, high = env.action_space.low, env.action_space.high
    kick, kick_left, over, success = np.zeros(size), 0, False, False
    while not over:
        action = expert.act(env)
        seen.append(observation)
        wanted.append(action)
        if noise is not None:
            if kick_left == 0 and random.random() < noise.kick_probability:
                kick, kick_left = random.normal(0.0, noise.kick_std, size), noise.kick_steps
            disturbance = random.normal(0.0, noise.std, size) + (kick if kick_left else 0.0)
            kick_left = max(kick_left - 1, 0)
            action = np.clip(action + (high - low) * disturbance, low, high).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        over, success = terminated or truncated, success or info["is_success"]
        came.append((reward, over, info["is_success"]))
    frames = {key: np.stack([one[key] for one in seen]) for key in seen[0]}
    rewards, ends, successes = (np.array(values)[:, None] for values in zip(*came, strict=True))
    outcomes = {REWARD: rewards.astype(np.float32), DONE: ends, SUCCESS: successes}
    return Demonstration({**frames, ACTION: np.stack(wanted), **outcomes}, info[TASK], seed, success)
