"""A simulated robot: an environment under batch keys (`smolact.envs.mapping.PolicyEnv`, or anything like it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smolact.errors import FeatureError, RobotError
from smolact.robots.base import Observation, RobotFeatures
from smolact.types import ACTION, TASK, is_image_key


class Space(Protocol):
    """The range of an environment's actions."""

    low: NDArray[Any]
    high: NDArray[Any]


class Environment(Protocol):
    """What a simulated robot needs of an environment."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Batch key to what has a `shape`: images (3, H, W), `action` (A,)."""
        ...

    @property
    def action_space(self) -> Space:
        """The actions' range."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; the second part has `task`."""
        ...

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step; the last part has `is_success`."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class SimRobot:
    """An `EpisodicRobot` in an environment, which makes one step an action.

    Args:
        env: the environment.
        name: what it is called in a dataset.
        seed: of its scenes: the same seed and the same episode give the same scene.
    """

    def __init__(self, env: Environment, name: str, seed: int = 0) -> None:
        self.env, self._name, self._seed = env, name, seed
        self._observation: Observation | None = None
        self._over = self._success = self._closed = False

    @property
    def name(self) -> str:
        """What it is called in a dataset."""
        return self._name

    @property
    def features(self) -> RobotFeatures:
        """What it sees and takes; an environment does not name its numbers, so they are counted."""
        found = {key: tuple(feature.shape) for key, feature in self.env.features.items()}
        space, size = self.env.action_space, found[ACTION][0]
        low, high = np.broadcast_to(space.low, (size,)), np.broadcast_to(space.high, (size,))
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        return RobotFeatures(
            action=_numbered(ACTION, size),
            vectors={
                key: _numbered(key.rpartition(".")[2], shape[0])
                for key, shape in found.items()
                if key != ACTION and not is_image_key(key)
            },
            cameras={key: (shape[1], shape[2]) for key, shape in found.items() if is_image_key(key)},
            limits=tuple(zip(low.tolist(), high.tolist(), strict=True)) if finite else None,
        )

    @property
    def episode_is_over(self) -> bool:
        """Whether the episode ended by itself: its goal was reached, or its time is up."""
        return self._over

    @property
    def is_success(self) -> bool:
        """Whether the goal was reached in this episode."""
        return self._success

    def connect(self) -> None:
        """Begin the first episode, so that there is something to see.

        Raises:
            RobotError: it was disconnected: its environment is closed.
        """
        if self._closed:
            raise RobotError(f"The simulation '{self._name}' is closed. Make another one.")
        if self._observation is None:
            self.reset(0)

    def reset(self, episode: int) -> str | None:
        """Begin episode `episode` (its number decides the scene); returns what the scene asks for."""
        seed = int(np.random.SeedSequence([self._seed, episode]).generate_state(1)[0])
        self._observation, info = self.env.reset(seed=seed)
        self._over = self._success = False
        return str(info[TASK]) if info.get(TASK) else None

    def get_observation(self) -> Observation:
        """What it sees now.

        Raises:
            RobotError: it is not connected.
        """
        if self._observation is None:
            raise RobotError(f"The simulation '{self._name}' is not connected. Call connect() first.")
        return dict(self._observation)

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Make one step, unless the episode is over. Returns the action within the environment's range, (A,) float32.

        Raises:
            FeatureError: the action has another size, or is not finite.
        """
        features = self.features
        values = np.asarray(action, np.float32)
        if values.shape != (len(features.action),) or not np.isfinite(values).all():
            raise FeatureError(
                f"The simulation '{self._name}' takes {len(features.action)} finite numbers as an action, found {action!r:.200}."
            )
        if features.limits is not None:
            low, high = np.array(features.limits, np.float32).T
            values = np.clip(values, low, high)
        if not self._over:
            self._observation, _, terminated, truncated, info = self.env.step(values)
            self._over = terminated or truncated
            self._success = self._success or bool(info["is_success"])
        return values

    def disconnect(self) -> None:
        """Close the environment."""
        if not self._closed:
            self._closed = True
            self.env.close()


def _numbered(stem: str, size: int) -> tuple[str, ...]:
    return tuple(f"{stem}_{number}" for number in range(size))
