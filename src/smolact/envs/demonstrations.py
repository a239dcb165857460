"""Episodes of a scripted expert, to learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolact.envs.experts import Expert
from smolact.envs.mapping import Observation, PolicyEnv
from smolact.envs.seeding import episode_seed
from smolact.errors import ConfigError
from smolact.types import ACTION, TASK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActionNoise:
    """What is added to the expert's actions while it demonstrates, in the action's units.

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
            the expert wanted.
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
        noise: None for an undisturbed expert; `ActionNoise()` is right for the tabletop.
        only_successes: leave out those that failed, and make others instead.
        on_attempt: is told of each one whether it succeeded, before it is yielded or left out.

    Raises:
        ConfigError: the expert fails more often than it succeeds.
    """
    failed = made = 0
    while made < n_episodes:
        index = made + failed
        episode = _demonstrate(env, expert, episode_seed(seed, index, "demonstrations"), noise)
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


def _demonstrate(env: PolicyEnv, expert: Expert, seed: int, noise: ActionNoise | None) -> Demonstration:
    random = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    seen: list[Observation] = []
    wanted: list[NDArray[np.float32]] = []
    size: int = env.action_space.shape[0]
    kick, kick_left, over, success = np.zeros(size), 0, False, False
    while not over:
        action = expert.act(env)
        seen.append(observation)
        wanted.append(action)
        if noise is not None:
            if kick_left == 0 and random.random() < noise.kick_probability:
                kick, kick_left = random.normal(0.0, noise.kick_std, size), noise.kick_steps
            disturbed = action + random.normal(0.0, noise.std, size) + (kick if kick_left else 0.0)
            kick_left = max(kick_left - 1, 0)
            action = np.clip(disturbed, env.action_space.low, env.action_space.high).astype(np.float32)
        observation, _, terminated, truncated, info = env.step(action)
        over, success = terminated or truncated, success or info["is_success"]
    frames = {key: np.stack([one[key] for one in seen]) for key in seen[0]}
    return Demonstration({**frames, ACTION: np.stack(wanted)}, info[TASK], seed, success)
