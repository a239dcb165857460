"""A simulated robot: an environment under batch keys (`smolact.envs.mapping.PolicyEnv`, or a compatible class).

Its actions pass a gate like a real robot's, with the limits of the action space. An environment that simulates a certain robot
declares that robot's type, names, units and largest steps (`RobotNames`). In others the numbers are numbered. Where the action space equals the state space (the
tabletop, PushT), an action is a target position, and its distance from the previous position is limited. Elsewhere an action
may be a velocity or a change, unrelated to the one before, so only `max_step` limits steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smolact.errors import RobotError
from smolact.robots.base import Observation, RobotFeatures
from smolact.robots.safety import Gate, choose_steps, make_limits
from smolact.types import ACTION, STATE, TASK, RobotNames, is_image_key

MAX_POSITION_STEP = 0.3
"""The largest step of a target position, as a share of its range: the tabletop's expert takes 0.04, a hand in PushT more."""

SLACK = 0.25
"""Share of its range by which an action may lie outside and is clipped: more than on a motor, since a simulation can't break
and policies overshoot (the demo's by a tenth)."""


class Space(Protocol):
    """The range of an environment's actions."""

    low: NDArray[Any]
    high: NDArray[Any]


class Environment(Protocol):
    """The interface of an environment for a simulated robot."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Batch key to an object with a `shape`: images (3, H, W), `action` (A,)."""
        ...

    @property
    def action_space(self) -> Space:
        """The range of the actions."""
        ...

    @property
    def observation_space(self) -> Mapping[str, Any]:
        """Batch key to the observation's space."""
        ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the second result has `task`."""
        ...

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one control step; the last result has `is_success`."""
        ...

    def close(self) -> None:
        """Close the environment."""
        ...


class SimRobot:
    """An `EpisodicRobot` in an environment, with one environment step per action.

    Args:
        env: the environment.
        name: the environment's name, and the robot's type in a dataset if the environment declares none.
        seed: seed of the scenes: the same seed and episode give the same scene.
        max_step: the largest change of a number of the action in one tick, for all or by name; 0 for none. None:
            the environment's, or `MAX_POSITION_STEP` of the range where actions are target positions, or none.
        limits: ranges of some numbers of the action by name, in place of the environment's.
        max_action_age: the maximum age of a chunk's observation, in seconds; infinite by default, since a simulation waits.

    Attributes:
        env_name: the environment's name.
        gate: checks every action.

    Raises:
        ConfigError: invalid limits, or limits of an unknown number.
    """

    def __init__(
        self,
        env: Environment,
        name: str,
        seed: int = 0,
        *,
        max_step: float | Mapping[str, float] | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
        max_action_age: float = math.inf,
    ) -> None:
        self.env, self.env_name, self._seed = env, name, seed
        self._robot: RobotNames | None = getattr(env, "robot_names", None)
        size = env.features[ACTION].shape[0]
        names = _numbered_names(ACTION, size) if self._robot is None else self._robot.names
        low, high = _bounds(env.action_space, size)
        # `in` tests a gymnasium space for an observation, not for a key.
        state = env.observation_space.get(STATE)
        self._acts_in_positions = state is not None and np.array_equal((low, high), (state.low, state.high))
        largest = MAX_POSITION_STEP * (high - low) if self._acts_in_positions else np.full(size, math.inf)
        if self._robot is not None:
            largest = np.array(self._robot.max_step)
        steps = choose_steps(names, dict(zip(names, largest.tolist(), strict=True)), max_step)
        ranges = {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
        self.gate = Gate(make_limits(names, ranges | dict(limits or {}), steps, max_action_age, SLACK))
        self._observation: Observation | None = None
        self._over = self._success = self._closed = False

    @property
    def name(self) -> str:
        """The robot's type in a dataset."""
        return self.env_name if self._robot is None else self._robot.robot_type

    @property
    def features(self) -> RobotFeatures:
        """The features; their numbers have numbers for names, unless the environment declares the robot that it simulates."""
        shapes = {key: tuple(feature.shape) for key, feature in self.env.features.items()}
        low, high = self.gate.limits.low, self.gate.limits.high
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        vectors = {
            key: _numbered_names(key.rpartition(".")[2], shape[0])
            for key, shape in shapes.items()
            if key != ACTION and not is_image_key(key)
        }
        units = {}
        if self._robot is not None:
            vectors[STATE] = self._robot.names
            units = dict.fromkeys((STATE, ACTION), self._robot.units)
        return RobotFeatures(
            action=self.gate.limits.names,
            vectors=vectors,
            cameras={key: (shape[1], shape[2]) for key, shape in shapes.items() if is_image_key(key)},
            limits=tuple(zip(low.tolist(), high.tolist(), strict=True)) if finite else None,
            units=units,
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
        """Start the first episode, so that an observation exists.

        Raises:
            RobotError: the robot was disconnected, which closed its environment.
        """
        if self._closed:
            raise RobotError(f"The simulation '{self.env_name}' is closed. Make another one.")
        if self._observation is None:
            self.reset(0)

    def reset(self, episode: int) -> str | None:
        """Start episode `episode`, whose number determines the scene; returns the scene's instruction."""
        seed = int(np.random.SeedSequence([self._seed, episode]).generate_state(1)[0])
        self._observation, info = self.env.reset(seed=seed)
        self._over = self._success = False
        unknown = np.full(len(self.gate.limits.names), math.nan, np.float32)
        self.gate.position = (
            np.array(self._observation[STATE], np.float32) if self._acts_in_positions else unknown
        )
        return str(info[TASK]) if info.get(TASK) else None

    def get_observation(self) -> Observation:
        """Return the present observation.

        Raises:
            RobotError: the robot is not connected.
        """
        if self._observation is None:
            raise RobotError(f"The simulation '{self.env_name}' is not connected. Call connect() first.")
        return dict(self._observation)

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Take one step, unless the episode is over. Returns the action within its limits, (A,) float32.

        Raises:
            UnsafeActionError: the action is not finite, out of limits, or too far from the last one; nothing moved.
        """
        safe: NDArray[np.float32] = self.gate.check_chunk(np.asarray(action)[None])[0]
        if not self._over:
            self._observation, _, terminated, truncated, info = self.env.step(safe)
            self._over = terminated or truncated
            self._success = self._success or bool(info["is_success"])
        self.gate.position = safe
        return safe

    def disconnect(self) -> None:
        """Close the environment."""
        if not self._closed:
            self._closed = True
            self.env.close()


def _bounds(space: Space, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low, high = (np.broadcast_to(bound, (size,)) for bound in (space.low, space.high))
    return low.astype(np.float64), high.astype(np.float64)


def _numbered_names(stem: str, size: int) -> tuple[str, ...]:
    return tuple(f"{stem}_{number}" for number in range(size))
