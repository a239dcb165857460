"""A simulated robot: an environment under batch keys (`smolact.envs.mapping.PolicyEnv`, or anything like it).

Its actions pass a gate as those of a real robot do. The limits are those of the environment's action space. What a step is
depends on the environment: where the action space is the space of the state as well (the tabletop, PushT), an action is the
place to go to, and a leap is one that lies far from the place before. Anywhere else an action may be a velocity or a change,
which says nothing about the one before it, so no step is too large unless `max_step` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smolact.errors import RobotError
from smolact.robots.base import Observation, RobotFeatures
from smolact.robots.safety import Gate, make_limits
from smolact.types import ACTION, STATE, TASK, is_image_key

LEAP = 0.3
"""The largest step of a place to go to, as a share of its range: the tabletop's expert takes 0.04, a hand in PushT some more."""

SLACK = 0.25
"""By what share of its range an action may lie outside and is set to the limit: more than on a motor, since an environment has
nothing to break, and policies that learnt in one overshoot at its edges (the demo's by a tenth)."""


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

    @property
    def observation_space(self) -> Mapping[str, Any]:
        """Batch key to the space of what is observed."""
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
        max_step: the largest change of a number of the action in one tick, for all or by name; 0 for none. None: `LEAP` of the
            range where an action is a place to go to, none elsewhere.
        limits: the range of some numbers of the action by name, in place of the environment's.
        max_action_age: the oldest observation that a chunk may answer, in seconds; without end, since a simulation waits.

    Attributes:
        gate: what every action passes.

    Raises:
        ConfigError: limits that can't be, or of a number that the action does not have.
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
        self.env, self._name, self._seed = env, name, seed
        size = env.features[ACTION].shape[0]
        names, (low, high) = _numbered(ACTION, size), _bounds(env.action_space, size)
        # `in` asks a space of gymnasium's for an observation, not for a key.
        state = env.observation_space.get(STATE)
        self._acts_in_places = state is not None and np.array_equal((low, high), (state.low, state.high))
        steps = dict(zip(names, LEAP * (high - low), strict=True)) if self._acts_in_places else {}
        if isinstance(max_step, Mapping):
            steps |= max_step
        elif max_step is not None:
            steps = dict.fromkeys(names, max_step)
        steps = {name: math.inf if step == 0 else float(step) for name, step in steps.items()}
        ranges = {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
        self.gate = Gate(make_limits(names, ranges | dict(limits or {}), steps, max_action_age, SLACK))
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
        low, high = self.gate.limits.low, self.gate.limits.high
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        return RobotFeatures(
            action=self.gate.limits.names,
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
        nowhere = np.full(len(self.gate.limits.names), math.nan, np.float32)
        self.gate.position = (
            np.array(self._observation[STATE], np.float32) if self._acts_in_places else nowhere
        )
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
        """Make one step, unless the episode is over. Returns the action within its limits, (A,) float32.

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


def _numbered(stem: str, size: int) -> tuple[str, ...]:
    return tuple(f"{stem}_{number}" for number in range(size))
