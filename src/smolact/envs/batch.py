"""Several environments stepped together, for batched policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.benchmarks.base import BenchmarkTask
from smolact.envs.mapping import Observation, PolicyEnv
from smolact.errors import ConfigError
from smolact.types import PolicyFeature


class EnvBatch:
    """Environments with one episode each. A finished episode keeps its last result until the next reset.

    Unlike in gymnasium's `SyncVectorEnv`, each episode has its own options, and none restarts by itself (as it always does
    before 1.1).
    """

    def __init__(self, envs: Sequence[PolicyEnv]) -> None:
        self._envs = list(envs)
        self._last: list[tuple[Observation, dict[str, Any]]] = []
        self._done = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return len(self._envs)

    def __enter__(self) -> EnvBatch:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __getitem__(self, number: int) -> PolicyEnv:
        return self._envs[number]

    @property
    def features(self) -> dict[str, PolicyFeature]:
        """The policy's input and output features, by batch key."""
        return self._envs[0].features

    @property
    def tasks(self) -> tuple[BenchmarkTask, ...]:
        """A benchmark's tasks; none of other environments."""
        return self._envs[0].tasks

    @property
    def instruction(self) -> str | None:
        """The instruction of every episode; None for the environments' own."""
        return self._envs[0].instruction

    @property
    def fps(self) -> int | None:
        """Control steps per second, if declared."""
        return self._envs[0].fps

    @property
    def can_render(self) -> bool:
        """Whether `render` returns images."""
        return bool(self._envs[0].render_mode == "rgb_array")

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether each episode is over, (B,)."""
        done: NDArray[np.bool_] = self._done.copy()
        return done

    def reset(
        self, seeds: Sequence[int], options: Sequence[dict[str, Any] | None] | None = None
    ) -> tuple[Observation, list[dict[str, Any]]]:
        """Start one episode per seed, in as many environments as there are seeds.

        Returns observations (B, …) and each episode's info.
        """
        if not 0 < len(seeds) <= len(self):
            raise ConfigError(
                f"{len(seeds)} seeds for {len(self)} environments: give one an environment at most."
            )
        each = options if options is not None else [None] * len(seeds)
        self._last = [
            env.reset(seed=seed, options=option)
            for env, seed, option in zip(self._envs, seeds, each, strict=False)
        ]
        self._done = np.zeros(len(seeds), np.bool_)
        return self._stacked()

    def step(
        self, actions: NDArray[Any], *, look: bool = True
    ) -> tuple[Observation, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step every unfinished episode with its row of `actions` (B, A).

        Returns observations (B, …), rewards (B,), done flags (B,) and infos. A finished episode returns its last observation
        and info, with reward 0. Without `look` the observations of a benchmark have no pictures, which need not be drawn then; the
        last observation of an episode that finished meanwhile has black ones.
        """
        rewards = np.zeros(len(self._last), np.float32)
        for number in np.flatnonzero(~self._done).tolist():
            observation, rewards[number], terminated, truncated, info = self._envs[number].step(
                actions[number], look=look
            )
            self._last[number] = observation, info
            self._done[number] = terminated or truncated
        observations, infos = self._stacked()
        return observations, rewards, self.done, infos

    def render(self, number: int) -> NDArray[np.uint8]:
        """Render one environment, (H, W, 3) uint8.

        Raises:
            ConfigError: the environment was made without `render=True`.
        """
        image = self._envs[number].render()
        if not isinstance(image, np.ndarray):
            raise ConfigError(
                "The environment draws nothing: make it with render=True (render_mode='rgb_array')."
            )
        return image

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _stacked(self) -> tuple[Observation, list[dict[str, Any]]]:
        observations, infos = zip(*self._last, strict=True)
        spaces: Mapping[str, gymnasium.Space[Any]] = self._envs[0].observation_space.spaces
        present = [key for key in spaces if any(key in observation for observation in observations)]
        stacked = {
            key: np.stack(
                [each.get(key, np.zeros(spaces[key].shape or (), np.uint8)) for each in observations]
            )
            for key in present
        }
        return stacked, list(infos)
