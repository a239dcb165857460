"""`smolact/Tabletop-v0`: coloured blocks on a table, a round pusher, and an instruction to follow.

Observations are those of gym-pusht and LeRobot: `pixels` (H, W, 3) uint8 and `agent_pos` (2,) float32. The action is the
pusher's target, (2,) in [0, 1]², in the coordinates of `agent_pos` and the image; the pusher moves straight, at most `MAX_STEP`
per step. Actions are positions, not velocities: a chunk of positions is a path that can be drawn over the image, does not
drift, and is visible to the policy.

`info` has `task` (the instruction), `task_kind` ("reach" or "push") and `is_success`. An episode succeeds once its goal has
held for `HOLD_STEPS` steps, and is truncated after 80.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import hypot
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.instructions import SPLITS, GoalDrawing
from smolact.envs.tabletop_drawing import draw_table
from smolact.envs.tabletop_language import KINDS, Goal
from smolact.envs.tabletop_scene import (
    COLORS,
    CONTROL_HZ,
    PUSHER_RADIUS,
    Block,
    TableState,
    TableWorld,
    within_reach,
    zones_at,
)
from smolact.errors import ConfigError

TABLETOP_ID = "smolact/Tabletop-v0"
MAX_EPISODE_STEPS = 80
HOLD_STEPS = 3

_EDGE_MARGIN = 0.18  # of blocks, so that the pusher fits behind each
_ZONE_MARGIN = 0.06  # of blocks around zones
_BLOCK_DISTANCE = 0.2
_PUSHER_DISTANCE = 0.22  # farther than a reach

Observation = dict[str, NDArray[Any]]


class Tabletop(GoalDrawing, gymnasium.Env[Observation, NDArray[np.float32]]):  # type: ignore[misc]
    """The environment of `gymnasium.make("smolact/Tabletop-v0")`.

    The same seed gives the same scene, goal and phrasing; `reset(seed=…, options=…)` with another goal keeps the scene (if its
    block is missing, the block of the seed's own goal gets that colour).

    Args:
        tasks: kinds of goals to draw; a kind listed twice is twice as likely.
        n_blocks: number of blocks on the table, each of another colour.
        phrasings, combinations: `train`, `unseen` or `all`: phrasings, and pairs of colour and place, to draw.
        image_size: height and width of the observation's picture.
        render_size: height and width of the pictures of films.
        obs_type: `pixels_agent_pos`, or `environment_state_agent_pos`, whose `environment_state` (18,) replaces the image: for
            each colour presence, x, y.

    Raises:
        ConfigError: an argument is invalid.
    """

    goal_class = Goal
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}

    def __init__(
        self,
        tasks: tuple[str, ...] | list[str] = KINDS,
        n_blocks: int = 3,
        phrasings: str = "train",
        combinations: str = "train",
        image_size: int = 64,
        render_size: int = 256,
        obs_type: str = "pixels_agent_pos",
        render_mode: str | None = None,
    ) -> None:
        for name, value, known in (
            *(("tasks", task, KINDS) for task in tasks),
            ("n_blocks", n_blocks, tuple(range(1, len(COLORS) + 1))),
            ("phrasings", phrasings, SPLITS),
            ("combinations", combinations, SPLITS),
            ("obs_type", obs_type, ("pixels_agent_pos", "environment_state_agent_pos")),
            ("render_mode", render_mode, (None, *self.metadata["render_modes"])),
        ):
            if value not in known:
                raise ConfigError(f"The tabletop can't have {name}={value!r}: use one of {known}.")
        for name, size in (("image_size", image_size), ("render_size", render_size)):
            if size < 16:
                raise ConfigError(f"{name}={size} shows nothing: use 16 pixels or more.")
        self._set_goals(tuple(tasks), phrasings, combinations)
        self._n_blocks = n_blocks
        self._image_size = image_size
        self._render_size = render_size
        self._with_pixels = obs_type == "pixels_agent_pos"
        self.render_mode = render_mode

        position = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
        image = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        positions = gymnasium.spaces.Box(0.0, 1.0, (3 * len(COLORS),), np.float32)
        scene = {"pixels": image} if self._with_pixels else {"environment_state": positions}
        self.observation_space = gymnasium.spaces.Dict({**scene, "agent_pos": position})
        self.action_space = position
        self._recent: deque[TableState] = deque(maxlen=HOLD_STEPS)

    # Queries of scripted experts and evaluations ----------------------------------------------------------------

    @property
    def state(self) -> TableState:
        """The present state of the table."""
        return self._recent[-1]

    def _present_colors(self) -> list[str]:
        return [block.color for block in self.state.blocks]

    def goal_reached(self, goal: Goal) -> bool:
        """Whether `goal`, requested or not, has held for `HOLD_STEPS` steps; none holds in a new scene.

        Raises:
            ConfigError: the scene has no block of that colour.
        """
        self._check_present(goal)
        return all(goal.holds(state) for state in self._recent)

    def action_positions(self, actions: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Return the image positions of actions (…, 2) in [0, 1], x right and y down: the actions themselves."""
        return actions

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
        colors = self._draw_goal(options or {}, self._n_blocks)

        start = self._draw_scene(colors)
        self._world = TableWorld(start)
        self._recent.clear()
        self._recent.append(start)
        return self._observe(), self._info(success=False)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the pusher towards `action` (2,) for a tenth of a second; the reward is 1 on success, else 0.

        Raises:
            ConfigError: the action is not two finite numbers. Finite ones are clipped to the table.
        """
        target = np.asarray(action, np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ConfigError(
                f"The tabletop takes two finite numbers as an action (x, y in [0, 1]), not {action}."
            )
        self._world.move_towards(*within_reach(*target.tolist()))
        self._recent.append(self._world.state)
        success = self.goal_reached(self._goal)
        return self._observe(), float(success), success, False, self._info(success)

    def render(self) -> NDArray[np.uint8] | None:
        """Return the table as (render_size, render_size, 3) uint8; None without `render_mode="rgb_array"`."""
        return draw_table(self.state, self._render_size) if self.render_mode == "rgb_array" else None

    def _observe(self) -> Observation:
        state = self.state
        observation: Observation = {"agent_pos": np.array(state.pusher, np.float32)}
        if self._with_pixels:
            observation["pixels"] = draw_table(state, self._image_size)
        else:
            positions = {block.color: (1.0, block.x, block.y) for block in state.blocks}
            rows = [positions.get(color, (0.0, 0.0, 0.0)) for color in COLORS]
            observation["environment_state"] = np.array(rows, np.float32).ravel()
        return observation

    def _info(self, success: bool) -> dict[str, Any]:
        return {"task": self._task, "task_kind": self._goal.kind, "is_success": success}

    def _draw_scene(self, colors: list[str]) -> TableState:
        random = self.np_random
        positions: list[tuple[float, float]] = []
        while len(positions) < len(colors):
            positions.clear()  # six blocks sometimes leave no space for the last: restart
            for x, y in random.uniform(_EDGE_MARGIN, 1.0 - _EDGE_MARGIN, (32, 2)).tolist():
                if not zones_at(x, y, _ZONE_MARGIN) and _is_clear(x, y, positions, _BLOCK_DISTANCE):
                    positions.append((x, y))
                if len(positions) == len(colors):
                    break
        angles = random.uniform(
            -np.pi / 4, np.pi / 4, len(colors)
        ).tolist()  # a square looks the same after a quarter turn
        while True:
            x, y = random.uniform(2 * PUSHER_RADIUS, 1.0 - 2 * PUSHER_RADIUS, 2).tolist()
            if _is_clear(x, y, positions, _PUSHER_DISTANCE):
                break
        blocks = (
            Block(color, *xy, angle) for color, xy, angle in zip(colors, positions, angles, strict=True)
        )
        return TableState((x, y), tuple(blocks))


def _is_clear(x: float, y: float, positions: list[tuple[float, float]], distance: float) -> bool:
    return all(hypot(x - other_x, y - other_y) >= distance for other_x, other_y in positions)


def register_tabletop() -> None:
    """Register the id with gymnasium; called when `smolact.envs.factory` is imported."""
    if TABLETOP_ID not in gymnasium.registry:
        gymnasium.register(
            TABLETOP_ID, entry_point="smolact.envs.tabletop:Tabletop", max_episode_steps=MAX_EPISODE_STEPS
        )
