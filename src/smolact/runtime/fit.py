"""Whether a policy fits a robot, and the rate of its actions."""

from __future__ import annotations

import logging
from dataclasses import replace

from smolact.errors import FeatureError
from smolact.robots.base import Robot, RobotFeatures
from smolact.runtime.policy import Policy
from smolact.runtime.remote import ServedPolicy
from smolact_client.errors import SchemaMismatchError
from smolact_client.schema import Names, Offer, check_offer

logger = logging.getLogger(__name__)


def check_robot(policy: Policy, features: RobotFeatures, *, any_names: bool = False) -> Names:
    """Raise unless the robot has the policy's inputs and takes its actions; returns the policy's cameras that the robot lacks.

    Args:
        policy: the policy.
        features: the robot's.
        any_names: whether the robot's joints may have other names than those of the policy's training.

    Raises:
        FeatureError: they do not fit together; the message has a table of both sides, and what settles it.
    """
    schema = replace(policy.schema, any_names=policy.schema.any_names or any_names)
    offer = Offer(features.cameras, features.vectors, features.action, features.units)
    try:
        return check_offer(schema, offer)
    except SchemaMismatchError as error:
        there = " The policy is on a server: --rename_map and --policy.… are flags of `smolact serve` there."
        raise FeatureError(f"{error}{there if isinstance(policy, ServedPolicy) else ''}") from error


def rate_of(asked: float | None, robot: Robot, trained: float | None) -> float:
    """Actions a second: the rate that was asked for, the simulation's, that of the policy's training, or 30."""
    known = getattr(getattr(robot, "env", None), "fps", None) or trained or 30.0
    return float(known if asked is None else asked)


def note_rate(rate: float, trained: float | None) -> None:
    """Log a warning if actions are sent at another rate than that of the policy's training."""
    if trained is not None and rate != trained:
        logger.warning(
            "Actions are sent at %g a second, and the policy was trained at %g: its motions take %.2f times as long.",
            rate,
            trained,
            trained / rate,
        )


def note_masked(cameras: Names) -> None:
    """Log a warning that names the policy's cameras that a robot lacks."""
    if cameras:
        logger.warning("Not on the robot, shown to the policy as masked black: %s.", ", ".join(cameras))
