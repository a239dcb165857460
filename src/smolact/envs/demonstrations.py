"""Episodes of a scripted expert, to learn from."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.experts import Expert, expert_for
from smolact.envs.factory import env_id, make_env
from smolact.envs.mapping import Observation, PolicyEnv
from smolact.envs.seeding import episode_seed
from smolact.errors import ConfigError
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
    expert: Expert,
    n_episodes: int,
    *,
    seed: int = 0,
    noise: ActionNoise | None = None,
    only_successes: bool = True,
    on_attempt: Callable[[bool], None] | None = None,
) -> Iterator[Demonstration]:
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
) -> Iterator[Demonstration]:
    """The episodes of `demonstrations`, made by several processes at once, each with an environment of its own.

    Args:
        name: of the environment, for `make_env` and `expert_for`.
        settings: further arguments for `make_env`.

    Raises:
        ConfigError: nobody wrote an expert for it, or it fails more often than it succeeds.
    """
    expert_for(env_id(name))
    # A forked process would inherit the threads' locks of whatever was imported here.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context)
    made_with = dict(settings or {})
    try:
        attempts = _ahead(
            lambda index: pool.submit(_attempt, name, made_with, _seed(seed, index), noise), 2 * processes
        )
        yield from _wanted(attempts, n_episodes, only_successes, on_attempt)
    finally:
        pool.shutdown(cancel_futures=True)


def _wanted(
    attempts: Iterator[Demonstration],
    n_episodes: int,
    only_successes: bool,
    on_attempt: Callable[[bool], None] | None,
) -> Iterator[Demonstration]:
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


def _ahead(begin: Callable[[int], Future[Demonstration]], most: int) -> Iterator[Demonstration]:
    """The results of `begin(0)`, `begin(1)`, … in this order, while up to `most` are under way."""
    under_way: deque[Future[Demonstration]] = deque()
    for index in itertools.count():
        under_way.append(begin(index))
        if len(under_way) == most:
            yield under_way.popleft().result()


def _attempt(name: str, settings: Mapping[str, Any], seed: int, noise: ActionNoise | None) -> Demonstration:
    with make_env(name, **settings) as envs:
        return _demonstrate(envs[0], expert_for(env_id(name)), seed, noise)


def _seed(seed: int, index: int) -> int:
    return episode_seed(seed, index, "demonstrations")


def _demonstrate(env: PolicyEnv, expert: Expert, seed: int, noise: ActionNoise | None) -> Demonstration:
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
