from dataclasses import dataclass

from lerobot.robots import RobotConfig


@RobotConfig.register_subclass("can_arm")
@dataclass
class CanArmConfig(RobotConfig):
    """Needs a package that is not there."""
