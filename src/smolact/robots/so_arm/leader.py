"""The leaders: one arm (`so100_leader`, `so101_leader`) or a pair of them (`bi_so_leader`), moved by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smolact.errors import RobotError
from smolact.robots.base import Observation, Robot
from smolact.robots.feetech.bus import RETRIES
from smolact.robots.so_arm.arm import MOTORS, SOArm
from smolact.robots.so_arm.pairs import sides
from smolact.types import ACTION


@dataclass(kw_only=True)
class LeaderArm:
    """Settings of one leader arm: port, units as in `FollowerArm`, and how often a request is repeated."""

    port: str
    use_degrees: bool = True
    num_read_retries: int = RETRIES


class SOLeader:
    """A teleoperator of one or two leader arms. Made by `make_leader` and `make_bimanual_leader`.

    Its torque is off, so that a hand moves it, but for `drive_to`.
    """

    def __init__(self, name: str, arms: Mapping[str, SOArm]) -> None:
        self.name, self.arms = name, dict(arms)
        self._is_driven = False

    def connect(self, robot: Robot) -> None:
        """Open the ports, to drive `robot`.

        Raises:
            RobotError: an arm does not answer or is not calibrated, or the robot has other joints or units.
            MissingDependencyError: pyserial is not installed.
        """
        self._check_fit(robot)
        try:
            for arm in self.arms.values():
                arm.open()
                arm.check_calibration()
                arm.configure()
        except BaseException:
            self.disconnect()
            raise

    def drop(self) -> None:
        """Close the ports, so that the system can give their names again."""
        for arm in self.arms.values():
            arm.drop()

    def reconnect(self) -> None:
        """Connect again after a lost connection. Raises as `connect` does."""
        self._is_driven = False
        for arm in self.arms.values():
            arm.drop()
            arm.open()
            arm.check_calibration()
            arm.configure()

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """Return the leader's position, (A,) float32, in the joints' units.

        Raises:
            RobotError: an arm does not answer.
        """
        return np.array(
            [value for arm in self.arms.values() for value in arm.positions().values()], np.float32
        )

    def drive_to(self, position: ArrayLike) -> None:
        """Send the leader to a position (A,), with its torque on until `let_go`.

        Raises:
            RobotError: an arm does not answer.
        """
        if not self._is_driven:
            self._is_driven = True
            for arm in self.arms.values():
                arm.hold()
        for arm, goals in zip(
            self.arms.values(), np.split(np.asarray(position, np.float64), len(self.arms)), strict=True
        ):
            arm.set_goals(dict(zip(MOTORS, goals.tolist(), strict=True)))

    def let_go(self) -> None:
        """Switch the torque off, so that a hand moves the leader."""
        if self._is_driven:
            self._is_driven = False
            for arm in self.arms.values():
                arm.release_torque()

    def disconnect(self) -> None:
        """Switch the torque off and close the ports. May be called at any time, more than once."""
        self._is_driven = False
        with contextlib.ExitStack() as stack:
            for arm in self.arms.values():
                stack.callback(arm.close)

    def _check_fit(self, robot: Robot) -> None:
        names = tuple(f"{prefix}{motor}.pos" for prefix in self.arms for motor in MOTORS)
        if robot.features.action != names:
            raise RobotError(
                f"The leader gives {', '.join(names)}, and robot '{robot.name}' takes {', '.join(robot.features.action)}. "
                "Use the leader that belongs to the robot."
            )
        units = tuple(unit.value for arm in self.arms.values() for unit in arm.units.values())
        for name, unit, wanted in zip(names, units, robot.features.units.get(ACTION, units), strict=True):
            if unit != wanted:
                side = next(prefix for prefix in self.arms if name.startswith(prefix))
                arm = f"{side}arm_config." if side else ""
                raise RobotError(
                    f"The leader gives '{name}' in {unit} and robot '{robot.name}' takes {wanted}: give both the same "
                    f"--robot.{arm}use_degrees and --teleop.{arm}use_degrees."
                )


def make_leader(
    port: str,
    id: str | None = None,
    calibration_dir: Path | None = None,
    use_degrees: bool = True,
    num_read_retries: int = RETRIES,
) -> SOLeader:
    """Return a leader arm, not connected.

    Args:
        port: the serial port.
        id: the arm's name, under which its calibration is kept.
        calibration_dir: the folder of the calibration, if it is not LeRobot's.
        use_degrees: joints in degrees; False for percent of their range. As the robot's.
        num_read_retries: how often a request without an answer is repeated.

    Raises:
        ConfigError: a damaged calibration file.
    """
    config = LeaderArm(port=port, use_degrees=use_degrees, num_read_retries=num_read_retries)
    return SOLeader("so_leader", {"": _arm(config, "", id, calibration_dir)})


def make_bimanual_leader(
    left_arm_config: LeaderArm,
    right_arm_config: LeaderArm,
    id: str | None = None,
    calibration_dir: Path | None = None,
) -> SOLeader:
    """Return two leader arms as one teleoperator, not connected. The calibrations' names are ID_left and ID_right.

    Raises:
        ConfigError: invalid settings, or a damaged calibration file.
    """
    arms = {
        f"{side}_": _arm(config, side, name, calibration_dir)
        for side, config, name, _ in sides(LeaderArm, "teleop", id, left_arm_config, right_arm_config)
    }
    return SOLeader("bi_so_leader", arms)


def _arm(config: LeaderArm, side: str, id_: str | None, calibration_dir: Path | None) -> SOArm:
    return SOArm(
        config.port,
        f"leader '{id_}'" if id_ else f"{side} leader".strip(),
        "teleoperators",
        name=id_,
        calibration_dir=calibration_dir,
        use_degrees=config.use_degrees,
        retries=config.num_read_retries,
    )
