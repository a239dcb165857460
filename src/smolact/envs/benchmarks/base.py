"""A benchmark suite as one environment: `reset` chooses the task, and one simulation at a time is alive.

Drawing costs up to a thousand times more than physics on a CPU, and a policy that plays a chunk of actions looks at few of the
pictures. So an environment draws only while its attribute `look` is true; physics does not depend on it.
"""

from __future__ import annotations

import difflib
import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.rendering import ANTIALIASING, REFLECTIONS, SHADOWS
from smolact.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

OBS_TYPES = ("pixels_agent_pos", "pixels")
RENDERINGS = {"full": (), "fast": (SHADOWS, ANTIALIASING, REFLECTIONS)}
"""What each rendering leaves out."""

Observation = dict[str, Any]
Pictures = NDArray[np.uint8] | dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of a suite.

    Attributes:
        name: the suite's own name of it.
        group: the group by which it was selected. As in LeRobot, a Meta-World task selected by its name is its own group.
        instruction: what the policy is told.
    """

    name: str
    group: str
    instruction: str


class DivergedError(Exception):
    """The physics of a `Simulation` became unstable, as it may after absurd actions."""


class Simulation(Protocol):
    """The simulation of one task, which draws only when it is asked to."""

    @property
    def agent_pos(self) -> NDArray[np.float64]:
        """The robot's state after the last `reset` or `step`."""
        ...

    def reset(self, seed: int, init_state: int) -> None:
        """Start an episode, which follows from both numbers alone."""
        ...

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one control step; return the reward, and whether the task is done. May raise `DivergedError`."""
        ...

    def draw(self) -> Pictures:
        """Return the pictures of the present state: one (H, W, 3) uint8, or one for each camera."""
        ...

    def close(self) -> None:
        """Free the graphics context."""
        ...


class BenchmarkEnv(gymnasium.Env[Observation, NDArray[np.float32]]):  # type: ignore[misc]
    """A suite. Success ends an episode; unstable physics end it without success, and with a warning.

    `info` has `task` (the instruction), `task_kind` (the task's name), `task_group` and `is_success`. Observations are `pixels`
    and, with `obs_type="pixels_agent_pos"`, `agent_pos` float64.

    Args:
        tasks: the selected tasks.
        pixels: the space of the pictures.
        n_state: width of `agent_pos`.
        obs_type: one of `OBS_TYPES`.
        fps: control steps per second, which are the suite's.

    Attributes:
        tasks: the tasks, which `reset(options={"task_id": …})` chooses by their position here.
        look: whether the next `reset` or `step` draws. If false, its observation has no `pixels`, and costs no rendering at all;
            `draw` gives the pictures of the present state later.

    Raises:
        ConfigError: an argument is invalid.
    """

    suite: ClassVar[str]
    max_episode_steps: ClassVar[int]

    def __init__(
        self,
        tasks: tuple[BenchmarkTask, ...],
        pixels: gymnasium.Space[Any],
        n_state: int,
        *,
        obs_type: str,
        fps: int | None,
        render_mode: str | None,
    ) -> None:
        control_fps: int = self.metadata["render_fps"]
        one_of("obs_type", obs_type, OBS_TYPES)
        one_of("render_mode", render_mode, (None, *self.metadata["render_modes"]))
        if fps not in (None, control_fps):
            raise ConfigError(
                f"fps={fps}: {self.suite} takes {control_fps} control steps a second. Leave fps out."
            )
        self.tasks, self.look, self.render_mode = tasks, True, render_mode
        spaces = {"pixels": pixels}
        if obs_type == "pixels_agent_pos":
            spaces["agent_pos"] = gymnasium.spaces.Box(-np.inf, np.inf, (n_state,), np.float64)
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self._task_id, self._steps = 0, 0
        self._simulation: Simulation | None = None
        self._pictures: Pictures | None = None

    @abstractmethod
    def _make_simulation(self, name: str) -> Simulation:
        """Return the simulation of a task."""

    @property
    def task(self) -> BenchmarkTask:
        """The present task."""
        return self.tasks[self._task_id]

    @property
    def simulation(self) -> Any:
        """The present task's simulation, for experts.

        Raises:
            ConfigError: no episode has begun.
        """
        if self._simulation is None:
            raise ConfigError(f"No episode of {self.suite} has begun: call reset first.")
        return self._simulation

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, which follows from seed, task and initial state alone.

        `options` may have `task_id`, the position in `tasks` (0 by default), and `init_state`, the number of a recorded initial
        state (0 by default), which suites without any ignore.

        Raises:
            ConfigError: an unknown option, or a number out of range.
            MissingDependencyError: pictures can't be drawn.
        """
        super().reset(seed=seed)
        chosen = {"task_id": 0, "init_state": 0, **(options or {})}
        for name in chosen:
            one_of("options", name, ("task_id", "init_state"))
        task_id = _number("task_id", chosen["task_id"], len(self.tasks))
        init_state = _number("init_state", chosen["init_state"], None)
        if self._simulation is None or task_id != self._task_id:
            self.close()
            self._task_id, self._simulation = task_id, self._make_simulation(self.tasks[task_id].name)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._simulation.reset(seed, init_state)
        self._steps = 0
        return self._observe(), self._info(False)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one control step; `action` is taken as float32, and not clipped.

        Raises:
            ConfigError: the action has another shape, or is not finite.
            MissingDependencyError: pictures can't be drawn.
        """
        simulation, sent = self.simulation, np.asarray(action, np.float32)
        if sent.shape != self.action_space.shape or not np.isfinite(sent).all():
            raise ConfigError(
                f"{self.suite} takes {self.action_space.shape[0]} finite numbers as an action, not {action}."
            )
        self._steps += 1
        try:
            reward, success = simulation.step(sent)
        except DivergedError as error:
            logger.warning(
                "%s ended after %d steps, without success: the physics became unstable (%s).",
                self.task.name,
                self._steps,
                error,
            )
            return self._observe(), 0.0, True, False, self._info(False)
        return self._observe(), reward, success, False, self._info(success)

    def draw(self) -> Pictures:
        """Return what `pixels` is in the present state, drawn once for it.

        Raises:
            ConfigError: no episode has begun.
            MissingDependencyError: pictures can't be drawn.
        """
        if self._pictures is None:
            self._pictures = self.simulation.draw()
        return self._pictures

    def render(self) -> NDArray[np.uint8] | None:
        """Return the (first) camera's picture, (H, W, 3) uint8; None without `render_mode="rgb_array"`."""
        if self.render_mode != "rgb_array":
            return None
        pictures = self.draw()
        return next(iter(pictures.values())) if isinstance(pictures, dict) else pictures

    def close(self) -> None:
        """Free the simulation and its graphics context."""
        if self._simulation is not None:
            self._simulation.close()
        self._simulation = self._pictures = None

    def _observe(self) -> Observation:
        self._pictures = None
        observation: Observation = {"pixels": self.draw()} if self.look else {}
        if "agent_pos" in self.observation_space.spaces:
            observation["agent_pos"] = self.simulation.agent_pos
        return observation

    def _info(self, success: bool) -> dict[str, Any]:
        task = self.task
        return {
            "task": task.instruction,
            "task_kind": task.name,
            "task_group": task.group,
            "is_success": success,
        }


def register_benchmark(env_id: str, suite: type[BenchmarkEnv]) -> None:
    """Register a suite with gymnasium, unless it is already."""
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=suite, max_episode_steps=suite.max_episode_steps)


def select_tasks(
    selection: str | Sequence[str],
    task_ids: Sequence[int] | None,
    *,
    words: Mapping[str, str],
    groups: Mapping[str, Iterable[str]],
    lone_group: str | None = None,
) -> tuple[BenchmarkTask, ...]:
    """Return the tasks of a selection.

    Args:
        selection: names of groups and tasks, as a list or separated by commas.
        task_ids: positions in each group; None for all.
        words: each task's instruction.
        groups: each group's tasks.
        lone_group: the group of tasks that are selected by name; None: each is its own.

    Raises:
        ConfigError: an unknown name, a position out of range, or no task at all.
    """
    parts = selection.split(",") if isinstance(selection, str) else [str(part) for part in selection]
    chosen: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, parts)):
        if part in groups:
            chosen[part] = list(groups[part])
        elif part in words:
            names = chosen.setdefault(lone_group or part, [])
            names += [part] * (part not in names)
        else:
            nearest = difflib.get_close_matches(part, [*groups, *words], n=3, cutoff=0.5)
            raise ConfigError(
                f"There is no task or group of tasks '{part}'. "
                + (f"Nearest: {', '.join(nearest)}. " if nearest else "")
                + f"Groups: {', '.join(groups)}."
            )
    if task_ids is not None:
        chosen = {
            group: [names[_number("task_ids", number, len(names))] for number in sorted(set(task_ids))]
            for group, names in chosen.items()
        }
    tasks = tuple(
        BenchmarkTask(name, group, words[name]) for group, names in chosen.items() for name in names
    )
    if not tasks:
        raise ConfigError(f"task={selection!r} and task_ids={task_ids} select no task at all.")
    return tasks


def picture_size(height: int, width: int) -> tuple[int, int]:
    """Return (height, width), or raise a `ConfigError` for a size that is too small."""
    if min(height, width) < 16:
        raise ConfigError(
            f"observation_height={height} and observation_width={width}: use 16 pixels or more."
        )
    return height, width


def picture_space(size: tuple[int, int]) -> gymnasium.Space[Any]:
    """Return the space of one picture of `size` (height, width)."""
    return gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)


def one_of(name: str, value: Any, known: Iterable[Any]) -> None:
    """Raise a `ConfigError` if `value` is none of `known`."""
    known = tuple(known)
    if value not in known:
        hint = did_you_mean(str(value), map(str, known))
        raise ConfigError(f"{name}={value!r}: use one of {known}.{hint}")


def _number(name: str, value: Any, end: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ConfigError(f"{name}={value!r}: expected a whole number, 0 or more.")
    if end is not None and value >= end:
        raise ConfigError(f"{name}={value}: expected 0 to {end - 1}; there are {end} tasks.")
    return int(value)
