"""An environment of one's own with its expert, as a distribution that smolact finds by its entry point.

It has `pixels`, `agent_pos`, `task` and `is_success`, so it needs no mapping file. `--env.type=lamp` is it.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from smolact.envs.factory import KnownEnv

COLORS = {"red": (220, 50, 40), "green": (40, 170, 80), "blue": (50, 90, 220)}


class Lamp(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """Three lamps in a row; the instruction says over which one to stop."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gymnasium.spaces.Dict(
        pixels=gymnasium.spaces.Box(0, 255, (32, 96, 3), np.uint8),
        agent_pos=gymnasium.spaces.Box(0, 1, (1,), np.float32),
    )
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float32)  # how far to go

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Another order of lamps, another goal; all of it from the seed."""
        super().reset(seed=seed)
        self.lamps = [str(name) for name in self.np_random.permutation(list(COLORS))]
        number = int(self.np_random.integers(3))
        self.goal = (number + 0.5) / 3
        self.place = self.np_random.uniform(0, 1, 1).astype(np.float32)
        self.task = f"go to the {self.lamps[number]} lamp"
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> Any:
        """Move, and see whether it is there."""
        self.place = np.clip(self.place + action, 0, 1)
        there = bool(abs(self.place[0] - self.goal) < 0.04)
        return self._observe(), float(there), there, False, {"is_success": there}

    def render(self) -> Any:
        """The lamps, and below them where one is."""
        picture = np.zeros((32, 96, 3), np.uint8)
        for left, name in zip((4, 36, 68), self.lamps, strict=True):
            picture[:20, left : left + 24] = COLORS[name]
        picture[24:, int(self.place[0] * 91) :][:, :5] = 255
        return picture

    def _observe(self) -> Any:
        return {"pixels": self.render(), "agent_pos": self.place}


class LampExpert:
    """Goes straight there."""

    def act(self, env: Any) -> NDArray[np.float32]:  # noqa: D102
        return np.clip(env.unwrapped.goal - env.unwrapped.place, -0.1, 0.1).astype(np.float32)


gymnasium.register("own/Lamp-v0", entry_point=Lamp, max_episode_steps=30)
LAMP = KnownEnv("own/Lamp-v0", expert="own_environment:LampExpert")
