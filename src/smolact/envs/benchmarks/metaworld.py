"""`smolact/MetaWorld-v0`: the fifty tasks of Meta-World (MT50), as LeRobot 0.6.1 sets them up.

Observations: `pixels`, the camera corner2, moved and turned upright as LeRobot does, and `agent_pos` (4,): the hand's x, y, z in
metres and the gripper's opening in [0, 1]. Actions (4,) in [−1, 1]: the hand's step in centimetres, and the gripper's effort.

An episode follows from its seed alone, and equals LeRobot's of that seed to the bit, pictures included
(`tests/parity/data/benchmarks`). It is truncated after 500 steps, of which there are 80 a second.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.benchmarks.base import (
    RENDERINGS,
    BenchmarkEnv,
    one_of,
    picture_size,
    picture_space,
    select_tasks,
)
from smolact.envs.rendering import SceneRenderer, import_simulator

METAWORLD_ID = "smolact/MetaWorld-v0"
GROUPS = ("easy", "medium", "hard", "very_hard")

_CAMERA, _CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)


class MetaWorld(BenchmarkEnv):
    """The environment of `gymnasium.make("smolact/MetaWorld-v0")`; `BenchmarkEnv` says what is common to suites.

    Args:
        task: groups (`GROUPS`) or tasks (`reach-v3`), separated by commas; LeRobot's prefix `metaworld-` may stand before each.
        task_ids: positions in each group; None for all.
        obs_type: `pixels_agent_pos` or `pixels`.
        observation_height, observation_width: of the pictures.
        rendering: `full`, LeRobot's pictures; `fast`: without shadows, antialiasing and reflections, about ten times cheaper on
            a CPU. Policies should be evaluated with the pictures that they were trained on.
        lerobot_words: LeRobot's instruction for push-back-v3, which is that of push-v3; ours differ.
        fps: 80, as LeRobot has it.

    Raises:
        ConfigError: an argument is invalid.
        MissingDependencyError: the extra `metaworld` is not installed, or pictures can't be drawn.
    """

    suite = "Meta-World"
    max_episode_steps = 500
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        task: str | Sequence[str] = ",".join(GROUPS),
        task_ids: Sequence[int] | None = None,
        obs_type: str = "pixels_agent_pos",
        observation_height: int = 480,
        observation_width: int = 480,
        rendering: str = "full",
        lerobot_words: bool = False,
        fps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        one_of("rendering", rendering, RENDERINGS)
        size = picture_size(observation_height, observation_width)
        parts = task.split(",") if isinstance(task, str) else task
        super().__init__(
            select_tasks(
                [part.strip().removeprefix("metaworld-") for part in parts],
                task_ids,
                words=instructions(lerobot_words),
                groups=_facts()["groups"],
            ),
            picture_space(size),
            4,
            obs_type=obs_type,
            fps=fps,
            render_mode=render_mode,
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._size, self._without = size, RENDERINGS[rendering]
        import_simulator("metaworld.env_dict", "metaworld")

    def _make_simulation(self, name: str) -> MetaWorldSimulation:
        return MetaWorldSimulation(name, self._size, self._without)


class MetaWorldSimulation:
    """One task's simulation.

    It is set up as by metaworld's `MT1` and `set_task`, which take seconds to draw goals that seeded resets replace.

    Args:
        name: the task.
        size: (height, width) of the pictures.
        without: what they lack (`SceneRenderer`).

    Attributes:
        observation: metaworld's (39,), with the goal; for experts.
    """

    def __init__(self, name: str, size: tuple[int, int], without: Collection[str]) -> None:
        self._env: Any = import_simulator("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS[name]()
        self._env._set_task_called = True
        self._env._partially_observable = False
        # Cached when the goal was not observable yet: with it, step would set the goal in the observation to zero.
        del self._env.sawyer_observation_space
        self._env._freeze_rand_vec, self._env.seeded_rand_vec = False, True
        self._env.max_path_length = sys.maxsize  # gymnasium's TimeLimit counts the steps
        self._env.model.camera(_CAMERA).pos[:] = _CAMERA_POSITION
        self._env.reset()
        self._renderer = SceneRenderer(self._env.model, size, without)
        self.observation: NDArray[np.float64] = np.zeros(39)

    @property
    def agent_pos(self) -> NDArray[np.float64]:
        """The hand's position (3,) and the gripper's opening."""
        position: NDArray[np.float64] = self.observation[:4].copy()
        return position

    def reset(self, seed: int, init_state: int) -> None:
        """Start the episode of a seed; there are no recorded initial states."""
        self._env.seed(seed)
        self.observation, _ = self._env.reset(seed=seed)

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one control step; return the reward in [0, 10], and whether the task is done."""
        self.observation, reward, _, _, info = self._env.step(action)
        return float(reward), bool(info["success"])

    def draw(self) -> NDArray[np.uint8]:
        """Return the camera's picture, upright."""
        return np.ascontiguousarray(np.flip(self._renderer.draw(self._env.data, _CAMERA), (0, 1)))

    def close(self) -> None:
        """Free the graphics context."""
        self._renderer.close()


def instructions(lerobot_words: bool = False) -> dict[str, str]:
    """Return each task's instruction."""
    facts = _facts()
    words = {name: text for group in facts["groups"].values() for name, text in group.items()}
    return {**words, **facts["lerobot_words"]} if lerobot_words else words


@functools.cache
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(
        Path(__file__).with_name("metaworld_tasks.json").read_text(encoding="utf-8")
    )
    return facts
