"""Mapping of an environment's observation names to the policy's batch keys.

gym-pusht, LeRobot's environments and the tabletop need no mapping: `pixels` -> `observation.image`, `pixels: {NAME: …}` ->
`observation.images.NAME`, `agent_pos` -> `observation.state`, `environment_state` -> `observation.environment_state`. Others
need a YAML file, in which dots address nested observations:

    observation:
      cameras.front: observation.images.front
      qpos: observation.state
    task: stack the red cup on the blue one     # only if the environment gives none
    success: is_success                         # the success flag's key in `info` (default)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import yaml
from numpy.typing import NDArray

from smolact.envs.benchmarks.base import BenchmarkEnv, BenchmarkTask
from smolact.errors import ConfigError, FeatureError, NotFoundError, did_you_mean, list_siblings
from smolact.types import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGE,
    IMAGES,
    STATE,
    FeatureType,
    PolicyFeature,
    RobotNames,
    is_image_key,
)

logger = logging.getLogger(__name__)

Observation = dict[str, NDArray[Any]]
"""Batch keys to arrays: images (H, W, 3) uint8, everything else (D,) float32."""

_CONVENTION = {"agent_pos": STATE, "environment_state": ENVIRONMENT_STATE, "pixels": IMAGE}


@runtime_checkable
class LanguageConditioned(Protocol):
    """An environment that lists its scene's goals and takes `task` and `goal` as options of `reset`."""

    def allowed_goals(self) -> tuple[Any, ...]:
        """Return the present scene's goals; `str(goal)` is an instruction."""
        ...

    def goal_reached(self, goal: Any) -> bool:
        """Whether a goal, requested or not, is reached."""
        ...


@dataclass(frozen=True)
class EnvMapping:
    """Observation names to batch keys, the instruction, and the key of the success flag in `info`."""

    observation: Mapping[str, str]
    task: str | None = None
    success: str = "is_success"

    @classmethod
    def from_file(cls, path: str | Path) -> EnvMapping:
        """Read a mapping from YAML.

        Raises:
            NotFoundError: the file does not exist.
            ConfigError: its content is not a mapping of the form above.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"There is no mapping file {path}. {list_siblings(path)}")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"The mapping file {path} is not YAML: {error}") from error
        names = content.get("observation") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names:
            raise ConfigError(
                f"The mapping file {path} needs a section 'observation' of lines 'its key: batch key'."
            )
        known = ("observation", "task", "success")
        for name in content:
            if name not in known:
                hint = did_you_mean(str(name), known)
                raise ConfigError(
                    f"The mapping file {path} has an unknown section '{name}'; known are {known}.{hint}"
                )
        for name, value in [*names.items(), *content.items()]:
            if name != "observation" and not (isinstance(name, str) and isinstance(value, str)):
                raise ConfigError(
                    f"In the mapping file {path}, '{name}: {value}' should be text on both sides."
                )
        return cls(**content)

    @classmethod
    def by_convention(cls, space: gymnasium.Space[Any]) -> EnvMapping:
        """Return the mapping of conventional names. Other entries are dropped and logged.

        Raises:
            ConfigError: the space has no conventional name.
        """
        names = {}
        for key in flatten_space(space):
            camera = key.removeprefix("pixels.")
            if key in _CONVENTION:
                names[key] = _CONVENTION[key]
            elif camera != key:
                names[key] = f"{IMAGES}.{camera}"
            else:
                logger.info(
                    "Observation '%s' is left out: no convention names it, and there is no mapping.", key
                )
        if not names:
            raise ConfigError(
                f"The environment observes {', '.join(flatten_space(space))}, and expected are 'pixels', 'agent_pos' or "
                "'environment_state'. Say which batch key each is in a YAML file: --env.mapping=FILE."
            )
        return cls(names)


def flatten_space(space: gymnasium.Space[Any], prefix: str = "") -> dict[str, gymnasium.Space[Any]]:
    """Return a nested space's leaves by dotted name; a space that is no Dict is `observation`."""
    if not isinstance(space, gymnasium.spaces.Dict):
        return {prefix or "observation": space}
    leaves: dict[str, gymnasium.Space[Any]] = {}
    for name, inner in space.spaces.items():
        leaves.update(flatten_space(inner, f"{prefix}.{name}" if prefix else name))
    return leaves


class PolicyEnv(gymnasium.Wrapper[Observation, NDArray[Any], Any, Any]):  # type: ignore[misc]
    """An environment under batch keys, whose `info` always has `task` (str) and `is_success` (bool).

    Args:
        env: any gymnasium environment with a Box action space.
        mapping: None for the conventional names.
        task: the instruction of every episode, kept as the attribute `instruction`; None for the environment's own. A `LanguageConditioned` environment sets its goal from it; others pass it on.

    Actions are clipped to the action space: outside, the environment is undefined, and a network's output is unbounded.

    Raises:
        ConfigError, FeatureError: the mapping does not fit the environment, or the actions are not a vector.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], mapping: EnvMapping | None = None, task: str | None = None
    ) -> None:
        super().__init__(env)
        self._benchmark = env.unwrapped if isinstance(env.unwrapped, BenchmarkEnv) else None
        self.mapping = mapping or EnvMapping.by_convention(env.observation_space)
        self.instruction = task if task is not None else self.mapping.task
        self._is_language_conditioned = isinstance(env.unwrapped, LanguageConditioned)
        spaces = flatten_space(env.observation_space)
        _check_names(self.mapping.observation)
        for key, name in self.mapping.observation.items():
            if key not in spaces:
                raise FeatureError(
                    f"The mapping names an observation '{key}', and the environment has {', '.join(spaces)}."
                    + did_you_mean(key, spaces)
                )
            _check_space(key, name, spaces[key])
        self.observation_space = gymnasium.spaces.Dict(
            {name: spaces[key] for key, name in self.mapping.observation.items()}
        )
        if not isinstance(env.action_space, gymnasium.spaces.Box) or len(env.action_space.shape) != 1:
            raise FeatureError(
                f"A policy gives a vector of numbers, and this environment takes {env.action_space}. Wrap it with "
                "gymnasium.wrappers.TransformAction, so that it takes a Box with one dimension, and register that."
            )

    @property
    def features(self) -> dict[str, PolicyFeature]:
        """The policy's input and output features; images as (3, H, W)."""
        found = {name: _feature(name, space.shape) for name, space in self.observation_space.spaces.items()}
        return {**found, ACTION: PolicyFeature(FeatureType.ACTION, tuple(self.action_space.shape))}

    @property
    def fps(self) -> int | None:
        """Control steps per second, if declared."""
        fps: int | None = self.env.metadata.get("render_fps")
        return fps

    @property
    def robot_names(self) -> RobotNames | None:
        """The robot that the environment simulates: its attribute `robot_names`, if it has one."""
        names = getattr(self.env.unwrapped, "robot_names", None)
        return names if isinstance(names, RobotNames) else None

    @property
    def tasks(self) -> tuple[BenchmarkTask, ...]:
        """A benchmark's tasks, which `reset` takes as `options={"task_id": index}`; none of other environments."""
        return () if self._benchmark is None else self._benchmark.tasks

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `options` are the environment's."""
        self._look(True)
        if self.instruction is not None and self._is_language_conditioned:
            options = {"task": self.instruction, **(options or {})}
        observation, info = self.env.reset(seed=seed, options=options)
        return self._to_batch_keys(observation), self._checked_info(info, over=False)

    def step(
        self, action: NDArray[Any], *, look: bool = True
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one control step.

        Args:
            action: (A,), in the environment's own units.
            look: whether the observation needs pictures. Without, a benchmark draws none and the observation lacks them; other
                environments draw anyway.
        """
        self._look(look)
        action = np.clip(action, self.action_space.low, self.action_space.high).astype(
            self.action_space.dtype
        )
        observation, reward, terminated, truncated, info = self.env.step(action)
        over = bool(terminated or truncated)
        checked = self._checked_info(info, over)
        return self._to_batch_keys(observation), float(reward), bool(terminated), bool(truncated), checked

    def _look(self, look: bool) -> None:
        if self._benchmark is not None:
            self._benchmark.look = look

    def _to_batch_keys(self, observation: Any) -> Observation:
        drawn = self._benchmark is None or self._benchmark.look
        return {
            name: _array(observation, key, self.observation_space[name], name)
            for key, name in self.mapping.observation.items()
            if drawn or not is_image_key(name)
        }

    def _checked_info(self, info: dict[str, Any], over: bool) -> dict[str, Any]:
        key = self.mapping.success
        if over and key not in info:
            raise ConfigError(
                f"The environment's info does not tell success: there is no '{key}' in {sorted(info)}. Name the right key "
                "as 'success' in a mapping file (--env.mapping=FILE), or have the environment's step set it."
            )
        success = np.asarray(info.get(key, False))
        if success.size != 1 or success.dtype.kind not in "biuf":
            raise ConfigError(
                f"The environment's info has '{key}': {info[key]!r}, and expected is whether the episode succeeded, true or "
                "false. Name the right key as 'success' in a mapping file: --env.mapping=FILE."
            )
        return {**info, "task": self._task(info), "is_success": bool(success.item())}

    def _task(self, info: dict[str, Any]) -> str:
        if self.instruction is not None and not self._is_language_conditioned:
            return self.instruction
        inner = self.env.unwrapped
        for task in (
            info.get("task"),
            getattr(inner, "task_description", None),
            getattr(inner, "task", None),
        ):
            if isinstance(task, str):
                return task
        raise ConfigError("The environment does not say what to do. Tell the policy: --task='…'.")


def play_random_episode(env: PolicyEnv) -> None:
    """Play one episode with random actions, so that a faulty environment fails early.

    Raises:
        ConfigError, FeatureError: task or success is missing, or an observation does not match its space.
    """
    env.action_space.seed(0)
    env.reset(seed=0)
    over = False
    while not over:
        *_, terminated, truncated, _ = env.step(env.action_space.sample(), look=False)
        over = terminated or truncated


def _array(observation: Any, key: str, space: gymnasium.Space[Any], name: str) -> NDArray[Any]:
    value = observation
    if isinstance(observation, dict):
        for part in key.split("."):
            value = value[part]
    array = np.asarray(value)
    # A float image cast to uint8 would be black, without an error.
    if array.shape != space.shape or (is_image_key(name) and array.dtype != np.uint8):
        raise FeatureError(
            f"The environment gives '{key}' as {array.shape} {array.dtype}, and its observation_space says "
            f"{space.shape} {space.dtype}. Correct the environment: gymnasium.utils.env_checker.check_env shows more."
        )
    return array if is_image_key(name) else array.astype(np.float32)


def _check_names(names: Mapping[str, str]) -> None:
    assigned: dict[str, str] = {}
    for key, name in names.items():
        if not (name in (STATE, ENVIRONMENT_STATE) or is_image_key(name)):
            known = (STATE, ENVIRONMENT_STATE, IMAGE, f"{IMAGES}.NAME")
            raise FeatureError(
                f"The mapping makes '{key}' '{name}', which is no batch key: use one of {', '.join(known)}."
                + did_you_mean(name, known)
            )
        if name in assigned:
            raise FeatureError(
                f"The mapping makes both '{assigned[name]}' and '{key}' '{name}'. Each needs a batch key of its own."
            )
        assigned[name] = key


def _check_space(key: str, name: str, space: gymnasium.Space[Any]) -> None:
    shape: tuple[int, ...] = space.shape or ()
    if is_image_key(name):
        if len(shape) != 3 or shape[-1] != 3 or space.dtype != np.uint8:
            raise FeatureError(
                f"'{key}' can't be the camera {name}: expected (height, width, 3) uint8, found {shape} {space.dtype}. "
                + _wrapping_advice(shape)
            )
    elif len(shape) != 1:
        raise FeatureError(
            f"'{key}' can't be {name}: expected a vector, found the shape {shape}. {_flattening_advice(space, shape)}"
        )


def _wrapping_advice(shape: tuple[int, ...]) -> str:
    if len(shape) not in (2, 3):
        return "Is the picture another entry of what the environment observes?"
    if len(shape) == 2 or shape[-1] == 1:
        conversion = "repeat its grey channel three times"
    elif shape[-1] == 3:
        conversion = "make it uint8 ((255 * picture).round(), if it is in [0, 1])"
    elif shape[0] == 3:
        conversion = "put its channels last (picture.transpose(1, 2, 0))"
    else:
        conversion = "keep three of its channels, the last dimension"
    return f"In a gymnasium.wrappers.TransformObservation, {conversion}, and register that environment."


def _flattening_advice(space: gymnasium.Space[Any], shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and space.dtype == np.uint8:
        return f"It looks like a picture: map it to {IMAGE}."
    return "Wrap the environment with gymnasium.wrappers.FlattenObservation or TransformObservation, and register that."


def _feature(name: str, shape: tuple[int, ...]) -> PolicyFeature:
    if is_image_key(name):
        return PolicyFeature(FeatureType.VISUAL, (shape[-1], *shape[:-1]))
    return PolicyFeature(FeatureType.ENV if name == ENVIRONMENT_STATE else FeatureType.STATE, tuple(shape))
