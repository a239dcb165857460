"""`smolact/SO101-v0`: an SO-101 arm before coloured cubes, a bin and a plate, and an instruction to follow.

It is the twin of the `so101_follower` (`smolact.robots.so_arm`): the same names, order and units of the numbers, 30 control steps
a second, and the cameras `front` and `wrist`. So datasets and checkpoints of one fit the other.

Observations: `agent_pos` (6,) float32, where the joints are, and `pixels`, a picture (H, W, 3) uint8 for each camera. The action
(6,) is where the joints should go, as for the real arm's motors: degrees from the middle of each joint's range, and percent of
its opening for the gripper. The model's zero is the middle of each range, as in LeRobot's calibration.

`info` has `task`, `task_kind` ("reach" or "pick_place") and `is_success`. An episode succeeds once its goal has held for
`HOLD_STEPS` steps, and is truncated after `MAX_EPISODE_STEPS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.instructions import SPLITS, GoalDrawing
from smolact.envs.so101_language import ALL_GOALS, KINDS, Goal
from smolact.envs.so101_model import CAMERAS, CONTROL_HZ, JOINTS
from smolact.envs.so101_world import SO101World
from smolact.errors import ConfigError
from smolact.types import RobotNames

SO101_ID = "smolact/SO101-v0"
MAX_EPISODE_STEPS = 300
HOLD_STEPS = 10
MAX_CUBES = 4

ROBOT = RobotNames(
    "so_follower",
    tuple(f"{joint}.pos" for joint in JOINTS),
    (*["degrees"] * 5, "range_0_100"),
    (*[30.0] * 5, np.inf),
)
"""The names that `so101_follower` has, and the largest steps of its gate."""

Observation = dict[str, Any]


class SO101(GoalDrawing, gymnasium.Env[Observation, NDArray[np.float32]]):  # type: ignore[misc]
    """The environment of `gymnasium.make("smolact/SO101-v0")`.

    The same seed gives the same scene, goal and phrasing; `reset(seed=…, options=…)` with another goal keeps the scene (if its
    cube is missing, the cube of the seed's own goal gets that colour).

    Args:
        tasks: kinds of goals to draw; a kind listed twice is twice as likely.
        n_cubes: number of cubes on the table, each of another colour.
        phrasings, combinations: `train`, `unseen` or `all`: phrasings, and pairs of colour and place, to draw.
        image_size: (height, width) of the pictures.
        cameras: the cameras, of `front` and `wrist`; without one nothing needs to be drawn.

    Raises:
        ConfigError: an argument is invalid.
        MissingDependencyError: the extra `so101-sim` is not installed, or pictures can't be drawn.
    """

    goal_class = Goal
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}
    robot_names: ClassVar[RobotNames] = ROBOT

    def __init__(
        self,
        tasks: Sequence[str] = KINDS,
        n_cubes: int = 3,
        phrasings: str = "train",
        combinations: str = "train",
        image_size: Sequence[int] = (480, 640),
        cameras: Sequence[str] = tuple(CAMERAS),
        render_mode: str | None = None,
    ) -> None:
        for name, value, known in (
            *(("tasks", task, KINDS) for task in tasks),
            *(("cameras", camera, tuple(CAMERAS)) for camera in cameras),
            ("n_cubes", n_cubes, tuple(range(1, MAX_CUBES + 1))),
            ("phrasings", phrasings, SPLITS),
            ("combinations", combinations, SPLITS),
            ("render_mode", render_mode, (None, *self.metadata["render_modes"])),
        ):
            if value not in known:
                raise ConfigError(f"The simulated SO-101 can't have {name}={value!r}: use one of {known}.")
        if len(image_size) != 2 or min(image_size) < 16:
            raise ConfigError(f"image_size={image_size}: use a height and a width of 16 pixels or more.")
        self._set_goals(tuple(tasks), phrasings, combinations)
        self._n_cubes = n_cubes
        self._cameras = tuple(cameras)
        self.render_mode = render_mode
        self.world = SO101World(n_cubes, (int(image_size[0]), int(image_size[1])))
        low, high = (bound.astype(np.float32) for bound in self.world.limits)
        joints = gymnasium.spaces.Box(low, high, dtype=np.float32)
        image = gymnasium.spaces.Box(0, 255, (*map(int, image_size), 3), np.uint8)
        spaces: dict[str, gymnasium.Space[Any]] = {"agent_pos": joints}
        if self._cameras:
            spaces["pixels"] = gymnasium.spaces.Dict(dict.fromkeys(self._cameras, image))
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = joints
        self._held: dict[Goal, int] = {}

    # Queries of scripted experts and evaluations ----------------------------------------------------------------

    def _present_colors(self) -> list[str]:
        return list(self.world.colors)

    def goal_reached(self, goal: Goal) -> bool:
        """Whether `goal`, requested or not, has held for `HOLD_STEPS` steps; none holds in a new scene.

        Raises:
            ConfigError: the scene has no cube of that colour.
        """
        self._check_present(goal)
        return self._held.get(goal, 0) >= HOLD_STEPS

    # The gymnasium interface --------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        `options` may have a `task`, from which the goal is parsed, a `goal` (a `Goal`), or both: then `goal` decides success
        and the text is passed on unchanged.

        Raises:
            ConfigError: an unknown option, or an instruction without a known goal.
        """
        super().reset(seed=seed)
        colors = self._draw_goal(options or {}, self._n_cubes)
        self.world.reset(colors, self.np_random)
        self._held = {}
        return self._observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Send the joints to `action` (6,) for a thirtieth of a second; the reward is 1 on success, else 0.

        Raises:
            ConfigError: the action is not six finite numbers. Finite ones are clipped to the joints' ranges.
        """
        target = np.asarray(action, np.float64)
        if target.shape != (len(JOINTS),) or not np.isfinite(target).all():
            raise ConfigError(
                f"The simulated SO-101 takes {len(JOINTS)} finite numbers as an action, not {action}."
            )
        self.world.step(target)
        for goal in ALL_GOALS:
            if goal.color in self.world.colors:
                self._held[goal] = self._held.get(goal, 0) + 1 if self.world.fulfils(goal) else 0
        info = self._info()
        return self._observe(), float(info["is_success"]), info["is_success"], False, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the front camera's picture, (H, W, 3) uint8; None without `render_mode="rgb_array"`."""
        return self.world.draw("front") if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Free the graphics context."""
        self.world.close()

    def _observe(self) -> Observation:
        observation: Observation = {"agent_pos": self.world.positions.astype(np.float32)}
        if self._cameras:
            observation["pixels"] = {camera: self.world.draw(camera) for camera in self._cameras}
        return observation

    def _info(self) -> dict[str, Any]:
        success = self.goal_reached(self._goal)
        return {"task": self._task, "task_kind": self._goal.kind, "is_success": success}


def register_so101() -> None:
    """Register the id with gymnasium; called when `smolact.envs.factory` is imported."""
    if SO101_ID not in gymnasium.registry:
        gymnasium.register(
            SO101_ID, entry_point="smolact.envs.so101:SO101", max_episode_steps=MAX_EPISODE_STEPS
        )
