"""`smolact/Libero-v0`: LIBERO's five suites, 130 tasks of one arm at a table, as LeRobot 0.6.1 sets them up.

Observations: two pictures, upright and mirrored left to right, and `agent_pos` (8,): the gripper's position in metres and rotation
vector, and its two fingers. Actions (7,): the gripper's motion in [−1, 1] (±1 is 5 cm and 0.5 rad), or with `control_mode="absolute"`
its pose in metres and as a rotation vector; and −1 to open, 1 to close the gripper.

An episode follows from its seed and initial state alone, and equals LeRobot's first of both to the bit, pictures included
(`tests/parity/data/benchmarks`). It is truncated after the steps of its suite (`STEPS`), of which there are 20 a second.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.benchmarks.base import (
    RENDERINGS,
    BenchmarkEnv,
    Observation,
    one_of,
    picture_size,
    picture_space,
    select_tasks,
)
from smolact.envs.benchmarks.libero_assets import import_libero
from smolact.envs.benchmarks.libero_simulation import N_STATE, LiberoSimulation
from smolact.errors import ConfigError

LIBERO_ID = "smolact/Libero-v0"
STEPS = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Each suite's longest episode, as in LeRobot."""
CAMERAS = {"agentview_image": "image", "robot0_eye_in_hand_image": "image2"}
"""robosuite's names of the pictures, and LeRobot's."""
CONTROL_MODES = ("relative", "absolute")

_N_ACTION = 7
_MAX_FPS = 500  # substeps per second


class Libero(BenchmarkEnv):
    """The environment of `gymnasium.make("smolact/Libero-v0")`; `BenchmarkEnv` says what is common to suites.

    Args:
        task: suites (`STEPS`) or tasks, by the names of their BDDL files, separated by commas.
        task_ids: positions in each suite; None for all.
        obs_type: `pixels_agent_pos` or `pixels`.
        observation_height, observation_width: of the pictures.
        camera_name: which pictures, of `CAMERAS`, separated by commas.
        camera_name_mapping: their names for the policy; those of `CAMERAS` where it has none.
        control_mode: `relative` or `absolute` actions.
        init_states: whether episodes begin in the recorded initial states, of which a task has fifty; without, the seed draws one.
        hard_reset: whether each episode builds the model again, as in LeRobot, which takes 1 to 3 s. Without, episodes differ a little
            from LeRobot's, and from those of the same seed after others.
        rendering: `full`, LeRobot's pictures; `fast`: without shadows, antialiasing and reflections.
        fps: control steps per second. With another than 20 the same actions move the arm at another speed.

    Raises:
        ConfigError: an argument is invalid.
        MissingDependencyError: the extra `libero` is not installed, or pictures can't be drawn.
    """

    suite = "LIBERO"
    max_episode_steps = max(STEPS.values())
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (fps of an instance)

    def __init__(
        self,
        task: str | Sequence[str] = "libero_10",
        task_ids: Sequence[int] | None = None,
        obs_type: str = "pixels_agent_pos",
        observation_height: int = 360,
        observation_width: int = 360,
        camera_name: str | Sequence[str] = ",".join(CAMERAS),
        camera_name_mapping: Mapping[str, str] | None = None,
        control_mode: str = "relative",
        init_states: bool = True,
        hard_reset: bool = True,
        rendering: str = "full",
        fps: int = 20,
        render_mode: str | None = None,
    ) -> None:
        one_of("rendering", rendering, RENDERINGS)
        one_of("control_mode", control_mode, CONTROL_MODES)
        if not hard_reset and not init_states:
            raise ConfigError("hard_reset=False needs init_states=True, as in LeRobot.")
        if not 1 <= fps <= _MAX_FPS:
            raise ConfigError(f"fps={fps}: expected 1 to {_MAX_FPS} control steps a second; LIBERO's are 20.")
        self.metadata = {**self.metadata, "render_fps": fps}
        size, names = (
            picture_size(observation_height, observation_width),
            _names(camera_name, camera_name_mapping),
        )
        super().__init__(
            select_tasks(task, task_ids, words=instructions(), groups=suites()),
            gymnasium.spaces.Dict({name: picture_space(size) for name in names.values()}),
            N_STATE,
            obs_type=obs_type,
            fps=None,
            render_mode=render_mode,
        )
        bound = 1.0 if control_mode == "relative" else np.inf
        self.action_space = gymnasium.spaces.Box(-bound, bound, (_N_ACTION,), np.float32)
        self._settings: dict[str, Any] = {
            "cameras": {camera.removesuffix("_image"): name for camera, name in names.items()},
            "size": size,
            "without": RENDERINGS[rendering],
            "absolute": control_mode == "absolute",
            "init_states": init_states,
            "hard_reset": hard_reset,
            "fps": fps,
        }
        import_libero()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one control step, as `BenchmarkEnv.step`; the last one of the task's suite truncates the episode."""
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self._steps >= STEPS[_suite_of(self.task.name)], info

    def _make_simulation(self, name: str) -> LiberoSimulation:
        return LiberoSimulation(_suite_of(name), name, **self._settings)


def instructions() -> dict[str, str]:
    """Return each task's instruction, which is in its name: that of libero_10 and libero_90 begins with a scene's."""
    names = [name for tasks in suites().values() for name in tasks]
    return {name: re.sub(r"^[A-Z_]+_SCENE\d+_", "", name).replace("_", " ") for name in names}


@functools.cache
def suites() -> dict[str, list[str]]:
    """Return each suite's tasks."""
    tasks: dict[str, list[str]] = json.loads(
        Path(__file__).with_name("libero_tasks.json").read_text(encoding="utf-8")
    )
    return tasks


def _suite_of(name: str) -> str:
    return next(suite for suite, tasks in suites().items() if name in tasks)


def _names(cameras: str | Sequence[str], mapping: Mapping[str, str] | None) -> dict[str, str]:
    """Return the name of each chosen picture."""
    chosen = [name.strip() for name in (cameras.split(",") if isinstance(cameras, str) else cameras)]
    for name in chosen:
        one_of("camera_name", name, CAMERAS)
    for name in mapping or ():
        one_of("camera_name_mapping", name, CAMERAS)
    names = {name: {**CAMERAS, **(mapping or {})}[name] for name in chosen}
    if len(set(names.values())) < len(names):
        raise ConfigError(f"camera_name_mapping={mapping}: two cameras can't have the same name.")
    return names
