"""The robot and the teleoperator that need environments: a simulated robot, and its scripted expert."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from smolact.envs.experts import ScriptedExpert, expert_for
from smolact.envs.factory import make_env
from smolact.envs.supervision import EstimatesSteps, Supervisor
from smolact.errors import ConfigError, RobotError
from smolact.robots.base import Observation, Robot
from smolact.robots.sim import SimRobot


def make_sim(
    env: str = "tabletop",
    task: str | None = None,
    mapping: Path | None = None,
    seed: int = 0,
    kwargs: dict[str, Any] | None = None,
    max_step: float | dict[str, float] | None = None,
    limits: dict[str, tuple[float, float]] | None = None,
    max_action_age: float = math.inf,
) -> SimRobot:
    """Return a simulated robot in the environment of this name.

    Args:
        env: `tabletop`, `so101`, or a gymnasium id.
        task: the instruction of every episode; None for the scene's own.
        mapping: a YAML file that maps the environment's names to batch keys.
        seed: the seed of its scenes.
        kwargs: the environment's own settings.
        max_step, limits, max_action_age: settings of its gate; see `SimRobot`.

    Raises:
        EnvironmentNotFoundError, MissingDependencyError, ConfigError, FeatureError: `make_env` raised it.
    """
    return SimRobot(
        make_env(env, task=task, mapping=mapping, **(kwargs or {}))[0],
        env,
        seed,
        max_step=max_step,
        limits=limits,
        max_action_age=max_action_age,
    )


class ExpertTeleoperator:
    """The scripted expert of a simulation. As the corrector of a policy it takes over when it foresees a failure."""

    name = "expert"
    is_scripted = True

    def __init__(self) -> None:
        self._env: Any = None
        self._expert: ScriptedExpert | None = None
        self._supervisor: Supervisor | None = None

    def connect(self, robot: Robot) -> None:
        """Find the expert of the robot's environment.

        Raises:
            RobotError: the robot is not a simulation.
            ConfigError: there is no expert for its environment.
        """
        if not isinstance(robot, SimRobot):
            raise RobotError(
                f"The teleoperator 'expert' drives simulations only, and the robot is '{robot.name}'. "
                "Use its own leader arm, or --robot.type=sim."
            )
        self._env, self._expert = robot.env, expert_for(robot.env_name)

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Return the expert's action in the present state, (A,) float32.

        Raises:
            RobotError: it is not connected.
        """
        if self._expert is None:
            raise RobotError("The expert is not connected. Call connect() first.")
        return self._expert.act(self._env)

    def begin(self) -> None:
        """Start an episode."""
        self._supervisor = None

    def takes_over(self, observation: Observation) -> bool:
        """Return whether it drives now, in place of a policy; called once before every step.

        Raises:
            ConfigError: the expert can't judge a situation.
        """
        if self._supervisor is None:
            expert: object = self._expert
            if not isinstance(expert, EstimatesSteps):
                raise ConfigError(
                    "The expert of this environment can't tell when a policy fails, so it corrects none: it needs a method "
                    "`steps_left(env)`, as the tabletop's has."
                )
            self._supervisor = Supervisor(expert)
        return self._supervisor.takes_over(self._env)

    def disconnect(self) -> None:
        """Release the environment and the expert."""
        self._env = self._expert = None
