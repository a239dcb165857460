"""Several environments stepped together, for a policy that predicts in batches."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.mapping import Observation, PolicyEnv
from smolact.errors import ConfigError
from smolact.types import PolicyFeature


class EnvBatch:
    """Environments side by side, one episode each: who is done waits, unchanged, until all begin anew.

    gymnasium's `SyncVectorEnv` gives one set of options to all and, before 1.1, always begins the next episode by
    itself; here each episode has a seed and options of its own, and none can leak into another's result.
    """

    def __init__(self, envs: Sequence[PolicyEnv]) -> None:
        self._envs = list(envs)
        self._last: list[tuple[Observation, dict[str, Any]]] = []
        self._done = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return len(self._envs)

    def __enter__(self) -> EnvBatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, number: int) -> PolicyEnv:
        return self._envs[number]

    @property
    def features(self) -> dict[str, PolicyFeature]:
        """What a policy sees and gives, by batch key."""
        return self._envs[0].features

    @property
    def fps(self) -> int | None:
        """Control steps a second, if the environment says."""
        return self._envs[0].fps

    @property
    def draws(self) -> bool:
        """Whether `render` gives pictures."""
        return bool(self._envs[0].render_mode == "rgb_array")

    @property
    def done(self) -> NDArray[np.bool_]:
        """(B,): whose episode is over."""
        done: NDArray[np.bool_] = self._done.copy()
        return done

    def reset(
        self, seeds: Sequence[int], options: Sequence[dict[str, Any] | None] | None = None
    ) -> tuple[Observation, list[dict[str, Any]]]:
        """Begin one episode a seed, in as many of the environments as there are seeds.

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
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step every episode that is not over with its row of `actions` (B, A).

        Returns observations (B, …), rewards (B,), whose episode is over (B,), infos. An episode that was over before has
        its last observation and info, and no reward.
        """
        rewards = np.zeros(len(self._last), np.float32)
        for number in np.flatnonzero(~self._done).tolist():
            observation, rewards[number], terminated, truncated, info = self._envs[number].step(
                actions[number]
            )
            self._last[number] = observation, info
            self._done[number] = terminated or truncated
        observations, infos = self._stacked()
        return observations, rewards, self.done, infos

    def render(self, number: int) -> NDArray[np.uint8]:
        """The picture of one environment, (H, W, 3) uint8.

        Raises:
            ConfigError: it was made without `render=True`.
        """
        picture = self._envs[number].render()
        if not isinstance(picture, np.ndarray):
            raise ConfigError(
                "The environment draws nothing: make it with render=True (render_mode='rgb_array')."
            )
        return picture

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _stacked(self) -> tuple[Observation, list[dict[str, Any]]]:
        observations, infos = zip(*self._last, strict=True)
        return {key: np.stack([one[key] for one in observations]) for key in observations[0]}, list(infos)
