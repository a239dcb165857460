"""`smolact/Aloha-v0`: the two tasks of gym-aloha, in which two arms transfer a cube, or insert a peg into a socket.

Observations: `pixels.top`, and `agent_pos` (14,): for each arm six joints in radians and the gripper's opening, 0 closed to 1 open.
Actions (14,) are where these should go. They are absolute angles, so they are not clipped to gym-aloha's action space, [−1, 1].

An episode equals LeRobot's of that seed to the bit, pictures included (`tests/parity/data/benchmarks`). It is truncated after 400
steps, LeRobot's number, of which there are 50 a second. gym-aloha itself draws three cameras at every step, and shows one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.benchmarks.base import (
    RENDERINGS,
    BenchmarkEnv,
    DivergedError,
    one_of,
    picture_size,
    picture_space,
    select_tasks,
)
from smolact.envs.rendering import SceneRenderer, import_simulator

ALOHA_ID = "smolact/Aloha-v0"
GROUP = "aloha"
WORDS = {
    "AlohaInsertion-v0": "Insert the peg into the socket.",
    "AlohaTransferCube-v0": "Pick up the cube with the right arm and transfer it to the left arm.",
}
"""The instructions of the datasets `lerobot/aloha_sim_*`."""
LEROBOT_WORDS = {"AlohaInsertion-v0": "insertion", "AlohaTransferCube-v0": "transfer_cube"}
"""What LeRobot's evaluation tells the policy: gym-aloha's names."""

_CAMERA = "top"
_N_JOINTS = 14
_SUCCESS = 4  # the largest reward


class Aloha(BenchmarkEnv):
    """The environment of `gymnasium.make("smolact/Aloha-v0")`; `BenchmarkEnv` says what is common to suites.

    Args:
        task: `AlohaInsertion-v0`, `AlohaTransferCube-v0`, or both, separated by a comma.
        task_ids: positions in that list; None for all.
        obs_type: `pixels_agent_pos` or `pixels`.
        observation_height, observation_width: of the pictures.
        rendering: `full`, LeRobot's pictures; `fast`: without shadows, antialiasing and reflections.
        lerobot_words: LeRobot's instructions, of one word each; ours are the datasets'.
        fps: 50, as LeRobot has it.

    Raises:
        ConfigError: an argument is invalid.
        MissingDependencyError: the extra `aloha` is not installed, or pictures can't be drawn.
    """

    suite = "ALOHA"
    max_episode_steps = 400
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(
        self,
        task: str | Sequence[str] = GROUP,
        task_ids: Sequence[int] | None = None,
        obs_type: str = "pixels_agent_pos",
        observation_height: int = 480,
        observation_width: int = 640,
        rendering: str = "full",
        lerobot_words: bool = False,
        fps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        one_of("rendering", rendering, RENDERINGS)
        size = picture_size(observation_height, observation_width)
        super().__init__(
            select_tasks(
                task,
                task_ids,
                words=LEROBOT_WORDS if lerobot_words else WORDS,
                groups={GROUP: WORDS},
                lone_group=GROUP,
            ),
            gymnasium.spaces.Dict({_CAMERA: picture_space(size)}),
            _N_JOINTS,
            obs_type=obs_type,
            fps=fps,
            render_mode=render_mode,
        )
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (_N_JOINTS,), np.float32)
        self._size, self._without = size, RENDERINGS[rendering]
        import_simulator("gym_aloha.env", "aloha")

    def _make_simulation(self, name: str) -> AlohaSimulation:
        return AlohaSimulation(name, self._size, self._without)


class AlohaSimulation:
    """One task's simulation: gym-aloha's, which observes the joints alone, and is drawn when asked to.

    Args:
        name: the task.
        size: (height, width) of the pictures.
        without: what they lack (`SceneRenderer`).
    """

    def __init__(self, name: str, size: tuple[int, int], without: Collection[str]) -> None:
        module: Any = import_simulator("gym_aloha.env", "aloha")
        self._unstable: type[Exception] = module.control.PhysicsError
        self._env: Any = module.AlohaEnv(LEROBOT_WORDS[name])
        self._env._format_raw_obs = lambda joints: joints
        task: Any = self._env._env.task
        task.get_observation = task.get_qpos
        self._physics: Any = self._env._env.physics
        self._renderer = SceneRenderer(self._physics.model.ptr, size, without)
        self.agent_pos: NDArray[np.float64] = np.zeros(_N_JOINTS)

    def reset(self, seed: int, init_state: int) -> None:
        """Start the episode of a seed; there are no recorded initial states."""
        self.agent_pos, _ = self._env.reset(seed=seed)

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool]:
        """Take one control step; return the reward, 0 to 4, and whether it is 4. Raises `DivergedError`."""
        try:
            self.agent_pos, reward, *_ = self._env.step(action)
        except self._unstable as error:
            raise DivergedError(str(error)) from error
        return float(reward), reward == _SUCCESS

    def draw(self) -> dict[str, NDArray[np.uint8]]:
        """Return the picture from above."""
        return {_CAMERA: self._renderer.draw(self._physics.data.ptr, _CAMERA)}

    def close(self) -> None:
        """Free the graphics context."""
        self._renderer.close()
